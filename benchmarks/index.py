"""Large catalogues: exact answers against those by an index, from the scores to HTTP.

    .venv/bin/python benchmarks/index.py                       # a million items, SASRec with d = 64
    .venv/bin/python benchmarks/index.py --items 200000 --seconds 5 --json index.json

The vectors are made up: each item belongs to one of items / 500 clusters; its vector is the cluster's centre, standard
normal in each dimension, plus noise of 0.8 standard deviations, times a length drawn log-normally (sigma 0.25), as
popularity gives trained vectors different lengths. Histories stay within one cluster for five events on average. The
SASRec around this table is not trained: what it asks for is near to what a history had last, plus what its random
attention adds. Recall depends on such geometry; a real catalogue's is in its Release.

Each way of answering has a process of its own (what is measured of memory and of HTTP is of that process), which holds
the catalogue as well. Two funnels: what the model says (`plain`), and all there is (`whole`): candidates of five
sources by reciprocal ranks, maximal marginal relevance, a category cap, freshness and exploration. Prints a table, and
JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import resource
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import uvicorn

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.load import closed, requests_of

from rayrec.artifacts import Storage
from rayrec.data.event_log import UserHistories
from rayrec.features.histories import Histories
from rayrec.inference.bundle import open_bundle, publish_bundle
from rayrec.inference.index import BEST, SIMILAR, Indexes, measured_index, open_indexes, publish_indexes
from rayrec.inference.inputs import Context, inputs
from rayrec.inference.release import Release
from rayrec.inference.runtime import Product
from rayrec.recipe_serving import Index as Settings
from rayrec.serving.app import build_app
from rayrec.serving.batching import Batcher
from rayrec.serving.catalog import Items
from rayrec.serving.engine import Engine
from rayrec.serving.features import RequestFeatures
from rayrec.serving.queries import Answer, Query
from rayrec.serving.state import DatasetHistories, Item
from rayrec.serving.store.store import Store

DIM, LENGTH, USERS, QUERIES = 64, 50, 20_000, 512
CONCURRENCY = 8
CATEGORIES = 200
WHOLE: dict[str, Any] = {
    "sources": {"model": 200, "similar": 50, "popular": 50, "trending": 0, "latest": 50},
    "merge": "ranks",
    "diversity": "mmr",
    "category_cap": 5,
    "freshness_weight": 0.1,
    "exploration": 0.05,
}
FUNNELS: dict[str, dict[str, Any]] = {"plain": {}, "whole": WHOLE}


@dataclass(frozen=True)
class Made:
    """What is asked: where it is, and how large.

    Attributes:
        folder: Of the storage.
        items: How many there are.
        bundles: Paths by role.
        indexes: Path.
    """

    folder: str
    items: int
    bundles: dict[str, str]
    indexes: str


def vectors_of(items: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Item vectors ``[V + 1, D]`` float32 and the cluster of each item, ``[V + 1]``; see the module."""
    clusters = random.integers(0, max(1, items // 500), items + 1)
    centres = random.normal(size=(clusters.max() + 1, DIM)).astype(np.float32)
    vectors = centres[clusters] + 0.8 * random.normal(size=(items + 1, DIM)).astype(np.float32)
    vectors *= np.exp(0.25 * random.normal(size=(items + 1, 1)))
    vectors[0] = 0.0
    return vectors.astype(np.float32), clusters


def histories_in(clusters: np.ndarray, random: np.random.Generator) -> Histories:
    """Histories of `USERS` users, of 5 to `LENGTH` events."""
    order = np.argsort(clusters[1:], kind="stable") + 1
    starts = np.searchsorted(clusters[order], np.arange(clusters.max() + 2))
    rows = []
    for length in random.integers(5, LENGTH + 1, USERS):
        moves = np.cumsum(random.random(length) < 0.2)
        visited = random.integers(0, clusters.max() + 1, moves[-1] + 1)[moves]
        sizes = np.maximum(starts[visited + 1] - starts[visited], 1)
        rows.append(order[np.minimum(starts[visited] + random.integers(0, sizes), len(order) - 1)])
    return Histories.of(rows)


def make(folder: str, items: int) -> tuple[Made, dict[str, Any]]:
    """Publish a model and its indexes. Returns them, and what building cost."""
    import torch

    from rayrec.models.popularity import Popularity, PopularityConfig
    from rayrec.models.sasrec import SASRec, SASRecConfig

    random, storage = np.random.default_rng(0), Storage.open(folder)
    vectors, clusters = vectors_of(items, random)
    histories = histories_in(clusters, random)
    np.savez(Path(folder, "histories.npz"), items=histories.items, lengths=histories.lengths)
    torch.manual_seed(0)
    model = SASRec(SASRecConfig(dim=DIM, max_length=LENGTH), items).eval()
    popular = Popularity(PopularityConfig(), items).eval()
    with torch.no_grad():
        model.item.weight.copy_(torch.from_numpy(vectors))
        popular.counts[1:] = torch.from_numpy(random.zipf(1.5, items).clip(max=1e6).astype(np.float32))
    keys = [f"i{row}" for row in range(1, items + 1)]
    golden = [(histories[user], Context()) for user in range(4)]
    bundles = {
        "main": publish_bundle(storage, "index", model, keys, golden, {}, {}),
        "popular": publish_bundle(storage, "index", popular, keys, golden, {}, {}),
    }
    scorer = open_bundle(storage, bundles["main"]).scorer()
    assert isinstance(scorer.runtime, Product)
    asked = inputs([histories[user] for user in range(QUERIES)], None, LENGTH, {})
    queries, settings = scorer.runtime.queries(asked), Settings()
    directions = scorer.directions(np.arange(items + 1))
    recent = np.stack([directions[row[row != 0]].mean(axis=0) for row in asked["history"][:, -5:]])
    began, busy = time.perf_counter(), time.process_time()
    best, about = measured_index(scorer.runtime.matrix, queries, settings)
    similar, about_similar = measured_index(directions, recent, settings)
    seconds = {"wall": time.perf_counter() - began, "cpu": time.process_time() - busy}
    measured = {BEST: about, SIMILAR: about_similar}
    path = publish_indexes(storage, "index", Indexes(best, similar), measured, {})
    sizes = {kind: Path(folder, path, f"{kind}.faiss").stat().st_size / 1e6 for kind in measured}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    files = [file for role in bundles.values() for file in Path(folder, role).rglob("*") if file.is_file()]
    sizes["bundles"] = sum(file.stat().st_size for file in files) / 1e6
    cost = {"seconds": seconds, "megabytes": sizes, "peak_megabytes": peak, "measured": measured}
    return Made(folder, items, bundles, path), cost


def engine_of(made: Made, indexed: bool, policy: dict[str, Any]) -> Engine:
    """An engine as a replica has it, with a catalogue."""
    storage = Storage.open(made.folder)
    indexes = open_indexes(storage, made.indexes) if indexed else None
    scorer = open_bundle(storage, made.bundles["main"]).scorer(threads=1, indexes=indexes)
    popular = open_bundle(storage, made.bundles["popular"]).scorer(threads=1)
    popular = replace(popular, item_keys=scorer.item_keys)
    with np.load(Path(made.folder, "histories.npz")) as saved:
        histories = Histories.grouped(saved["lengths"], saved["items"])
    known = DatasetHistories(UserHistories({f"u{user}": user for user in range(USERS)}, histories))
    now = int(time.time() * 1000)
    catalog = Items(
        Item(key, f"Item {row}", (f"c{row % CATEGORIES}",), timestamp=now - row * 60_000)
        for row, key in enumerate(scorer.item_keys)
    )
    content = {
        "name": "index",
        "funnel": {"exclude_seen": True},
        "serving": {"funnel": policy},
        "dataset": {"name": "index", "manifest": 1},
        "models": made.bundles,
        "simulated": True,
    }
    release, features = Release(storage, content), RequestFeatures(None, {})
    engine = Engine(release, scorer, popular.ordered() if indexed else popular, known, catalog, features)
    engine.warm()
    return engine


class Backend:
    """What `build_app` serves: an engine behind a queue, without a store and without remembered answers."""

    def __init__(self, engine: Engine) -> None:
        self.engine: Engine | None = engine
        self.store: Store | None = None
        self.refused: str | None = None
        self.tells_request_id = False
        self._batcher: Batcher[Query, Answer] = Batcher(engine.answer, 64, 256)

    async def answer(self, engine: Engine, query: Query) -> Answer:
        """See `rayrec.serving.app.Backend`."""
        return await self._batcher.submit(query)


@contextmanager
def listening(engine: Engine) -> Iterator[int]:
    """The HTTP surface on a port of its own."""
    config = uvicorn.Config(build_app(Backend(engine)), port=0, log_level="warning", access_log=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)  # polls a thread that opens a port
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    thread.join()


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """In milliseconds."""
    p50, p99 = np.percentile(np.array(seconds) * 1000, [50, 99])
    return {"p50_ms": float(p50), "p99_ms": float(p99)}


def alone(engine: Engine, seconds: float) -> dict[str, float]:
    """`Engine.answer`, one request after the other."""
    taken, end, user = [], time.perf_counter() + seconds, 0
    while time.perf_counter() < end:
        query = engine.user_query(f"u{user % USERS}", 20, 0)
        assert query is not None
        began = time.perf_counter()
        assert len(engine.answer([query])[0].items) == 20
        taken.append(time.perf_counter() - began)
        user += 1
    return percentiles(taken)


def changes(engine: Engine, times: int = 20) -> dict[str, float]:
    """The first answers after one item of the catalogue has changed."""
    catalog, taken = engine.catalog, []
    assert isinstance(catalog, Items)
    for row in range(times):
        time.sleep(1.05)  # attributes are used for a second more
        catalog.put([Item(f"i{row + 1}", "changed", ("c1", "c2"), timestamp=int(time.time() * 1000))])
        began = time.perf_counter()
        query = engine.user_query(f"u{row}", 20, 0)
        assert query is not None
        engine.answer([query])
        taken.append(time.perf_counter() - began)
    return percentiles(taken)


def replica(made: Made, indexed: bool, policy: dict[str, Any], seconds: float, told: Connection) -> None:
    """A process that answers: tells its port, waits for word, tells what it measured of itself."""
    began = time.perf_counter()
    engine = engine_of(made, indexed, policy)
    loaded = time.perf_counter() - began
    memory = psutil.Process(os.getpid()).memory_full_info()
    with listening(engine) as port:
        told.send(port)
        told.recv()
    megabytes = {"private": memory.uss / 1e6, "resident": memory.rss / 1e6}
    result = {"loaded_s": loaded, "megabytes": megabytes, "alone": alone(engine, seconds)}
    told.send(result | ({"after_a_change": changes(engine)} if indexed else {}))


def busy_seconds(pid: int | None) -> float:
    """Of the processor, that a process has had."""
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def measured(made: Made, indexed: bool, policy: dict[str, Any], seconds: float) -> dict[str, Any]:
    """One way of answering, in a process of its own."""
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe()
    process = context.Process(target=replica, args=(made, indexed, policy, seconds, theirs))
    process.start()
    theirs.close()
    port = mine.recv()
    url = f"http://127.0.0.1:{port}/v1/recommend/{{user}}?n=20"
    requests = requests_of(url, [f"u{user}" for user in range(USERS)], seed=0)
    asyncio.run(closed("127.0.0.1", port, requests, CONCURRENCY, 2.0))
    before = busy_seconds(process.pid)
    seen = asyncio.run(closed("127.0.0.1", port, requests, CONCURRENCY, seconds))
    cpu = (busy_seconds(process.pid) - before) / max(1, len(seen.seconds))
    http = {**seen.summary(seconds), "cpu_ms": 1000 * cpu}
    mine.send("enough")
    found: dict[str, Any] = mine.recv()
    process.join()
    return {**found, "http": http}


def kept(folder: str, items: int) -> tuple[Made, dict[str, Any]]:
    """What `make` made there, now or before."""
    record = Path(folder, f"made-{items}.json")
    if not record.exists():
        Path(folder).mkdir(parents=True, exist_ok=True)
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            made, cost = pool.apply(make, (folder, items))
        record.write_text(json.dumps([asdict(made), cost]), encoding="utf-8")
    found, cost = json.loads(record.read_text(encoding="utf-8"))
    return Made(**found), cost


def main() -> None:
    """Make, ask, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=15)
    parser.add_argument("--folder", help="keeps what is built, to be asked again")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        made, cost = kept(arguments.folder or temporary, arguments.items)
        print(json.dumps(cost), flush=True)
        rows: dict[str, dict[str, Any]] = {}
        for name, policy in FUNNELS.items():
            for indexed in (False, True):
                row = measured(made, indexed, policy, arguments.seconds)
                rows[f"{name}, {'index' if indexed else 'exact'}"] = row
                print(json.dumps(row), flush=True)
    heads = ("answer p50", "p99 ms", "HTTP p50", "p99 ms", "CPU ms", "per s", "MB own", "load s")
    print(f"{'':14}" + "".join(f"{head:>11}" for head in heads))
    for name, row in rows.items():
        http, answer = row["http"], row["alone"]
        cells = [answer["p50_ms"], answer["p99_ms"], *(http[key] for key in ("p50_ms", "p99_ms", "cpu_ms"))]
        cells += [http["requests_per_s"], row["megabytes"]["private"], row["loaded_s"]]
        print(f"{name:14}" + "".join(f"{cell:11.2f}" for cell in cells))
    report = json.dumps({"items": arguments.items, "index": cost, "answers": rows})
    print(report)
    if arguments.json:
        arguments.json.write_text(report, encoding="utf-8")


if __name__ == "__main__":
    main()
