"""The steps of an epoch: forward, backward, exchange, update; and what they add up to."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from itertools import islice, product
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import record_function

from rayrec.errors import ModelError
from rayrec.models.optimization import Optimization
from rayrec.training.ahead import ahead
from rayrec.training.feed import Batch, Feed
from rayrec.training.laps import Laps
from rayrec.training.optimizer import learning_rate
from rayrec.training.progress import Position
from rayrec.training.run import Run


class DivergedError(ModelError):
    """Training no longer computes with numbers.

    Attributes:
        position: Before which step.
        batch: The whole of that step, of all workers together; None where it is a weight that is no number.
    """

    def __init__(self, message: str, position: Position, batch: Batch | None = None) -> None:
        super().__init__(message)
        self.position = position
        self.batch = batch

    def __reduce__(self) -> tuple[type[DivergedError], tuple[str, Position, Batch | None]]:
        return DivergedError, (str(self), self.position, self.batch)


class Steps:
    """The steps of the epoch in which a run stands.

    Args:
        run: The run. Its progress goes on with each step.
        wrapped: Its learner, as the workers share it.
        feed: The training batches.
    """

    def __init__(self, run: Run, wrapped: nn.Module, feed: Feed) -> None:
        self._run = run
        self._wrapped = wrapped
        self._shared = wrapped if isinstance(wrapped, DistributedDataParallel) else None
        self._feed = feed
        self._plan = feed.plan(run.progress.epoch)
        self._batches = self._ahead()
        self._total = feed.steps * run.settings.epochs
        self._weights = list(run.model.parameters())
        self._laps = Laps(run.world.device)
        sums, device = run.progress.sums, run.world.device
        self._began = time.perf_counter() - sums.get("seconds", 0.0)
        # Summed on the device: reading each step's loss would make the GPU wait for Python.
        mine = sums.get("loss", 0.0) if run.world.rank == 0 else 0.0
        self._loss = torch.tensor(mine, dtype=torch.float64, device=device)
        self._norm = torch.tensor(sums.get("gradient_norm", 0.0), dtype=torch.float64, device=device)
        self._first_bad = torch.tensor(-1, device=device)
        # Where nothing has to wait for it, or it decides what happens next.
        self._looks_at_once = device.type == "cpu" or run.settings.nonfinite == "skip" or run.scaler.is_enabled()

    def take(self) -> None:
        """The next step.

        Raises:
            DivergedError: A gradient is no number. On a GPU `sum_up` says so, after steps that were in vain.
        """
        run, progress = self._run, self._run.progress
        step = progress.step
        count = progress.epoch * self._feed.steps + step
        rate = learning_rate(count, self._total, run.settings)
        with record_function("data"):
            batches = list(islice(self._batches, run.settings.accumulate))
        scale = run.scaler.get_scale()
        loss, norm = self._gradients(step, batches)
        while run.scaler.is_enabled() and not norm.isfinite() and run.scaler.get_scale() > 1:
            # fp16 has no numbers for gradients scaled so much: the step is worked out again with half of it.
            run.scaler.update()
            run.optimizer.zero_grad(set_to_none=True)
            loss, norm = self._gradients(step, batches)
        usable = self._usable(step, norm)
        # A gradient that is no number even without a scale says nothing of the scale.
        run.scaler.update(None if usable else scale)
        if usable:
            for group in run.optimizer.param_groups:
                group["lr"] = rate * group["lr_scale"]
            with record_function("optimizer"):
                run.optimizer.step()
                if run.average:
                    run.average.update(count)
            self._loss += loss
            self._norm += norm
            progress.sums["tokens"] = progress.sums.get("tokens", 0) + batches[0].global_targets
        run.optimizer.zero_grad(set_to_none=True)
        progress.step, progress.sums["learning_rate"] = step + 1, rate
        self._laps.end("optimizer")
        run.after_step()

    def sum_up(self) -> None:
        """Bring the progress's sums up to date, over all workers.

        Raises:
            DivergedError: A loss, a gradient or a weight is no number.
        """
        sums, world = self._run.progress.sums, self._run.world
        if int(self._first_bad) >= 0:
            raise self._diverged("the gradient is no number", int(self._first_bad))
        (total,) = world.sum([float(self._loss)])
        if not math.isfinite(total):
            raise self._diverged(f"the loss became {total}")
        # What the last step made of the weights no loss has seen.
        if not all(bool(weights.isfinite().all()) for weights in self._weights):
            raise self._diverged("a weight became infinite or no number")
        sums |= {"loss": total, "gradient_norm": float(self._norm), "seconds": time.perf_counter() - self._began}
        for name, seconds in self._laps.read().items():
            sums[name] = sums.get(name, 0.0) + seconds

    def finish(self) -> None:
        """`sum_up` after the last step.

        Raises:
            DivergedError: As there, or no step could be taken.
        """
        if not self._run.progress.sums.get("tokens"):
            raise self._diverged("no step has a gradient that is a number")
        self.sum_up()

    def waited(self, seconds: float) -> None:
        """Since the last step it was waited for something else, so long."""
        self._began += seconds
        self._laps.skip()

    def _gradients(self, step: int, batches: Sequence[Batch]) -> tuple[Tensor, Tensor]:
        """Clipped gradients of a step's mean loss, of all workers. Returns this worker's summed loss, and their norm.

        Accumulated in n pieces they are those of n times as many workers, who see, and draw, the same.
        """
        run, world = self._run, self._run.world
        loss = torch.zeros((), dtype=torch.float64, device=world.device)
        for piece, batch in enumerate(batches):
            _seed(run.settings.seed, run.progress.epoch, step, world.rank + piece * world.size)
            with record_function("data"):
                parts = [part.to(world.device) for part in batch.parts]
            self._laps.end("data")
            with self._exchange(last=piece == len(batches) - 1):
                with record_function("forward"), autocast(world.device, run.settings):
                    found: Tensor = self._wrapped(parts)
                self._laps.end("forward")
                # DistributedDataParallel averages gradients; times the number of workers, that is their sum. A loss
                # that is no number makes gradients of none, by which all workers know of it.
                scale = world.size / max(1, batch.global_targets)
                with record_function("backward"):
                    run.scaler.scale(found * torch.where(found.detach().isfinite(), scale, torch.nan)).backward()
            self._laps.end("backward")
            loss += found.detach()
        for table in run.learner.sparse_tables:
            if table.grad is not None:
                table.grad = world.sum_rows(table.grad) / world.size
        self._laps.end("backward")
        run.scaler.unscale_(cast("torch.optim.Optimizer", run.optimizer))
        return loss, clip_gradients(self._weights, run.settings.clip)

    def _ahead(self) -> Iterator[Batch]:
        """This worker's pieces of the steps that are left, each made while the one before is worked out."""
        world, pieces, feed, plan = self._run.world, self._run.settings.accumulate, self._feed, self._plan
        on_gpu = world.device.type == "cuda"

        def make(place: tuple[int, int]) -> Batch:
            step, piece = place
            batch = feed.batch(plan, step, world.rank + piece * world.size, world.size * pieces)
            return replace(batch, parts=tuple(part.pinned() for part in batch.parts)) if on_gpu else batch

        places = product(range(self._run.progress.step, feed.steps), range(pieces))
        # Pinned in a thread that was told of no device, memory would be of the first GPU.
        return ahead(make, places, partial(torch.cuda.set_device, world.device) if on_gpu else None)

    def _exchange(self, last: bool) -> Any:
        """Workers exchange gradients with the last piece."""
        return nullcontext() if last or self._shared is None else self._shared.no_sync()

    def _usable(self, step: int, norm: Tensor) -> bool:
        """Whether a step can be taken. All workers have the same gradients, and decide alike."""
        if not self._looks_at_once:
            unseen = (self._first_bad < 0) & ~norm.isfinite()
            self._first_bad = torch.where(unseen, step, self._first_bad)
            return True
        if norm.isfinite():
            return True
        if self._run.settings.nonfinite == "stop":
            raise self._diverged(f"the norm of the gradient became {float(norm)}", step)
        self._run.progress.sums["skipped"] = self._run.progress.sums.get("skipped", 0) + 1
        return False

    def _diverged(self, what: str, step: int | None = None) -> DivergedError:
        epoch, settings = self._run.progress.epoch, self._run.settings
        where = f"in epoch {epoch + 1}" + ("" if step is None else f", step {step + 1} of {self._feed.steps}")
        return DivergedError(
            f"training: {what} {where}. "
            f"Lower training.learning_rate (now {settings.learning_rate:g}) or training.clip and run again.",
            Position(epoch, self._run.progress.step if step is None else step),
            None if step is None else self._feed.batch(self._plan, step),
        )


def clip_gradients(weights: list[nn.Parameter], largest: float) -> Tensor:
    """Scale gradients, dense and sparse, so that together they are no longer than ``largest``.

    Returns:
        The norm that they had, a scalar.
    """
    given = [weight for weight in weights if weight.grad is not None]
    sparse = [weight.grad.values() for weight in given if weight.grad is not None and weight.grad.is_sparse]
    dense = [weight for weight in given if weight.grad is not None and not weight.grad.is_sparse]
    norm = nn.utils.get_total_norm([*(weight.grad for weight in dense if weight.grad is not None), *sparse])
    nn.utils.clip_grads_with_norm_(dense, largest, norm)
    for values in sparse:
        values.mul_((largest / (norm + 1e-6)).clamp(max=1.0))
    return norm


def autocast(device: torch.device, settings: Optimization) -> Any:
    """What the settings say; where they leave it open, bf16 on a GPU and fp32 on a CPU."""
    chosen = settings.precision if settings.precision != "auto" else "bf16" if device.type == "cuda" else "fp32"
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}
    return torch.autocast(device.type, half[chosen]) if chosen in half else nullcontext()


def _seed(*parts: int) -> None:
    """Seed torch's generators from several numbers."""
    torch.manual_seed(int(np.random.SeedSequence(list(parts)).generate_state(1, np.uint64)[0] >> 1))
