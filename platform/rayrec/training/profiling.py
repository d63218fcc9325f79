"""A look into some steps: what each operation took, as a trace that https://ui.perfetto.dev opens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from rayrec.training.run import Run

WARM_UP, STEPS = 2, 8


@contextmanager
def profiled(run: Run, target: Path) -> Iterator[Run]:
    """A run whose first steps, after two to warm up, are recorded.

    Args:
        run: The run.
        target: Gets Chrome's trace format, compressed, once the steps are done or the block is left; its name ends with
            ``.json.gz``. It is not written where there were no more than those to warm up.

    Yields:
        The run to train instead.
    """
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
    with profile(
        activities=activities,
        schedule=schedule(wait=0, warmup=WARM_UP, active=STEPS, repeat=1),
        on_trace_ready=lambda recorded: recorded.export_chrome_trace(str(target)),
    ) as recording:
        yield replace(run, after_step=recording.step)
