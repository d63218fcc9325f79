"""Whether the best is the best, or was lucky: its settings once more, with other seeds."""

from __future__ import annotations

import logging
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Protocol

from rayrec.artifacts import Json
from rayrec.training.checkpoint import Checkpoints
from rayrec.tuning.follower import Sweep, Watcher
from rayrec.tuning.objectives import Objectives
from rayrec.tuning.options import SEED, Search
from rayrec.tuning.records import Records, TrialRecord, contenders
from rayrec.tuning.search import search
from rayrec.tuning.space import Changes, Parameter, Space, changed

_LOG = logging.getLogger(__name__)

FOLDER = "confirmation"
"""Below the sweep's."""


class ConfirmationWatcher(Watcher, Protocol):
    """Who is told of the further trials, too."""

    def confirming(self, chosen: Search) -> None:
        """The trials that follow are of the best ones' settings, with other seeds."""


@dataclass(frozen=True)
class Confirmed:
    """What the settings of a trial reached with other seeds.

    Attributes:
        trial: Its number.
        seeds: The seeds.
        values: The metric of each.
    """

    trial: int
    seeds: tuple[int, ...]
    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Of the values. The trial's own is not among them: it was chosen for being high."""
        return statistics.fmean(self.values)

    @property
    def spread(self) -> float:
        """Their standard deviation; 0 of a single one."""
        return statistics.stdev(self.values) if len(self.values) > 1 else 0.0

    def to_json(self) -> Json:
        """As ``--json`` prints it."""
        return asdict(self) | {"mean": self.mean, "standard_deviation": self.spread}


def confirm(sweep: Sweep, trials: Sequence[TrialRecord], watcher: ConfirmationWatcher) -> list[Confirmed]:
    """Train the settings of the best trials, and the recipe as it is, with other seeds; the best mean first.

    What was trained for an earlier command is not trained again. A trial of which a training fails is left out, with a
    warning.

    Args:
        sweep: The sweep, whose search is over.
        trials: All of its trials.
        watcher: Who is told.
    """
    options, recipe = sweep.search.options, sweep.job.recipe
    seeds = tuple(recipe.training.seed + more for more in range(1, 1 + options.confirm_seeds))
    chosen = contenders(trials, sweep.search.objectives, options.confirm)
    further = {(trial.number, seed): {**trial.changes, SEED: seed} for trial in chosen for seed in seeds}
    reached = _trained(sweep, further, seeds, watcher)
    found = []
    for trial in chosen:
        values = tuple(reached[trial.number, seed] for seed in seeds if (trial.number, seed) in reached)
        if len(values) == len(seeds):
            found.append(Confirmed(trial.number, seeds, values))
        else:
            failed = len(seeds) - len(values)
            message = (
                "tune: trial %d is out: %d of its %d trainings with other seeds failed. The same command tries again."
            )
            _LOG.warning(message, trial.number, failed, len(seeds))
    return sorted(found, key=lambda confirmed: (-confirmed.mean, confirmed.trial))


def confirmations(sweep: Sweep) -> Records:
    """What is known of the further trials."""
    return Records(sweep.records.storage, f"{sweep.records.folder}/{FOLDER}")


def _trained(
    sweep: Sweep, further: Mapping[tuple[int, int], Changes], seeds: Sequence[int], watcher: ConfirmationWatcher
) -> dict[tuple[int, int], float]:
    """The best validation metric of each training, if it came to its end."""
    records, chosen = confirmations(sweep), sweep.search
    names = {key: sweep.name_of(changed(sweep.job.recipe, changes)) for key, changes in further.items()}
    for record in records.read():
        # What failed is tried again, and what nobody asks for any more is not gone on with.
        if record.state == "failed" or (record.state == "running" and record.name not in names.values()):
            records.remove(record.number)
    trials = len({*names.values(), *(record.name for record in records.read())})
    alone = {"scheduler": "none", "max_time": None, "trials": trials, "confirm": 0, "max_failed": 1.0}
    confirming = replace(
        chosen,
        space=Space((*chosen.space.parameters, Parameter(SEED, "choice", tuple(seeds)))),
        options=chosen.options.model_copy(update=alone),
        objectives=Objectives((chosen.objectives.metric,)),
        points=tuple(further.values()),
    )
    watcher.confirming(confirming)
    ended = search(replace(sweep, search=confirming, records=records, kind="confirmation"), watcher)
    for record in ended:
        Checkpoints(records.storage, record.name).clear()
    reached = {record.name: record.best for record in ended if record.state == "done"}
    return {key: reached[name] for key, name in names.items() if name in reached}
