"""JSON values as Arrow columns."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa

from rayrec.features.columns import EXACT_FLOATS, json_text


def rows_as_columns(values: list[object]) -> list[tuple[np.ndarray, pa.Array]]:
    """JSON values as Arrow columns: those that are lists of numbers, other lists, and all else as text.

    Returns:
        Pairs of ``[n]`` int64 positions in ``values`` and the ``[n]`` values there; at least that of texts.
    """
    kinds = np.array([_shape(value) for value in values], np.int64)
    texts, numbers, lists = (np.flatnonzero(kinds == kind) for kind in range(3))
    parts = [[json_text(part) for part in values[row]] for row in lists]  # type: ignore[attr-defined]
    found = [
        (texts, pa.array([json_text(values[row]) for row in texts], pa.large_string())),
        (numbers, pa.array([values[row] for row in numbers], pa.list_(pa.float64()))),
        (lists, pa.array(parts, pa.list_(pa.large_string()))),
    ]
    return found[:1] + [(rows, column) for rows, column in found[1:] if len(rows)]


def _shape(value: object) -> int:
    """0 for no list, 1 for a list of numbers that floats hold, 2 for any other list."""
    if not isinstance(value, list | tuple):
        return 0
    floats = all(type(part) in {int, float} and (math.isnan(part) or abs(part) < EXACT_FLOATS) for part in value)
    return 1 if floats else 2
