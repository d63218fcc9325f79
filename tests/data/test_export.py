"""Export: the matrix equals a brute-force one, and loads without pickle."""

from __future__ import annotations

import random
from collections import defaultdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy import sparse

from rayrec.artifacts import Storage, canonical
from rayrec.data.dataset import Dataset, write_table
from rayrec.data.export import Values, export_csr, view_csr
from rayrec.errors import DataError, StorageError

Event = tuple[int, int, float | None, int]
"""Index of the user, of the item, value, fold; the index is the number in the key."""

USERS, ITEMS = 12, 20


def random_events(seed: int) -> list[Event]:
    """Users in order; user 5 and item 7 are in the vocabulary, not in the view."""
    generator = random.Random(seed)
    users = sorted(generator.choices([user for user in range(1, USERS) if user != 5], k=300))
    items = generator.choices([item for item in range(1, ITEMS) if item != 7], k=300)
    value = [generator.choice([None, 0.0, 1.5, 4.0]) for _ in users]
    return [(*event, generator.choice([0, 0, 1, 2])) for event in zip(users, items, value, strict=True)]


def dataset_of(store: Storage, events: list[Event], valued: bool = True) -> Dataset:
    """A Dataset with the view ``v`` of these events, in two shards."""

    def vocabulary(name: str, size: int) -> pa.Table:
        return pa.table({"key": [f"{name}{i}" for i in range(1, size)], "index": list(range(1, size))})

    def shard(users: list[int]) -> pa.Table:
        by_user = [[event for event in events if event[0] == user] for user in users]
        columns = {name: [[e[n] for e in mine] for mine in by_user] for n, name in ((1, "items"), (3, "fold_ratio"))}
        values = {"values": pa.array([[e[2] for e in mine] for mine in by_user], pa.list_(pa.float64()))}
        return pa.table({"user": users, **columns, **(values if valued else {})})

    users, items = (sorted({event[n] for event in events}) for n in (0, 1))
    vocab = {"user": vocabulary("u", USERS), "item": vocabulary("i", ITEMS)}
    view = {
        "split": {"kind": "ratio"},
        "items": write_table(store, "d", "views/v", pa.table({"index": items})),
        # The later users first: the order of shards must not matter.
        "shards": [write_table(store, "d", "views/v", shard(part)) for part in (users[6:], users[:6])],
    }
    store.write_new("datasets/d/views/v/view.json", canonical(view))
    listed = {name: write_table(store, "d", "vocab", table) for name, table in vocab.items()}
    return Dataset(store, "d", 1, {"vocab": listed, "order": "source"})


def brute_force(events: list[Event], folds: tuple[int, ...], values: Values) -> dict[tuple[str, str], float]:
    found: dict[tuple[str, str], list[float | None]] = defaultdict(list)
    for user, item, value, fold in events:
        if fold in folds:
            found[f"u{user}", f"i{item}"].append(value)
    if values in ("ones", "counts"):
        return {pair: 1 if values == "ones" else len(group) for pair, group in found.items()}
    given = {pair: [v for v in group if v is not None] for pair, group in found.items()}
    return {pair: sum(group) if values == "sum" else group[-1] for pair, group in given.items() if group}


@pytest.mark.parametrize("values", ["ones", "counts", "sum", "last"])
@pytest.mark.parametrize(("folds", "numbers"), [(("train",), (0,)), (("train", "validation", "test"), (0, 1, 2))])
@pytest.mark.parametrize("seed", range(3))
def test_the_matrix_equals_brute_force(
    store: Storage, seed: int, folds: tuple[str, ...], numbers: tuple[int, ...], values: Values
) -> None:
    events = random_events(seed)
    found = view_csr(dataset_of(store, events), "v", folds, values)
    users, items = found.users.to_pylist(), found.items.to_pylist()
    cells = found.matrix.tocoo()
    assert dict(
        zip(((users[r], items[c]) for r, c in zip(cells.row, cells.col, strict=True)), cells.data, strict=True)
    ) == brute_force(events, numbers, values)
    assert found.matrix.shape == (len({e[0] for e in events}), len({e[1] for e in events}))
    assert found.matrix.dtype == np.float32


def test_what_is_written_loads_without_pickle(store: Storage, tmp_path: Path) -> None:
    dataset = dataset_of(store, random_events(0))
    for _ in range(2):
        export_csr(dataset, "v", tmp_path / "out", values="counts")
    found = view_csr(dataset, "v", values="counts")
    loaded = sparse.load_npz(tmp_path / "out" / "interactions.npz")
    assert (loaded != found.matrix).nnz == 0
    for name, keys in (("users", found.users), ("items", found.items)):
        assert pq.read_table(tmp_path / "out" / f"{name}.parquet")["key"].combine_chunks() == keys


def test_values_of_a_view_without_any_are_refused(store: Storage) -> None:
    dataset = dataset_of(store, random_events(0), valued=False)
    with pytest.raises(DataError, match=r"no values to export. Map `columns.value`"):
        view_csr(dataset, "v", values="last")


def test_a_fold_that_does_not_exist_is_refused(store: Storage) -> None:
    with pytest.raises(DataError, match=r"folds to export: dev\. Give some of train, validation, test"):
        view_csr(dataset_of(store, random_events(0)), "v", ("train", "dev"))


def test_a_folder_that_is_a_file_is_an_error_that_says_so(store: Storage, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(StorageError, match="cannot be written"):
        export_csr(dataset_of(store, random_events(0)), "v", tmp_path / "out")
