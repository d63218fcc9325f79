"""The Grafana dashboard asks for what there is."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import ray
from tests.exposed import RAYS_PREFIX, exposed_names

ROOT = Path(__file__).parents[2]
DASHBOARD = ROOT / "deployments" / "grafana" / "rayrec.json"
RAYS_OWN = {
    "ray_serve_deployment_replica_healthy": "serve/_private/deployment_state.py",
    "ray_component_cpu_percentage": "dashboard/modules/reporter/reporter_agent.py",
    "ray_node_cpu_utilization": "dashboard/modules/reporter/reporter_agent.py",
}
"""Series of Ray itself, and where in its source they are made."""
PARTS = re.compile("_(bucket|sum|count)$")
VARIABLES = {"$__rate_interval": "1m", "$application": "rayrec"}


@pytest.fixture(scope="module")
def dashboard() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    return content


def expressions(dashboard: dict[str, Any]) -> Iterator[str]:
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            expression = target["expr"]
            for name, value in VARIABLES.items():
                expression = expression.replace(name, value)
            yield expression


def selected(expression: str) -> set[str]:
    """The names of the series that an expression reads."""
    names = set()

    def visit(node: promql_parser.Expr) -> bool:
        if isinstance(node, promql_parser.VectorSelector):
            names.add(node.name)
        elif isinstance(node, promql_parser.MatrixSelector):
            names.add(node.vector_selector.name)
        return True

    promql_parser.walk(promql_parser.parse(expression), pre_visit=visit)
    return names


def test_every_expression_reads_series_that_are_given_out(dashboard: dict[str, Any]) -> None:
    known = exposed_names() | RAYS_OWN.keys()

    read = {expression: selected(expression) for expression in expressions(dashboard)}
    assert all(read.values())
    assert {expression: names - known for expression, names in read.items() if names - known} == {}


def test_every_series_of_the_endpoint_is_on_the_dashboard(dashboard: dict[str, Any]) -> None:
    read = {name for expression in expressions(dashboard) for name in selected(expression)}
    of_histograms = {name for name in exposed_names() if name.endswith(("_sum", "_count"))}

    assert exposed_names() - of_histograms <= read


def test_every_series_of_the_endpoint_is_in_the_table_of_operations() -> None:
    told = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")

    assert [name for name in exposed_names() if f"`{PARTS.sub('', name)}`" not in told] == []


@pytest.mark.parametrize("name", sorted(RAYS_OWN))
def test_rays_own_series_are_in_its_source(name: str) -> None:
    source = Path(ray.__file__).parent / RAYS_OWN[name]

    assert f'"{name.removeprefix(RAYS_PREFIX)}"' in source.read_text(encoding="utf-8")


def test_panels_do_not_overlap_and_say_what_they_show(dashboard: dict[str, Any]) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not taken & cells, panel["title"]
        assert panel["description"]
        taken |= cells
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
