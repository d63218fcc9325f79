r"""Training without Ray, MLflow, pydantic or pyarrow, for machines that have torch only (a bare GPU machine).

    .venv/bin/python benchmarks/bare.py export movielens-1m build/view.npz      # where rayrec is installed
    PYTHONPATH=platform python3 benchmarks/bare.py train build/view.npz build/hstu --model hstu --seeds 0 1 2 --refit \
        --architecture '{"blocks": 4, "heads": 2}' --optimization '{"averaging": 0.995, "epochs": 60}'
    PYTHONPATH=platform python3 benchmarks/bare.py compare build/hstu build/sasrec

`export` prepares a recipe's data and writes its view to one file. `train` runs the same loop, feed and full ranking as
the train stage, on a GPU if there is one. It writes where it stands after every epoch, so that the same command goes on
where an interrupted one stopped, and then the result and the rank of every user's test event; `--refit` trains again on
validation events too, as `training.refit: validation` does; `--refit alone` does only that, for all epochs of the
settings, which is how settings are run whose epochs somebody else chose. `compare` tests two of them on the same users.
All print one table.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rayrec.evaluation.full_ranking import HeldOut, rank_users
from rayrec.features.histories import Histories
from rayrec.inference.runtime import TorchRuntime
from rayrec.metrics.ranking import METRICS, parse_metric, ranking_metrics
from rayrec.metrics.significance import paired_test
from rayrec.models.base import Recommender
from rayrec.models.interactions import Interactions
from rayrec.models.objective import Objective
from rayrec.models.optimization import Optimization
from rayrec.models.registry import model_class
from rayrec.training.feed import feed_for
from rayrec.training.loop import train
from rayrec.training.progress import Metrics
from rayrec.training.run import Run, start
from rayrec.training.world import World

FOLDS = {"validation": ((0,), 1), "test": ((0, 1), 2)}
State = dict[str, Tensor]


def export(recipe: str, target: Path) -> None:
    """Prepare a recipe's data and write its view."""
    from rayrec.artifacts import Storage
    from rayrec.cluster import connected
    from rayrec.data.files import provide
    from rayrec.data.prepare import prepare
    from rayrec.data.views import load_view
    from rayrec.recipe_files import load_recipe

    loaded, storage = load_recipe(recipe), Storage.open()
    with connected():
        provide(loaded, storage)
        prepared = prepare(loaded, storage)
    view = load_view(prepared.dataset, prepared.view)
    target.parent.mkdir(parents=True, exist_ok=True)
    histories = view.histories
    times = {} if histories.times is None else {"times": histories.times}
    arrays = {"offsets": histories.offsets, "items": histories.items, "folds": view.folds, **times}
    np.savez_compressed(target, num_items=len(view.item_keys), **arrays)


@dataclass(frozen=True)
class View:
    """What `export` wrote.

    Attributes:
        histories: Every user's events.
        folds: ``[N]`` int8 of each event: 0 train, 1 validation, 2 test.
        num_items: Items; their rows run from 1.
    """

    histories: Histories
    folds: np.ndarray
    num_items: int

    @classmethod
    def load(cls, path: Path) -> View:
        """Read a file that `export` wrote."""
        with np.load(path, allow_pickle=False) as stored:
            times = stored["times"] if "times" in stored.files else None
            histories = Histories(stored["offsets"], stored["items"], times)
            return cls(histories, stored["folds"], int(stored["num_items"]))

    def fold(self, *folds: int) -> Histories:
        """The events of these folds."""
        return self.histories.keep(np.isin(self.folds, folds))

    def ranks(self, model: Recommender, fold: str, k: int) -> np.ndarray:
        """Ranks of the held-out events, ``[U, T]`` int64; see `rank_users`."""
        past, future = FOLDS[fold]
        users = HeldOut.of(self.fold(*past), self.fold(future))
        if not len(users):
            return np.zeros((0, 1), np.int64)
        return rank_users(TorchRuntime(model).on_device, users, model.num_items, model.max_length, k).ranks


@dataclass(frozen=True)
class Job:
    """One training.

    Attributes:
        view: The data.
        model: Name of the model.
        architecture: Settings of the model.
        settings: Of the training.
        folds: Numbers of the folds that are learnt from.
        epochs: Stop after so many, on the schedule of the settings; None for all, or until patience ends.
    """

    view: View
    model: str
    architecture: dict[str, Any]
    settings: Optimization
    folds: tuple[int, ...] = (0,)
    epochs: int | None = None


def train_once(job: Job, folder: Path) -> dict[str, Any]:
    """Train, or go on; the test metrics of the best epoch (or of the last, if no events validate), and what it cost."""
    settings, device = job.settings, torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(settings.seed)
    found = model_class(job.model)
    model = found(found.Config(**job.architecture), job.view.num_items)
    observed, world = Interactions(job.view.fold(*job.folds), model.num_items), World(device=device)
    run = start(model, observed, settings, world)
    saved = Saved(folder / "state.npz")
    saved.load(run)
    metric = settings.metric
    k = parse_metric(metric)[1]

    def validate(model: Recommender) -> Metrics:
        return {} if 1 in job.folds else ranking_metrics(job.view.ranks(model, "validation", k), [k])

    def after_epoch(run: Run) -> None:
        saved.save(run)
        entry = run.progress.history[-1]
        shown = f"{metric} {entry[metric]:.4f}  " if metric in entry else ""
        print(f"epoch {run.progress.epoch:3d}  loss {entry['loss']:.4f}  {shown}{entry['seconds']:.1f} s", flush=True)

    progress = train(run, feed_for(model, observed, settings, world.part_overhead), validate, after_epoch, job.epochs)
    model.load_state_dict(saved.best)
    ranks = job.view.ranks(model.eval(), "test", k)
    np.savez_compressed(folder / "ranks.npz", ranks=ranks)
    history = progress.history
    return {
        "seed": settings.seed,
        "device": str(device),
        "epochs": progress.epoch,
        "best_epoch": progress.best_epoch,
        "validation": progress.best if np.isfinite(progress.best) else None,
        "test": ranking_metrics(ranks, [k]),
        "train_seconds": sum(entry["seconds"] for entry in history),
        "tokens_per_second": float(np.median([entry["tokens_per_second"] for entry in history])),
        "gpu_peak_mib": torch.cuda.max_memory_allocated() / 2**20 if device.type == "cuda" else None,
        "history": history,
    }


@dataclass
class Saved:
    """Where a training stands, in one file that is put in place whole.

    Attributes:
        path: The file.
        best: The state of the model at its best epoch.
    """

    path: Path
    best: State = dataclasses.field(default_factory=dict)

    def save(self, run: Run) -> None:
        """Write it."""
        if run.progress.best_epoch == run.progress.epoch:
            self.best = {name: value.detach().cpu().clone() for name, value in run.judged.state_dict().items()}
        states = {"model": run.model.state_dict(), "optimizer": run.optimizer.state_dict(), "best": self.best}
        if run.average:
            states["average"] = run.average.model.state_dict()
        arrays = {
            f"{part}/{name}": value.cpu().numpy() for part, held in states.items() for name, value in held.items()
        }
        told = np.frombuffer(json.dumps(dataclasses.asdict(run.progress)).encode(), np.uint8)
        whole = self.path.with_suffix(".tmp.npz")
        np.savez(whole, progress=told, **arrays)
        whole.replace(self.path)

    def load(self, run: Run) -> None:
        """Put a fresh run where it stood, if it was ever saved."""
        if not self.path.exists():
            return
        with np.load(self.path, allow_pickle=False) as stored:
            arrays = {name: torch.from_numpy(stored[name]) for name in stored.files}
        progress = json.loads(arrays.pop("progress").numpy().tobytes())

        def part(name: str) -> State:
            return {key.removeprefix(f"{name}/"): a for key, a in arrays.items() if key.startswith(f"{name}/")}

        run.model.load_state_dict(part("model"))
        run.optimizer.load_state_dict(part("optimizer"))
        if run.average:
            run.average.model.load_state_dict(part("average"))
        self.best = part("best")
        for field, value in progress.items():
            setattr(run.progress, field, value)


def kept(folder: Path, work: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """The result that a folder holds, or that ``work`` on it makes."""
    target = folder / "result.json"
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        result = work(folder)
        target.write_text(json.dumps(result, indent=1))
    found: dict[str, Any] = json.loads(target.read_text())
    return found


def optimization(given: dict[str, Any]) -> Optimization:
    """Settings of the training as a recipe has them."""
    return Optimization(**given | {"objective": Objective(**given.get("objective", {}))})


def train_all(arguments: argparse.Namespace) -> None:
    """Every seed, and every seed again on validation events too (or only that)."""
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    view, settings = View.load(arguments.view), optimization(arguments.optimization)
    rows = []
    for seed in arguments.seeds:
        job = Job(view, arguments.model, arguments.architecture, dataclasses.replace(settings, seed=seed))
        epochs = settings.epochs
        if arguments.refit != "alone":
            first = kept(arguments.target / f"seed-{seed}", lambda folder, job=job: train_once(job, folder))
            rows.append(("train", first))
            epochs = first["best_epoch"]
        if arguments.refit:
            again = dataclasses.replace(job, folds=(0, 1), epochs=epochs)
            refit = arguments.target / f"seed-{seed}-refit"
            rows.append(("+ validation", kept(refit, lambda folder, job=again: train_once(job, folder))))
    report(rows, settings.metric)


def report(rows: list[tuple[str, dict[str, Any]]], metric: str) -> None:
    """One table."""
    names = [f"hr@{parse_metric(metric)[1]}", metric]
    head = f"{'learnt from':>12} {'seed':>4} {'epochs':>6} {'validation':>10} {names[0]:>8} {names[1]:>8}"
    print(f"{head} {'s':>7} tokens/s")
    for folds, r in rows:
        validation = f"{r['validation']:.4f}" if r["validation"] is not None else "-"
        scores = " ".join(f"{r['test'][name]:>8.4f}" for name in names)
        cost = f"{r['train_seconds']:>7.0f} {r['tokens_per_second']:>8.0f}"
        print(f"{folds:>12} {r['seed']:>4} {r['best_epoch']:>6} {validation:>10} {scores} {cost}")
    for folds in dict.fromkeys(folds for folds, _ in rows):
        means = [f"{np.mean([r['test'][name] for kind, r in rows if kind == folds]):.4f}" for name in names]
        print(f"{folds:>12} mean {' / '.join(means)}")


def compare(one: Path, other: Path, metric: str) -> None:
    """The same seeds of two trainings, tested on the same users."""
    name, k = parse_metric(metric)
    print(f"{metric:>16} {one.name:>12} {other.name:>12} {'difference':>10} {'95 %':>18} {'p':>8}")
    for folder in sorted(path.parent for path in one.glob("*/ranks.npz")):
        values = [_of_users(side / folder.name, name, k) for side in (one, other)]
        test = paired_test(*values)
        means = " ".join(f"{value.mean():>12.4f}" for value in values)
        interval = f"{test.low:>8.4f} .. {test.high:>6.4f}"
        print(f"{folder.name:>16} {means} {test.difference:>10.4f} {interval} {test.p_value:>8.2g}")


def _of_users(folder: Path, metric: str, k: int) -> np.ndarray:
    with np.load(folder / "ranks.npz", allow_pickle=False) as stored:
        return np.asarray(METRICS[metric](stored["ranks"], k))


def main() -> None:
    """Export, train or compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    exporting = commands.add_parser("export")
    exporting.add_argument("recipe")
    exporting.add_argument("target", type=Path)
    training = commands.add_parser("train")
    training.add_argument("view", type=Path)
    training.add_argument("target", type=Path, help="folder of the states and results")
    training.add_argument("--model", default="sasrec")
    training.add_argument("--architecture", type=json.loads, default={})
    training.add_argument("--optimization", type=json.loads, default={})
    training.add_argument("--seeds", type=int, nargs="+", default=[0])
    training.add_argument("--refit", nargs="?", const="after", choices=["after", "alone"])
    training.add_argument("--threads", type=int)
    comparing = commands.add_parser("compare")
    comparing.add_argument("one", type=Path)
    comparing.add_argument("other", type=Path)
    comparing.add_argument("--metric", default="ndcg@10")
    arguments = parser.parse_args()
    if arguments.command == "export":
        export(arguments.recipe, arguments.target)
    elif arguments.command == "train":
        train_all(arguments)
    else:
        compare(arguments.one, arguments.other, arguments.metric)


if __name__ == "__main__":
    main()
