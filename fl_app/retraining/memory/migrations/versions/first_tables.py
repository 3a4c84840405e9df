# SPDX-License-Identifier: Apache-2.0
"""The first form: requests, idempotency keys and notes.

Files of 0.1 have these tables and no version, so that each is created only where it is missing.
"""

import sqlalchemy as sa
from alembic import op

revision, down_revision = "0001", None
WAITING = sa.text("outcome IN ('pending', 'running')")


def upgrade() -> None:
    """Create the tables that are not there."""
    op.create_table(
        "requests",
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("model", sa.String(255), nullable=False),
        sa.Column("id", sa.String(32), unique=True, nullable=False),
        sa.Column("kind", sa.String(20), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("created", sa.String(40), nullable=False),
        sa.Column("outcome", sa.String(20), nullable=False),
        sa.Column("why", sa.Text, nullable=False),
        sa.Column("started", sa.String(40)),
        sa.Column("ended", sa.String(40)),
        if_not_exists=True,
    )
    op.create_index(
        "one_pending_one_running",
        "requests",
        ["model", "outcome"],
        unique=True,
        sqlite_where=WAITING,
        postgresql_where=WAITING,
        if_not_exists=True,
    )
    op.create_table(
        "idempotency_keys",
        sa.Column("model", sa.String(255), primary_key=True),
        sa.Column("key", sa.String(255), primary_key=True),
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("owner", sa.String(32), nullable=False),
        sa.Column("created", sa.Float(53), nullable=False),
        sa.Column("status", sa.Integer),
        sa.Column("body", sa.Text, nullable=False),
        if_not_exists=True,
    )
    op.create_index(
        "ix_idempotency_keys_created", "idempotency_keys", ["created"], if_not_exists=True
    )
    op.create_table(
        "notes",
        sa.Column("model", sa.String(255), primary_key=True),
        sa.Column("name", sa.String(80), primary_key=True),
        sa.Column("revision", sa.Integer, nullable=False),
        sa.Column("value", sa.Text, nullable=False),
        if_not_exists=True,
    )
