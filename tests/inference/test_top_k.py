"""The best k: equal to sorting everything, ties in the order of the columns."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rayrec.inference.top_k import top_k, top_k_tensor


def by_sorting(row: np.ndarray, k: int) -> list[int]:
    """Written out: the best first, ties by column, minus infinity never."""
    best = sorted((-score, column) for column, score in enumerate(row.tolist()) if score > -np.inf)[:k]
    return [column for _, column in best] + [0] * (k - len(best))


@pytest.mark.parametrize("k", [1, 3, 10, 40])
@pytest.mark.parametrize("levels", [2, 5, 1000])
def test_the_best_are_those_of_a_full_sort(k: int, levels: int) -> None:
    scores = np.random.default_rng(k * levels).integers(0, levels, (20, 30)).astype(np.float32)
    scores[scores == 0] = -np.inf
    columns, values = top_k(scores, k)
    for row, found, best in zip(scores, columns, values, strict=True):
        assert found.tolist() == by_sorting(row, k)
        left = int((row > -np.inf).sum())
        assert best[: min(k, left)].tolist() == row[found[: min(k, left)]].tolist()
        assert (best[left:] == -np.inf).all()


def test_nothing_to_choose_from_gives_padding() -> None:
    columns, values = top_k(np.full((2, 3), -np.inf, np.float32), 2)
    assert columns.tolist() == [[0, 0], [0, 0]]
    assert (values == -np.inf).all()
    assert top_k(np.zeros((2, 0), np.float32), 2)[0].tolist() == [[0, 0], [0, 0]]
    assert top_k(np.zeros((0, 3), np.float32), 2)[0].shape == (0, 2)
    assert top_k(np.zeros((2, 3), np.float32), 0)[0].shape == (2, 0)


@pytest.mark.parametrize("k", [0, 1, 3, 10, 40])
@pytest.mark.parametrize("levels", [1, 2, 5, 1000])
def test_tensors_get_the_same(k: int, levels: int) -> None:
    scores = np.random.default_rng(k + levels).integers(-1, levels, (50, 30)).astype(np.float32)
    scores[scores < 0] = -np.inf
    columns, values = top_k(scores, k)
    same_columns, same_values = top_k_tensor(torch.from_numpy(scores), k)
    assert (same_columns.dtype, same_values.dtype) == (torch.int64, torch.float32)
    assert same_columns.tolist() == columns.tolist()
    assert same_values.tolist() == values.tolist()


@pytest.mark.parametrize("shape", [(2, 0), (0, 3), (0, 0)])
def test_empty_tensors_give_padding(shape: tuple[int, int]) -> None:
    assert top_k_tensor(torch.zeros(shape), 2)[0].tolist() == [[0, 0]] * shape[0]


def test_infinitely_good_comes_first() -> None:
    scores = np.array([[0.5, np.inf, 0.5, np.inf, 0.5]], np.float32)
    for k in range(1, 6):
        assert top_k(scores, k)[0].tolist() == [[1, 3, 0, 2, 4][:k]]
        assert top_k_tensor(torch.from_numpy(scores), k)[0].tolist() == [[1, 3, 0, 2, 4][:k]]


def test_nan_is_refused() -> None:
    with pytest.raises(ValueError, match="NaN"):
        top_k(np.array([[0.1, np.nan, 0.3]], np.float32), 2)
