"""How a stage runs: skipped when nothing it reads has changed, else in an MLflow run below the pipeline's."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import KW_ONLY, dataclass, field
from types import TracebackType
from typing import Protocol, Self

from rayrec.artifacts import Json, Storage, canonical, code_version, short_digest
from rayrec.recipe import Recipe
from rayrec.tracking import TrackedRun, Tracker

Metrics = dict[str, float]

BASE = ("errors", "artifacts", "features", "recipe", "recipe_data")
LEARNT_FROM = ("data/views", "data/interactions", "data/item_features", "data/user_features")
RANKING = ("evaluation/full_ranking", "evaluation/held_out")
TRAINING = (*BASE, "metrics", "models", *LEARNT_FROM, "inference", *RANKING, "training")
CODE = {
    "prepare": (*BASE, "data"),
    **dict.fromkeys(("baseline", "train", "fallback", "refit"), TRAINING),
    "evaluate": (*BASE, "metrics", *LEARNT_FROM, "data/user_groups", "inference", "evaluation"),
    "index": (*BASE, "models", *LEARNT_FROM, "inference", *RANKING, "evaluation/retrieval"),
    "register": (*BASE, "inference", "promotion"),
}
"""The rooms each stage runs through: a change of their code runs the stage again."""


class Watcher(Protocol):
    """Who is told how it goes."""

    def stage(self, name: str) -> None:
        """A stage begins."""

    def prepared(self, counts: Json, view: Json) -> None:
        """There is a Dataset: the counts of its manifest, and of the view's."""

    def epoch(self, entry: Metrics, epochs: int) -> None:
        """An epoch of training has ended; there will be ``epochs`` at most."""

    def done(self, name: str, outcome: StageOutcome) -> None:
        """A stage has ended or was skipped."""


@dataclass(frozen=True)
class StageOutcome:
    """How a stage went.

    Attributes:
        output: What it made, by reference.
        seconds: How long it took; when skipped, this time.
        skipped: Whether an earlier run's output was taken.
        rows: Rows it went through: log rows, training events times epochs, users ranked.
    """

    output: Json
    seconds: float
    skipped: bool
    rows: int

    def summary(self) -> Json:
        """For the closing table and ``--json``."""
        rate = round(self.rows / self.seconds, 1) if self.seconds and not self.skipped else None
        return {"seconds": round(self.seconds, 3), "skipped": self.skipped, "rows": self.rows, "rows_per_second": rate}


@dataclass
class Stages:
    """What runs the stages of a recipe.

    Attributes:
        recipe: The recipe.
        storage: Where everything goes.
        watcher: Who is told.
        within: The MLflow run that this pipeline's is nested in.
        run_name: Of the pipeline's MLflow run.
        outcomes: Stages done so far.
    """

    recipe: Recipe
    storage: Storage
    watcher: Watcher
    _: KW_ONLY
    within: TrackedRun | None = None
    run_name: str = "pipeline"
    outcomes: dict[str, StageOutcome] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._tracker = Tracker(self.recipe.name)
        self._parent: TrackedRun | None = None

    def _stage(
        self,
        name: str,
        inputs: Json,
        sections: tuple[str, ...],
        exists: Callable[[Json], bool],
        work: Callable[[TrackedRun], tuple[Json, int]],
    ) -> StageOutcome:
        """Run a stage, or take what an earlier run with the same key left."""
        key = short_digest(
            {"inputs": inputs, "recipe": self.recipe.sections(*sections), "code": code_version(*CODE[name])}
        )
        record, began = f"stages/{name}/{key}.json", time.perf_counter()
        self.watcher.stage(name)
        done = self._recorded(record, exists)
        if done:
            outcome = StageOutcome(done["output"], time.perf_counter() - began, True, done["rows"])
        else:
            with self._run(name) as run:
                self._tracker.take_up(run, key)
                output, rows = work(run)
                outcome = StageOutcome(output, time.perf_counter() - began, False, rows)
                run.metrics({"stage_seconds": outcome.seconds, "stage_rows": rows})
                run.json(output, "output.json")
            self.storage.replace(record, canonical({"stage": name, "output": outcome.output, "rows": outcome.rows}))
        self.outcomes[name] = outcome
        self.watcher.done(name, outcome)
        return outcome

    def _recorded(self, record: str, exists: Callable[[Json], bool]) -> Json | None:
        """What an earlier run left, if its output is still there."""
        try:
            found = self.storage.read_json(record)
        except FileNotFoundError:
            return None
        return found if found.get("output") and exists(found["output"]) else None

    def _run(self, stage: str) -> AbstractContextManager[TrackedRun]:
        """The stage's MLflow run. The pipeline's own begins with the first stage that is not skipped."""
        if self._parent is None:
            self._parent = self._tracker.begin(self.run_name, self.within)
            self._parent.params(self.recipe.model_dump(mode="json", by_alias=True))
            self._parent.tags({"rayrec.simulated": self.recipe.simulated})
        return self._tracker.run(stage, self._parent)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the pipeline's MLflow run, if one was begun."""
        if self._parent is not None:
            self._tracker.end(self._parent, error)

    def _with_parent(self, run: TrackedRun) -> list[TrackedRun]:
        """A stage's run and the pipeline's, which shows everything at one glance."""
        return [run, self._parent] if self._parent else [run]
