"""Cleaning of columns: learnt from the column as it came, then applied to every row."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from rayrec.errors import RecipeError
from rayrec.features.fill import Fill, fills
from rayrec.features.fit import Fit
from rayrec.features.numeric import Numeric
from rayrec.features.transform import Transform


def cleaned(config: Fill, values: Any) -> list[Any]:
    table = pa.table({"x": values})
    fit = Fit.begin({"x": config})
    fit.update(table)
    return Transform.from_json(fit.finish().to_json()).apply(table)["x"].to_pylist()


@pytest.mark.parametrize(
    ("missing", "expected"), [("mean", 3.5), ("median", 2.0), ("most_frequent", 2.0), (7.0, 7.0), (None, None)]
)
def test_missing_numbers_are_filled(missing: Any, expected: float | None) -> None:
    assert cleaned(Fill(missing=missing), [2.0, 2.0, 0.0, 10.0, None]) == [2, 2, 0, 10, expected]


def test_missing_texts_get_the_most_frequent_or_the_given_one() -> None:
    assert cleaned(Fill(missing="most_frequent"), ["b", "a", "a", "", None]) == ["b", "a", "a", "a", "a"]
    assert cleaned(Fill(missing="none"), ["b", None]) == ["b", "none"]
    assert cleaned(Fill(missing="most_frequent"), pa.nulls(1, pa.string())) == [None]


def test_text_in_a_column_of_numbers_is_missing() -> None:
    assert cleaned(Fill(missing="median"), ["1", "3", "abc"]) == [1, 3, 2]


def test_numbers_are_clipped_at_quantiles_or_beyond_the_quartiles() -> None:
    values = np.arange(101.0)
    assert cleaned(Fill(clip="quantile", low=0.1, high=0.9), values) == np.clip(values, 10, 90).tolist()
    assert cleaned(Fill(clip="iqr", factor=0.2), values) == np.clip(values, 15, 85).tolist()


def test_what_is_filled_comes_from_the_column_before_clipping() -> None:
    assert cleaned(Fill(missing="mean", clip="quantile", low=0, high=0.5), [0.0, 0.0, 0.0, 8.0, None])[-1] == 0
    assert cleaned(Fill(missing="mean", clip="quantile", low=0, high=1), [0.0, 0.0, 0.0, 8.0, None])[-1] == 2


def test_the_recipes_settings_are_fitted_in_one_pass_with_features() -> None:
    configs = fills({"value": "mean", "shop": "most_frequent", "age": "drop"}, {"value": {"method": "iqr"}})
    fit = Fit.begin({**configs, "scaled": Numeric(column="value")})
    fit.update(pa.table({"value": [1.0, None, 3.0], "shop": ["a", None, None], "age": [1, None, 2]}))
    found = fit.finish().apply(pa.table({"value": [None], "shop": [None], "age": pa.nulls(1, pa.int64())}))
    assert found.to_pylist() == [{"age": None, "scaled": 0, "shop": "a", "value": 2}]


def test_a_constant_that_is_not_finite_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"clean\.missing\.value = inf"):
        fills({"value": float("inf")}, {})
