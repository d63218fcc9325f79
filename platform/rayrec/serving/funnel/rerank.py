"""The order in which candidates are shown: relevance against likeness, at most so many of a category, some by chance.

Place by place the best of what is left and allowed is taken. Maximal marginal relevance: Carbonell & Goldstein (SIGIR
1998). Determinantal point processes, greedily: Chen, Zhang & Zhou (NeurIPS 2018).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from rayrec.serving.funnel.compiled import compiled

Diversity = Literal["none", "mmr", "dpp"]
KINDS: tuple[Diversity, ...] = "none", "mmr", "dpp"
MMR, DPP = 1, 2
"""Places in `KINDS`."""
NO_CAP = 0
SMALLEST = 1e-6
"""Of what is left of a candidate that is like those before it; below, it adds nothing."""
MOST_SHARE = 20.0
"""Of relevance in the length of a vector: beyond, single precision has no room for what it spans."""


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
    """What may be shown, of a batch of requests.

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
        chances: One for each request; none need be given where no place is given by chance.

    Raises:
        ValueError: The rules need what is not known of the candidates.
    """
    batch, size = candidates.relevance.shape
    placed = Places(np.full((batch, count), -1, np.int64), np.ones((batch, count)), np.zeros((batch, count), np.bool_))
    draws = [chance.random((count, 2)) for chance in chances] if rules.exploration else np.zeros((batch, 0, 2))
    directions, categories = np.zeros((batch, size, 0)), np.zeros((batch, size, 0))
    if rules.diversity != "none":
        directions = _given(candidates.directions, "vectors")
    if rules.category_cap is not None:
        categories = _given(candidates.categories, "categories")
    _arrange(
        np.ascontiguousarray(candidates.relevance, np.float32),
        np.ascontiguousarray(directions, np.float32),
        np.ascontiguousarray(categories, np.int32),
        np.ascontiguousarray(draws, np.float64),
        KINDS.index(rules.diversity),
        rules.weight,
        rules.category_cap or NO_CAP,
        rules.exploration,
        placed.chosen,
        placed.propensities,
        placed.by_chance,
    )
    return placed


def _given(known: np.ndarray | None, what: str) -> np.ndarray:
    if known is None:
        raise ValueError(f"these rules need the {what} of items")
    return known


@compiled("f4[:,::1](f4[:,::1])")
def scaled(relevance: np.ndarray) -> np.ndarray:
    """From 0 to 1 for each request, ``[B, C]`` float32: scores of models are of any size. Minus infinity stays."""
    found = np.full(relevance.shape, -np.inf, np.float32)
    for request in range(len(relevance)):
        lowest, highest = np.inf, -np.inf
        for value in relevance[request]:
            if np.isfinite(value):
                lowest, highest = min(lowest, value), max(highest, value)
        for candidate, value in enumerate(relevance[request]):
            if np.isfinite(value):
                found[request, candidate] = (value - lowest) / max(highest - lowest, SMALLEST)
    return found


@compiled()
def _best(worth: np.ndarray, left: np.ndarray) -> tuple[int, int]:
    """The first of what is worth most, and how many are left; with 0 the first means nothing."""
    best, count = 0, 0
    for candidate in range(len(left)):
        if left[candidate]:
            count += 1
            if count == 1 or worth[candidate] > worth[best]:
                best = candidate
    return best, count


@compiled()
def _nth(left: np.ndarray, n: int) -> int:
    """The n-th, from 0, of what is left."""
    for candidate in range(len(left)):
        if left[candidate]:
            if n == 0:
                return candidate
            n -= 1
    return -1


@compiled()
def _cosine(one: np.ndarray, other: np.ndarray) -> np.float32:
    """Of two vectors of length 1."""
    total = np.float32(0)
    for at in range(len(one)):
        total += one[at] * other[at]
    return total


@compiled()
def _near_taken(
    directions: np.ndarray,
    relevance: np.ndarray,
    weight: float,
    taken: int,
    left: np.ndarray,
    nearest: np.ndarray,
    worth: np.ndarray,
) -> None:
    """Maximal marginal relevance: less by the greatest likeness to what has a place."""
    for candidate in range(len(worth)):
        if not left[candidate]:
            continue
        nearest[candidate] = max(nearest[candidate], _cosine(directions[candidate], directions[taken]))
        worth[candidate] = (1 - weight) * relevance[candidate] - weight * nearest[candidate]


@compiled()
def _span(
    directions: np.ndarray, lengths: np.ndarray, taken: int, place: int, spanned: np.ndarray, worth: np.ndarray
) -> None:
    """A determinantal point process: what is left of each when what the taken one spans is taken from it.

    One step of an incremental Cholesky factorization, whose rows are ``spanned``.
    """
    height = np.sqrt(max(worth[taken], np.float32(SMALLEST)))
    row = spanned[place]
    for candidate in range(len(worth)):
        row[candidate] = _cosine(directions[candidate], directions[taken]) * lengths[candidate] * lengths[taken]
    for before in range(place):
        known = spanned[before, taken]
        for candidate in range(len(worth)):
            row[candidate] -= spanned[before, candidate] * known
    for candidate in range(len(worth)):
        row[candidate] /= height
        worth[candidate] = max(worth[candidate] - row[candidate] ** 2, np.float32(SMALLEST**2))


@compiled()
def _close_full(categories: np.ndarray, taken: int, cap: int, counts: np.ndarray, left: np.ndarray) -> None:
    """Count the categories of what was taken, and leave no candidate of one that is full."""
    for at in range(categories.shape[1]):
        category = categories[taken, at]
        # A category that an item has twice counts once; 0 is padding.
        if category == 0 or _has(categories, taken, at, category):
            continue
        counts[category] += 1
        if counts[category] == cap:
            for candidate in range(len(left)):
                if left[candidate] and _has(categories, candidate, categories.shape[1], category):
                    left[candidate] = False


@compiled()
def _has(categories: np.ndarray, candidate: int, width: int, category: int) -> bool:
    """Whether one of the first ``width`` categories of a candidate is this."""
    found = False
    for at in range(width):
        found |= categories[candidate, at] == category
    return found


@compiled("void(f4[:,::1], f4[:,:,::1], i4[:,:,::1], f8[:,:,::1], i8, f8, i8, f8, i8[:,::1], f8[:,::1], b1[:,::1])")
def _arrange(
    relevance: np.ndarray,
    directions: np.ndarray,
    categories: np.ndarray,
    draws: np.ndarray,
    kind: int,
    weight: float,
    cap: int,
    rate: float,
    chosen: np.ndarray,
    propensities: np.ndarray,
    by_chance: np.ndarray,
) -> None:
    """`arrange`, into the last three; ``draws`` are ``[B, n, 2]`` from 0 to 1: whether by chance, and which."""
    count, most = min(chosen.shape[1], relevance.shape[1]), 0
    if cap:
        for category in categories.flat:
            most = max(most, category)
    # Chen et al., section 4: the weight of relevance is in the length of the vectors.
    share = min((1 - weight) / max(2 * weight, SMALLEST), MOST_SHARE)
    for request in range(len(relevance)):
        mine, left = relevance[request], np.isfinite(relevance[request])
        worth, nearest = mine.copy(), np.full(len(mine), -1, np.float32)
        lengths = np.exp(np.float32(share) * mine)
        if kind == DPP:
            worth = lengths**2
        spanned = np.zeros((count if kind == DPP else 0, len(mine)), np.float32)
        counts = np.zeros(most + 1, np.int64)
        for place in range(count):
            best, others = _best(worth, left)
            if others == 0:
                break
            taken = best
            if rate > 0:
                if draws[request, place, 0] < rate:
                    taken = _nth(left, int(draws[request, place, 1] * others))
                propensities[request, place] = (1 - rate) * (taken == best) + rate / others
                by_chance[request, place] = taken != best
            chosen[request, place] = taken
            left[taken] = False
            if kind == MMR:
                _near_taken(directions[request], mine, weight, taken, left, nearest, worth)
            elif kind == DPP:
                _span(directions[request], lengths, taken, place, spanned, worth)
            if cap:
                _close_full(categories[request], taken, cap, counts, left)
