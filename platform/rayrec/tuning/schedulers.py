"""Ray Tune's schedulers: which trials go on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate
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
from rayrec.tuning.records import TrialRecord
from rayrec.tuning.space import Parameter, Space
from rayrec.tuning.trial import TRIAL, Suggested

TIME = "training_iteration"
"""Epochs, as Ray Tune counts them."""
FEWEST = 3
"""Trials whose median means something."""
DRAWN_ANEW = 0.25
"""Share of the values that a trial of a population draws, instead of changing those it took over by a fifth."""


@dataclass(frozen=True, eq=False)
class _Past:
    """A trial of an earlier session, as far as schedulers look at trials."""

    trial_id: str


class _Fair(TrialScheduler):
    """Compares with all trials there were, and lets the recipe as it is come to its end.

    Ray Tune's own forget what an earlier session saw. And a default that is stopped early, as one that learns slowly
    and well would be, is nothing that the best could be compared with.

    Args:
        known: Trials of an earlier session.
        options: Of Ray Tune's scheduler.
    """

    def __init__(self, known: Iterable[TrialRecord], **options: Any) -> None:
        super().__init__(**options)
        self._known = [record for record in known if record.state in {"done", "stopped"} and record.curve]
        self._stopped_default = False

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Called by Ray Tune before a trial begins: before the first, what there was is told."""
        while self._known:
            self._recall(tune_controller, self._known.pop())
        super().on_trial_add(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Called by Ray Tune after each epoch."""
        if Suggested.of(trial.config).number != 0:
            return str(super().on_trial_result(tune_controller, trial, result))
        if self._stopped_default:
            return TrialScheduler.CONTINUE
        # Ray Tune's rules do not want to hear of a trial that they have stopped.
        self._stopped_default = super().on_trial_result(tune_controller, trial, result) == TrialScheduler.STOP
        return TrialScheduler.CONTINUE

    def _recall(self, tune_controller: Any, record: TrialRecord) -> None:
        past, told = _Past(f"known {record.number}"), {}
        super().on_trial_add(tune_controller, past)
        for epoch, best in enumerate(accumulate(record.curve, max), start=1):
            told = {TIME: epoch, "best": best}
            super().on_trial_result(tune_controller, past, told)
        super().on_trial_complete(tune_controller, past, told)


class _Asha(_Fair, ASHAScheduler):
    """Li et al., "A System for Massively Parallel Hyperparameter Tuning", https://arxiv.org/abs/1810.05934."""


class _Median(_Fair, MedianStoppingRule):
    """Golovin et al., "Google Vizier", https://doi.org/10.1145/3097983.3098043."""


def scheduler(options: Options, space: Space, epochs: int, known: Iterable[TrialRecord] = ()) -> TrialScheduler:
    """The scheduler of a sweep; it compares the best of each trial so far.

    Args:
        options: Which, and its settings.
        space: What a population draws from.
        epochs: Most epochs of a trial.
        known: Trials of an earlier session, with which ASHA and the median rule compare, too.
    """
    grace = min(options.grace_epochs, epochs)
    if options.scheduler == "asha":
        settings = {"max_t": epochs + 1, "grace_period": grace, "reduction_factor": options.reduction}
        return _Asha(known, time_attr=TIME, **settings)
    if options.scheduler == "median":
        return _Median(known, time_attr=TIME, grace_period=grace, min_samples_required=FEWEST)
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
