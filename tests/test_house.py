"""The rules of the house that a test can hold: what imports what, and that `platform` stays the standard library's."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def python(code: str) -> str:
    """What a fresh interpreter, started in the root of the repository, prints."""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def imported_by(modules: list[str], watched: list[str]) -> list[str]:
    """Which of the watched packages importing these modules brings along."""
    code = f"""
import sys, json, importlib
sys.path.insert(0, {str(ROOT / "platform")!r})
for name in {modules!r}:
    importlib.import_module(name)
print(json.dumps([name for name in {watched!r} if name in sys.modules]))
"""
    found: list[str] = json.loads(python(code))
    return found


def test_platform_is_the_standard_librarys_module() -> None:
    assert not (ROOT / "platform" / "__init__.py").exists()
    assert python("import platform; print(platform.system())") in {"Linux", "Darwin", "Windows"}


@pytest.mark.usefixtures("ray_cluster")
def test_platform_is_the_standard_librarys_module_in_a_worker() -> None:
    import ray

    def system() -> str:
        import platform

        return platform.system()

    assert ray.get(ray.remote(num_cpus=0)(system).remote()) in {"Linux", "Darwin", "Windows"}


def test_the_core_runs_on_torch_and_numpy_alone() -> None:
    core = ["models.sasrec", "models.popularity", "models.registry", "metrics", "features.histories", "training.loop"]
    assert imported_by([f"rayrec.{name}" for name in core], ["ray", "mlflow", "pydantic", "fastapi"]) == []


def test_answering_needs_no_torch() -> None:
    inference = ["scorer", "bundle", "release", "top_k", "runtime"]
    assert imported_by([f"rayrec.inference.{name}" for name in inference], ["torch", "ray", "mlflow"]) == []


def test_reading_a_recipe_needs_neither_torch_nor_ray() -> None:
    assert imported_by(["rayrec.recipe", "rayrec.tracking"], ["torch", "ray", "mlflow"]) == []


def test_no_test_folder_is_a_package_and_no_two_test_files_share_a_name() -> None:
    tests = list((ROOT / "tests").rglob("*.py"))
    names = [path.name for path in tests if path.name != "conftest.py"]
    assert "__init__.py" not in names
    assert len(names) == len(set(names))
