"""The best trials and the recipe as it is once more, with other seeds: the best mean wins."""

from __future__ import annotations

import statistics
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from tests.recipes import recipe_values, write_log
from tests.watching import Silent

from rayrec.artifacts import Storage
from rayrec.data.prepare import Prepared, prepare
from rayrec.recipe import Recipe
from rayrec.recipe_files import parse_recipe
from rayrec.sweep import SweepResult, tune
from rayrec.training.checkpoint import Checkpoints
from rayrec.training.job import TrainJob
from rayrec.training.local import LocalTraining, observe
from rayrec.tuning.confirmation import FOLDER, Confirmed, confirm
from rayrec.tuning.follower import Sweep
from rayrec.tuning.objectives import parse_objectives
from rayrec.tuning.options import Options, Search
from rayrec.tuning.records import Records, TrialRecord
from rayrec.tuning.space import changed, parse_space

pytestmark = pytest.mark.usefixtures("ray_cluster", "without_graphs")

SPACE = {"training.learning_rate": {"log_uniform": [0.001, 0.05]}}


class Seen(Silent):
    """Remembers which further trainings there were."""

    def __init__(self) -> None:
        super().__init__()
        self.confirmed: set[int] | None = None

    def known(self, records: list[TrialRecord]) -> None:
        pass

    def confirming(self, chosen: Search) -> None:
        self.confirmed = set()

    def trial(self, record: TrialRecord) -> None:
        if self.confirmed is not None:
            self.confirmed.add(record.number)


def swept(recipe: Recipe, storage: Storage, watcher: Seen) -> SweepResult:
    options = Options(trials=2, parallel=1, algorithm="random", confirm=1, confirm_seeds=2)
    chosen = Search(parse_space(SPACE, "space"), options, parse_objectives(["ndcg@10"], ()))
    return tune(recipe, chosen, storage, watcher)


def reached(recipe: Recipe, storage: Storage, prepared: Prepared, seed: int) -> float:
    """The best metric of a training, found without a sweep."""
    seeded = changed(recipe, {"training.seed": seed})
    version = prepared.dataset.name, prepared.dataset.number
    training = LocalTraining(seeded, observe(TrainJob(seeded, version, prepared.view, storage, recipe.name)), 1, None)
    while not training.over:
        training.epoch()
    return max(entry["ndcg@10"] for entry in training.history)


def test_the_best_mean_over_new_seeds_wins_and_nothing_is_trained_twice(storage: Storage, tmp_path: Path) -> None:
    recipe = parse_recipe(recipe_values(write_log(tmp_path)))
    result = swept(recipe, storage, Seen())
    luckiest = max(result.trials, key=lambda trial: (trial.best, -trial.number))
    assert {found.trial for found in result.confirmed} == {0, luckiest.number}
    assert result.best.number == max(result.confirmed, key=lambda found: found.mean).trial
    own, prepared = recipe.training.seed, prepare(recipe, storage)
    for found in result.confirmed:
        trial = changed(result.recipe, result.trials[found.trial].changes)
        assert found.seeds == (own + 1, own + 2)
        assert found.values == tuple(reached(trial, storage, prepared, seed) for seed in found.seeds)
    assert f"{result.confirmed[0].mean:.4f}" in result.page
    assert "<h2>With other seeds</h2>" in result.page
    mean = result.confirmed[0].mean
    assert f"ndcg@10 {mean:.6f} in the mean of other seeds ({own + 1}, {own + 2})" in result.yaml
    assert result.best_recipe.training.seed == own

    records = Records(storage, f"{result.folder.removeprefix(storage.uri).strip('/')}/{FOLDER}")
    ended = records.read()
    assert [len(Checkpoints(storage, record.name).history()) for record in ended] == [0] * len(ended)
    # As if the driver had been killed amid the last one, another had lost its process four times, the first one's
    # record been damaged and removed, and one had been begun for a trial that is none of the best any more.
    records.write(replace(ended[-1], state="running", curve=(), values={}))
    records.write(replace(ended[1], state="failed", reason="its process died 4 times", values={}))
    records.remove(0)
    records.write(TrialRecord(9, ended[-1].changes, "other"))
    again = Seen()
    assert swept(recipe, storage, again).confirmed == result.confirmed
    assert again.confirmed == {0, 1, ended[-1].number}
    assert sorted(record.number for record in records.read()) == [record.number for record in ended]


def test_what_fails_with_other_seeds_is_out_and_said(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    trials = [TrialRecord(0, {}, "a", "done", curve=(0.1,)), TrialRecord(1, {"x": 1}, "b", "done", curve=(0.2,))]

    def trained(sweep: object, further: dict[tuple[int, int], object], *_: object) -> dict[tuple[int, int], float]:
        return {key: 0.1 for key in further if key != (1, 2)}

    monkeypatch.setattr("rayrec.tuning.confirmation._trained", trained)
    chosen = Search(parse_space(SPACE, "space"), Options(confirm=3, confirm_seeds=2), parse_objectives(["ndcg@10"], ()))
    recipe = parse_recipe(recipe_values(write_log(tmp_path)))
    sweep = SimpleNamespace(search=chosen, job=SimpleNamespace(recipe=recipe))
    found = confirm(cast("Sweep", sweep), trials, Seen())
    assert [confirmed.trial for confirmed in found] == [0]
    assert "trial 1 is out: 1 of its 2 trainings with other seeds failed" in caplog.text


def test_means_and_deviations_are_those_of_the_new_seeds() -> None:
    found = Confirmed(3, (1, 2, 3), (0.1, 0.2, 0.6))
    assert found.mean == pytest.approx(0.3)
    assert found.spread == pytest.approx(statistics.stdev([0.1, 0.2, 0.6]))
    assert Confirmed(3, (1,), (0.1,)).spread == 0
