"""Whether an evaluation knows what it should not.

Ji, Sun, Zhang and Li, "A Critical Study on Data Leakage in Recommender System Offline Evaluation", TOIS 2023
(https://arxiv.org/abs/2010.11060): models that learn from what others did after the event they are asked for are
measured as better than they will be.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from rayrec.artifacts import Json
from rayrec.data.splits import TEST, TRAIN, VALIDATION
from rayrec.data.views import Sequences
from rayrec.evaluation.full_ranking import HeldOut


def repeated_events(held_out: HeldOut) -> int:
    """Held-out events on items that the same user had before.

    They are removed from full ranking where seen items are; where they are not, a model that repeats what it was shown
    finds them.
    """
    highest = 1 + max(held_out.past.items.max(initial=0), held_out.future.items.max(initial=0))
    past = held_out.past.owners * highest + held_out.past.items
    future = held_out.future.owners * highest + held_out.future.items
    return int(np.isin(future, past).sum())


def trained_on(view: Sequences, trained: Sequences, folds: Iterable[int] = (TRAIN,)) -> int:
    """Test events of a view that are in some folds of another view with the same vocabularies.

    Events are told apart by user and item, so what the first view repeats itself is not counted.
    """
    test, own, known = _pairs(view, TEST), _pairs(view, TRAIN, VALIDATION), _pairs(trained, *folds)
    return int((np.isin(test, known) & ~np.isin(test, own)).sum())


def after_test(sequences: Sequences, timestamps: np.ndarray) -> float:
    """The share of test events with training events of anybody after them: what is popular then is known too early.

    Args:
        sequences: The view.
        timestamps: ``[N]`` int64 of its events, in their order.
    """
    test = timestamps[sequences.folds == TEST]
    last = timestamps[sequences.folds == TRAIN].max(initial=np.iinfo(np.int64).min)
    return float((test < last).mean()) if len(test) else 0.0


def leakage_warnings(tested: Json, exclude_seen: bool) -> list[str]:
    """What is to be said of the results of a test fold, as `rayrec.evaluation.evaluate` gives them."""
    found = []
    if tested["repeated"] and not exclude_seen:
        found.append(
            f"{tested['repeated']:,} test events are on items that the user had before, and evaluation.exclude_seen is "
            "false: a model that repeats the past finds them."
        )
    if "after_test" not in tested:
        found.append(
            "the log has no times, so whether models learnt from what came after the test events is not known."
        )
    share = tested.get("after_test", 0.0)
    if share:
        found.append(
            f"{share:.0%} of the test events have training events after them, so models may know what became popular "
            "later. data.split.kind = time avoids it."
        )
    return found


def _pairs(sequences: Sequences, *folds: int) -> np.ndarray:
    """Users and items of some folds as one number each, by their indexes in the vocabularies."""
    events = sequences.fold(*folds)
    items = np.concatenate([[0], sequences.item_indexes])[events.items]
    return sequences.users[events.owners] * (1 << 32) + items
