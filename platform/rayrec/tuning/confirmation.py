"""Whether the best is the best, or was lucky: its settings once more, with other seeds."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Protocol

from rayrec.artifacts import Json
from rayrec.training.checkpoint import Checkpoints
from rayrec.tuning.follower import Sweep, Watcher
from rayrec.tuning.objectives import Objectives
from rayrec.tuning.options import SEED, Search
from rayrec.tuning.records import Records, TrialRecord, ranked
from rayrec.tuning.search import search
from rayrec.tuning.space import Changes, Parameter, Space, changed

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

    What was trained for an earlier command is not trained again.

    Args:
        sweep: The sweep, whose search is over.
        trials: All of its trials.
        watcher: Who is told.

    Raises:
        ModelError: Too many trainings failed.
    """
    options, recipe = sweep.search.options, sweep.job.recipe
    seeds = tuple(recipe.training.seed + more for more in range(1, 1 + options.confirm_seeds))
    best = ranked(trials, sweep.search.objectives)[: options.confirm]
    default = [trial for trial in trials if trial.number == 0 and trial.state != "failed" and trial not in best]
    further = {(trial.number, seed): {**trial.changes, SEED: seed} for trial in (*default, *best) for seed in seeds}
    reached = _trained(sweep, further, seeds, watcher)
    found = [
        Confirmed(trial.number, seeds, tuple(reached[trial.number, seed] for seed in seeds))
        for trial in (*default, *best)
        if all((trial.number, seed) in reached for seed in seeds)
    ]
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
    trials = len({*names.values(), *(record.name for record in records.read())})
    alone = {"scheduler": "none", "max_time": None, "trials": trials, "confirm": 0}
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
