"""Fitting in pieces, and the same transform wherever it is applied."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayrec.errors import DataError
from rayrec.features.base import FeatureConfig
from rayrec.features.categorical import Categorical
from rayrec.features.columns import BLOCK
from rayrec.features.fill import Fill
from rayrec.features.fit import Fit
from rayrec.features.multi_valued import MultiValued
from rayrec.features.numeric import Numeric
from rayrec.features.text import Text
from rayrec.features.timestamp import Timestamp
from rayrec.features.transform import Transform
from rayrec.features.vector import Vector

CONFIGS: dict[str, FeatureConfig] = {
    "word": Categorical(),
    "frequent": Categorical(column="word", min_count=3, max_size=5),
    "hashed": Categorical(column="word", buckets=7),
    "tags": MultiValued(separator=","),
    "tag_lists": MultiValued(),
    **{f"price_{scale}": Numeric(column="price", scale=scale) for scale in ("none", "standardise", "min-max", "log")},  # type: ignore[arg-type]
    "price_quantile": Numeric(column="price", scale="quantile", missing="median"),
    "rating": Numeric(missing=0.0),
    "time": Timestamp(parts=("hour", "weekday", "day", "month", "year")),
    "moment": Timestamp(),
    "title": Text(max_length=9),
    "vector": Vector(dimension=2),
    "vector_lists": Vector(dimension=2),
    "filled": Fill(column="price", missing="median", clip="quantile"),
    "filled_word": Fill(column="word", missing="most_frequent"),
    "absent": Categorical(),
}
DIRT = [
    None,
    "",
    " ",
    "abc",
    "NaN",
    "inf",
    "-1e999",
    "9" * 400,
    "日本語",
    "e\u0301",
    "[",
    "[1, 2]",
    '["a"]',
    "\0",
    "🙂,a",
]


def dirty(rows: int, seed: int = 0) -> pa.Table:
    """Columns of several types, a third of it dirt."""
    random = np.random.default_rng(seed)

    def mixed(clean: Sequence[Any], dirt: Sequence[Any]) -> list[Any]:
        return [dirt[random.integers(len(dirt))] if random.random() < 1 / 3 else value for value in clean]

    numbers = (random.normal(size=rows) * 10.0 ** random.integers(-5, 9, rows)).tolist()
    huge = [None, float("nan"), float("inf"), -float("inf"), 1e308, -1e308, 5e-324, -0.0, 2.0**60]
    pairs = random.normal(size=(rows, 2)).round(3).tolist()
    words = random.integers(0, 40, (rows, 2))
    times = random.integers(0, 2**41, rows).tolist()
    iso = np.datetime_as_string(np.array(times, "datetime64[ms]"), timezone="UTC").tolist()
    return pa.table(
        {
            "word": mixed([f"w{word}" for word in words[:, 0]], DIRT),
            "tags": mixed([f"w{first}, w{second}" for first, second in words], DIRT),
            "tag_lists": mixed([[f"w{first}", f"w{second}"] for first, second in words], [None, [], [None, ""], ["x"]]),
            "price": pa.array(mixed(numbers, huge), pa.float64()),
            "rating": mixed([str(number) for number in numbers], DIRT),
            "time": pa.array(mixed(times, [None, 2**62, -(2**62), -1]), pa.int64()),
            "moment": mixed(iso, [*DIRT, "2023-02-30", "1e30", "-5"]),
            "title": mixed(["a title, longer than that"] * rows, DIRT),
            "vector": mixed([str(pair) for pair in pairs], DIRT),
            "vector_lists": mixed(pairs, [None, [], [1.0], [None, 1.0], [float("nan"), 1e300]]),
        }
    )


@pytest.fixture(scope="module")
def table() -> pa.Table:
    return dirty(10_000)


@pytest.fixture(scope="module")
def transform(table: pa.Table) -> Transform:
    fit = Fit.begin(CONFIGS)
    fit.update(table)
    return fit.finish()


def same(first: pa.Table, second: pa.Table) -> bool:
    """Whether two tables are equal, types and all; no feature gives NaN, which equals nothing."""
    return first.combine_chunks().equals(second.combine_chunks())


@pytest.mark.parametrize("seed", range(3))
def test_what_is_learnt_does_not_depend_on_splits_order_or_the_wire(
    table: pa.Table, transform: Transform, seed: int
) -> None:
    random = np.random.default_rng(seed)
    shuffled = table.take(pa.array(random.permutation(len(table))))
    bounds = [0, *sorted(random.integers(0, len(table), 5).tolist()), len(table)]
    parts = []
    for start, stop in itertools.pairwise(bounds):
        fit = Fit.begin(CONFIGS)
        for piece in shuffled.slice(start, stop - start).to_batches(max_chunksize=997):
            fit.update(pa.Table.from_batches([piece]))
        parts.append(Fit.from_bytes(CONFIGS, fit.to_bytes()))
    merged = Fit.begin(CONFIGS)
    for number in random.permutation(len(parts)):
        merged.merge(parts[number])
    assert merged.finish().to_json() == transform.to_json()


def test_learning_may_go_on_after_a_look_at_what_is_learnt(table: pa.Table, transform: Transform) -> None:
    fit = Fit.begin(CONFIGS)
    fit.update(table.slice(0, 10))
    fit.finish()
    fit.update(table.slice(10))
    assert fit.finish().digest == transform.digest


def test_what_was_learnt_of_other_features_is_refused() -> None:
    with pytest.raises(DataError, match="what was learnt is of other features"):
        Fit.from_bytes({"a": Numeric(scale="log")}, Fit.begin({"a": Numeric()}).to_bytes())


def test_rows_one_at_a_time_give_the_same_bits_as_all_rows(table: pa.Table, transform: Transform) -> None:
    whole = transform.apply(table)
    rows = range(0, len(table), 50)
    single = pa.concat_tables(transform.apply(table.slice(row, 1)) for row in rows)
    assert same(single, whole.take(pa.array(rows)))
    few = pa.concat_tables(transform.apply(table.slice(row, 37)) for row in range(0, len(table), 37))
    assert same(few, whole)


def test_requests_give_the_same_bits_as_the_log(table: pa.Table, transform: Transform) -> None:
    # A number in a request is in seconds or milliseconds by its size, as in a text of the log.
    log = table.slice(0, 2000)
    log = log.set_column(log.column_names.index("time"), "time", log["time"].cast(pa.string()))
    rows = log.to_pylist()
    assert same(transform.apply_rows(rows), transform.apply(log))
    assert same(transform.apply_rows(rows[5:6]), transform.apply(log.slice(5, 1)))


def test_a_request_may_mix_types_and_leave_out_columns(transform: Transform) -> None:
    rows: list[dict[str, object]] = [
        {"tags": "w1, w2", "price": 3, "vector": [1, 0.5], "time": 1706704245000},
        {"tags": ["w1", "w2"], "price": "3.0", "vector": "1 0.5", "time": "2024-01-31T12:30:45Z"},
        {"tags": {"w1": 1}, "price": [3], "vector": [[1], 2], "word": True, "title": 10**30},
        {"word": "\ud800", "price": 10**400, "rating": float("nan"), "tag_lists": [1, None, "w1", 2.0, {}]},
    ]
    found = transform.apply_rows(rows).to_pylist()
    assert found[0] == found[1]
    assert same(pa.concat_tables(transform.apply_rows([row]) for row in rows), transform.apply_rows(rows))
    assert transform.apply_rows([]).num_rows == 0
    assert transform.apply_rows([]).schema == transform.apply(dirty(0)).schema


def test_many_rows_are_the_same_as_few(transform: Transform) -> None:
    few = dirty(100)
    times = BLOCK // 100 + 1
    assert same(transform.apply(pa.concat_tables([few] * times)), pa.concat_tables([transform.apply(few)] * times))


# ---- written out


def test_a_transform_reads_back_the_same(table: pa.Table, transform: Transform) -> None:
    again = Transform.from_json(transform.to_json())
    assert (again.digest, again.outputs, again.to_json()) == (transform.digest, transform.outputs, transform.to_json())
    assert same(again.apply(table), transform.apply(table))


def test_a_damaged_transform_is_refused(transform: Transform) -> None:
    text = transform.to_json()
    for damaged in (text[:-5], "", "[]", "{}", "null", text.replace('"w1"', '"w0"', 1), b"\xff"):
        with pytest.raises(DataError, match="run `rayrec prepare` again"):
            Transform.from_json(damaged)


def test_a_transform_of_a_newer_rayrec_says_what_to_do(transform: Transform) -> None:
    newer = json.dumps({**json.loads(transform.to_json()), "schema": 2})
    with pytest.raises(DataError, match="schema 2, this rayrec reads 1: install"):
        Transform.from_json(newer)


# ---- whatever comes


CELLS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(DIRT)
VALUES = CELLS | st.lists(CELLS, max_size=3) | st.dictionaries(st.text(max_size=3), CELLS, max_size=2)
ROWS = st.lists(st.dictionaries(st.sampled_from(sorted(CONFIGS)), VALUES, max_size=5), min_size=1, max_size=4)
TYPES = st.sampled_from(
    [
        *(pa.null(), pa.bool_(), pa.int8(), pa.uint64(), pa.float16(), pa.float32(), pa.decimal128(38, 5), pa.string()),
        *(pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary(), pa.date32(), pa.date64()),
        *(pa.timestamp("s"), pa.timestamp("ns", "UTC"), pa.time32("s"), pa.time64("ns"), pa.duration("us")),
        *(pa.list_(pa.int64()), pa.list_(pa.string(), 2), pa.large_list(pa.float32()), pa.list_view(pa.binary())),
        *(pa.struct([("a", pa.int64())]), pa.map_(pa.string(), pa.int64()), pa.list_(pa.list_(pa.int64()))),
        *(pa.dictionary(pa.int8(), pa.string()), pa.month_day_nano_interval()),
    ]
)


@settings(max_examples=100, deadline=None)
@given(ROWS)
def test_no_request_raises(rows: list[dict[str, object]]) -> None:
    whole = PREPARED.apply_rows(rows)
    assert same(pa.concat_tables(PREPARED.apply_rows([row]) for row in rows), whole)


@settings(max_examples=60, deadline=None)
@given(TYPES, st.binary(min_size=96, max_size=96))
def test_no_column_raises_whatever_its_type_and_bits(kind: pa.DataType, bits: bytes) -> None:
    column = _of_bits(kind, bits)
    table = pa.table(dict.fromkeys(CONFIGS, column))
    Fit.begin(CONFIGS).update(table)
    whole = PREPARED.apply(table)
    assert same(pa.concat_tables(PREPARED.apply(table.slice(row, 1)) for row in range(len(table))), whole)


def _of_bits(kind: pa.DataType, bits: bytes) -> pa.Array:
    """Three values of a type; of fixed width from raw bits, so that any bit pattern occurs."""
    if pa.types.is_primitive(kind):
        return pa.Array.from_buffers(kind, 3, [pa.py_buffer(b"\x05"), pa.py_buffer(bits)])
    samples = {
        pa.binary(): [bits[:9], None, b"w1"],
        pa.large_binary(): [b"w1", bits[:2], None],
        pa.decimal128(38, 5): [10**30, None, -1],
        pa.list_(pa.int64()): [[1, 2], None, [None, 1 << 62]],
        pa.list_(pa.string(), 2): [["1", "w1"], None, [None, ""]],
        pa.large_list(pa.float32()): [[1, float("nan")], [], [1, 2]],
        pa.list_view(pa.binary()): [[bits[:2], b"w1"], None, []],
        pa.struct([("a", pa.int64())]): [{"a": 1}, None, {"a": None}],
        pa.map_(pa.string(), pa.int64()): [[("a", 1)], None, []],
        pa.list_(pa.list_(pa.int64())): [[[1], None], [[2], [3]], None],
        pa.dictionary(pa.int8(), pa.string()): ["w1", None, ""],
    }
    return pa.array(samples.get(kind, [None] * 3), kind)


PREPARED = Fit.begin(CONFIGS).finish()
