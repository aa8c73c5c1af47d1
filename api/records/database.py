"""The records' database: transactions, retries after a deadlock or an outage, and migrations."""

from __future__ import annotations

import fcntl
import functools
import logging
import os
import random
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from sqlalchemy import Engine, create_engine, event, make_url, select, text
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.orm import Session, sessionmaker

from api.records.tables import User, now_ms
from api.records.write_turns import WriteTurns
from photoflux.errors import PhotoFluxError

log = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")
BUSY_MS, IDLE_IN_TRANSACTION_MS, CONNECTIONS = 5000, 20_000, 40
"""CONNECTIONS: how many a process keeps open to SQLite; one for each thread that answers requests, since opening one takes longer than
what most requests ask of it. The last one used is taken first, since each keeps up to CACHE_KIB of what it read."""
CACHE_KIB, STATEMENTS = 512, 16
"""STATEMENTS: how many prepared ones a connection to SQLite keeps, each about 6 KB; the driver's 128 were 30 MB for all connections."""
TRIES, RETRY_PAUSE_S = 5, 0.02
OUTAGE_MAX_S, OUTAGE_RETRY_S = 300.0, 1.0
"""How long, and how often, a step is retried while the database cannot be reached; DBOS itself retries without an end."""
RETRYABLE_SQLSTATES = ("40P01", "40001")
"""PostgreSQL's deadlock_detected and serialization_failure: the transaction was rolled back and may be repeated."""


def open_engine(url: str) -> Engine:
    """Connections to the records. On SQLite: WAL, foreign keys, deleted rows overwritten, writers waited for.

    A transaction of SQLite takes the write lock at its start unless it is `reading`: one that read first and wrote later
    would fail at once where another wrote in between, instead of waiting.
    """
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite":
        limits = f"-c idle_in_transaction_session_timeout={IDLE_IN_TRANSACTION_MS}"  # of a process that was stopped
        return create_engine(
            parsed.set(drivername="postgresql+psycopg"),
            pool_pre_ping=True,
            pool_size=10,
            connect_args={"options": limits},
        )
    if parsed.database:
        Path(parsed.database).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    pool: dict[str, Any] = {"pool_size": CONNECTIONS, "pool_use_lifo": True} if parsed.database else {}
    engine = create_engine(parsed, connect_args={"timeout": BUSY_MS / 1000, "cached_statements": STATEMENTS}, **pool)
    event.listen(engine, "connect", _set_up_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _set_up_sqlite(connection: Any, _: Any) -> None:
    connection.isolation_level = None  # the driver would begin transactions itself, too late
    cursor = connection.cursor()
    for setting in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON", "secure_delete=ON"):
        cursor.execute(f"PRAGMA {setting}")
    cursor.execute(f"PRAGMA cache_size=-{CACHE_KIB}")
    cursor.execute(f"PRAGMA busy_timeout={BUSY_MS}")
    cursor.close()


def _begin_sqlite(connection: Any) -> None:
    reading = connection.get_execution_options().get("reading")
    connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")


BEFORE_COMMIT = "before_commit"


def before_commit(session: Session, action: Callable[[Session], object], *, rank: int = 0) -> None:
    """Run `action` at the end of the transaction, after those of lower ranks: locks that every writer needs are taken last."""
    session.info.setdefault(BEFORE_COMMIT, []).append((rank, action))


class AccountClosed(PhotoFluxError):
    """The person has no account any more, or it is blocked or being erased: nothing is done for them."""

    def __init__(self) -> None:
        super().__init__("this account is closed; nothing more is done for it")


def retry_on_rollback(transaction: Callable[P, R]) -> Callable[P, R]:
    """Call the function again, TRIES times in all, where the database rolled its transaction back."""

    @functools.wraps(transaction)
    def retrying(*args: P.args, **kwargs: P.kwargs) -> R:
        for attempt in range(1, TRIES + 1):
            try:
                return transaction(*args, **kwargs)
            except DBAPIError as error:
                if attempt == TRIES or not is_rolled_back(error):
                    raise
                log.info("a transaction was rolled back by the database and is repeated")
                time.sleep(random.uniform(0.5, 1.5) * RETRY_PAUSE_S * 2**attempt)
        raise AssertionError("unreachable")

    return retrying


def is_rolled_back(error: DBAPIError) -> bool:
    """Whether the database rolled a transaction back so that another could go on."""
    return getattr(error.orig, "sqlstate", None) in RETRYABLE_SQLSTATES


def lock_owner(session: Session, kind: Any, row_id: str) -> None:
    """Lock the owner of a row against deletion, before the row: a webhook delivery refers to the owner, which would lock them second."""
    owner = select(kind.user_id).where(kind.id == row_id).scalar_subquery()
    session.execute(select(User.id).where(User.id == owner).with_for_update(read=True, key_share=True))


def is_unavailable(error: DBAPIError) -> bool:
    """Whether the database could not be reached, is starting or stopping, or (SQLite) is written to by others for long."""
    if isinstance(error.orig, sqlite3.Error):
        return getattr(error.orig, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_CANTOPEN)
    state = getattr(error.orig, "sqlstate", None)
    return isinstance(error, OperationalError) and (state is None or str(state).startswith(("08", "57P")))


def retry_on_outage(step: Callable[P, R]) -> Callable[P, R]:
    """Call the function again while the database cannot be reached, for OUTAGE_MAX_S: an outage is no failure of the work."""

    @functools.wraps(step)
    def retrying(*args: P.args, **kwargs: P.kwargs) -> R:
        since = last = float("-inf")
        while True:
            try:
                return step(*args, **kwargs)
            except DBAPIError as error:
                if time.monotonic() - last > OUTAGE_MAX_S:  # another outage than the last
                    since = time.monotonic()
                last = time.monotonic()
                if not is_unavailable(error) or last - since > OUTAGE_MAX_S:
                    raise
                log.warning("the database cannot be reached; %s is done again", step.__name__)
                time.sleep(OUTAGE_RETRY_S)

    return retrying


def _write_turns(engine: Engine) -> WriteTurns:
    file = engine.url.database
    return WriteTurns(Path(file).absolute() if file and file != ":memory:" else None, wait_s=BUSY_MS / 2000)


class Records:
    """Transactions on one database."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._write = sessionmaker(engine, expire_on_commit=False)
        self._read = sessionmaker(engine.execution_options(reading=True), expire_on_commit=False)
        self._turn = _write_turns(engine) if engine.dialect.name == "sqlite" else nullcontext()

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """A transaction, committed when the block ends well; what was put off with `before_commit` is done right before."""
        with self._turn, self._write.begin() as session:
            yield session
            for _, action in sorted(session.info.pop(BEFORE_COMMIT, ()), key=lambda one: one[0]):
                action(session)

    @contextmanager
    def writing_for(self, user_id: str) -> Iterator[Session]:
        """A transaction on a person's behalf, with their row locked first: others of theirs wait until it is over.

        Raises AccountClosed unless the account is active.
        """
        with self.writing() as session:
            user = session.get(User, user_id, with_for_update=True)
            if user is None or user.state != "active":
                raise AccountClosed
            yield session

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A consistent view; nothing written in it is kept."""
        with self._read() as session:
            yield session

    def truncate_wal(self) -> None:
        """On SQLite, move the write-ahead log into the database and empty it, so that deleted rows are in no file.

        Raises TimeoutError where readers kept it busy.
        """
        if self.engine.dialect.name != "sqlite":
            return
        with self._turn:
            connection = self.engine.raw_connection()  # a checkpoint cannot be part of a transaction
            try:
                busy, *_ = connection.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            finally:
                connection.close()
        if busy:
            raise TimeoutError("the database's log is in use and was not emptied; try again")


def database_ms(session: Session) -> int:
    """Milliseconds since 1970 by the database's clock, the same for all who ask it."""
    if session.get_bind().dialect.name == "postgresql":
        return int(session.scalar(text("select (extract(epoch from clock_timestamp()) * 1000)::bigint")) or 0)
    return now_ms()  # SQLite is used by processes of one machine


@contextmanager
def process_lock(url: str, purpose: str) -> Iterator[None]:
    """A lock between all processes that use this database: two that migrate at once would make the same tables."""
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite" and parsed.database:
        folder = Path(parsed.database).parent
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(folder / f".{purpose}.lock", os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)
        return
    engine = open_engine(url)
    try:
        with engine.connect() as connection:
            lock = {"lock": int.from_bytes(purpose.encode()[:7])}
            # Polled, since an index that is built concurrently waits for every running statement, one that waits for this lock too.
            while not connection.scalar(text("select pg_try_advisory_lock(:lock)"), lock):
                connection.commit()
                time.sleep(RETRY_PAUSE_S * 5)
            connection.commit()
            yield
            connection.execute(text("select pg_advisory_unlock(:lock)"), lock)
    finally:
        engine.dispose()  # closes the connection, which ends the lock where the block failed


def migrate(url: str) -> None:
    """Bring the database to the newest schema; an empty one is made whole."""
    from alembic import command
    from alembic.config import Config

    config = Config()
    folder = Path(__file__).parent / "migrations"
    config.set_main_option("script_location", str(folder).replace("%", "%%"))  # else it takes %… for a name to fill in
    config.attributes["url"] = url
    with process_lock(url, "migrate"):
        command.upgrade(config, "head")
