"""Model bundles: everything a model needs to answer, in one checksummed folder without a pickle."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rayrec import __version__
from rayrec.artifacts import Json, Storage, open_folder, publish_folder
from rayrec.errors import ModelError
from rayrec.inference.index import Indexes
from rayrec.inference.inputs import Context, Inputs, inputs
from rayrec.inference.mapped import mapped
from rayrec.inference.runtime import OnnxRuntime, Runtime, TorchRuntime, exported_product, factorized
from rayrec.inference.scorer import ItemKeys, Scorer
from rayrec.inference.top_k import top_k

if TYPE_CHECKING:
    from rayrec.models.base import Recommender

MANIFEST = "model.json"
SCHEMA = 2
"""1 has no graphs that give vectors of requests."""
GOLDEN_REQUESTS = 8
GOLDEN_ITEMS = 20
GOLDEN_TOLERANCE = 1e-4
SIGNATURE = {
    "history": "int64 [batch, length], left-padded with 0",
    "times": "int64 [batch, length + 1], seconds of each event and of the request, from any origin",
    "user": "float32 [batch, features], of each user, encoded by the transforms; zeros where they are not known",
    "context": "float32 [batch, features], of the moment of the request; likewise",
}


@dataclasses.dataclass(frozen=True)
class Bundle:
    """A published model.

    Attributes:
        path: Its folder in the storage.
        folder: The same on this machine, checked.
        manifest: `model.json`.
    """

    path: str
    folder: Path
    manifest: Json

    @property
    def item_keys(self) -> ItemKeys:
        """The key of each item row from 1 on."""
        return ItemKeys(pq.read_table(self.folder / "items.parquet")["key"].to_pylist())

    def model(self) -> Recommender:
        """The model in torch, with its weights."""
        from rayrec.models.registry import model_class

        found = model_class(self.manifest["kind"])
        model = found(found.Config(**self.manifest["config"]), self.manifest["num_items"])
        load_weights(model, self.folder)
        return model.eval()

    @property
    def runtime(self) -> str:
        """What answers by default: the exported graph where there is one, ``onnx``, else ``torch``."""
        return next(iter(self.manifest["variants"]), "torch")

    def scorer(self, runtime: str | None = None, threads: int = 0, indexes: Indexes | None = None) -> Scorer:
        """A scorer on a runtime, ``onnx`` or ``torch``, checked against the golden answers.

        Args:
            runtime: By default the bundle's own choice.
            threads: Threads of one pass; 0 takes all cores.
            indexes: Of the items, where the best are to be looked up. Where the graph gives scores of all items, which
                are of no use then, torch computes the vectors of requests.

        Raises:
            ModelError: It does not give the answers it gave when it was published.
        """
        runtime = runtime or self.runtime
        if runtime not in ("torch", *self.manifest["variants"]):
            known = ", ".join(["torch", *self.manifest["variants"]])
            raise ModelError(f"{self.path} has no variant '{runtime}'. It has: {known}.")
        table = self.folder / "tables" / "item.safetensors"
        scorer = Scorer(
            self.manifest["kind"],
            self._computing(runtime, threads, factors=indexes is not None),
            self.item_keys,
            self.manifest["max_length"],
            mapped(table, "weight") if table.exists() else None,
            self.widths,
            None if indexes is None else indexes.best,
            None if indexes is None else indexes.similar,
        )
        self.check(scorer)
        return scorer

    def _computing(self, runtime: str, threads: int, factors: bool) -> Runtime:
        """What computes scores, where so wanted as a `Product`."""
        variant = self.manifest["variants"].get(runtime, {})
        graph = self.folder / "variants" / runtime / "model.onnx"
        if variant.get("output") == "query":
            return exported_product(self.folder, graph, variant, threads)
        if factors:
            return factorized(self.model(), threads)
        return TorchRuntime(self.model(), threads) if runtime == "torch" else OnnxRuntime(graph, threads)

    @property
    def widths(self) -> dict[str, int]:
        """How many features the model reads of the ``user``, of the ``context``; see `Recommender.widths`."""
        # Bundles of earlier versions read none.
        widths: dict[str, int] = self.manifest.get("widths", {})
        return widths

    def check(self, scorer: Scorer) -> None:
        """Compare a scorer's scores with the golden ones.

        Raises:
            ModelError: They are others.
        """
        with pa.memory_map(str(self.folder / "golden.arrow")) as file:
            golden = pa.ipc.open_file(file).read_all()
        histories = [np.array(history, dtype=np.int64) for history in golden["history"].to_pylist()]
        items = np.array(golden["items"].to_pylist(), dtype=np.int64)
        expected = np.array(golden["scores"].to_pylist(), dtype=np.float32)
        contexts = [
            Context(np.array(row["times"], np.int64), **{name: np.array(row[name], np.float32) for name in self.widths})
            for row in golden.to_pylist()
        ]
        found = scorer.score(histories, contexts, candidates=list(items))
        allowed = GOLDEN_TOLERANCE * max(1.0, float(np.abs(expected).max()))
        if not np.abs(found - expected).max() <= allowed:
            raise ModelError(f"{self.path} does not give its golden answers on this machine. Train the model again.")


Request = tuple[np.ndarray, Context]
"""Item rows ``[n]`` int64, oldest first, and what else is known; features are made up here."""


def _times(history: np.ndarray, context: Context) -> np.ndarray:
    return np.zeros(len(history) + 1, np.int64) if context.times is None else context.times


def _with_features(context: Context, place: int, widths: Mapping[str, int]) -> Context:
    """A context with features that are nobody's own: ones in every so many columns, and each column in some request."""
    made_up = {}
    for name, width in widths.items():
        period = min(width, GOLDEN_REQUESTS)
        made_up[name] = (np.arange(width) % period == place % period).astype(np.float32)
    return dataclasses.replace(context, user=made_up.get("user"), context=made_up.get("context"))


def open_bundle(storage: Storage, path: str) -> Bundle:
    """Open a published model; every file is checked.

    Raises:
        ModelError: It is not there, was changed, or needs a newer rayrec.
    """
    folder, manifest = open_folder(storage, path, MANIFEST)
    if manifest["oldest_reader"] > SCHEMA:
        newer = manifest["code_version"]
        raise ModelError(f"{path} was written by a newer rayrec ({newer}). Upgrade rayrec to read it.")
    return Bundle(path, folder, manifest)


def publish_bundle(
    storage: Storage,
    name: str,
    model: Recommender,
    item_keys: Sequence[str],
    golden: Sequence[Request],
    lineage: Json,
    metrics: Json,
) -> str:
    """Export, check and publish a model. Returns the bundle's path.

    No time is measured here: it would make two bundles of two equal models.

    Args:
        storage: Where to.
        name: The bundle's folder is ``models/NAME/DIGEST``.
        model: The trained model; it is moved to the CPU.
        item_keys: The key of each item row from 1 on.
        golden: Requests to remember the answers to; the first `GOLDEN_REQUESTS` are used.
        lineage: What it was made from: dataset, view, vocabulary and transform digests, parents.
        metrics: What was measured while training.
    """
    model = model.cpu().eval()
    requests = list(golden[:GOLDEN_REQUESTS]) or [(np.zeros(0, np.int64), Context())]
    requests = [(items, _with_features(known, place, model.widths)) for place, (items, known) in enumerate(requests)]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        save_weights(model, folder, model.transient)
        pq.write_table(pa.table({"key": pa.array(item_keys, pa.string())}), folder / "items.parquet")
        runtime: Runtime = TorchRuntime(model)
        variants = {}
        if model.exports:
            from rayrec.inference.export import export_variant

            runtime, variants["onnx"] = export_variant(model, folder, _asked(requests, model))
        _write_golden(folder / "golden.arrow", runtime, requests, model)
        (folder / "metrics.json").write_text(json.dumps(metrics, indent=1), encoding="utf-8")
        manifest = _manifest(model, lineage) | {"variants": variants}
        if all("output" not in variant for variant in variants.values()):
            manifest |= {"oldest_reader": 1}
        return publish_folder(storage, f"models/{name}", folder, manifest, MANIFEST)


def save_weights(model: Recommender, folder: Path, without: Sequence[str] = ()) -> None:
    """``dense.safetensors`` and ``tables/NAME.safetensors``, without some submodules."""
    from safetensors.torch import save_file

    left_out = tuple(f"{name}." for name in without)
    kept = {key: value for key, value in model.state_dict().items() if not key.startswith(left_out)}
    state = {key: value.detach().cpu().contiguous() for key, value in kept.items()}
    (folder / "tables").mkdir(parents=True, exist_ok=True)
    for table in model.tables():
        rows = {key.removeprefix(f"{table}."): state.pop(key) for key in list(state) if key.startswith(f"{table}.")}
        save_file(rows, folder / "tables" / f"{table}.safetensors")
    save_file(state, folder / "dense.safetensors")


def load_weights(model: Recommender, folder: Path) -> None:
    """Fill ``model`` from what `save_weights` wrote."""
    from safetensors.torch import load_file as load_tensors

    state = load_tensors(folder / "dense.safetensors")
    for table in model.tables():
        rows = load_tensors(folder / "tables" / f"{table}.safetensors")
        state.update({f"{table}.{key}": value for key, value in rows.items()})
    model.load_state_dict(state)


def _manifest(model: Recommender, lineage: Json) -> Json:
    return {
        "schema": SCHEMA,
        "oldest_reader": SCHEMA,
        "code_version": __version__,
        "kind": model.kind,
        "config": dataclasses.asdict(model.config),
        "num_items": model.num_items,
        "max_length": model.max_length,
        "widths": dict(model.widths),
        "signature": {**{name: SIGNATURE[name] for name in model.reads}, "scores": "float32 [batch, items + 1]"},
        "tasks": ["next-item"],
        **lineage,
    }


def _asked(requests: Sequence[Request], model: Recommender) -> Inputs:
    histories, contexts = [history for history, _ in requests], [context for _, context in requests]
    return inputs(histories, contexts, model.max_length, model.widths)


def _write_golden(target: Path, runtime: Runtime, requests: Sequence[Request], model: Recommender) -> None:
    """Each request with its best items and their scores."""
    asked = _asked(requests, model)
    scores = runtime(asked).copy()
    scores[:, 0] = -np.inf
    items, values = top_k(scores, min(GOLDEN_ITEMS, scores.shape[1] - 1))
    columns: dict[str, Any] = {
        "history": pa.array([history.tolist() for history, _ in requests], pa.list_(pa.int64())),
        "times": pa.array([_times(*request).tolist() for request in requests], pa.list_(pa.int64())),
        **{name: pa.array(asked[name].tolist(), pa.list_(pa.float32())) for name in model.widths},
        "items": pa.array(items.tolist(), pa.list_(pa.int64())),
        "scores": pa.array(values.tolist(), pa.list_(pa.float32())),
    }
    table = pa.table(columns)
    with pa.OSFile(str(target), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
