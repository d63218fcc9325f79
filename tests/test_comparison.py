"""`rayrec compare`, from registered Releases to the page, the plot and the MLflow run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.recipes import write_log, write_recipe
from tests.test_cli import rayrec, refused

from rayrec.tracking import Tracker


@pytest.mark.usefixtures("ray_cluster", "without_graphs")
def test_registered_releases_are_compared_and_the_comparison_is_kept(home: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, write_log(tmp_path), model={"name": "popularity"})
    page = tmp_path / "page.html"
    assert rayrec("run", recipe).exit_code == 0
    assert rayrec("run", recipe, "--set", "model.half_life=0.01").exit_code == 0

    result = rayrec("compare", "tiny/1", "tiny@candidate", "--json", "--out", page)

    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout)
    assert [model["kind"] for model in printed["models"]] == ["popularity", "popularity"]
    assert "warning: 98% of the test events" in result.stderr
    assert "tiny/1 against tiny/2" in page.read_text()
    tracker = Tracker("tiny")
    (run,) = tracker.client.search_runs([tracker.experiment], "tags.`mlflow.runName` = 'compare'")
    assert run.data.tags["rayrec.compared"] == "tiny/1, tiny/2"
    assert run.data.metrics["tiny/2/ndcg_at_10"] == printed["models"][1]["test"]["ndcg@10"]
    files = {file.path for file in tracker.client.list_artifacts(run.info.run_id)}
    assert files == {"comparison.html", "comparison.png", "comparison.json"}
    assert "p (Holm)" in rayrec("compare", "tiny/1", "tiny/2", "--metric", "ndcg@10").stdout
    refused(rayrec("compare", "tiny/1"), "alone cannot be compared")
    refused(rayrec("compare", "tiny/2", "tiny@candidate"), "named twice")
