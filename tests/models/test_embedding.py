"""Embedding tables: the protocol that a replicated, a sharded and a quantized table share."""

from __future__ import annotations

import torch

from rayrec.models.embedding import EmbeddingTable, ReplicatedTable


def table() -> ReplicatedTable:
    torch.manual_seed(0)
    return ReplicatedTable(5, 3)


def test_a_lookup_gives_the_vectors_of_the_rows() -> None:
    made: EmbeddingTable = table()
    rows = torch.tensor([[1, 4], [0, 1]])
    assert made.lookup(rows).shape == (2, 2, made.dim)
    torch.testing.assert_close(made.lookup(rows), made.all_rows()[rows])
    assert made.all_rows().shape == (made.num_rows, made.dim)


def test_padding_is_zero_and_takes_no_gradient_from_a_lookup() -> None:
    made = table()
    assert not made.lookup(torch.tensor([0])).any()
    made.lookup(torch.tensor([0, 2, 2])).sum().backward()
    assert made.weight.grad is not None
    assert made.weight.grad[:, 0].tolist() == [0, 0, 2, 0, 0]


def test_the_row_optimizer_updates_what_lookups_read() -> None:
    made = table()
    (weight,) = made.optimizer_parameters()
    with torch.no_grad():
        weight[3] = 7.0
    assert made.lookup(torch.tensor([3])).tolist() == [[7.0] * 3]


def test_the_changed_rows_are_distinct_and_without_padding() -> None:
    assert table().changed_rows(torch.tensor([[0, 4, 1], [0, 1, 4]])).tolist() == [1, 4]
    assert table().changed_rows(torch.zeros(2, 2, dtype=torch.int64)).tolist() == []
