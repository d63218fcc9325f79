"""Ray Tune's schedulers: which trials go on."""

from __future__ import annotations

from typing import Any

from ray import tune
from ray.tune.schedulers import (
    ASHAScheduler,
    FIFOScheduler,
    HyperBandScheduler,
    MedianStoppingRule,
    PopulationBasedTraining,
    TrialScheduler,
)

from rayrec.tuning.options import Options
from rayrec.tuning.space import Parameter, Space
from rayrec.tuning.trial import TRIAL

TIME = "training_iteration"
"""Epochs, as Ray Tune counts them."""
FEWEST = 3
"""Trials whose median means something."""
DRAWN_ANEW = 0.25
"""Share of the values that a trial of a population draws, instead of changing those it took over by a fifth."""


def scheduler(options: Options, space: Space, epochs: int) -> TrialScheduler:
    """The scheduler of a sweep; it compares the best of each trial so far.

    Args:
        options: Which, and its settings.
        space: What a population draws from.
        epochs: Most epochs of a trial.
    """
    grace = min(options.grace_epochs, epochs)
    if options.scheduler == "asha":
        # Li et al., "A System for Massively Parallel Hyperparameter Tuning", https://arxiv.org/abs/1810.05934.
        return ASHAScheduler(TIME, max_t=epochs + 1, grace_period=grace, reduction_factor=options.reduction)
    if options.scheduler == "median":
        # Golovin et al., "Google Vizier", https://doi.org/10.1145/3097983.3098043.
        return MedianStoppingRule(TIME, grace_period=grace, min_samples_required=FEWEST)
    if options.scheduler == "hyperband":
        # Li et al., https://arxiv.org/abs/1603.06560.
        return HyperBandScheduler(TIME, max_t=epochs + 1, reduction_factor=options.reduction)
    if options.scheduler == "pbt":
        # Jaderberg et al., "Population Based Training of Neural Networks", https://arxiv.org/abs/1711.09846.
        drawn = {parameter.key: _domain(parameter) for parameter in space.parameters}

        def within(config: dict[str, Any]) -> dict[str, Any]:
            # Ray Tune multiplies by 0.8 or 1.2, whatever the bounds are.
            changes = config[TRIAL]["changes"]
            kept = {parameter.key: parameter.nearest(changes[parameter.key]) for parameter in space.parameters}
            return {**config, TRIAL: {**config[TRIAL], "changes": kept}}

        return PopulationBasedTraining(
            TIME,
            perturbation_interval=grace,
            hyperparam_mutations={TRIAL: {"changes": drawn}},
            resample_probability=DRAWN_ANEW,
            custom_explore_fn=within,
            log_config=False,
            # All at the same epoch are compared: what a population finds does not depend on who was faster.
            synch=True,
        )
    return FIFOScheduler()


def _domain(parameter: Parameter) -> Any:
    """A parameter as Ray Tune has it."""
    makers = {
        # As a list: of these it takes a neighbour.
        "choice": lambda *v: list(v),
        "uniform": tune.uniform,
        "log_uniform": tune.loguniform,
        "quantised": tune.quniform,
        "int": lambda low, high: tune.randint(low, high + 1),
        "log_int": lambda low, high: tune.lograndint(low, high + 1),
    }
    return makers[parameter.kind](*parameter.values)
