"""The image, which is not built here: what a linter says of its Dockerfile, and that all it takes is there."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sysconfig
import tomllib
from functools import cache
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import yaml
from docker.utils.build import exclude_paths
from dockerfile_parse import DockerfileParser
from tests.deployments.conftest import ROOT

FILE = ROOT / "deployments/docker/Dockerfile"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@cache
def instructions(name: str) -> list[str]:
    """The values of all instructions of a name, in order."""
    found = DockerfileParser(fileobj=FILE.open("rb")).structure
    return [each["value"] for each in found if each["instruction"] == name]


def stages() -> dict[str, str]:
    """Each stage, and what it builds upon."""
    return {name: image for image, _, name in (line.partition(" AS ") for line in instructions("FROM"))}


def copied() -> set[str]:
    """What is copied from the checkout into any stage."""
    return {source for line in instructions("COPY") for source in shlex.split(line)[:-1]}


def context() -> set[str]:
    """The files that a build gets to see, by the rules of Docker's own client."""
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    patterns = [line for line in lines if line and not line.startswith("#")]
    return set(exclude_paths(str(ROOT), patterns, dockerfile="deployments/docker/Dockerfile"))


def test_the_linter_finds_nothing() -> None:
    hadolint = Path(sysconfig.get_path("scripts"), "hadolint")
    done = subprocess.run([hadolint, "--format=json", FILE], capture_output=True, text=True, check=False)
    assert json.loads(done.stdout) == [], done.stderr


def test_what_is_copied_is_in_the_build_and_nothing_else() -> None:
    # Docker itself reads two more.
    sent = {path for path in context() if (ROOT / path).is_file()} - {".dockerignore", "deployments/docker/Dockerfile"}
    found = {source: {path for path in sent if path == source or path.startswith(f"{source}/")} for source in copied()}
    assert [source for source, paths in found.items() if not paths] == []
    assert sent == set().union(*found.values())
    assert not [path for path in sent if "__pycache__" in path]


def test_a_wheel_can_be_made_of_what_is_copied() -> None:
    wheel = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {"pyproject.toml", PROJECT["project"]["readme"], *PROJECT["project"]["license-files"]}
    needed |= {*wheel["packages"], *wheel["shared-data"]}
    assert needed <= copied()
    assert PROJECT["tool"]["hatch"]["version"]["path"].startswith("platform/rayrec/")


def test_every_stage_and_argument_is_used_and_both_variants_are_there() -> None:
    arguments = dict(line.split("=") for line in instructions("ARG"))
    text = FILE.read_text(encoding="utf-8")
    assert [name for name in arguments if f"${{{name}}}" not in text] == []
    used = set(stages().values()) | set(re.findall(r"from=([\w-]+)", text))
    for variant in ("cpu", "gpu"):
        assert f"torch-{variant}" in stages()
        used |= {image.replace("${VARIANT}", variant) for image in used}
    final, last = list(stages())[-1], list(stages().values())[-1]
    assert set(stages()) - {final} <= used
    assert (arguments["VARIANT"], last) == ("cpu", "torch-${VARIANT}")


def test_python_is_the_one_that_is_tested_and_what_clusters_of_the_launcher_have() -> None:
    arguments = dict(line.split("=") for line in instructions("ARG"))
    launcher: dict[str, Any] = yaml.safe_load((ROOT / "cluster.yaml").read_text(encoding="utf-8"))
    version = PROJECT["tool"]["mypy"]["python_version"]
    assert arguments["PYTHON_VERSION"] == version
    assert launcher["docker"]["image"].endswith(f"-py{version.replace('.', '')}")


def test_what_is_installed_has_the_versions_of_constraints_txt() -> None:
    commands = [line for line in instructions("RUN") if re.search(r"\bpip (install|wheel)\b", line)]
    assert len(commands) == 4
    for command in commands:
        assert re.search(r"\bpip (install|wheel) -c constraints\.txt ", command), command
    (cpu,) = [command for command in commands if "/whl/cpu" in command]
    # Nothing but torch comes from that index, whatever else it may have.
    assert "--no-deps" in cpu and cpu.endswith(" torch")
    extras = re.search(r"rayrec\[([\w,]+)\]", commands[-1])
    assert extras is not None
    assert set(extras[1].split(",")) <= set(PROJECT["project"]["optional-dependencies"])
    # Where production.yaml keeps events, and configuration.yaml everything else.
    assert set(extras[1].split(",")) == {"postgres", "s3"}


def test_it_has_the_commands_that_the_manifests_and_kuberay_call() -> None:
    scripts = {script.name for script in distribution("ray").entry_points} | set(PROJECT["project"]["scripts"])
    assert {"ray", "rayrec", "serve"} <= scripts
    # This extra has the dashboard, the jobs and HAProxy.
    (ray,) = [line for line in PROJECT["project"]["dependencies"] if line.startswith("ray[")]
    assert "serve" in re.split(r"[\[\],]", ray)


def test_it_runs_as_nobody_special_as_the_manifests_say() -> None:
    (user,) = instructions("USER")
    manifest = yaml.safe_load((ROOT / "deployments/kuberay/raycluster.yaml").read_text(encoding="utf-8"))
    identity = manifest["spec"]["headGroupSpec"]["template"]["spec"]["securityContext"]
    assert user == f"{identity['runAsUser']}:{identity['runAsGroup']}"
    assert int(user.partition(":")[0]) > 0


def test_nothing_is_compiled_in_it() -> None:
    text = FILE.read_text(encoding="utf-8")
    assert "apt-get" not in text
    assert "--only-binary :all:" in instructions("RUN")[-1]
