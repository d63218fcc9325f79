"""A profile of some steps."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

from tests.running import begin, feed, nothing, rising, settings

from rayrec.training.loop import train
from rayrec.training.profiling import STEPS, WARM_UP, profiled
from rayrec.training.progress import PHASES


def test_the_steps_after_the_first_are_recorded_in_chromes_format(tmp_path: Path) -> None:
    run, target = begin(settings(epochs=3)), tmp_path / "profile.json.gz"
    with profiled(run, target) as recorded:
        train(recorded, feed(run.settings), rising, nothing)
    events = json.loads(gzip.decompress(target.read_bytes()))["traceEvents"]
    names = [event.get("name", "") for event in events]
    steps = {name for name in names if name.startswith("ProfilerStep#")}
    assert steps == {f"ProfilerStep#{number}" for number in range(WARM_UP, WARM_UP + STEPS)}
    assert any("attention" in name for name in names)
    assert set(PHASES) <= set(names), "what the time of an epoch is told by"
    assert run.progress.epoch == 3, "what is recorded is the run itself"


def test_what_only_warmed_up_leaves_no_trace(tmp_path: Path) -> None:
    run, target = begin(settings(epochs=1, batch_size=100)), tmp_path / "profile.json.gz"
    with profiled(run, target) as recorded:
        train(recorded, feed(run.settings), rising, nothing)
    assert not target.exists()
