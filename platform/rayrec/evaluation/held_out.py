"""Which events of a view are held out, and what the model may know when it is asked for them."""

from __future__ import annotations

from rayrec.data.splits import TEST, TRAIN, VALIDATION
from rayrec.data.views import Sequences
from rayrec.evaluation.full_ranking import HeldOut

PAST = {"validation": (TRAIN,), "test": (TRAIN, VALIDATION)}
FUTURE = {"validation": VALIDATION, "test": TEST}


def held_out(sequences: Sequences, fold: str) -> HeldOut:
    """The users with events in a fold (``validation`` or ``test``): their earlier folds, and those events."""
    past, future = sequences.fold(*PAST[fold]), sequences.fold(FUTURE[fold])
    return HeldOut.of(past, future)
