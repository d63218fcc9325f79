"""What is counted of a Dataset: partial counts of each segment of the log, merged, and counts by user and item.

Everything partial is an integer count and merging adds, so that the result does not depend on how rows are split.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from rayrec.artifacts import Json

HOUR_MS = 3_600_000
DISTINCT_VALUES = 4000
"""A histogram of values with more keys drops a digit of all of them."""

CURVE_POINTS = 200


# ---- partial counts


def segment_statistics(events: pa.Table) -> Json:
    """Counts of any rows of the log.

    Args:
        events: ``type`` string or dictionary of strings, ``value`` float64 or null, ``timestamp`` int64 (epoch ms),
            and any ``context_*`` columns.

    Returns:
        ``events``; ``days``: events by days since 1970 (UTC); ``week_hours``: ``[168]``, from Monday 0 to 1 h (UTC)
        on; ``types``; ``missing``: by column; ``values``: see `value_histogram`.
    """
    hours = events["timestamp"].to_numpy() // HOUR_MS
    by_day = np.bincount(hours // 24)
    contexts = [name for name in events.column_names if name.startswith("context_")]
    return {
        "events": events.num_rows,
        "days": {str(day): int(by_day[day]) for day in np.flatnonzero(by_day)},
        # 1 January 1970 was a Thursday.
        "week_hours": np.bincount((hours + 72) % 168, minlength=168).tolist(),
        "types": {kind["values"]: kind["counts"] for kind in events["type"].value_counts().to_pylist()},
        "missing": {name: events[name].null_count for name in ("value", *contexts)},
        "values": value_histogram(events["value"].drop_null().to_numpy()),
    }


def signed(statistics: Json, sign: int) -> Json:
    """The same, to be subtracted in `merge_statistics` where ``sign`` is -1: events that are taken away."""

    def times(counts: dict[str, int]) -> dict[str, int]:
        return {key: sign * count for key, count in counts.items()}

    return {
        "events": sign * statistics["events"],
        "week_hours": [sign * count for count in statistics["week_hours"]],
        **{key: times(statistics[key]) for key in ("days", "types", "missing")},
        "values": {**statistics["values"], "counts": times(statistics["values"]["counts"])},
    }


def merge_statistics(parts: Sequence[Json]) -> Json:
    """The statistics of all parts together, whatever their order and however rows are split among them."""
    return {
        "events": sum(part["events"] for part in parts),
        "week_hours": np.sum([np.zeros(168, np.int64), *(part["week_hours"] for part in parts)], axis=0).tolist(),
        **{key: _add([part[key] for part in parts]) for key in ("days", "types")},
        "missing": _add_missing(parts),
        "values": merge_values([part["values"] for part in parts]),
    }


def log_statistics(parts: Sequence[Json], vocabularies: Mapping[str, pa.Table]) -> Json:
    """What a Dataset's report and `rayrec.data.drift.drift` are made from.

    Args:
        parts: What `segment_statistics` returns, or this function for an earlier version of the Dataset.
        vocabularies: Of ``user`` and ``item``, with a column ``events`` int64.
    """
    users, items = (vocabularies[table]["events"].to_numpy() for table in ("user", "item"))
    return {**merge_statistics(parts), "activity": activity(users), "long_tail": long_tail(items)}


def value_histogram(values: np.ndarray) -> Json:
    """How often each value occurs, rounded to 3 significant digits.

    Where this makes more than `DISTINCT_VALUES` keys, as many digits are cut off as it takes. Cutting is exact (1.28
    and 1.21 become 1.2), which rounding again would not be: the parts of a log always add up to the whole.

    Returns:
        ``digits``: what is left, from 3 to 0 (the power of ten alone); ``counts``: events by the number as text.
    """
    mantissas, exponents = _decimal(values)
    counts = np.bincount((exponents + 400) * 2000 + mantissas + 1000)
    codes = np.flatnonzero(counts)
    return _bounded(codes % 2000 - 1000, codes // 2000 - 400, counts[codes], digits=3)


def _decimal(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values as ``mantissa * 10 ** exponent``, the mantissa ±100 to ±999 or 0, rounded: both ``[N]`` int64."""
    # Where powers of ten lose digits is taken for 0; where they end, for the last.
    size = np.minimum(np.abs(values, dtype=np.float64), 1e300)
    nonzero = size > 1e-290
    size[~nonzero] = 1
    exponents = np.floor(np.log10(size)).astype(np.int64) - 2
    powers = np.array([float(f"1e{power}") for power in range(-310, 309)])
    mantissas = np.rint(size / powers[exponents + 310]).astype(np.int64)
    # The logarithm may be off by one at a power of ten, and 999.6 rounds to the next.
    exponents += (mantissas >= 1000).astype(np.int64) - (mantissas < 100)
    mantissas = np.rint(size / powers[exponents + 310]).astype(np.int64)
    signs = np.sign(values).astype(np.int64) * nonzero
    return mantissas * signs, exponents * nonzero


def _bounded(mantissas: np.ndarray, exponents: np.ndarray, counts: np.ndarray, digits: int) -> Json:
    """The histogram of these numbers, with as many of the digits as make few enough keys."""
    while True:
        unit = 10 ** (3 - digits)
        cut = np.sign(mantissas) * np.where(unit < 1000, np.abs(mantissas) // unit * unit, 100)
        keys, places = np.unique((exponents + 400) * 2000 + cut + 1000, return_inverse=True)
        if len(keys) <= DISTINCT_VALUES or not digits:
            break
        digits -= 1
    summed = np.zeros(len(keys), dtype=np.int64)
    np.add.at(summed, places, counts)
    texts = [f"{float(f'{key % 2000 - 1000}e{key // 2000 - 400}'):g}" for key in keys.tolist()]
    return {"digits": digits, "counts": dict(zip(texts, summed.tolist(), strict=True))}


def merge_values(parts: Sequence[Json]) -> Json:
    """The histogram of all values together, with the digits of the coarsest part or, where that is too many, fewer."""
    counts = _add([part["counts"] for part in parts])
    mantissas, exponents = _decimal(np.array([float(text) for text in counts]))
    digits = min((part["digits"] for part in parts), default=3)
    return _bounded(mantissas, exponents, np.array([*counts.values()], np.int64), digits)


def _add(parts: Sequence[dict[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for part in parts:
        for key, count in part.items():
            total[key] = total.get(key, 0) + count
    return {key: count for key, count in sorted(total.items()) if count}


def _add_missing(parts: Sequence[Json]) -> dict[str, int]:
    """A part without a column misses it in all its events."""
    names = sorted({name for part in parts for name in part["missing"]})
    return {name: sum(part["missing"].get(name, part["events"]) for part in parts) for name in names}


# ---- by user and item


def activity(counts: np.ndarray) -> Json:
    """How many events users have.

    Args:
        counts: ``[U]`` int64, events of each user.

    Returns:
        ``users`` with events; ``by_power``: how many have 1, 2 to 3, 4 to 7, ... of them.
    """
    active = counts[counts > 0]
    return {"users": len(active), "by_power": np.bincount(np.frexp(active)[1] - 1).tolist()}


def long_tail(counts: np.ndarray) -> Json:
    """How events concentrate on the most popular items.

    Args:
        counts: ``[V]`` int64, events of each item. Items without any count as ``without_events`` alone.

    Returns:
        ``items`` with events, ``with_one_event``, ``without_events``; ``gini``, 0 where all items have equally many;
        ``top_1_percent`` and ``top_10_percent``: their share of the events; ``curve``: pairs (share of the items,
        most popular first; their share of the events), denser where it is steep.
    """
    popular = np.sort(counts[counts > 0])[::-1].astype(np.int64)
    found = {
        "items": len(popular),
        "with_one_event": int((popular == 1).sum()),
        "without_events": int(len(counts) - len(popular)),
    }
    if not len(popular):
        return {**found, "gini": 0.0, "top_1_percent": 0.0, "top_10_percent": 0.0, "curve": []}
    shares = np.concatenate([[0.0], np.cumsum(popular) / popular.sum()])
    steps = (np.linspace(0, 1, CURVE_POINTS + 1) ** 2 * len(popular)).round().astype(np.int64)
    # The area under the curve is the mean of the shares at the middle of each item.
    gini = 2 * ((shares[1:] + shares[:-1]) / 2).mean() - 1
    return {
        **found,
        "gini": rounded(gini),
        "top_1_percent": rounded(shares[math.ceil(len(popular) / 100)]),
        "top_10_percent": rounded(shares[math.ceil(len(popular) / 10)]),
        "curve": [[rounded(step / len(popular)), rounded(shares[step])] for step in np.unique(steps)],
    }


def rounded(number: float) -> float:
    """Six digits: the last ones differ between machines."""
    return float(f"{float(number):.6g}")
