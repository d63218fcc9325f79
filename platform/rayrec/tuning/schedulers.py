"""Ray Tune's schedulers: which trials go on."""

from __future__ import annotations

from collections.abc import Callable, Iterable
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

from rayrec.recipe import Recipe
from rayrec.tuning.options import Options
from rayrec.tuning.records import TrialRecord
from rayrec.tuning.space import Changes, Parameter, Space
from rayrec.tuning.trial import TRIAL, Suggested

TIME = "training_iteration"
"""Epochs, as Ray Tune counts them."""
BATCH = "training.batch_size"
FEWEST = 3
"""Trials whose median means something."""
DRAWN_ANEW = 0.25
"""Share of the values that a trial of a population draws, instead of changing those it took over by a fifth."""


@dataclass(frozen=True, eq=False)
class _Past:
    """A trial of an earlier session, as far as schedulers look at trials."""

    trial_id: str


class _Fair(TrialScheduler):
    """Compares with all trials there were, after equal steps, and lets the recipe as it is come to its end.

    Ray Tune's own forget what an earlier session saw. They compare after equal epochs, in which a trial with a large
    batch has made few steps: it would be stopped before it could show what it is worth. And a default that is stopped
    early, as one that learns slowly and well would be, is nothing that the best could be compared with.

    Args:
        known: Trials of an earlier session.
        pace: Steps an epoch of a trial with some changes, over those of the recipe as it is.
        options: Of Ray Tune's scheduler.
    """

    def __init__(self, known: Iterable[TrialRecord], pace: Callable[[Changes], float], **options: Any) -> None:
        super().__init__(**options)
        self._pace = pace
        self._known = [record for record in known if record.state in {"done", "stopped"} and record.curve]
        self._stopped_default = False

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Called by Ray Tune before a trial begins: before the first, what there was is told."""
        while self._known:
            self._recall(tune_controller, self._known.pop())
        super().on_trial_add(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Called by Ray Tune after each epoch."""
        suggested = Suggested.of(trial.config)
        told = self._after(result, suggested.changes)
        if suggested.number != 0:
            return str(super().on_trial_result(tune_controller, trial, told))
        # Ray Tune's rules do not want to hear of a trial that they have stopped.
        if not self._stopped_default:
            self._stopped_default = super().on_trial_result(tune_controller, trial, told) == TrialScheduler.STOP
        return TrialScheduler.CONTINUE

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Called by Ray Tune when a trial has ended."""
        super().on_trial_complete(tune_controller, trial, self._after(result, Suggested.of(trial.config).changes))

    def _after(self, result: dict[str, Any], changes: Changes) -> dict[str, Any]:
        return {**result, TIME: result[TIME] * self._pace(changes)} if TIME in result else result

    def _recall(self, tune_controller: Any, record: TrialRecord) -> None:
        past, told = _Past(f"known {record.number}"), {}
        super().on_trial_add(tune_controller, past)
        for epoch, best in enumerate(accumulate(record.curve, max), start=1):
            told = self._after({TIME: epoch, "best": best}, record.changes)
            super().on_trial_result(tune_controller, past, told)
        super().on_trial_complete(tune_controller, past, told)


class _Asha(_Fair, ASHAScheduler):
    """Li et al., "A System for Massively Parallel Hyperparameter Tuning", https://arxiv.org/abs/1810.05934."""


class _Median(_Fair, MedianStoppingRule):
    """Golovin et al., "Google Vizier", https://doi.org/10.1145/3097983.3098043."""


def scheduler(options: Options, space: Space, recipe: Recipe, known: Iterable[TrialRecord] = ()) -> TrialScheduler:
    """The scheduler of a sweep; it compares the best of each trial so far.

    Args:
        options: Which, and its settings.
        space: What is searched.
        recipe: What is tuned.
        known: Trials of an earlier session, with which ASHA and the median rule compare, too.
    """
    epochs = max(recipe.training.epochs, *space.extremes_of("training.epochs"), 1)
    grace, batch = min(options.grace_epochs, epochs), recipe.training.batch_size

    def pace(changes: Changes) -> float:
        return batch / float(changes.get(BATCH, batch))

    if options.scheduler == "asha":
        fastest = max(pace({BATCH: size}) for size in (batch, *space.extremes_of(BATCH)))
        settings = {"max_t": epochs * fastest + 1, "grace_period": grace, "reduction_factor": options.reduction}
        return _Asha(known, pace, time_attr=TIME, **settings)
    if options.scheduler == "median":
        return _Median(known, pace, time_attr=TIME, grace_period=grace, min_samples_required=FEWEST)
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
