"""`ray job submit` on a cluster that has what rayrec needs, but not rayrec."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.deployments.conftest import ROOT, Head, head

pytestmark = pytest.mark.slow

WHERE = """
import platform, ray
import rayrec
def seen():
    import platform, rayrec
    return platform.system(), rayrec.__file__
ray.init(logging_level="ERROR")
print("driver:", platform.system(), rayrec.__file__)
print("worker:", *ray.get(ray.remote(seen).remote()))
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An interpreter with every dependency and without rayrec."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    site = next(folder.glob("lib/python3*/site-packages"))
    # A path in a .pth file is searched, but .pth files in it are not read: an editable rayrec is not found that way.
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"], encoding="utf-8")
    made = str(folder / "bin" / "python")
    found = subprocess.run(
        [made, "-c", "import rayrec"], capture_output=True, text=True, cwd=folder, env={}, check=False
    )
    assert "No module named 'rayrec'" in found.stderr, "this environment has rayrec"
    return made


@pytest.fixture(scope="module")
def cluster(python: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    with head(python, tmp_path_factory.mktemp("home"), PYTHONPATH="") as started:
        yield started


def submit(cluster: Head, *entrypoint: str) -> subprocess.CompletedProcess[str]:
    options = ["--address", cluster.dashboard, "--working-dir", ".", "--runtime-env", "deployments/job.yaml"]
    return cluster.command("ray.scripts.scripts", "job", "submit", *options, "--", *entrypoint)


def test_the_packaged_recipe_ends_with_a_registered_release(cluster: Head) -> None:
    done = submit(cluster, "python", "-m", "rayrec", "run", "movielens-100k", "--set", "model.name=popularity")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "movielens-100k/1  promoted: movielens-100k/1 is the first champion" in done.stdout


def test_platform_is_the_standard_librarys_module_in_driver_and_workers(cluster: Head) -> None:
    done = submit(cluster, "python", "-c", f"exec({WHERE!r})")
    assert done.returncode == 0, done.stdout + done.stderr
    for who in ("driver", "worker"):
        (line,) = [line for line in done.stdout.splitlines() if line.startswith(f"{who}: ")]
        assert line.split()[1] in {"Linux", "Darwin"}
        assert "py_modules_files" in line, "rayrec came with the job"


def test_a_job_that_fails_fails_the_command(cluster: Head) -> None:
    done = submit(cluster, "python", "-m", "rayrec", "run", "no-such-recipe")
    assert done.returncode != 0
    assert "error: " in done.stdout
    assert "Traceback" not in done.stdout


def test_a_driver_from_outside_says_that_rayrec_is_missing_there(cluster: Head) -> None:
    address = Path(cluster.environment["RAY_TMPDIR"], "ray", "ray_current_cluster").read_text(encoding="utf-8").strip()
    source = str(ROOT / "platform")
    environment = {**cluster.environment, "RAY_ADDRESS": address, "PYTHONPATH": source}
    command = [sys.executable, "-m", "rayrec", "prepare", "simulated"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2, done.stderr
    assert "No module named 'rayrec'. Install rayrec there" in done.stderr
