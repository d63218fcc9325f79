"""Bundles: the exported graph answers like the model, and nothing opens that was changed."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pyarrow as pa
import pytest
import torch
from tests.planted import Planted

from rayrec.artifacts import Storage, canonical, file_digest, short_digest
from rayrec.errors import ModelError
from rayrec.features.histories import pad
from rayrec.inference.bundle import MANIFEST, open_bundle, publish_bundle
from rayrec.inference.export import TOLERANCE, export_onnx, measure_parity
from rayrec.inference.inputs import Context
from rayrec.inference.release import Release, open_release, publish_release
from rayrec.inference.runtime import OnnxRuntime, Product, TorchRuntime
from rayrec.inference.top_k import top_k
from rayrec.models.registry import model_class
from rayrec.models.sasrec import SASRec, SASRecConfig

Published = tuple[Storage, Release]
FILES = (
    "dense.safetensors",
    "golden.arrow",
    "items.parquet",
    "metrics.json",
    "tables/item.safetensors",
    "variants/onnx/model.onnx",
)


@pytest.fixture
def copied(published: Published, tmp_path: Path) -> Published:
    """A copy that may be damaged."""
    storage, release = published
    shutil.copytree(storage.root, tmp_path / "copy")
    copy = Storage.open(tmp_path / "copy")
    return copy, Release(copy, release.content)


def republished(storage: Storage, path: str) -> str:
    """A manifest for the bundle's files as they are now, as a forger would write it."""
    manifest = storage.read_json(f"{path}/{MANIFEST}")
    for name, entry in manifest["files"].items():
        entry["sha256"] = file_digest(Path(storage.full(f"{path}/{name}")))
    forged = f"models/small/{short_digest(manifest)}"
    shutil.copytree(storage.full(path), storage.full(forged))
    storage.replace(f"{forged}/{MANIFEST}", canonical(manifest))
    return forged


# ---- the exported graph


@pytest.mark.parametrize("length", range(7))
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_the_graph_answers_like_torch(published: Published, small_model: SASRec, length: int, batch: int) -> None:
    bundle = published[1].bundle()
    graph = OnnxRuntime(bundle.folder / "variants" / "onnx" / "model.onnx")
    random = np.random.default_rng(length * batch)
    lengths = [length, *random.integers(0, length + 1, batch - 1)]
    history = pad([random.integers(1, 31, n) for n in lengths], 6)
    expected, found = TorchRuntime(small_model)({"history": history}), graph({"history": history})
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    assert (top_k(found[:, 1:], 10)[0] == top_k(expected[:, 1:], 10)[0]).all()


@pytest.mark.parametrize("max_length", [1, 2, 3])
def test_short_models_export_too(tmp_path: Path, max_length: int) -> None:
    model = SASRec(SASRecConfig(dim=4, blocks=1, max_length=max_length), 3)
    export_onnx(model, tmp_path / "model.onnx")
    for length in range(1, max_length + 1):
        assert measure_parity(model, tmp_path / "model.onnx", {"history": np.full((3, length), 2)}) < TOLERANCE


def test_a_graph_of_another_model_is_refused(published: Published) -> None:
    torch.manual_seed(9)
    other = SASRec(SASRecConfig(dim=8, blocks=2, heads=2, max_length=6), 30)
    graph = published[1].bundle().folder / "variants" / "onnx" / "model.onnx"
    with pytest.raises(ModelError, match="differs from torch"):
        measure_parity(other, graph, {"history": np.array([[1, 2]])})


# ---- what a bundle holds


def test_an_opened_bundle_is_what_was_published(published: Published, small_model: SASRec) -> None:
    bundle = published[1].bundle()
    assert bundle.item_keys[:2] == ["item 1", "item 2"]
    assert bundle.manifest["kind"] == "sasrec"
    assert bundle.manifest["view"] == "v"
    loaded = bundle.model().state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in small_model.state_dict().items())


@pytest.mark.parametrize("runtime", ["onnx", "torch"])
@pytest.mark.parametrize("role", ["main", "popular"])
def test_every_runtime_gives_the_golden_answers(published: Published, role: str, runtime: str) -> None:
    scores = published[1].bundle(role).scorer(runtime).score([np.array([1, 2]), np.zeros(0, np.int64)])
    assert scores.shape == (2, 31)


def test_an_unknown_variant_is_answered_with_the_known_ones(published: Published) -> None:
    with pytest.raises(ModelError, match=r"no variant 'int8'\. It has: torch, onnx"):
        published[1].bundle().scorer("int8")


def test_a_bundle_holds_no_pickle(published: Published) -> None:
    files = [path for path in published[1].bundle().folder.rglob("*") if path.is_file()]
    assert {path.relative_to(published[1].bundle().folder).as_posix() for path in files} == {*FILES, MANIFEST}
    assert {path.suffix for path in files} == {".safetensors", ".arrow", ".parquet", ".json", ".onnx"}
    # Protocols 2 to 5 begin with these two bytes; a zip (torch.save) with PK.
    assert not any(path.read_bytes()[:2] in {b"\x80" + bytes([p]) for p in range(2, 6)} | {b"PK"} for path in files)


def test_the_same_model_gives_the_same_bundle(published: Published, small_model: SASRec) -> None:
    storage, release = published
    keys = [f"item {row}" for row in range(1, 31)]
    golden = [(history, Context()) for history in (np.array([1, 2, 3]), np.array([30] * 9), np.zeros(0, np.int64))]
    again = publish_bundle(storage, "small", small_model, keys, golden, {"view": "v"}, {"best": 0.5})
    assert again == release.content["models"]["main"]


# ---- of large catalogues


@pytest.mark.parametrize("name", ["sasrec", "bert4rec"])
def test_a_bundle_of_a_large_catalogue_holds_its_vectors_once(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rayrec.inference.export.LARGE_CATALOGUE", 10)
    torch.manual_seed(0)
    model = model_class(name)(model_class(name).Config(dim=8, blocks=1, max_length=6), 30).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn_like(weight))
        model.tables()["item"].all_rows()[0] = 0.0
    storage, keys = Storage.open(tmp_path), [f"item {row}" for row in range(1, 31)]
    bundle = open_bundle(storage, publish_bundle(storage, "large", model, keys, [], {}, {}))

    assert bundle.manifest["oldest_reader"] == 2
    # With a bias, the vectors have a column more than the table.
    matrix = {"sasrec": "tables/item.safetensors", "bert4rec": "items.safetensors"}[name]
    assert bundle.manifest["variants"]["onnx"]["matrix"]["file"] == matrix
    assert {*bundle.manifest["files"]} == {*FILES, matrix}
    graph = onnx.load(bundle.folder / "variants" / "onnx" / "model.onnx").graph
    assert not any(31 in initializer.dims for initializer in graph.initializer)
    histories = [np.array([1, 2, 3]), np.zeros(0, np.int64), np.array([7] * 9)]
    scorer, torch_scorer = bundle.scorer(), bundle.scorer("torch")
    np.testing.assert_allclose(scorer.score(histories), torch_scorer.score(histories), rtol=1e-4, atol=1e-4)
    assert isinstance(scorer.runtime, Product)
    assert not isinstance(torch_scorer.runtime, Product)


# ---- what is refused


@pytest.mark.parametrize("name", FILES)
def test_one_changed_byte_is_refused(copied: Published, name: str) -> None:
    storage, release = copied
    file = Path(storage.full(f"{release.content['models']['main']}/{name}"))
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(ModelError, match=f"{name} is missing or was changed"):
        release.bundle()


@pytest.mark.parametrize("runtime", ["onnx", "torch"])
def test_weights_that_do_not_give_the_golden_answers_are_refused(copied: Published, runtime: str) -> None:
    storage, release = copied
    path = release.content["models"]["main"]
    folder = Path(storage.full(path))
    swapped = release.bundle().model()
    with torch.no_grad():
        swapped.item.weight[[1, 2]] = swapped.item.weight[[2, 1]]  # type: ignore[union-attr, operator, index]
    from rayrec.inference.bundle import save_weights

    save_weights(swapped, folder)
    export_onnx(swapped, folder / "variants" / "onnx" / "model.onnx")
    forged = open_bundle(storage, republished(storage, path))
    with pytest.raises(ModelError, match="does not give its golden answers"):
        forged.scorer(runtime)


def test_a_bundle_of_a_newer_rayrec_says_so(copied: Published) -> None:
    storage, release = copied
    manifest = release.bundle().manifest | {"oldest_reader": 99}
    path = f"models/small/{short_digest(manifest)}"
    shutil.copytree(release.bundle().folder, storage.full(path))
    storage.replace(f"{path}/{MANIFEST}", canonical(manifest))
    with pytest.raises(ModelError, match="newer rayrec"):
        open_bundle(storage, path)


# ---- Releases


def test_the_same_content_is_the_same_release(published: Published) -> None:
    storage, release = published
    assert publish_release(storage, {k: v for k, v in release.content.items() if k != "schema"}) == release
    assert open_release(storage, release.digest).content == release.content
    assert release.name == "small"


@pytest.mark.parametrize("changed", [b'{"name":"other"}', b"{", b"[]"])
def test_a_changed_release_is_refused(copied: Published, changed: bytes) -> None:
    storage, release = copied
    storage.replace(release.path, changed)
    with pytest.raises(ModelError, match=r"was changed|is damaged"):
        open_release(storage, release.digest)


def test_a_release_that_is_not_there_is_one_message(published: Published) -> None:
    with pytest.raises(ModelError, match="there is no Release 0123"):
        open_release(published[0], "0123")


def test_a_release_whose_model_is_gone_is_one_message(copied: Published) -> None:
    storage, release = copied
    storage.remove(release.content["models"]["main"])
    with pytest.raises(ModelError, match="not a published artifact"):
        release.bundle()


# ---- features


def test_the_graph_answers_like_torch_with_features(planted: Planted) -> None:
    bundle = open_bundle(planted.job.storage, planted.bundle)
    graph, eager = bundle.scorer("onnx"), bundle.scorer("torch")
    assert bundle.manifest["signature"].keys() == {"history", "user", "context", "scores"}
    assert graph.widths == {"user": 3, "context": 2}
    random = np.random.default_rng(0)
    for size in (1, 3):
        histories = [random.integers(1, len(graph.item_keys) + 1, n) for n in range(size)]
        known = [
            Context(None, random.random(3, np.float32), random.random(2, np.float32)),
            Context(None, None, np.ones(2, np.float32)),
            Context(),
        ]
        found, expected = graph.score(histories, known[:size]), eager.score(histories, known[:size])
        np.testing.assert_allclose(found[:, 1:], expected[:, 1:], atol=1e-5)
        assert np.abs(found[0, 1:] - graph.score(histories)[0, 1:]).min() > 1e-3, "features count"


def test_golden_requests_have_features_that_are_nobodys(planted: Planted) -> None:
    with pa.memory_map(str(open_bundle(planted.job.storage, planted.bundle).folder / "golden.arrow")) as file:
        golden = pa.ipc.open_file(file).read_all().to_pydict()
    for name, width in (("user", 3), ("context", 2)):
        rows = np.array(golden[name])
        assert set(rows.ravel()) == {0.0, 1.0}
        assert rows.any(axis=0).sum() == width
