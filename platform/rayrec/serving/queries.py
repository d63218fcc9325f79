"""What the engine is asked, and what it answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from rayrec.artifacts import Json
from rayrec.inference.inputs import Context
from rayrec.inference.offered import Limits
from rayrec.inference.scorer import Scorer
from rayrec.serving.features import Said
from rayrec.serving.state import Item

MODEL, POPULAR, LATEST = "model", "popular", "latest"


@dataclass(frozen=True)
class Wanted:
    """Which items may be recommended.

    Attributes:
        categories: Only items that belong to one of these; by default all.
        labels: Only items with all of these labels, each a name and a value (or one of several).
        exclude: Keys of items that may not.
        only: Only items with these keys, also those that the user had.
    """

    categories: tuple[str, ...] = ()
    labels: tuple[tuple[str, str], ...] = ()
    exclude: tuple[str, ...] = ()
    only: tuple[str, ...] | None = None


ANYTHING = Wanted()


@dataclass(frozen=True)
class Query:
    """A request for recommendations.

    Attributes:
        history: Item rows to recommend from, oldest first: ``[n]`` int64.
        count: How many items.
        offset: How many of the best to pass over.
        limits: Which items may be recommended, by their rows.
        context: What else is known.
        user: What is said of who asks, in place of the features in ``context``; by column, not encoded yet.
        moment: What is known of the moment; likewise.
        at: The moment that is asked for, in seconds since the epoch.
        who: The key of who asks, known or not; nothing of a session.
        others: Keys of items of the history that the model does not know.
        wanted: Which items may be recommended; what follows for those that the model knows is in ``limits``.
        debug: Whether it is asked how each item came to its place.
    """

    history: np.ndarray
    count: int
    offset: int
    limits: Limits
    context: Context
    user: Said = field(default_factory=dict)
    moment: Said = field(default_factory=dict)
    at: int = 0
    who: str = ""
    others: Sequence[str] = ()
    wanted: Wanted = ANYTHING
    debug: bool = False


@dataclass(frozen=True)
class ScoredItem:
    """A recommended item.

    Attributes:
        item: The item.
        score: Higher is better; comparable within one answer only.
        propensity: See `Shown`.
        path: See `Shown`.
    """

    item: Item
    score: float
    propensity: float = 1.0
    path: Mapping[str, object] | None = None

    def to_json(self) -> Json:
        """As it goes over HTTP."""
        item, path = self.item, {} if self.path is None else {"path": self.path}
        content = {"item": item.item, "title": item.title, "categories": item.categories, "score": self.score}
        return {**content, **path}


@dataclass(frozen=True)
class Answer:
    """Recommendations, and where they come from.

    Attributes:
        items: Best first.
        source: ``model``; ``popular`` when nothing is known to recommend from; ``latest`` where that is asked for.
        degraded: Whether it is not what it should be: popular items in place of the model's.
    """

    items: list[ScoredItem]
    source: str
    degraded: bool = False

    def to_json(self) -> Json:
        """As it goes over HTTP."""
        return {"source": self.source, "degraded": self.degraded, "items": [scored.to_json() for scored in self.items]}


class Shown(NamedTuple):
    """An item of an answer, by its key.

    Attributes:
        key: Of the item.
        score: The model's; 0 of an item that it does not know.
        propensity: The chance that it had to stand in its place, given those before it.
        path: How it came there, where that is asked for.
    """

    key: str
    score: float
    propensity: float = 1.0
    path: Mapping[str, object] | None = None


@dataclass(frozen=True)
class Ranked:
    """The items of one request by their keys, best first.

    Attributes:
        source: As in `Answer`.
        keys: Of the items.
        scores: ``[n]`` float32.
        propensities: One an item, see `Shown`.
        paths: The same, where that is asked for.
    """

    source: str
    keys: Sequence[str]
    scores: np.ndarray
    propensities: Sequence[float]
    paths: Sequence[Mapping[str, object] | None]

    @classmethod
    def of(cls, source: str, shown: Sequence[Shown]) -> Ranked:
        """Of several items."""
        scores = np.array([one.score for one in shown], np.float32)
        return cls(
            source, [one.key for one in shown], scores, [one.propensity for one in shown], [one.path for one in shown]
        )

    @classmethod
    def by_rows(cls, source: str, scorer: Scorer, rows: np.ndarray, scores: np.ndarray) -> Ranked:
        """Of item rows ``[n]``, best first; row 0 stands for none."""
        keys = [scorer.item_keys[row - 1] for row in rows.tolist() if row]
        return cls(source, keys, scores[rows != 0], [1.0] * len(keys), [None] * len(keys))
