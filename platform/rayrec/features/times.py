"""Times of all sorts as epoch seconds."""

from __future__ import annotations

from datetime import date

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from rayrec.features.columns import as_numbers, as_words, is_number, plain

MILLISECONDS_FROM, MICROSECONDS_FROM, NANOSECONDS_FROM = 1e11, 1e14, 1e17
"""An epoch number in a text is in seconds below the first, and so on: other readings lie centuries away."""

UNITS = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
DAY = 86_400
EARLIEST, LATEST = ((date(year, 1, 1) - date(1970, 1, 1)).days * DAY for year in (1, 9999))
"""Epoch seconds between which a time is one."""

ISO_8601 = (
    r"^(\d{4})-?(\d{2})-?(\d{2})"
    r"(?:[Tt ](\d{2})(?::?(\d{2})(?::?(\d{2})(?:[.,]\d+)?)?)?)?"
    r" ?(?:[Zz]|([+-])(\d{2})(?::?(\d{2}))?)?$"
)


def as_seconds(column: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Whole epoch seconds, rounded down: ``[N]`` int64, and ``[N]`` bool, where there is a time (years 1 to 9998).

    Numbers are epoch milliseconds, and times without a zone UTC. Texts are ISO 8601, or epoch numbers whose unit is
    told by their size.
    """
    column, kind = plain(column), column.type
    if pa.types.is_timestamp(kind):
        seconds = _integers(column.cast(pa.int64())) // UNITS[kind.unit]
    elif kind == pa.date32():
        seconds = _integers(column.cast(pa.int32())) * DAY
    elif kind == pa.date64() or (pa.types.is_integer(kind) and kind != pa.uint64()):
        seconds = _integers(column.cast(pa.int64())) // UNITS["ms"]
    elif is_number(kind):
        return _epoch_seconds(as_numbers(column), np.float64(UNITS["ms"]))
    else:
        return _text_seconds(as_words(column))
    return seconds, column.is_valid().to_numpy(zero_copy_only=False) & (seconds >= EARLIEST) & (seconds < LATEST)


def _integers(column: pa.Array) -> np.ndarray:
    """``[N]`` int64, 0 where there is none."""
    return pc.fill_null(column, 0).cast(pa.int64()).to_numpy(zero_copy_only=False)


def _epoch_seconds(numbers: np.ndarray, unit: np.ndarray | np.float64) -> tuple[np.ndarray, np.ndarray]:
    seconds = np.floor(numbers / unit)
    valid = (seconds >= EARLIEST) & (seconds < LATEST)
    return np.where(valid, seconds, 0).astype(np.int64), valid


def _text_seconds(words: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    numbers = as_numbers(words)
    size = np.abs(numbers)
    larger = (size >= MILLISECONDS_FROM).astype(int) + (size >= MICROSECONDS_FROM) + (size >= NANOSECONDS_FROM)
    seconds, valid = _epoch_seconds(numbers, np.array(list(UNITS.values()), float)[larger])
    rest = np.flatnonzero(np.isnan(numbers) & words.is_valid().to_numpy(zero_copy_only=False))
    if len(rest):
        seconds[rest], valid[rest] = _iso_seconds(words.take(pa.array(rest)))
    return seconds, valid


def _iso_seconds(words: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    groups = pl.Series(words).str.extract_groups(ISO_8601).struct.unnest()
    sign = np.where((groups["7"] == "-").fill_null(False).to_numpy(), -1, 1)
    numbers = groups.drop("7").select(pl.all().cast(pl.Int64).fill_null(0)).to_numpy().T
    year, month, day, hour, minute, second, zone_hours, zone_minutes = numbers
    months = (year - 1970) * 12 + np.clip(month, 1, 12) - 1
    days = months.astype("datetime64[M]").astype("datetime64[D]") + (day - 1)
    # The 31st of a month of 30 days falls into the next one.
    valid = (months == days.astype("datetime64[M]").astype(np.int64)) & (month >= 1) & (month <= 12) & (year >= 1)
    valid &= (hour < 24) & (minute < 60) & (second <= 60)
    offset = sign * (zone_hours * 3600 + zone_minutes * 60)
    seconds = days.astype(np.int64) * DAY + hour * 3600 + minute * 60 + second - offset
    return seconds, valid & (seconds >= EARLIEST) & (seconds < LATEST)
