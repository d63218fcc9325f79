"""Recipes over seeds, beside what was published and beside other libraries on the same view.

    make bench-quality
    .venv/bin/python benchmarks/quality.py --suites movielens-100k --models sasrec --seeds 0 1 2
    RAYREC_BENCH_DATA=DATA .venv/bin/python benchmarks/quality.py --suites gowalla --models gf-cf
    .venv/bin/python benchmarks/quality.py --suites movielens-1m --peers PYTHON

Each run is `rayrec run`, in a process and a Ray of its own. `--peers PYTHON` is an interpreter that has
implicit==0.7.3 and rectools==0.19.0; benchmarks/peers.py is run with it, on the view that rayrec prepared, and measures
by a few lines of its own. Suites whose data is not there are skipped with a message. Prints a table a suite and writes
JSON; what the file holds of other models is kept, so that long suites can be run a model at a time.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
PAIRWISE = ("training.learning_rate=0.003", "training.batch_size=64")
"""What small models trained by gradient want on these logs; the defaults are SASRec's."""
GRAPH = ("training.learning_rate=0.02", "training.batch_size=8192")
"""The same for LightGCN, whose steps go over the whole graph."""
REFIT = ("training.refit=validation",)
"""Published figures of simple models on MovieLens 1M are of models that learnt from all but the last event."""


@dataclass(frozen=True)
class Entry:
    """A model of a suite.

    Attributes:
        overrides: Settings beside the recipe's.
        published: Figures of others for the metrics of the suite, from papers or runs of the libraries named.
        peers: Models of other libraries to run on the same view; see benchmarks/peers.py.
        seeded: Whether the seed changes anything.
    """

    overrides: tuple[str, ...] = ()
    published: tuple[float, ...] = ()
    peers: tuple[str, ...] = ()
    seeded: bool = False


@dataclass(frozen=True)
class Suite:
    """Models on one data set.

    Attributes:
        recipe: The packaged recipe.
        metrics: What the table shows.
        folder: A folder of RAYREC_BENCH_DATA that has to be there; None where the recipe fetches its data.
        refit: Whether what is measured has learnt from validation events too.
        models: By name.
    """

    recipe: str
    metrics: tuple[str, ...]
    folder: str | None
    refit: bool
    models: dict[str, Entry] = field(default_factory=dict)


SUITES = {
    "movielens-100k": Suite(
        "movielens-100k",
        ("hr@10", "ndcg@10"),
        None,
        False,
        {
            "popularity": Entry(),
            "content": Entry(),
            "item-knn": Entry(),
            "user-knn": Entry(),
            "svd": Entry(),
            "als": Entry(seeded=True),
            "gf-cf": Entry(),
            "ease": Entry(),
            "bpr": Entry(PAIRWISE, seeded=True),
            "item2vec": Entry(PAIRWISE, seeded=True),
            "lightgcn": Entry(GRAPH, seeded=True),
            "sasrec": Entry(seeded=True),
        },
    ),
    "movielens-1m": Suite(
        "movielens-1m-classics",
        ("hr@10", "ndcg@10"),
        None,
        True,
        {
            "popularity": Entry(published=(0.0364, 0.0179)),
            "content": Entry(),
            "item-knn": Entry(peers=("implicit-bm25",)),
            "user-knn": Entry(),
            "svd": Entry(),
            "als": Entry(published=(0.0967, 0.0493), peers=("implicit-als",), seeded=True),
            "gf-cf": Entry(),
            "ease": Entry(published=(0.1099, 0.0544), peers=("rectools-ease",)),
            "bpr": Entry((*PAIRWISE, "training.epochs=40"), (0.0776, 0.0397), ("implicit-bpr",), seeded=True),
            "item2vec": Entry((*PAIRWISE, "training.epochs=20"), seeded=True),
        },
    ),
    "gowalla": Suite(
        "gowalla",
        ("recall@20", "ndcg@20"),
        "gowalla",
        False,
        {
            "popularity": Entry(),
            "item-knn": Entry(peers=("implicit-bm25",)),
            "gf-cf": Entry(published=(0.1849, 0.1518)),
            "lightgcn": Entry(published=(0.1830, 0.1554), seeded=True),
        },
    ),
}


def run(suite: Suite, model: str, seed: int, home: str, extra: list[str]) -> dict[str, Any]:
    """One run: the suite's metrics on the test fold, with their intervals, and seconds."""
    learn = REFIT if suite.refit else ()
    # Of no use here, and with it the recipe's own model keeps its settings.
    chosen = (f"model.name={model}", f"training.seed={seed}", *learn, *suite.models[model].overrides, *extra)
    command = [sys.executable, "-m", "rayrec", "run", suite.recipe, *(item for o in chosen for item in ("--set", o))]
    environment = {**os.environ, "RAYREC_HOME": home}
    done = subprocess.run([*command, "--json"], env=environment, stdout=subprocess.PIPE, check=True, text=True)
    result = json.loads(done.stdout)
    test = result["metrics"]["test_refit" if suite.refit else "test"]
    stages = ["baseline" if model == "popularity" else "train", *(["refit"] if suite.refit else [])]
    return {
        "seed": seed,
        "metrics": {metric: test[metric] for metric in suite.metrics},
        "intervals": {metric: test["intervals"][metric] for metric in suite.metrics},
        "users": test["users"],
        "train_seconds": sum(result["stages"][stage]["seconds"] for stage in stages),
        "evaluate_seconds": result["stages"]["evaluate"]["seconds"],
    }


def peers(suite: Suite, names: list[str], python: str, home: str) -> dict[str, Any]:
    """Other libraries on the view that the recipe made."""
    view = Path(home) / f"{suite.recipe}.npz"
    export = [sys.executable, str(HERE / "bare.py"), "export", suite.recipe, str(view)]
    subprocess.run(export, env={**os.environ, "RAYREC_HOME": home}, check=True)
    learn = ["--learn-validation"] if suite.refit else []
    command = [python, str(HERE / "peers.py"), str(view), *names, "--metrics", *suite.metrics, *learn]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def show(name: str, suite: Suite, results: dict[str, Any]) -> None:
    """One table: means over seeds, the first seed's interval, what was published, what others give."""
    table = Table(title=f"{name}: test fold, full ranking", title_justify="left")
    table.add_column("model")
    for metric in suite.metrics:
        table.add_column(metric, justify="right")
    for column in ("seeds", "95 % of users", "published", "train s", "evaluate s"):
        table.add_column(column, justify="right")
    for model, entry in suite.models.items():
        if not (found := results["models"].get(model)):
            continue
        means = [statistics.mean(r["metrics"][metric] for r in found) for metric in suite.metrics]
        low, high = found[0]["intervals"][suite.metrics[-1]]
        published = " / ".join(f"{value:.4f}" for value in entry.published)
        seconds = [statistics.mean(r[key] for r in found) for key in ("train_seconds", "evaluate_seconds")]
        cells = [f"{value:.4f}" for value in means] + [str(len(found)), f"{low:.4f} to {high:.4f}", published]
        table.add_row(model, *cells, *(f"{value:.0f}" for value in seconds))
        for peer in entry.peers:
            if theirs := results["peers"].get(peer):
                scores = [f"{theirs['metrics'][metric]:.4f}" for metric in suite.metrics]
                table.add_row(f"  {peer}", *scores, "", "", "", f"{theirs['seconds']:.0f}", "")
    Console(width=120).print(table)


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suites", nargs="+", choices=SUITES, default=list(SUITES))
    parser.add_argument("--models", nargs="*", help="By default all of the suite; none: only the peers.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    parser.add_argument("--peers", metavar="PYTHON")
    parser.add_argument("--json", type=Path, default=Path("build/quality.json"))
    arguments = parser.parse_args()
    stored = json.loads(arguments.json.read_text()) if arguments.json.exists() else {}
    data = Path(os.environ.setdefault("RAYREC_BENCH_DATA", str(HERE.parent.parent / "shared" / "data")))
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="rayrec-quality-") as home:
        for name in arguments.suites:
            suite = SUITES[name]
            if suite.folder and not (data / suite.folder).is_dir():
                print(f"{name}: skipped, there is no {data / suite.folder} (RAYREC_BENCH_DATA names the folder)")
                continue
            results = stored.setdefault(name, {"models": {}, "peers": {}})
            for model in suite.models if arguments.models is None else arguments.models:
                seeds = arguments.seeds if suite.models[model].seeded else [0]
                results["models"][model] = [run(suite, model, seed, home, arguments.overrides) for seed in seeds]
                arguments.json.write_text(json.dumps(stored, indent=1))
            if arguments.peers:
                wanted = [peer for entry in suite.models.values() for peer in entry.peers]
                results["peers"] |= peers(suite, wanted, arguments.peers, home)
                arguments.json.write_text(json.dumps(stored, indent=1))
            show(name, suite, results)


if __name__ == "__main__":
    main()
