"""A recipe at full length, over several seeds, beside popularity.

    make bench-seeds
    .venv/bin/python benchmarks/seeds.py --recipe movielens-100k --seeds 0 1 2 --json build/seeds.json

Each run is `rayrec run`, in a process and a Ray of its own. Prints one table and writes JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

METRICS = ("hr@10", "ndcg@10")


def run(recipe: str, seed: int, home: str, overrides: list[str]) -> dict[str, Any]:
    """One run's JSON."""
    chosen = [item for override in [f"training.seed={seed}", *overrides] for item in ("--set", override)]
    command = [sys.executable, "-m", "rayrec", "run", recipe, *chosen, "--json"]
    done = subprocess.run(
        command, env={**os.environ, "RAYREC_HOME": home}, stdout=subprocess.PIPE, check=True, text=True
    )
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="movielens-100k")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    parser.add_argument("--json", type=Path, default=Path("build/seeds.json"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="rayrec-seeds-") as home:
        results = [run(arguments.recipe, seed, home, arguments.overrides) for seed in arguments.seeds]
    table = Table(title=f"{arguments.recipe} {' '.join(arguments.overrides)}: test fold, full ranking")
    for column in ("seed", *METRICS, "training s"):
        table.add_column(column, justify="right")
    for seed, result in zip(arguments.seeds, results, strict=True):
        scores = [f"{result['metrics']['test'][metric]:.4f}" for metric in METRICS]
        table.add_row(str(seed), *scores, f"{result['stages']['train']['seconds']:.0f}")
    means = {metric: statistics.mean(r["metrics"]["test"][metric] for r in results) for metric in METRICS}
    baseline = {metric: results[0]["baseline"]["test"][metric] for metric in METRICS}
    table.add_row("mean", *(f"{means[metric]:.4f}" for metric in METRICS), "")
    table.add_row("popularity", *(f"{baseline[metric]:.4f}" for metric in METRICS), "")
    Console().print(table)
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps({"mean": means, "popularity": baseline, "runs": results}, indent=1))


if __name__ == "__main__":
    main()
