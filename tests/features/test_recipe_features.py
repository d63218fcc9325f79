"""The recipe's `data.features`: configs that stand beside their code, checked with the rest of the recipe."""

from __future__ import annotations

import pickle
from typing import Any

import jsonschema
import pytest

from rayrec.errors import RecipeError
from rayrec.features.categorical import Categorical
from rayrec.features.numeric import Numeric
from rayrec.features.transform import KINDS
from rayrec.recipe import Recipe
from rayrec.recipe_files import json_schema, parse_recipe

FEATURES: dict[str, dict[str, Any]] = {
    "genre": {"kind": "categorical", "min_count": 2},
    "tags": {"kind": "multi-valued", "separator": ","},
    "price": {"kind": "numeric", "scale": "log", "missing": 0},
    "added": {"kind": "timestamp", "parts": ["year", "month"]},
    "title": {"kind": "text"},
    "image": {"kind": "vector", "dimension": 8, "column": "embedding"},
}


def raw(features: dict[str, Any]) -> dict[str, Any]:
    table = {"path": "table.csv", "columns": {"item": "i"}}
    source = {"path": "events.csv", "columns": {"user": "u", "item": "i"}}
    return {"name": "small", "data": {"sources": [source], "items": table, "features": {"items": features}}}


def test_a_feature_becomes_the_config_that_is_fitted() -> None:
    items = parse_recipe(raw(FEATURES)).data.features.items
    assert items["genre"] == Categorical(min_count=2)
    assert items["price"] == Numeric(scale="log", missing=0.0)
    assert all(type(feature) is KINDS[feature.kind][0] for feature in items.values())


def test_features_survive_json_and_pickling() -> None:
    recipe = parse_recipe(raw(FEATURES))
    written = recipe.model_dump(mode="json", by_alias=True)
    assert Recipe.model_validate({**written, "model": recipe.model}) == recipe
    assert pickle.loads(pickle.dumps(recipe)) == recipe  # noqa: S301 - this is how Ray sends it to workers
    jsonschema.validate(written, json_schema())


@pytest.mark.parametrize(
    ("feature", "expected"),
    [
        ({"kind": "numeric", "bucket": 3}, "bucket: unknown key."),
        ({"kind": "numeric", "buckets": 1}, "= 1: Input should be greater than or equal to 2"),
        ({"kind": "numeric", "missing": float("inf")}, "Input should be a finite number"),
        ({"kind": "numeric", "scale": "lg"}, "Did you mean 'log'?"),
        ({"kind": "vector"}, "dimension: required, but missing"),
        ({"kind": "numerc"}, "'numerc'"),
        ({"dimension": 3}, "kind"),
    ],
)
def test_what_is_wrong_with_a_feature_is_told_and_not_in_the_schema(feature: dict[str, Any], expected: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(raw({"x": feature}))
    assert expected in str(caught.value)
    if feature.get("missing") is None:  # JSON has no infinity
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**raw({"x": feature})}, json_schema())
