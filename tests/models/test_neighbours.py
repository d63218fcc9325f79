"""Models of what occurs together, each against its formula in dense numpy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from rayrec.errors import ModelError
from rayrec.features.histories import Histories
from rayrec.inference.export import export_onnx, measure_parity
from rayrec.models import neighbours
from rayrec.models.base import Fitted, Recommender
from rayrec.models.ease import EASE, EASEConfig
from rayrec.models.gf_cf import GFCF, GFCFConfig
from rayrec.models.interactions import Interactions, SparseRows, blocks_of, here
from rayrec.models.item_knn import ItemKNN, ItemKNNConfig
from rayrec.models.neighbours import nearest, product
from rayrec.models.registry import model_class
from rayrec.models.svd import SVD, SVDConfig
from rayrec.models.user_knn import UserKNN, UserKNNConfig

NAMES = ["item-knn", "user-knn", "ease", "svd", "gf-cf"]
FEW = Interactions(Histories.of([[1, 2, 3, 2], [2, 3, 5], [1, 5], [3, 5, 1, 2], [], [5, 3]]), num_items=6)
"""Item 2 twice in a history, a user without events, and items 4 and 6 that nobody had."""
HAD = np.array(
    [
        [0, 1, 1, 1, 0, 0, 0],
        [0, 0, 1, 1, 0, 1, 0],
        [0, 1, 0, 0, 0, 1, 0],
        [0, 1, 1, 1, 0, 1, 0],
        [0, 0, 0, 0, 0, 0, 0],
        [0, 0, 0, 1, 0, 1, 0],
    ],
    dtype=np.float64,
)
ASKED = [1, 3, 3]
WANTED = np.array([0, 1, 0, 1, 0, 0, 0], dtype=np.float64)


def fitted(name: str, interactions: Interactions = FEW, **config: Any) -> Recommender:
    found = model_class(name)
    model = found(found.Config(**config), interactions.num_items)
    cast("Fitted", model).fit(interactions, here, seed=0)
    return model.eval()


def answer(model: Recommender, history: Sequence[int]) -> np.ndarray:
    with torch.no_grad():
        return model.score(torch.tensor([list(history)], dtype=torch.int64))[0].numpy()


def random_interactions(users: int, num_items: int, seed: int = 0) -> Interactions:
    rng = np.random.default_rng(seed)
    chosen = rng.zipf(1.3, size=(users, 12)) % num_items + 1
    return Interactions(Histories.of(list(chosen)), num_items)


def dense(matrix: SparseRows) -> np.ndarray:
    whole = np.zeros((len(matrix), matrix.width))
    whole[matrix.rows, matrix.columns] = matrix.values
    return whole


# ---- what holds for all of them


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_history_scores_zero(name: str) -> None:
    assert not answer(fitted(name), [0, 0]).any()


@pytest.mark.parametrize("name", NAMES)
def test_neither_order_nor_repetition_nor_padding_changes_the_answer(name: str) -> None:
    model = fitted(name)
    assert np.array_equal(answer(model, [2, 3]), answer(model, [0, 0, 3, 2, 3]))


@pytest.mark.parametrize("name", NAMES)
def test_items_that_nobody_had_score_zero(name: str) -> None:
    assert np.abs(answer(fitted(name), [1, 4, 5])[[4, 6]]).max() < 1e-6


@pytest.mark.parametrize("name", NAMES)
def test_a_fresh_model_takes_over_the_state_of_a_fitted_one(name: str) -> None:
    model, found = fitted(name), model_class(name)
    fresh = found(found.Config(), FEW.num_items)
    assert not answer(fresh, ASKED).any()
    fresh.load_state_dict(model.state_dict())
    assert np.array_equal(answer(fresh, ASKED), answer(model, ASKED))


@pytest.mark.parametrize("name", NAMES)
def test_it_can_be_fitted_to_no_events_at_all(name: str) -> None:
    assert not answer(fitted(name, Interactions(Histories.of([[]]), 3)), [1, 2]).any()


@pytest.mark.parametrize("name", NAMES)
def test_the_size_of_blocks_changes_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    interactions = random_interactions(users=60, num_items=30)
    whole = answer(fitted(name, interactions), [1, 4, 7])
    for setting in ("CELLS", "MOST_ROWS", "SHARED"):
        monkeypatch.setattr(neighbours, setting, 7)
    assert answer(fitted(name, interactions), [1, 4, 7]) == pytest.approx(whole, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_two_histories_at_once_get_what_each_gets_alone(name: str) -> None:
    model = fitted(name, random_interactions(users=60, num_items=30))
    together = model.score(torch.tensor([[0, 1, 2], [3, 9, 4]])).detach().numpy()
    assert together[0] == pytest.approx(answer(model, [1, 2]), abs=1e-6)
    assert together[1] == pytest.approx(answer(model, [3, 9, 4]), abs=1e-6)


@pytest.mark.parametrize("name", ["ease", "svd"])
def test_its_graph_answers_as_torch_does(name: str, tmp_path: Path) -> None:
    model = fitted(name)
    export_onnx(model, tmp_path / "model.onnx")
    assert (
        measure_parity(model, tmp_path / "model.onnx", {"history": np.array([[0, 0, 0], [2, 3, 2], [0, 5, 1]])}) < 1e-5
    )


@pytest.mark.parametrize(
    ("config", "settings", "message"),
    [
        (ItemKNNConfig, {"similarity": "cosin"}, "one of cosine, tfidf, bm25, jaccard, not 'cosin'"),
        (ItemKNNConfig, {"neighbours": 0}, "neighbours must be between 1"),
        (ItemKNNConfig, {"shrink": -1.0}, "shrink must not be negative"),
        (ItemKNNConfig, {"k1": 0.0}, "k1 must be above 0"),
        (ItemKNNConfig, {"b": 1.5}, "b must be between 0 and 1"),
        (UserKNNConfig, {"neighbours": 0}, "neighbours must be between 1"),
        (EASEConfig, {"regularization": float("nan")}, "regularization must be between"),
        (SVDConfig, {"dim": 0}, "dim must be at least 1"),
        (GFCFConfig, {"rank": 0}, "rank must be at least 1"),
        (GFCFConfig, {"alpha": -0.1}, "alpha must be between"),
    ],
)
def test_a_setting_out_of_range_is_refused(config: type, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**settings)


# ---- item-knn


def unit(columns: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(columns, axis=0)
    return columns / np.where(norms > 0, norms, 1)


def cosine(r: np.ndarray) -> np.ndarray:
    return unit(r).T @ unit(r)


def idf(r: np.ndarray) -> np.ndarray:
    return np.log((r.shape[1] - 1) / (1 + (r > 0).sum(axis=1, keepdims=True)))


def tfidf(r: np.ndarray) -> np.ndarray:
    weighted = unit(np.sqrt(r) * idf(r))
    return weighted.T @ weighted


def bm25(r: np.ndarray) -> np.ndarray:
    sums = r.sum(axis=0)
    weighted = r * 2.2 / (1.2 * (0.25 + 0.75 * sums / sums[1:].mean()) + r) * idf(r)
    return weighted.T @ weighted


def jaccard(r: np.ndarray) -> np.ndarray:
    both, counts = (r > 0).T @ (r > 0).astype(float), (r > 0).sum(axis=0)
    return both / np.maximum(counts[:, None] + counts - both, 1)


FORMULAS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "cosine": cosine,
    "tfidf": tfidf,
    "bm25": bm25,
    "jaccard": jaccard,
}


@pytest.mark.parametrize("similarity", FORMULAS)
@pytest.mark.parametrize("weighted", [False, True])
def test_items_are_compared_by_the_formula(similarity: str, weighted: bool) -> None:
    interactions, matrix = FEW, HAD
    if weighted:
        weights = np.arange(1, len(FEW.histories.items) + 1, dtype=np.float32)
        interactions = Interactions(FEW.histories, 6, weights=weights)
        matrix = dense(interactions.matrix)
    expected = FORMULAS[similarity](matrix) * (1 - np.eye(7))
    found = answer(fitted("item-knn", interactions, similarity=similarity), ASKED)
    assert found == pytest.approx(np.maximum(expected, 0)[[1, 3]].sum(axis=0), rel=1e-5)


def test_an_item_keeps_its_most_similar_items_only() -> None:
    similarities = cosine(HAD) * (1 - np.eye(7))
    found = answer(fitted("item-knn", similarity="cosine", neighbours=1), [1])
    assert np.flatnonzero(found).tolist() == [similarities[1].argmax()]
    assert found.max() == pytest.approx(similarities[1].max())


def test_of_equally_similar_items_those_of_lower_rows_are_kept() -> None:
    model = fitted("item-knn", Interactions(Histories.of([[4, 3, 2, 1]]), 4), neighbours=2)
    assert np.flatnonzero(answer(model, [2])).tolist() == [1, 3]


def test_shrinking_discounts_what_few_had_together() -> None:
    expected = cosine(HAD)[1] * (HAD.T @ HAD)[1] / ((HAD.T @ HAD)[1] + 10)
    expected[1] = 0
    assert answer(fitted("item-knn", similarity="cosine", shrink=10.0), [1]) == pytest.approx(expected, rel=1e-5)


# ---- user-knn


def test_the_nearest_users_vote_by_their_similarity() -> None:
    similarities = HAD @ WANTED / np.sqrt(np.maximum(HAD.sum(axis=1), 1) * WANTED.sum())
    voters = np.argsort(-similarities, kind="stable")[:2]
    expected = similarities[voters] @ HAD[voters]
    assert answer(fitted("user-knn", neighbours=2), ASKED) == pytest.approx(expected, rel=1e-5)


def test_of_equally_similar_users_the_first_is_asked() -> None:
    model = fitted("user-knn", Interactions(Histories.of([[1, 2], [1, 3]]), 3), neighbours=1)
    assert np.flatnonzero(answer(model, [1])).tolist() == [1, 2]


# ---- ease


def test_the_weights_are_the_closed_form() -> None:
    inverse = np.linalg.inv(HAD.T @ HAD + 2.0 * np.eye(7))
    expected = np.eye(7) - inverse / np.diag(inverse)
    assert answer(fitted("ease", regularization=2.0), ASKED) == pytest.approx(WANTED @ expected, abs=1e-6)


def test_too_many_items_are_refused_before_memory_is_taken() -> None:
    with pytest.raises(ModelError, match=r"1,000,000 items take a matrix of 4000.0 GB.*22,359 items.*gf-cf"):
        EASE(EASEConfig(), num_items=1_000_000)


# ---- svd and gf-cf


def right_vectors(matrix: np.ndarray, rank: int) -> np.ndarray:
    return np.linalg.svd(matrix)[2][:rank].T


def test_the_history_is_projected_on_the_strongest_directions() -> None:
    vectors = right_vectors(HAD, 2)
    model = fitted("svd", dim=2)
    assert answer(model, ASKED) == pytest.approx(WANTED @ vectors @ vectors.T, abs=1e-5)
    assert model.tables()["item"].all_rows().shape == (7, 2)


def test_more_factors_than_the_matrix_has_stay_empty() -> None:
    vectors = fitted("svd", dim=10).tables()["item"].all_rows().detach()
    assert vectors.norm(dim=0).numpy() == pytest.approx([1] * 4 + [0] * 6, abs=1e-5)


@pytest.mark.parametrize("users", [40, 800])
def test_a_large_matrix_gets_the_directions_of_the_whole_decomposition(users: int) -> None:
    # 400 items are too many to be decomposed whole; 40 users have fewer directions than are searched.
    interactions = random_interactions(users, num_items=400)
    expected = right_vectors(dense(interactions.matrix), 8)
    found = fitted("svd", interactions, dim=8).tables()["item"].all_rows().detach().double().numpy()
    assert np.abs(found.T @ expected) == pytest.approx(np.eye(8), abs=1e-3)


def test_the_unit_of_weights_does_not_change_the_directions() -> None:
    ones = random_interactions(users=60, num_items=400)
    weights = np.full(len(ones.histories.items), 1e4, np.float32)
    matrix = dense(Interactions(ones.histories, 400, weights=weights).matrix)
    model = fitted("svd", Interactions(ones.histories, 400, weights=weights), dim=3)
    found = model.tables()["item"].all_rows().detach().numpy()
    assert np.abs(found.T @ right_vectors(matrix, 3)) == pytest.approx(np.eye(3), abs=1e-3)


def test_neither_the_sign_nor_the_global_random_state_is_left_to_chance() -> None:
    interactions = random_interactions(users=60, num_items=400)
    model = SVD(SVDConfig(dim=3), 400)
    before, found = torch.get_rng_state(), []
    for seed in (0, 1):
        model.fit(interactions, here, seed)
        found.append(model.item.all_rows().detach().clone())
    assert torch.equal(torch.get_rng_state(), before)
    assert found[0].numpy() == pytest.approx(found[1].numpy(), abs=1e-3)


def test_the_graph_filter_is_the_papers() -> None:
    of_users, of_items = (np.maximum(HAD.sum(axis=axis), 1) for axis in (1, 0))
    normalised = HAD / np.sqrt(of_users[:, None] * of_items)
    vectors = right_vectors(normalised, 2)
    ideal = np.diag(of_items**-0.5) @ vectors @ vectors.T @ np.diag(of_items**0.5)
    expected = WANTED @ (normalised.T @ normalised + 0.3 * ideal)
    assert answer(fitted("gf-cf", rank=2), ASKED) == pytest.approx(expected, abs=1e-5)


# ---- the parts


def test_equal_and_negative_values_are_chosen_by_the_rule() -> None:
    chosen = nearest(torch.tensor([[0.5, 1.0, 0.5, 0.5], [-1.0, 0.0, -2.0, 0.1]]), 2)
    assert chosen.tolist() == [[True, True, False, False], [False, False, False, True]]


def test_a_product_in_blocks_is_the_product() -> None:
    matrix = random_interactions(users=50, num_items=20).matrix
    blocks = blocks_of(21, 4)
    found: Iterator[torch.Tensor] = (product(matrix.transposed(), matrix, block) for block in blocks)
    assert np.array_equal(torch.cat(list(found)).numpy(), dense(matrix).T @ dense(matrix))


@pytest.mark.parametrize("model", [ItemKNN, UserKNN, EASE, SVD, GFCF])
def test_they_are_fitted_not_trained(model: type[Recommender]) -> None:
    assert issubclass(model, Fitted)
