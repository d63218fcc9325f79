"""The losses of sequence models: how the item that came next is told from the others.

What is drawn is in `rayrec.models.negatives`; what each loss is for, in `Objective`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from rayrec.models.embedding import EmbeddingTable
from rayrec.models.negatives import SAMPLERS
from rayrec.models.objective import Objective

LOGITS = 1 << 22
"""Numbers held at a time of what would be targets x items (16 MB): larger parts leave a CPU's cache."""

FEW_ITEMS = 64
"""Items a negative, up to which each target's own negatives are looked up among the logits of all items."""

Part = Callable[[slice], tuple[Tensor, Tensor]]
"""Of some targets: their negatives' logits ``[t, K]``, and the rows of these, ``[K]`` or ``[t, K]``."""
Contrast = Callable[[Tensor, Tensor, Tensor], Tensor]
"""A loss of each target: ``(positive [t], negative [t, K], hit [t, K])`` to ``[t]``. A hit is the target itself, drawn
as its own negative by accident: it never counts."""


class ItemLoss(nn.Module):
    """The loss of hidden states that should point at items; everything in float32, under autocast too.

    It has no weights, and nothing of it goes into bundles or checkpoints.

    Args:
        objective: Which loss, on which negatives.
        num_items: Items; their rows run from 1.
        counts: ``[num_items + 1]``, training events of each item row; only ``popularity`` and ``in-batch`` need them.

    Attributes:
        reads_all_rows: Whether every item's vector is read for every target.

    Raises:
        ModelError: There are no counts, and the objective needs them.

    Example::

        >>> loss = ItemLoss(Objective(), num_items=10, counts=None)
        >>> loss(torch.randn(3, 8), torch.tensor([4, 1, 10]), ReplicatedTable(11, 8)).shape
        torch.Size([])
    """

    def __init__(self, objective: Objective, num_items: int, counts: np.ndarray | None) -> None:
        super().__init__()
        full = objective.loss == "softmax"
        self.rule = FullSoftmax(objective) if full else AgainstNegatives(objective, num_items, counts)
        self.reads_all_rows = bool(self.rule.reads_all_rows)

    def forward(self, hidden: Tensor, targets: Tensor, table: EmbeddingTable, bias: Tensor | None = None) -> Tensor:
        """Summed loss.

        Args:
            hidden: ``[T, D]``, of any floating type. T may be 0: the loss is 0 then, and so are all gradients.
            targets: ``[T]`` int64 item rows, from 1.
            table: The item vectors; a logit is the product of a hidden state and a vector.
            bias: ``[num_items + 1]``, added to the logits.

        Returns:
            A float32 scalar: the sum, so that workers with uneven batches can divide by the global number of targets.
        """
        with torch.autocast(hidden.device.type, enabled=False):
            summed: Tensor = self.rule(hidden.float(), targets, table, bias)
        return summed


class FullSoftmax(nn.Module):
    """Cross entropy over all items, a few targets at a time: the logits of all would be gigabytes.

    Klenitskiy and Vasilev, "Turning Dross Into Gold Loss: is BERT4Rec really better than SASRec?", RecSys 2023
    (https://arxiv.org/abs/2309.07602), show that it is what makes SASRec strong.
    """

    def __init__(self, objective: Objective) -> None:
        super().__init__()
        self.reads_all_rows = True
        self.smoothing = objective.label_smoothing

    def forward(self, hidden: Tensor, targets: Tensor, table: EmbeddingTable, bias: Tensor | None) -> Tensor:
        """See `ItemLoss.forward`."""
        vectors = table.all_rows()[1:]
        biases = None if bias is None else bias[1:]
        # By default torch takes 8 targets of 6,400 at a time where there are 50,000 items, and most of the time goes
        # into adding to the vectors' gradient: this is a third faster. More than 512 no longer fit a CPU's cache.
        rows = min(512, max(32, 2 * LOGITS // len(vectors)))
        loss = functional.linear_cross_entropy(
            hidden,
            vectors,
            targets - 1,
            linear_bias=biases,
            reduction="sum",
            options=nn.LinearCrossEntropyOptions(batch_chunk_size=rows),
        )
        if not self.smoothing:
            return loss
        # torch smooths labels only with all logits in memory. By linearity, what smoothing adds is how far the target's
        # logit is above the mean logit.
        above = (hidden * (table.lookup(targets) - vectors.mean(0))).sum()
        if biases is not None:
            above = above + (biases[targets - 1] - biases.mean()).sum()
        return loss + self.smoothing * above


class AgainstNegatives(nn.Module):
    """The target's logit against those of drawn items.

    Args:
        objective: Which loss, on which negatives.
        num_items: Items; their rows run from 1.
        counts: ``[num_items + 1]``, see `ItemLoss`.
    """

    def __init__(self, objective: Objective, num_items: int, counts: np.ndarray | None) -> None:
        super().__init__()
        self.sampler = SAMPLERS[objective.sampling](objective, num_items, counts)
        self.contrast = contrast(objective, num_items)
        few = num_items <= FEW_ITEMS * objective.negatives
        self.negative_logits = together if objective.shared else among_all if few else apart
        self.reads_all_rows = self.negative_logits is among_all
        corrected = objective.loss == "sampled-softmax" and objective.correction
        self.correction = self.sampler.log_probability if corrected else _nothing

    def forward(self, hidden: Tensor, targets: Tensor, table: EmbeddingTable, bias: Tensor | None) -> Tensor:
        """See `ItemLoss.forward`."""

        def offset(rows: Tensor) -> Tensor:
            return (_nothing(rows) if bias is None else bias[rows]) - self.correction(rows)

        rows = self.sampler(targets)  # [K] or [T, K]
        positive = (hidden * table.lookup(targets)).sum(1) + offset(targets)
        negative_logits = self.negative_logits(hidden, rows, table, offset)

        def summed(part: slice) -> Tensor:
            negative, drawn = negative_logits(part)
            return self.contrast(positive[part], negative, drawn == targets[part].unsqueeze(1)).sum()

        numbers = {together: rows.shape[-1], apart: rows.shape[-1] * table.dim, among_all: table.num_rows}  # a target
        return _in_parts(summed, len(targets), max(1, LOGITS // max(1, numbers[self.negative_logits])))


def together(hidden: Tensor, rows: Tensor, table: EmbeddingTable, offset: Callable[[Tensor], Tensor]) -> Part:
    """Logits of ``rows`` ``[K]``, for all targets the same: one matrix product."""
    vectors, offsets = table.lookup(rows), offset(rows)
    return lambda part: (hidden[part] @ vectors.T + offsets, rows)


def apart(hidden: Tensor, rows: Tensor, table: EmbeddingTable, offset: Callable[[Tensor], Tensor]) -> Part:
    """Logits of ``rows`` ``[T, K]``, for each target its own: looked up when needed, since they are T K D numbers."""

    def logits(part: slice) -> tuple[Tensor, Tensor]:
        products = table.lookup(rows[part]) @ hidden[part].unsqueeze(2)  # [t, K, 1]
        return products.squeeze(2) + offset(rows[part]), rows[part]

    return logits


def among_all(hidden: Tensor, rows: Tensor, table: EmbeddingTable, offset: Callable[[Tensor], Tensor]) -> Part:
    """As `apart`, from the logits of all items: where these are few, a product costs less than so many lookups."""
    vectors = table.all_rows()

    def logits(part: slice) -> tuple[Tensor, Tensor]:
        return (hidden[part] @ vectors.T).gather(1, rows[part]) + offset(rows[part]), rows[part]

    return logits


def _nothing(rows: Tensor) -> Tensor:
    return torch.zeros((), device=rows.device)


def _in_parts(summed: Callable[[slice], Tensor], size: int, length: int) -> Tensor:
    """``summed`` over ``size`` targets, ``length`` at a time; of several parts, each is worked out again backwards."""
    if size <= length:
        return summed(slice(0, size))
    parts = [slice(start, start + length) for start in range(0, size, length)]
    sums = [checkpoint(summed, part, use_reentrant=False) for part in parts]
    return torch.stack(sums).sum()


# ---- what a target and its negatives are told


def contrast(objective: Objective, num_items: int) -> Contrast:
    """The loss of a target that the objective names."""
    if objective.loss == "sampled-softmax":
        return partial(sampled_softmax, smoothing=objective.label_smoothing)
    if objective.loss == "gbce":
        return partial(binary_cross_entropy, weight=positive_weight(objective, num_items))
    return {"bce": binary_cross_entropy, "bpr": bpr, "mse": squared_error}[objective.loss]


def sampled_softmax(positive: Tensor, negative: Tensor, hit: Tensor, smoothing: float = 0.0) -> Tensor:
    """Cross entropy of the target among itself and its negatives.

    From the logits, those of the target too, the logarithm of the chance of being drawn has been taken ("logQ"): Bengio
    and Senecal, IEEE Transactions on Neural Networks 19(4), 2008 (https://doi.org/10.1109/TNN.2007.912312); Yi et al.,
    "Sampling-Bias-Corrected Neural Modeling for Large Corpus Item Recommendations", RecSys 2019
    (https://doi.org/10.1145/3298689.3346996). Where all items are drawn alike this changes nothing.

    Not implemented: Khrylchenko et al., "Correcting the LogQ Correction", RecSys 2025
    (https://arxiv.org/abs/2507.09331), whose target is not corrected, as it is not drawn. Free logits of 1,000 items
    with 64 negatives come as close to the truth with it where negatives are popular (a Kullback-Leibler divergence of
    .019 against .018, and 1.7 without correction), but not where they are uniform (.51 against .015).
    """
    candidates = torch.cat([positive.unsqueeze(1), negative.masked_fill(hit, -torch.inf)], 1)
    losses = candidates.logsumexp(1) - positive
    if not smoothing:
        return losses
    return losses + smoothing * _mean((positive.unsqueeze(1) - negative).masked_fill(hit, 0.0))


def binary_cross_entropy(positive: Tensor, negative: Tensor, hit: Tensor, weight: float = 1.0) -> Tensor:
    """Yes to the target, ``weight`` times, and no to the negatives; the mean over all of them."""
    against = functional.softplus(negative).masked_fill(hit, 0.0)
    return (weight * functional.softplus(-positive) + against.sum(1)) / (1 + negative.shape[1])


def positive_weight(objective: Objective, num_items: int) -> float:
    """The power that gBCE raises the target's probability to.

    Petrov and Macdonald, "gSASRec: Reducing Overconfidence in Sequential Recommendation Trained with Negative
    Sampling", RecSys 2023 (https://arxiv.org/abs/2308.07192): beta = a (t (1 - 1 / a) + 1 / a), a being the share of
    the other items that is drawn; that is 1 - t (1 - a). The logarithm of a power is a multiple, so nothing overflows.
    """
    share = min(1.0, objective.negatives / max(1, num_items - 1))
    return 1.0 - objective.calibration * (1.0 - share)


def bpr(positive: Tensor, negative: Tensor, hit: Tensor) -> Tensor:
    """The target above each negative: Rendle et al., UAI 2009 (https://arxiv.org/abs/1205.2618)."""
    return _mean(functional.softplus(negative - positive.unsqueeze(1)).masked_fill(hit, 0.0))


def squared_error(positive: Tensor, negative: Tensor, hit: Tensor) -> Tensor:
    """1 for the target and 0 for the negatives; the mean over all of them."""
    return ((positive - 1).square() + negative.square().masked_fill(hit, 0.0).sum(1)) / (1 + negative.shape[1])


def _mean(values: Tensor) -> Tensor:
    """Over the negatives, ``[t, K]`` to ``[t]``; zeros where an empty step has none."""
    return values.sum(1) / max(1, values.shape[1])
