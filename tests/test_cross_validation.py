"""Cross-validation: every fold once, nothing registered, and an interval that allows for what folds share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.recipes import recipe_values, write_log
from tests.watching import Silent

from rayrec.artifacts import Storage
from rayrec.cross_validation import corrected_interval, cross_validate, fold_recipes
from rayrec.errors import RecipeError
from rayrec.recipe_files import parse_recipe
from rayrec.tracking import Tracker, registered_names


def test_every_fold_is_test_once_and_the_seed_stays() -> None:
    recipes = fold_recipes(parse_recipe(recipe_values("log.csv", data=data({"kind": "leave-one-out", "seed": 7}))), 4)
    splits = [recipe.data.split for recipe in recipes]
    assert [(split.kind, split.k, split.fold, split.seed) for split in splits] == [
        ("k-fold", 4, n, 7) for n in range(4)
    ]


def test_nothing_is_trained_again_since_nothing_is_served() -> None:
    recipe = parse_recipe(recipe_values("log.csv", training={"refit": "all"}))
    assert {fold.training.refit for fold in fold_recipes(recipe, 3)} == {"none"}


def test_folds_that_the_sources_give_are_refused_with_one_message() -> None:
    values = recipe_values("log.csv", data=data({"kind": "given"}))
    source = values["data"]["sources"][0]
    values["data"]["sources"] = [{**source, "fold": fold} for fold in ("train", "test")]
    with pytest.raises(RecipeError, match="cannot be cross-validated"):
        fold_recipes(parse_recipe(values), 5)


def test_the_interval_is_wider_than_that_of_independent_folds() -> None:
    differences = np.array([0.1, 0.2, 0.3, 0.2, 0.2])
    low, high = corrected_interval(differences, trained=3)
    # t of 4 degrees of freedom; a fold is a third of what is trained on.
    half = 2.776445 * np.sqrt((1 / 5 + 1 / 3) * 0.005)
    assert (low, high) == pytest.approx((0.2 - half, 0.2 + half))


@pytest.mark.usefixtures("ray_cluster", "without_graphs")
def test_folds_are_measured_in_one_run_and_skipped_the_second_time(storage: Storage, tmp_path: Path) -> None:
    recipe = parse_recipe(recipe_values(write_log(tmp_path), model={"name": "popularity"}))
    folds: list[int] = []
    first = cross_validate(recipe, storage, Silent(), 3, folds.append)
    tracker = Tracker("tiny")
    runs = len(tracker.client.search_runs([tracker.experiment]))
    again = cross_validate(recipe, storage, Silent(), 3, folds.append)

    assert again == first
    assert folds == [0, 1, 2, 0, 1, 2]
    values = first.metrics["ndcg@10"]["main"]["values"]
    assert first.metrics["ndcg@10"]["main"]["mean"] == pytest.approx(np.mean(values))
    assert first.metrics["ndcg@10"]["difference"] == {"mean": 0.0, "low": 0.0, "high": 0.0}
    assert registered_names() == []
    found = tracker.client.search_runs([tracker.experiment])
    assert len(found) == runs + 1, "no stage ran again"
    (parent, *_) = [run.info.run_id for run in found if run.data.tags["mlflow.runName"] == "cross-validate"][1:]
    nested = {r.data.tags["mlflow.runName"] for r in found if r.data.tags.get("mlflow.parentRunId") == parent}
    assert nested == {"fold 0", "fold 1", "fold 2"}


def data(split: dict[str, Any]) -> dict[str, Any]:
    return {**recipe_values("log.csv")["data"], "split": split}
