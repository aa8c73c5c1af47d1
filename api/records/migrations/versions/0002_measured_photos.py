"""What is measured of photos, and what is said of a set, are kept sealed; erasures have receipts and an end."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """To this revision."""
    with op.batch_alter_table("photos") as table:
        table.add_column(sa.Column("measured", sa.LargeBinary(), nullable=True))
    with op.batch_alter_table("subjects") as table:
        table.add_column(sa.Column("verdict", sa.LargeBinary(), nullable=True))

    op.drop_table("tombstones")
    op.create_table(
        "tombstones",
        sa.Column("receipt", sa.String(length=32), nullable=False),
        sa.Column("login", sa.String(length=64), nullable=False),
        sa.Column("user_id", sa.String(length=32), nullable=False),
        sa.Column("erased_ms", sa.BigInteger(), nullable=False),
        sa.Column("done_ms", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("receipt", name=op.f("pk_tombstones")),
    )
    op.create_index(op.f("ix_tombstones_login"), "tombstones", ["login"])


def downgrade() -> None:
    """Back to the revision before."""
    op.drop_table("tombstones")
    op.create_table(
        "tombstones",
        sa.Column("login", sa.String(length=64), nullable=False),
        sa.Column("user_id", sa.String(length=32), nullable=False),
        sa.Column("erased_ms", sa.BigInteger(), nullable=False),
        sa.Column("receipt", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("login", name=op.f("pk_tombstones")),
    )
    with op.batch_alter_table("subjects") as table:
        table.drop_column("verdict")
    with op.batch_alter_table("photos") as table:
        table.drop_column("measured")
