"""MLflow: runs nest, the registry keeps who was champion, and a server that is not there is one message."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from rayrec.errors import ModelError, StorageError
from rayrec.tracking import (
    CANDIDATE,
    CHAMPION,
    RegisteredRelease,
    TrackedRun,
    Tracker,
    find_release,
    flatten,
    mlflow_name,
    registered_names,
    split_reference,
    tracking_uri,
)


@pytest.fixture
def tracker(home: Path) -> Tracker:
    return Tracker("movies")


@pytest.fixture
def run(tracker: Tracker) -> TrackedRun:
    return tracker.begin("pipeline")


def register(tracker: Tracker, run: TrackedRun, tmp_path: Path, digest: str) -> RegisteredRelease:
    reference = tmp_path / "reference"
    reference.mkdir(exist_ok=True)
    (reference / "release.json").write_text("{}")
    return tracker.register(run, digest, "/storage", reference, "a release", simulated=False)


@pytest.fixture
def three(tracker: Tracker, run: TrackedRun, tmp_path: Path) -> list[RegisteredRelease]:
    """Three versions."""
    return [register(tracker, run, tmp_path, digest) for digest in ("a", "b", "c")]


def logged(tracker: Tracker, run: TrackedRun) -> Any:
    return tracker.client.get_run(run.id)


# ---- runs


def test_a_stage_runs_below_its_pipeline(tracker: Tracker, run: TrackedRun) -> None:
    with tracker.run("train", run) as stage:
        stage.metrics({"ndcg@10": 0.25}, step=3)
    found = logged(tracker, stage)
    assert found.data.tags["mlflow.parentRunId"] == run.id
    assert found.data.tags["mlflow.runName"] == "train"
    assert found.data.metrics == {"ndcg_at_10": 0.25}
    assert found.info.status == "FINISHED"
    assert found.info.experiment_id == logged(tracker, run).info.experiment_id


@pytest.mark.parametrize(("error", "status"), [(ValueError, "FAILED"), (KeyboardInterrupt, "KILLED")])
def test_a_run_ends_as_its_work_did(tracker: Tracker, run: TrackedRun, error: type[BaseException], status: str) -> None:
    with pytest.raises(error), tracker.run("train", run) as stage:
        raise error
    assert logged(tracker, stage).info.status == status


def test_what_failed_is_told_even_when_mlflow_fails_too(
    tracker: Tracker, run: TrackedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: Any) -> None:
        raise StorageError("the server went away")

    monkeypatch.setattr(tracker, "end", gone)
    with pytest.raises(ValueError, match="the real reason"), tracker.run("train", run):
        raise ValueError("the real reason")


@pytest.mark.parametrize(
    ("name", "expected"),
    [("ndcg@10", "ndcg_at_10"), ("test/hr@1", "test/hr_at_1"), ("loss", "loss"), (">200", "over_200")],
)
def test_one_function_maps_names_of_metrics(name: str, expected: str) -> None:
    assert mlflow_name(name) == expected


def test_parameters_may_be_nested_long_and_many(tracker: Tracker, run: TrackedRun) -> None:
    run.params({"long": "x" * 10_000, "data": {"split": {"kind": "time"}}, **{f"p{n}": n for n in range(150)}})
    found = logged(tracker, run).data.params
    assert set(found["long"]) == {"x"}
    assert found["data.split.kind"] == "time"
    assert found["p149"] == "149"


def test_metrics_may_be_many(tracker: Tracker, run: TrackedRun) -> None:
    run.metrics({f"m{n}": n for n in range(1100)})
    assert len(logged(tracker, run).data.metrics) == 1100


def test_a_dataset_is_a_runs_input(tracker: Tracker, run: TrackedRun) -> None:
    run.dataset("movies", "abc", "file:///x", "training", {"users": 3})
    (entry,) = logged(tracker, run).inputs.dataset_inputs
    assert (entry.dataset.name, entry.dataset.digest) == ("movies", "abc")


def test_two_pipelines_share_the_experiment_of_their_name(tracker: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    other = Tracker("movies")
    looks = iter([None, tracker.client.get_experiment])

    def look(_name: str) -> Any:
        """The first look finds nothing; then the other pipeline makes it."""
        then = next(looks)
        return then(tracker.experiment) if then else None

    monkeypatch.setattr(other.client._client, "get_experiment_by_name", look)  # type: ignore[attr-defined]
    assert tracker.experiment
    assert tracker.experiment == other.experiment


def test_nested_values_become_dotted_keys() -> None:
    assert flatten({"a": {"b": {"c": 1}}, "d": [1]}) == {"a.b.c": 1, "d": [1]}


# ---- the registry


def test_the_newest_release_is_the_candidate(tracker: Tracker, three: list[RegisteredRelease]) -> None:
    assert [release.version for release in tracker.releases()] == [1, 2, 3]
    assert find_release(f"movies@{CANDIDATE}").digest == "c"
    assert find_release("movies/2").digest == "b"
    assert find_release("movies/2").storage == "/storage"
    assert registered_names() == ["movies"]
    assert tracker.champion() is None


def test_a_promoted_release_answers_to_the_name(tracker: Tracker, three: list[RegisteredRelease]) -> None:
    assert tracker.promote(2).aliases == (CHAMPION,)
    assert find_release("movies").version == 2
    tracker.promote(3)
    assert find_release("movies").version == 3


def test_rolling_back_goes_through_the_champions_backwards(tracker: Tracker, three: list[RegisteredRelease]) -> None:
    for version in (1, 3, 2, 3):
        tracker.promote(version)
    assert tracker.rollback().version == 2
    assert tracker.rollback().version == 1
    with pytest.raises(ModelError, match="no earlier champion"):
        tracker.rollback()


def test_rolling_back_from_a_deleted_champion_goes_to_the_one_before(
    tracker: Tracker, three: list[RegisteredRelease]
) -> None:
    for version in (1, 2, 3):
        tracker.promote(version)
    tracker.delete(3)
    assert tracker.champion() is None
    assert tracker.rollback().version == 2


def test_rolling_back_passes_over_deleted_versions(tracker: Tracker, three: list[RegisteredRelease]) -> None:
    for version in (1, 2, 3):
        tracker.promote(version)
    tracker.delete(2)
    assert tracker.rollback().version == 1


def test_a_champion_set_in_mlflow_itself_can_be_rolled_back(tracker: Tracker, three: list[RegisteredRelease]) -> None:
    tracker.promote(1)
    MlflowClient(tracker.uri).set_registered_model_alias("movies", CHAMPION, "3")
    assert tracker.rollback().version == 1


def test_models_of_others_on_the_same_server_are_left_alone(tracker: Tracker, three: list[RegisteredRelease]) -> None:
    client = MlflowClient(tracker.uri)
    client.create_registered_model("theirs")
    client.create_model_version("theirs", "file:///nowhere/model", None)
    assert registered_names() == ["movies"]
    with pytest.raises(ModelError, match="no Release called 'theirs'"):
        find_release("theirs")


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("film", "no Release called 'film'"),
        ("movies", "'movies' is not registered. There is: movies/1, movies/2, movies/3 (@candidate)."),
        ("movies@best", "is not registered. There is"),
        ("movies/9", "is not registered. There is"),
        ("movies/x", "is no reference. Write NAME"),
        ("movies/²", "is no reference. Write NAME"),
        ("movies/", "is no reference. Write NAME"),
        ("o'brien", "is no reference. Write NAME"),
        ("", "is no reference. Write NAME"),
    ],
)
def test_a_reference_that_leads_nowhere_says_where_others_lead(
    three: list[RegisteredRelease], reference: str, expected: str
) -> None:
    with pytest.raises(ModelError) as caught:
        find_release(reference)
    assert expected in str(caught.value)


def test_deleting_or_promoting_what_is_not_there_is_one_message(tracker: Tracker, home: Path) -> None:
    for act in (tracker.delete, tracker.promote):
        with pytest.raises(ModelError, match="no Release called 'movies'"):
            act(1)


@pytest.mark.parametrize(
    ("reference", "parts"),
    [("m", ("m", CHAMPION, None)), ("m@candidate", ("m", "candidate", None)), ("m/12", ("m", None, 12))],
)
def test_a_reference_is_a_name_an_alias_or_a_version(reference: str, parts: tuple[Any, ...]) -> None:
    assert split_reference(reference) == parts


# ---- a server that is not there


def test_runs_go_to_the_home_unless_a_server_is_named(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tracking_uri() == f"sqlite:///{home}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.example")
    assert tracking_uri() == "http://mlflow.example"


@pytest.mark.parametrize("act", [lambda: Tracker("x").begin("pipeline"), lambda: find_release("x")])
def test_an_unreachable_server_is_one_message_soon_and_without_the_password(
    act: Any, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:pass@word@127.0.0.1:9")
    began = time.perf_counter()
    with pytest.raises(StorageError) as caught:
        act()
    assert time.perf_counter() - began < 20
    text = str(caught.value)
    assert "MLflow at http://127.0.0.1:9 cannot be used" in text
    assert "MLFLOW_TRACKING_URI" in text
    assert "word" not in text
    assert len(text.splitlines()) == 1


@pytest.mark.parametrize("uri", ["carrier-pigeon://loft", "sqlite:////proc/nowhere/mlflow.db", "/proc/nowhere"])
def test_a_uri_that_mlflow_cannot_use_is_one_message(uri: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(StorageError, match="cannot be used"):
        Tracker("x").begin("pipeline")


def test_a_server_that_goes_away_in_the_middle_is_one_message(
    tracker: Tracker, run: TrackedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: Any, **__: Any) -> None:
        raise ConnectionError("connection reset by peer")

    monkeypatch.setattr(tracker.client._client, "log_batch", gone)  # type: ignore[attr-defined]
    with pytest.raises(StorageError, match="connection reset by peer"):
        run.metrics({"loss": 1.0})


def test_what_a_killed_command_left_running_is_ended_by_the_one_that_takes_it_up(home: Path) -> None:
    tracker = Tracker("movies")
    dead_parent = tracker.begin("tune")
    dead = tracker.begin("train", dead_parent)
    tracker.take_up(dead, "same")
    trial = tracker.begin("trial 0", dead)
    other = tracker.begin("train")
    tracker.take_up(other, "another")
    parent = tracker.begin("tune")
    run = tracker.begin("train", parent)
    tracker.take_up(run, "same")

    def status(of: TrackedRun) -> str:
        return str(tracker.client.get_run(of.id).info.status)

    assert [status(of) for of in (dead_parent, dead, trial)] == ["KILLED"] * 3
    assert [status(of) for of in (other, parent, run)] == ["RUNNING"] * 3


def test_a_failed_run_says_why(home: Path) -> None:
    tracker = Tracker("movies")
    with pytest.raises(ValueError, match="no such thing"), tracker.run("train") as run:
        raise ValueError("no such thing")
    found = tracker.client.get_run(run.id)
    assert (found.info.status, found.data.tags["rayrec.error"]) == ("FAILED", "ValueError: no such thing")
