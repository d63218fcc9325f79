"""What a trial gets of a cluster."""

from __future__ import annotations

from typing import Any

import pytest
from tests.recipes import recipe_values

from rayrec.errors import ClusterError
from rayrec.recipe_files import parse_recipe
from rayrec.tuning.options import Options
from rayrec.tuning.shares import shares


def of(nodes: list[dict[str, float]], monkeypatch: pytest.MonkeyPatch, **options: Any) -> Any:
    training = options.pop("training", {})
    monkeypatch.setattr("ray.nodes", lambda: [{"Alive": True, "Resources": node} for node in nodes])
    recipe = parse_recipe(recipe_values("log.csv", training=training))
    return shares(recipe, Options(**options), training.get("threads"))


@pytest.mark.parametrize(
    ("nodes", "options", "expected"),
    [
        ([{"CPU": 4}], {}, (1, {"CPU": 1}, 4)),
        ([{"CPU": 4}], {"parallel": 2}, (2, {"CPU": 2}, 2)),
        ([{"CPU": 4}, {"CPU": 4}], {"parallel": 1}, (4, {"CPU": 4}, 1)),
        ([{}, {"CPU": 1}, {"CPU": 1}], {}, (1, {"CPU": 1}, 2)),
        ([{"CPU": 3}, {"CPU": 3}], {"training": {"threads": 2}}, (2, {"CPU": 2}, 2)),
        ([{"CPU": 8, "GPU": 2}], {}, (4, {"CPU": 4, "GPU": 1}, 2)),
        ([{"CPU": 8, "GPU": 2}], {"parallel": 3}, (2, {"CPU": 2, "GPU": 0.5}, 3)),
        ([{"CPU": 8, "GPU": 1}], {"gpus": 0.25}, (2, {"CPU": 2, "GPU": 0.25}, 4)),
        ([{"CPU": 8, "GPU": 1}], {"training": {"gpus": "no"}}, (1, {"CPU": 1}, 8)),
        ([{"CPU": 8}], {"training": {"workers": 3}}, (1, {"CPU": 0.1}, 2)),
    ],
)
def test_a_trial_gets_its_share_of_one_node(
    monkeypatch: pytest.MonkeyPatch, nodes: list[dict[str, float]], options: dict[str, Any], expected: Any
) -> None:
    assert of(nodes, monkeypatch, **options) == expected


@pytest.mark.parametrize(
    ("nodes", "options", "expected"),
    [
        ([{"CPU": 4}], {"training": {"threads": 8}}, "a trial takes 8 CPU of one node, and so 0 of 1 fit"),
        ([{"CPU": 2}], {"parallel": 4}, "2 of 4 fit"),
        ([{"CPU": 4, "GPU": 1}], {"gpus": 2}, "0 of 1 fit"),
        ([{"CPU": 4}], {"training": {"gpus": "yes"}}, "the cluster has no GPU"),
    ],
)
def test_what_no_node_has_is_refused_instead_of_waited_for(
    monkeypatch: pytest.MonkeyPatch, nodes: list[dict[str, float]], options: dict[str, Any], expected: str
) -> None:
    with pytest.raises(ClusterError) as caught:
        of(nodes, monkeypatch, **options)
    assert expected in str(caught.value)
