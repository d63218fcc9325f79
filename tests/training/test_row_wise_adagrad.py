"""Row-wise Adagrad: the same as ten lines of loops, and the same for sparse gradients as for dense ones."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from rayrec.training.row_wise_adagrad import RowWiseAdagrad

ROWS, DIM = 7, 3
RATE, DECAY, EPS = 0.1, 0.05, 1e-8


def gradient(step: int, rows: list[int]) -> Tensor:
    """Of a few rows, the others zero."""
    whole = torch.zeros(ROWS, DIM)
    whole[rows] = torch.randn(len(rows), DIM, generator=torch.Generator().manual_seed(step))
    return whole


def table() -> nn.Parameter:
    return nn.Parameter(torch.randn(ROWS, DIM, generator=torch.Generator().manual_seed(9)))


def by_hand(weights: list[list[float]], gradients: list[Tensor]) -> list[list[float]]:
    """The algorithm, a number at a time."""
    sums = [0.0] * ROWS
    for step in gradients:
        for row, values in enumerate(step.tolist()):
            penalized = [g + DECAY * w for g, w in zip(values, weights[row], strict=True)]
            sums[row] += sum(g * g for g in penalized) / DIM
            size = RATE / (math.sqrt(sums[row]) + EPS)
            weights[row] = [w - size * g for w, g in zip(weights[row], penalized, strict=True)]
    return weights


def test_it_computes_what_the_paper_says() -> None:
    gradients = [gradient(step, list(range(ROWS))) for step in range(4)]
    found, expected = table(), by_hand(table().tolist(), gradients)
    optimizer = RowWiseAdagrad([found], lr=RATE, weight_decay=DECAY, eps=EPS)
    for found.grad in gradients:
        optimizer.step()
    torch.testing.assert_close(found.detach(), torch.tensor(expected))
    assert optimizer.state[found]["sum"].shape == (ROWS,)


@pytest.mark.parametrize("sparse", [True, False])
def test_rows_without_a_gradient_are_untouched(sparse: bool) -> None:
    found = table()
    optimizer = RowWiseAdagrad([found], lr=RATE)
    for step in range(3):
        dense = gradient(step, [1, 4])
        found.grad = dense.to_sparse(1) if sparse else dense
        optimizer.step()
    changed = (found.detach() != table().detach()).any(1)
    assert changed.nonzero()[:, 0].tolist() == [1, 4]
    assert optimizer.state[found]["sum"].nonzero()[:, 0].tolist() == [1, 4]


def test_a_sparse_gradient_that_names_a_row_twice_equals_the_dense_one() -> None:
    sparse, dense, steps = table(), table(), [[1, 4, 1], [0, 4, 4]]
    optimizers = [RowWiseAdagrad([each], lr=RATE) for each in (sparse, dense)]
    for step, rows in enumerate(steps):
        values = torch.randn(len(rows), DIM, generator=torch.Generator().manual_seed(step))
        sparse.grad = torch.sparse_coo_tensor(torch.tensor([rows]), values, (ROWS, DIM), check_invariants=True)
        dense.grad = sparse.grad.to_dense()
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(sparse, dense)


def test_the_weight_decay_of_a_sparse_gradient_is_of_its_rows_only() -> None:
    found = table()
    found.grad = gradient(0, [2]).to_sparse(1)
    RowWiseAdagrad([found], lr=RATE, weight_decay=DECAY).step()
    assert (found.detach() != table().detach()).any(1).nonzero()[:, 0].tolist() == [2]
