"""Alembic's entry: migrates the database whose URL it is given, or that of the settings."""

from __future__ import annotations

from alembic import context

from api.records.database import open_engine
from api.records.tables import Base
from api.settings import get_api_settings

engine = open_engine(context.config.attributes.get("url") or get_api_settings().records_url)
with engine.connect() as connection:
    context.configure(connection, target_metadata=Base.metadata, render_as_batch=True, transaction_per_migration=True)
    with context.begin_transaction():
        context.run_migrations()
    connection.commit()
engine.dispose()
