"""The scorer: one interface to every model, for evaluation, tuning and serving alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from rayrec.inference.inputs import Context, inputs
from rayrec.inference.runtime import Runtime
from rayrec.inference.top_k import top_k


@dataclass(frozen=True)
class Scorer:
    """A model that can be asked.

    Attributes:
        kind: The architecture's name.
        runtime: What computes.
        item_keys: The key of each item row from 1 on.
        max_length: How many of the latest events are read.
        vectors: ``[V + 1, D]`` float32 item vectors, or None where the model has none.
        widths: How many features are read of the ``user``, of the ``context``; see `Recommender.widths`.
    """

    kind: str
    runtime: Runtime
    item_keys: Sequence[str]
    max_length: int
    vectors: np.ndarray | None = None
    widths: Mapping[str, int] = field(default_factory=dict)

    @cached_property
    def rows(self) -> Mapping[str, int]:
        """The row of each item key."""
        return {key: row for row, key in enumerate(self.item_keys, start=1)}

    def rows_of(self, keys: Sequence[str]) -> np.ndarray:
        """Rows of the keys the model knows, in order: ``[n]`` int64. Unknown keys are left out."""
        return np.array([self.rows[key] for key in keys if key in self.rows], dtype=np.int64)

    def known(self, keys: Sequence[str]) -> np.ndarray:
        """Which of the keys the model knows: ``[n]`` bool."""
        return np.array([key in self.rows for key in keys], dtype=bool)

    def score(
        self,
        histories: Sequence[np.ndarray],
        contexts: Sequence[Context] | None = None,
        candidates: Sequence[np.ndarray] | None = None,
    ) -> np.ndarray:
        """Scores of items as each history's next one.

        Args:
            histories: Item rows of each request, oldest first; may be empty.
            contexts: What else is known of each request; None where nothing is.
            candidates: Item rows to score for each request, equally many; by default all items.

        Returns:
            ``[B, V + 1]`` float32 with minus infinity for padding, or ``[B, C]`` for candidates.
        """
        scores = self._scores(histories, contexts)
        scores[:, 0] = -np.inf
        return scores if candidates is None else np.take_along_axis(scores, np.stack(candidates), axis=1)

    def _scores(self, histories: Sequence[np.ndarray], contexts: Sequence[Context] | None) -> np.ndarray:
        """Scores of one pass, or of several of like lengths."""
        parts = of_like_length([min(len(history), self.max_length) for history in histories], self.runtime.alike)
        if len(parts) == 1:
            return self.runtime(inputs(histories, contexts, self.max_length, self.widths)).copy()
        scores = np.empty((len(histories), len(self.item_keys) + 1), np.float32)
        for part in parts:
            known = None if contexts is None else [contexts[place] for place in part]
            together = [histories[place] for place in part]
            scores[part] = self.runtime(inputs(together, known, self.max_length, self.widths))
        return scores

    def top(
        self,
        histories: Sequence[np.ndarray],
        k: int,
        exclude: Sequence[np.ndarray] | None = None,
        contexts: Sequence[Context] | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The best ``k`` items of each history, without those in ``exclude`` (item rows of each request).

        Contexts as in `score`.

        Returns:
            Item rows ``[B, k]`` int64 and scores ``[B, k]`` float32; row 0 where fewer are left.
        """
        return top_k(self.masked(histories, exclude or [], contexts), k)

    def masked(
        self, histories: Sequence[np.ndarray], exclude: Sequence[np.ndarray], contexts: Sequence[Context] | None = None
    ) -> np.ndarray:
        """Scores as of `score`, ``[B, V + 1]``, with minus infinity for the item rows in ``exclude``."""
        scores = self.score(histories, contexts)
        for row, rows in zip(scores, exclude, strict=False):
            row[rows] = -np.inf
        return scores

    def similar(self, rows: np.ndarray, k: int, excluded: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        """The ``k`` items nearest to some items by their mean cosine: rows ``[k]`` and cosines ``[k]``.

        Args:
            rows: ``[m]`` int64 item rows, at least one; they are passed over themselves.
            k: How many.
            excluded: ``[n]`` int64 item rows that are passed over too.

        Returns:
            None of a model without item vectors.
        """
        if self.vectors is None:
            return None
        similarities = self.directions @ self.directions[rows].mean(axis=0)
        for gone in ([0], rows, excluded):
            similarities[gone] = -np.inf
        found, values = top_k(similarities[None, :], k)
        return found[0], values[0]

    def nearest(self, row: int, among: np.ndarray, k: int) -> list[tuple[int, float]]:
        """The ``k`` of some items that are nearest to an item, with their cosines; none of a model without vectors."""
        if self.vectors is None:
            return []
        among = np.unique(among)
        cosines = self.directions[among] @ self.directions[row]
        best = np.argsort(-cosines, kind="stable")[:k]
        return [(int(among[place]), float(cosines[place])) for place in best]

    @cached_property
    def directions(self) -> np.ndarray:
        """Item vectors of length 1: ``[V + 1, D]`` float32."""
        if self.vectors is None:
            raise ValueError("this model has no item vectors")
        lengths = np.linalg.norm(self.vectors, axis=1, keepdims=True)
        return np.asarray(self.vectors / np.maximum(lengths, 1e-12), dtype=np.float32)


def of_like_length(lengths: Sequence[int], share: float) -> list[np.ndarray]:
    """Places of histories, ``[n]`` int64 each, in parts in which none is shorter than a share of the longest."""
    order = np.argsort(-np.asarray(lengths), kind="stable")
    parts, first = [], 0
    for place in range(1, len(order)):
        if lengths[order[place]] < share * lengths[order[first]]:
            parts.append(order[first:place])
            first = place
    return [*parts, order[first:]]
