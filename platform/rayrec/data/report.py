"""The report of a Dataset: one HTML page that needs no network, made from counts alone, without any user's key."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from html import escape

import numpy as np

from rayrec.artifacts import Json, short_digest
from rayrec.data.charts import Bar, bars, compact, curve, heatmap, round_step
from rayrec.data.dataset import Dataset, manifest_numbers, open_dataset, read_statistics, report_path, vocabularies
from rayrec.data.drift import DIVERGENCES, MISSING_CHANGE, NEW_SHARES, RATE_FACTOR, drift
from rayrec.data.page import balance, document, percent, ranked, section, shares, table, text
from rayrec.data.views import open_view
from rayrec.recipe_data import Clean, Split, View

VALUE_BARS = 24
MEASURES = {
    "items": "Popularity of items",
    "types": "Event types",
    "week_hours": "Hours of the week",
    "values": "Values",
}
DEFAULTS = {name: of.model_dump(mode="json") for name, of in (("view", View()), ("split", Split()), ("clean", Clean()))}
WEEKDAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")


def publish_report(dataset: Dataset, view: str) -> str:
    """Write the report on a Dataset and a view of it beside the Dataset. Returns the page."""
    parent = None
    if dataset.manifest["parent"] in manifest_numbers(dataset.storage, dataset.name):
        parent = open_dataset(dataset.storage, dataset.name, dataset.manifest["parent"])
    statistics = read_statistics(dataset)
    compared = None
    if parent is not None:
        compared = drift(statistics, read_statistics(parent), vocabularies(dataset), vocabularies(parent))
    page = render(dataset.manifest, statistics, open_view(dataset, view), compared, dataset.number)
    dataset.storage.replace(report_path(dataset.name, dataset.number), page.encode())
    return page


def render(
    manifest: Json, statistics: Json, view: Json | None = None, drift: Json | None = None, number: int | None = None
) -> str:
    """The page.

    Args:
        manifest: Of the Dataset.
        statistics: What `log_statistics` returns.
        view: The manifest of a view, if there is one.
        drift: What `drift` returns, if there is a parent.
        number: The manifest's number.
    """
    timed = manifest["order"] == "timestamp"
    sections = [
        _accounting(manifest),
        _quarantine(manifest),
        *(_times(statistics) if timed else [_UNTIMED]),
        _users(statistics["activity"]),
        _tail(statistics["long_tail"]),
        _values(statistics),
        _types(statistics),
        _missing(statistics),
        *(_view(view, manifest) if view else []),
        *([_drift(drift, timed)] if drift else []),
        _sources(manifest),
    ]
    note = "Times are UTC. Made from counts; no user appears in this page."
    head = _header(manifest, number)
    return document(f"{manifest['name']} – Dataset", head, _tiles(manifest, statistics), sections, note)


# ---- the head


def _header(manifest: Json, number: int | None) -> str:
    mark = ' <span class="mark">simulated data</span>' if manifest["simulated"] else ""
    facts = [
        *([f"manifest {number}"] if number is not None else []),
        *([f"parent {text(manifest['parent'])}"] if manifest["parent"] is not None else ["no parent"]),
        f"digest <code>{short_digest(manifest)}</code>",
    ]
    return (
        f'<header><h1>{escape(manifest["name"])}{mark}</h1><p class="muted">Dataset · {" · ".join(facts)}</p></header>'
    )


def _tiles(manifest: Json, statistics: Json) -> str:
    events, users, items = statistics["events"], statistics["activity"]["users"], statistics["long_tail"]["items"]
    known_users, known_items = (manifest["vocab"][name]["rows"] for name in ("user", "item"))
    tiles = [
        ("Events", f"{events:,}", f"{events / max(1, users):,.1f} a user"),
        ("Users", f"{users:,}", f"of {known_users:,} that are known"),
        ("Items", f"{items:,}", f"of {known_items:,} that are known"),
        ("Density", percent(events / max(1, users * items)), "events of all user-item pairs"),
    ]
    if manifest["time_range_ms"]:
        first, last = (datetime.fromtimestamp(ms / 1000, UTC).date() for ms in manifest["time_range_ms"])
        note = f'<span class="date">{first}</span> to <span class="date">{last}</span>'
        tiles.append(("Time", f"{(last - first).days + 1:,} days", note))
    cells = (f"<div><dt>{name}</dt><dd>{value}<small>{note}</small></dd></div>" for name, value, note in tiles)
    return f'<dl class="tiles">{"".join(cells)}</dl>'


# ---- where the rows went


def _accounting(manifest: Json) -> str:
    counts = manifest["counts"]
    left_out = {
        "Quarantined": counts["quarantined"],
        "Deduplicated": counts["deduplicated"],
        **({"Erased": counts["erased"]} if "erased" in counts else {}),
    }
    sums = balance("Rows read", counts["read"], left_out, "Events in the log", counts["events"])
    return section("Where the rows went", sums)


def _quarantine(manifest: Json) -> str:
    if not manifest["reasons"]:
        return section("Quarantine", '<p class="muted">No row was unusable.</p>')
    return section("Quarantine", ranked("Reason", manifest["reasons"], manifest["counts"]["quarantined"]))


# ---- when


_UNTIMED = (
    '<section class="wide"><h2>Time</h2><p class="muted">The log has no times: the order of its rows is taken for '
    "the order in time.</p></section>"
)


def _times(statistics: Json) -> list[str]:
    days = {date(1970, 1, 1) + timedelta(int(day)): count for day, count in statistics["days"].items()}
    return [_over_time(days), _week(statistics["week_hours"])] if days else []


def _over_time(days: Mapping[date, int]) -> str:
    title = "Events over time"
    unit, starts = _bins(min(days), max(days))
    counts = dict.fromkeys(starts, 0)
    for day, count in days.items():
        counts[_start(day, unit)] += count
    form = {"year": "%Y", "month": "%Y-%m"}.get(unit, "%Y-%m-%d")
    named = {start.strftime(form): count for start, count in counts.items()}
    most = max(named, key=lambda name: named[name])
    description = f"From {min(days)} to {max(days)}; the most are {named[most]:,} in the {unit} of {most}."
    data = [Bar(name, count, f"{unit} of {name}: {count:,} events") for name, count in named.items()]
    chart = bars(title, description, data, (f"{unit} (UTC)", f"events a {unit}"), width=980)
    # Wider than a phone, so it scrolls; what scrolls must be reachable by keyboard.
    scrolling = f'<div class="scroll" tabindex="0" role="region" aria-label="{title}">{chart}</div>'
    return section(title, scrolling, wide=True)


def _week(hours: Sequence[int]) -> str:
    rows = [(name, hours[24 * day : 24 * day + 24]) for day, name in enumerate(WEEKDAYS)]
    busiest = int(np.argmax(hours))
    description = f"The most events, {hours[busiest]:,}, are on {WEEKDAYS[busiest // 24]} from {busiest % 24:02d}:00."
    return section("Hours of the week", heatmap("Hours of the week", description, rows, "hour of the day (UTC)"))


def _bins(first: date, last: date) -> tuple[str, list[date]]:
    """Days, weeks, months or years, whichever makes neither few nor many bars; and where each begins."""
    span = (last - first).days
    unit = "day" if span <= 92 else "week" if span <= 2 * 366 else "month" if span <= 15 * 366 else "year"
    every = (first + timedelta(days) for days in range(span + 1))
    return unit, sorted({_start(day, unit) for day in every})


def _start(day: date, unit: str) -> date:
    if unit == "week":
        return day - timedelta(day.weekday())
    return day.replace(day=1 if unit != "day" else day.day, month=1 if unit == "year" else day.month)


# ---- what


def _types(statistics: Json) -> str:
    return section("Event types", ranked("Type", statistics["types"], statistics["events"]))


def _users(activity: Json) -> str:
    counts = activity["by_power"]
    data = [
        Bar(f"{2**n:,}" if n < 17 else compact(2**n), count, f"{_range(n)} events: {count:,} users")
        for n, count in enumerate(counts)
    ]
    most = int(np.argmax(counts)) if counts else 0
    description = f"The most users, {max(counts, default=0):,}, have {_range(most)} events."
    axes = ("events of a user: from this many up to the next bar", "users")
    return section("Events per user", bars("Events per user", description, data, axes))


def _range(power: int) -> str:
    return "1" if power == 0 else f"{2**power:,} to {2 ** (power + 1) - 1:,}"


def _tail(tail: Json) -> str:
    single = tail["with_one_event"]
    facts = {
        "Gini coefficient": f"{tail['gini']:.3f}",
        "Events on the top 1 % of items": percent(tail["top_1_percent"]),
        "Events on the top 10 %": percent(tail["top_10_percent"]),
        "Items with one event": f"{single:,} ({percent(single / max(1, tail['items']))})",
    }
    rows = [f'<tr><th scope="row">{name}</th><td>{value}</td></tr>' for name, value in facts.items()]
    description = (
        "Cumulative share of the events by share of the items, most popular first; dashed where all are equal."
    )
    chart = curve("Long tail", description, tail["curve"], ("items, most popular first", "share of events"))
    return section("Long tail", chart + table([], rows))


def _values(statistics: Json) -> str:
    counts = {float(value): count for value, count in statistics["values"]["counts"].items()}
    if not counts:
        return section("Values", '<p class="muted">No event has a value.</p>')
    given = sum(counts.values())
    description = f"{given:,} events have one, from {min(counts):g} to {max(counts):g}."
    chart = bars("Values", description, _value_bars(counts), ("value", "events"))
    return section("Values", f'{chart}<p class="note muted">{description}</p>')


def _value_bars(counts: Mapping[float, int]) -> list[Bar]:
    """A bar for each value, or for equal ranges of many; the half percent at either end is in the outer ones."""
    values = np.array(sorted(counts))
    events = np.array([counts[value] for value in values.tolist()])
    if len(values) <= VALUE_BARS:
        pairs = zip(values.tolist(), events.tolist(), strict=True)
        return [Bar(f"{value:g}", count, f"{value:g}: {count:,} events") for value, count in pairs]
    before = np.cumsum(events) / events.sum()
    low, high = values[np.searchsorted(before, [0.005, 0.995])]
    if low == high:
        low, high = values[[0, -1]]
    step = round_step(float(high - low) / VALUE_BARS)
    first, last = (int(place) for place in np.floor(np.array([low, high]) / step))
    place = np.clip(np.floor(values / step), first, last).astype(np.int64) - first
    summed = np.bincount(place, weights=events).astype(np.int64).tolist()
    names = [compact(step * (first + n)) for n in range(len(summed) + 1)]
    return [
        Bar(name, count, f"{name} to {end}: {count:,} events")
        for name, end, count in zip(names[:-1], names[1:], summed, strict=True)
    ]


def _missing(statistics: Json) -> str:
    missing = {name.removeprefix("context_"): count for name, count in statistics["missing"].items()}
    return section("Missing values", ranked("Column", missing, statistics["events"], "Missing"))


# ---- the view


def _view(view: Json, manifest: Json) -> list[str]:
    counts = view["counts"]
    left_out = {reason.replace("_", " "): count for reason, count in view["filtered"].items()}
    sums = balance("Events in the log", manifest["counts"]["events"], left_out, "Events in the view", counts["events"])
    folds = {fold: counts[fold] for fold in ("train", "validation", "test")}
    size = f"<p>{counts['users']:,} users, {counts['items']:,} items, {counts['events']:,} events.</p>"
    settings = [
        f'<tr><th scope="row">{of}.{escape(key)}</th><td><code>{text(value)}</code></td></tr>'
        for of, defaults in DEFAULTS.items()
        for key, value in view[of].items()
        if key == "kind" or value != defaults.get(key)
    ]
    return [
        section("The view: what filters leave", size + sums),
        section(
            "The view: folds",
            shares("Fold", folds, counts["events"]) + table(["Setting, where not the default", "Value"], settings),
        ),
    ]


# ---- drift


def _drift(drift: Json, timed: bool) -> str:
    if "divergence" not in drift:
        return section("Drift", '<p class="muted">Nothing was appended to the parent.</p>', wide=True)
    rows = [_drift_row(*entry) for entry in _drift_entries(drift, timed)]
    lead = f"<p>{drift['events']:,} events were appended to the parent. How they differ from what was there:</p>"
    columns = table(["", "Appended", "Compared with", "Drift"], rows)
    return section("Drift against the parent", lead + columns + _thresholds(), wide=True)


def _thresholds() -> str:
    """What medium and large mean."""
    divergences = [(MEASURES[key], f"{low:g} and {high:g}") for key, (low, high) in DIVERGENCES.items()]
    shares = [(f"events of new {key}", f"{low:.0%} and {high:.0%}") for key, (low, high) in NEW_SHARES.items()]
    missing = ("missing", "a change by {:.0%} and {:.0%} of the events".format(*MISSING_CHANGE))
    rate = ("events a day", "a factor of {:g} and {:g}".format(*RATE_FACTOR))
    starts = "; ".join(f"{name.lower()}: {bounds}" for name, bounds in [*divergences, *shares, missing, rate])
    return (
        '<p class="note muted">Divergence is that of Jensen and Shannon, from 0 (the same) to 1 bit (nothing in '
        f"common); the verdict is on what exceeds chance. Medium and large begin at: {starts}.</p>"
    )


def _drift_entries(drift: Json, timed: bool) -> Iterator[tuple[str, str, str, str]]:
    """Name, figure, what it is compared with, verdict."""
    for key, found in drift["divergence"].items():
        if timed or key != "week_hours":
            by_chance = f"{found['reference']:.3f} by chance"
            yield f"{MEASURES[key]}: divergence", f"{found['now']:.3f}", by_chance, found["verdict"]
    for key, found in drift["new"].items():
        yield f"Events of new {key}", percent(found["now"]), "–", found["verdict"]
    for name, found in drift["missing"].items():
        before = f"{percent(found['reference'])} before"
        yield f"Missing: {name.removeprefix('context_')}", percent(found["now"]), before, found["verdict"]
    if timed:
        found = drift["events_per_day"]
        yield "Events a day", f"{found['now']:,.0f}", f"{found['reference']:,.0f} before", found["verdict"]


def _drift_row(name: str, figure: str, compared: str, verdict: str) -> str:
    kind = escape(verdict)
    cells = f'<td>{figure}</td><td class="wrap">{compared}</td><td class="{kind}">{kind}</td>'
    return f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>'


# ---- the files


def _sources(manifest: Json) -> str:
    files = {f"{file['name']}": file["rows"] for file in manifest.get("files", [])}
    if not files:
        return ""
    return section("Files read", ranked("File", files, sum(files.values()), "Rows"), wide=True)
