"""Several models of one kind that learn side by side and answer together.

Lakshminarayanan, Pritzel and Blundell, "Simple and Scalable Predictive Uncertainty Estimation using Deep Ensembles",
NeurIPS 2017 (https://arxiv.org/abs/1612.01474): members differ by their first weights and by what dropout hides from
them, so that they err differently, and the mean of what they say errs less than each.

Difference: the mean is of logarithms, not of probabilities, because the mean of scores is that, but for a constant of
each user; so the order is that of a product of experts, and of a single product of vectors laid end to end.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from rayrec.models.base import Recommender
from rayrec.models.checks import require
from rayrec.models.embedding import EmbeddingTable
from rayrec.models.hstu import HSTU, HSTUConfig
from rayrec.models.interactions import Interactions
from rayrec.models.sequence import SequenceModel

MOST = 64
"""Members: each costs as much as one model, in training and in every answer."""


class Ensemble(Recommender):
    """A model of sequences, ``config.members`` times: each learns by a loss of its own, all from the same batches.

    The loss of a step is the mean of theirs, and what the gradient is clipped by is the norm of all their gradients.

    Attributes:
        member: The class of the members, a `SequenceModel`.
        members: The models.
    """

    member: ClassVar[type[Recommender]]

    def __init__(self, config: HSTUEnsembleConfig, num_items: int) -> None:
        super().__init__()
        self.config = config
        self.num_items = num_items
        fields = [field.name for field in dataclasses.fields(self.member.Config)]
        single = self.member.Config(**{name: getattr(config, name) for name in fields})
        self.members = nn.ModuleList(self.member(single, num_items) for _ in range(config.members))

    @property
    def models(self) -> list[SequenceModel]:
        """The members, as what they are."""
        return [model for model in self.members if isinstance(model, SequenceModel)]

    @property
    def max_length(self) -> int:
        """How many of the latest events are read."""
        return self.models[0].max_length

    @property
    def reads(self) -> tuple[str, ...]:
        """What each member reads."""
        return self.models[0].reads

    def observe(self, interactions: Interactions) -> None:
        """See `Recommender.observe`."""
        for model in self.models:
            model.observe(interactions)

    def tables(self) -> Mapping[str, EmbeddingTable]:
        """Those of every member."""
        return {
            f"members.{place}.{name}": table
            for place, model in enumerate(self.models)
            for name, table in model.tables().items()
        }

    def score(self, history: Tensor, times: Tensor | None = None) -> Tensor:
        """The mean of the members' scores; see `SequenceModel.score`."""
        return torch.stack([model.score(history, times) for model in self.models]).mean(0)

    def query(self, history: Tensor, times: Tensor | None = None) -> Tensor:
        """See `Factorized`: the members' end to end."""
        return torch.cat([model.query(history, times) / len(self.members) for model in self.models], 1)

    def item_matrix(self) -> Tensor:
        """See `Factorized`."""
        return torch.cat([model.item_matrix() for model in self.models], 1)


@dataclass(frozen=True)
class HSTUEnsembleConfig(HSTUConfig):
    """The architecture of each member, and how many there are.

    Attributes:
        members: Models that learn side by side.
    """

    members: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        require(1 <= self.members <= MOST, f"members must be at least 1 and at most {MOST}, not {self.members}")


class HSTUEnsemble(Ensemble):
    """Several `HSTU`.

    Example::

        >>> model = HSTUEnsemble(HSTUEnsembleConfig(max_length=4, members=3), num_items=10).eval()
        >>> model.score(torch.tensor([[0, 0, 3, 7]]), torch.tensor([[0, 0, 50, 60, 3600]])).shape
        torch.Size([1, 11])
    """

    kind = "hstu-ensemble"
    Config = HSTUEnsembleConfig
    member = HSTU
