"""Which events of a view are held out, and what the model may know when it is asked for them."""

from __future__ import annotations

import numpy as np

from rayrec.data.splits import TEST, TRAIN, VALIDATION
from rayrec.data.views import Sequences
from rayrec.evaluation.full_ranking import HeldOut
from rayrec.features.histories import Histories

PAST = {"validation": (TRAIN,), "test": (TRAIN, VALIDATION)}
FUTURE = {"validation": VALIDATION, "test": TEST}


def held_out(sequences: Sequences, fold: str) -> HeldOut:
    """The users with events in a fold (``validation`` or ``test``): their earlier folds, and those events."""
    past, future = sequences.fold(*PAST[fold]), sequences.fold(FUTURE[fold])
    users = np.flatnonzero(future.lengths).tolist()
    return HeldOut(Histories.of(past[u] for u in users), Histories.of(future[u] for u in users))
