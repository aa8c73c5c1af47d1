"""Workers have leases, objects are named by attempt, what was started is counted, failures have a code, the log is keyed."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

WITH_CODES = ("runs", "generations", "exports")


def upgrade() -> None:
    """To this revision."""
    op.create_table(
        "workers",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("started_ms", sa.BigInteger(), nullable=False),
        sa.Column("beat_ms", sa.BigInteger(), nullable=False),
        sa.Column("dead_ms", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_workers")),
    )
    op.create_table(
        "usage",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("user_id", sa.String(length=32), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_usage_user_id_users"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_usage")),
    )
    op.create_index(op.f("ix_usage_user_id_kind_created_ms"), "usage", ["user_id", "kind", "created_ms"])
    op.create_index(op.f("ix_login_flows_expires_ms"), "login_flows", ["expires_ms"])
    for name in WITH_CODES:
        with op.batch_alter_table(name) as table:
            table.add_column(sa.Column("error_code", sa.String(length=32), nullable=True))
            if name == "exports":
                table.add_column(sa.Column("error", sa.String(length=500), nullable=True))
                table.add_column(sa.Column("object_id", sa.String(length=96), nullable=True))
    for name in WITH_CODES[:2]:
        op.execute(f"update {name} set error_code = state where error is not null")
    op.execute("update exports set object_id = id where state = 'succeeded'")
    with op.batch_alter_table("images") as table:
        table.add_column(sa.Column("object_id", sa.String(length=128), nullable=True))
    op.execute("update images set object_id = generation_id || '.' || position")
    with op.batch_alter_table("images") as table:
        table.alter_column("object_id", existing_type=sa.String(length=128), nullable=False)
    with op.batch_alter_table("models") as table:
        table.add_column(sa.Column("stored_bytes", sa.BigInteger(), nullable=False, server_default="0"))
    with op.batch_alter_table("complaints") as table:
        table.add_column(sa.Column("request_key", sa.String(length=64), nullable=True))
        table.add_column(sa.Column("request", sa.String(length=64), nullable=True))
        table.create_unique_constraint(op.f("uq_complaints_request_key"), ["request_key"])
    with op.batch_alter_table("audit_log") as table:
        table.add_column(sa.Column("scheme", sa.BigInteger(), nullable=False, server_default="1"))


def downgrade() -> None:
    """Back to the revision before."""
    with op.batch_alter_table("audit_log") as table:
        table.drop_column("scheme")
    with op.batch_alter_table("complaints") as table:
        table.drop_constraint(op.f("uq_complaints_request_key"), type_="unique")
        table.drop_column("request")
        table.drop_column("request_key")
    with op.batch_alter_table("models") as table:
        table.drop_column("stored_bytes")
    with op.batch_alter_table("images") as table:
        table.drop_column("object_id")
    for name in WITH_CODES:
        with op.batch_alter_table(name) as table:
            if name == "exports":
                table.drop_column("object_id")
                table.drop_column("error")
            table.drop_column("error_code")
    op.drop_index(op.f("ix_login_flows_expires_ms"), table_name="login_flows")
    op.drop_index(op.f("ix_usage_user_id_kind_created_ms"), table_name="usage")
    op.drop_table("usage")
    op.drop_table("workers")
