"""Checkpoints: weights and optimizer state as safetensors, everything else as JSON. No pickle.

They are artifacts like all others, so that one which was cut off while it was written does not exist, wherever the
storage is and whatever died. (Ray Train's own list of checkpoints is rewritten in place: a driver killed at that moment
leaves half of it, which the next one cannot read.)
"""

from __future__ import annotations

import copy
import dataclasses
import json
import tempfile
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from rayrec.artifacts import Json, Storage, open_folder, publish_folder
from rayrec.errors import StorageError
from rayrec.models.base import Recommender
from rayrec.training.feed import Batch
from rayrec.training.progress import Metrics, Position
from rayrec.training.run import Run

State = dict[str, Tensor]

MANIFEST = "checkpoint.json"
KEEP = 2


@dataclass(frozen=True)
class Checkpoint:
    """Where a run stands between two steps, copied: the run may go on while it is written.

    Attributes:
        states: By file: the weights of the ``last`` step, their ``average`` where one is kept, those of the ``best``
            epoch, and what the ``optimizer`` remembers.
        progress: `Progress`.
        scaler: The scale of the loss, and since when; empty where it is not scaled.
    """

    states: dict[str, State]
    progress: Json
    scaler: Json

    @classmethod
    def of(cls, run: Run, best: State) -> Checkpoint:
        """Where ``run`` stands, and the state of the model at its best epoch."""
        average = {"average": snapshot(run.average.model)} if run.average else {}
        states = {"last": snapshot(run.model), **average, "best": best, "optimizer": run.optimizer.state_dict()}
        return cls(states, copy.deepcopy(dataclasses.asdict(run.progress)), run.scaler.state_dict())

    @property
    def position(self) -> Position:
        """Where it stands."""
        return Position(self.progress["epoch"], self.progress["step"])

    def write(self, folder: Path) -> None:
        """Write it into a folder, which is made if it is not there."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, state in self.states.items():
            save_file(state, folder / f"{name}.safetensors")
        (folder / "progress.json").write_text(json.dumps(self.progress), encoding="utf-8")
        (folder / "scaler.json").write_text(json.dumps(self.scaler), encoding="utf-8")


def load_checkpoint(run: Run, folder: Path) -> State:
    """Put a fresh run where a written `Checkpoint` stands. Returns the best state."""
    run.model.load_state_dict(load_file(folder / "last.safetensors"))
    if run.average:
        run.average.model.load_state_dict(load_file(folder / "average.safetensors"))
    run.optimizer.load_state_dict(load_file(folder / "optimizer.safetensors"))
    for field, value in json.loads((folder / "progress.json").read_text(encoding="utf-8")).items():
        setattr(run.progress, field, value)
    run.scaler.load_state_dict(json.loads((folder / "scaler.json").read_text(encoding="utf-8")))
    return load_file(folder / "best.safetensors")


def snapshot(model: Recommender) -> State:
    """A copy of the model's state on the CPU."""
    return {key: value.detach().to("cpu", copy=True).contiguous() for key, value in model.state_dict().items()}


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of a training run in the storage: ``runs/NAME/checkpoints/EPOCH/DIGEST/``, or ``EPOCH-STEP``.

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

    def save(self, checkpoint: Checkpoint) -> None:
        """Publish a checkpoint, then drop what is older than the newest two."""
        position = checkpoint.position
        manifest = {"schema": 1, "epoch": position.epoch, "step": position.step}
        with _scratch() as folder:
            checkpoint.write(folder)
            publish_folder(self.storage, self._of(position), folder, manifest, MANIFEST)
        for old in self._positions()[:-KEEP]:
            self.storage.remove(self._of(old))

    def newest(self) -> Position:
        """Where the newest whole checkpoint stands; the beginning when there is none."""
        return next((position for position in reversed(self._positions()) if self._whole(position)), Position())

    def history(self) -> list[Metrics]:
        """The entries of the epochs that were done before the newest whole checkpoint."""
        position = self.newest()
        if position == Position():
            return []
        entries: list[Metrics] = self.storage.read_json(f"{self._whole(position)[0]}/progress.json")["history"]
        return entries

    def load(self, run: Run, position: Position) -> State:
        """Put a fresh run where the checkpoint of a position stands. Returns the best state.

        Raises:
            ModelError: The checkpoint is damaged.
        """
        with tempfile.TemporaryDirectory(prefix="rayrec-checkpoint-") as temporary:
            folder, _ = open_folder(self.storage, self._whole(position)[0], MANIFEST, Path(temporary))
            return load_checkpoint(run, folder)

    @property
    def profile(self) -> str:
        """Where the profile of some steps is, if one was asked for: see `rayrec.training.profiling`."""
        return f"{self._run}/profile.json.gz"

    def keep_batch(self, batch: Batch, position: Position) -> str:
        """Publish a batch that is to be looked at: the tensors of each of its parts, see `Part`. Returns where it is.

        Its epoch and step are counted from 1, as in messages.
        """
        parts = enumerate(batch.parts)
        tensors = {f"{number}.{name}": value for number, part in parts for name, value in part.tensors().items()}
        place = {"epoch": position.epoch + 1, "step": position.step + 1}
        manifest = {"schema": 1, **place, "targets": batch.global_targets}
        with _scratch() as folder:
            save_file(tensors, folder / "batch.safetensors")
            return publish_folder(self.storage, f"{self._run}/diverged", folder, manifest, "batch.json")

    def clear(self) -> None:
        """Forget the run."""
        if self.storage.exists(self._run):
            self.storage.remove(self._run)

    def _of(self, position: Position) -> str:
        step = f"-{position.step:09d}" if position.step else ""
        return f"{self._folder}/{position.epoch:06d}{step}"

    def _positions(self) -> list[Position]:
        """In order."""
        parts = [name.partition("-") for name in self.storage.list(self._folder)]
        return sorted(Position(int(epoch), int(step or 0)) for epoch, _, step in parts)

    def _whole(self, position: Position) -> list[str]:
        """Paths of a position's published checkpoints. Two drivers at once write two, which say the same."""
        paths = [f"{self._of(position)}/{name}" for name in self.storage.list(self._of(position))]
        return [path for path in paths if self.storage.exists(f"{path}/{MANIFEST}")]


@contextmanager
def _scratch() -> Iterator[Path]:
    """A folder to write into before it is published.

    Raises:
        StorageError: There is no room for it.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="rayrec-checkpoint-") as folder:
            yield Path(folder)
    except (OSError, SafetensorError) as error:
        where = tempfile.gettempdir()
        raise StorageError(f"cannot write to {where}: {error}. Free some space there, or set TMPDIR.") from error


class Writer:
    """Publishes checkpoints while training goes on, one at a time. Leaving the block waits for the latest.

    Args:
        checkpoints: Where they go.

    Example::

        >>> with Writer(checkpoints) as writer:
        ...     writer.save(Checkpoint.of(run, best))
    """

    def __init__(self, checkpoints: Checkpoints) -> None:
        self._checkpoints = checkpoints
        self._thread = ThreadPoolExecutor(1, "rayrec-checkpoint")
        self._pending: Future[None] | None = None

    def save(self, checkpoint: Checkpoint) -> None:
        """Begin to publish a checkpoint, as soon as the one before is.

        Raises:
            StorageError: The one before could not be written.
        """
        self.wait()
        self._pending = self._thread.submit(self._checkpoints.save, checkpoint)

    def wait(self) -> None:
        """Wait for the latest.

        Raises:
            StorageError: It could not be written.
        """
        if self._pending:
            pending, self._pending = self._pending, None
            pending.result()

    def close(self) -> None:
        """Wait for the latest; nothing can be saved afterwards.

        Raises:
            StorageError: It could not be written.
        """
        self._thread.shutdown()
        self.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # What ended the training matters more than that its last checkpoint could not be written.
        if error is None:
            self.close()
        else:
            self._thread.shutdown()
