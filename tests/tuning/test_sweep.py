"""A whole sweep: prepared once, searched, and its best registered, written down and trained again alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.recipes import recipe_values, write_log
from tests.watching import Silent

from rayrec import pipeline
from rayrec.artifacts import Storage
from rayrec.errors import DataError, ModelError
from rayrec.recipe_files import load_recipe, parse_recipe
from rayrec.sweep import SweepResult, tune
from rayrec.tracking import Tracker
from rayrec.tuning.objectives import parse_objectives
from rayrec.tuning.options import Options, Search
from rayrec.tuning.records import TrialRecord
from rayrec.tuning.space import parse_space

pytestmark = pytest.mark.usefixtures("ray_cluster")

SPACE = {"training.learning_rate": {"log_uniform": [0.001, 0.05]}, "model.dim": {"choice": [8, 16]}}


class Watching(Silent):
    """Of trials, too."""

    def trial(self, record: TrialRecord) -> None:
        pass


def sweep(log: Path, storage: Storage, constraints: tuple[str, ...] = (), **sections: Any) -> SweepResult:
    recipe = parse_recipe(recipe_values(log, **sections))
    options = Options(trials=5, parallel=2, constraints=constraints)
    chosen = Search(parse_space(SPACE, "space"), options, parse_objectives(["ndcg@10"], constraints))
    return tune(recipe, chosen, storage, Watching())


def test_the_best_is_the_candidate_and_its_recipe_trains_it_again(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = sweep(write_log(tmp_path), storage)
    assert result.best.best == max(record.best for record in result.trials)
    assert result.release.aliases == ("candidate",)
    assert result.metrics["validation"]["ndcg@10"] == pytest.approx(result.best.best, abs=1e-6)
    assert (Path(result.folder) / "best.yaml").read_text() == result.yaml

    written = tmp_path / "best.yaml"
    written.write_text(result.yaml)
    recipe = load_recipe(str(written))
    assert recipe.training.threads
    monkeypatch.setenv("RAYREC_HOME", str(tmp_path / "elsewhere"))
    watcher = Silent()
    pipeline.run(recipe, Storage.open(), watcher)
    assert max(entry["ndcg@10"] for entry in watcher.epochs) == result.best.best


def test_a_finished_sweep_is_told_again_without_training(storage: Storage, tmp_path: Path) -> None:
    log = write_log(tmp_path)
    first, again = sweep(log, storage), sweep(log, storage)
    assert again.trials == first.trials
    assert again.release == first.release


def test_mlflow_has_the_sweep_its_trials_and_the_best(storage: Storage, tmp_path: Path) -> None:
    result = sweep(write_log(tmp_path), storage)
    client = Tracker("tiny").client
    parent = client.get_run(result.run_id)
    assert parent.data.metrics["best/ndcg_at_10"] == pytest.approx(result.best.best)
    assert parent.data.metrics["default/ndcg_at_10"] == pytest.approx(result.trials[0].best)
    assert {file.path for file in client.list_artifacts(result.run_id)} >= {"best.yaml", "sweep.html", "trials.json"}
    children = client.search_runs(
        [parent.info.experiment_id], filter_string=f"tags.`mlflow.parentRunId` = '{result.run_id}'"
    )
    names = {run.data.tags["mlflow.runName"] for run in children}
    assert names >= {f"trial {number}" for number in range(5)} | {"best"}


def test_the_page_tells_of_every_trial_and_needs_no_network(storage: Storage, tmp_path: Path) -> None:
    page = sweep(write_log(tmp_path), storage, constraints=("size_mb <= 5",)).page
    for title in ("History", "Importance", "Parallel coordinates", "model.dim", "Best against the recipe as it is"):
        assert f"<h2>{title}</h2>" in page
    assert "Budget saved" in page
    assert "http" not in page.replace("http-equiv", "")
    assert page.count("<circle") >= 3 * 5


def test_a_constraint_that_nothing_meets_is_said_with_what_to_do(storage: Storage, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no trial meets size_mb <= 0\.001 \(5 done"):
        sweep(write_log(tmp_path), storage, constraints=("size_mb <= 0.001",))


def test_without_validation_events_there_is_nothing_to_judge_by(storage: Storage, tmp_path: Path) -> None:
    log = write_log(tmp_path)
    head, *lines = log.read_text().splitlines()
    for fold, kept in {"train": lines[::2], "test": lines[1::2]}.items():
        (tmp_path / f"{fold}.csv").write_text("\n".join([head, *kept]))
    values = recipe_values(log)["data"]
    (source,) = values["sources"]
    given = [source | {"path": str(tmp_path / f"{fold}.csv"), "fold": fold} for fold in ("train", "test")]
    data = values | {"split": {"kind": "given"}, "sources": given}
    with pytest.raises(DataError, match="no validation events"):
        sweep(log, storage, data=data)
