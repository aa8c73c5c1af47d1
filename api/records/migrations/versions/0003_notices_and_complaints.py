"""Webhooks have deliveries; anybody may complain; operators sign for what a check left open."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

STATES = "state in ('queued', 'running', 'succeeded', 'failed', 'cancelled')"


def upgrade() -> None:
    """To this revision."""
    with op.batch_alter_table("runs") as table:
        table.add_column(sa.Column("sign_off", sa.String(length=16), nullable=True))
        table.add_column(sa.Column("sign_off_reason", sa.LargeBinary(), nullable=True))
        table.create_check_constraint(op.f("ck_runs_sign_off"), "sign_off in ('open', 'given')")
    op.create_table(
        "webhook_deliveries",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("user_id", sa.String(length=32), nullable=False),
        sa.Column("webhook_id", sa.String(length=32), nullable=False),
        sa.Column("event", sa.String(length=32), nullable=False),
        sa.Column("object_id", sa.String(length=32), nullable=False),
        sa.Column("outcome", sa.String(length=16), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
        sa.Column("finished_ms", sa.BigInteger(), nullable=True),
        sa.CheckConstraint(STATES, name=op.f("ck_webhook_deliveries_state")),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("fk_webhook_deliveries_user_id_users"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["webhook_id"], ["webhooks.id"], name=op.f("fk_webhook_deliveries_webhook_id_webhooks"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_webhook_deliveries")),
    )
    for column in ("user_id", "webhook_id"):
        op.create_index(op.f(f"ix_webhook_deliveries_{column}"), "webhook_deliveries", [column])
    op.create_table(
        "complaints",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("reason", sa.String(length=16), nullable=False),
        sa.Column("about", sa.String(length=64), nullable=True),
        sa.Column("details", sa.LargeBinary(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
        sa.Column("closed_ms", sa.BigInteger(), nullable=True),
        sa.CheckConstraint("state in ('open', 'removed', 'dismissed')", name=op.f("ck_complaints_state")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_complaints")),
    )
    op.create_index(op.f("ix_complaints_created_ms"), "complaints", ["created_ms"])


def downgrade() -> None:
    """Back to the revision before."""
    op.drop_table("complaints")
    op.drop_table("webhook_deliveries")
    with op.batch_alter_table("runs") as table:
        table.drop_constraint(op.f("ck_runs_sign_off"), type_="check")
        table.drop_column("sign_off_reason")
        table.drop_column("sign_off")
