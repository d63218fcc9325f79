"""Full ranking alone: how long it takes to rank the held-out items of all users among all items, and in what memory.

    make bench-ranking
    .venv/bin/python benchmarks/ranking.py --sizes 6040x3416 10000x1000000 --json build/ranking.json

Users and items are made up: histories of 100 items on average and one held-out item each, vectors of 64 numbers, a
user's vector the mean of their items'. Seconds include these vectors, the scores (a matrix product), ranks and the best
20; memory is the peak resident size of a process of its own, and in brackets what its size had been before. No Ray.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from rayrec.evaluation.full_ranking import HeldOut, rank_users
from rayrec.features.histories import Histories

DIM, EVENTS, TOP = 64, 100, 20
MIB = 1 << 10
"""Of what `resource` counts in: KiB on Linux."""


def made_up(users: int, items: int) -> tuple[HeldOut, torch.Tensor]:
    """Users with a past and one item to find, and the vectors of items."""
    random = np.random.default_rng(0)
    lengths = np.maximum(2, random.exponential(EVENTS, users).astype(np.int64))
    past = Histories.grouped(lengths, random.integers(1, items + 1, lengths.sum()))
    future = Histories.grouped(np.ones(users, np.int64), random.integers(1, items + 1, users))
    return HeldOut.of(past, future), torch.randn(items + 1, DIM, generator=torch.Generator().manual_seed(0))


def measure(users: int, items: int, threads: int, repeat: int) -> dict[str, Any]:
    """Seconds and memory of one size."""
    torch.set_num_threads(threads)
    held_out, vectors = made_up(users, items)
    vectors[0] = 0

    def score(history: np.ndarray) -> torch.Tensor:
        rows = torch.from_numpy(history)
        summed = torch.nn.functional.embedding_bag(rows, vectors, mode="sum", padding_idx=0)
        return summed / (rows != 0).sum(dim=1, keepdim=True) @ vectors.T

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = []
    for _ in range(repeat):
        began = time.perf_counter()
        ranked = rank_users(score, held_out, items, 1 << 14, TOP)
        seconds.append(time.perf_counter() - began)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "users": users,
        "items": items,
        "threads": threads,
        "ranked": len(ranked.ranks),
        "seconds": statistics.median(seconds),
        "peak_mib": peak / MIB,
        "before_mib": before / MIB,
    }


def main() -> None:
    """Measure each size in a process of its own, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["6040x3416", "10000x1000000"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--json", type=Path, default=Path("build/ranking.json"))
    arguments = parser.parse_args()
    results = []
    table = Table(title=f"full ranking, {arguments.threads} threads", title_justify="left")
    for column in ("users", "items", "seconds", "peak MiB (before)"):
        table.add_column(column, justify="right")
    for size in arguments.sizes:
        users, items = (int(number) for number in size.split("x"))
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            found = pool.apply(measure, (users, items, arguments.threads, arguments.repeat))
        results.append(found)
        memory = f"{found['peak_mib']:,.0f} ({found['before_mib']:,.0f})"
        table.add_row(f"{users:,}", f"{items:,}", f"{found['seconds']:.2f}", memory)
    Console().print(table)
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
