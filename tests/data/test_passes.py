"""Passes: results in the order of the items, and errors of workers as what they are."""

from __future__ import annotations

import time
from pathlib import Path

import pyarrow as pa
import pytest

from rayrec import errors
from rayrec.data.passes import Row, from_bytes, parquet_bytes, run_pass, to_bytes

pytestmark = pytest.mark.usefixtures("ray_cluster")


def test_results_come_in_the_order_of_the_items_unchanged() -> None:
    values = [b"", b"\0", b"a\0\0", b"\0\0b"]

    def work(row: Row) -> Row:
        time.sleep(0.1 * (row["position"] == 0))
        return {"bytes": row["bytes"] + b"\0", "text": "\0ü" * row["position"], "number": 2**62 + row["position"]}

    results = run_pass(work, ({"bytes": value} for value in values))
    assert [row["bytes"] for row in results] == [value + b"\0" for value in values]
    assert [row["text"] for row in results] == ["\0ü" * n for n in range(4)]
    assert [int(row["number"]) for row in results] == [2**62 + n for n in range(4)]


def test_every_error_of_rayrec_comes_back_as_itself_and_others_with_their_traceback(tmp_path: Path) -> None:
    known = [cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, Exception)]
    assert len(known) > 5

    def work(row: Row) -> Row:
        from rayrec import errors

        if row["name"] == "slow":
            time.sleep(0.5)
            (tmp_path / "done").write_text("")
            return {}
        if row["name"] == "bug":
            raise ZeroDivisionError("something nobody thought of")
        raise getattr(errors, row["name"])(f"what {row['name']} says")

    for cls in known:
        with pytest.raises(errors.RayrecError) as caught:
            run_pass(work, [{"name": cls.__name__}])
        assert (type(caught.value), str(caught.value)) == (cls, f"what {cls.__name__} says")
    with pytest.raises(RuntimeError, match=r"(?s)bug of rayrec.*Traceback.*something nobody thought of"):
        run_pass(work, [{"name": "bug"}, {"name": "slow"}])
    # Nothing writes any more, so a caller can remove what was written.
    assert (tmp_path / "done").exists()


def test_no_items_need_no_pass() -> None:
    assert run_pass(dict, []) == []


def test_tables_travel_as_bytes() -> None:
    table = pa.table({"a": ["x", None], "b": [1, 2]})
    assert from_bytes(to_bytes(table)).equals(table)
    assert parquet_bytes(table) == parquet_bytes(table.take([0, 1]))
