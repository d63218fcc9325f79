"""Events, items, users, and what changed."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "events",
        sa.Column("position", NUMBER, primary_key=True),
        sa.Column("event_id", sa.Text, nullable=False, unique=True),
        sa.Column("user", sa.Text, nullable=False),
        sa.Column("item", sa.Text, nullable=False),
        sa.Column("type", sa.Text, nullable=False),
        sa.Column("value", sa.Double),
        sa.Column("timestamp", sa.BigInteger, nullable=False),
        sa.Column("context", sa.JSON),
        sa.Column("comment", sa.Text, nullable=False, server_default=""),
        sa.Column("replaces", sa.Boolean, nullable=False, server_default=sa.false()),
        sqlite_autoincrement=True,
    )
    op.create_index("events_of_users", "events", ["user", "timestamp", "position"])
    op.create_index("events_of_items", "events", ["item", "timestamp", "position"])
    op.create_index("events_of_late", "events", ["timestamp", "item", "user"])
    op.create_table(
        "items",
        sa.Column("item", sa.Text, primary_key=True),
        sa.Column("title", sa.Text),
        sa.Column("categories", sa.JSON, nullable=False),
        sa.Column("labels", sa.JSON),
        sa.Column("timestamp", sa.BigInteger),
        sa.Column("hidden", sa.Boolean, nullable=False),
        sa.Column("comment", sa.Text, nullable=False),
    )
    op.create_table(
        "users",
        sa.Column("user", sa.Text, primary_key=True),
        sa.Column("labels", sa.JSON),
        sa.Column("comment", sa.Text, nullable=False),
    )
    op.create_table(
        "changes",
        sa.Column("position", NUMBER, primary_key=True),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("key", sa.Text),
        sa.Column("at", sa.BigInteger, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "filled",
        sa.Column("dataset", sa.Text, primary_key=True),
        sa.Column("part", sa.Text, primary_key=True),
    )
