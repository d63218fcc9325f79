"""The moving average of the weights: less noisy than where the last step happened to end."""

from __future__ import annotations

import copy

from torch.optim.swa_utils import get_ema_multi_avg_fn

from rayrec.models.base import Recommender


class Average:
    """A second model, whose weights are the exponential moving average of the first one's.

    Polyak and Juditsky, "Acceleration of Stochastic Approximation by Averaging", SIAM J. Control Optim. 1992
    (https://doi.org/10.1137/0330046). After n steps the decay is ``min(decay, (1 + n) / (10 + n))``: the average is of
    the latest tenth of the steps or so, until that is what ``decay`` spans. Adam's correction of the bias would weigh
    the first steps, which know nothing, as much as the latest, and early epochs would be judged by them.

    Weights that are not learnt stay as they are; buffers are shared.

    Args:
        model: The model, where it is trained: after `Recommender.observe`, on its device. The average begins with its
            weights.
        decay: How much of the average a step keeps, between 0 and 1.

    Attributes:
        model: The model of the averaged weights.
    """

    def __init__(self, model: Recommender, decay: float) -> None:
        self.decay = decay
        # What is in the memo is not copied.
        self.model = copy.deepcopy(model, {id(buffer): buffer for buffer in model.buffers()}).requires_grad_(False)
        learnt = [name for name, weight in model.named_parameters() if weight.requires_grad]
        self._averages = [self.model.get_parameter(name) for name in learnt]
        self._weights = [model.get_parameter(name).detach() for name in learnt]

    def update(self, step: int) -> None:
        """Take in the model's weights as they are after ``step``, counted from 0."""
        decay = min(self.decay, (1 + step) / (10 + step))
        get_ema_multi_avg_fn(decay)(self._averages, self._weights, step)
