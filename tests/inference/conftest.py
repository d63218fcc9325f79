"""One small trained-looking model, exported once."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rayrec.artifacts import Storage
from rayrec.features.histories import Histories
from rayrec.inference.bundle import publish_bundle
from rayrec.inference.inputs import Context
from rayrec.inference.release import Release, publish_release
from rayrec.models.interactions import Interactions, here
from rayrec.models.popularity import Popularity, PopularityConfig
from rayrec.models.sasrec import SASRec, SASRecConfig

ITEMS = 30


@pytest.fixture(scope="session")
def small_model() -> SASRec:
    """SASRec with weights far from their beginnings."""
    torch.manual_seed(0)
    model = SASRec(SASRecConfig(dim=8, blocks=2, heads=2, max_length=6), ITEMS).eval()
    with torch.no_grad():
        model.item.weight[1:] = torch.randn(ITEMS, 8)
        model.position.copy_(torch.randn(6, 8))
    return model


@pytest.fixture(scope="session")
def published(small_model: SASRec, tmp_path_factory: pytest.TempPathFactory) -> tuple[Storage, Release]:
    """A storage with a Release: the small model, and popularity."""
    storage = Storage.open(tmp_path_factory.mktemp("published"))
    keys = [f"item {row}" for row in range(1, ITEMS + 1)]
    golden = [(history, Context()) for history in (np.array([1, 2, 3]), np.array([30] * 9), np.zeros(0, np.int64))]
    popular = Popularity(PopularityConfig(), ITEMS)
    popular.fit(Interactions(Histories.of([[3, 3, 5]]), ITEMS), here, seed=0)
    models = {
        "main": publish_bundle(storage, "small", small_model, keys, golden, {"view": "v"}, {"best": 0.5}),
        "popular": publish_bundle(storage, "small", popular, keys, golden, {"view": "v"}, {}),
    }
    return storage, publish_release(storage, {"name": "small", "models": models})
