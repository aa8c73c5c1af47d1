from __future__ import annotations

import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import func, inspect, select, text
from sqlalchemy.exc import IntegrityError

from api.records import database
from api.records.database import Records, migrate, open_engine
from api.records.tables import Base, Consent, Photo, Run, Subject, User, new_id, now_ms
from photoflux.settings import sqlite_url


def add_user(records: Records, **facts: object) -> str:
    with records.writing() as session:
        user = User(login=new_id(), **facts)
        session.add(user)
    return user.id


def add_subject(records: Records, user: str) -> str:
    with records.writing() as session:
        subject = Subject(user_id=user, class_noun="dog", trigger="sks", depicts="no_person")
        session.add(subject)
    return subject.id


def run_of(user: str, subject: str, **facts: object) -> Run:
    usual = {"params": {}, "orchestrator": "local", "estimate": {}}
    return Run(user_id=user, subject_id=subject, **(usual | facts))


def test_migrations_make_what_the_models_say(database_url: str):
    migrate(database_url)
    migrate(database_url)
    with open_engine(database_url).connect() as connection:
        differences = compare_metadata(MigrationContext.configure(connection), Base.metadata)
    assert differences == []


def test_migrations_make_the_very_statements_of_the_models(tmp_path: Path):
    """Checks and partial indexes too, which the comparison above does not look at."""
    migrated, made = (open_engine(sqlite_url(tmp_path / name)) for name in ("migrated.db", "made.db"))
    migrate(sqlite_url(tmp_path / "migrated.db"))
    Base.metadata.create_all(made)
    statements = []
    for engine in (migrated, made):
        with engine.connect() as connection:
            found = connection.execute(text("select name, sql from sqlite_master where sql is not null")).tuples()
            # constraints come in another order
            words = {name: sorted(re.split(r"[\s(),]+", sql)) for name, sql in found}
            statements.append({name: said for name, said in words.items() if name != "alembic_version"})
        engine.dispose()
    assert statements[0] == statements[1]


def test_migrations_go_back_and_forth_again(database_url: str):
    from alembic import command
    from alembic.config import Config

    migrate(database_url)
    config = Config()
    folder = Path(database.__file__).parent / "migrations"
    config.set_main_option("script_location", str(folder).replace("%", "%%"))
    config.attributes["url"] = database_url
    command.downgrade(config, "base")
    engine = open_engine(database_url)
    assert set(inspect(engine).get_table_names()) <= {"alembic_version"}
    migrate(database_url)
    assert set(Base.metadata.tables) <= set(inspect(engine).get_table_names())
    engine.dispose()


def test_a_transaction_is_kept_whole_or_not_at_all(records: Records):
    with pytest.raises(RuntimeError), records.writing() as session:
        session.add(User(login="a"))
        session.flush()
        raise RuntimeError
    with records.reading() as session:
        assert session.scalar(select(func.count()).select_from(User)) == 0


def test_a_person_takes_everything_along(records: Records):
    user = add_user(records)
    subject = add_subject(records, user)
    with records.writing() as session:
        session.add(run_of(user, subject))
        session.add(Consent(user_id=user, purpose="service", version="1", sha256="0"))
    with records.writing() as session:
        session.delete(session.get_one(User, user))
    with records.reading() as session:
        for table in (Subject, Run, Consent):
            assert session.scalar(select(func.count()).select_from(table)) == 0


def test_one_active_run_of_a_subject(records: Records):
    user = add_user(records)
    subject = add_subject(records, user)
    with records.writing() as session:
        session.add(run_of(user, subject, state="running"))
        session.add(run_of(user, subject, state="failed"))
    with pytest.raises(IntegrityError), records.writing() as session:
        session.add(run_of(user, subject))
    other = add_subject(records, user)
    with records.writing() as session:
        session.add(run_of(user, subject, state="cancelled"))
        session.add(run_of(user, other))


@pytest.mark.parametrize("facts", [{"role": "root"}, {"state": "gone"}])
def test_unknown_words_are_refused(records: Records, facts: dict[str, str]):
    with pytest.raises(IntegrityError):
        add_user(records, **facts)


def test_the_same_photo_is_kept_once(records: Records):
    user = add_user(records)
    subject = add_subject(records, user)
    facts = {"fingerprint": "f", "width": 1, "height": 1, "stored_bytes": 1, "status": "ok", "reasons": []}
    with records.writing() as session:
        session.add(Photo(user_id=user, subject_id=subject, **facts))
    with pytest.raises(IntegrityError), records.writing() as session:
        session.add(Photo(user_id=user, subject_id=subject, **facts))


def test_writers_wait_for_each_other(records: Records):
    """Eight threads count together; a transaction that reads first and writes then loses nothing and does not fail."""
    user = add_user(records)
    subject = add_subject(records, user)
    with records.writing() as session:
        session.add(run_of(user, subject, id="r", params={"count": 0}))

    def count() -> None:
        for _ in range(10):
            with records.writing() as session:
                run = session.get_one(Run, "r", with_for_update=True)
                time.sleep(0.001)
                run.params = {"count": run.params["count"] + 1}

    threads = [threading.Thread(target=count) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with records.reading() as session:
        assert session.get_one(Run, "r").params == {"count": 80}


def test_readers_do_not_wait_for_a_writer(records: Records):
    user = add_user(records)
    with records.writing() as writer:
        writer.get_one(User, user).role = "auditor"
        writer.flush()
        started = now_ms()
        with records.reading() as reader:
            assert reader.get_one(User, user).role == "user"
        assert now_ms() - started < 2000


def test_what_is_deleted_is_in_no_file(tmp_path: Path):
    """SQLite keeps deleted rows in free pages and in its log, unless told otherwise."""
    url, canary = sqlite_url(tmp_path / "a.db"), "canary" * 9
    migrate(url)
    records = Records(open_engine(url))
    user = add_user(records, profile=canary.encode())
    assert any(canary.encode() in file.read_bytes() for file in tmp_path.iterdir())
    with records.writing() as session:
        session.delete(session.get_one(User, user))
    records.truncate_wal()
    assert not [file.name for file in tmp_path.iterdir() if canary.encode() in file.read_bytes()]


def test_many_that_start_at_once_make_the_tables_once(database_url: str):
    """Also where an index is built concurrently, which waits for whoever waits in a statement."""
    from api.jobs import job_queue

    def start(_: int) -> None:
        migrate(database_url)
        job_queue.prepare(database_url)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(start, range(3)))
    engine = open_engine(database_url)
    assert set(Base.metadata.tables) <= set(inspect(engine).get_table_names())
    engine.dispose()
