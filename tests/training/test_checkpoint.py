"""Checkpoints are published while training goes on."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from safetensors import SafetensorError
from tests.running import begin, feed, nothing, rising, settings

from rayrec.artifacts import Storage
from rayrec.errors import StorageError
from rayrec.training import checkpoint
from rayrec.training.checkpoint import Checkpoint, Checkpoints, Writer, snapshot
from rayrec.training.loop import train
from rayrec.training.progress import Position
from rayrec.training.run import Run


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    return Checkpoints(Storage.open(tmp_path), "tiny")


def standing(run: Run) -> Checkpoint:
    return Checkpoint.of(run, snapshot(run.model))


def test_training_goes_on_while_a_checkpoint_is_written(
    checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, go_on, ends = begin(settings(epochs=2)), threading.Event(), list[int]()
    publish = Checkpoints.save

    def slowly(self: Checkpoints, checkpoint: Checkpoint) -> None:
        assert go_on.wait(20)
        publish(self, checkpoint)

    monkeypatch.setattr(Checkpoints, "save", slowly)

    def validate(_: object) -> dict[str, float]:
        ends.append(run.progress.epoch)
        # The second epoch's steps are done, and the first one's checkpoint is not.
        if len(ends) == 2:
            assert checkpoints.newest() == Position()
            go_on.set()
        return {}

    first: list[dict[str, object]] = []

    def after_epoch(run: Run) -> None:
        first.append(snapshot(run.model))
        writer.save(standing(run))

    with Writer(checkpoints) as writer:
        train(run, feed(run.settings), validate, after_epoch)
    assert checkpoints.newest() == Position(2)
    again = begin(settings(epochs=2))
    checkpoints.load(again, Position(1))
    # What was written late is where the run stood, not where it went meanwhile.
    assert all((weights == first[0][name]).all() for name, weights in again.model.state_dict().items())


def test_a_checkpoint_that_cannot_be_written_is_told_with_the_next(
    checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: Checkpoints, checkpoint: Checkpoint) -> None:
        raise StorageError(f"no space for {checkpoint.position}")

    run = begin(settings(epochs=3))
    monkeypatch.setattr(Checkpoints, "save", full)
    with pytest.raises(StorageError, match="no space for epoch 1"), Writer(checkpoints) as writer:
        train(run, feed(run.settings), rising, lambda run: writer.save(standing(run)))
    assert run.progress.epoch == 2
    with pytest.raises(StorageError, match="no space for epoch 2"), Writer(checkpoints) as writer:
        writer.save(standing(run))


def test_no_room_for_temporary_files_is_one_message(checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise SafetensorError("File too large")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(
        StorageError, match=r"cannot write to .*: File too large\. Free some space there, or set TMPDIR"
    ):
        checkpoints.save(standing(begin(settings())))


def test_what_ends_a_training_is_told_and_its_checkpoint_is_whole(checkpoints: Checkpoints) -> None:
    run = begin(settings(epochs=1))
    train(run, feed(run.settings), rising, nothing)
    with pytest.raises(KeyError, match="stop"), Writer(checkpoints) as writer:
        writer.save(standing(run))
        raise KeyError("stop")
    assert checkpoints.newest() == Position(1)
