"""Sweeps, measured: what a trial costs beside its training, what it holds, and what early stopping saves.

    .venv/bin/python benchmarks/tuning.py overhead memory
    .venv/bin/python benchmarks/tuning.py asha --trials 16
    .venv/bin/python benchmarks/tuning.py record

`overhead` runs trials that are next to nothing (popularity), few and many: the difference is what one more costs.
`memory` measures, by the size of the log, what each of two processes comes to hold for itself (its unique set size) by
reading all that trials learn from, and the most that trial processes held, which is what they work with, too.
`asha` trains the same random trials to their end and under ASHA. `record` trains every point of a grid and writes
`tests/tuning/grid.json`, which the tests replay. Each prints one table; all write JSON.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from contextlib import suppress
from dataclasses import replace
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import ray
from pyarrow import parquet
from rich.console import Console
from rich.table import Table

from rayrec.artifacts import Storage
from rayrec.cluster import connected, prepare_environment
from rayrec.data.files import provide
from rayrec.data.prepare import prepare
from rayrec.recipe import Recipe
from rayrec.recipe_files import load_recipe, parse_recipe
from rayrec.sweep import begin, plan
from rayrec.tracking import Tracker
from rayrec.training.job import TrainJob
from rayrec.training.local import LocalTraining, Observed, observe
from rayrec.tuning.follower import Sweep
from rayrec.tuning.objectives import parse_objectives
from rayrec.tuning.options import Options, Search
from rayrec.tuning.records import TrialRecord
from rayrec.tuning.search import search
from rayrec.tuning.space import changed, parse_space

GRID: dict[str, list[Any]] = {
    "training.learning_rate": [round(float(rate), 6) for rate in np.geomspace(0.0003, 0.03, 10)],
    "training.batch_size": [16, 32, 64, 128, 256],
    "model.dropout": [0.0, 0.2, 0.4, 0.6],
}
EVENTS = 100
"""Of each user of a made-up log."""
TABULATED = (
    *("model.dim=32", "model.blocks=1", "model.max_length=30"),
    *("training.epochs=4", "training.averaging=0", "training.threads=1"),
)


class Nobody:
    """Watches, and says nothing."""

    def known(self, records: list[TrialRecord]) -> None:
        """What there was before."""

    def trial(self, record: TrialRecord) -> None:
        """A trial has gone on."""


class Peaks(Nobody):
    """Remembers what trial processes held."""

    def __init__(self) -> None:
        self.unique: list[int] = []

    def trial(self, record: TrialRecord) -> None:
        """A trial has gone on: look at all of them."""
        own = psutil.Process()
        for process in own.children(recursive=True) or psutil.process_iter():
            # Others may end while they are looked at.
            with suppress(psutil.NoSuchProcess):
                if any(title in " ".join(process.cmdline()[:1]) for title in ("LocalTrial", "Trainable")):
                    self.unique.append(process.memory_full_info().uss)


def planned(recipe: Recipe, storage: Storage, space: dict[str, Any], **options: Any) -> Sweep:
    """A sweep of its own, with no trials yet."""
    provide(recipe, storage)
    prepared = prepare(recipe, storage)
    chosen = Options(**options)
    wanted = Search(parse_space(space, "space"), chosen, parse_objectives(["ndcg@10"], ()))
    tracker = Tracker(recipe.name)
    sweep = plan(recipe, wanted, prepared.dataset, prepared.view, tracker.begin("tune"), tracker, resume=False)
    begin(sweep, resume=False)
    return sweep


def overhead(storage: Storage) -> list[dict[str, Any]]:
    """Seconds that one more trial takes."""
    space, seconds = {"model.half_life": {"uniform": [1.0, 1000.0]}}, {}
    for trials in (4, 44):
        recipe = load_recipe("movielens-100k", ["model.name=popularity"])
        sweep = planned(recipe, storage, space, trials=trials, algorithm="random", parallel=2)
        began = time.perf_counter()
        search(sweep, Nobody())
        seconds[trials] = time.perf_counter() - began
    return [{"trials": n, "seconds": s} for n, s in seconds.items()] + [
        {"trials": "one more", "seconds": (seconds[44] - seconds[4]) / 40}
    ]


class Reader:
    """A process that reads what trials learn from."""

    def __init__(self) -> None:
        # What they read is made of classes whose modules hold memory, too.
        import_module("rayrec.training.local")
        self._before = psutil.Process().memory_full_info().uss
        self._observed: Observed | None = None

    def read(self, reference: list[Any]) -> None:
        """All of it: pages that nobody touches are in no memory."""
        self._observed = ray.get(reference[0])
        histories = self._observed.interactions.histories, self._observed.users.past, self._observed.users.future
        for array in (array for history in histories for array in (history.offsets, history.items, history.times)):
            int(array.max())

    def more(self) -> float:
        """MB that the process holds for itself, and did not before."""
        return float(psutil.Process().memory_full_info().uss - self._before) / 1e6


def memory(storage: Storage) -> list[dict[str, Any]]:
    """MB that each of two trial processes holds for itself, by how many events they learn from."""
    rows = []
    for users in (1_000, 80_000):
        recipe, peaks = made_up(storage, users), Peaks()
        # What a trial works with while it fits and measures counts, too.
        space = {"training.seed": {"int": [1, 1000]}}
        sweep = planned(recipe, storage, space, trials=6, algorithm="random", parallel=2)
        held = read_by_two(sweep)
        search(sweep, peaks)
        events = users * EVENTS
        # An item's number and a time.
        row = {"events": events, "MB of events": events * 12 / 1e6, "unique MB to read them": held}
        rows.append(row | {"unique MB a trial": max(peaks.unique) / 1e6})
    return rows


def read_by_two(sweep: Sweep) -> float:
    """MB that each of two processes holds for itself, once both have read what trials learn from."""
    reference = ray.remote(observe).remote(sweep.job)
    # Without a CPU of their own: one must be left for what they read.
    readers = [ray.remote(num_cpus=0)(Reader).remote() for _ in range(2)]
    # Before both have, a page is in the first one's tables alone, and counts as its own.
    ray.get([reader.read.remote([reference]) for reader in readers])
    held = max(ray.get([reader.more.remote() for reader in readers]))
    for reader in readers:
        ray.kill(reader)
    return float(held)


def made_up(storage: Storage, users: int) -> Recipe:
    """A recipe of a log with so many users."""
    rng, rows = np.random.default_rng(0), users * EVENTS
    columns = {
        "user": np.repeat(np.arange(users), EVENTS),
        "item": rng.zipf(1.3, rows) % 5_000,
        "timestamp": rng.integers(1_600_000_000, 1_700_000_000, rows),
    }
    log = Path(storage.root) / f"made-up-{users}.parquet"
    parquet.write_table(pa.table(columns), log)
    source = {"path": str(log), "columns": {name: name for name in columns}}
    return parse_recipe({"name": f"made-up-{users}", "data": {"sources": [source]}, "model": {"name": "popularity"}})


def asha(storage: Storage, trials: int) -> list[dict[str, Any]]:
    """The same random trials to their end and under ASHA: trials whose learning rate falls to 0 over equal budgets."""
    rows = []
    space = {
        "training.learning_rate": {"log_uniform": [0.0003, 0.03]},
        "model.dropout": {"uniform": [0.0, 0.7]},
        "model.dim": {"choice": [16, 32, 64]},
    }
    budget = [
        *("training.epochs=36", "training.patience=36", "training.decay=linear"),
        *("training.batch_size=64", "training.averaging=0"),
    ]
    for scheduler in ("none", "asha"):
        options = {"trials": trials, "algorithm": "random", "scheduler": scheduler, "grace_epochs": 4, "parallel": 2}
        sweep = planned(load_recipe("movielens-100k", budget), storage, space, **options)
        began = time.perf_counter()
        records = search(sweep, Nobody())
        best = max((record for record in records if record.state == "done"), key=lambda record: record.best)
        rows.append(
            {
                "scheduler": scheduler,
                "best": best.best,
                "of trial": best.number,
                "epochs": sum(len(record.curve) for record in records),
                "seconds": time.perf_counter() - began,
            }
        )
    return rows


def record(storage: Storage, target: Path) -> list[dict[str, Any]]:
    """Train every point of the grid; what is there already is kept."""
    recipe = load_recipe("movielens-100k", TABULATED)
    provide(recipe, storage)
    prepared = prepare(recipe, storage)
    version = prepared.dataset.name, prepared.dataset.number
    observed = observe(TrainJob(recipe, version, prepared.view, storage, recipe.name))
    found: dict[str, float] = json.loads(target.read_text())["values"] if target.exists() else {}
    for values in product(*GRID.values()):
        key = json.dumps(values)
        if key not in found:
            trial = changed(recipe, dict(zip(GRID, values, strict=True)))
            training = LocalTraining(replace_patience(trial), observed, 1, None)
            while not training.over:
                training.epoch()
            found[key] = max(round(entry["ndcg@10"], 6) for entry in training.history)
    command = "benchmarks/tuning.py record"
    target.write_text(
        json.dumps({"command": command, "recipe": list(TABULATED), "grid": GRID, "values": found}, indent=0)
    )
    return [{"points": len(found), "best": max(found.values()), "median": float(np.median(list(found.values())))}]


def replace_patience(recipe: Recipe) -> Recipe:
    """So that every point has all its epochs."""
    return recipe.model_copy(update={"training": replace(recipe.training, patience=recipe.training.epochs)})


def show(name: str, rows: list[dict[str, Any]]) -> None:
    """One table."""
    table = Table(title=name, title_justify="left")
    for column in rows[0]:
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(*(f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values()))
    Console().print(table)


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="+", choices=["overhead", "memory", "asha", "record"])
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--json", type=Path, default=Path("build/tuning.json"))
    arguments = parser.parse_args()
    prepare_environment()
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {}
    grid = Path(__file__).parents[1] / "tests" / "tuning" / "grid.json"
    with tempfile.TemporaryDirectory(prefix="rayrec-tuning-") as folder, connected():
        storage = Storage.open(folder)
        for name in arguments.what:
            if name == "record":
                results[name] = record(storage, grid)
            else:
                results[name] = asha(storage, arguments.trials) if name == "asha" else globals()[name](storage)
            show(name, results[name])
            arguments.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
