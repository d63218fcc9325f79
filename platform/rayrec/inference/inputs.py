"""What models are asked with: histories, and what else is known of the moment, as arrays of one batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rayrec.features.histories import pad

Inputs = Mapping[str, np.ndarray]
"""By name, as `Recommender.reads` has them; what a model does not read may be there too.

``history``: ``[B, L]`` int64 item rows, oldest first, padded with 0 at the beginning. ``times``: ``[B, L + 1]`` int64
seconds, of each event and of the moment that is asked for. ``user``: ``[B, F]`` float32 features of each user.
``context``: ``[B, C]`` float32 features of the moment that is asked for.
"""


@dataclass(frozen=True)
class Context:
    """What is known of a request besides its history.

    Attributes:
        times: ``[n + 1]`` int64 seconds, of each of the n events and of the moment that is asked for, from any origin;
            None where they are not known, as if everything happened at once.
        user: ``[F]`` float32 features of who asks, encoded as in training; None where they are not known: zeros.
        context: ``[C]`` float32 features of the moment that is asked for; likewise.
    """

    times: np.ndarray | None = None
    user: np.ndarray | None = None
    context: np.ndarray | None = None


def inputs(
    histories: Sequence[np.ndarray], contexts: Sequence[Context] | None, max_length: int, widths: Mapping[str, int]
) -> Inputs:
    """One batch of requests.

    Args:
        histories: Item rows of each request, oldest first; may be empty.
        contexts: Of each request; None where nothing is known.
        max_length: How many of the latest events the model reads.
        widths: How many features the model reads of the ``user``, of the ``context``.
    """
    history = pad(histories, max_length)
    times = np.zeros((len(history), history.shape[1] + 1), np.int64)
    for row, context in zip(times, contexts or [], strict=False):
        if context.times is not None:
            latest = context.times[-len(row) :]
            row[len(row) - len(latest) :] = latest
    features = {name: np.zeros((len(history), width), np.float32) for name, width in widths.items()}
    for name, rows in features.items():
        for row, context in zip(rows, contexts or [], strict=False):
            known = getattr(context, name)
            if known is not None:
                row[:] = known
    return {"history": history, "times": times, **features}
