"""The tables, as `migrations/` makes them."""

from __future__ import annotations

import sqlalchemy as sa

METADATA = sa.MetaData()

# SQLite numbers rows by itself only where the type is exactly INTEGER.
NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

EVENTS = sa.Table(
    "events",
    METADATA,
    sa.Column("position", NUMBER, primary_key=True),
    sa.Column("event_id", sa.Text, nullable=False, unique=True),
    sa.Column("user", sa.Text, nullable=False),
    sa.Column("item", sa.Text, nullable=False),
    sa.Column("type", sa.Text, nullable=False),
    sa.Column("value", sa.Double),
    sa.Column("timestamp", sa.BigInteger, nullable=False),
    sa.Column("context", sa.JSON(none_as_null=True)),
    sa.Column("comment", sa.Text, nullable=False, server_default=""),
    sa.Column("replaces", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Index("events_of_users", "user", "timestamp", "position"),
    sa.Index("events_of_items", "item", "timestamp", "position"),
    sa.Index("events_of_late", "timestamp", "item", "user"),
    sqlite_autoincrement=True,
)
"""The log. ``position`` is the order in which events came, ``timestamp`` (milliseconds since the epoch) when they were.

``replaces``: in what Gorse calls feedback, a user's events of a type on an item taken together, it takes the place of
the events before it instead of being added to them.
"""

ITEMS = sa.Table(
    "items",
    METADATA,
    sa.Column("item", sa.Text, primary_key=True),
    sa.Column("title", sa.Text),
    sa.Column("categories", sa.JSON, nullable=False),
    sa.Column("labels", sa.JSON(none_as_null=True)),
    sa.Column("timestamp", sa.BigInteger),
    sa.Column("hidden", sa.Boolean, nullable=False),
    sa.Column("comment", sa.Text, nullable=False),
)
"""The catalogue."""

USERS = sa.Table(
    "users",
    METADATA,
    sa.Column("user", sa.Text, primary_key=True),
    sa.Column("labels", sa.JSON(none_as_null=True)),
    sa.Column("comment", sa.Text, nullable=False),
)
"""Users that were told of; others are known by their events only."""

CHANGES = sa.Table(
    "changes",
    METADATA,
    sa.Column("position", NUMBER, primary_key=True),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("key", sa.Text),
    sa.Column("at", sa.BigInteger, nullable=False),
    sqlite_autoincrement=True,
)
"""What replicas must read anew, besides the histories of new events: an ``item`` or a ``user``; without a key, all.

It is forgotten after a few minutes (`rayrec.serving.store.follower`): users who were erased stand here, too.
"""

FILLED = sa.Table(
    "filled",
    METADATA,
    sa.Column("dataset", sa.Text, primary_key=True),
    sa.Column("part", sa.Text, primary_key=True),
)
"""The parts of Datasets that have been taken in."""

KEYS = sa.Table(
    "api_keys",
    METADATA,
    sa.Column("key_id", sa.Text, primary_key=True),
    sa.Column("hash", sa.Text, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("scopes", sa.JSON, nullable=False),
    sa.Column("rate", sa.Integer),
    sa.Column("created", sa.BigInteger, nullable=False),
    sa.Column("revoked", sa.BigInteger),
)
"""See `rayrec.serving.store.keys.Key`; ``hash`` is SHA-256 of the key's text."""

AUDIT = sa.Table(
    "audit",
    METADATA,
    sa.Column("position", NUMBER, primary_key=True),
    sa.Column("at", sa.BigInteger, nullable=False),
    sa.Column("actor", sa.Text, nullable=False),
    sa.Column("action", sa.Text, nullable=False),
    sa.Column("subject", sa.Text, nullable=False),
    sqlite_autoincrement=True,
)
"""Who did what that cannot be undone. The ``subject`` of an erasure is a fingerprint: the user is to be forgotten."""

IMPRESSIONS = sa.Table(
    "impressions",
    METADATA,
    sa.Column("position", NUMBER, primary_key=True),
    sa.Column("request_id", sa.Text, nullable=False),
    sa.Column("user", sa.Text),
    sa.Column("at", sa.BigInteger, nullable=False),
    sa.Column("release", sa.Text, nullable=False),
    sa.Column("source", sa.Text, nullable=False),
    sa.Column("first", sa.Integer, nullable=False),
    sa.Column("items", sa.JSON, nullable=False),
    sa.Column("scores", sa.JSON, nullable=False),
    sa.Column("propensities", sa.JSON, nullable=False),
    sa.Index("impressions_of_users", "user", "position"),
    sa.Index("impressions_of_requests", "request_id"),
    sqlite_autoincrement=True,
)
"""See `rayrec.serving.state.Impression`: a row for each answer."""

ERASURES = sa.Table(
    "erasures",
    METADATA,
    sa.Column("position", NUMBER, primary_key=True),
    sa.Column("erasure_id", sa.Text, nullable=False, unique=True),
    sa.Column("user", sa.Text),
    sa.Column("fingerprint", sa.Text, nullable=False),
    sa.Column("actor", sa.Text, nullable=False),
    sa.Column("asked", sa.BigInteger, nullable=False),
    sa.Column("removed", sa.JSON, nullable=False),
    sa.Column("datasets", sa.JSON, nullable=False),
    sa.Index("erasures_by_time", "asked"),
    sqlite_autoincrement=True,
)
"""See `rayrec.serving.store.erasures.Erasure`. ``user`` is there for as long as a Dataset may have them."""

REMOVED_EVENTS = sa.Table("removed_events", METADATA, sa.Column("fingerprint", sa.Text, primary_key=True))
"""Single events that were removed: Datasets have them still."""

SALT = sa.Table("salt", METADATA, sa.Column("value", sa.LargeBinary, primary_key=True))
"""One row: what fingerprints of erased users are made with, so that nobody can look them up elsewhere."""
