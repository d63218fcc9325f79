"""What was recommended, who is to be forgotten, and single events that were."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "impressions",
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
        sqlite_autoincrement=True,
    )
    op.create_index("impressions_of_users", "impressions", ["user", "position"])
    op.create_index("impressions_of_requests", "impressions", ["request_id"])
    op.create_table(
        "erasures",
        sa.Column("position", NUMBER, primary_key=True),
        sa.Column("erasure_id", sa.Text, nullable=False, unique=True),
        sa.Column("user", sa.Text),
        sa.Column("fingerprint", sa.Text, nullable=False),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("asked", sa.BigInteger, nullable=False),
        sa.Column("removed", sa.JSON, nullable=False),
        sa.Column("datasets", sa.JSON, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("erasures_by_time", "erasures", ["asked"])
    op.create_table("removed_events", sa.Column("fingerprint", sa.Text, primary_key=True))
