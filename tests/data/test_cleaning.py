"""Cleaning: keys, times and values understood; every unusable row set aside with the first reason against it."""

from __future__ import annotations

from datetime import date, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from rayrec.data.blocks import BadRow, Block
from rayrec.data.cleaning import ROW_BITS, Cleaned, clean_events, column_as_text, to_milliseconds
from rayrec.recipe_data import EventColumns, EventSource

JANUARY = 1_704_067_200_000
"""2024-01-01 00:00 UTC, epoch milliseconds."""


def clean(columns: dict[str, Any], bad: list[BadRow] | None = None, **options: Any) -> Cleaned:
    """Clean rows with the given columns; ``user`` and ``item`` are filled in where they are not given."""
    length = len(next(iter(columns.values())))
    table = pa.table({"user": ["u"] * length, "item": ["i"] * length} | columns)
    names = {name: name for name in table.column_names if name in EventColumns.model_fields}
    source = EventSource(path="log.csv", columns=EventColumns(**names), **options)
    return clean_events(Block(table, np.arange(length), bad or []), names, source, file=3)


def reasons(cleaned: Cleaned) -> list[tuple[int, str]]:
    return list(zip(cleaned.rejected["row"].to_pylist(), cleaned.rejected["reason"].to_pylist(), strict=True))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1704067200", JANUARY),
        ("1704067200000", JANUARY),
        ("1704067200.5", JANUARY + 500),
        ("2024-01-01", JANUARY),
        ("2024-01-01T00:00:00", JANUARY),
        ("2024-01-01 00:00:00.250", JANUARY + 250),
        ("2024-01-01T00:00:00Z", JANUARY),
        ("2024-01-01T02:00:00+02:00", JANUARY),
        (" 1704067200 ", JANUARY),
    ],
)
def test_a_time_is_understood_however_it_is_written(text: str, expected: int) -> None:
    assert to_milliseconds(pa.array([text]), "auto").tolist() == [expected]


def test_ways_to_write_a_time_may_be_mixed_in_a_column() -> None:
    column = pa.array(["1704067200", "2024-01-01T00:00:00+00:00", "1704067200000", "2024-01-01"])
    assert to_milliseconds(column, "auto").tolist() == [JANUARY] * 4


def test_a_given_unit_is_taken_at_its_word() -> None:
    assert to_milliseconds(pa.array(["1704067200"]), "ms").tolist() == [1_704_067_200]
    assert to_milliseconds(pa.array(["20240101"]), "iso").tolist() == [JANUARY]
    assert np.isnan(to_milliseconds(pa.array(["2024-01-01"]), "s")).all()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("yesterday", "timestamp not understood"),
        ("0x10", "timestamp not understood"),
        ("", "timestamp missing"),
        (None, "timestamp missing"),
        ("NaN", "timestamp missing"),
        ("-5", "timestamp out of range (1970 to 2100)"),
        ("9999-12-31", "timestamp out of range (1970 to 2100)"),
        ("99999999999999999999", "timestamp out of range (1970 to 2100)"),
        ("inf", "timestamp out of range (1970 to 2100)"),
    ],
)
def test_what_is_no_time_is_set_aside_with_the_reason(text: str | None, reason: str) -> None:
    cleaned = clean({"timestamp": pa.array([text, "1"], pa.string())})
    assert reasons(cleaned) == [(0, reason)]
    assert cleaned.events["event_id"].to_pylist() == [(3 << ROW_BITS) + 1]


@pytest.mark.parametrize("unit", ["auto", "s", "ms", "iso"])
@pytest.mark.parametrize(
    "column",
    [
        pa.array([datetime(1971, 1, 1)], pa.timestamp("us")),
        pa.array([datetime(1971, 1, 1)], pa.timestamp("ns", "Europe/Berlin")),
        pa.array([date(1971, 1, 1)], pa.date32()),
    ],
    ids=["timestamp", "timestamp with a zone", "date"],
)
def test_a_column_of_times_needs_no_unit(column: pa.Array, unit: str) -> None:
    assert clean({"timestamp": column}, time_unit=unit).events["timestamp"].to_pylist() == [365 * 86_400_000]


def test_a_missing_time_in_a_column_of_times_is_missing() -> None:
    assert reasons(clean({"timestamp": pa.array([None], pa.timestamp("us"))})) == [(0, "timestamp missing")]


@pytest.mark.parametrize("key", ["user", "item"])
def test_what_can_be_no_key_is_set_aside(key: str) -> None:
    cleaned = clean({key: ["a", "", " ", None, "b\0", "x" * 1025]})
    assert reasons(cleaned) == [
        (1, f"{key} missing"),
        (2, f"{key} missing"),
        (3, f"{key} missing"),
        (4, f"{key} holds a NUL"),
        (5, f"{key} longer than 1024 characters"),
    ]


def test_keys_that_look_like_nothing_are_keys() -> None:
    assert clean({"user": ["NA", "null", " None ", "nan"]}).events["user"].to_pylist() == ["NA", "null", "None", "nan"]


def test_broken_utf8_costs_its_row() -> None:
    cleaned = clean({"user": pa.array([b"a", b"\xff", b"c"]), "item": pa.array([b"x", b"y", b"z"])})
    assert cleaned.events["user"].to_pylist() == ["a", "c"]
    assert reasons(cleaned) == [(1, "broken UTF-8")]


def test_values_are_numbers_or_missing() -> None:
    cleaned = clean({"value": ["4.5", "", "NA", "four", "inf", None, "1e1"]})
    assert cleaned.events["value"].to_pylist() == [4.5, None, None, None, 10.0]
    assert reasons(cleaned) == [(3, "value is not a number"), (4, "value is not a number")]


def test_a_missing_type_is_the_one_of_the_source() -> None:
    cleaned = clean({"type": ["view", "", " ", None, "NA"]}, type="click")
    assert cleaned.events["type"].to_pylist() == ["view", "click", "click", "click", "NA"]


def test_integers_that_were_made_floats_are_the_same_keys() -> None:
    floats = pa.chunked_array([[1.0, 2.5, None, float("nan"), 1e20]])
    assert column_as_text(floats).to_pylist() == ["1", "2.5", None, None, "1e+20"]


def test_nested_columns_become_json() -> None:
    assert column_as_text(pa.chunked_array([[{"a": [1]}, None]])).to_pylist() == ['{"a": [1]}', None]


def test_columns_of_times_become_iso_text() -> None:
    assert column_as_text(pa.chunked_array([pa.array([date(2024, 1, 2)])])).to_pylist() == ["2024-01-02"]


def test_context_columns_are_kept_as_they_are() -> None:
    cleaned = clean({"device": ["NA", " tv ", None]}, context=("device",))
    assert cleaned.events["context_device"].to_pylist() == ["NA", " tv ", None]


def test_rows_that_were_none_are_rejected_too() -> None:
    cleaned = clean({"user": ["a"]}, bad=[BadRow(7, "2 columns instead of 3", "b,y")])
    assert reasons(cleaned) == [(7, "2 columns instead of 3")]
    assert cleaned.events.num_rows == 1


def test_the_first_reason_against_a_row_counts() -> None:
    assert reasons(clean({"user": [""], "item": [""]})) == [(0, "user missing")]
