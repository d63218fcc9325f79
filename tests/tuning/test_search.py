"""Sweeps on a real Ray: what is trained, stopped, taken up, copied, and kept."""

from __future__ import annotations

import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.air.execution._internal.actor_manager import RayActorManager
from tests.recipes import recipe_values, write_log

from rayrec.artifacts import Storage
from rayrec.data.dataset import open_dataset
from rayrec.data.prepare import Prepared, prepare
from rayrec.errors import ModelError
from rayrec.recipe import Recipe
from rayrec.recipe_files import parse_recipe
from rayrec.sweep import begin, plan
from rayrec.tracking import Tracker
from rayrec.training.checkpoint import Checkpoints
from rayrec.training.local import LocalTraining, observe
from rayrec.tuning.follower import Sweep
from rayrec.tuning.objectives import parse_objectives
from rayrec.tuning.options import Options, Search
from rayrec.tuning.records import TrialRecord
from rayrec.tuning.report import sweep_page
from rayrec.tuning.search import search
from rayrec.tuning.space import changed, parse_space

pytestmark = pytest.mark.usefixtures("ray_cluster")

RATES = {"training.learning_rate": {"log_uniform": [0.001, 0.05]}}


class Seen:
    """Remembers what it was told of trials."""

    def __init__(self, then: Callable[[TrialRecord], None] = lambda record: None) -> None:
        self.records: list[TrialRecord] = []
        self._then = then

    def known(self, records: list[TrialRecord]) -> None:
        pass

    def trial(self, record: TrialRecord) -> None:
        self.records.append(record)
        self._then(record)

    @property
    def begun(self) -> list[int]:
        """Trials that were run, in the order in which they began."""
        return list(dict.fromkeys(record.number for record in self.records))


Planner = Callable[..., Sweep]


@pytest.fixture(scope="module")
def prepared(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Prepared]:
    """A small log, a storage in which it is prepared, and as what: the same for all tests."""
    folder = tmp_path_factory.mktemp("prepared")
    log = write_log(folder)
    return log, folder / "storage", prepare(parse_recipe(recipe_values(log)), Storage.open(folder / "storage"))


@pytest.fixture
def planned(storage: Storage, prepared: tuple[Path, Path, Prepared]) -> Planner:
    """Makes sweeps over one small log."""
    log, before, made = prepared
    shutil.copytree(before, storage.root, dirs_exist_ok=True)

    def make(space: dict[str, Any] = RATES, training: dict[str, Any] | None = None, **options: Any) -> Sweep:
        values = recipe_values(log)
        recipe = parse_recipe(values | {"training": values["training"] | (training or {})})
        chosen = Options(**{"parallel": 1, "max_failed": 0.5, **options})
        objectives = parse_objectives(chosen.metric or ("ndcg@10",), chosen.constraints)
        tracker = Tracker(recipe.name)
        wanted = Search(parse_space(space, "space"), chosen, objectives)
        dataset = open_dataset(storage, made.dataset.name, made.dataset.number)
        sweep = plan(recipe, wanted, dataset, made.view, tracker.begin("tune"), tracker, resume=True)
        begin(sweep, resume=True)
        return sweep

    return make


def test_a_sweep_trains_every_trial_and_goes_on_with_no_work_lost(planned: Planner, storage: Storage) -> None:
    sweep = planned(trials=3, algorithm="random", parallel=2)
    first = search(sweep, Seen())
    assert [record.state for record in first] == ["done"] * 3
    assert all(len(record.curve) == 3 and record.seconds > 0 for record in first)
    assert all(record.values == {"ndcg@10": record.best} for record in first)

    # As if the driver had been killed amid the second trial: its record is of one that runs, its checkpoint is there.
    sweep.records.write(TrialRecord(1, first[1].changes, first[1].name))
    checkpoints = Checkpoints(storage, first[1].name)
    checkpoints.clear()
    recipe = changed(sweep.job.recipe, first[1].changes)
    stop_after_one_epoch(sweep, replace_seed(recipe, 1), checkpoints)
    seen = Seen()
    more = search(planned(trials=5, algorithm="random"), seen)
    assert (more[0], more[2]) == (first[0], first[2])
    assert sorted(seen.begun) == [1, 3, 4]
    # What was done before is not done again: with another seed, which marks it.
    assert len(more[1].curve) == 3
    assert more[1].curve[0] != first[1].curve[0]

    runs = {run.info.run_id: run for run in sweep.tracker.client.search_runs([sweep.tracker.experiment])}
    for record in more:
        child = runs[record.run_id]
        assert child.info.status == "FINISHED"
        assert child.data.params.get("training.learning_rate") == str(record.changes["training.learning_rate"])
        assert child.data.metrics["ndcg_at_10"] == pytest.approx(record.curve[-1])


def replace_seed(recipe: Recipe, seed: int) -> Recipe:
    return recipe.model_copy(update={"training": replace(recipe.training, seed=seed)})


def stop_after_one_epoch(sweep: Sweep, recipe: Recipe, checkpoints: Checkpoints) -> None:
    training = LocalTraining(recipe, observe(replace(sweep.job, recipe=recipe)), 1, checkpoints)
    training.epoch()
    training.close()


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> list[BaseException]:
    """Errors that come out of Ray Tune's event loop, the first one next."""
    errors: list[BaseException] = []
    original = RayActorManager.next

    def following(self: RayActorManager, *args: Any, **named: Any) -> bool:
        if errors:
            raise errors.pop(0)
        return bool(original(self, *args, **named))

    monkeypatch.setattr(RayActorManager, "next", following)
    return errors


def test_a_process_that_is_killed_for_want_of_memory_ends_no_trial(
    planned: Planner, broken: list[BaseException]
) -> None:
    """Ray Tune knows no such error: it ends all trials and raises."""
    killed = RuntimeError("Caught unexpected exception")
    killed.__cause__ = ray.exceptions.OutOfMemoryError("1 worker was killed")

    def kill(record: TrialRecord) -> None:
        if record.number == 1 and len(record.curve) == 2 and killed not in seen:
            seen.append(killed)
            broken.append(killed)

    seen: list[BaseException] = []
    sweep = planned(training={"epochs": 12, "patience": 12}, trials=2, algorithm="random")
    records = search(sweep, Seen(kill))
    assert seen == [killed]
    assert broken == []
    assert [(record.state, len(record.curve)) for record in records] == [("done", 12)] * 2


def test_whatever_else_ray_tune_raises_leaves_trials_to_go_on(planned: Planner, broken: list[BaseException]) -> None:
    def fail(record: TrialRecord) -> None:
        if record.number == 1 and len(record.curve) == 2:
            broken.append(RuntimeError("something else"))

    sweep = planned(training={"epochs": 12, "patience": 12}, trials=2, algorithm="random")
    with pytest.raises(RuntimeError, match="something else"):
        search(sweep, Seen(fail))
    assert [record.state for record in sweep.records.read()] == ["done", "running"]


def test_hopeless_trials_are_stopped_early(planned: Planner) -> None:
    space = {"training.learning_rate": {"choice": [0.01, 0.00001, 0.00002, 0.00003]}}
    sweep = planned(
        space, {"epochs": 12}, trials=4, algorithm="grid", scheduler="asha", grace_epochs=2, reduction=2, parallel=1
    )
    records = search(sweep, Seen())
    assert [record.state for record in records] == ["done", "stopped", "stopped", "stopped"]
    assert [len(record.curve) for record in records[1:]] == [2, 2, 2]
    # Only what the best is made from is kept.
    assert [Checkpoints(sweep.records.storage, record.name).history() != [] for record in records] == [True] + [
        False
    ] * 3


def test_hyperband_pauses_trials_and_ends_with_a_best_one(planned: Planner) -> None:
    sweep = planned(training={"epochs": 8, "threads": 4}, trials=9, algorithm="random", scheduler="hyperband")
    records = search(sweep, Seen())
    assert {record.state for record in records} == {"done", "stopped"}
    assert max(len(record.curve) for record in records if record.state == "done") == 8
    assert all(record.values["ndcg@10"] == record.best for record in records)


def test_trials_below_the_median_are_stopped(planned: Planner) -> None:
    space = {"training.learning_rate": {"choice": [0.01, 0.011, 0.012, 0.00001]}}
    sweep = planned(space, {"epochs": 9}, trials=4, algorithm="grid", scheduler="median", grace_epochs=2)
    *others, last = search(sweep, Seen())
    assert {record.state for record in others} == {"done"}
    assert (last.state, len(last.curve)) == ("stopped", 2)


def test_all_processes_of_a_node_read_the_same_memory(planned: Planner) -> None:
    """What trials learn from comes out of the object store as views of it, which nobody can write to."""
    job = planned().job
    observed = ray.get(ray.remote(observe).remote(job))
    histories = (observed.interactions.histories, observed.users.past, observed.users.future)
    for array in (array for history in histories for array in (history.offsets, history.items, history.times)):
        assert not array.flags.owndata
        assert not array.flags.writeable


def test_a_bad_trial_of_a_population_goes_on_from_a_good_ones_weights(planned: Planner) -> None:
    space = {"training.learning_rate": {"choice": [0.01, 0.0000001]}}
    training = {"epochs": 4, "threads": 4}
    sweep = planned(space, training, trials=2, algorithm="random", scheduler="pbt", grace_epochs=2, seed=1)
    good, bad = sorted(search(sweep, Seen()), key=lambda record: record.curve[0], reverse=True)
    assert bad.copied_from
    donor, epoch = bad.copied_from[0]
    assert donor == good.number
    # Without its weights, at such a rate, it would have stayed where it began.
    assert bad.curve[epoch - 1] < 0.5 * good.curve[epoch - 1]
    assert bad.curve[-1] > 0.8 * good.curve[epoch - 1]


def test_values_of_a_population_stay_within_bounds_and_its_sweep_can_be_gone_on_with(planned: Planner) -> None:
    space = {"training.learning_rate": {"log_uniform": [0.009, 0.011]}}
    training = {"epochs": 4, "threads": 4}
    sweep = planned(space, training, trials=2, algorithm="random", scheduler="pbt", grace_epochs=1)
    records = search(sweep, Seen())
    assert any(record.copied_from for record in records)
    assert all(0.009 <= record.changes["training.learning_rate"] <= 0.011 for record in records)
    assert search(sweep, Seen()) == records
    page = sweep_page(sweep.job.recipe, sweep.search, records, records[0], [], {})
    assert "<h2>Parallel coordinates</h2>" in page


def test_trials_that_fail_are_kept_and_too_many_end_the_sweep(planned: Planner) -> None:
    space = {"training.learning_rate": {"choice": [1.0e30, 2.0e30, 3.0e30, 4.0e30]}}
    sweep = planned(space, trials=5, algorithm="grid", max_failed=0.3)
    with pytest.raises(ModelError, match=r"tune: 2 of 5 trials failed, more than max_failed = 0\.3 allows"):
        search(sweep, Seen())
    records = sweep.records.read()
    assert [record.state for record in records] == ["done", "failed", "failed"]
    assert "Lower training.learning_rate" in records[1].reason
    seen = Seen()
    with pytest.raises(ModelError, match="2 of 5 trials failed"):
        search(sweep, seen)
    assert seen.begun == [3, 4]


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C as at the beginning: Ray Train, in tests before, takes SIGINT for itself and keeps it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_keeps_what_has_ended_and_the_rest_goes_on_later(planned: Planner) -> None:
    def interrupt(record: TrialRecord) -> None:
        if record.number == 1 and len(record.curve) == 1:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    sweep = planned(training={"epochs": 30, "patience": 30}, trials=3, algorithm="random")
    with pytest.raises(KeyboardInterrupt):
        search(sweep, Seen(interrupt))
    kept = sweep.records.read()
    assert [record.state for record in kept] == ["done", "running"]

    seen = Seen()
    records = search(sweep, seen)
    assert seen.begun == [1, 2]
    assert [len(record.curve) for record in records] == [30, 30, 30]
    runs = sweep.tracker.client.search_runs([sweep.tracker.experiment])
    assert sorted(run.info.status for run in runs) == ["FINISHED"] * 3 + ["KILLED", "RUNNING"]


def test_models_compete_each_with_its_own_keys_and_costs_are_measured(planned: Planner) -> None:
    space = {
        "model.name": {"choice": ["sasrec", "popularity", "item-knn"]},
        "model.dim": {"choice": [8, 16], "when": {"model.name": "sasrec"}},
    }
    sweep = planned(space, trials=4, algorithm="grid", metric=["ndcg@10", "p95_ms", "size_mb"])
    records = search(sweep, Seen())
    assert [record.state for record in records] == ["done"] * 4
    assert {record.changes["model.name"] for record in records} == {"sasrec", "popularity", "item-knn"}
    assert all(record.values["p95_ms"] > 0 and record.values["size_mb"] > 0 for record in records)
    sizes = {record.changes.get("model.dim"): record.values["size_mb"] for record in records}
    assert sizes[8] < sizes[16]


def test_a_training_with_workers_of_its_own_is_a_trial_too(planned: Planner) -> None:
    (record,) = search(planned(training={"workers": 1, "epochs": 2}, trials=1), Seen())
    assert (record.state, len(record.curve)) == ("done", 2)
    assert record.values == {"ndcg@10": record.best}


def test_when_time_is_up_what_runs_is_stopped(planned: Planner) -> None:
    sweep = planned(training={"epochs": 5000, "patience": 5000}, trials=3, max_time=6)
    (record,) = search(sweep, Seen())
    assert record.state == "stopped"
    # A busy machine may not have come to the end of an epoch.
    assert record.values == ({"ndcg@10": record.best} if record.curve else {})
