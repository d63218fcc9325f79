"""The index: what it finds, how much of it, and that it is the same whoever builds it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rayrec.artifacts import Storage
from rayrec.errors import ModelError
from rayrec.inference.index import (
    RECALL_AT,
    Index,
    Indexes,
    best_rows,
    build_index,
    measured_index,
    open_indexes,
    publish_indexes,
    recall_at,
)
from rayrec.inference.offered import Limits, Offered
from rayrec.inference.scores import DenseScores, FoundScores, Order
from rayrec.recipe_data import LARGE_CATALOGUE
from rayrec.recipe_serving import Index as Settings

ITEMS, DIM = 3000, 16


@pytest.fixture(scope="module")
def matrix() -> np.ndarray:
    """Vectors around forty centres; row 0 would be better than all others."""
    random = np.random.default_rng(0)
    centres = random.normal(size=(40, DIM))
    vectors = centres[random.integers(0, 40, ITEMS + 1)] + 0.5 * random.normal(size=(ITEMS + 1, DIM))
    vectors[0] = 100.0
    return vectors.astype(np.float32)


@pytest.fixture(scope="module")
def queries(matrix: np.ndarray) -> np.ndarray:
    random = np.random.default_rng(1)
    found = matrix[random.integers(1, ITEMS + 1, 60)] + 0.3 * random.normal(size=(60, DIM))
    return np.asarray(found, np.float32)


@pytest.fixture(scope="module")
def index(matrix: np.ndarray) -> Index:
    return Index(build_index(matrix, Settings(cells=50)), probes=50)


def limits(allowed: np.ndarray, but: list[int]) -> Limits:
    mask = np.zeros(ITEMS + 1, bool)
    mask[allowed] = True
    return Limits(Offered(mask), np.array(but, np.int64))


ANYTHING = Limits(Offered.everything(ITEMS))


def test_all_cells_find_nearly_everything_and_fewer_find_less(
    index: Index, matrix: np.ndarray, queries: np.ndarray
) -> None:
    exact = best_rows(matrix, queries, RECALL_AT)
    recalls = [recall_at(Index(index.cells, probes), matrix, queries, exact) for probes in (1, 5, 50)]
    assert recalls == sorted(recalls)
    assert recalls[0] < 0.9
    assert recalls[2] > 0.995


def test_the_fewest_probes_that_reach_the_floor_are_taken(matrix: np.ndarray, queries: np.ndarray) -> None:
    found, about = measured_index(matrix, queries, Settings(cells=50, recall_floor=0.9))
    assert found.probes == about["probes"] < 50
    assert about["recall"] > 0.85
    assert (about["k"], about["queries"], about["cells"], about["floor"]) == (100, 30, 50, 0.9)
    chosen = queries[::2]
    exact = best_rows(matrix, chosen, RECALL_AT)
    assert recall_at(found, matrix, chosen, exact) >= 0.91
    assert recall_at(Index(found.cells, found.probes - 1), matrix, chosen, exact) < 0.91


def test_probes_that_are_given_are_kept_to(matrix: np.ndarray, queries: np.ndarray) -> None:
    assert measured_index(matrix, queries, Settings(cells=50, probes=2))[1]["probes"] == 2
    assert measured_index(matrix, queries, Settings(cells=50, probes=900))[1]["probes"] == 50


def test_an_index_comes_back_as_it_was_and_the_same_vectors_give_the_same(
    tmp_path: Path, index: Index, matrix: np.ndarray, queries: np.ndarray
) -> None:
    storage = Storage.open(tmp_path)
    about = {"best": {"probes": 50}}
    path = publish_indexes(storage, "tiny", Indexes(index), about, {"bundle": "b"})
    rebuilt = Indexes(Index(build_index(matrix, Settings(cells=50)), 50))
    assert publish_indexes(storage, "tiny", rebuilt, about, {"bundle": "b"}) == path
    opened = open_indexes(storage, path).best
    for query in queries[:5]:
        expected = index.candidates(query, 10, ANYTHING.within)
        assert opened.candidates(query, 10, ANYTHING.within).tolist() == expected.tolist()
    data = bytearray(storage.read(f"{path}/best.faiss"))
    data[100] ^= 1
    storage.replace(f"{path}/best.faiss", bytes(data))
    with pytest.raises(ModelError, match=r"best\.faiss is missing or was changed"):
        open_indexes(storage, path)


@pytest.mark.parametrize("k", [1, 20, 150])
@pytest.mark.parametrize(
    "allowed", [np.arange(1, ITEMS + 1), np.arange(1, ITEMS + 1, 2), np.arange(1, ITEMS, 40), np.zeros(0, np.int64)]
)
def test_what_is_found_within_limits_is_what_all_scores_say(
    k: int, allowed: np.ndarray, matrix: np.ndarray, queries: np.ndarray
) -> None:
    asked = queries[:8]
    within = [limits(allowed, but) for but in ([], [1, 1, 5], [*range(1, 400)], [0, 40, 81], [], [], [], [])]
    dense = DenseScores(asked @ matrix.T, within)
    source = Index(build_index(matrix, Settings(cells=50, codes="float32")), 50)
    found = FoundScores(asked, matrix, source, within)
    rows, values = dense.best(k)
    assert found.best(k)[0].tolist() == rows.tolist()
    np.testing.assert_allclose(found.best(k)[1], values, rtol=1e-5)
    some = np.random.default_rng(2).integers(0, ITEMS + 1, (8, 30))
    np.testing.assert_allclose(found.of(some), dense.of(some), rtol=1e-5)


def test_a_search_that_finds_too_few_is_answered_by_all_scores(
    index: Index, matrix: np.ndarray, queries: np.ndarray
) -> None:
    one_cell = Index(index.cells, 1)
    dense = DenseScores(queries @ matrix.T, [ANYTHING] * len(queries))
    rows, values = FoundScores(queries, matrix, one_cell, dense.limits).best(1000)
    assert all(len({*found}) == 1000 for found in rows.tolist())
    np.testing.assert_allclose(values, dense.best(1000)[1], rtol=1e-4)


def test_one_order_for_everybody_is_walked_until_enough_are_allowed() -> None:
    scores = np.array([9.0, 1.0, 3.0, 3.0, 2.0, 5.0], np.float32)
    source = Order(scores)
    assert source.candidates(np.ones(1), 3, Offered.everything(5)).tolist() == [5, 2, 3]
    assert source.candidates(np.ones(1), 2, Offered(np.arange(6) == 1)).tolist() == [1]
    assert source.candidates(np.ones(1), 9, Offered.everything(5)).tolist() == [5, 2, 3, 4, 1]


def test_catalogues_are_large_for_bundles_and_for_recipes_alike() -> None:
    assert Settings().is_for(LARGE_CATALOGUE)
    assert not Settings().is_for(LARGE_CATALOGUE - 1)
    assert not Settings(from_items=None).is_for(LARGE_CATALOGUE)
