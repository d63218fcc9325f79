"""The order in which candidates are shown: relevance against likeness, at most so many of a category, some by chance.

All requests of a batch at once, place by place: at each place the best of what is left and allowed is taken. Maximal
marginal relevance: Carbonell & Goldstein (SIGIR 1998). Determinantal point processes, greedily: Chen, Zhang & Zhou
(NeurIPS 2018).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Diversity = Literal["none", "mmr", "dpp"]
WORD = 64
SMALLEST = 1e-6
"""Of what is left of a candidate that is like those before it; below, it adds nothing."""


@dataclass(frozen=True)
class Rules:
    """How places are given.

    Attributes:
        diversity: What likeness to the items before is held against a candidate by.
        weight: How much likeness counts against relevance, from 0 to 1.
        category_cap: Most items of a category; None does not limit them.
        exploration: The chance of each place to be given at random, evenly, to what is left and allowed.
    """

    diversity: Diversity = "none"
    weight: float = 0.0
    category_cap: int | None = None
    exploration: float = 0.0


@dataclass(frozen=True)
class Candidates:
    """What may be shown, of a batch of requests, best first.

    Attributes:
        relevance: ``[B, C]`` float32, about from 0 to 1; minus infinity where there is no candidate.
        directions: ``[B, C, D]`` float32 item vectors of length 1; None where likeness does not count.
        categories: ``[B, C, M]`` int, of each candidate, padded with 0; None where categories do not count.
    """

    relevance: np.ndarray
    directions: np.ndarray | None = None
    categories: np.ndarray | None = None


@dataclass(frozen=True)
class Places:
    """Who is shown where.

    Attributes:
        chosen: ``[B, n]`` int64, candidates by their place in `Candidates`; -1 where nobody is left.
        propensities: ``[B, n]`` float64: the chance of each to be there, given those before it.
        by_chance: ``[B, n]`` bool: whether it is there by chance, and would not have been without.
    """

    chosen: np.ndarray
    propensities: np.ndarray
    by_chance: np.ndarray


def arrange(candidates: Candidates, count: int, rules: Rules, chances: Sequence[np.random.Generator]) -> Places:
    """Give the first ``count`` places.

    Args:
        candidates: What may be shown.
        count: How many places.
        rules: How they are given.
        chances: One for each request, read only where places are given by chance.
    """
    batch, size = candidates.relevance.shape
    everyone = np.arange(batch)
    left = np.isfinite(candidates.relevance)
    relevance = np.where(left, candidates.relevance, 0)
    chosen = np.full((batch, count), -1, np.int64)
    propensities, by_chance = np.ones((batch, count)), np.zeros((batch, count), bool)
    likeness = _LIKENESS[rules.diversity](relevance, candidates.directions, rules.weight)
    caps = None if rules.category_cap is None else _Caps(candidates.categories, batch, rules.category_cap)
    for place in range(min(count, size)):
        allowed = left if caps is None else left & caps.allowed()
        some = allowed.any(axis=1)
        if not some.any():
            break
        taken = np.where(allowed, likeness.values(), -np.inf).argmax(axis=1)
        if rules.exploration:
            best = taken.copy()
            propensities[:, place] = _explore(taken, allowed, rules.exploration, chances)
            by_chance[:, place] = taken != best
        chosen[some, place] = taken[some]
        left[everyone, taken] = False
        likeness.take(taken)
        if caps is not None:
            caps.take(taken, some)
    return Places(chosen, propensities, by_chance)


def _explore(taken: np.ndarray, allowed: np.ndarray, rate: float, chances: Sequence[np.random.Generator]) -> np.ndarray:
    """Give some places at random, in place. Returns the propensities: ``[B]``."""
    best = taken.copy()
    sizes = allowed.sum(axis=1)
    for request in np.flatnonzero(sizes):
        if chances[int(request)].random() < rate:
            taken[request] = np.flatnonzero(allowed[request])[chances[int(request)].integers(sizes[request])]
    return (1 - rate) * (taken == best) + rate / np.maximum(sizes, 1)


def scaled(relevance: np.ndarray) -> np.ndarray:
    """From 0 to 1 for each request, ``[B, C]``: scores of models are of any size. Minus infinity stays."""
    finite = np.isfinite(relevance)
    lowest = np.where(finite, relevance, np.inf).min(axis=1, keepdims=True)
    highest = np.where(finite, relevance, -np.inf).max(axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):
        between = (relevance - lowest) / np.maximum(highest - lowest, SMALLEST)
    return np.where(finite, between, -np.inf).astype(np.float32)


class _Alone:
    """Candidates as they are, whatever came before."""

    def __init__(self, relevance: np.ndarray, directions: np.ndarray | None, weight: float) -> None:
        self._values = relevance

    def values(self) -> np.ndarray:
        """What each candidate is worth now: ``[B, C]``."""
        return self._values

    def take(self, taken: np.ndarray) -> None:
        """One of each request, ``[B]``, has been given a place."""


class _Marginal(_Alone):
    """Maximal marginal relevance: less by the greatest likeness to what has a place."""

    def __init__(self, relevance: np.ndarray, directions: np.ndarray | None, weight: float) -> None:
        super().__init__((1 - weight) * relevance, directions, weight)
        self._directions = _given(directions)
        self._weight = weight
        self._nearest = np.full(relevance.shape, -1.0, np.float32)
        self._any = False

    def values(self) -> np.ndarray:
        """See `_Alone`."""
        return self._values - self._weight * self._nearest if self._any else self._values

    def take(self, taken: np.ndarray) -> None:
        """See `_Alone`."""
        self._any = True
        np.maximum(self._nearest, _cosines(self._directions, taken), out=self._nearest)


class _Determinantal(_Alone):
    """A determinantal point process: the volume that the items' vectors, as long as they are relevant, span."""

    def __init__(self, relevance: np.ndarray, directions: np.ndarray | None, weight: float) -> None:
        super().__init__(relevance, directions, weight)
        self._directions = _given(directions)
        # Chen et al., section 4: the weight of relevance is in the length of the vectors.
        share = (1 - weight) / max(2 * weight, SMALLEST)
        self._lengths = np.exp(np.minimum(share, 20.0) * relevance)
        self._left = self._lengths**2
        self._spanned: list[np.ndarray] = []

    def values(self) -> np.ndarray:
        """See `_Alone`."""
        return np.log(np.maximum(self._left, SMALLEST**2))

    def take(self, taken: np.ndarray) -> None:
        """See `_Alone`: one step of an incremental Cholesky factorization."""
        everyone = np.arange(len(taken))
        row = _cosines(self._directions, taken) * self._lengths * self._lengths[everyone, taken][:, None]
        for before in self._spanned:
            row -= before * before[everyone, taken][:, None]
        row /= np.sqrt(np.maximum(self._left[everyone, taken], SMALLEST))[:, None]
        self._spanned.append(row)
        self._left -= row**2


_LIKENESS: dict[Diversity, type[_Alone]] = {"none": _Alone, "mmr": _Marginal, "dpp": _Determinantal}


def _given(directions: np.ndarray | None) -> np.ndarray:
    if directions is None:
        raise ValueError("likeness needs item vectors")
    return directions


def _cosines(directions: np.ndarray, taken: np.ndarray) -> np.ndarray:
    """Of every candidate with one of its request: ``[B, C]``."""
    one = directions[np.arange(len(taken)), taken]
    found: np.ndarray = np.matmul(directions, one[:, :, None])[:, :, 0]
    return found


class _Caps:
    """Counts of the categories that have places."""

    def __init__(self, categories: np.ndarray | None, batch: int, cap: int) -> None:
        if categories is None:
            raise ValueError("caps need categories")
        self._categories = categories
        self._cap = cap
        self._counts = np.zeros((batch, int(categories.max(initial=0)) + 1), np.int64)
        # A bit for each category: places are many, and categories are compared at each.
        words = self._counts.shape[1] // WORD + 1
        self._bits = np.zeros((*categories.shape[:2], words), np.uint64)
        self._full = np.zeros((batch, 1, words), np.uint64)
        everyone, everything = np.ogrid[: categories.shape[0], : categories.shape[1]]
        for numbers in np.moveaxis(categories, 2, 0):
            self._bits[everyone, everything, numbers // WORD] |= _bit(numbers)

    def allowed(self) -> np.ndarray:
        """Which candidates have no category that is full: ``[B, C]`` bool."""
        found: np.ndarray = np.logical_not((self._bits & self._full).any(axis=2))
        return found

    def take(self, taken: np.ndarray, some: np.ndarray) -> None:
        """One of each of ``some`` requests, ``[B]`` bool, has been given a place."""
        requests = np.flatnonzero(some)
        theirs = self._categories[requests, taken[requests]]
        # A category that an item has twice counts once.
        self._counts[requests[:, None], theirs] += 1
        # Category 0 is padding, of which there may be any number.
        full = (self._counts[requests[:, None], theirs] == self._cap) & (theirs > 0)
        for place, column in np.argwhere(full).tolist():
            number = theirs[place, column]
            self._full[requests[place], 0, number // WORD] |= _bit(number)


def _bit(numbers: np.ndarray) -> np.ndarray:
    """Of some categories, in its word."""
    found: np.ndarray = np.left_shift(np.uint64(1), (numbers % WORD).astype(np.uint64))
    return found
