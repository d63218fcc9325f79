"""A training in this process, an epoch at a time: what a tuner may watch, stop, or send on another way."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from rayrec.errors import DataError, ModelError
from rayrec.evaluation.full_ranking import HeldOut
from rayrec.models.base import Recommender
from rayrec.models.interactions import Interactions
from rayrec.models.registry import model_class
from rayrec.recipe import Recipe
from rayrec.training.checkpoint import Checkpoint, Checkpoints, Writer, load_checkpoint, snapshot
from rayrec.training.feed import feed_for
from rayrec.training.job import TrainJob, interactions, load
from rayrec.training.loop import train
from rayrec.training.progress import Metrics, Position
from rayrec.training.run import Run, start
from rayrec.training.steps import DivergedError
from rayrec.training.validation import validated_users, validator
from rayrec.training.world import World


@dataclass(frozen=True)
class Observed:
    """What a training reads of a view. Its arrays may be read-only and shared by all processes of a machine.

    Attributes:
        num_items: Items; their rows run from 1.
        interactions: What is learnt from.
        users: Who validates.
    """

    num_items: int
    interactions: Interactions
    users: HeldOut


def observe(job: TrainJob) -> Observed:
    """Load what the trainings of a job read, all of it into memory.

    Raises:
        DataError: There are no validation events.
    """
    sequences, dataset = load(job)
    users = validated_users(job, dataset, sequences)
    if users is None:
        raise DataError(f"training: view {job.view} has no validation events to judge a model by.")
    return Observed(len(sequences.item_keys), interactions(job, sequences), users)


class LocalTraining:
    """A training of one process.

    Args:
        recipe: What is trained; on the GPU that this process was given, if it was given one.
        observed: What it reads.
        threads: Threads of this process.
        checkpoints: Where it is kept after each epoch, and gone on with when it was interrupted; None keeps nothing.
    """

    def __init__(self, recipe: Recipe, observed: Observed, threads: int, checkpoints: Checkpoints | None) -> None:
        self._settings = recipe.training
        world = World(device=torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        torch.set_num_threads(threads)
        torch.manual_seed(recipe.training.seed)
        model = model_class(recipe.model.name)(recipe.model.config, observed.num_items)
        self._run = start(model, observed.interactions, recipe.training, world)
        self._best = snapshot(model)
        if checkpoints and (position := checkpoints.newest()) != Position():
            self._best = checkpoints.load(self._run, position)
        self._feed = feed_for(model, observed.interactions, recipe.training, world.part_overhead)
        self._validate = validator(recipe, observed.users, world)
        self._writer = Writer(checkpoints) if checkpoints else None

    @property
    def history(self) -> list[Metrics]:
        """The entries of the epochs so far."""
        return self._run.progress.history

    @property
    def over(self) -> bool:
        """Whether all epochs are done, or patience has ended."""
        progress, settings = self._run.progress, self._settings
        return progress.epoch >= settings.epochs or progress.epoch - progress.best_epoch >= settings.patience

    def epoch(self) -> Metrics:
        """Train one more epoch. Returns its entry of the history.

        Raises:
            ModelError: The loss is no number any more.
        """
        try:
            train(self._run, self._feed, self._validate, self._after_epoch, self._run.progress.epoch + 1)
        except DivergedError as error:
            raise ModelError(str(error)) from None
        return self.history[-1]

    def write(self, folder: Path) -> None:
        """Write where it stands."""
        Checkpoint.of(self._run, self._best).write(folder)

    def read(self, folder: Path) -> None:
        """Go on from where another training of the same model stood, at this one's learning rate."""
        self._best = load_checkpoint(self._run, folder)

    def close(self) -> None:
        """Wait until the last checkpoint is written."""
        if self._writer:
            self._writer.close()

    def best(self) -> Recommender:
        """The model of the best epoch, on its device."""
        model = self._run.model
        model.load_state_dict(self._best)
        return model.eval()

    def _after_epoch(self, run: Run) -> None:
        if run.progress.best_epoch == run.progress.epoch:
            self._best = snapshot(run.judged)
        if self._writer:
            self._writer.save(Checkpoint.of(run, self._best))
