"""Recipes: one file, checked whole, with messages that say which key is wrong and what was meant."""

from __future__ import annotations

import datetime
import pickle
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from rayrec.errors import RecipeError
from rayrec.models.objective import Objective
from rayrec.models.registry import MODELS
from rayrec.recipe import Recipe
from rayrec.recipe_files import json_schema, load_recipe, packaged_recipes, parse_recipe, to_yaml

SOURCE = {"path": "events.csv", "columns": {"user": "u", "item": "i"}}


def raw(**sections: Any) -> dict[str, Any]:
    """The smallest recipe, with these sections."""
    return {"name": "small", "data": {"sources": [SOURCE]}, **sections}


def message(raw: dict[str, Any]) -> str:
    """What is said about a recipe that is wrong."""
    with pytest.raises(RecipeError) as caught:
        parse_recipe(raw)
    return str(caught.value)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A recipe file with data beside it."""
    path = tmp_path / "shop.yaml"
    path.write_text(yaml.safe_dump(raw(model={"name": "sasrec", "dim": 32}, evaluation={"ks": [1, 10]})))
    return path


# ---- what may be left out


def test_everything_but_a_name_and_data_has_a_default() -> None:
    recipe = parse_recipe(raw())
    assert recipe.model.name == "sasrec"
    assert recipe.training.epochs > 1
    assert recipe.data.split.kind == "leave-one-out"


@pytest.mark.parametrize("name", packaged_recipes())
def test_a_packaged_recipe_loads_and_is_short(name: str) -> None:
    assert load_recipe(name).name == name
    text = (Path(__file__).parents[1] / "platform" / "rayrec" / "recipes" / f"{name}.yaml").read_text()
    assert len(text.splitlines()) < 20
    assert packaged_recipes()[name], "its first line says what it is"


@pytest.mark.parametrize("name", packaged_recipes())
def test_a_packaged_recipe_satisfies_the_json_schema(name: str) -> None:
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(yaml.safe_load(to_yaml(load_recipe(name))), schema)


@pytest.mark.parametrize(
    "wrong",
    [
        {"trainin": {}},
        {"model": {"name": "sasrec", "dims": 3}},
        {"model": {"dim": 3}},
        {"training": {"objective": {"los": "bce"}}},
    ],
)
def test_the_json_schema_refuses_what_the_recipe_refuses(wrong: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(raw(**wrong), json_schema())


@pytest.mark.parametrize("name", packaged_recipes())
def test_a_recipe_written_out_reads_back_the_same(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name, ["training.gpus=no", "training.threads=2"])
    (tmp_path / "again.yaml").write_text(to_yaml(recipe))
    assert load_recipe(str(tmp_path / "again.yaml")) == recipe


def test_a_recipe_survives_pickling() -> None:
    recipe = load_recipe("simulated")
    assert pickle.loads(pickle.dumps(recipe)) == recipe  # noqa: S301 - this is how Ray sends it to workers


def test_a_recipe_cannot_be_changed() -> None:
    recipe = parse_recipe(raw())
    with pytest.raises(Exception, match="frozen"):
        recipe.name = "other"
    with pytest.raises(Exception, match="cannot assign"):
        recipe.training.epochs = 3  # type: ignore[misc]


# ---- what is wrong


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ({"trainin": {}}, "trainin: unknown key. Did you mean 'training'?"),
        ({"training": {"epoch": 3}}, "training.epoch: unknown key. Did you mean 'epochs'?"),
        ({"training": {"objective": {"los": "bce"}}}, "training.objective.los: unknown key. Did you mean 'loss'?"),
        ({"model": {"dims": 3}}, "model.dims: unknown key. Did you mean 'dim'?"),
        ({"model": {"name": "popularity", "dim": 3}}, "model.dim: unknown key."),
        (
            {"data": {"sources": [{**SOURCE, "seperator": ","}]}},
            "data.sources.0.seperator: unknown key. Did you mean 's",
        ),
        ({"data": {"sources": [SOURCE], "items": {"path": "x", "columns": {"itm": 1}}}}, "Did you mean 'item'?"),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest_valid_one(sections: dict[str, Any], expected: str) -> None:
    assert expected in message(raw(**sections))


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ({"training": {"epochs": "many"}}, "training.epochs = 'many': "),
        ({"training": {"epochs": 0}}, "training: epochs must be at least 1 and below 2**31, not 0"),
        ({"training": {"learning_rate": float("nan")}}, "learning_rate must be above 0, not nan"),
        ({"training": {"metric": "ndgc@10"}}, "'ndgc@10', did you mean 'ndcg@10'"),
        ({"training": {"workers": -1}}, "training.workers = -1: "),
        ({"training": {"objective": {"loss": "bse"}}}, "training.objective.loss = 'bse': "),
        ({"training": {"objective": {"negatives": 0}}}, "training.objective: negatives must be at least 1"),
        ({"training": {"objective": "bce"}}, "training.objective = 'bce': "),
        ({"model": {"dim": 65, "heads": 2}}, "model: dim (65) must be a multiple of heads (2)"),
        ({"model": "sasrec"}, "model = 'sasrec': expected keys such as"),
        ({"model": {"name": ["sasrec"]}}, "no model is called"),
        ({"name": "no spaces"}, "name = 'no spaces': "),
        ({"schema": 2}, "schema = 2: Input should be 1"),
        ({"data": {"sources": [SOURCE], "split": {"kind": "tim"}}}, "kind = 'tim': Input should be 'leave-one-out', "),
        ({"data": {"sources": [SOURCE], "split": {"test": 0.5, "validation": 0.5}}}, "leave something to train on"),
        ({"data": {"sources": []}}, "data.sources: "),
        ({"data": [1]}, "data: "),
        ({"evaluation": {"ks": [0]}}, "evaluation.ks.0 = 0: "),
        ({"evaluation": {"metrics": ["ndgc"]}}, "did you mean 'ndcg@1'"),
        ({"evaluation": {"history_lengths": [-5]}}, "evaluation.history_lengths.0 = -5: "),
        ({"serving": {"min_replicas": 3, "max_replicas": 2}}, "min_replicas (3) must not exceed max_replicas (2)"),
        ({1: 2}, "Keys should be strings"),
    ],
)
def test_a_bad_value_is_named_with_its_key(sections: dict[str, Any], expected: str) -> None:
    assert expected in message({**raw(), **sections})


def test_a_value_of_no_allowed_type_is_one_line_with_its_own_key() -> None:
    lines = message(raw(data={"sources": [{**SOURCE, "columns": {"user": 1.5, "item": "i"}}]})).splitlines()
    assert len(lines) == 2
    assert lines[1].strip().startswith("data.sources.0.columns.user = 1.5: ")


def test_all_mistakes_are_told_at_once() -> None:
    text = message(raw(model={"dims": 3}, training={"epochs": "x"}, trainin={}))
    assert all(key in text for key in ("model.dims", "training.epochs", "trainin"))


def test_an_unknown_model_is_answered_with_the_known_ones() -> None:
    text = message(raw(model={"name": "sasrek"}))
    assert "Did you mean 'sasrec'?" in text
    assert all(name in text for name in MODELS)


def test_a_missing_section_is_called_missing() -> None:
    assert "data: required, but missing" in message({"name": "x"})


def test_a_file_that_is_absent_not_yaml_or_no_mapping_is_one_message(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no such file"):
        load_recipe(str(tmp_path / "absent.yaml"))
    for text, expected in (("a: [", "not YAML"), ("- a", "expected sections")):
        (tmp_path / "bad.yaml").write_text(text)
        with pytest.raises(RecipeError, match=expected):
            load_recipe(str(tmp_path / "bad.yaml"))


def test_a_default_that_is_switched_off_by_null_stays_off_when_it_is_written_out(tmp_path: Path) -> None:
    recipe = parse_recipe(
        {"name": "off", "data": {"sources": [SOURCE]}, "model": {"name": "hstu", "temperature": None}}
    )
    written = tmp_path / "again.yaml"
    written.write_text(to_yaml(recipe))
    assert load_recipe(str(written)).model == recipe.model


def test_an_unknown_recipe_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(RecipeError, match="Did you mean 'movielens-100k'"):
        load_recipe("movielens-10k")


# ---- what YAML makes of plain words


@pytest.mark.parametrize(("written", "meant"), [("yes", "yes"), ("no", "no"), ("auto", "auto")])
def test_yes_and_no_need_no_quotes(file: Path, written: str, meant: str) -> None:
    assert load_recipe(str(file), [f"training.gpus={written}"]).training.gpus == meant


def test_a_date_needs_no_quotes() -> None:
    split = {"kind": "time", "validation": datetime.date(2025, 3, 1), "test": datetime.datetime(2025, 4, 1, 12)}
    recipe = parse_recipe(raw(data={"sources": [SOURCE], "split": split}))
    assert (recipe.data.split.validation, recipe.data.split.test) == ("2025-03-01", "2025-04-01T12:00:00")


def test_an_exponent_without_a_point_is_a_number(file: Path) -> None:
    assert load_recipe(str(file), ["training.learning_rate=1e-3"]).training.learning_rate == 0.001


# ---- overrides


def overridden(file: Path, *overrides: str) -> Recipe:
    return load_recipe(str(file), overrides)


def test_an_override_reaches_nested_keys_and_list_positions(file: Path) -> None:
    recipe = overridden(file, "training.epochs=3", "data.sources.0.columns.user=who", "evaluation.ks.1=20")
    assert recipe.training.epochs == 3
    assert recipe.data.sources[0].columns.user == "who"
    assert recipe.evaluation.ks == (1, 20)


def test_an_override_chooses_the_loss_and_leaves_its_other_settings(file: Path) -> None:
    objective = overridden(file, "training.objective.loss=gbce", "training.objective.negatives=64").training.objective
    assert objective == Objective(loss="gbce", negatives=64)


def test_an_overriding_value_is_yaml(file: Path) -> None:
    recipe = overridden(file, "evaluation.ks=[3, 5]", "storage=", "data.sources.0.columns={user: a, item: b=c}")
    assert recipe.evaluation.ks == (3, 5)
    assert recipe.storage is None
    assert recipe.data.sources[0].columns.item == "b=c"


def test_another_architecture_drops_the_keys_of_the_first(file: Path) -> None:
    assert overridden(file, "model.name=popularity").model.name == "popularity"
    assert overridden(file, "model.name=sasrec").model.config.dim == 32
    assert overridden(file, "model.name=popularity", "model.name=sasrec", "model.dim=8").model.config.dim == 8


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("training.epochs", "write it as section.key=value"),
        ("=3", "write it as section.key=value"),
        ("training.epochs=[", "not YAML"),
        ("name.first=x", "'name' is a value (small)"),
        ("evaluation.ks.0.x=1", "'0' is a value (1)"),
        ("evaluation.ks.7=1", "must be a position in a list of 2"),
        ("evaluation.ks.²=1", "must be a position"),
        ("training.epohcs=3", "training.epohcs: unknown key. Did you mean 'epochs'?"),
    ],
)
def test_an_override_that_cannot_be_applied_says_why(file: Path, override: str, expected: str) -> None:
    with pytest.raises(RecipeError) as caught:
        overridden(file, override)
    assert expected in str(caught.value)


def test_naming_the_model_of_a_recipe_with_a_malformed_one_is_one_message(file: Path) -> None:
    with pytest.raises(RecipeError, match="'model' is a value"):
        overridden(file, "model=sasrec", "model.name=popularity")


# ---- where the data is


def test_relative_paths_start_at_the_recipes_folder(file: Path, tmp_path: Path) -> None:
    recipe = overridden(file, "data.items={path: items.csv, columns: {item: i}}")
    assert recipe.data.sources[0].path == str(tmp_path / "events.csv")
    assert recipe.data.items is not None
    assert recipe.data.items.path == str(tmp_path / "items.csv")


@pytest.mark.parametrize("path", ["/data/events.csv", "s3://bucket/events.csv", "rayrec://simulated/events.csv"])
def test_absolute_paths_and_uris_stay(file: Path, path: str) -> None:
    assert overridden(file, f"data.sources.0.path={path}").data.sources[0].path == path


def test_simulated_data_marks_the_recipe_and_its_name(file: Path) -> None:
    recipe = load_recipe(str(file), ["data.view.min_user_events=5"], simulated=True)
    assert recipe.simulated
    assert recipe.name == "small-simulated"
    assert recipe.data.sources[0].path.startswith("rayrec://simulated/")
    assert recipe.data.view.min_user_events == 5
    assert load_recipe("simulated", simulated=True).name == "simulated"


@pytest.mark.parametrize(("body", "expected"), [({"data": [1]}, "name: required"), ({"name": ["x"]}, "name = ")])
def test_simulated_data_does_not_hide_a_recipe_that_is_wrong(tmp_path: Path, body: Any, expected: str) -> None:
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump(body))
    with pytest.raises(RecipeError, match=expected):
        load_recipe(str(tmp_path / "bad.yaml"), simulated=True)


def test_the_json_schema_says_what_every_setting_of_models_and_training_means() -> None:
    schema = json_schema()
    described = [*schema["properties"]["model"]["anyOf"], schema["$defs"]["Training"], schema["$defs"]["Objective"]]
    missing = [
        (config["properties"].get("name", {}).get("const"), key)
        for config in described
        for key, value in config["properties"].items()
        if key != "name" and not value.get("description")
    ]
    assert missing == []
