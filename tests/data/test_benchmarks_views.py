"""The views of public data sets are those of the literature. RAYREC_BENCH_DATA names the folder; else tests skip."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from rayrec.artifacts import Storage
from rayrec.data.dataset import read_part
from rayrec.data.prepare import Prepared, prepare
from rayrec.data.splits import TEST, TRAIN, VALIDATION
from rayrec.data.views import load_view, open_view
from rayrec.recipe_files import parse_recipe

BESIDE = Path(__file__).parents[3] / "shared" / "data"


@pytest.fixture
def data_set() -> Callable[[str], Path]:
    """The folder of a data set; the test is skipped where it is not."""

    def find(name: str) -> Path:
        folder = Path(os.environ.get("RAYREC_BENCH_DATA") or BESIDE) / name
        if not folder.is_dir():
            pytest.skip(f"there is no {folder}: RAYREC_BENCH_DATA names the folder of the data sets")
        return folder

    return find


def sequences(prepared: Prepared) -> pd.DataFrame:
    """The events of a view, by user and in order: keys as numbers, folds."""
    view = load_view(prepared.dataset, prepared.view)
    users = prepared.dataset.vocabulary("user")["key"].cast(pa.int64()).to_numpy()
    items = np.array(view.item_keys, np.int64)
    return pd.DataFrame(
        {
            "user": np.repeat(users[view.users - 1], view.histories.lengths),
            "item": items[view.histories.items - 1],
            "fold": view.folds,
        }
    )


def test_movielens_1m_comes_out_as_in_the_literature(
    without_ray: None, data_set: Callable[[str], Path], store: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rayrec.data.prepare.PARTITION_BYTES", 1 << 20)
    path = data_set("ml-1m") / "ratings.parquet"
    columns = {"user": "user_id", "item": "item_id", "timestamp": "timestamp", "value": "rating"}
    data = {"sources": [{"path": str(path), "columns": columns}], "view": {"min_item_events": 5}}
    prepared = prepare(parse_recipe({"name": "ml-1m", "data": data}), store)
    counts = open_view(prepared.dataset, prepared.view)["counts"]
    assert [counts[name] for name in ("users", "items", "events")] == [6_040, 3_416, 999_611]
    assert [counts[name] for name in ("validation", "test")] == [6_040, 6_040]
    ratings = pd.read_parquet(path).sort_values(["user_id", "timestamp"], kind="stable")
    kept = ratings[ratings.groupby("item_id")["item_id"].transform("size") >= 5]
    found = sequences(prepared).sort_values("user", kind="stable")
    assert found["user"].tolist() == kept["user_id"].tolist()
    assert found["item"].tolist() == kept["item_id"].tolist()
    left = found.groupby("user").cumcount(ascending=False)
    assert found["fold"].tolist() == left.map({0: TEST, 1: VALIDATION}).fillna(TRAIN).tolist()
    shards = [
        read_part(store, shard, ["user", "values"]) for shard in open_view(prepared.dataset, prepared.view)["shards"]
    ]
    assert pa.concat_tables(shards)["values"].combine_chunks().flatten().to_numpy().sum() == kept["rating"].sum()


def test_the_given_split_of_gowalla_comes_out_as_given(
    without_ray: None, data_set: Callable[[str], Path], store: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rayrec.data.prepare.PARTITION_BYTES", 1 << 20)
    folder, columns = data_set("gowalla"), {"user": "user_id", "item": "item_id"}
    sources = [
        {"path": str(folder / f"{fold}.parquet"), "columns": columns, "fold": fold} for fold in ("train", "test")
    ]
    data = {"sources": sources, "split": {"kind": "given"}, "view": {"min_user_events": 1}}
    prepared = prepare(parse_recipe({"name": "gowalla", "data": data}), store)
    counts = open_view(prepared.dataset, prepared.view)["counts"]
    expected = {
        "users": 29_858,
        "items": 40_981,
        "events": 1_027_370,
        "train": 810_128,
        "validation": 0,
        "test": 217_242,
    }
    assert counts == expected
    found = sequences(prepared)
    for name, fold in (("train", TRAIN), ("test", TEST)):
        given = pd.read_parquet(folder / f"{name}.parquet").sort_values("user_id", kind="stable")
        mine = found[found["fold"] == fold].sort_values("user", kind="stable")
        assert mine["user"].tolist() == given["user_id"].tolist()
        assert mine["item"].tolist() == given["item_id"].tolist()
