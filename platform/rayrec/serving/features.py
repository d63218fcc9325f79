"""What requests say of who asks and of the moment, checked, and encoded by the transforms that training used."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from rayrec.data.dataset import Dataset
from rayrec.data.fitting import Fitted, load_fitted
from rayrec.data.item_features import feature_rows
from rayrec.data.views import open_view
from rayrec.errors import RayrecError
from rayrec.features.base import Fitted as FittedFeature
from rayrec.features.columns import json_text
from rayrec.features.times import EARLIEST, MICROSECONDS_FROM, as_seconds

MAX_TEXT = 10_000
MAX_LIST = 1_000
FIRST, LAST = EARLIEST, MICROSECONDS_FROM
"""Of times that are numbers: seconds or milliseconds, told by their size."""
MOMENT = "timestamp"
"""The column of the context that is the event's own time: of a request, the moment that it asks for."""

Said = Mapping[str, object]
"""Values by column, as JSON has them: raw, as in the log and the user table."""


class FeatureError(RayrecError):
    """A request says something of a user or of a moment that the model cannot read."""


@dataclass(frozen=True)
class RequestFeatures:
    """The features that a model reads of requests.

    Attributes:
        fitted: The transforms it was trained with; None where it reads no features.
        widths: How many columns it reads of the ``user``, of the ``context``.
    """

    fitted: Fitted | None
    widths: Mapping[str, int]

    @classmethod
    def of(cls, dataset: Dataset, view: str, widths: Mapping[str, int]) -> RequestFeatures:
        """By the transforms of a view.

        Raises:
            DataError: They are missing or damaged.
        """
        return cls(load_fitted(dataset, open_view(dataset, view)) if widths else None, widths)

    def read(self, name: str, said: Said, at: int) -> Said:
        """What is known of the ``user`` or the ``context`` of a request.

        Args:
            name: Which of them.
            said: What the request says. A ``timestamp`` of the context is passed over: it became ``at``.
            at: The moment that is asked for: see `moment`.

        Raises:
            FeatureError: The model does not read this, or a value is of another type.
        """
        columns = _by_column(self._features(name))
        if name == "context":
            said = {column: value for column, value in said.items() if column != MOMENT}
        if said and not columns:
            what = {"user": "users", "context": "the context"}[name]
            raise FeatureError(f"{name}: this model reads no features of {what}. Leave it out.")
        for column, value in said.items():
            if column not in columns:
                raise FeatureError(f"{name}.{column}: the model reads no such column. Known: {', '.join(columns)}.")
            for feature in columns[column]:
                wanted, is_one = _wanted(feature)
                if value is not None and not is_one(value):
                    raise FeatureError(f"{name}.{column}: must be {wanted}, or null. Known: {', '.join(columns)}.")
        if name == "user":
            return said
        # Each row of the log has a context, if only a missing one; of users, nothing at all may be known.
        return {**dict.fromkeys(columns), **({MOMENT: at} if MOMENT in columns else {}), **said}

    def columns(self, name: str) -> dict[str, str]:
        """The columns that are read of the ``user`` or the ``context``, and what each must be."""
        return {column: _wanted(features[0])[0] for column, features in _by_column(self._features(name)).items()}

    def encode(self, name: str, known: Sequence[Said]) -> list[np.ndarray | None]:
        """Features of what `read` gave of several requests, in one pass, which costs hardly more than one request's.

        Returns:
            ``[F]`` float32 each, what is left out as where the log has it missing; None where nothing at all is known.
        """
        places = [place for place, values in enumerate(known) if values]
        found: list[np.ndarray | None] = [None] * len(known)
        if self.fitted is None or not places:
            return found
        rows, features = [known[place] for place in places], self._features(name)
        encoded = self.fitted.users.apply_rows(rows) if name == "user" else self.fitted.encode_moments(rows)
        columns = {feature: encoded[feature].combine_chunks() for feature in features}
        for place, row in zip(places, feature_rows(features, columns).dense(np.arange(len(rows))), strict=True):
            found[place] = row
        return found

    def _features(self, name: str) -> Mapping[str, FittedFeature]:
        if self.fitted is None or name not in self.widths:
            return {}
        return (self.fitted.users if name == "user" else self.fitted.context).features


def moment(context: Said, now: int) -> int:
    """Seconds since the epoch of the moment that a request asks for: its context's ``timestamp``, else ``now``.

    Raises:
        FeatureError: It is no time.
    """
    said = context.get(MOMENT)
    if said is None:
        return now
    if not _is_time(said):
        raise FeatureError(f"context.{MOMENT}: must be {A_TIME}, or null.")
    return int(_seconds(said)[0][0])


def _by_column(features: Mapping[str, FittedFeature]) -> dict[str, list[FittedFeature]]:
    """The features that are made from each column."""
    columns: dict[str, list[FittedFeature]] = {}
    for name, feature in features.items():
        columns.setdefault(feature.config.column or name, []).append(feature)
    return columns


# ---- what a value may be; transforms take everything, and what they cannot read as missing


A_TIME = "a time: ISO 8601, or seconds or milliseconds since the epoch"


def _wanted(feature: FittedFeature) -> tuple[str, Callable[[object], bool]]:
    """What a value of a feature is, in words and as a test."""
    dimension = feature.output.dimension
    kinds: dict[str, tuple[str, Callable[[object], bool]]] = {
        "categorical": ("a text, a number, true or false", _is_word),
        "multi-valued": (f"a text, or a list of at most {MAX_LIST:,} texts or numbers", _is_words),
        "numeric": ("a number", _is_number),
        "timestamp": (A_TIME, _is_time),
        "text": (f"a text of at most {MAX_TEXT:,} characters", _is_text),
        "vector": (f"a list of {dimension} numbers", lambda value: _is_vector(value, dimension)),
    }
    return kinds[feature.config.kind]


def _is_text(value: object) -> bool:
    return isinstance(value, str) and len(value) <= MAX_TEXT


def _is_number(value: object) -> bool:
    # Not NaN, and no integer beyond floats: Python reads both from JSON.
    return isinstance(value, int | float) and abs(value) <= sys.float_info.max


def _is_word(value: object) -> bool:
    return _is_text(value) or _is_number(value)


def _is_words(value: object) -> bool:
    return _is_text(value) or (isinstance(value, list) and len(value) <= MAX_LIST and all(map(_is_word, value)))


def _is_vector(value: object, dimension: int) -> bool:
    return isinstance(value, list) and len(value) == dimension and all(map(_is_number, value))


def _is_time(value: object) -> bool:
    if isinstance(value, bool) or (isinstance(value, int | float) and not FIRST <= value < LAST):
        return False
    return _is_word(value) and bool(_seconds(value)[1][0])


def _seconds(value: object) -> tuple[np.ndarray, np.ndarray]:
    return as_seconds(pa.array([json_text(value)], pa.large_string()))
