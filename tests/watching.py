"""Watchers of pipelines for tests."""

from __future__ import annotations

from rayrec.artifacts import Json
from rayrec.stages import Metrics, StageOutcome


class Silent:
    """Remembers, and says nothing."""

    def __init__(self) -> None:
        self.epochs: list[Metrics] = []
        self.stages: list[str] = []

    def stage(self, name: str) -> None:
        self.stages.append(name)

    def prepared(self, counts: Json, view: Json) -> None:
        pass

    def epoch(self, entry: Metrics, epochs: int) -> None:
        self.epochs.append(entry)

    def done(self, name: str, outcome: StageOutcome) -> None:
        pass
