"""What training costs beside its steps: several workers, large tables, Ray Train around the loop, events on disk.

    .venv/bin/python benchmarks/training.py tables --items 2000000 --dim 64 --repeat 3 --json build/tables.json
    RAYREC_BENCH_DATA=DATA .venv/bin/python benchmarks/training.py ray --repeat 3 --json build/ray.json
    .venv/bin/python benchmarks/training.py workers --repeat 3 --json build/workers.json
    .venv/bin/python benchmarks/training.py streamed --users 10000 40000 160000 --repeat 3 --json build/streamed.json

`tables`: a step of SASRec with in-batch negatives and row-wise Adagrad, two gloo processes of one thread each, on
made-up histories. Sparse and dense gradients of the item table take turns. Bytes are what the loopback interface
carried. Needs no Ray.

`workers`: a step of SASRec (64 numbers an item, two blocks, 128 users with 200 targets each) on one to four gloo
processes of one thread each, of which this machine should have cores for. Needs no Ray.

`ray`: epochs of SASRec (64 numbers an item, two blocks, one thread) on MovieLens 1M, by one worker of Ray Train and by
the same loop in a process that knows no Ray. An epoch is its steps, its validation and what it waits for checkpoints.
What is left of the stage is the start of the worker, loading, the export of the model and its publication.

`streamed`: HSTU (32 numbers an item, one block, one thread) on made-up logs of 100 events a user, which are held in
memory, or on disk as a quarter of what they take is allowed (`training.memory_mb`). Each run has a process of its own,
which loads the view, as the train stage does, and takes so many steps. Memory is the most that the process held, less
what it held before it loaded the view: pages of files count while it holds them.

Programs take turns. Each prints one table of medians and writes JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import distributed, multiprocessing

from rayrec.features.histories import Histories
from rayrec.models.interactions import Interactions
from rayrec.models.objective import Objective
from rayrec.models.optimization import Optimization
from rayrec.models.sasrec import SASRec, SASRecConfig
from rayrec.training import learner
from rayrec.training.feed import feed_for
from rayrec.training.loop import shared
from rayrec.training.run import start
from rayrec.training.steps import Steps
from rayrec.training.world import World

if TYPE_CHECKING:
    from rayrec.training.job import TrainJob

USERS = 4096


# ---- steps of several workers


@dataclass(frozen=True)
class Case:
    """Steps that are measured.

    Attributes:
        workers: Gloo processes, of one thread each.
        items: Rows of the item table.
        model: Of SASRec.
        settings: Of the training.
        steps: How many, after two to warm up.
        sparse: Whether gradients of the item table are.
    """

    workers: int
    items: int
    model: SASRecConfig
    settings: Optimization
    steps: int
    sparse: bool = False


def work(rank: int, folder: str, case: Case) -> None:
    """A worker: two steps to warm up, then as many as are measured."""
    torch.set_num_threads(1)
    store = distributed.FileStore(f"{folder}/store", case.workers)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=case.workers)
    learner.LARGE_TABLE = 1 if case.sparse else case.items + 2
    torch.manual_seed(0)
    events = (USERS, case.model.max_length + 1)
    observed = Interactions(
        Histories.of(list(np.random.default_rng(0).integers(1, case.items + 1, events))), case.items
    )
    run = start(SASRec(case.model, case.items), observed, case.settings, World(rank, case.workers))
    taken = Steps(run, shared(run), feed_for(run.model, observed, case.settings, run.world.part_overhead))
    for _ in range(2):
        taken.take()
    distributed.barrier()
    began, carried = time.perf_counter(), loopback()
    for _ in range(case.steps):
        taken.take()
    distributed.barrier()
    if rank == 0:
        measured = {"seconds": (time.perf_counter() - began) / case.steps, "bytes": (loopback() - carried) / case.steps}
        Path(folder, "measured.json").write_text(json.dumps(measured))
    distributed.destroy_process_group()


def loopback() -> int:
    """Bytes that the loopback interface has carried so far."""
    (line,) = (line for line in Path("/proc/net/dev").read_text().splitlines() if line.strip().startswith("lo:"))
    return int(line.split()[1])


def measure(case: Case) -> dict[str, Any]:
    """One turn."""
    with tempfile.TemporaryDirectory(prefix="rayrec-training-") as folder:
        multiprocessing.spawn(work, (folder, case), nprocs=case.workers)
        return dict(json.loads(Path(folder, "measured.json").read_text()))


def tables(asked: argparse.Namespace) -> list[dict[str, Any]]:
    """Sparse and dense gradients of a large table on two workers, in turn."""
    model = SASRecConfig(dim=asked.dim, blocks=1, max_length=50)
    objective = Objective(loss="sampled-softmax", sampling="in-batch")
    settings = Optimization(batch_size=128, objective=objective, table_optimizer="row-wise-adagrad")
    case = Case(2, asked.items, model, settings, asked.steps)
    return [
        {"gradients": kind, "items": asked.items, **measure(replace(case, sparse=kind == "sparse"))}
        for kind in ("sparse", "dense") * asked.repeat
    ]


def workers(asked: argparse.Namespace) -> list[dict[str, Any]]:
    """One to four workers, in turn."""
    case = Case(1, 3416, SASRecConfig(dim=64, blocks=2, max_length=200), Optimization(batch_size=128), asked.steps)
    return [{"workers": number, **measure(replace(case, workers=number))} for number in (1, 2, 3, 4) * asked.repeat]


# ---- Ray Train around the loop


def by_ray(job: TrainJob, number: int) -> dict[str, Any]:
    """The train stage."""
    from rayrec.training.train import train_model

    entries: list[dict[str, float]] = []
    began = time.perf_counter()
    train_model(replace(job, bundle_name=f"bench-{number}"), f"bench-{number}", entries.append)
    return told("ray", time.perf_counter() - began, entries)


def plain(job: TrainJob) -> dict[str, Any]:
    """The loop in a process of its own."""
    began, context = time.perf_counter(), multiprocessing.get_context("spawn")
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=plain_here, args=(job, sending))
    process.start()
    entries = receiving.recv()
    process.join()
    return told("plain", time.perf_counter() - began, entries)


def plain_here(job: TrainJob, sending: Any) -> None:
    """What a worker of Ray Train does, but for Ray, checkpoints and reports."""
    from rayrec.models.registry import model_class
    from rayrec.training.job import interactions, load
    from rayrec.training.loop import train
    from rayrec.training.validation import validated_users, validator

    settings = job.recipe.training
    torch.set_num_threads(settings.threads or 1)
    sequences, dataset = load(job)
    torch.manual_seed(settings.seed)
    model = model_class(job.recipe.model.name)(job.recipe.model.config, len(sequences.item_keys))
    observed, world = interactions(job, sequences), World()
    run = start(model, observed, settings, world)
    feed = feed_for(model, observed, settings, world.part_overhead)
    train(run, feed, validator(job.recipe, validated_users(job, dataset, sequences), world), lambda run: None)
    sending.send(run.progress.history)


def told(program: str, seconds: float, entries: list[dict[str, float]]) -> dict[str, Any]:
    """What a run took: of the first epoch, which warms up, nothing counts."""
    epochs = [entry["seconds"] + entry["validation"] for entry in entries]
    # The wait for an epoch's checkpoint is told of, and within the seconds of, the one after it.
    return {"program": program, "epochs": epochs[1:], "outside": seconds - sum(epochs), "entries": entries}


def ray_train(asked: argparse.Namespace) -> list[dict[str, Any]]:
    """Ray Train and the plain loop, in turn, on a cluster that is warm."""
    from rayrec.artifacts import Storage
    from rayrec.cluster import connected
    from rayrec.data.prepare import prepare
    from rayrec.recipe_files import parse_recipe
    from rayrec.training.job import TrainJob

    data = Path(os.environ.get("RAYREC_BENCH_DATA", Path(__file__).parents[2] / "shared" / "data"))
    columns = {"user": "user_id", "item": "item_id", "timestamp": "timestamp"}
    source = {"path": str(data / "ml-1m" / "ratings.parquet"), "columns": columns}
    values = {
        "name": "bench",
        "data": {"sources": [source]},
        "model": {"name": "sasrec", "dim": 64, "blocks": 2, "max_length": 200},
        "training": {"epochs": asked.epochs, "patience": asked.epochs, "threads": 1, "gpus": "no"},
    }
    recipe, results = parse_recipe(values), []
    with tempfile.TemporaryDirectory(prefix="rayrec-training-") as folder, connected():
        storage = Storage.open(folder)
        prepared = prepare(recipe, storage)
        job = TrainJob(recipe, (prepared.dataset.name, prepared.dataset.number), prepared.view, storage, "bench")
        for number in range(asked.repeat):
            results += [by_ray(job, number), plain(job)]
    return results


# ---- events in memory and on disk


def prepared_log(folder: Path, users: int) -> TrainJob:
    """Users who take 100 of 5,000 items, a quarter of an hour apart."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from rayrec.artifacts import Storage
    from rayrec.data.prepare import prepare
    from rayrec.recipe_files import parse_recipe
    from rayrec.training.job import TrainJob

    random, path = np.random.default_rng(0), folder / f"{users}.parquet"
    who = np.repeat(np.arange(users), 100)
    when = 1_600_000_000 + np.tile(np.arange(100), users) * 900 + who
    pq.write_table(pa.table({"user": who, "item": random.integers(0, 5000, len(who)), "time": when}), path)
    values = {
        "name": f"bench-{users}",
        "data": {"sources": [{"path": str(path), "columns": {"user": "user", "item": "item", "timestamp": "time"}}]},
        "model": {"name": "hstu", "dim": 32, "blocks": 1, "heads": 1, "max_length": 100},
        "training": {"threads": 1, "gpus": "no"},
    }
    recipe, storage = parse_recipe(values), Storage.open(folder)
    found = prepare(recipe, storage)
    return TrainJob(recipe, (found.dataset.name, found.dataset.number), found.view, storage, "bench")


def some_steps(job: TrainJob, memory: float, steps: int, sending: Any) -> None:
    """Load the view, take steps, tell what it took."""
    from rayrec.models.registry import model_class
    from rayrec.training.job import interactions, load
    from rayrec.training.validation import validated_users, validator

    settings, world = job.recipe.training, World()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    before, began = world.memory, time.perf_counter()
    sequences, dataset = load(job, memory)
    model = model_class(job.recipe.model.name)(job.recipe.model.config, len(sequences.item_keys))
    observed = interactions(job, sequences)
    run = start(model, observed, settings, world)
    feed = feed_for(model, observed, settings, world.part_overhead)
    validate = validator(job.recipe, validated_users(job, dataset, sequences), world)
    loaded = time.perf_counter()
    taken = Steps(run, shared(run), feed)
    for _ in range(steps):
        taken.take()
    taken.sum_up()
    del validate
    sending.send(
        {
            "load": loaded - began,
            "tokens": run.progress.sums["tokens"] / run.progress.sums["seconds"],
            "waited": run.progress.sums["data"] / run.progress.sums["seconds"],
            "loss": run.progress.sums["loss"],
            "memory": world.memory - before,
        }
    )


def streamed(asked: argparse.Namespace) -> list[dict[str, Any]]:
    """Events in memory and on disk, in turn, of logs of several sizes."""
    from rayrec.cluster import connected
    from rayrec.training.job import EVENT_BYTES

    results, context = [], multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="rayrec-training-") as folder, connected():
        for users in asked.users:
            job, bytes_of_all = prepared_log(Path(folder), users), users * 100 * EVENT_BYTES
            for kind in ("disk", "memory") * asked.repeat:
                receiving, sending = context.Pipe(duplex=False)
                allowed = bytes_of_all / 4 if kind == "disk" else float("inf")
                process = context.Process(target=some_steps, args=(job, allowed, asked.steps, sending))
                process.start()
                results.append({"events": kind, "users": users, "bytes": bytes_of_all, **receiving.recv()})
                process.join()
    return results


def show_streamed(results: list[dict[str, Any]]) -> None:
    """A table for each size of log; the same losses are shown by their being equal."""
    for users in dict.fromkeys(result["users"] for result in results):
        mine = [result for result in results if result["users"] == users]
        alike = "the same" if len({result["loss"] for result in mine}) == 1 else "NOT the same"
        title = f"{users * 100:,} events, {mine[0]['bytes'] / 1e6:,.0f} MB in memory; losses {alike}"
        columns: dict[str, Callable[[dict[str, Any]], float]] = {
            "tokens a second": lambda r: r["tokens"],
            "share of waiting for data": lambda r: r["waited"],
            "seconds to load": lambda r: r["load"],
            "MB held": lambda r: r["memory"] / 1e6,
        }
        show(title, "events", mine, columns)


# ---- all


def show(
    title: str, by: str, results: list[dict[str, Any]], columns: dict[str, Callable[[dict[str, Any]], float]]
) -> None:
    """One table of medians, and of the first of two rows as a share of the second."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for column in (by, *columns):
        table.add_column(column, justify="left" if column == by else "right")
    names = list(dict.fromkeys(result[by] for result in results))
    medians = {n: [statistics.median(of(r) for r in results if r[by] == n) for of in columns.values()] for n in names}
    for name, values in medians.items():
        table.add_row(str(name), *(f"{value:,.3f}" for value in values))
    if len(names) == 2:
        shares = [mine / whole for mine, whole in zip(*medians.values(), strict=True)]
        table.add_row(f"{names[0]} / {names[1]}", *(f"{share:.1%}" for share in shares))
    Console().print(table)


def show_tables(results: list[dict[str, Any]]) -> None:
    """A step, by the gradients of the item table."""
    columns: dict[str, Callable[[dict[str, Any]], float]] = {
        "seconds": lambda r: r["seconds"],
        "MB exchanged": lambda r: r["bytes"] / 1e6,
    }
    show(f"{results[0]['items']:,} items, two workers: a step", "gradients", results, columns)


def show_workers(results: list[dict[str, Any]]) -> None:
    """A step, by the number of workers."""
    columns: dict[str, Callable[[dict[str, Any]], float]] = {
        "seconds": lambda r: r["seconds"],
        "tokens a second": lambda r: 128 * 200 / r["seconds"],
        "MB exchanged": lambda r: r["bytes"] / 1e6,
    }
    show("SASRec, a step of 25,600 targets", "workers", results, columns)


def show_ray(results: list[dict[str, Any]]) -> None:
    """An epoch, by who runs the loop."""
    columns: dict[str, Callable[[dict[str, Any]], float]] = {
        "seconds an epoch": lambda r: statistics.median(r["epochs"]),
        "seconds outside": lambda r: r["outside"],
    }
    show("SASRec on MovieLens 1M, one worker, one thread", "program", results, columns)


PROGRAMS = {
    "tables": (tables, show_tables),
    "workers": (workers, show_workers),
    "ray": (ray_train, show_ray),
    "streamed": (streamed, show_streamed),
}


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=tuple(PROGRAMS))
    parser.add_argument("--items", type=int, default=2_000_000)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--steps", type=int, help="by default 5, with streamed 300")
    parser.add_argument("--users", type=int, nargs="+", default=[10_000, 40_000, 160_000])
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--json", type=Path, default=Path("build/training.json"))
    asked = parser.parse_args()
    asked.steps = asked.steps or (300 if asked.what == "streamed" else 5)
    measure, shown = PROGRAMS[asked.what]
    results = measure(asked)
    asked.json.parent.mkdir(parents=True, exist_ok=True)
    asked.json.write_text(json.dumps(results, indent=1))
    shown(results)


if __name__ == "__main__":
    main()
