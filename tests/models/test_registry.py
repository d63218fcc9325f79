"""The models by name."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from rayrec.errors import RecipeError
from rayrec.models.base import Factorized, Fitted, Recommender
from rayrec.models.optimization import Optimization
from rayrec.models.registry import MODELS, model_class


@pytest.mark.parametrize("name", MODELS)
def test_every_registered_model_keeps_the_contract(name: str) -> None:
    found = model_class(name)
    config = found.Config()
    model = found(config, 5).eval()
    assert issubclass(found, Recommender)
    assert found.kind == name
    assert dataclasses.is_dataclass(config)
    assert issubclass(found, Fitted) or hasattr(found, "forward")
    assert model.score(torch.tensor([[0, 2], [1, 5]])[:, -model.max_length :]).shape == (2, 6)
    for table in model.tables().values():
        assert table.all_rows().shape == (table.num_rows, table.dim)


FACTORIZED = sorted(MODELS.keys() - {"ease", "gf-cf", "item-knn", "popularity", "user-knn"})
"""The others score each item in its own way, or all requests alike."""


@pytest.mark.parametrize("name", MODELS)
def test_scores_of_a_factorized_model_are_products_of_two_vectors(name: str) -> None:
    torch.manual_seed(0)
    model = model_class(name)(model_class(name).Config(), 7).eval()
    assert isinstance(model, Factorized) == (name in FACTORIZED)
    if not isinstance(model, Factorized):
        return
    with torch.no_grad():
        for weight in filter(torch.is_floating_point, (*model.parameters(), *model.buffers())):
            weight.copy_(torch.randn_like(weight))
        for table in model.tables().values():
            table.all_rows()[0] = 0.0
        history = torch.tensor([[0, 0, 0], [0, 2, 7], [1, 5, 1]])[:, -model.max_length :]
        times = torch.tensor([[0, 0, 0, 9], [0, 1, 2, 9], [1, 5, 8, 9]])[:, -history.shape[1] - 1 :]
        asked = {"history": history, "times": times}
        read = {name: asked[name] for name in model.reads}
        found, expected = model.query(**read) @ model.item_matrix().T, model.score(**read)
    torch.testing.assert_close(found[:, 1:], expected[:, 1:], rtol=1e-4, atol=1e-4 * float(expected[:, 1:].abs().max()))


@pytest.mark.parametrize("name", ["sasrek", "", 3, None, ["sasrec"]])
def test_an_unknown_name_is_answered_with_the_nearest(name: Any) -> None:
    with pytest.raises(RecipeError, match=r"Did you mean '[\w-]+'\? Known: .*sasrec"):
        model_class(name)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1 and below"),
        ({"clip": 0.0}, "clip must be above 0"),
        ({"weight_decay": float("nan")}, "weight_decay must not be negative"),
        ({"warmup": 1.5}, "between 0 and 1, not 1.5"),
        ({"betas": (0.9, 1.0)}, "betas are two numbers, each at least 0 and below 1"),
        ({"betas": (0.9,)}, "betas are two numbers"),
        ({"table_learning_rate": 0.0}, "table_learning_rate must be above 0"),
        ({"averaging": 1.0}, "averaging must be at least 0 and below 1, not 1.0"),
        ({"momentum": 0.5}, "momentum is set, but the optimizer is adamw, which has none"),
        ({"optimizer": "sgd", "betas": (0.5, 0.9)}, "betas is set, but the optimizer is sgd"),
        ({"decay": "inverse-sqrt"}, "set warmup above 0"),
        ({"seed": -1}, "seed must not be negative"),
    ],
)
def test_a_training_setting_out_of_range_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Optimization(**settings)
