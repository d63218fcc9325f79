"""Checkpoints: weights and optimizer state as safetensors, everything else as JSON. No pickle.

They are artifacts like all others, so that one which was cut off while it was written does not exist, wherever the
storage is and whatever died. (Ray Train's own list of checkpoints is rewritten in place: a driver killed at that moment
leaves half of it, which the next one cannot read.)
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from rayrec.artifacts import Storage, open_folder, publish_folder
from rayrec.inference.bundle import load_weights, save_weights
from rayrec.models.base import Recommender
from rayrec.training.loop import Run

State = dict[str, Tensor]

MANIFEST = "checkpoint.json"
KEEP = 2


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of a training run in the storage: ``runs/NAME/checkpoints/EPOCH/DIGEST/``.

    The newest two are kept: whoever reads one is not disturbed by the next being written.

    Attributes:
        storage: Where they are.
        name: Of the run.
    """

    storage: Storage
    name: str

    @property
    def _run(self) -> str:
        return f"runs/{self.name}"

    @property
    def _folder(self) -> str:
        return f"{self._run}/checkpoints"

    def save(self, run: Run, best: State) -> None:
        """Publish where ``run`` stands, then drop what is older than the newest two."""
        epoch = run.progress.epoch
        with tempfile.TemporaryDirectory(prefix="rayrec-checkpoint-") as temporary:
            save_checkpoint(run, best, Path(temporary))
            publish_folder(self.storage, self._of(epoch), Path(temporary), {"schema": 1, "epoch": epoch}, MANIFEST)
        for old in self._epochs()[:-KEEP]:
            self.storage.remove(self._of(old))

    def newest(self) -> int:
        """The epoch of the newest whole checkpoint; 0 when there is none."""
        return next((epoch for epoch in reversed(self._epochs()) if self._whole(epoch)), 0)

    def load(self, run: Run, epoch: int) -> State:
        """Put a fresh run where the checkpoint of an epoch stands. Returns the best state.

        Raises:
            ModelError: The checkpoint is damaged.
        """
        with tempfile.TemporaryDirectory(prefix="rayrec-checkpoint-") as temporary:
            folder, _ = open_folder(self.storage, self._whole(epoch)[0], MANIFEST, Path(temporary))
            return load_checkpoint(run, folder)

    def clear(self) -> None:
        """Forget the run."""
        if self.storage.exists(self._run):
            self.storage.remove(self._run)

    def _of(self, epoch: int) -> str:
        return f"{self._folder}/{epoch:06d}"

    def _epochs(self) -> list[int]:
        return [int(name) for name in self.storage.list(self._folder)]

    def _whole(self, epoch: int) -> list[str]:
        """Paths of an epoch's published checkpoints. Two drivers at once write two, which say the same."""
        paths = [f"{self._of(epoch)}/{name}" for name in self.storage.list(self._of(epoch))]
        return [path for path in paths if self.storage.exists(f"{path}/{MANIFEST}")]


def save_checkpoint(run: Run, best: State, folder: Path) -> None:
    """Write where ``run`` stands into an empty folder.

    Args:
        run: The run after an epoch.
        best: The state of the model at its best epoch.
        folder: Gets ``last/`` and ``best.safetensors`` (weights), ``average/`` where averaged ones are kept,
            ``optimizer.safetensors`` and ``progress.json``.
    """
    save_weights(run.model, folder / "last")
    if run.average:
        save_weights(run.average.model, folder / "average")
    save_file(best, folder / "best.safetensors")
    save_file(run.optimizer.state_dict(), folder / "optimizer.safetensors")
    (folder / "progress.json").write_text(json.dumps(dataclasses.asdict(run.progress)), encoding="utf-8")


def load_checkpoint(run: Run, folder: Path) -> State:
    """Put a fresh run where the saved one stood. Returns the best state."""
    load_weights(run.model, folder / "last")
    if run.average:
        load_weights(run.average.model, folder / "average")
    run.optimizer.load_state_dict(load_file(folder / "optimizer.safetensors"))
    saved = json.loads((folder / "progress.json").read_text(encoding="utf-8"))
    for field, value in saved.items():
        setattr(run.progress, field, value)
    return load_file(folder / "best.safetensors")


def snapshot(model: Recommender) -> State:
    """A copy of the model's state on the CPU."""
    return {key: value.detach().to("cpu", copy=True).contiguous() for key, value in model.state_dict().items()}
