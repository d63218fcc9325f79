"""Features of users and of the moment, where a model is measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.data.conftest import without_ray
from tests.planted import FEATURES, Planted, plant, recipe_of

from rayrec.data.prepare import prepare
from rayrec.data.user_features import OtherFeaturesError
from rayrec.data.views import load_view
from rayrec.evaluation.evaluate import Measure, _aligned, evaluate_here
from rayrec.evaluation.full_ranking import HeldOut
from rayrec.features.histories import Histories
from rayrec.inference.bundle import open_bundle
from rayrec.models.interactions import SparseRows
from rayrec.training.validation import validated_users, validator
from rayrec.training.world import World

__all__ = ["without_ray"]


def measured(made: Planted, view: str = "") -> float:
    job = made.job
    measure = Measure(
        job.recipe.evaluation,
        ("ndcg@1",),
        job.dataset_version,
        view or job.view,
        job.storage,
        made.bundle,
        job.storage,
        ("test",),
    )
    return float(evaluate_here(measure)["test"]["ndcg@1"])


def test_what_only_features_tell_is_found_with_them_and_by_chance_without(
    planted: Planted, tmp_path: Path, without_ray: None
) -> None:
    assert measured(planted) > 0.95
    assert measured(plant(tmp_path, {})) == 0.25


def test_training_is_validated_with_features(planted: Planted) -> None:
    view = load_view(planted.dataset, planted.job.view)
    validate = validator(planted.job.recipe, validated_users(planted.job, planted.dataset, view), World())
    assert validate(open_bundle(planted.job.storage, planted.bundle).model())["ndcg@1"] > 0.95


def test_users_keep_their_features_however_they_are_shared_out() -> None:
    numbers = np.arange(10)
    rows = SparseRows.of(numbers, np.zeros(10), numbers + 0.5, 10, 1)
    histories = Histories.of([[1]] * 10)
    users = replace(HeldOut.of(histories, histories), features={"user": rows, "context": rows})
    for part in (users.part(1, 3), users.chosen(slice(4, 9))):
        asked = part.asked(np.array([2, 0]), 4)
        for name in ("user", "context"):
            assert asked[name][:, 0].tolist() == (part.users[[2, 0]] + 0.5).tolist()


def test_a_model_is_asked_with_features_on_a_view_with_other_items(planted: Planted) -> None:
    scorer = open_bundle(planted.job.storage, planted.bundle).scorer()
    keys = ["new", *reversed(scorer.item_keys)]
    asked = {
        "history": np.array([[0, 1 + keys.index("start")], [1, 1 + keys.index("start")]]),
        "times": np.zeros((2, 3), np.int64),
        "user": np.eye(2, scorer.widths["user"], dtype=np.float32),
        "context": np.eye(2, scorer.widths["context"], dtype=np.float32),
    }
    start = 1 + list(scorer.item_keys).index("start")
    expected = scorer.runtime(asked | {"history": np.array([[start], [start]]), "times": asked["times"][:, 1:]})
    found = np.asarray(_aligned(scorer, keys)(asked))
    np.testing.assert_allclose(found[:, 2:], expected[:, :0:-1], atol=1e-6)
    assert np.isneginf(found[:, 1]).all(), "the new item"


@pytest.mark.parametrize("changed", [{"job": {"kind": "categorical", "min_count": 2}}, {}])
def test_features_that_were_fitted_otherwise_are_refused(
    planted: Planted, without_ray: None, changed: dict[str, dict[str, object]]
) -> None:
    recipe = recipe_of(planted.folder, FEATURES | {"users": changed})
    other = prepare(recipe, planted.job.storage)
    assert other.dataset.digest == planted.dataset.digest
    with pytest.raises(OtherFeaturesError, match="reads features of the user as they were fitted to other data"):
        measured(planted, other.view)
