"""Splits: the fold of each event, so that every way to hold events out is the same thing to training and evaluation."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from rayrec.errors import RecipeError
from rayrec.features.hashing import mix64
from rayrec.recipe_data import Split, duration, moment

TRAIN, VALIDATION, TEST = 0, 1, 2
FOLDS = {"train": TRAIN, "validation": VALIDATION, "test": TEST}


@dataclass(frozen=True)
class Events:
    """What splits look at: the events of some users, one user after the other, each in order.

    Attributes:
        lengths: ``[U]`` int64, events of each user.
        timestamps: ``[N]`` int64, epoch milliseconds.
        event_ids: ``[N]`` int64.
        given: ``[N]`` int8, the fold that the sources say.
    """

    lengths: np.ndarray
    timestamps: np.ndarray
    event_ids: np.ndarray
    given: np.ndarray


def folds(split: Split, events: Events, bounds: tuple[float, float] | None) -> np.ndarray:
    """The fold of each event: ``[N]`` int8.

    Args:
        split: What the recipe says.
        events: Which.
        bounds: Where validation and test begin, epoch milliseconds: only for a split by time.
    """
    match split.kind:
        case "leave-one-out":
            return leave_last(events.lengths, 1)
        case "leave-last-k":
            return leave_last(events.lengths, split.k)
        case "ratio":
            return by_ratio(events.lengths, float(split.validation_share), float(split.test))
        case "time":
            return by_time(events.timestamps, bounds or (math.inf, math.inf))
        case "k-fold":
            return k_fold(events.event_ids, split)
        case "given":
            return as_given(events, split)


def leave_last(lengths: np.ndarray, k: int) -> np.ndarray:
    """The last ``k`` events of a user are test, the ``k`` before validation: ``[N]`` int8.

    Users with no more than ``2 k`` events only train.
    """
    left = _left(lengths)
    enough = np.repeat(lengths > 2 * k, lengths)
    found = np.where(left < k, TEST, np.where(left < 2 * k, VALIDATION, TRAIN))
    return np.where(enough, found, TRAIN).astype(np.int8)


def by_ratio(lengths: np.ndarray, validation: float, test: float) -> np.ndarray:
    """The last share of each user's events is test, the share before validation, rounded: ``[N]`` int8.

    One event at least is left to train on.
    """
    most = np.maximum(lengths - 1, 0)
    tested = np.minimum(np.floor(lengths * test + 0.5), most).astype(np.int64)
    validated = np.minimum(np.floor(lengths * validation + 0.5), most - tested).astype(np.int64)
    left = _left(lengths)
    is_test = left < np.repeat(tested, lengths)
    is_validation = left < np.repeat(tested + validated, lengths)
    return np.where(is_test, TEST, np.where(is_validation, VALIDATION, TRAIN)).astype(np.int8)


def by_time(timestamps: np.ndarray, bounds: tuple[float, float]) -> np.ndarray:
    """The fold of each event by when it was: ``[N]`` int8; validation and test begin at ``bounds``."""
    return (np.searchsorted(np.asarray(bounds), timestamps, side="right")).astype(np.int8)


def k_fold(event_ids: np.ndarray, split: Split) -> np.ndarray:
    """Events by chance in ``k`` parts, of which one is test and the next validation: ``[N]`` int8."""
    part = (_chance(event_ids, split.seed) % np.uint64(split.k)).astype(np.int64)
    is_validation = part == (split.fold + 1) % split.k
    return np.where(part == split.fold, TEST, np.where(is_validation, VALIDATION, TRAIN)).astype(np.int8)


def as_given(events: Events, split: Split) -> np.ndarray:
    """As the sources say, with a share of the training events for validation where that is asked for: ``[N]`` int8."""
    drawn = _chance(events.event_ids, split.seed) < np.uint64(float(split.validation_share) * 2**63) * np.uint64(2)
    return np.where((events.given == TRAIN) & drawn, VALIDATION, events.given).astype(np.int8)


def check_split(split: Split, timed: bool) -> None:
    """Find what is wrong with a split before any work is done.

    Raises:
        RecipeError: A split by time of a log without times.
    """
    if split.kind == "time" and not timed:
        raise RecipeError(
            "data.split.kind = 'time': the log has no timestamp column, so there is no time to split by. "
            "Map `columns.timestamp`, or use leave-one-out."
        )


def fixed_bounds(split: Split, last: Callable[[], int]) -> tuple[float, float] | None:
    """Where validation and test begin, when that is said as moments, or as durations before the ``last`` event."""
    if split.kind != "time" or not isinstance(split.test, str):
        return None
    validation, test = str(split.validation_share), split.test
    lasts = [duration(validation), duration(test)]
    if None in lasts:
        return moment(validation), moment(test)
    begins = last() + 1 - (lasts[1] or 0)
    return float(begins - (lasts[0] or 0)), float(begins)


def _left(lengths: np.ndarray) -> np.ndarray:
    """How many events of the same user come after each event: ``[N]`` int64."""
    return np.repeat(np.cumsum(lengths), lengths) - 1 - np.arange(int(lengths.sum()))


def _chance(event_ids: np.ndarray, seed: int) -> np.ndarray:
    """A number for each event as if drawn by chance, the same every time: ``[N]`` uint64."""
    return mix64(mix64(event_ids.astype(np.uint64)) ^ mix64(np.array([seed], np.uint64)))
