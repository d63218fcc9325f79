"""From a model's scores to what is shown: candidates of several sources, merged, and arranged by a policy."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, takewhile

import numpy as np

from rayrec.inference.offered import NO_ROWS, Limits, Offered
from rayrec.inference.scorer import Scorer
from rayrec.inference.scores import Scores
from rayrec.recipe_serving import Funnel as Policy
from rayrec.serving.funnel.attributes import Attributes
from rayrec.serving.funnel.candidates import Gathered, gather
from rayrec.serving.funnel.rerank import Candidates, Places, Rules, arrange, scaled
from rayrec.serving.queries import MODEL, Query, Ranked, Shown
from rayrec.serving.state import Catalog, Item

SIMILAR, LISTS = "similar", ("popular", "trending", "latest")
"""Sources besides the model, as the policy names them."""
RECENT = 5
"""Latest items of a history that others are like."""
MOST_LISTED = 1000
MOST_COLD = 1000
"""The newest of the items that the model does not know, among which chance chooses."""
DAY = 24 * 3600.0

Keys = Callable[[], Sequence[str]]


@dataclass(frozen=True)
class _Arranged:
    """A batch, with everything that is known of it.

    Attributes:
        scorer: Whose rows they are.
        scores: ``[B, C]`` float32 of the candidates.
        gathered: The candidates.
        relevance: ``[B, C]`` of them.
        placed: The places that the rules gave.
        quota: How many of the first source are among the candidates.
        best: ``[B, k]`` int64, all that it gives, best first; row 0 is none.
        values: ``[B, k]`` float32, their scores.
    """

    scorer: Scorer
    scores: np.ndarray
    gathered: Gathered
    relevance: np.ndarray
    placed: Places
    quota: int
    best: np.ndarray
    values: np.ndarray

    def shown(self, request: int, detailed: bool) -> Iterator[Shown]:
        """The items of a request: what the rules gave a place, the others by their relevance, and what is deeper."""
        placed, relevance = self.placed, self.relevance[request]
        chosen, by_chance = placed.chosen[request], placed.by_chance[request].tolist()
        for candidate, propensity, chance in zip(
            chosen.tolist(), placed.propensities[request].tolist(), by_chance, strict=True
        ):
            if candidate < 0:
                # The rules allow no other.
                return
            yield self._item(request, candidate, propensity, "chance" if chance else "order", detailed)
        behind = np.argsort(-relevance, kind="stable")
        for candidate in behind[~np.isin(behind, chosen) & np.isfinite(relevance[behind])].tolist():
            yield self._item(request, candidate, 1.0, "order", detailed)
        first, best, scores = self.gathered.names[0], self.best[request], self.values[request]
        candidates = {*self.gathered.rows[request].tolist(), 0}
        for place in range(self.quota, len(best)):
            if int(best[place]) not in candidates:
                path = {"sources": {first: place + 1}, "by": "order"} if detailed else None
                yield Shown(self.scorer.item_keys[best[place] - 1], scores[place].item(), 1.0, path)

    def _item(self, request: int, candidate: int, propensity: float, by: str, detailed: bool) -> Shown:
        key = self.scorer.item_keys[self.gathered.rows[request, candidate] - 1]
        path = {"sources": self.gathered.sources(request, candidate), "by": by} if detailed else None
        return Shown(key, self.scores[request, candidate].item(), propensity, path)


class Funnel:
    """A Release's policy, at work.

    Args:
        policy: The recipe's `serving.funnel`.
        scorer: The model.
        popular: What answers who has no history.
        catalog: The items.
        trending: Gives the keys of items that trend, the first one most.
        salt: What chance begins with, besides who asks and what they did: the Release's name.
    """

    def __init__(
        self, policy: Policy, scorer: Scorer, popular: Scorer, catalog: Catalog, trending: Keys, salt: str
    ) -> None:
        self.policy = policy
        self._scorers = {True: scorer, False: popular}
        self._catalog = catalog
        self._trending = trending
        self._salt = salt
        self._rules = Rules(policy.diversity, policy.diversity_weight, policy.category_cap, policy.exploration)
        self._quotas = policy.sources.model_dump()
        self._known: dict[int, Attributes] = {}
        self._lists: dict[tuple[str, int], tuple[Sequence[Item | str], np.ndarray]] = {}
        anything = Limits(Offered.everything(len(popular.item_keys)))
        most = popular.scores([NO_ROWS], None, [anything]).best(MOST_LISTED)[0][0]
        self._most_popular = [popular.item_keys[row - 1] for row in most if row]

    def ranked(self, source: str, scores: Scores, queries: Sequence[Query]) -> list[Ranked]:
        """What is shown.

        Args:
            source: Whose scores: the model's or popularity's.
            scores: Of the items for each query, within its limits.
            queries: ``B`` of them.
        """
        scorer, about = self._scorers[source == MODEL], self._attributes(source == MODEL)
        deepest, quota = max(query.offset + query.count for query in queries), self._quotas[MODEL]
        best, values = scores.best(max(quota, deepest))
        # What is arranged is the same however deep a request, or another of the batch, looks.
        given = {source: best[:, :quota]} | self._near(scorer, queries) | self._listed_for(source, scorer, scores)
        gathered = gather(given, {**self._quotas, source: quota}, len(scorer.item_keys))
        known = scores.of(gathered.rows)
        relevance = self._relevance(known, gathered, about, queries)
        chances = [self._chance(query, "places") for query in queries] if self.policy.exploration else []
        described = self._described(scorer, about, gathered.rows, relevance)
        placed = arrange(described, min(deepest, quota), self._rules, chances)
        arranged = _Arranged(scorer, known, gathered, relevance, placed, quota, best, values)
        return [
            self._answer(source, query, arranged.shown(at, query.debug), self._cold(about, query))
            for at, query in enumerate(queries)
        ]

    def _answer(self, source: str, query: Query, ordered: Iterator[Shown], cold: Iterator[Shown]) -> Ranked:
        """The places that are asked for, some of them for items that the model does not know."""
        shown: list[Shown] = []
        while len(shown) < query.offset + query.count:
            is_for_cold = self.policy.cold_every and (len(shown) + 1) % self.policy.cold_every == 0
            following = (next(cold, None) if is_for_cold else None) or next(ordered, None)
            if following is None:
                break
            shown.append(following)
        return Ranked.of(source, shown[query.offset :])

    def _near(self, scorer: Scorer, queries: Sequence[Query]) -> dict[str, np.ndarray]:
        """What is like the latest items of each history, which all of a batch have or none: rows, best first."""
        quota = self._quotas[SIMILAR]
        if not quota or not all(len(query.history) for query in queries):
            return {}
        # `np.unique` takes ten times as long for so few.
        recent = [np.array([*dict.fromkeys(query.history[-RECENT:].tolist())], np.int64) for query in queries]
        found = scorer.similar_each(recent, quota, [query.limits for query in queries])
        return {} if found is None else {SIMILAR: found[0]}

    def _listed_for(self, source: str, scorer: Scorer, scores: Scores) -> dict[str, np.ndarray]:
        """What lists give that are the same for everybody: rows, best first; 0 for what a request may not have."""
        lists = {name: self._listed(name, scorer) for name in LISTS if self._quotas[name] and name != source}
        return {name: np.where(scores.allows(rows), rows, 0) for name, rows in lists.items()}

    def _listed(self, name: str, scorer: Scorer) -> np.ndarray:
        """Rows of a list that is the same for everybody, looked up once for each list that comes."""
        given: Sequence[Item | str]
        if name == "latest":
            given = self._catalog.newest()
        else:
            given = self._trending() if name == "trending" else self._most_popular
        before, rows = self._lists.get((name, id(scorer)), (None, NO_ROWS))
        if before is not given:
            keys = [one if isinstance(one, str) else one.item for one in given[:MOST_LISTED]]
            rows = scorer.rows_of(keys)
            self._lists[name, id(scorer)] = given, rows
        return rows

    def _relevance(
        self, scores: np.ndarray, gathered: Gathered, about: Attributes, queries: Sequence[Query]
    ) -> np.ndarray:
        """From 0 to 1 by the policy's way to merge, and more for what is new: ``[B, C]``."""
        ranked = np.where(np.isfinite(scores), gathered.by_ranks(), -np.inf) if self.policy.merge == "ranks" else scores
        relevance = scaled(np.ascontiguousarray(ranked, np.float32))
        if self.policy.freshness_weight:
            now = np.array([[query.at] for query in queries])
            age = np.maximum(now - about.came[gathered.rows], 0) / DAY
            relevance = relevance + self.policy.freshness_weight * 0.5 ** (age / self.policy.freshness_days)
        return relevance

    def _described(self, scorer: Scorer, about: Attributes, rows: np.ndarray, relevance: np.ndarray) -> Candidates:
        """Candidates with what the rules read of them; of a model without vectors nothing is like anything."""
        directions = None
        if self._rules.diversity != "none":
            has = scorer.vectors is not None
            directions = scorer.directions(rows) if has else np.zeros((*rows.shape, 1), np.float32)
        categories = about.categories[rows] if self._rules.category_cap else None
        return Candidates(relevance, directions, categories)

    def _cold(self, about: Attributes, query: Query) -> Iterator[Shown]:
        """Items that the model does not know, in random order, each with its chance to be the next."""
        if not self.policy.cold_every:
            return
        had, wanted = {*query.others, *query.wanted.exclude}, query.wanted
        since = query.at - (self.policy.cold_days or np.inf) * DAY
        recent = (key for came, key in takewhile(lambda one: -one[0] >= since, about.cold) if key not in had)
        items = filter(None, map(self._catalog.item, recent))
        allowed = (item.item for item in items if item.is_within(wanted.categories, wanted.labels))
        pool = [*islice(allowed, MOST_COLD)]
        for place, chosen in enumerate(self._chance(query, "cold").permutation(len(pool))):
            yield Shown(pool[chosen], 0.0, 1 / (len(pool) - place), {"by": "cold"} if query.debug else None)

    def _attributes(self, known: bool) -> Attributes:
        model, keys = self._scorers[True].item_keys, self._scorers[known].item_keys
        # Those of both scorers may be the same.
        about = self._known.get(id(keys))
        if about is None:
            about = self._known[id(keys)] = Attributes.of(self._catalog, model, keys)
        elif about.are_stale(self._catalog):
            about = self._known[id(keys)] = about.updated(self._catalog, model, keys)
        return about

    def _chance(self, query: Query, purpose: str) -> np.random.Generator:
        """The same for a user until they do something: pages follow each other, and replicas agree."""
        known = f"{self._salt}\0{purpose}\0{query.who}\0{len(query.others)}\0".encode() + query.history.tobytes()
        return np.random.default_rng(int.from_bytes(hashlib.blake2b(known, digest_size=8).digest()))
