"""A whole sweep: prepared once, searched, and its best registered, written down and trained again alike."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.graphs import leave_out_graphs
from tests.recipes import recipe_values, write_log
from tests.watching import Silent

from rayrec.artifacts import Storage
from rayrec.errors import DataError, ModelError, StorageError
from rayrec.lease import lease
from rayrec.pipeline import Pipeline
from rayrec.recipe_files import load_recipe, parse_recipe
from rayrec.sweep import SweepResult, tune
from rayrec.tracking import Tracker
from rayrec.tuning.objectives import parse_objectives
from rayrec.tuning.options import Options, Search
from rayrec.tuning.records import Records, TrialRecord
from rayrec.tuning.space import parse_space

pytestmark = pytest.mark.usefixtures("ray_cluster", "without_graphs")

SPACE = {"training.learning_rate": {"log_uniform": [0.001, 0.05]}, "model.dim": {"choice": [8, 16]}}


class Watching(Silent):
    """Of trials, too."""

    def known(self, records: list[TrialRecord]) -> None:
        pass

    def trial(self, record: TrialRecord) -> None:
        pass

    def confirming(self, chosen: Search) -> None:
        pass


def sweep(
    log: Path, storage: Storage, constraints: tuple[str, ...] = (), trials: int = 5, **sections: Any
) -> SweepResult:
    recipe = parse_recipe(recipe_values(log, **sections))
    options = Options(trials=trials, parallel=1, constraints=constraints)
    chosen = Search(parse_space(SPACE, "space"), options, parse_objectives(["ndcg@10"], constraints))
    return tune(recipe, chosen, storage, Watching())


@dataclass(frozen=True)
class Swept:
    """A sweep that is over: its log, its storage, and what came of it."""

    log: Path
    storage: Storage
    result: SweepResult


@pytest.fixture(scope="module")
def swept(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory, migrated_mlflow: Path) -> Iterator[Swept]:
    """One sweep for several tests: each takes seconds."""
    folder = tmp_path_factory.mktemp("swept")
    (folder / "home").mkdir()
    shutil.copy(migrated_mlflow, folder / "home" / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        leave_out_graphs(patch)
        patch.setenv("RAYREC_HOME", str(folder / "home"))
        log, storage = write_log(folder), Storage.open()
        yield Swept(log, storage, sweep(log, storage, ("size_mb <= 5",)))


def test_the_best_is_the_candidate(swept: Swept) -> None:
    result = swept.result
    assert result.best.best == max(record.best for record in result.trials)
    assert result.release.aliases == ("candidate",)
    assert result.metrics["validation"]["ndcg@10"] == pytest.approx(result.best.best, abs=1e-6)
    assert (Path(result.folder) / "best.yaml").read_text() == result.yaml


def test_its_recipe_trains_it_again_to_the_last_bit(
    swept: Swept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = tmp_path / "best.yaml"
    written.write_text(swept.result.yaml)
    recipe, watcher = load_recipe(str(written)), Silent()
    assert recipe.training.threads
    with Pipeline(recipe, Storage.open(tmp_path / "elsewhere"), watcher) as pipeline:
        pipeline.train(*pipeline.prepare())
    assert max(entry["ndcg@10"] for entry in watcher.epochs) == swept.result.best.best


def test_a_finished_sweep_is_told_again_without_training(swept: Swept) -> None:
    again = sweep(swept.log, swept.storage, ("size_mb <= 5",))
    assert again.trials == swept.result.trials
    assert again.release == swept.result.release
    assert swept.storage.list("runs") == []


def test_the_best_is_the_candidate_again_when_others_were_registered_since(swept: Swept) -> None:
    tracker, best = Tracker("tiny"), swept.result.release
    with Pipeline(swept.result.recipe, swept.storage, Silent(), resume=False) as pipeline:
        prepared = pipeline.prepare()
        trained = pipeline.train(*prepared)
        other, _ = pipeline.register(*prepared, trained, pipeline.evaluate(*prepared, trained))
    assert "candidate" in other.aliases
    again = sweep(swept.log, swept.storage, ("size_mb <= 5",)).release
    assert (again.version, "candidate" in again.aliases) == (best.version, True)
    assert "candidate" not in {alias for r in tracker.releases() if r.version == other.version for alias in r.aliases}


def test_another_command_at_the_same_sweep_is_refused(swept: Swept) -> None:
    folder = swept.result.folder.removeprefix(swept.storage.uri).strip("/")
    with (
        lease(swept.storage, f"{folder}/lease", "it"),
        pytest.raises(StorageError, match=r"this sweep is under way, by process \d+ on .*Wait for it, or end it"),
    ):
        sweep(swept.log, swept.storage, ("size_mb <= 5",))
    assert len(Records(swept.storage, folder).read()) == len(swept.result.trials)


def test_mlflow_has_the_sweep_its_trials_and_the_best(swept: Swept) -> None:
    result, client = swept.result, Tracker("tiny").client
    parent = client.get_run(result.run_id)
    assert parent.data.metrics["best/ndcg_at_10"] == pytest.approx(result.best.best)
    assert parent.data.metrics["default/ndcg_at_10"] == pytest.approx(result.trials[0].best)
    assert {file.path for file in client.list_artifacts(result.run_id)} >= {"best.yaml", "sweep.html", "trials.json"}
    children = client.search_runs(
        [parent.info.experiment_id], filter_string=f"tags.`mlflow.parentRunId` = '{result.run_id}'"
    )
    names = {run.data.tags["mlflow.runName"] for run in children}
    assert names >= {f"trial {number}" for number in range(5)} | {"best"}


def test_the_page_tells_of_every_trial_and_needs_no_network(swept: Swept) -> None:
    page = swept.result.page
    for title in (
        "History",
        "Importance",
        "Parallel coordinates",
        "model.dim",
        "What was searched",
        "Best against the recipe as it is",
    ):
        assert f"<h2>{title}</h2>" in page
    assert "Budget saved" in page
    assert "http" not in page.replace("http-equiv", "")
    assert page.count("<circle") >= 3 * 5


def test_a_constraint_that_nothing_meets_is_said_with_what_to_do(storage: Storage, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no trial meets size_mb <= 0\.001 \(1 done"):
        sweep(write_log(tmp_path), storage, constraints=("size_mb <= 0.001",), trials=1)


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
