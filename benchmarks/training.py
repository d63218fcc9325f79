"""What large tables cost to train on two workers: a step's time, and the bytes that workers exchange.

    .venv/bin/python benchmarks/training.py --items 2000000 --dim 64 --repeat 3 --json build/training.json

SASRec with in-batch negatives and row-wise Adagrad, two gloo processes of one thread each, on made-up histories. Sparse
and dense gradients of the item table take turns. Bytes are what the loopback interface carried. Needs no Ray. Prints
one table of medians and writes JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

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

WORKERS, USERS, EVENTS = 2, 4096, 51


def step(rank: int, folder: str, kind: str, items: int, dim: int, steps: int) -> None:
    """A worker: two steps to warm up, then as many as are measured."""
    torch.set_num_threads(1)
    store = distributed.FileStore(f"{folder}/store", WORKERS)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=WORKERS)
    learner.LARGE_TABLE = 1 if kind == "sparse" else items + 2
    torch.manual_seed(0)
    histories = Histories.of(list(np.random.default_rng(0).integers(1, items + 1, (USERS, EVENTS))))
    objective = Objective(loss="sampled-softmax", sampling="in-batch")
    settings = Optimization(batch_size=128, objective=objective, table_optimizer="row-wise-adagrad")
    model = SASRec(SASRecConfig(dim=dim, blocks=1, max_length=EVENTS - 1), items)
    run = start(model, Interactions(histories, items), settings, World(rank, WORKERS))
    feed = feed_for(model, Interactions(histories, items), settings, run.world.part_overhead)
    taken = Steps(run, shared(run), feed)
    for _ in range(2):
        taken.take()
    distributed.barrier()
    began, carried = time.perf_counter(), loopback()
    for _ in range(steps):
        taken.take()
    distributed.barrier()
    if rank == 0:
        measured = {"seconds": (time.perf_counter() - began) / steps, "bytes": (loopback() - carried) / steps}
        Path(folder, "measured.json").write_text(json.dumps(measured))
    distributed.destroy_process_group()


def loopback() -> int:
    """Bytes that the loopback interface has carried so far."""
    (line,) = (line for line in Path("/proc/net/dev").read_text().splitlines() if line.strip().startswith("lo:"))
    return int(line.split()[1])


def measure(kind: str, items: int, dim: int, steps: int) -> dict[str, Any]:
    """One turn."""
    with tempfile.TemporaryDirectory(prefix="rayrec-training-") as folder:
        multiprocessing.spawn(step, (folder, kind, items, dim, steps), nprocs=WORKERS)
        return {"gradients": kind, **json.loads(Path(folder, "measured.json").read_text())}


def main() -> None:
    """Run, print, write."""
    from rich.console import Console
    from rich.table import Table

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=2_000_000)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--json", type=Path, default=Path("build/training.json"))
    asked = parser.parse_args()
    results = [measure(kind, asked.items, asked.dim, asked.steps) for kind in ("sparse", "dense") * asked.repeat]
    asked.json.parent.mkdir(parents=True, exist_ok=True)
    asked.json.write_text(json.dumps(results, indent=1))
    table = Table(title=f"{asked.items:,} x {asked.dim}, two workers: a step", title_justify="left")
    for column in ("gradients", "seconds", "of dense", "MB exchanged", "of dense"):
        table.add_column(column, justify="left" if column == "gradients" else "right")
    medians = {
        kind: [statistics.median(r[key] for r in results if r["gradients"] == kind) for key in ("seconds", "bytes")]
        for kind in ("sparse", "dense")
    }
    for kind, (seconds, carried) in medians.items():
        shares = [f"{mine / whole:.1%}" for mine, whole in zip((seconds, carried), medians["dense"], strict=True)]
        table.add_row(kind, f"{seconds:.3f}", shares[0], f"{carried / 1e6:,.1f}", shares[1])
    Console().print(table)


if __name__ == "__main__":
    main()
