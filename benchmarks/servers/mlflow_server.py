"""`mlflow models serve` of a python function, in this environment, one worker.

    python -m benchmarks.servers.mlflow_server --bundle FOLDER --port PORT

https://mlflow.org/docs/latest/ml/deployment/deploy-model-locally/. MLflow makes no batches.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import mlflow.pyfunc
from benchmarks.servers.model import Model, asked_for


class Recommender:
    """What MLflow asks."""

    def __init__(self, model: Model) -> None:
        self.model = model

    def predict(self, model_input: Any) -> list[dict[str, Any]]:
        """One pass."""
        return self.model.recommend([str(user) for user in model_input])


def _load_pyfunc(path: str) -> Recommender:
    """Called by MLflow with what it kept of the folder."""
    return Recommender(Model(path))


def main() -> None:
    """Become `mlflow models serve`."""
    arguments = asked_for(__doc__)
    saved = Path(arguments.bundle).with_name("mlflow")
    shutil.rmtree(saved, ignore_errors=True)
    # Without requirements: this environment has them, and MLflow would take long to find them out.
    mlflow.pyfunc.save_model(
        str(saved),
        loader_module="benchmarks.servers.mlflow_server",
        data_path=str(arguments.bundle),
        pip_requirements=[],
    )
    place = ["--model-uri", str(saved), "--host", "127.0.0.1", "--port", str(arguments.port)]
    command = ["-m", "mlflow", "models", "serve", *place, "--env-manager", "local", "--workers", "1"]
    # In place of this process: it gets the signal that ends it.
    os.execv(sys.executable, [sys.executable, *command])  # noqa: S606


if __name__ == "__main__":
    main()
