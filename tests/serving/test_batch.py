"""Recommendations for everybody, into a file: what the endpoint would answer."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from rayrec.artifacts import Storage
from rayrec.cli import app
from rayrec.cli_recommend import MOST
from rayrec.errors import ModelError, StorageError
from rayrec.inference.release import Release
from rayrec.serving import batch
from rayrec.serving.batch import RELEASE, Answers, recommend_all
from rayrec.serving.engine import Engine, histories_of
from rayrec.serving.schemas import MAX_COUNT


@pytest.fixture(scope="module")
def written(release: Release, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recommendations of all users of one Release, a few at a time."""
    out = tmp_path_factory.mktemp("batch") / "all.parquet"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch, "USERS_AT_A_TIME", 16)
        known = recommend_all(release, 7, out)
    assert known == len(set(pq.read_table(out)["user"].to_pylist()))
    return out


def test_everybody_gets_what_the_endpoint_answers(release: Release, written: Path) -> None:
    engine, table = Engine.load(release.storage, release.digest), pq.read_table(written)
    users = list(histories_of(release).users.users)
    assert list(dict.fromkeys(table["user"].to_pylist())) == users, "in the Dataset's order"
    for user in users:
        rows = table.filter(np.array(table["user"].to_pylist()) == user).to_pylist()
        query = engine.user_query(user, 7, 0)
        assert query is not None
        answer = engine.answer([query])[0]
        assert [row["item"] for row in rows] == [scored.item.item for scored in answer.items]
        assert [row["rank"] for row in rows] == list(range(1, 8))
        np.testing.assert_allclose([row["score"] for row in rows], [s.score for s in answer.items], atol=1e-5)
        assert {row["source"] for row in rows} == {answer.source}
    assert pq.read_schema(written).metadata[RELEASE].decode() == release.digest


def test_erased_users_have_no_rows(release: Release) -> None:
    histories = histories_of(release)
    keys = pa.array(list(histories.users.users))
    some = pa.array([None if place == 1 else key for place, key in enumerate(keys.to_pylist())], pa.string())
    answers = Answers(Engine.load(release.storage, release.digest), histories, some, 3)
    found = answers({"id": np.arange(3)})
    assert found["user"].to_pylist() == [keys[0].as_py()] * 3 + [keys[2].as_py()] * 3
    assert answers({"id": np.array([1])}).num_rows == 0


def test_a_damaged_release_is_one_message_and_what_was_there_stays(release: Release, tmp_path: Path) -> None:
    out = tmp_path / "all.parquet"
    out.write_text("before")
    gone = Release(release.storage, release.content | {"models": {**release.content["models"], "main": "models/gone"}})
    with pytest.raises(ModelError) as caught:
        recommend_all(gone, 3, out)
    assert "Traceback" not in str(caught.value)
    assert (out.read_text(), [path.name for path in tmp_path.iterdir()]) == ("before", ["all.parquet"])


def test_a_file_that_cannot_be_put_in_place_is_said(release: Release, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(StorageError, match="cannot be written"):
        recommend_all(release, 3, tmp_path / "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_link_stays_one_and_what_killed_commands_left_goes(release: Release, tmp_path: Path) -> None:
    (tmp_path / "link.parquet").symlink_to(tmp_path / "all.parquet")
    ended = subprocess.Popen(["true"])
    ended.wait()
    left = tmp_path / f".rayrec-{socket.gethostname()}-{ended.pid}.part"
    left.write_text("half")
    recommend_all(release, 1, tmp_path / "link.parquet")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all.parquet", "link.parquet"]
    assert (tmp_path / "link.parquet").is_symlink()


def invoke(*arguments: str) -> tuple[int, str, str]:
    found = CliRunner().invoke(app, ["recommend", *arguments])
    return found.exit_code, found.stdout, found.stderr


@pytest.fixture
def home(release: Release, monkeypatch: pytest.MonkeyPatch) -> Storage:
    """The storage in which the Release is registered."""
    monkeypatch.setenv("RAYREC_HOME", str(release.storage.root))
    return release.storage


def test_one_user_for_a_look(home: Storage, release: Release) -> None:
    code, out, _ = invoke("served", "u1", "-n", "3")
    assert code == 0
    assert "served/1 for u1 (source: model)" in out
    code, out, _ = invoke("served", "nobody", "--json")
    answer = json.loads(out)
    assert (answer["known"], answer["source"], len(answer["items"])) == (False, "popular", 10)
    assert answer["release"] == release.digest


def test_all_users_from_the_command_line(home: Storage, tmp_path: Path) -> None:
    out = tmp_path / "all.parquet"
    code, printed, _ = invoke("served", "--all-users", "--out", str(out), "-n", "2", "--json")
    assert code == 0
    assert json.loads(printed)["users"] * 2 == pq.read_metadata(out).num_rows
    code, _, _ = invoke("served", "--all-users", "--out", str(out), "-n", "1")
    assert code == 0, "a file of ours may be written over"


def test_a_pipe_is_not_waited_for(home: Storage, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    code, _, errors = invoke("served", "--all-users", "--out", str(tmp_path / "pipe"))
    assert code == 2
    assert "was not written by rayrec" in " ".join(errors.split())


def test_as_many_items_as_over_http() -> None:
    assert MOST == MAX_COUNT


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["served"], "name a user, or give --all-users"),
        (["served", "u1", "--all-users"], "name a user, or give --all-users"),
        (["served", "--all-users"], "--all-users and --out FILE.parquet go together"),
        (["served", "u1", "--out", "x.parquet"], "go together"),
        (["served", "u1", "-n", "1001"], "less than or equal to 1000"),
        (["served", "--all-users", "--out", "/nowhere/x.parquet"], "there is no folder"),
        (["served", "--all-users", "--out", "/dev/full"], "was not written by rayrec"),
        (["served", "\udcff"], "the user is no text"),
    ],
)
def test_what_does_not_go_together_is_refused(home: Storage, arguments: list[str], message: str) -> None:
    code, _, errors = invoke(*arguments)
    assert code == 2
    assert message in " ".join(errors.replace("│", " ").split())


def test_a_file_of_somebody_else_is_not_written_over(home: Storage, tmp_path: Path) -> None:
    out = tmp_path / "mine.parquet"
    out.write_text("mine")
    code, _, errors = invoke("served", "--all-users", "--out", str(out))
    assert (code, out.read_text()) == (2, "mine")
    assert "was not written by rayrec" in " ".join(errors.split())
