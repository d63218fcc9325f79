"""Which events of a view are held out, and what the model may know when it is asked for them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import numpy as np

from rayrec.data.dataset import Dataset
from rayrec.data.splits import TEST, TRAIN, VALIDATION
from rayrec.data.user_features import context_features, user_features
from rayrec.data.views import Sequences
from rayrec.evaluation.full_ranking import HeldOut

PAST = {"validation": (TRAIN,), "test": (TRAIN, VALIDATION)}
FUTURE = {"validation": VALIDATION, "test": TEST}


def held_out(sequences: Sequences, fold: str) -> HeldOut:
    """The users with events in a fold (``validation`` or ``test``): their earlier folds, and those events."""
    past, future = sequences.fold(*PAST[fold]), sequences.fold(FUTURE[fold])
    return HeldOut.of(past, future)


def with_features(
    users: HeldOut, names: Collection[str], dataset: Dataset, view: str, sequences: Sequences, fold: str
) -> HeldOut:
    """The users with what else a model reads of them.

    Args:
        users: Of `held_out`.
        names: What it reads: features of the ``user``, of the ``context``; those nobody declared are left out.
        dataset: The Dataset.
        view: Digest of the view.
        sequences: The view.
        fold: As for `held_out`.

    Raises:
        DataError: A part of the view is missing or was changed.
    """
    features = {}
    if "user" in names and (found := user_features(dataset, view)) is not None:
        features["user"] = found.take(users.users)
    if "context" in names and (found := context_features(dataset, view, _first_events(sequences, fold))) is not None:
        features["context"] = found
    return replace(users, features=features)


def _first_events(sequences: Sequences, fold: str) -> np.ndarray:
    """Which events of a view are the first of a user in a fold: ``[N]`` bool."""
    places = np.flatnonzero(sequences.folds == FUTURE[fold])
    first = np.unique(sequences.histories.owners[places], return_index=True)[1]
    chosen = np.zeros(len(sequences.folds), bool)
    chosen[places[first]] = True
    return chosen
