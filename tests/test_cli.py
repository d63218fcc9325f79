"""The command line: what people type, what comes back, and how it fails."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from tests.recipes import recipe_values, write_log, write_recipe
from typer.testing import CliRunner, Result

from rayrec.artifacts import Storage
from rayrec.cli import app
from rayrec.recipe_files import load_recipe

FAST = ["--set", "model.name=popularity"]


def rayrec(*arguments: object) -> Result:
    """The command, in this process and on the session's Ray."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def published(home: Path) -> list[str]:
    """What a failed command must not leave behind."""
    return sorted(
        str(path.relative_to(home))
        for path in home.rglob("*")
        if path.is_file() and not str(path.relative_to(home)).startswith(("mlflow.db", "mlruns", "sources"))
    )


def refused(result: Result, *expected: str) -> None:
    """One clear message and exit code 2, no traceback."""
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    assert result.stderr.count("error: ") == 1
    for text in expected:
        assert text in result.stderr


# ---- bad input


def test_a_missing_file_is_refused(home: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, write_log(tmp_path))
    (tmp_path / "log.csv").unlink()

    refused(rayrec("run", recipe), "log.csv", "no such file")
    assert published(home) == []


@pytest.mark.parametrize(
    ("space", "options", "expected"),
    [
        ("{training.learning_rat: {uniform: [0.1, 0.5]}}", [], "Did you mean 'learning_rate'?"),
        ("{training.learning_rate: {uniform: [0.5, 0.1]}}", [], "the lowest (0.5) must be below the highest (0.1)"),
        ("{training.learning_rate: {uniform: [0.1, fast]}}", [], "'fast' is not a number"),
        ("{training.learning_rate: {uniform: [0.1, 0.5]}}", ["--metric", "ndgc@10"], "Did you mean 'ndcg@10'?"),
        ("{training.learning_rate: {uniform: [0.1, 0.5]}}", ["--trials", "0"], "trials = 0"),
    ],
)
def test_a_wrong_sweep_is_refused_before_ray_starts(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, space: str, options: list[str], expected: str
) -> None:
    monkeypatch.setattr("rayrec.cluster.connected", lambda *_: pytest.fail("Ray was started"))
    recipe = write_recipe(tmp_path, write_log(tmp_path))
    (tmp_path / "space.yaml").write_text(f"space: {space}")

    refused(
        rayrec("tune", recipe, "--space", tmp_path / "space.yaml", "--out", tmp_path / "b.yaml", *options), expected
    )
    assert published(home) == []


def test_a_sweep_does_not_overwrite_what_it_did_not_write(home: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, write_log(tmp_path))
    before = recipe.read_text()

    refused(rayrec("tune", recipe, "--out", recipe), "was not written by rayrec")
    assert recipe.read_text() == before
    page = tmp_path / "thesis.html"
    page.write_text("<!DOCTYPE html><p>My thesis")
    refused(rayrec("tune", recipe, "--out", tmp_path / "b", "--report", page), "--report", "not written by rayrec")
    refused(rayrec("tune", recipe, "--out", tmp_path / "b", "--report", tmp_path / "." / "b"), "what --out names, too")
    refused(rayrec("tune", recipe, "--out", "/proc/best.yaml"), "--out /proc/best.yaml: cannot be written")
    assert page.read_text() == "<!DOCTYPE html><p>My thesis"


def test_an_empty_file_is_refused(home: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, write_log(tmp_path))
    (tmp_path / "log.csv").write_text("")

    refused(rayrec("run", recipe), "log.csv", "empty")
    assert published(home) == []


def test_a_misspelt_key_is_refused_with_the_nearest_one(home: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, write_log(tmp_path), trainning={"epochs": 3})

    refused(rayrec("run", recipe), "trainning", "Did you mean 'training'?")
    assert published(home) == []


def test_an_unknown_model_is_refused_with_the_nearest_one(home: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, write_log(tmp_path), model={"name": "sasrek"})

    refused(rayrec("run", recipe), "sasrek", "Did you mean 'sasrec'?")


@pytest.mark.usefixtures("ray_cluster")
def test_an_absent_column_is_refused_with_those_that_are_there(home: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, write_log(tmp_path))

    refused(rayrec("run", recipe, "--set", "data.sources.0.columns.user=usr"), "'usr'", "Did you mean 'user'?", "item")
    assert published(home) == []


@pytest.mark.usefixtures("ray_cluster")
def test_timestamps_that_are_none_are_refused_with_an_example(home: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, write_log(tmp_path))

    result = rayrec("run", recipe, "--set", "data.sources.0.columns.timestamp=item")

    refused(result, "timestamp not understood", "max_bad_rows")
    assert published(home) == []


@pytest.mark.usefixtures("ray_cluster")
def test_everybody_below_the_minimum_count_is_refused(home: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, write_log(tmp_path))

    result = rayrec("run", recipe, "--set", "data.view.min_user_events=1000")

    refused(result, "1000", "min_user_events")
    assert not Storage.open(home).exists("models")


@pytest.mark.usefixtures("ray_cluster")
def test_a_bundle_with_one_byte_changed_is_refused_by_every_command(
    home: Path, tmp_path: Path, subtests: pytest.Subtests
) -> None:
    recipe = write_recipe(tmp_path, write_log(tmp_path), training={**recipe_values(tmp_path)["training"], "epochs": 1})
    assert rayrec("run", recipe, "--json").exit_code == 0
    bundle = next(p.parent for p in home.glob("models/tiny/*/tables/item.safetensors")).parent
    for name in ("dense.safetensors", "tables/item.safetensors", "variants/onnx/model.onnx", "model.json"):
        with subtests.test(name):
            whole = (bundle / name).read_bytes()
            content = bytearray(whole)
            content[len(content) // 2] ^= 1
            (bundle / name).write_bytes(content)
            before = published(home)

            refused(rayrec("serve", "tiny"), bundle.name)
            refused(rayrec("run", recipe), bundle.name)
            assert published(home) == before
            (bundle / name).write_bytes(whole)


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "no-such-recipe"],
        ["run", "movielens-100k", "--set", "training.epochs"],
        ["run", "movielens-100k", "--set", "training.epochs=many"],
        ["run", "movielens-100k", "--data", "imagined"],
        ["recipes", "movielens-100m"],
        ["serve", "nobody"],
        ["serve", "a/b/c"],
        ["promote", "nobody"],
        ["promote", "nobody/1"],
        ["rollback", "nobody"],
        ["data", "get", "movielens-100m"],
        ["init", "no-such-file.csv"],
        ["stop"],
    ],
)
def test_what_does_not_exist_is_refused(home: Path, arguments: list[str]) -> None:
    refused(rayrec(*arguments))


def test_an_unknown_option_is_refused(home: Path) -> None:
    assert rayrec("run", "movielens-100k", "--fast").exit_code == 2


# ---- logs of all kinds


def test_a_recipe_is_written_from_the_header_of_a_log_and_runs(home: Path, tmp_path: Path, ray_cluster: None) -> None:
    log = write_log(tmp_path)
    recipe = tmp_path / "recipe.yaml"

    written = rayrec("init", log, "--items", tmp_path / "items.csv", "--out", recipe)
    result = rayrec("run", recipe, *FAST, "--json")

    assert written.exit_code == 0, written.output
    assert result.exit_code == 0, result.output
    columns = load_recipe(str(recipe)).data.sources[0].columns
    assert (columns.user, columns.item, columns.timestamp) == ("user", "item", "time")
    assert json.loads(result.stdout)["dataset"]["counts"]["events"] == 720


def test_init_does_not_overwrite(home: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("mine")

    refused(rayrec("init", write_log(tmp_path), "--out", recipe), "already")
    assert recipe.read_text() == "mine"


def own_log(tmp_path: Path, kind: str) -> dict[str, Any]:
    """A user's own log of some kind, and the source that reads it."""
    rows = [(f"u{u}", f"i{(u + s) % 9}", 1_700_000_000 + 100 * u + s) for u in range(12) for s in range(5)]
    if kind == "two columns":
        (tmp_path / "own.csv").write_text("user,item\n" + "\n".join(f"{u},{i}" for u, i, _ in rows))
        return {"path": "own.csv", "columns": {"user": "user", "item": "item"}}
    if kind == "three columns, no header":
        (tmp_path / "own.csv").write_text("\n".join(f"{u},{i},{t}" for u, i, t in rows))
        return {"path": "own.csv", "header": False, "columns": {"user": 0, "item": 1, "timestamp": 2}}
    if kind == "another language":
        text = "Kundennummer;Größe;Zeit\n" + "\n".join(f"{u};{i};2024-01-01T00:{t % 60:02}:00Z" for u, i, t in rows)
        (tmp_path / "own.csv").write_text(text, encoding="utf-8")
        return {"path": "own.csv", "columns": {"user": "Kundennummer", "item": "Größe", "timestamp": "Zeit"}}
    folder = tmp_path / "logs"
    folder.mkdir()
    for part in range(3):
        lines = [json.dumps({"who": u, "what": i, "at": t * 1000}) for u, i, t in rows[part::3]]
        (folder / f"part-{part}.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    return {"path": "logs", "columns": {"user": "who", "item": "what", "timestamp": "at"}}


@pytest.mark.usefixtures("ray_cluster", "without_graphs")
@pytest.mark.parametrize(
    "kind", ["two columns", "three columns, no header", "another language", "gzip folder of JSON lines"]
)
def test_the_users_own_log_works(home: Path, tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({"name": "own", "data": {"sources": [own_log(tmp_path, kind)]}}), encoding="utf-8")

    result = rayrec("run", recipe, *FAST, "--json")

    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout)
    assert printed["dataset"]["counts"] == {"read": 60, "quarantined": 0, "erased": 0, "deduplicated": 0, "events": 60}
    assert printed["metrics"]["test"]["users"] == 12
    assert ("no timestamp column is mapped" in caplog.text) == (kind == "two columns")


# ---- the life of a Release


@pytest.mark.usefixtures("ray_cluster", "without_graphs")
def test_releases_are_listed_promoted_and_rolled_back(home: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, write_log(tmp_path))
    training = ["--set", "training.epochs=1", "--set", "training.learning_rate=0.0001"]
    assert rayrec("run", recipe, "--set", "training.epochs=20").exit_code == 0
    assert rayrec("run", recipe, *training).exit_code == 0

    assert rayrec("promote", "tiny/2").stdout == "tiny/2 is the champion\n"
    assert rayrec("rollback", "tiny").stdout == "tiny/1 is the champion\n"
    refused(rayrec("rollback", "tiny"), "no earlier champion")
    releases = json.loads(rayrec("list", "--json").stdout)["releases"]
    assert [(r["version"], r["aliases"]) for r in releases] == [(1, ["champion"]), (2, ["candidate"])]
    assert "tiny" in rayrec("list").stdout
    assert rayrec("gc", "--dry-run", "--keep", 0, "--older-than", 0).exit_code == 0


def test_recipes_are_listed_printed_and_described(home: Path) -> None:
    assert "movielens-100k" in rayrec("recipes").stdout
    assert yaml.safe_load(rayrec("recipes", "movielens-100k").stdout)["model"]["name"] == "sasrec"
    assert "data" in json.loads(rayrec("recipes", "--schema").stdout)["properties"]


# ---- as a process


def test_with_json_only_the_object_is_on_stdout_and_simulated_data_is_called_so(home: Path, ray_cluster: None) -> None:
    command = [sys.executable, "-m", "rayrec", "run", "movielens-100k", "--data", "simulated", *FAST, "--json"]
    environment = {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}

    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)

    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    assert printed["simulated"] is True
    assert printed["release"]["name"] == "movielens-100k-simulated"
    assert {"seconds", "skipped"} <= set(printed["stages"]["prepare"])
    assert printed["metrics"]["test"]["ndcg@10"] == printed["baseline"]["test"]["ndcg@10"]
    assert "simulated" in done.stderr


def test_a_wrong_ray_address_is_refused(home: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, write_log(tmp_path))
    command = [sys.executable, "-m", "rayrec", "prepare", str(recipe)]
    environment = {**os.environ, "RAY_ADDRESS": "127.0.0.1:1"}

    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=False)

    assert done.returncode == 2
    assert "127.0.0.1:1" in done.stderr
    assert "Traceback" not in done.stderr
