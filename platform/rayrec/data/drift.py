"""Drift: how what was appended to a Dataset differs from what was there."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayrec.artifacts import Json
from rayrec.data.statistics import merge_values, rounded

WEEK = 7
DIVERGENCES = {"items": (0.1, 0.3), "types": (0.02, 0.05), "week_hours": (0.02, 0.05), "values": (0.02, 0.05)}
"""From where on a Jensen-Shannon divergence (bits, beyond chance) is medium and large.

.02 and .05 are where the population stability index, about 8 ln 2 times as much, has its customary .1 and .25. What
is popular moves more in any live catalogue.
"""

NEW_SHARES = {"items": (0.05, 0.2), "users": (0.2, 0.5)}
"""From where on the share of events on new items, or by new users, is medium and large."""

MISSING_CHANGE = (0.01, 0.05)
"""From where on a change of the share of missing values, up or down, is medium and large."""

RATE_FACTOR = (1.5, 3.0)
"""From which factor on, up or down, a change of the events per day is medium and large."""


def drift(now: Json, parent: Json, now_vocab: Mapping[str, pa.Table], parent_vocab: Mapping[str, pa.Table]) -> Json:
    """How what was appended to a Dataset differs from what was there.

    A divergence is that of Jensen and Shannon in bits, from 0 (the same) to 1 (nothing in common). Small samples
    diverge by chance alone, and much so over many items: beside each stands how far two random samples of these sizes
    from one distribution are apart, and the verdict is on what exceeds that.

    Args:
        now: Statistics of the new version; what was appended is its difference from the parent's.
        parent: Statistics of the version before.
        now_vocab: The vocabularies of ``user`` and ``item``: ``index`` and ``events`` int64.
        parent_vocab: Those of the version before; a key has the same index in both.

    Returns:
        ``events`` appended. Unless there are none: ``divergence`` of items, types, week_hours and values; ``new``:
        the shares of new items and users; ``missing``: the share by column; ``events_per_day`` with any. Each is
        ``now``, ``reference`` (by chance, or in the parent) and ``verdict``.
    """
    digits = min(version["values"]["digits"] for version in (now, parent))
    now, parent = _with_digits(now, digits), _with_digits(parent, digits)
    appended = _appended(now, parent)
    if not appended["events"] or not parent["events"]:
        return {"events": appended["events"]}
    tables = {table: _split(now_vocab[table], parent_vocab[table]) for table in ("item", "user")}
    pairs = {
        "items": tables["item"],
        **{key: _aligned(appended[key], parent[key]) for key in ("types", "values")},
    }
    if sum(count > 0 for count in appended["days"].values()) >= WEEK:
        # Less than a week is unlike a week however little has changed.
        pairs["week_hours"] = _aligned(appended["week_hours"], parent["week_hours"])
    return {
        "events": appended["events"],
        "divergence": {key: _divergence(*pair, DIVERGENCES[key]) for key, pair in pairs.items() if pair[0].sum()},
        "new": {f"{table}s": _new(*tables[table], NEW_SHARES[f"{table}s"]) for table in tables},
        "missing": {name: _missing(name, appended, parent) for name in sorted(now["missing"])},
        "events_per_day": _rate(_per_day(appended), _per_day(parent)),
    }


def _with_digits(statistics: Json, digits: int) -> Json:
    """These statistics with all histograms as plain counts, the one of values at these digits."""
    week_hours = {str(hour): count for hour, count in enumerate(statistics["week_hours"])}
    values = merge_values([{**statistics["values"], "digits": digits}])["counts"]
    return {**statistics, "week_hours": week_hours, "values": values}


def _appended(now: Json, parent: Json) -> Json:
    """What the parent does not have. Where events were erased since, none count as appended."""

    def more(key: str, absent: int = 0) -> dict[str, int]:
        return {name: max(0, count - parent[key].get(name, absent)) for name, count in now[key].items()}

    return {
        "events": max(0, now["events"] - parent["events"]),
        **{key: more(key) for key in ("days", "types", "week_hours", "values")},
        # A column that is new was missing everywhere.
        "missing": more("missing", absent=parent["events"]),
    }


def _aligned(first: dict[str, int], second: dict[str, int]) -> tuple[np.ndarray, np.ndarray]:
    keys = sorted(first.keys() | second.keys())
    one, two = (np.array([counts.get(key, 0) for key in keys], np.int64) for counts in (first, second))
    return one, two


def _split(now: pa.Table, parent: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """Events by index, those that were appended and those of the parent: ``[largest index + 1]`` int64 each."""
    length = 1 + max(pc.max(table["index"]).as_py() or 0 for table in (now, parent))
    total, before = (np.zeros(length, dtype=np.int64) for _ in range(2))
    for counts, table in ((total, now), (before, parent)):
        counts[table["index"].to_numpy()] = table["events"].to_numpy()
    return np.maximum(total - before, 0), before


def jensen_shannon(first: np.ndarray, second: np.ndarray) -> float:
    """The divergence of two distributions given by counts (``[K]``, not all 0), in bits: from 0 to 1."""
    p, q = first / first.sum(), second / second.sum()
    middle = (p + q) / 2
    terms = [s[s > 0] @ np.log2(s[s > 0] / middle[s > 0]) for s in (p, q)]
    return min(1.0, max(0.0, float(sum(terms)) / 2))


def _divergence(appended: np.ndarray, before: np.ndarray, thresholds: tuple[float, float]) -> Json:
    if not before.sum():
        return _judged(1.0, 0.0, 1.0, thresholds)
    found = jensen_shannon(appended, before)
    pooled = (appended + before) / (appended.sum() + before.sum())
    generator = np.random.default_rng(0)
    samples = [generator.multinomial(counts.sum(), pooled) for counts in (appended, before)]
    by_chance = jensen_shannon(*samples)
    return _judged(found, by_chance, found - by_chance, thresholds)


def _new(appended: np.ndarray, before: np.ndarray, thresholds: tuple[float, float]) -> Json:
    share = appended[before == 0].sum() / max(1, appended.sum())
    return _judged(share, 0.0, share, thresholds)


def _missing(name: str, appended: Json, parent: Json) -> Json:
    now, before = (s["missing"].get(name, s["events"]) / s["events"] for s in (appended, parent))
    return _judged(now, before, abs(now - before), MISSING_CHANGE)


def _per_day(statistics: Json) -> float:
    days = sum(count > 0 for count in statistics["days"].values())
    return float(statistics["events"] / max(1, days))


def _rate(now: float, before: float) -> Json:
    return _judged(now, before, max(now / before, before / now), RATE_FACTOR)


def _judged(now: float, reference: float, size: float, thresholds: tuple[float, float]) -> Json:
    medium, large = thresholds
    verdict = "large" if size >= large else "medium" if size >= medium else "small"
    return {"now": rounded(now), "reference": rounded(reference), "verdict": verdict}
