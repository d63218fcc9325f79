"""ALS: the library's factorization, and users folded in exactly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from rayrec.features.histories import Histories
from rayrec.inference.export import export_onnx, measure_parity
from rayrec.models.als import ALS, ALSConfig, steps
from rayrec.models.base import distinct
from rayrec.models.interactions import Interactions, here

ITEMS = 30
HISTORY = torch.tensor([[0, 0, 0, 4, 9], [7, 7, 1, 30, 7], [0, 0, 0, 0, 0]])
EVERY_ALPHA = [0.2, 1.0, 5.0, 40.0, 100.0]


def interactions() -> Interactions:
    """Users who have every third item, from one of three; item 30 nobody has."""
    random = np.random.default_rng(0)
    sequences = [random.permutation(np.arange(1 + user % 3, ITEMS, 3))[:6] for user in range(60)]
    return Interactions(Histories.of(sequences), ITEMS)


def fitted(**config: float) -> ALS:
    model = ALS(ALSConfig(**{"dim": 4} | config), ITEMS)
    model.fit(interactions(), here, seed=0)
    return model.eval()


@pytest.mark.parametrize("alpha", EVERY_ALPHA)
def test_a_users_vector_is_the_papers_least_squares_solution(alpha: float) -> None:
    model = fitted(alpha=alpha, regularization=0.1)
    vectors = model.item.weight.detach().double().numpy()
    expected = np.zeros((len(HISTORY), ITEMS + 1))
    for user, items in enumerate(([4, 9], [7, 1, 30], [])):
        had = vectors[items]
        left = vectors.T @ vectors + (alpha - 1) * had.T @ had + 0.1 * np.eye(4)
        expected[user] = vectors @ np.linalg.solve(left, alpha * had.sum(0))
    np.testing.assert_allclose(model.score(HISTORY).detach().numpy(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("alpha", [1.0, 5.0])
def test_scores_are_the_librarys_for_a_recalculated_user(alpha: float) -> None:
    from implicit.cpu.als import AlternatingLeastSquares
    from scipy.sparse import csr_matrix

    model = fitted(alpha=alpha)
    library = AlternatingLeastSquares(factors=4, regularization=0.01, alpha=alpha, num_threads=1)
    library.item_factors = model.item.weight.detach().numpy().copy()
    row = csr_matrix(([1.0, 1.0], ([0, 0], [4, 9])), shape=(1, ITEMS + 1), dtype=np.float32)
    items, scores = library.recommend(0, row, N=5, recalculate_user=True, filter_already_liked_items=False)
    found = model.score(HISTORY[:1])[0].detach().numpy()
    np.testing.assert_allclose(found[items], scores, rtol=1e-4)


def test_who_has_some_of_a_group_gets_the_rest_of_it() -> None:
    best = fitted().score(torch.tensor([[2, 5]]))[0, 1:].argsort(descending=True)[:8] + 1
    assert (best % 3 == 2).all()


def test_fitting_depends_on_the_seed_and_not_on_the_threads() -> None:
    before = torch.get_num_threads()
    found = []
    for threads, seed in [(1, 0), (2, 0), (1, 1)]:
        torch.set_num_threads(threads)
        model = ALS(ALSConfig(dim=4), ITEMS)
        model.fit(interactions(), here, seed)
        found.append(model.item.weight.detach().clone())
    torch.set_num_threads(before)
    assert found[0].equal(found[1])
    assert not found[0].equal(found[2])


def test_an_empty_history_and_an_item_nobody_had_score_zero() -> None:
    scores = fitted().score(HISTORY)
    assert not scores[2].any()
    assert not scores[:, 30].any()


def test_the_weight_of_an_event_multiplies_its_confidence() -> None:
    plain = interactions()
    weights = np.full(len(plain.histories.items), 5, np.float32)
    model = ALS(ALSConfig(dim=4), ITEMS)
    model.fit(Interactions(plain.histories, ITEMS, weights=weights), here, seed=0)
    assert model.item.weight.equal(fitted(alpha=5.0).item.weight)


def test_repetitions_are_left_out() -> None:
    assert distinct(torch.tensor([[0, 3, 1, 3, 3], [2, 2, 2, 5, 2]])).tolist() == [[0, 1, 3, 0, 0], [2, 0, 0, 0, 5]]


def test_one_step_solves_what_is_no_more_sure_than_its_absence() -> None:
    assert [steps(alpha, 64) for alpha in (0.1, 1.0, 10.0, 1e6)] == [23, 1, 23, 128]


def test_the_exported_graph_gives_the_same_scores(tmp_path: Path) -> None:
    model = fitted(alpha=3.0)
    export_onnx(model, tmp_path / "model.onnx")
    for histories in (HISTORY, torch.tensor([[8]])):
        measure_parity(model, tmp_path / "model.onnx", {"history": histories.numpy()})


@pytest.mark.parametrize("config", [{"dim": 0}, {"alpha": 0.0}, {"regularization": float("nan")}, {"iterations": 0}])
def test_a_setting_out_of_range_is_refused(config: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(config))} must be"):
        ALSConfig(**config)
