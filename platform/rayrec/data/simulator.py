"""A seeded simulator of interaction logs, for trying the platform where no dataset may be used or downloaded.

The logs have the properties that recommenders live on: few items take most events, users have lasting tastes over
topics, and inside a session the next item depends on the previous one while the topic drifts. Users join and items are
released over the year, so there are cold starts too. It is no model of any real shop: results on it say that the
machinery works, not how good a model is.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv as pa_csv

from rayrec.errors import DataError

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

BEGIN = 1_704_067_200
"""Epoch second at which the simulated year begins: 2024-01-01 00:00 UTC."""

_YEAR = 365 * 24 * 3600
# Wider than any offset into the simulated time, so that topic * _STRIDE + offset sorts by topic first.
_STRIDE = 1 << 34

_ZIPF_EXPONENT = 0.75
_LAUNCH_SHARE = 0.5
_ITEMS_PER_TOPIC = 10
_TASTE_SPREAD = 6.0
_ACTIVITY_SIGMA = 0.8
_MEAN_SESSION = 6.0
_LONGEST_SESSION = 30
_MEAN_PAUSE_SECONDS = 90.0
_FOLLOW = 0.5
_STAY = 0.4
_SUCCESSORS = 8
_SUCCESSOR_DECAY = 0.35
_EVENT_TYPES = ("view", "like", "purchase")
_EVENT_TYPE_CHANCES = (0.85, 0.1, 0.05)

_TOPICS = (
    "Adventure Animals Astronomy Biography Comedy Cooking Crime Drama Family Fantasy Gardening History "
    "Horror Music Mystery Nature Romance Sports Thriller Travel"
)
_ADJECTIVES = (
    "Amber Ancient Borrowed Bright Broken Copper Crimson Distant Electric Endless Fallen Forgotten Frozen Gentle "
    "Golden Hidden Hollow Last Little Lonely Midnight Paper Patient Quiet Restless Scarlet Second Silent Silver"
)
_NOUNS = (
    "Atlas Bridge Candle Carnival Clockmaker Compass Crossing Garden Ghost Harbour Harvest House Island Journey "
    "Kingdom Lantern Letter Lighthouse Mirror Mountain Orchard Painter Promise River Sailor Season Secret Shadow"
)
_PLACES = (
    "Alderbrook Ashmoor Belhaven Brindle Calder Corvane Dunmere Eastwold Elmsley Fenwick Galloway Glimmer Hallow "
    "Inverell Juniper Kestrel Larkspur Marrow Northgate Oakhurst Pemberly Quillon Ravenna Saltmarsh Thornbury Umber"
)


@dataclass(frozen=True)
class Simulation:
    """Simulated logs.

    Attributes:
        events: ``user_id`` (string), ``item_id`` (string), ``timestamp`` (int64, epoch seconds, UTC), ``event_type``
            (string: view, like or purchase), in order of time. No user has two events in the same second.
        items: ``item_id``, ``title``, ``categories`` (strings, joined with ``|``), ``released`` (int64, epoch seconds).
        parameters: the arguments of ``simulate``.
    """

    events: pa.Table
    items: pa.Table
    parameters: dict[str, int]


@dataclass(frozen=True)
class _Catalogue:
    """Items by number, and an index of them ordered by topic, then release."""

    topic: Ints
    released: Ints
    order: Ints
    keys: Ints
    mass: Floats
    first: Ints

    def draw(self, topic: Ints, when: Ints, rng: np.random.Generator) -> Ints:
        """One item for each topic, by popularity among those of the topic released by then.

        Every topic has an item from the beginning, so the range to draw from is never empty.
        """
        low = self.first[topic]
        high = np.searchsorted(self.keys, topic * _STRIDE + (when - BEGIN), side="right")
        target = self.mass[low] + rng.random(len(topic)) * (self.mass[high] - self.mass[low])
        position = np.searchsorted(self.mass, target, side="right") - 1
        return self.order[np.clip(position, low, high - 1)]


@dataclass(frozen=True)
class _Visits:
    """Sessions laid end to end, ordered by user and start: ``starts[s]`` is the first event of session ``s``."""

    user: Ints
    starts: Ints
    lengths: Ints
    when: Ints


def simulate(users: int, items: int, events: int, seed: int) -> Simulation:
    """Simulate one year of logs, beginning 2024-01-01 UTC.

    Equal arguments give equal tables (for the same numpy release, which may change its random streams).

    Args:
        users: number of users; all of them occur where events are plenty (a session is about 6).
        items: number of items in the catalogue; unpopular ones may have no event.
        events: exact number of events.
        seed: zero or more.

    Returns:
        The tables; about one second and 150 MB of memory for each million events.

    Raises:
        DataError: a count is below 1 or the seed is negative.
    """
    parameters = {"users": users, "items": items, "events": events, "seed": seed}
    for name, value in parameters.items():
        least = 0 if name == "seed" else 1
        if value < least:
            raise DataError(f"Simulation parameter {name} is {value}; use {least} or more.")
    rng = np.random.default_rng(seed)
    catalogue = _catalogue(items, rng)
    tastes = _tastes(users, catalogue, rng)
    visits = _visits(users, events, rng)
    chosen = _choose_items(catalogue, tastes, visits, rng)
    logs = _event_table(users, items, visits, chosen, rng)
    return Simulation(logs, _item_table(catalogue, rng), parameters)


def write(simulation: Simulation, folder: Path) -> None:
    """Write ``events.csv``, ``items.csv`` and the notice ``SIMULATED.txt``; equal simulations give equal bytes.

    Raises:
        DataError: the folder cannot be written.
    """
    described = ", ".join(f"{name}={value}" for name, value in simulation.parameters.items())
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # The notice goes first: an interrupted call must not leave simulated logs that pass for real ones.
        (folder / "SIMULATED.txt").write_text(f"Simulated data, not real logs: {described}\n", encoding="utf-8")
        pa_csv.write_csv(simulation.items, folder / "items.csv")
        pa_csv.write_csv(simulation.events, folder / "events.csv")
    except OSError as error:
        message = f"Cannot write the simulation to {folder}: {error}. Choose a writable folder with free space."
        raise DataError(message) from error


def _catalogue(items: int, rng: np.random.Generator) -> _Catalogue:
    topics = max(1, min(len(_TOPICS.split()), items // _ITEMS_PER_TOPIC))
    topic = rng.permutation(np.arange(items) % topics)
    offset = rng.integers(_YEAR, size=items) * (rng.random(items) >= _LAUNCH_SHARE)
    offset[np.unique(topic, return_index=True)[1]] = 0
    popularity = (1.0 + rng.permutation(items)) ** -_ZIPF_EXPONENT
    order = np.lexsort((offset, topic))
    return _Catalogue(
        topic=topic,
        released=BEGIN + offset,
        order=order,
        keys=(topic * _STRIDE + offset)[order],
        mass=np.concatenate([[0.0], np.cumsum(popularity[order])]),
        first=np.searchsorted(topic[order], np.arange(topics)),
    )


def _tastes(users: int, catalogue: _Catalogue, rng: np.random.Generator) -> Floats:
    """Cumulative chances of the topics for each user: Dirichlet around the popularity of the topics' items."""
    share = np.diff(catalogue.mass[np.append(catalogue.first, len(catalogue.order))]) / catalogue.mass[-1]
    # The added share keeps the row above zero where every gamma variate of a user underflows.
    weights = rng.standard_gamma(_TASTE_SPREAD * share, size=(users, len(share))) + 1e-6 * share
    cumulative = np.cumsum(weights, axis=1)
    return np.asarray(cumulative / cumulative[:, -1:])


def _visits(users: int, events: int, rng: np.random.Generator) -> _Visits:
    lengths = np.minimum(rng.geometric(1 / _MEAN_SESSION, size=events), _LONGEST_SESSION)
    ends = np.cumsum(lengths)
    sessions = int(np.searchsorted(ends, events)) + 1
    lengths = lengths[:sessions]
    lengths[-1] -= ends[sessions - 1] - events
    user, begin = _arrivals(users, sessions, rng)
    order = np.lexsort((begin, user))
    user, begin, lengths = user[order], begin[order], lengths[order]
    starts = np.cumsum(lengths) - lengths
    pauses = np.cumsum(1 + rng.exponential(_MEAN_PAUSE_SECONDS, size=events).astype(np.int64))
    when = np.repeat(begin - pauses[starts], lengths) + pauses
    return _Visits(user, starts, lengths, _strictly_later(when, np.repeat(user, lengths)))


def _arrivals(users: int, sessions: int, rng: np.random.Generator) -> tuple[Ints, Ints]:
    """Who comes when. The square root lets the base grow: three quarters join in the second half of the year."""
    joined = np.sqrt(rng.random(users))
    weight = np.cumsum(rng.lognormal(sigma=_ACTIVITY_SIGMA, size=users) * (1 - joined))
    first = rng.permutation(users)[:sessions]
    later = np.searchsorted(weight, rng.random(sessions - len(first)) * weight[-1], side="right")
    user = np.concatenate([first, np.minimum(later, users - 1)])
    waited = np.concatenate([np.zeros(len(first)), rng.random(len(later))])
    begin = joined[user] + waited * (1 - joined[user])
    return user, BEGIN + (begin * _YEAR).astype(np.int64)


def _strictly_later(when: Ints, user: Ints) -> Ints:
    """Push events that overlap the user's previous session to just after it, so each user's order is unambiguous."""
    steps = np.arange(len(when))
    floor = user * _STRIDE - steps
    return np.asarray(np.maximum.accumulate(when - BEGIN + floor) - floor + BEGIN)


def _choose_items(catalogue: _Catalogue, tastes: Floats, visits: _Visits, rng: np.random.Generator) -> Ints:
    """Walk all sessions in step: the loop runs over positions in a session, each vectorised over the sessions."""
    successors = _successors(catalogue, rng)
    chosen = np.empty(len(visits.when), dtype=np.int64)
    topic = _pick_topics(tastes, visits.user, rng)
    chosen[visits.starts] = catalogue.draw(topic, visits.when[visits.starts], rng)
    for step in range(1, int(visits.lengths.max())):
        alive = np.flatnonzero(visits.lengths > step)
        place = visits.starts[alive] + step
        move = rng.random(len(alive))
        drifts = move >= _FOLLOW + _STAY
        topic[alive[drifts]] = _pick_topics(tastes, visits.user[alive[drifts]], rng)
        slot = np.minimum(rng.geometric(_SUCCESSOR_DECAY, size=len(alive)), _SUCCESSORS) - 1
        previous = chosen[place - 1]
        following = successors[previous, slot]
        when = visits.when[place]
        follows = (move < _FOLLOW) & (following != previous) & (catalogue.released[following] <= when)
        chosen[place] = np.where(follows, following, catalogue.draw(topic[alive], when, rng))
    return chosen


def _successors(catalogue: _Catalogue, rng: np.random.Generator) -> Ints:
    """For each item, the items of its topic that tend to follow it, likeliest first; popular ones follow more items."""
    whenever = np.full(len(catalogue.topic), BEGIN + _YEAR)
    return np.stack([catalogue.draw(catalogue.topic, whenever, rng) for _ in range(_SUCCESSORS)], axis=1)


def _pick_topics(tastes: Floats, user: Ints, rng: np.random.Generator) -> Ints:
    chance = rng.random((len(user), 1))
    return np.asarray((tastes[user] <= chance).sum(axis=1))


def _names(prefix: str, count: int) -> pa.Array:
    width = len(str(count))
    return pa.array([f"{prefix}{number:0{width}d}" for number in range(1, count + 1)], pa.string())


def _event_table(users: int, items: int, visits: _Visits, chosen: Ints, rng: np.random.Generator) -> pa.Table:
    user = np.repeat(visits.user, visits.lengths)
    order = np.lexsort((user, visits.when))
    kind = np.searchsorted(np.cumsum(_EVENT_TYPE_CHANCES)[:-1], rng.random(len(order)), side="right")
    columns = {
        "user_id": _names("u", users).take(pa.array(user[order])),
        "item_id": _names("i", items).take(pa.array(chosen[order])),
        "timestamp": pa.array(visits.when[order]),
        "event_type": pa.array(_EVENT_TYPES).take(pa.array(kind)),
    }
    return pa.table(columns)


def _item_table(catalogue: _Catalogue, rng: np.random.Generator) -> pa.Table:
    """Some items carry a second category, which only decorates: sessions know the first."""
    names = _TOPICS.split()
    count = len(catalogue.topic)
    other = (catalogue.topic + rng.integers(1, len(names), size=count)) % len(names)
    second = np.where(rng.random(count) < 1 / 3, other, -1)
    pairs = zip(catalogue.topic.tolist(), second.tolist(), strict=True)
    columns = {
        "item_id": _names("i", count),
        "title": pa.array(_titles(count, rng)),
        "categories": pa.array([names[a] if b < 0 else f"{names[a]}|{names[b]}" for a, b in pairs]),
        "released": pa.array(catalogue.released),
    }
    return pa.table(columns)


def _titles(count: int, rng: np.random.Generator) -> list[str]:
    """Invented and all different: a catalogue with more items than combinations of words gets sequels."""
    combinations = list(itertools.product(_ADJECTIVES.split(), _NOUNS.split(), _PLACES.split()))
    shuffled = rng.permutation(len(combinations)).tolist()
    found = []
    for number in range(count):
        part, place = divmod(number, len(combinations))
        adjective, noun, where = combinations[shuffled[place]]
        sequel = f", Part {part + 1}" if part else ""
        found.append(f"The {adjective} {noun} of {where}{sequel}")
    return found
