"""What is known of each trial, kept in the storage, so that nothing that was paid for is lost."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Literal

from rayrec.artifacts import Json, Storage, canonical
from rayrec.errors import StorageError
from rayrec.lease import lease
from rayrec.models.base import Fitted
from rayrec.models.registry import model_class
from rayrec.recipe import Recipe
from rayrec.tuning.objectives import Objectives
from rayrec.tuning.space import Changes

LEASE = "lease"
State = Literal["running", "done", "stopped", "failed"]


@dataclass(frozen=True)
class TrialRecord:
    """A trial.

    Attributes:
        number: Counted from 0, the recipe as it is.
        changes: What it changes in the recipe; with a population, what it had in the end.
        name: Of its checkpoints; equal trainings have equal names.
        state: ``done`` trained to its end, ``stopped`` was ended early, ``failed`` is of no use.
        reason: Why it failed.
        curve: The metric after each epoch.
        values: The objectives, and what is constrained, of the best epoch; of one that was stopped the metric alone.
        seconds: Of training, measuring included.
        run_id: Its MLflow run.
        copied_from: With a population: numbers of the trials whose weights it went on from, and after which epoch.
    """

    number: int
    changes: Changes
    name: str
    state: State = "running"
    reason: str = ""
    curve: tuple[float, ...] = ()
    values: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    run_id: str = ""
    copied_from: tuple[tuple[int, int], ...] = ()

    @property
    def best_epoch(self) -> int:
        """The epoch with the best metric, counted from 1; 0 before the first."""
        return max(range(len(self.curve)), key=self.curve.__getitem__) + 1 if self.curve else 0

    @property
    def best(self) -> float:
        """The best metric so far."""
        return max(self.curve, default=-math.inf)

    def after(self, entry: float, seconds: float) -> TrialRecord:
        """The same, an epoch later."""
        return replace(self, curve=(*self.curve, entry), seconds=seconds)

    def to_json(self) -> Json:
        """As it is stored."""
        return asdict(self)

    @classmethod
    def from_json(cls, stored: Json) -> TrialRecord:
        """As it was stored."""
        lists = {"curve": tuple(stored["curve"]), "copied_from": tuple((a, b) for a, b in stored["copied_from"])}
        return cls(**{**stored, **lists})


@dataclass(frozen=True)
class Records:
    """The trials of a sweep: a file each below ``sweeps/NAME/KEY/``.

    Attributes:
        storage: Where they are.
        folder: Of the sweep.
    """

    storage: Storage
    folder: str

    @property
    def threads(self) -> int | None:
        """Threads of a trial, as the sweep was begun with; None before."""
        if not self.storage.exists(self._sweep):
            return None
        threads = self.storage.read_json(self._sweep).get("threads")
        if not isinstance(threads, int):
            raise StorageError(f"{self.storage.url(self._sweep)} is damaged (no `threads`). Remove it and run again.")
        return threads

    def begin(self, threads: int, settings: Json) -> None:
        """Store how the sweep is begun, for `threads` and whoever looks."""
        self.storage.replace(self._sweep, canonical({"threads": threads, **settings}))

    @property
    def _sweep(self) -> str:
        return f"{self.folder}/sweep.json"

    def write(self, record: TrialRecord) -> None:
        """Store a trial as it stands."""
        self.storage.replace(self._path(record.number), canonical(record.to_json()))

    def read(self) -> list[TrialRecord]:
        """All trials, in order."""
        return [self._read(path) for path in self._paths]

    @property
    def readable(self) -> list[TrialRecord]:
        """Those of all trials that are not damaged."""
        found: list[TrialRecord] = []
        for path in self._paths:
            with suppress(StorageError):
                found.append(self._read(path))
        return found

    @property
    def _paths(self) -> list[str]:
        folder = f"{self.folder}/trials"
        return [f"{folder}/{name}" for name in self.storage.list(folder) if name.endswith(".json")]

    def _read(self, path: str) -> TrialRecord:
        try:
            return TrialRecord.from_json(self.storage.read_json(path))
        except (KeyError, TypeError, ValueError) as error:
            raise StorageError(
                f"{self.storage.url(path)} is damaged (it is no record of a trial). Remove it: the trial is run again."
            ) from error

    @contextmanager
    def driven(self) -> Iterator[None]:
        """While the block runs, no other command is at the sweep.

        Raises:
            StorageError: Another one is.
        """
        with lease(self.storage, f"{self.folder}/{LEASE}", "this sweep is under way,"):
            yield

    def clear(self) -> None:
        """Forget the sweep, but for who is at it."""
        for name in self.storage.list(self.folder):
            if name != LEASE:
                self.forget(name)

    def remove(self, number: int) -> None:
        """Forget a trial."""
        self.storage.remove(self._path(number))

    def forget(self, name: str) -> None:
        """Remove a file or folder of it, if it is there."""
        if self.storage.exists(f"{self.folder}/{name}"):
            self.storage.remove(f"{self.folder}/{name}")

    def _path(self, number: int) -> str:
        return f"{self.folder}/trials/{number:06d}.json"


def most_epochs(recipe: Recipe, records: Iterable[TrialRecord]) -> int:
    """Epochs of all trials, had none been stopped and no patience ended; one of a model that is fitted at once."""
    return sum(_epochs_of(recipe, record.changes) for record in records)


def _epochs_of(recipe: Recipe, changes: Changes) -> int:
    if issubclass(model_class(changes.get("model.name", recipe.model.name)), Fitted):
        return 1
    return int(changes.get("training.epochs", recipe.training.epochs))


def ranked(records: Iterable[TrialRecord], objectives: Objectives) -> list[TrialRecord]:
    """The trials that meet the constraints, best first: those trained to their end, where there are any.

    One that was stopped early could not be had again from its recipe, which would train on.
    """
    everything = list(records)
    allowed = [record for record in everything if record.state == "done" and objectives.allows(record.values)]
    if not allowed and not objectives.constraints:
        allowed = [record for record in everything if record.state == "stopped" and record.curve]
    return sorted(allowed, key=lambda record: (-record.best, record.number))


def best_of(records: Iterable[TrialRecord], objectives: Objectives) -> TrialRecord | None:
    """The first of `ranked`."""
    return next(iter(ranked(records, objectives)), None)


def contenders(records: Iterable[TrialRecord], objectives: Objectives, count: int) -> list[TrialRecord]:
    """So many of the best, and before them the recipe as it is, whatever it is worth, unless it failed."""
    everything = list(records)
    default = [record for record in everything if record.number == 0 and record.state not in {"running", "failed"}]
    return [*default, *[record for record in ranked(everything, objectives) if record.number != 0][:count]]


def state_of(record: TrialRecord, objectives: Objectives) -> str:
    """The state of a trial as people read it: also whether it broke a constraint."""
    broken = [str(limit) for limit in objectives.constraints if record.state == "done" and not limit.met(record.values)]
    return f"{record.state}, not {' and '.join(broken)}" if broken else record.state


def front_of(records: list[TrialRecord], objectives: Objectives) -> list[TrialRecord]:
    """The trials of the Pareto front, of those that meet the constraints."""
    allowed = [record for record in records if record.state == "done" and objectives.allows(record.values)]
    return [allowed[place] for place in objectives.front([record.values for record in allowed])]
