"""The inventory names everything that is kept: a new table, column of sealed bytes, kind of object or file is a failing test."""

from __future__ import annotations

from collections import Counter

from dbos._schemas.system_database import SystemSchema
from sqlalchemy import LargeBinary, inspect

from api.ops.inventory import PAGE, inventory, page
from api.privacy.consents import terms_documents
from api.privacy.export import OMITTED_COLUMNS, SEALED_COLUMNS, TABLES
from api.records.tables import Base
from api.settings import RetentionPeriods
from photoflux.vault.objects import KINDS
from tests.api.people import Person, Site
from tests.api.routes.test_generations import ask, finish

OTHERS = ("alembic_version", "dbos_migrations")


def test_every_table_is_in_one_activity(site: Site):
    named = Counter(table for one in inventory().activities for table in one.tables)
    assert set(named) == set(Base.metadata.tables)
    assert set(named.values()) == {1}
    there = inspect(site.service.records.engine)
    names = {
        table
        for schema in there.get_schema_names()
        if not schema.startswith(("pg_", "information", "dbos"))
        for table in there.get_table_names(schema)
    }
    library = {table.name for table in SystemSchema.metadata_obj.tables.values()}
    assert names - set(named) - set(OTHERS) <= library, (
        "a table that neither the records nor the library of durable work has"
    )
    assert sum(one.library_tables for one in inventory().activities) == 1


def test_every_column_of_sealed_bytes_is_named():
    bytes_there = {
        f"{table.name}.{column.name}"
        for table in Base.metadata.tables.values()
        for column in table.columns
        if isinstance(column.type, LargeBinary)
    }
    assert {name for one in inventory().activities for name in one.sealed} == bytes_there


def test_a_sealed_column_is_in_the_export_or_says_nothing_to_a_person():
    shown = {f"{kind.__tablename__}.{column}" for kind, column in SEALED_COLUMNS}
    for one in inventory().activities:
        for name in one.sealed:
            table, column = name.split(".")
            personal = "user_id" in Base.metadata.tables[table].columns or table == "users"
            assert not personal or name in shown or column in (*OMITTED_COLUMNS, "response"), name


def test_an_export_has_every_table_with_rows_of_a_person():
    mine = {name for name, table in Base.metadata.tables.items() if "user_id" in table.columns}
    shown = {kind.__tablename__ for kind in TABLES}
    assert mine - shown == {"exports", "idempotency_keys", "tombstones"}, (
        "exports of exports, copies of answers, and proofs"
    )


def test_every_kind_of_object_is_in_one_activity():
    named = Counter(kind for one in inventory().activities for kind in one.objects)
    assert named == Counter(KINDS)


def test_every_file_that_the_service_writes_is_named(site: Site, ada: Person):
    result = ask(ada, ada.subject_with_photos(5))["id"]
    finish(site, ada, result)
    state = site.folder / "state"
    files = [file.relative_to(state).as_posix() for file in state.rglob("*") if file.is_file()]
    assert files or site.service.records.engine.dialect.name == "postgresql", "in the cloud nothing is written here"
    assert [name for name in files if not inventory().holds_file(name)] == []
    assert not inventory().holds_file("elsewhere/secret.txt")


def test_the_page_is_what_the_inventory_says():
    assert PAGE.read_text(encoding="utf-8") == page(RetentionPeriods()), "run: python -m api.ops.inventory"
    assert f"{RetentionPeriods().photos} days" in page(RetentionPeriods())
    assert "12 days after the subject" in page(RetentionPeriods(photos=12))


def test_the_notice_and_the_settings_say_the_same_times():
    text = " ".join(terms_documents()["privacy"].text.split())
    retention = RetentionPeriods()
    assert f"Photos {retention.photos} days after" in text
    assert f"models {retention.models} days after" in text
    assert f"{retention.runs} days" in text
    assert retention.images == 0
    assert "pictures until you delete them" in text
