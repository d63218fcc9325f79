"""The pipeline: stages run once, again when what they read changes, and never half."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from tests.graphs import leave_out_graphs
from tests.recipes import EVENTS, USERS, recipe_values, write_log
from tests.watching import Silent

from rayrec import pipeline
from rayrec.artifacts import Storage
from rayrec.errors import RayrecError
from rayrec.inference.bundle import open_bundle
from rayrec.inference.release import open_release
from rayrec.inventory import collect_garbage, find_garbage, inventory
from rayrec.pipeline import Pipeline, RunResult
from rayrec.recipe_files import parse_recipe
from rayrec.tracking import Tracker, tracking_uri
from rayrec.training import train
from rayrec.training.run import Run

pytestmark = pytest.mark.usefixtures("ray_cluster")


def run(storage: Storage, log: Path, **sections: Any) -> RunResult:
    with pytest.MonkeyPatch.context() as patch:
        leave_out_graphs(patch)
        return pipeline.run(parse_recipe(recipe_values(log, **sections)), storage, Silent())


def snapshot(folder: Path) -> dict[str, int]:
    """Every file below a folder with when it was written."""
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


def test_a_run_leaves_a_champion_that_beats_popularity_and_loads_in_mlflow(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = write_log(tmp_path)
    recipe = parse_recipe(recipe_values(log, training={**recipe_values(log)["training"], "epochs": 25}))
    result = pipeline.run(recipe, storage, Silent())

    printed = json.loads(json.dumps(result.to_json()))
    assert printed["dataset"]["counts"]["events"] == USERS * EVENTS
    assert printed["metrics"]["test"]["ndcg@10"] > printed["baseline"]["test"]["ndcg@10"] + 0.2
    assert printed["release"]["promoted"] is True
    assert Path(printed["release"]["uri"]).is_file()
    assert set(printed["stages"]) == {"prepare", "baseline", "train", "evaluate", "register"}
    # Not set_tracking_uri(), which would set the variable for all tests that follow.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_uri())
    loaded = mlflow.pyfunc.load_model("models:/tiny@champion")
    answer = loaded.predict(pd.DataFrame({"history": ["i3 i4 i5"]}))
    assert answer["items"][0][0] == "i6"
    assert len(answer["items"][0]) == 10


def test_the_same_run_again_skips_everything_and_changes_nothing(storage: Storage, tmp_path: Path) -> None:
    log = write_log(tmp_path)
    first = run(storage, log)
    before = snapshot(Path(storage.uri))
    runs = len(Tracker("tiny").client.search_runs([Tracker("tiny").experiment]))

    second = run(storage, log)

    assert all(outcome.skipped for outcome in second.stages.values())
    assert second.release == first.release
    assert second.metrics == first.metrics
    assert len(Tracker("tiny").client.search_runs([Tracker("tiny").experiment])) == runs
    after = snapshot(Path(storage.uri))
    assert {p: t for p, t in after.items() if "mlflow.db" not in p} == {
        p: t for p, t in before.items() if "mlflow.db" not in p
    }


def test_the_curve_of_a_training_that_is_taken_up_is_whole(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_out_graphs(monkeypatch)
    log, told = write_log(tmp_path), Silent()
    recipe = parse_recipe(recipe_values(log, training={**recipe_values(log)["training"], "epochs": 4, "patience": 4}))

    def interrupted(run: Run, *others: Any) -> None:
        after_epoch(run, *others)
        if run.progress.epoch == 2:
            raise KeyboardInterrupt

    after_epoch = train._after_epoch
    with monkeypatch.context() as context, pytest.raises(KeyboardInterrupt), Pipeline(recipe, storage, told) as first:
        context.setattr(train, "_after_epoch", interrupted)
        first.train(*first.prepare())
    with Pipeline(recipe, storage, told) as second:
        second.train(*second.prepare())

    assert [entry["epoch"] for entry in told.epochs] == [1, 2, 3, 4], "in the terminal each is told of once"
    tracker = Tracker("tiny")
    (run, *_) = tracker.client.search_runs([tracker.experiment], "tags.`mlflow.runName` = 'train'")
    curve = tracker.client.get_metric_history(run.info.run_id, "loss")
    assert [point.step for point in curve] == [1, 2, 3, 4]


def test_files_that_were_appended_need_no_other_prepare_and_the_report_says_what_changed(
    storage: Storage, tmp_path: Path
) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    log = write_log(tmp_path).rename(logs / "monday.csv")
    values = recipe_values(tmp_path / "log.csv")
    values["data"]["sources"][0]["path"] = str(logs)
    recipe = parse_recipe(values)
    with Pipeline(recipe, storage, Silent()) as first:
        assert first.prepare()[0].number == 1
    (logs / "tuesday.csv").write_text(log.read_text().replace("u1,", "new,"))

    with Pipeline(recipe, storage, Silent(), append=True) as second:
        dataset, view = second.prepare()

    assert (dataset.number, dataset.manifest["parent"]) == (2, 1)
    with Pipeline(recipe, storage, Silent()) as third:
        assert third.prepare() == (dataset, view)
    assert third.outcomes["prepare"].skipped
    report = storage.read("datasets/tiny/reports/000002.html").decode()
    assert "parent 1" in report
    tracker = Tracker("tiny")
    runs = tracker.client.search_runs([tracker.experiment], "tags.`mlflow.runName` = 'prepare'")
    artifacts = [[file.path for file in tracker.client.list_artifacts(run.info.run_id)] for run in runs]
    assert all("report.html" in files for files in artifacts)
    assert len(artifacts) == 2


def test_other_epochs_run_again_from_training_only(storage: Storage, tmp_path: Path) -> None:
    log = write_log(tmp_path)
    run(storage, log)

    again = run(storage, log, training={**recipe_values(log)["training"], "epochs": 4})

    skipped = {name: outcome.skipped for name, outcome in again.stages.items()}
    assert skipped == {"prepare": True, "baseline": True, "train": False, "evaluate": False, "register": False}
    assert again.release.version == 2


def test_changed_data_runs_everything_again(storage: Storage, tmp_path: Path) -> None:
    log = write_log(tmp_path)
    run(storage, log)
    with log.open("a", encoding="utf-8") as file:
        file.write("u1,i1,1800000000\n")

    again = run(storage, log)

    assert not any(outcome.skipped for outcome in again.stages.values())
    assert again.dataset.number == 2


def test_a_worse_model_is_registered_but_not_promoted(storage: Storage, tmp_path: Path) -> None:
    log = write_log(tmp_path)
    good = run(storage, log, training={**recipe_values(log)["training"], "epochs": 25})

    worse = run(storage, log, model={"name": "popularity"})

    champion = Tracker("tiny").champion()
    assert worse.decision.startswith("not promoted")
    assert "rayrec promote tiny/2" in worse.decision
    assert champion is not None
    assert champion.version == good.release.version


def test_a_release_whose_index_finds_too_little_is_not_promoted(storage: Storage, tmp_path: Path) -> None:
    log, index = write_log(tmp_path), {"from_items": 20, "cells": 6, "recall_floor": 1.0}
    few = run(storage, log, serving={"index": {**index, "probes": 1}})

    content = open_release(storage, few.release.digest).content
    assert content["index"]["best"]["recall"] < 1.0
    assert content["metrics"]["main"]["ndcg@10"] == few.metrics["main"]["test"]["ndcg@10"]
    assert f"not promoted: the index finds {content['index']['best']['recall']:.4f} of the 3 best items" in few.decision
    assert "less than serving.index.recall_floor = 1.0" in few.decision
    assert "rayrec promote tiny/1" in few.decision
    assert Tracker("tiny").champion() is None

    index |= {"probes": 6, "codes": "float32"}
    enough = run(storage, log, serving={"index": index})
    assert enough.decision == "promoted: tiny/2 is the first champion"
    skipped = {name: outcome.skipped for name, outcome in enough.stages.items()}
    assert skipped["train"] and skipped["evaluate"] and not skipped["index"]
    again = run(storage, log, serving={"index": index})
    assert again.stages["index"].skipped

    collect_garbage(storage, find_garbage(storage, keep=0, older_than_hours=0))
    kept = open_release(storage, enough.release.digest)
    assert storage.exists(kept.content["index"]["path"])
    assert kept.indexes() is not None
    assert not storage.exists(content["index"]["path"])


def test_a_champion_of_other_data_is_measured_on_the_new_test_events(storage: Storage, tmp_path: Path) -> None:
    log = write_log(tmp_path)
    run(storage, log, model={"name": "popularity"})
    with log.open("a", encoding="utf-8") as file:
        file.writelines(f"u{user},new,{1_800_000_000 + user}\n" for user in range(USERS))

    newer = run(storage, log, training={**recipe_values(log)["training"], "epochs": 25})

    assert "against" in newer.decision
    assert newer.release.version == 2


def test_a_champion_that_was_measured_otherwise_is_measured_again(storage: Storage, tmp_path: Path) -> None:
    log = write_log(tmp_path)
    before = run(storage, log, model={"name": "popularity"}, evaluation={"exclude_seen": True})

    after = run(storage, log, model={"name": "popularity"}, evaluation={"exclude_seen": False})

    old, new = (f"{ran.metrics['main']['test']['ndcg@10']:.4f}" for ran in (before, after))
    assert old != new
    assert f"ndcg@10 {new} against {new} of the champion" in after.decision


def test_a_champion_that_learnt_from_the_test_events_is_said_to_be_no_fair_measure(
    storage: Storage, tmp_path: Path
) -> None:
    log = write_log(tmp_path)
    few, many = (
        {**recipe_values(log)["data"], "split": {"kind": "ratio", "validation": 0.1, "test": share}}
        for share in (0.1, 0.4)
    )
    run(storage, log, model={"name": "ease"}, data=few)
    newer = run(storage, log, model={"name": "popularity"}, data=many)
    assert newer.decision.startswith("not promoted")
    assert re.search(r"trained on \d+ of the test events: no fair measure", newer.decision)


def test_a_warm_start_begins_with_the_weights_of_an_older_release(storage: Storage, tmp_path: Path) -> None:
    log = write_log(tmp_path)
    training = {**recipe_values(log)["training"], "epochs": 12}
    first = run(storage, log, training=training)
    with log.open("a", encoding="utf-8") as file:
        file.writelines(f"u{user},new,{1_800_000_000 + user}\n" for user in range(USERS))

    warm = run(storage, log, training={**training, "epochs": 1, "warm_start": "tiny/1"})

    parent = first.release.digest
    content = open_release(storage, warm.release.digest).content
    lineage = open_bundle(storage, content["models"]["main"]).manifest["parents"]
    assert lineage == [{"release": parent, "bundle": open_release(storage, parent).content["models"]["main"]}]
    assert first_loss(storage, warm) < 0.8 * first_loss(storage, first)
    with pytest.raises(RayrecError, match="'popularity' is fitted to all events at once"):
        run(storage, log, model={"name": "popularity"}, training={"warm_start": "tiny"})


def first_loss(storage: Storage, ran: RunResult) -> float:
    bundle = open_release(storage, ran.release.digest).content["models"]["main"]
    loss: float = storage.read_json(f"{bundle}/metrics.json")["history"][0]["loss"]
    return loss


def test_a_failed_stage_publishes_nothing_and_marks_its_run(storage: Storage, tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    log.write_text("user,item,time\n" + "\n".join(f"u{i},i{i},{i}" for i in range(20)), encoding="utf-8")
    write_log(tmp_path / "other")
    (tmp_path / "items.csv").write_text((tmp_path / "other" / "items.csv").read_text(), encoding="utf-8")

    with pytest.raises(RayrecError, match="leaves nobody"):
        run(storage, log)

    assert not storage.exists("models")
    assert not storage.exists("releases")
    assert not storage.list("stages/prepare")
    statuses = {r.info.status for r in Tracker("tiny").client.search_runs([Tracker("tiny").experiment])}
    assert statuses == {"FAILED"}


def test_popularity_alone_is_a_recommender_too(storage: Storage, tmp_path: Path) -> None:
    result = run(storage, write_log(tmp_path), model={"name": "popularity"})

    assert "train" not in result.stages
    assert result.metrics["main"] == result.metrics["popular"]


def test_a_split_by_time_is_evaluated(storage: Storage, tmp_path: Path) -> None:
    log = write_log(tmp_path)
    data = {**recipe_values(log)["data"], "split": {"kind": "time", "validation": 0.2, "test": 0.2}}

    result = run(storage, log, data=data)

    assert result.metrics["main"]["test"]["users"] > 0
    assert np.isfinite(result.metrics["main"]["test"]["ndcg@10"])


def test_garbage_is_what_no_kept_release_needs(storage: Storage, tmp_path: Path) -> None:
    log = write_log(tmp_path)
    training = recipe_values(log)["training"]
    run(storage, log, training={**training, "epochs": 25})
    run(storage, log, training={**training, "epochs": 1})
    third = run(storage, log, training={**training, "epochs": 2})
    champion = Tracker("tiny").champion()
    assert champion is not None

    garbage = find_garbage(storage, keep=1, older_than_hours=0)
    collect_garbage(storage, garbage)

    kept = {release.version for release in Tracker("tiny").releases()}
    assert kept == {champion.version, third.release.version}
    for release in Tracker("tiny").releases():
        for role in ("main", "popular"):
            open_release(storage, release.digest).bundle(role).scorer()
    assert len(inventory(storage)["models"]) == 3
    assert all(outcome.skipped for outcome in run(storage, log, training={**training, "epochs": 2}).stages.values())
    assert not find_garbage(storage, keep=1, older_than_hours=0).paths


def test_what_is_young_is_no_garbage(storage: Storage, tmp_path: Path) -> None:
    run(storage, write_log(tmp_path), model={"name": "popularity"})

    assert find_garbage(storage, keep=0, older_than_hours=1).paths == []


def test_what_a_killed_run_left_half_written_is_garbage(storage: Storage) -> None:
    storage.write_new("datasets/tiny/.tmp-0123456789ab/partition-00000/x.parquet", b"half")
    assert find_garbage(storage, keep=5, older_than_hours=24).paths == []
    garbage = find_garbage(storage, keep=5, older_than_hours=0)
    assert garbage.paths == ["datasets/tiny/.tmp-0123456789ab"]
    collect_garbage(storage, garbage)
    assert storage.temporaries() == []
