"""The engine: answers from a Release. Plain Python, so that it runs and is tested without Serve."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import islice
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from rayrec.artifacts import Storage
from rayrec.data.dataset import open_dataset
from rayrec.data.event_log import load_histories
from rayrec.data.user_features import check_features, everyones_features
from rayrec.errors import RayrecError
from rayrec.inference.bundle import Bundle
from rayrec.inference.inputs import Context
from rayrec.inference.offered import NO_ROWS, Limits
from rayrec.inference.release import Release, open_release
from rayrec.inference.scorer import Scorer
from rayrec.inference.scores import Scores
from rayrec.recipe_serving import Funnel as Policy
from rayrec.recipe_serving import Serving
from rayrec.serving.catalog import Items
from rayrec.serving.features import RequestFeatures, Said, moment
from rayrec.serving.outside import Outside
from rayrec.serving.queries import ANYTHING, LATEST, MODEL, POPULAR, Answer, Query, Ranked, ScoredItem, Wanted
from rayrec.serving.stages import stage
from rayrec.serving.state import Catalog, DatasetHistories, History, HistoryStore, Item

if TYPE_CHECKING:
    from rayrec.serving.funnel.funnel import Funnel, Keys

POPULARITY = "popularity"
"""The kind of model that knows nothing of what goes with an item."""
NOTHING: Said = MappingProxyType({})


class UnknownItemError(RayrecError):
    """An item key that the catalogue does not have."""


MOST_POPULAR = 1000
"""Among which a request finds something when there is no time to ask."""
EXPLAINING, MOST_EXPLAINING = 3, 200
"""Items of a history that an explanation names, and the latest that it looks at."""

Known = Callable[[Release, Scorer], HistoryStore]
"""Gives the histories of users by the item rows of a Release's model."""


class Engine:
    """A Release in memory.

    Args:
        release: The Release.
        scorer: Its model.
        popular: What answers when there is no history.
        histories: Histories of users.
        catalog: The items.
        features: Features that the model reads of requests.
        trending: Gives the keys of items that trend; by default there are none.
        golden: The bundles, with the scorers that give their golden answers.
    """

    def __init__(
        self,
        release: Release,
        scorer: Scorer,
        popular: Scorer,
        histories: HistoryStore,
        catalog: Catalog,
        features: RequestFeatures,
        trending: Keys = tuple,
        golden: Sequence[tuple[Bundle, Scorer]] = (),
    ) -> None:
        self.release = release
        self.scorer = scorer
        self.popular = popular
        self.histories = histories
        self.catalog = catalog
        self.features = features
        self.exclude_seen = bool(release.content["funnel"]["exclude_seen"])
        self._funnel = self._made(Serving(**release.content["serving"]).funnel, trending)
        self._outside = Outside(catalog)
        self._golden = golden

    def _made(self, policy: Policy, trending: Keys) -> Funnel | None:
        if policy.is_plain:
            return None
        # Compiled loops take 120 MB of memory and half a second: only where there is something to arrange.
        from rayrec.serving.funnel.funnel import Funnel

        return Funnel(policy, self.scorer, self.popular, self.catalog, trending, self.release.content["name"])

    @classmethod
    def load(
        cls,
        storage: Storage,
        digest: str,
        threads: int = 1,
        known: Known | None = None,
        catalog: Catalog | None = None,
        trending: Keys = tuple,
    ) -> Engine:
        """Load, check and warm a Release.

        Args:
            storage: Where it is.
            digest: Its name.
            threads: Threads of the scorer.
            known: Gives the histories of users; by default `histories_of`.
            catalog: The items; by default those of the Release's Dataset.
            trending: Gives the keys of items that trend; by default there are none.

        Raises:
            ModelError: A part is missing, damaged, or gives other answers than when it was published.
        """
        release = open_release(storage, digest)
        content = release.content
        bundle, view = release.bundle("main"), content["dataset"]["view"]
        scorer = bundle.scorer(content["variants"]["main"], threads, release.indexes())
        fallback = release.bundle(POPULAR)
        popular = fallback.scorer(content["variants"][POPULAR], threads)
        if popular.item_keys == scorer.item_keys:
            # Then what is kept of all items is kept once.
            popular = replace(popular, item_keys=scorer.item_keys)
        large = Serving(**content["serving"]).index.is_for
        scorer, popular = (
            found.ordered() if found.kind == POPULARITY and large(len(found.item_keys)) else found
            for found in (scorer, popular)
        )
        dataset = open_dataset(storage, content["dataset"]["name"], content["dataset"]["manifest"])
        check_features(bundle.manifest, bundle.path, dataset, view)
        features = RequestFeatures.of(dataset, view, scorer.widths)
        histories = known(release, scorer) if known else histories_of(release)
        golden = [(bundle, scorer), (fallback, popular)]
        engine = cls(release, scorer, popular, histories, catalog or Items.of(dataset), features, trending, golden)
        engine.warm()
        return engine

    def check(self) -> None:
        """Compare the models' scores with those of when they were published.

        Raises:
            ModelError: They are others.
        """
        for bundle, scorer in self._golden:
            bundle.check(scorer)

    def warm(self) -> None:
        """Answer, so that whoever asks first does not wait for what is worked out from the whole catalogue."""
        # Who has a history is answered by other parts than who has none.
        queries = [self.session_query(known, 10, 0) for known in ([], self.scorer.item_keys[:1])]
        self.answer(queries)
        for query in queries:
            self.fallback(query)

    def user_query(
        self, user: str, count: int, offset: int, context: Said = NOTHING, wanted: Wanted = ANYTHING
    ) -> Query | None:
        """What to ask for a user; None for a user nobody has seen. ``context``: as for `session_query`."""
        history = self.histories.history(user)
        if history is None:
            return None
        return replace(self.history_query(history, count, offset, context, wanted=wanted), who=user)

    def session_query(
        self,
        items: Sequence[str],
        count: int,
        offset: int,
        times: Sequence[int] | None = None,
        user: Said = NOTHING,
        context: Said = NOTHING,
        wanted: Wanted = ANYTHING,
    ) -> Query:
        """What to ask for a session, given as item keys; keys the model does not know are passed over.

        Args:
            items: Oldest first.
            count: How many items to recommend.
            offset: How many of the best to pass over.
            times: Seconds since the epoch of each of ``items``; None where they are not known.
            user: What is said of who asks, by column of the user table.
            context: What is said of the moment, by column of the log.
            wanted: Which items may be recommended.

        Raises:
            FeatureError: The model does not read what is said.
        """
        known = None if times is None else np.asarray(times, np.int64)[self.scorer.known(items)]
        return self.history_query(History(self.scorer.rows_of(items), known), count, offset, context, user, wanted)

    def history_query(
        self,
        history: History,
        count: int,
        offset: int,
        context: Said = NOTHING,
        user: Said = NOTHING,
        wanted: Wanted = ANYTHING,
    ) -> Query:
        """What to ask for a history; the rest as for `session_query`."""
        at, rows = moment(context, int(time.time())), history.items
        seen = rows if self.exclude_seen and wanted.only is None else rows[:0]
        return Query(
            rows,
            count,
            offset,
            self.limits(wanted, len(rows) > 0, seen),
            context=Context(self._times(history.times, at), history.features),
            user=self.features.read("user", user, at),
            moment=self.features.read("context", context, at),
            at=at,
            others=history.others,
            wanted=wanted,
        )

    def _times(self, times: np.ndarray | None, at: int) -> np.ndarray | None:
        """The times of as much of a history as is read, and of the request."""
        if times is None:
            return None
        # Clocks differ: an event from the future was just now.
        return np.append(np.minimum(times[-self.scorer.max_length :], at), at)

    def limits(self, wanted: Wanted, known: bool, but: np.ndarray = NO_ROWS) -> Limits:
        """Which items may be recommended, by the rows of the scorer that answers who has a history, or who has none.

        Args:
            wanted: What is asked for.
            known: Whether there is a history.
            but: ``[n]`` int64 rows that may not.
        """
        scorer = self.scorer if known else self.popular
        excluded = np.concatenate([but, scorer.rows_of(wanted.exclude)]) if wanted.exclude else but
        return Limits(self._outside.offered(scorer, wanted), excluded)

    def answer(self, queries: Sequence[Query]) -> list[Answer]:
        """Answer several requests in one pass of each model."""
        return [self._answer(found) for found in self.ranked(queries)]

    def fallback(self, query: Query) -> Answer:
        """Popular items, marked, without asking a model: for a request that cannot wait, or whose model fails."""
        known = len(query.history) > 0
        rows = query.limits.among(self._most_popular[known])
        chosen = rows[query.offset : query.offset + query.count]
        scorer = self.scorer if known else self.popular
        found = self._answer(Ranked.by_rows(POPULAR, scorer, chosen, np.zeros(len(chosen), np.float32)))
        return replace(found, degraded=True)

    @cached_property
    def _most_popular(self) -> Mapping[bool, np.ndarray]:
        """Rows of what most users had, of the model, and of who has no history."""
        most = self.popular.top([np.zeros(0, np.int64)], MOST_POPULAR)[0][0]
        keys = [self.popular.item_keys[row - 1] for row in most if row]
        return {True: self.scorer.rows_of(keys), False: self.popular.rows_of(keys)}

    def ranked(self, queries: Sequence[Query]) -> list[Ranked]:
        """The same, as keys."""
        answers: list[Ranked | None] = [None] * len(queries)
        alike: dict[tuple[str, Funnel | None], list[int]] = {}
        for place, query in enumerate(queries):
            # Candidates of the client's own are ranked as they are.
            funnel = None if query.wanted.only is not None else self._funnel
            alike.setdefault((MODEL if len(query.history) else POPULAR, funnel), []).append(place)
        for (source, funnel), places in alike.items():
            for place, found in zip(places, self._ranked(source, funnel, [queries[p] for p in places]), strict=True):
                answers[place] = found
        return [answer for answer in answers if answer is not None]

    def _ranked(self, source: str, funnel: Funnel | None, queries: Sequence[Query]) -> list[Ranked]:
        scorer = self.scorer if source == MODEL else self.popular
        if funnel is not None:
            with stage("score"):
                found = self._scores(scorer, queries)
            with stage("arrange"):
                return funnel.ranked(source, found, queries)
        with stage("score"):
            rows, scores = self._scores(scorer, queries).best(max(query.offset + query.count for query in queries))
        asked = [slice(query.offset, query.offset + query.count) for query in queries]
        return [
            Ranked.by_rows(source, scorer, mine[part], values[part])
            for mine, values, part in zip(rows, scores, asked, strict=True)
        ]

    def _scores(self, scorer: Scorer, queries: Sequence[Query]) -> Scores:
        histories, limits = [query.history for query in queries], [query.limits for query in queries]
        return scorer.scores(histories, self._contexts(queries), limits)

    def _contexts(self, queries: Sequence[Query]) -> list[Context]:
        """What is known of each request besides its history, encoded."""
        users = self.features.encode("user", [query.user for query in queries])
        moments = self.features.encode("context", [query.moment for query in queries])
        return [
            replace(query.context, user=query.context.user if user is None else user, context=moment)
            for query, user, moment in zip(queries, users, moments, strict=True)
        ]

    def latest(self, count: int, offset: int, wanted: Wanted) -> Answer:
        """The newest items, with when they came, in seconds since the epoch, as scores."""
        found = (
            item
            for item in self.catalog.newest()
            if item.item not in wanted.exclude and item.is_within(wanted.categories, wanted.labels)
        )
        chosen = islice(found, offset, offset + count)
        return Answer([ScoredItem(item, (item.timestamp or 0) / 1000) for item in chosen], LATEST)

    def similar(self, keys: Sequence[str], count: int, wanted: Wanted = ANYTHING) -> Answer:
        """Items like some others, by the model; popular ones, marked, where it knows none, or is popularity itself.

        Raises:
            UnknownItemError: No item has one of these keys.
        """
        for key in keys:
            self.item(key)
        rows = self.scorer.rows_of(keys)
        if len(rows) and self.scorer.kind != POPULARITY:
            return self._answer(Ranked.by_rows(MODEL, self.scorer, *self._nearest(rows, count, wanted)))
        limits = self.limits(wanted, False, self.popular.rows_of(keys))
        return self.answer([Query(NO_ROWS, count, 0, limits, Context())])[0]

    def _nearest(self, rows: np.ndarray, count: int, wanted: Wanted) -> tuple[np.ndarray, np.ndarray]:
        """Items nearest by their vectors; of a model without any, what it recommends to who had just these."""
        limits = self.limits(wanted, True, rows)
        found = self.scorer.similar(rows, count, limits)
        if found is not None:
            return found
        best, scores = self.scorer.scores([rows], None, [limits]).best(count)
        return best[0], scores[0]

    def because(self, query: Query, key: str) -> list[ScoredItem]:
        """What of a history speaks most for an item: the nearest by the model's vectors, with their cosines."""
        row = self.scorer.rows.get(key)
        if row is None or not len(query.history):
            return []
        offered = self.limits(ANYTHING, True).among(np.unique(query.history[-MOST_EXPLAINING:]))
        near = self.scorer.nearest(row, offered, EXPLAINING) if len(offered) else []
        keys = [(self.scorer.item_keys[had - 1], cosine) for had, cosine in near]
        return [ScoredItem(self.catalog.item(had) or Item(had), cosine) for had, cosine in keys]

    def item(self, key: str) -> Item:
        """An item of the catalogue.

        Raises:
            UnknownItemError: No item has this key.
        """
        found = self.catalog.item(key)
        if found is None:
            raise UnknownItemError(f"no item '{key}' is in the catalogue.")
        return found

    def _answer(self, found: Ranked) -> Answer:
        """With the entries of the catalogue."""
        each = zip(found.keys, found.scores.tolist(), found.propensities, found.paths, strict=True)
        return Answer([ScoredItem(self.catalog.item(key) or Item(key), *rest) for key, *rest in each], found.source)


def histories_of(release: Release) -> DatasetHistories:
    """What the users of a Release's Dataset did, held-out events included, by the item rows of its model."""
    content, bundle = release.content, release.bundle("main")
    dataset = open_dataset(release.storage, content["dataset"]["name"], content["dataset"]["manifest"])
    users = everyones_features(dataset, content["dataset"]["view"]) if "user" in bundle.widths else None
    return DatasetHistories(load_histories(dataset, bundle.item_keys, content["event_types"]), users)
