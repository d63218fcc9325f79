"""The launcher's file: what Ray's own check says of it, and what it promises."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from rayrec.cluster import SERVE_SETTINGS
from rayrec.ports import free_port

FILE = Path(__file__).parents[2] / "cluster.yaml"


@pytest.fixture
def config() -> Any:
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(yaml.safe_load(FILE.read_text(encoding="utf-8")))
    validate_config(prepared)
    return prepared


def test_the_head_runs_no_work_and_workers_come_and_go(config: Any) -> None:
    types = config["available_node_types"]
    assert types[config["head_node_type"]]["resources"] == {"CPU": 0, "GPU": 0}
    assert types["cpu"]["max_workers"] > types["cpu"]["min_workers"]
    assert types["gpu"]["resources"]["GPU"] == 1
    assert types["gpu"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}


def test_every_node_asks_for_the_token_and_serves_fast(config: Any) -> None:
    options = config["docker"]["run_options"]
    assert "--env RAY_AUTH_MODE=token" in options
    assert all(f"--env {name}={value}" in options for name, value in SERVE_SETTINGS.items())
    assert any(target.endswith(".ray/auth_token") for target in config["file_mounts"])
    assert all("--dashboard-host=127.0.0.1" in c for c in config["head_start_ray_commands"] if "ray start" in c)


def test_it_installs_the_versions_that_are_tested(config: Any) -> None:
    lines = FILE.with_name("constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = dict(line.split("==") for line in lines if not line.startswith("#") and "==" in line)
    images = [config["docker"]["image"], config["available_node_types"]["gpu"]["docker"]["worker_image"]]
    assert all(f":{pinned['ray']}-py311" in image for image in images)
    setups = [*config["head_setup_commands"], *config["worker_setup_commands"]]
    setups += config["available_node_types"]["gpu"]["worker_setup_commands"]
    assert all("-c ~/rayrec/constraints.txt" in command for command in setups if "pip install" in command)
    assert not any("nightly" in command or "latest" in command for command in setups)


def test_an_unknown_key_would_be_found(config: Any) -> None:
    from jsonschema import ValidationError
    from ray.autoscaler._private.util import validate_config

    with pytest.raises(ValidationError):
        validate_config({**config, "initial_workers": 1})


def test_mlflow_is_started_once(config: Any, tmp_path: Path) -> None:
    (line,) = [command for command in config["head_start_ray_commands"] if "mlflow server" in command]
    fake = tmp_path / "mlflow"
    fake.write_text('#!/bin/sh\necho started > "$HOME/ran"\n', encoding="utf-8")
    fake.chmod(0o755)
    path = f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}"

    def started(port: int) -> bool:
        # The launcher hands each command to a shell whose own command line holds it.
        command = ["bash", "-c", line.replace("5000", str(port)).removesuffix("&") + "; true"]
        subprocess.run(command, env={"PATH": path, "HOME": str(tmp_path)}, check=True)
        ran = tmp_path / "ran"
        return ran.exists() and not ran.unlink()

    with socket.create_server(("127.0.0.1", 0)) as server:
        assert not started(server.getsockname()[1])
    assert started(free_port())
