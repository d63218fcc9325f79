"""The files for `serve deploy`: what Ray Serve's own schemas say of them, and the application they name."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError
from ray.serve.config import AutoscalingConfig
from ray.serve.deployment import deployment_to_schema
from ray.serve.schema import DeploymentSchema, ServeDeploySchema
from tests.deployments.conftest import ROOT
from tests.deployments.misspelling import misspelt

from rayrec.recipe_serving import Serving
from rayrec.serving import deployment as serving
from rayrec.serving.user_config import UserConfig

FILES = sorted(ROOT.glob("deployments/*.yaml"))
CONFIGS = {path.name: path for path in FILES if "applications" in yaml.safe_load(path.read_text(encoding="utf-8"))}


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def check(config: Any) -> ServeDeploySchema:
    """Ray's own schemas, which by themselves pass over keys they do not know, and rayrec's of `user_config`."""
    checked = ServeDeploySchema.model_validate(config, extra="forbid")
    for application in config["applications"]:
        for deployment in application["deployments"]:
            AutoscalingConfig.model_validate(deployment["autoscaling_config"], extra="forbid")
            UserConfig.model_validate(deployment["user_config"])
    return checked


@pytest.fixture
def production() -> DeploymentSchema:
    (application,) = check(read(CONFIGS["production.yaml"])).applications
    (deployment,) = application.deployments
    return deployment


@pytest.mark.parametrize("name", CONFIGS)
def test_a_file_passes_and_any_key_misspelt_does_not(name: str) -> None:
    config = read(CONFIGS[name])
    check(config)
    passed = []
    for where, changed in misspelt(config):
        try:
            check(changed)
        except ValidationError:
            continue
        passed.append(where)
    assert passed == []


@pytest.mark.parametrize("name", CONFIGS)
def test_a_file_names_the_application_and_the_deployment_there_are(name: str) -> None:
    (application,) = check(read(CONFIGS[name])).applications
    module, _, attribute = application.import_path.partition(":")
    assert getattr(importlib.import_module(module), attribute) is serving.application
    assert application.name == serving.APP_NAME
    (deployment,) = application.deployments
    assert deployment.name == deployment_to_schema(serving._with_options(Serving())).name


def test_the_bounds_around_a_replicas_queue_are_those_that_the_code_gives_it(production: DeploymentSchema) -> None:
    given = UserConfig.model_validate(production.user_config).settings()
    expected = deployment_to_schema(serving._with_options(Serving(**given)))
    for option in (
        "max_ongoing_requests",
        "max_queued_requests",
        "health_check_period_s",
        "graceful_shutdown_timeout_s",
    ):
        assert getattr(production, option) == getattr(expected, option), option
    # Left out, so that the code's holds: 429 with Retry-After.
    assert "backpressure_config" not in production.model_dump(exclude_unset=True)
    assert expected.backpressure_config.status_code == 429


def test_in_production_the_loss_of_a_node_leaves_replicas(production: DeploymentSchema) -> None:
    scaling = AutoscalingConfig.model_validate(production.autoscaling_config)
    assert scaling.min_replicas > production.max_replicas_per_node
    assert scaling.target_ongoing_requests is not None
    assert scaling.target_ongoing_requests < production.max_ongoing_requests


def test_in_production_all_replicas_answer_from_one_release_and_one_database(production: DeploymentSchema) -> None:
    config = UserConfig.model_validate(production.user_config)
    name, _, version = config.release.partition("/")
    assert name and version.isdigit()
    assert config.state is not None and config.state.startswith("postgresql://")
