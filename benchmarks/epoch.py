"""An epoch of SASRec on MovieLens 1M by rayrec, by a plain torch loop and by RecTools: CPU and wall seconds.

    RAYREC_BENCH_DATA=DATA .venv/bin/python benchmarks/epoch.py --repeat 3 --json build/epoch.json
    .venv/bin/python benchmarks/epoch.py --what rayrec rectools --rectools PYTHON --until 0.15

All learn the next item from each user's last 200 training events (leave-one-out, 3,416 items): 64 numbers an item, two
blocks, one head, dropout 0.1, batches of 128 users, softmax over all items, fp32, two threads. Programs take turns,
each in a process of its own; what comes before the first epoch is not counted. `--until` trains until NDCG@10 of the
validation events is reached, by the same full ranking for all, which is not counted either. `--rectools PYTHON` is an
interpreter that has rectools[torch]==0.19.0. Prints one table of medians and writes JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

# The other interpreter has no rayrec, and rayrec's has no RecTools: each program imports its own.

THREADS, LENGTH, DIM, BLOCKS, DROPOUT, BATCH, RATE, TOP = 2, 200, 64, 2, 0.1, 128, 1e-3, 10
Score = Callable[[Tensor], Tensor]
"""``[B, LENGTH]`` int64 histories, left-padded with 0, to ``[B, num_items + 1]`` scores."""


# ---- the data, and what is measured


def movielens_1m(source: Path, target: Path) -> None:
    """Write the sequences of the usual protocol: items with five events, by time, ties in the order of the file."""
    import pyarrow.parquet as pq

    table = pq.read_table(source, columns=["user_id", "item_id", "timestamp"])
    users, items, times = (table.column(name).to_numpy() for name in table.column_names)
    kept = np.isin(items, np.flatnonzero(np.bincount(items) >= 5))
    users, items, times = users[kept], items[kept], times[kept]
    order = np.lexsort((times, users))
    keys, rows = np.unique(items[order], return_inverse=True)
    lengths = np.unique(users, return_counts=True)[1]
    np.savez(target, offsets=np.concatenate([[0], np.cumsum(lengths)]), items=rows + 1, num_items=len(keys))


@dataclass(frozen=True)
class View:
    """Sequences, one user after the other; the last event of each is for tests, the one before it for validation.

    Attributes:
        offsets: ``[U + 1]`` int64.
        items: ``[N]`` int64 rows from 1.
        num_items: V.
    """

    offsets: np.ndarray
    items: np.ndarray
    num_items: int

    @property
    def training(self) -> np.ndarray:
        """``[N]`` bool, the events that are learnt from."""
        return np.arange(len(self.items)) < np.repeat(self.offsets[1:] - 2, np.diff(self.offsets))

    def latest(self, width: int) -> Tensor:
        """The latest training events: ``[U, width]`` int64, left-padded with 0."""
        places = self.offsets[1:, None] - 2 - np.arange(width, 0, -1)
        return torch.from_numpy(np.where(places >= self.offsets[:-1, None], self.items[np.maximum(places, 0)], 0))

    def ndcg(self, score: Score) -> float:
        """NDCG@10 of the validation events, ranked among all items but those of the training events."""
        history, targets = self.latest(LENGTH), torch.from_numpy(self.items[self.offsets[1:] - 2])
        owners = np.repeat(np.arange(len(history)), np.diff(self.offsets))[self.training]
        seen = torch.zeros(len(history), self.num_items + 1, dtype=torch.bool)
        seen[torch.from_numpy(owners), torch.from_numpy(self.items[self.training])] = True
        seen[:, 0] = True
        gains = []
        for users in torch.arange(len(history)).split(256):
            with torch.inference_mode():
                scores = score(history[users]).masked_fill(seen[users], -torch.inf)
            ranks = 1 + (scores > scores.gather(1, targets[users, None])).sum(1)
            gains.append(torch.where(ranks <= TOP, 1 / torch.log2(ranks + 1), 0.0))
        return float(torch.cat(gains).mean())


class Watch:
    """Takes the time of epochs.

    Args:
        view: The data.
        until: NDCG@10 to train to; None for a single epoch.
        most: Epochs at most.
    """

    def __init__(self, view: View, until: float | None, most: int) -> None:
        self.view = view
        self.until = until
        self.most = 1 if until is None else most
        self.cpu: list[float] = []
        self.wall: list[float] = []
        self.ndcg: list[float] = []

    def begin(self) -> None:
        """An epoch begins."""
        self._began = time.process_time(), time.perf_counter()

    def enough(self, score: Score) -> bool:
        """An epoch is over: whether it was the last."""
        self.cpu.append(time.process_time() - self._began[0])
        self.wall.append(time.perf_counter() - self._began[1])
        if self.until is not None:
            self.ndcg.append(self.view.ndcg(score))
            said = f"epoch {len(self.cpu)}: {sum(self.cpu):.0f} CPU s, NDCG@{TOP} {self.ndcg[-1]:.4f}"
            print(said, file=sys.stderr, flush=True)
        return len(self.cpu) == self.most or (self.until is not None and self.ndcg[-1] >= self.until)


# ---- the programs


def rayrec(view: View, watch: Watch) -> None:
    """The feed and the loop as they are."""
    from rayrec.features.histories import Histories
    from rayrec.models.interactions import Interactions
    from rayrec.models.optimization import Optimization
    from rayrec.models.sasrec import SASRec, SASRecConfig
    from rayrec.training.feed import feed_for
    from rayrec.training.loop import train
    from rayrec.training.run import start
    from rayrec.training.world import World

    histories = Histories(view.offsets, view.items).keep(view.training)
    settings = Optimization(batch_size=BATCH, learning_rate=RATE, random_windows=0.0, precision="fp32")
    model = SASRec(SASRecConfig(dim=DIM, blocks=BLOCKS, dropout=DROPOUT, max_length=LENGTH), view.num_items)
    observed = Interactions(histories, view.num_items)
    feed = feed_for(model, observed, settings, World().part_overhead)
    run = start(model, observed, settings, World())
    while True:
        watch.begin()
        one_more = replace(settings, epochs=run.progress.epoch + 1)
        train(replace(run, settings=one_more), feed, lambda model: {}, lambda run: None)
        if watch.enough(model.score):
            return


class PlainSASRec(nn.Module):
    """What one writes first: torch's encoder, positions, and a product with the item vectors."""

    def __init__(self, num_items: int) -> None:
        super().__init__()
        self.item = nn.Embedding(num_items + 1, DIM, padding_idx=0)
        self.position = nn.Embedding(LENGTH, DIM)
        nn.init.normal_(self.item.weight, std=0.02)
        nn.init.normal_(self.position.weight, std=0.02)
        self.dropout = nn.Dropout(DROPOUT)
        layer = nn.TransformerEncoderLayer(DIM, 1, DIM, DROPOUT, "gelu", batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, BLOCKS, nn.LayerNorm(DIM), enable_nested_tensor=False)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(LENGTH))

    def encode(self, history: Tensor) -> Tensor:
        """``[B, LENGTH]`` int64 to ``[B, LENGTH, DIM]``."""
        states = self.dropout(self.item(history) + self.position.weight)
        encoded: Tensor = self.encoder(states, mask=self.mask, is_causal=True)
        return encoded

    def score(self, history: Tensor) -> Tensor:
        """See `Score`."""
        return self.eval().encode(history)[:, -1] @ self.item.weight.T


def plain(view: View, watch: Watch) -> None:
    """A loop over windows padded to 200, with cross entropy over [tokens, items]."""
    windows = view.latest(LENGTH + 1)
    model = PlainSASRec(view.num_items)
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE, betas=(0.9, 0.98))
    while True:
        watch.begin()
        model.train()
        for users in torch.randperm(len(windows)).split(BATCH):
            logits = model.encode(windows[users, :-1]) @ model.item.weight.T
            loss = nn.functional.cross_entropy(logits.flatten(0, 1), windows[users, 1:].flatten(), ignore_index=0)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if watch.enough(model.score):
            return


def rectools(view: View, watch: Watch) -> None:
    """RecTools' SASRec with its softmax loss and its own trainer."""
    import pandas as pd
    from pytorch_lightning import Callback, LightningModule, Trainer
    from rectools import Columns
    from rectools.dataset import Dataset
    from rectools.models import SASRecModel

    owners = np.repeat(np.arange(len(view.offsets) - 1), np.diff(view.offsets))
    events = {Columns.User: owners, Columns.Item: view.items, Columns.Weight: 1.0}
    frame = pd.DataFrame({**events, Columns.Datetime: pd.to_datetime(np.arange(len(owners)), unit="s")})

    class Watching(Callback):
        def on_train_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
            watch.begin()

        def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
            backbone, known = module.torch_model.eval(), model.data_preparator.get_known_item_ids().astype(np.int64)
            theirs = torch.zeros(view.num_items + 1, dtype=torch.int64)
            theirs[known] = torch.arange(1, len(known) + 1)

            def score(history: Tensor) -> Tensor:
                items = backbone.item_model.get_all_embeddings()
                scores = torch.full((len(history), view.num_items + 1), -torch.inf)
                scores[:, known] = backbone.encode_sessions({"x": theirs[history]}, items)[:, -1] @ items[1:].T
                return scores

            trainer.should_stop = watch.enough(score)
            backbone.train()

    def trainer() -> Trainer:
        quiet = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
        options: dict[str, Any] = dict.fromkeys(quiet, False)
        return Trainer(max_epochs=watch.most, accelerator="cpu", callbacks=[Watching()], **options)

    sizes = {"n_factors": DIM, "n_blocks": BLOCKS, "n_heads": 1, "session_max_len": LENGTH, "batch_size": BATCH}
    model = SASRecModel(**sizes, dropout_rate=DROPOUT, lr=RATE, loss="softmax", get_trainer_func=trainer)
    model.fit(Dataset.construct(frame[view.training]))


PROGRAMS = {"rayrec": rayrec, "plain": plain, "rectools": rectools}


# ---- all of them


def job(name: str, path: str, until: float | None, most: int) -> dict[str, Any]:
    """One program, in this process."""
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    with np.load(path, allow_pickle=False) as stored:
        view = View(stored["offsets"], stored["items"], int(stored["num_items"]))
    watch = Watch(view, until, most)
    PROGRAMS[name](view, watch)
    return {"program": name, "cpu": watch.cpu, "wall": watch.wall, "ndcg@10": watch.ndcg}


def show(results: list[dict[str, Any]], until: float | None) -> None:
    """One table of medians."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="SASRec on MovieLens 1M, two threads", title_justify="left")
    reached = ("epochs", "CPU s in all", "wall s in all", f"NDCG@{TOP}") if until is not None else ()
    for column in ("program", "CPU s an epoch", "wall s an epoch", *reached):
        table.add_column(column, justify="left" if column == "program" else "right")
    for name in dict.fromkeys(result["program"] for result in results):
        mine = [result for result in results if result["program"] == name]
        means = [statistics.median(statistics.mean(r[key]) for r in mine) for key in ("cpu", "wall")]
        cells = [f"{value:.1f}" for value in means]
        if until is not None:
            totals = [statistics.median(sum(r[key]) for r in mine) for key in ("cpu", "wall")]
            best = statistics.median(r["ndcg@10"][-1] for r in mine)
            epochs = statistics.median(len(r["cpu"]) for r in mine)
            cells += [f"{epochs:g}", *(f"{value:.1f}" for value in totals), f"{best:.4f}"]
        table.add_row(name, *cells)
    Console().print(table)


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", nargs="+", choices=PROGRAMS, default=list(PROGRAMS))
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--until", type=float, metavar="NDCG")
    parser.add_argument("--most", type=int, default=60, help="epochs at most, with --until")
    parser.add_argument("--rectools", metavar="PYTHON", default="")
    parser.add_argument("--json", type=Path, default=Path("build/epoch.json"))
    arguments = parser.parse_args()
    data = Path(os.environ.get("RAYREC_BENCH_DATA", Path(__file__).parents[2] / "shared" / "data"))
    source = data / "ml-1m" / "ratings.parquet"
    if not source.exists():
        print(f"skipped, there is no {source} (RAYREC_BENCH_DATA names the folder)")
        return
    programs = list(arguments.what)
    if "rectools" in programs and not Path(arguments.rectools).is_file():
        print("rectools: skipped, --rectools names no interpreter that is there")
        programs.remove("rectools")
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    results = []
    with tempfile.TemporaryDirectory(prefix="rayrec-epoch-") as work:
        view = Path(work) / "view.npz"
        movielens_1m(source, view)
        for name in programs * arguments.repeat:
            python = arguments.rectools if name == "rectools" else sys.executable
            asked = json.dumps([name, str(view), arguments.until, arguments.most])
            # On a busy machine threads that spin while they wait for others would count as CPU time, and as much again.
            environment = {**os.environ, "OMP_NUM_THREADS": str(THREADS), "OMP_WAIT_POLICY": "passive"}
            command = [python, str(Path(__file__).resolve()), "job", asked]
            done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, text=True)
            results.append(json.loads(done.stdout.splitlines()[-1]))
            arguments.json.write_text(json.dumps(results, indent=1))
    if results:
        show(results, arguments.until)


if __name__ == "__main__":
    if sys.argv[1:2] == ["job"]:
        print(json.dumps(job(*json.loads(sys.argv[2]))))
    else:
        main()
