"""Content: items by what is declared of them, profiles as their mean, popularity beside it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from rayrec.errors import DataError
from rayrec.features.histories import Histories
from rayrec.inference.export import export_onnx, measure_parity
from rayrec.models.content import Content, ContentConfig, item_vectors
from rayrec.models.interactions import Interactions, SparseRows, here

FEATURES = np.array(
    [
        [0, 0, 0, 0],  # padding
        [1, 1, 0, 0.5],
        [1, 0, 0, -2.0],
        [1, 0, 1, 0],
        [0, 0, 0, 0],  # nothing declared
        [1, 1, 0, 0.5],
    ],
    np.float32,
)
HISTORIES = [[1, 2], [1], [3, 1]]
HISTORY = torch.tensor([[0, 1, 2], [0, 0, 0], [3, 3, 1]])


def sparse(dense: np.ndarray) -> SparseRows:
    rows, columns = np.nonzero(dense)
    return SparseRows.of(rows, columns, dense[rows, columns], *dense.shape)


def fitted(**config: float) -> Content:
    model = Content(ContentConfig(**config), 5)
    model.fit(Interactions(Histories.of(HISTORIES), 5, item_features=sparse(FEATURES)), here, seed=0)
    return model.eval()


def test_scores_are_the_cosine_with_the_mean_times_popularity() -> None:
    weights = np.array([1 + np.log(6 / 4), 1 + np.log(6 / 2), 1 + np.log(6 / 1), 1.0])
    vectors = FEATURES * weights
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    counts = np.array([0, 3, 1, 1, 0, 0])
    profile = vectors[1] + vectors[2]
    expected = (vectors @ profile) / np.linalg.norm(profile) * (1 + counts) ** 0.5
    found = fitted(popularity=0.5).score(HISTORY)[0].detach().numpy()
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_an_item_that_nobody_had_is_found_by_its_features() -> None:
    assert fitted(popularity=0.0).score(torch.tensor([[1]]))[0, 1:].argsort(descending=True)[:2].tolist() == [0, 4]


def test_who_has_no_history_gets_the_popular_items() -> None:
    assert fitted(popularity=1.0).score(HISTORY)[1].tolist() == [1, 4, 2, 2, 1, 1]


def test_wide_features_are_reduced_and_keep_what_is_alike() -> None:
    random = np.random.default_rng(0)
    topics = (random.random((5, 200)) < 0.2).astype(np.float32)
    noise = (random.random((100, 200)) < 0.01).astype(np.float32)
    wide = sparse(np.maximum(topics[np.arange(100) % 5], noise))
    vectors = item_vectors(wide, dim=5, seed=3)
    alike = vectors @ vectors.T
    assert vectors.shape == (100, 5)
    assert (alike.argsort(descending=True)[:, :20] % 5 == torch.arange(100)[:, None] % 5).all()
    state = torch.random.get_rng_state()
    assert item_vectors(wide, dim=5, seed=3).equal(vectors)
    assert torch.random.get_rng_state().equal(state), "nobody else's randomness is touched"


def test_without_declared_features_it_says_what_to_declare() -> None:
    with pytest.raises(DataError, match=r"data\.features\.items = \{genres"):
        Content(ContentConfig(), 2).fit(Interactions(Histories.of([[1, 2]]), 2), here, seed=0)


def test_another_model_takes_over_its_weights() -> None:
    model, other = fitted(), Content(ContentConfig(), 5)
    other.load_state_dict(model.state_dict())
    assert other.score(HISTORY).equal(model.score(HISTORY))


def test_the_exported_graph_gives_the_same_scores(tmp_path: Path) -> None:
    export_onnx(fitted(), tmp_path / "model.onnx")
    measure_parity(fitted(), tmp_path / "model.onnx", {"history": HISTORY.numpy()})


@pytest.mark.parametrize("config", [{"dim": 0}, {"popularity": -0.1}, {"max_length": 0}])
def test_a_setting_out_of_range_is_refused(config: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(config))} must be"):
        ContentConfig(**config)
