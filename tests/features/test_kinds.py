"""Each kind of feature: what goes in, what comes out."""

from __future__ import annotations

import datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from rayrec.features.base import FeatureConfig, Output
from rayrec.features.categorical import Categorical
from rayrec.features.fit import Fit
from rayrec.features.multi_valued import MultiValued
from rayrec.features.numeric import Numeric
from rayrec.features.text import Text
from rayrec.features.timestamp import Timestamp
from rayrec.features.transform import Transform
from rayrec.features.vector import Vector

LARGEST = float(np.finfo(np.float32).max)


def fitted(config: FeatureConfig, values: Any) -> Transform:
    fit = Fit.begin({"x": config})
    fit.update(pa.table({"x": values}))
    return fit.finish()


def applied(transform: Transform, values: Any) -> list[Any]:
    return transform.apply(pa.table({"x": values}))["x"].to_pylist()


def moments(values: Any, *parts: Any) -> list[Any]:
    return applied(fitted(Timestamp(parts=parts or ("year", "month", "day", "hour", "weekday")), [""]), values)


# ---- words


def test_words_get_ids_by_count_then_by_word() -> None:
    transform = fitted(Categorical(), ["b", "a", "c", "c", " c ", None, ""])
    assert applied(transform, ["c", "a", "b", "new", None, "  ", " c"]) == [2, 3, 4, 1, 0, 0, 2]
    assert transform.outputs["x"] == Output("categorical", size=5)


@pytest.mark.parametrize(
    ("config", "ids"), [(Categorical(min_count=2), [2, 3, 1]), (Categorical(max_size=1), [2, 1, 1])]
)
def test_rare_words_are_unknown(config: Categorical, ids: list[int]) -> None:
    assert applied(fitted(config, ["a", "a", "a", "b", "b", "c"]), ["a", "b", "c"]) == ids


def test_buckets_need_no_fitting_and_keep_zero_for_missing() -> None:
    transform = fitted(Categorical(buckets=3), [None])
    ids = applied(transform, [f"word {n}" for n in range(100)])
    assert set(ids) == {1, 2, 3}
    assert applied(transform, [None, ""]) == [0, 0]
    assert transform.outputs["x"].size == 4


@pytest.mark.parametrize(
    "same", [pa.array([3]), pa.array([3.0]), pa.array(["3"]), pa.array([b"3"]), pa.array(["3"]).dictionary_encode()]
)
def test_a_word_is_the_same_in_every_type(same: pa.Array) -> None:
    assert applied(fitted(Categorical(), ["3", "true"]), same) == [2]


@pytest.mark.parametrize(
    "same",
    [
        ["b|a||new", "", None, "|"],
        [["b", "a", None, "new"], [], None, [""]],
        ['["b", "a", "new"]', "[]", None, " [null]"],
        pa.array([["b", "a", "new"], [], None, []], pa.large_list(pa.string())),
    ],
)
def test_several_words_come_as_text_or_lists(same: Any) -> None:
    transform = fitted(MultiValued(), ["a|b", "a"])
    assert applied(transform, same) == [[3, 2, 1], [], [], []]
    assert transform.apply(pa.table({"x": same}))["x"].type == pa.list_(pa.int64())


def test_what_only_looks_like_a_json_list_is_split() -> None:
    assert applied(fitted(MultiValued(separator=","), ["[live],a"]), ["[live],a", "[live]"]) == [[2, 3], [2]]


# ---- numbers


DIRT = [None, float("nan"), float("inf"), -float("inf")]


def test_standardised_numbers_have_the_mean_at_zero() -> None:
    transform = fitted(Numeric(), [1.0, 3.0, *DIRT])
    assert applied(transform, [1, 2, 5, None]) == [-1, 0, 3, 0]
    assert transform.apply(pa.table({"x": [1]}))["x"].type == pa.float32()


def test_text_is_read_as_numbers_and_what_is_none_is_missing() -> None:
    transform = fitted(Numeric(scale="none", missing=-1.0), ["abc"])
    values = ["1", " 2.5 ", "1e3", "abc", "", "nan", "1e999", "true", "False", "9" * 400]
    assert applied(transform, values) == [1, 2.5, 1000, -1, -1, -1, -1, 1, 0, -1]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (Numeric(scale="none"), [-5, 0, 4, 100, 4]),
        (Numeric(scale="none", missing="median"), [-5, 0, 4, 100, 2]),
        (Numeric(scale="min-max"), [0, 0, 0.4, 1, 0.4]),
        (Numeric(scale="quantile", buckets=4, missing="median"), [0, 1, 2, 3, 2]),
    ],
)
def test_scales(config: Numeric, expected: list[float]) -> None:
    transform = fitted(config, [0, 0, 2, 8, 10, None])
    assert applied(transform, [-5, 0, 4, 100, None]) == pytest.approx(expected)
    assert transform.outputs["x"].size == (4 if config.scale == "quantile" else 0)


def test_the_logarithm_is_standardised_and_takes_negatives_as_zero() -> None:
    values = np.array([0.0, 1.0, 10.0, 1000.0])
    logs = np.log1p(values)
    found = applied(fitted(Numeric(scale="log"), values), [-3.0, 0.0, 10.0])
    assert found == pytest.approx(((np.log1p([0, 0, 10]) - logs.mean()) / logs.std()).tolist(), rel=1e-6)


@pytest.mark.parametrize("scale", ["none", "standardise", "min-max", "log", "quantile"])
@pytest.mark.parametrize("values", [[None], [7.0, 7.0], [1e-300, 2e-300], [1e308, -1e308, 1e308]])
def test_no_column_makes_a_number_that_is_not_finite(scale: Any, values: list[Any]) -> None:
    found = applied(fitted(Numeric(scale=scale), values), [*DIRT, 1e308, -1e308, 0, 7])
    assert np.isfinite(found).all()


def test_quantile_buckets_hold_equally_many_rows() -> None:
    values = np.random.default_rng(0).lognormal(size=16_000)
    ids = applied(fitted(Numeric(scale="quantile"), values), values)
    assert np.bincount(ids, minlength=16) == pytest.approx(np.full(16, 1000), abs=10)


def test_numbers_beyond_float32_are_its_ends() -> None:
    assert applied(fitted(Numeric(scale="none"), [0]), [1e300, -1e300]) == [LARGEST, -LARGEST]


# ---- times


@pytest.mark.parametrize(
    "value",
    [
        pa.array([1706704245000]),
        pa.array([1706704245000.0]),
        pa.array([datetime.datetime(2024, 1, 31, 12, 30, 45)], pa.timestamp("ns")),
        pa.array([datetime.datetime(2024, 1, 31, 12, 30, 45)], pa.timestamp("s", "Asia/Tokyo")),
        *(["2024-01-31T12:30:45Z"], ["2024-01-31 12:30:45.999"], ["2024-01-31T13:30+01:00"], ["20240131T1230"]),
        *(["1706704245"], ["1706704245000"], ["1706704245000000"], ["1706704245.5"], [" 1706704245 "]),
    ],
)
def test_a_time_is_the_same_in_every_form(value: Any) -> None:
    assert moments(value) == [[2024, 1, 31, 12, 2]]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (pa.array([-1]), [1969, 12, 31, 23, 2]),
        (pa.array([-1], pa.timestamp("us")), [1969, 12, 31, 23, 2]),
        (pa.array([datetime.date(2000, 2, 29)]), [2000, 2, 29, 0, 1]),
        (["2000-02-29"], [2000, 2, 29, 0, 1]),
        (["0001-01-01"], [1, 1, 1, 0, 0]),
    ],
)
def test_days_of_the_calendar(value: Any, expected: list[int]) -> None:
    assert moments(value) == [expected]


@pytest.mark.parametrize(
    "value",
    [
        *([None], [""], ["abc"], ["2023-02-29"], ["2024-13-01"], ["2024-00-01"], ["2024-01-01T24:00"], ["1e300"]),
        *(pa.array([1 << 62]), pa.array([1 << 62], pa.timestamp("s")), pa.array([1e300]), [[1]]),
    ],
)
def test_what_is_no_time_is_missing(value: Any) -> None:
    assert moments(value, "hour", "year") == [[-1, -1]]


def test_a_moment_tells_models_its_parts() -> None:
    transform = fitted(Timestamp(), [""])
    assert transform.outputs["x"] == Output("timestamp", dimension=2, parts=("hour", "weekday"))
    assert transform.apply(pa.table({"x": [0]}))["x"].type == pa.list_(pa.int64(), 2)


# ---- texts and vectors


def test_text_is_kept_and_cut_in_characters() -> None:
    assert applied(fitted(Text(max_length=3), [""]), ["äöüß", " a ", None, "日本語文字", ""]) == [
        *("äöü", " a ", "", "日本語", "")
    ]


@pytest.mark.parametrize(
    "same",
    [
        ["[0.5, 2]", "0.5 2", "(0.5;2)", "1 2 3", "1", "a b", "nan 1", "1e39 1", None, ""],
        [[0.5, 2], [0.5, 2], [0.5, 2], [1, 2, 3], [1], [None, 1], [float("nan"), 1], [1e39, 1], None, []],
        [["0.5", "2"], ["0.5", "2"], ["0.5", "2"], *(["x", "1"],) * 5, None, []],
    ],
)
def test_vectors_of_another_shape_or_not_finite_are_zeros(same: Any) -> None:
    transform = fitted(Vector(dimension=2), [""])
    assert applied(transform, same) == [[0.5, 2]] * 3 + [[0, 0]] * 7
    assert transform.apply(pa.table({"x": same}))["x"].type == pa.list_(pa.float32(), 2)
    assert transform.outputs["x"].dimension == 2
