"""The scorer: one interface to every model, for evaluation, tuning and serving alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from rayrec.inference.inputs import Context, inputs
from rayrec.inference.offered import Limits
from rayrec.inference.runtime import Everybody, Product, Runtime
from rayrec.inference.scores import DenseScores, FoundScores, Order, Scores, Source, best_of
from rayrec.inference.top_k import top_k


class ItemKeys(list[str]):
    """The key of each item row from 1 on."""

    @cached_property
    def rows(self) -> Mapping[str, int]:
        """The row of each key."""
        return {key: row for row, key in enumerate(self, start=1)}


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
        source: Where the best items are looked up, and then ``runtime`` is a `Product`; None where all are scored.
        alike: Where those with the nearest directions are looked up; likewise.
    """

    kind: str
    runtime: Runtime
    item_keys: ItemKeys
    max_length: int
    vectors: np.ndarray | None = None
    widths: Mapping[str, int] = field(default_factory=dict)
    source: Source | None = None
    alike: Source | None = None

    @property
    def rows(self) -> Mapping[str, int]:
        """The row of each item key."""
        return self.item_keys.rows

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
        scores = self._computed(self.runtime, histories, contexts)
        scores[:, 0] = -np.inf
        return scores if candidates is None else np.take_along_axis(scores, np.stack(candidates), axis=1)

    def scores(
        self, histories: Sequence[np.ndarray], contexts: Sequence[Context] | None, limits: Sequence[Limits]
    ) -> Scores:
        """Scores of items, each request within its limits; histories and contexts as for `score`."""
        if self.source is None or not isinstance(self.runtime, Product):
            return DenseScores(self._computed(self.runtime, histories, contexts), limits)
        queries = self._computed(self.runtime.queries, histories, contexts)
        return FoundScores(queries, self.runtime.matrix, self.source, limits)

    def ordered(self) -> Scorer:
        """The same of a model that answers everybody alike: its best items are looked up in their one order."""
        scores = self.score([np.zeros(0, np.int64)])[0]
        scores[0] = 0
        return replace(self, runtime=Product(Everybody(), scores[:, None]), source=Order(scores))

    def _computed(
        self, runtime: Runtime, histories: Sequence[np.ndarray], contexts: Sequence[Context] | None
    ) -> np.ndarray:
        """What a runtime gives in one pass, or in several of like lengths."""
        parts = of_like_length([min(len(history), self.max_length) for history in histories], runtime.alike)
        if len(parts) == 1:
            return runtime(inputs(histories, contexts, self.max_length, self.widths)).copy()
        passes = []
        for part in parts:
            known = None if contexts is None else [contexts[place] for place in part]
            together = [histories[place] for place in part]
            passes.append(runtime(inputs(together, known, self.max_length, self.widths)))
        found = np.empty((len(histories), passes[0].shape[1]), np.float32)
        for part, rows in zip(parts, passes, strict=True):
            found[part] = rows
        return found

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
        scores = self.score(histories, contexts)
        for row, rows in zip(scores, exclude or [], strict=False):
            row[rows] = -np.inf
        return top_k(scores, k)

    def similar(self, rows: np.ndarray, k: int, limits: Limits) -> tuple[np.ndarray, np.ndarray] | None:
        """The ``k`` items nearest to some items by their mean cosine: rows ``[k]`` and cosines ``[k]``.

        Args:
            rows: ``[m]`` int64 item rows, at least one; they are passed over themselves.
            k: How many.
            limits: Which others may be given.

        Returns:
            None of a model without item vectors.
        """
        found = self.similar_each([rows], k, [limits])
        return None if found is None else (found[0][0], found[1][0])

    def similar_each(
        self, rows: Sequence[np.ndarray], k: int, limits: Sequence[Limits]
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """`similar` for several requests: rows ``[B, k]`` and cosines ``[B, k]``."""
        if self.vectors is None:
            return None
        means = np.stack([self.directions(mine).mean(axis=0) for mine in rows])
        others = [
            Limits(limit.within, np.concatenate([limit.but, mine])) for limit, mine in zip(limits, rows, strict=True)
        ]
        if self.alike is None:
            # Not products of directions: with many items, a second matrix of that size.
            return DenseScores((means @ self.vectors.T) / self.lengths, others).best(k)
        each = [self._alike(mean, k, limit) for mean, limit in zip(means, others, strict=True)]
        return np.stack([found for found, _ in each]), np.stack([values for _, values in each])

    def _alike(self, mean: np.ndarray, k: int, limits: Limits) -> tuple[np.ndarray, np.ndarray]:
        """The nearest to a vector, ``[D]``, by the index."""
        vectors, lengths, alike = self._vectors, self.lengths, self.alike

        def cosines(rows: np.ndarray | slice) -> np.ndarray:
            found: np.ndarray = (vectors[rows] @ mean) / lengths[rows]
            return found

        def find(count: int) -> np.ndarray:
            return limits.within.rows if alike is None else alike.candidates(mean, count, limits.within)

        return best_of(cosines, find, k, limits)

    def nearest(self, row: int, among: np.ndarray, k: int) -> list[tuple[int, float]]:
        """The ``k`` of some items that are nearest to an item, with their cosines; none of a model without vectors."""
        if self.vectors is None:
            return []
        among = np.unique(among)
        cosines = self.directions(among) @ self.directions(np.array([row]))[0]
        best = np.argsort(-cosines, kind="stable")[:k]
        return [(int(among[place]), float(cosines[place])) for place in best]

    def directions(self, rows: np.ndarray) -> np.ndarray:
        """Vectors of length 1 of some items: ``[...]`` int64 to ``[..., D]`` float32."""
        vectors = self._vectors[rows]
        vectors /= self.lengths[rows][..., None]
        return vectors

    @cached_property
    def lengths(self) -> np.ndarray:
        """Of the item vectors, and not quite 0: ``[V + 1]`` float32."""
        return np.maximum(np.sqrt(np.einsum("vd,vd->v", self._vectors, self._vectors)), 1e-12, dtype=np.float32)

    @property
    def _vectors(self) -> np.ndarray:
        if self.vectors is None:
            raise ValueError("this model has no item vectors")
        return self.vectors


def of_like_length(lengths: Sequence[int], share: float) -> list[np.ndarray]:
    """Places of histories, ``[n]`` int64 each, in parts in which none is shorter than a share of the longest."""
    order = np.argsort(-np.asarray(lengths), kind="stable")
    parts, first = [], 0
    for place in range(1, len(order)):
        if lengths[order[place]] < share * lengths[order[first]]:
            parts.append(order[first:place])
            first = place
    return [*parts, order[first:]]
