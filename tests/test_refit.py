"""Training again: what is served has learnt from more, and what is measured has not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.graphs import leave_out_graphs
from tests.recipes import EVENTS, USERS, recipe_values, write_log
from tests.watching import Silent

from rayrec import pipeline
from rayrec.artifacts import Json, Storage
from rayrec.errors import RecipeError
from rayrec.inference.release import Release, open_release
from rayrec.inventory import collect_garbage, find_garbage
from rayrec.pipeline import Pipeline, RunResult
from rayrec.recipe_files import parse_recipe
from rayrec.terminal import show_quality
from rayrec.tracking import Tracker

WITH_RAY = pytest.mark.usefixtures("ray_cluster")


def run(storage: Storage, log: Path, refit: str, **sections: Any) -> RunResult:
    training = {**recipe_values(log)["training"], "refit": refit}
    with pytest.MonkeyPatch.context() as patch:
        leave_out_graphs(patch)
        return pipeline.run(parse_recipe(recipe_values(log, training=training, **sections)), storage, Silent())


def released(storage: Storage, result: RunResult) -> Release:
    return open_release(storage, result.release.digest)


def with_given_folds(train: Path, test: Path, split: Json) -> Json:
    """A recipe whose sources say what is training and what is test."""
    values = recipe_values(train, training={"refit": "validation"})
    source = values["data"]["sources"][0]
    sources = [{**source, "path": str(path), "fold": fold} for path, fold in ((train, "train"), (test, "test"))]
    values["data"] |= {"sources": sources, "split": split}
    return values


def learnt_from(storage: Storage, bundle: str) -> Json:
    return storage.read_json(f"{bundle}/model.json")["training"]


def skipped(result: RunResult) -> set[str]:
    return {name for name, outcome in result.stages.items() if outcome.skipped}


@WITH_RAY
def test_what_is_served_has_learnt_from_validation_events_too_and_the_first_model_is_measured_as_before(
    storage: Storage, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = write_log(tmp_path)
    plain = run(storage, log, "none")
    again = run(storage, log, "validation")

    assert skipped(again) == {"prepare", "baseline", "train"}
    assert {fold: again.metrics["main"][fold] for fold in ("validation", "test")} == plain.metrics["main"]
    assert again.metrics["main"]["test_refit"].keys() == plain.metrics["main"]["test"].keys()
    assert again.metrics["popular"] == plain.metrics["popular"]
    content = released(storage, again).content
    assert content["served"]["evaluated"] == released(storage, plain).content["models"]
    assert content["metrics"]["main"] == again.metrics["main"]["test"]
    assert content["metrics"]["refit"] == again.metrics["main"]["test_refit"]
    for role in ("main", "popular"):
        assert content["models"][role] != content["served"]["evaluated"][role]
        assert learnt_from(storage, content["models"][role])["folds"] == ["train", "validation"]
        assert learnt_from(storage, content["served"]["evaluated"][role])["folds"] == ["train"]
    first = storage.read_json(f"{content['served']['evaluated']['main']}/metrics.json")
    assert learnt_from(storage, content["models"]["main"])["stopped_after"] == first["best_epoch"]
    # By the first models' figures, which are equal.
    assert again.decision.startswith("promoted: test ndcg@10")
    printed = again.to_json()
    assert printed["served"] == {"refit": "validation", "folds": ["train", "validation"]}
    assert {"test", "test_refit"} <= printed["metrics"].keys()
    show_quality(again.recipe, again.metrics)
    assert "sasrec, refit" in capsys.readouterr().out

    assert skipped(run(storage, log, "validation")) == again.stages.keys()
    collect_garbage(storage, find_garbage(storage, keep=1, older_than_hours=0))
    assert skipped(run(storage, log, "validation")) == again.stages.keys()
    tracker = Tracker("tiny")
    runs = tracker.client.search_runs([tracker.experiment], "tags.`mlflow.runName` = 'refit'")
    assert [len(tracker.client.get_metric_history(r.info.run_id, "loss")) for r in runs] == [first["best_epoch"]]
    (whole, *_) = tracker.client.search_runs([tracker.experiment], "tags.`mlflow.runName` = 'pipeline'")
    refit = again.metrics["main"]["test_refit"]["ndcg@10"]
    assert whole.data.metrics["test_refit/ndcg_at_10"] == pytest.approx(refit)


@WITH_RAY
def test_of_what_has_learnt_from_all_events_nothing_is_measured(
    storage: Storage, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = write_log(tmp_path)
    plain = run(storage, log, "none", model={"name": "ease"})
    everything = run(storage, log, "all", model={"name": "ease"})

    assert skipped(everything) == {"prepare", "baseline", "train", "evaluate"}
    assert everything.metrics == plain.metrics
    content = released(storage, everything).content
    assert content["metrics"].keys() == {"main", "popular"}
    assert learnt_from(storage, content["models"]["main"])["folds"] == ["train", "validation", "test"]
    assert content["served"]["folds"] == ["train", "validation", "test"]
    assert everything.stages["fallback"].rows == USERS * EVENTS
    show_quality(everything.recipe, everything.metrics)
    assert "trained again on train, validation, test (nothing is left to measure it on)" in capsys.readouterr().out

    # The champion knows the test events of this split, and the model before it does not know all of them.
    data = {**recipe_values(log)["data"], "split": {"kind": "ratio", "validation": 0.1, "test": 0.1}}
    newer = run(storage, log, "none", model={"name": "ease"}, data=data)
    assert "so the model before that was measured" in newer.decision


@WITH_RAY
def test_popularity_alone_is_counted_again(storage: Storage, tmp_path: Path) -> None:
    result = run(storage, write_log(tmp_path), "validation", model={"name": "popularity"})

    models = released(storage, result).content["models"]
    assert models["main"] == models["popular"]
    assert set(result.stages) == {"prepare", "baseline", "refit", "evaluate", "register"}
    assert "test_refit" in result.metrics["main"]


@WITH_RAY
def test_a_view_without_validation_events_is_refused_before_training(storage: Storage, tmp_path: Path) -> None:
    log, other = write_log(tmp_path), write_log(tmp_path / "other", seed=1)
    values = with_given_folds(log, other, {"kind": "given", "validation": 1e-12})
    with Pipeline(parse_recipe(values), storage, Silent()) as stages:
        dataset, view = stages.prepare()
        with pytest.raises(RecipeError, match="the view has no validation events to add"):
            stages.train(dataset, view)
    assert "baseline" not in stages.outcomes


def test_sources_without_validation_events_are_refused_before_any_work() -> None:
    values = with_given_folds(Path("log.csv"), Path("test.csv"), {"kind": "given"})
    with pytest.raises(RecipeError, match="the sources give no validation events to add"):
        parse_recipe(values)
    values["data"]["split"]["validation"] = 0.1
    assert parse_recipe(values).training.served_folds == ("train", "validation")
