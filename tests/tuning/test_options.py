"""Space files: those that come with rayrec, and what wrong ones are told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.recipes import recipe_values

from rayrec.errors import RecipeError
from rayrec.recipe_files import load_recipe, parse_recipe
from rayrec.tuning.options import load_search, packaged_spaces

RECIPE = parse_recipe(recipe_values("log.csv"))
RATES = {"training.learning_rate": {"uniform": [0.1, 0.5]}}


def load(folder: Path, content: dict[str, Any], **given: Any) -> Any:
    file = folder / "space.yaml"
    file.write_text(yaml.safe_dump(content))
    return load_search(str(file), given, RECIPE)


@pytest.mark.parametrize("name", packaged_spaces())
def test_every_space_that_comes_with_rayrec_fits_a_recipe(name: str) -> None:
    recipe = load_recipe("movielens-100k")
    found = load_search(name, {}, recipe)
    assert found.objectives.metric == "ndcg@10"
    assert packaged_spaces()[name].read_text().startswith("# ")


def test_the_command_line_overrides_the_file(tmp_path: Path) -> None:
    found = load(tmp_path, {"trials": 8, "seed": 3, "max_time": "1.5h", "space": RATES}, trials=5, metric=["hr@20"])
    assert (found.options.trials, found.options.seed, found.options.max_time) == (5, 3, 5400)
    assert found.objectives.names == ("hr@20",)
    assert load(tmp_path, {"space": RATES}).objectives.names == ("ndcg@10",)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"trails": 8, "space": RATES}, "trails: unknown key. Did you mean 'trials'?"),
        ({"trials": 0, "space": RATES}, "trials = 0"),
        ({"max_time": "soon", "space": RATES}, "write a time like 90s, 15m, 2h or 1d"),
        ({"algorithm": "tpee", "space": RATES}, "Did you mean 'tpe'?"),
        ({"scheduler": "ahsa", "space": RATES}, "Did you mean 'asha'?"),
        ({"spaces": RATES}, "space: required, but missing. There is 'spaces'. Did you mean 'space'?"),
        ({"trials": 8}, "space: required, but missing."),
        ({"trials": True, "space": RATES}, "trials = True: expected no boolean"),
        ({"max_time": True, "space": RATES}, "max_time = True: expected no boolean"),
        ({"metric": ["ndcg@10", "p95_ms"], "scheduler": "asha", "space": RATES}, "knows one metric, not 2"),
        ({"algorithm": "grid", "space": RATES}, "grid search goes through all values"),
        ({"scheduler": "pbt", "space": {"model.dim": {"choice": [8, 16]}}}, "model.dim: pbt changes values while"),
        (
            {"scheduler": "pbt", "algorithm": "grid", "space": RATES},
            "options: pbt draws its own values: set algorithm to",
        ),
        ({"scheduler": "pbt", "space": RATES}, "which this space does not reach"),
        ({"scheduler": "pbt", "constraints": "size_mb <= 5", "space": RATES}, "leave constraints out"),
        ({"scheduler": "pbt", "confirm": 2, "space": RATES}, "set confirm to 0"),
        ({"confirm": 2, "space": {"training.seed": {"int": [1, 9]}}}, "training.seed is searched"),
        ({"metric": "ndgc@10", "space": RATES}, "Did you mean 'ndcg@10'?"),
        ({"constraints": "p95_ms < 5", "space": RATES}, "write it like"),
    ],
)
def test_a_wrong_option_is_refused_with_the_nearest_right_one(
    tmp_path: Path, content: dict[str, Any], expected: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        load(tmp_path, content)
    assert expected in str(caught.value)


def test_an_option_that_was_given_wrong_is_said_to_be_on_the_command_line(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"tune: on the command line:\n  trials = 0"):
        load(tmp_path, {"space": RATES}, trials=0)
    with pytest.raises(RecipeError, match=r"space .*\n  trials = 0"):
        load(tmp_path, {"trials": 0, "space": RATES}, seed=1)


def test_a_seed_without_others_above_it_cannot_be_confirmed(tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text(yaml.safe_dump({"confirm": 1, "space": RATES}))
    recipe = load_recipe("movielens-100k", [f"training.seed={2**63 - 2}"])
    with pytest.raises(RecipeError, match="leaves no room for 3 other seeds"):
        load_search(str(tmp_path / "space.yaml"), {}, recipe)


@pytest.mark.parametrize("scheduler", ["pbt", "hyperband"])
def test_what_pauses_trials_is_refused_for_those_with_workers(tmp_path: Path, scheduler: str) -> None:
    (tmp_path / "space.yaml").write_text(yaml.safe_dump({"scheduler": scheduler, "space": RATES}))
    recipe = parse_recipe(recipe_values("log.csv", training={"workers": 2}))
    with pytest.raises(RecipeError, match=r"Set training\.workers to 0"):
        load_search(str(tmp_path / "space.yaml"), {}, recipe)


def test_a_space_that_is_not_there_is_answered_with_the_nearest() -> None:
    with pytest.raises(RecipeError, match="Did you mean 'learning_rate_batch_size'"):
        load_search("learning_rate", {}, RECIPE)


def test_a_folder_is_no_space(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="is a folder"):
        load_search(str(tmp_path), {}, RECIPE)


def test_aliases_of_aliases_are_refused_before_anybody_looks_at_all_they_make(tmp_path: Path) -> None:
    levels = "".join(f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]\n" for n in range(1, 10))
    (tmp_path / "space.yaml").write_text(f"l0: &l0 [lol]\n{levels}space: {{training.learning_rate: [*l9]}}")
    with pytest.raises(RecipeError, match="holds more than 1,000,000 values"):
        load_search(str(tmp_path / "space.yaml"), {}, RECIPE)


def test_a_key_that_stands_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text("trials: 3\nspace: {model.dim: {choice: [8, 16]}}\ntrials: 5\n")
    with pytest.raises(RecipeError, match=r"'trials' stands twice.*line 3"):
        load_search(str(tmp_path / "space.yaml"), {}, RECIPE)


def test_no_yaml_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "space.yaml"
    file.write_text("space: [")
    with pytest.raises(RecipeError, match="not YAML"):
        load_search(str(file), {}, RECIPE)
