"""The MLflow flavour: `mlflow.pyfunc.load_model` answers like the endpoint. Loaded by name, so without a pickle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd

from rayrec.artifacts import Storage
from rayrec.errors import DataError
from rayrec.inference.release import Release, open_release

REFERENCE = "release.json"


class ReleaseModel:
    """Recommendations for histories given as a data frame."""

    def __init__(self, release: Release) -> None:
        self.release = release
        self.scorer = release.bundle().scorer()

    def predict(self, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Recommend.

        Args:
            model_input: A column ``history``: item keys, oldest first, separated by spaces or as a list.
            params: ``k``, how many items (default 10).

        Returns:
            Columns ``items`` (list of keys) and ``scores`` (list of floats), a row a history.
        """
        if "history" not in model_input.columns:
            raise DataError(f"expected a column 'history', found: {', '.join(map(str, model_input.columns))}.")
        keys = [h.split() if isinstance(h, str) else list(h) for h in model_input["history"]]
        histories = [self.scorer.rows_of([str(key) for key in history]) for history in keys]
        rows, scores = self.scorer.top(histories, int((params or {}).get("k", 10)), exclude=histories)
        names = self.scorer.item_keys
        return pd.DataFrame(
            {
                "items": [[names[row - 1] for row in found if row] for found in rows],
                "scores": [
                    [float(s) for row, s in zip(found, values, strict=True) if row]
                    for found, values in zip(rows, scores, strict=True)
                ],
            }
        )


def _load_pyfunc(path: str) -> ReleaseModel:
    """Called by MLflow with the folder that `write_reference` filled."""
    reference = json.loads((Path(path) / REFERENCE).read_text(encoding="utf-8"))
    return ReleaseModel(open_release(Storage.open(reference["storage"]), reference["release"]))


def write_reference(folder: Path, release: Release) -> None:
    """Write what MLflow keeps of a Release: where it is."""
    folder.mkdir(parents=True, exist_ok=True)
    reference = {"storage": release.storage.uri, "release": release.digest}
    (folder / REFERENCE).write_text(json.dumps(reference), encoding="utf-8")
