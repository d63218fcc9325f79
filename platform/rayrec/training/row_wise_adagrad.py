"""Row-wise Adagrad: the optimizer of large embedding tables."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


class RowWiseAdagrad(torch.optim.Optimizer):
    """Adagrad with one accumulator a row: the sum of the mean squared gradients of the row.

    Gupta et al., "Training Recommender Systems at Scale: Communication-Efficient Model and Data Parallelism", KDD 2021
    (https://arxiv.org/abs/2010.08899); computes what FBGEMM's ``EXACT_ROWWISE_ADAGRAD`` does. Its state takes 1 / (2
    dim) of Adam's, and a row that is seldom met still takes large steps when it is.

    Of a sparse gradient (``torch.sparse_coo``) only the rows in it are touched, also by the weight decay.

    Args:
        params: Tables, ``[rows, dim]`` each, or groups of them.
        lr: Learning rate.
        weight_decay: A penalty: this share of the rows is added to their gradient.
        eps: Added to the root of the accumulator.
    """

    def __init__(self, params: Iterable[Any], lr: float = 1e-2, weight_decay: float = 0.0, eps: float = 1e-8) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "eps": eps})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """Update every table that has a gradient."""
        for group in self.param_groups:
            for table in group["params"]:
                if table.grad is not None:
                    self._update(table, table.grad, group)

    def _update(self, table: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[table]
        if not state:
            state["sum"] = table.new_zeros(len(table))
        rows: Tensor | slice = slice(None)
        if gradient.is_sparse:
            # Coalesced, so that a row comes once and with all of its gradient.
            gradient = gradient.coalesce()
            rows, gradient = gradient.indices()[0], gradient.values()
        if group["weight_decay"]:
            gradient = torch.add(gradient, table[rows], alpha=group["weight_decay"])
        total = state["sum"][rows] + gradient.square().mean(dim=1)
        state["sum"][rows] = total
        sizes = group["lr"] / (total.sqrt() + group["eps"])  # [rows]
        table[rows] -= gradient * sizes.unsqueeze(1)
