r"""Training without Ray, MLflow or pydantic, for machines that have torch only (a bare GPU machine).

    .venv/bin/python benchmarks/bare.py export movielens-100k build/view.npz    # where rayrec is installed
    PYTHONPATH=platform python3 benchmarks/bare.py train build/view.npz --model sasrec --seeds 0 1 \
        --architecture '{"max_length": 100}' --optimization '{"batch_size": 32}'

`export` prepares a recipe's data and writes its view to one file. `train` runs the same loop, feed and full ranking as
the train stage, on a GPU if there is one. It prints one table and writes JSON.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rayrec.evaluation.full_ranking import HeldOut, rank_users
from rayrec.features.histories import Histories
from rayrec.inference.runtime import TorchRuntime
from rayrec.metrics.ranking import parse_metric, ranking_metrics
from rayrec.models.base import Recommender
from rayrec.models.interactions import Interactions
from rayrec.models.optimization import Optimization
from rayrec.models.registry import model_class
from rayrec.training.feed import feed_for
from rayrec.training.loop import Run, World, start, train

FOLDS = {"validation": ((0,), 1), "test": ((0, 1), 2)}


def export(recipe: str, target: Path) -> None:
    """Prepare a recipe's data and write its view."""
    from rayrec.artifacts import Storage
    from rayrec.cluster import connected
    from rayrec.data.prepare import prepare
    from rayrec.data.views import load_view
    from rayrec.recipe_files import load_recipe

    with connected():
        prepared = prepare(load_recipe(recipe), Storage.open())
    view = load_view(prepared.dataset, prepared.view)
    target.parent.mkdir(parents=True, exist_ok=True)
    histories = view.histories
    np.savez_compressed(
        target, offsets=histories.offsets, items=histories.items, folds=view.folds, num_items=len(view.item_keys)
    )


def held_out(histories: Histories, folds: np.ndarray, fold: str) -> HeldOut:
    """Past and future of the users with events in a fold."""
    past_folds, future_fold = FOLDS[fold]
    past, future = histories.keep(np.isin(folds, past_folds)), histories.keep(folds == future_fold)
    return HeldOut.of(past, future)


def train_once(view: dict[str, np.ndarray], name: str, architecture: dict[str, Any], settings: Optimization) -> Any:
    """One run: test metrics of the best epoch, and what it cost."""
    histories = Histories(view["offsets"], view["items"])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(settings.seed)
    found = model_class(name)
    model = found(found.Config(**architecture), int(view["num_items"]))
    k = parse_metric(settings.metric)[1]
    folds = {fold: held_out(histories, view["folds"], fold) for fold in FOLDS}
    best: dict[str, float] = {}

    def measure(model: Recommender, fold: str) -> dict[str, float]:
        if not len(folds[fold]):
            return {}
        ranked = rank_users(TorchRuntime(model).on_device, folds[fold], model.num_items, model.max_length, k)
        return ranking_metrics(ranked.ranks, [k])

    def after_epoch(run: Run) -> None:
        if run.progress.best_epoch == run.progress.epoch:
            best.update(measure(run.judged, "test"))

    trained = histories.keep(view["folds"] == 0)
    world = World(device=device)
    observed = Interactions(trained, model.num_items)
    feed = feed_for(model, observed, settings, world.part_overhead)
    began = time.perf_counter()
    run = start(model, observed, settings, world)
    progress = train(run, feed, lambda model: measure(model, "validation"), after_epoch)
    seconds = time.perf_counter() - began
    rate = float(np.median([entry["tokens_per_second"] for entry in progress.history]))
    peak = torch.cuda.max_memory_allocated() / 2**20 if device.type == "cuda" else None
    return {
        "seed": settings.seed,
        "device": str(device),
        "epochs": progress.epoch,
        "best_epoch": progress.best_epoch,
        "validation": progress.best,
        "test": best,
        "seconds": seconds,
        "tokens_per_second": rate,
        "gpu_peak_mib": peak,
    }


def report(results: list[Any], metric: str) -> None:
    """One table."""
    k = parse_metric(metric)[1]
    heads = ("seed", "epochs", "validation", f"hr@{k}", f"ndcg@{k}", "s", "tokens/s")
    print("{:>4} {:>6} {:>10} {:>8} {:>8} {:>7} {:>9}".format(*heads))
    for r in results:
        scores = f"{r['validation']:>10.4f} {r['test'][f'hr@{k}']:>8.4f} {r['test'][f'ndcg@{k}']:>8.4f}"
        print(f"{r['seed']:>4} {r['epochs']:>6} {scores} {r['seconds']:>7.1f} {r['tokens_per_second']:>9.0f}")
    for name in (f"hr@{k}", f"ndcg@{k}"):
        print(f"mean {name} {np.mean([r['test'][name] for r in results]):.4f}")


def main() -> None:
    """Export or train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    exporting = commands.add_parser("export")
    exporting.add_argument("recipe")
    exporting.add_argument("target", type=Path)
    training = commands.add_parser("train")
    training.add_argument("view", type=Path)
    training.add_argument("--model", default="sasrec")
    training.add_argument("--architecture", type=json.loads, default={})
    training.add_argument("--optimization", type=json.loads, default={})
    training.add_argument("--seeds", type=int, nargs="+", default=[0])
    training.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "export":
        export(arguments.recipe, arguments.target)
        return
    with np.load(arguments.view, allow_pickle=False) as stored:
        view = {name: stored[name] for name in stored.files}
    settings = Optimization(**arguments.optimization)
    runs = [dataclasses.replace(settings, seed=seed) for seed in arguments.seeds]
    results = [train_once(view, arguments.model, arguments.architecture, each) for each in runs]
    report(results, settings.metric)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
