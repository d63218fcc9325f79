"""The training loop: plain torch, one process or many (whoever starts it sets up torch.distributed).

The loss of a step is the sum over all workers' targets divided by their global number, so the number of workers does
not change what is computed. Randomness is seeded afresh at each step from (seed, epoch, step, worker): a run taken up
at any step goes on exactly as if it had not stopped.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from rayrec.errors import DataError, ModelError
from rayrec.models.base import Recommender
from rayrec.training.feed import Feed
from rayrec.training.progress import BESIDE, PHASES, Metrics, Progress
from rayrec.training.run import Run
from rayrec.training.steps import Steps


def _never() -> bool:
    """No notice."""
    return False


def train(
    run: Run,
    feed: Feed,
    validate: Callable[[Recommender], Metrics],
    after_epoch: Callable[[Run], None],
    epochs: int | None = None,
    amid_epoch: Callable[[Run], None] | None = None,
    notice: Callable[[], bool] = _never,
) -> Progress:
    """Train until the epochs are done or the validation metric no longer rises.

    Args:
        run: A fresh run, or one restored from a checkpoint.
        feed: The training batches.
        validate: Metrics of a model, `Run.judged`, on the validation events, equal on every worker.
        after_epoch: Called on every worker after each epoch; ``best_epoch == epoch`` in its progress marks a new best.
        epochs: Stop after so many, on the schedule of all that the settings say: the path of a longer training, up to
            there. By default all.
        amid_epoch: Called on every worker after each ``checkpoint_steps`` steps of an epoch but its last, and after
            those with a ``notice``.
        notice: Called on every worker after each step but an epoch's last, with the same answer: whether this is no
            time to wait with a checkpoint.

    Raises:
        DataError: There is nothing to train on.
        DivergedError: The loss is no longer a number.
        ModelError: The validation metric is none.
    """
    if not feed.steps:
        raise DataError(
            "training: no user has two training events or more, so there is no next item to learn. "
            "Leave-one-out sets two events of each user aside: it takes users with four or more."
        )
    settings, progress = run.settings, run.progress
    last = settings.epochs if epochs is None else epochs
    wrapped = shared(run)
    while progress.epoch < last and progress.epoch - progress.best_epoch < settings.patience:
        _epoch(run, wrapped, feed, amid_epoch, notice)
        began = time.perf_counter()
        metrics = validate(run.judged.eval())
        if math.isnan(metrics.get(settings.metric, 0.0)):
            raise ModelError(
                f"training: the scores after epoch {progress.epoch + 1} are no numbers, though all weights are. "
                f"Lower training.learning_rate (now {settings.learning_rate:g}) and run again."
            )
        progress.sums["validation"] = time.perf_counter() - began
        progress.epoch += 1
        # Without anything to validate on, the latest is the best.
        if settings.metric not in metrics:
            progress.best_epoch = progress.epoch
        elif metrics[settings.metric] > progress.best:
            progress.best, progress.best_epoch = metrics[settings.metric], progress.epoch
        progress.history.append(_entry(run, feed.steps) | metrics)
        progress.step, progress.sums = 0, {}
        began = time.perf_counter()
        after_epoch(run)
        progress.sums["checkpoint"] = time.perf_counter() - began
    return progress


def shared(run: Run) -> nn.Module:
    """The learner, as the workers share it."""
    if run.world.size == 1:
        return run.learner
    sparse = {id(table) for table in run.learner.sparse_tables}
    ignored = [name for name, weight in run.learner.named_parameters() if id(weight) in sparse]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(run.learner, ignored)
    # Buffers are what every worker was shown alike: they need not travel with each step.
    return DistributedDataParallel(run.learner, forward_sync_buffers=False)


def _epoch(
    run: Run, wrapped: nn.Module, feed: Feed, amid_epoch: Callable[[Run], None] | None, notice: Callable[[], bool]
) -> None:
    """What is left of one pass over the users."""
    run.model.train()
    steps, every, progress = Steps(run, wrapped, feed), run.settings.checkpoint_steps, run.progress
    while progress.step < feed.steps:
        steps.take()
        if amid_epoch and progress.step < feed.steps and (notice() or (every and progress.step % every == 0)):
            steps.sum_up()
            began = time.perf_counter()
            amid_epoch(run)
            waited = time.perf_counter() - began
            progress.sums["checkpoint"] = progress.sums.get("checkpoint", 0.0) + waited
            steps.waited(waited)
    steps.finish()


def _entry(run: Run, steps: int) -> Metrics:
    """What the history says of an epoch whose last step was taken."""
    sums, epoch = run.progress.sums, run.progress.epoch
    taken = max(1, steps - sums.get("skipped", 0))
    counted = {"skipped": sums.get("skipped", 0)} if run.settings.nonfinite == "skip" else {}
    return {
        "epoch": epoch,
        "loss": sums["loss"] / max(1, sums["tokens"]),
        "learning_rate": sums["learning_rate"],
        "gradient_norm": sums["gradient_norm"] / taken,
        "seconds": sums["seconds"],
        "tokens_per_second": sums["tokens"] / sums["seconds"],
        "peak_memory_mb": run.world.memory / 1e6,
        **{phase: sums.get(phase, 0.0) for phase in (*PHASES, *BESIDE)},
        **counted,
    }
