"""The benchmark of preparation: what it measures on, and that its programs do the same job."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
from benchmarks.prepare import COLUMNS, DIRTY, generate, pandas_job, polars_job

ROWS = 20_000


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate(tmp_path_factory.mktemp("logs"), ROWS, files=2, seed=0)


def test_each_flaw_is_in_two_rows_of_a_thousand(logs: Path) -> None:
    events = pl.read_csv(logs / "*.csv", schema=dict.fromkeys(COLUMNS, pl.String))
    flawed = [
        events["user"].is_null(),
        events["item"].is_null(),
        events["timestamp"] == "yesterday",
        events["rating"] == "good",
        ~events.select(pl.struct(pl.all()).is_first_distinct()).to_series(),
    ]
    assert events.height == ROWS
    for flaw in flawed:
        assert flaw.sum() == pytest.approx(DIRTY * ROWS, rel=0.5)


def test_the_same_parameters_give_the_same_logs(logs: Path, tmp_path: Path) -> None:
    again = generate(tmp_path, ROWS, files=2, seed=0)
    assert [path.read_bytes() for path in sorted(again.iterdir())] == [p.read_bytes() for p in sorted(logs.iterdir())]


def test_polars_and_pandas_leave_the_same(logs: Path, tmp_path: Path) -> None:
    left = polars_job(logs, tmp_path)
    assert pandas_job(logs, tmp_path) == left
    assert 0 < left["users"] < ROWS / 20
