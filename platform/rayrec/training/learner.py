"""A model with its objective: one module, so that workers exchange the gradients of both."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from rayrec.errors import ModelError
from rayrec.models.base import Recommender
from rayrec.models.embedding import ReplicatedTable
from rayrec.models.ensemble import Ensemble
from rayrec.models.losses import ItemLoss
from rayrec.models.objective import Objective
from rayrec.models.sequence import SequenceModel
from rayrec.training.feed import Part

LARGE_TABLE = 100_000
"""Rows from which on a gradient of a table is worth keeping sparse."""


class Learner(nn.Module):
    """What the training loop calls: the parts of a batch to their summed loss.

    Attributes:
        sparse_tables: Weights whose gradients hold only the rows that a step touched.
    """

    sparse_tables: tuple[nn.Parameter, ...] = ()

    @abstractmethod
    def forward(self, parts: Sequence[Part]) -> Tensor:
        """Summed loss over the targets of the parts, a scalar."""

    def keep_sparse(self) -> None:
        """Have the gradients of large tables hold only the rows that a step touches, where these are few."""


class OwnObjective(Learner):
    """A model that brings its objective along: a `GradientTrained`."""

    def __init__(self, model: Recommender) -> None:
        super().__init__()
        self.model = model

    def forward(self, parts: Sequence[Part]) -> Tensor:
        """See `Learner`."""
        losses: list[Tensor] = [self.model(part.inputs, part.targets) for part in parts]
        return torch.stack(losses).sum()


class NextItem(Learner):
    """A model of sequences with any objective."""

    def __init__(self, model: SequenceModel, loss: ItemLoss) -> None:
        super().__init__()
        self.model = model
        self.loss = loss

    def forward(self, parts: Sequence[Part]) -> Tensor:
        """See `Learner`."""
        found = [self._examples(part) for part in parts]
        states, targets = (torch.cat(pieces) for pieces in zip(*found, strict=True))
        loss: Tensor = self.loss(states, targets, self.model.outputs, self.model.bias)
        # A step divides by its next items. Models that predict fewer, such as items they hid, still want the mean over
        # what they predict; where every next item is predicted, this is 1.
        next_items = torch.stack([part.targets.count_nonzero() for part in parts]).sum()
        return loss * (next_items / max(1, len(targets)))

    def keep_sparse(self) -> None:
        """See `Learner`. Where all items are scored, all rows are touched."""
        if self.loss.reads_all_rows:
            return
        tables = [table for table in self.model.tables().values() if isinstance(table, ReplicatedTable)]
        for table in tables:
            table.sparse = table.num_rows >= LARGE_TABLE
        self.sparse_tables = tuple(table.weight for table in tables if table.sparse)

    def _examples(self, part: Part) -> tuple[Tensor, Tensor]:
        read = {name: getattr(part, name) for name in self.model.features}
        return self.model.examples(part.inputs, part.targets, part.times, **read)


class SideBySide(Learner):
    """The members of an ensemble, each with the same objective."""

    def __init__(self, members: Iterable[NextItem]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, parts: Sequence[Part]) -> Tensor:
        """See `Learner`: the mean of the members' losses."""
        losses: list[Tensor] = [member(parts) for member in self.members]
        return torch.stack(losses).mean()

    def keep_sparse(self) -> None:
        """See `Learner`."""
        members = [member for member in self.members if isinstance(member, NextItem)]
        for member in members:
            member.keep_sparse()
        self.sparse_tables = tuple(table for member in members for table in member.sparse_tables)


def learner(model: Recommender, objective: Objective, counts: np.ndarray) -> Learner:
    """The model with its objective, or with the recipe's if it takes any.

    Args:
        model: The model.
        objective: Of the recipe.
        counts: ``[num_items + 1]`` int64, training events of each item row.

    Raises:
        ModelError: The model has its own objective, and the recipe asks for another one.
    """
    if isinstance(model, SequenceModel):
        return NextItem(model, ItemLoss(objective, model.num_items, counts))
    if isinstance(model, Ensemble):
        return SideBySide(NextItem(member, ItemLoss(objective, member.num_items, counts)) for member in model.models)
    if objective != Objective():
        raise ModelError(
            f"training.objective: '{model.kind}' brings its own objective and takes no other. "
            "Leave the setting out, or choose a model of sequences such as sasrec."
        )
    return OwnObjective(model)
