"""Leases of workers: each process has an id of its own, sends heartbeats, and is declared dead when they stop.

The jobs of a dead worker are recovered by any survivor. A worker that was only slow, or stopped and continued, finds its lease lost:
it records nothing more and exits. On one machine a file lock shows at once that a process has ended, so that a restart need not wait
for the lease to expire (docs/decisions/0016).
"""

from __future__ import annotations

import fcntl
import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NoReturn

from sqlalchemy import Select, delete, select, update
from sqlalchemy.orm import Session

from api.records.database import Records, database_ms
from api.records.tables import Worker, new_id
from photoflux.vault.objects import Objects

log = logging.getLogger(__name__)

BEAT_S, LEASE_S = 2.0, 10.0
EXIT_LOST = 75
"""EX_TEMPFAIL of sysexits.h: whoever watches the process starts it again."""


class LeaseLost(BaseException):
    """Another worker has this one's jobs. Not an Exception, so that no handler takes it for a failure of the job."""


def exit_at_once() -> NoReturn:
    """Ends the process at once, without clean-up: its jobs are another worker's."""
    log.error("this worker's lease is lost; its jobs are another's, and it exits")
    os._exit(EXIT_LOST)


class Lease:
    """This process' row among the workers, and its lock file in `folder`, which other machines do not have."""

    def __init__(self, records: Records, folder: Path, *, on_lost: Callable[[], object] = exit_at_once) -> None:
        self.records, self.folder, self.id, self.on_lost = records, folder, new_id(), on_lost
        self._lock: int | None = None
        self._last_ms = self._steady_since_ms = 0

    def acquire(self) -> None:
        """Lock the file and add the row, before any work can be taken under this id."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = os.open(self._file(self.id), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        with self.records.writing() as session:
            now = database_ms(session)
            session.add(Worker(id=self.id, started_ms=now, beat_ms=now))
        self._last_ms = self._steady_since_ms = now

    def beat(self) -> None:
        """Renew this worker's lease, and declare workers dead whose lease is older than `LEASE_S`, or whose process here has ended.

        Where this worker was late itself, or has only just started, the database may have been away for all: others get LEASE_S more.
        Times are the database's, since a machine's own clock may stand still while it sleeps.
        """
        with self.records.writing() as session:
            now = database_ms(session)
            mine = update(Worker).where(Worker.id == self.id, Worker.dead_ms.is_(None)).values(beat_ms=now)
            lost = session.execute(mine).rowcount == 0  # type: ignore[attr-defined]
        if lost:
            self._lose()
        if not 0 <= now - self._last_ms < 1000 * LEASE_S:
            self._steady_since_ms = now
        self._last_ms = now
        late = now - 1000 * LEASE_S if now - self._steady_since_ms >= 1000 * LEASE_S else 0
        with self.records.writing() as session:
            # A locked row belongs to a worker that is recording, so it lives; it is looked at again with the next beat.
            others = (
                select(Worker).where(Worker.id != self.id, Worker.dead_ms.is_(None)).with_for_update(skip_locked=True)
            )
            for worker in session.scalars(others):
                if worker.beat_ms < late or self._has_ended(worker.id):
                    worker.dead_ms = now

    def live(self) -> set[str]:
        """Ids of the workers that are not declared dead."""
        with self.records.reading() as session:
            return set(session.scalars(select(Worker.id).where(Worker.dead_ms.is_(None))))

    def forget_dead(self) -> None:
        """Delete the rows and lock files of dead workers, once their jobs have been recovered."""
        with self.records.writing() as session:
            dead = list(session.scalars(select(Worker.id).where(Worker.dead_ms.is_not(None))))
            session.execute(delete(Worker).where(Worker.id.in_(dead)))
        for worker in dead:
            self._file(worker).unlink(missing_ok=True)

    def check(self, session: Session) -> None:
        """Raises LeaseLost unless this worker has its lease, which is then locked until the transaction ends."""
        if session.scalar(self._mine().with_for_update(read=True)) is None:
            self._lose()

    def require(self) -> None:
        """As `check`, before an effect outside of the database; raises LeaseLost."""
        with self.records.reading() as session:
            lost = session.scalar(self._mine()) is None
        if lost:
            self._lose()

    def release(self) -> None:
        """Give the lease back: running jobs are recovered by others at once."""
        with self.records.writing() as session:
            session.execute(delete(Worker).where(Worker.id == self.id))
        if self._lock is not None:
            self._file(self.id).unlink(missing_ok=True)
            os.close(self._lock)
            self._lock = None

    def _mine(self) -> Select[str]:
        return select(Worker.id).where(Worker.id == self.id, Worker.dead_ms.is_(None))

    def _lose(self) -> NoReturn:
        self.on_lost()
        raise LeaseLost

    def _has_ended(self, worker_id: str) -> bool:
        """Whether a process of this machine held that worker's lock and holds it no longer."""
        with suppress(FileNotFoundError), self._file(worker_id).open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            return True
        return False

    def _file(self, worker_id: str) -> Path:
        return self.folder / f"{worker_id}.lock"


class LeasedRecords(Records):
    """Records whose transactions are rolled back where the worker has lost its lease."""

    def __init__(self, records: Records, lease: Lease) -> None:
        super().__init__(records.engine)
        self.lease = lease

    @contextmanager
    def writing(self) -> Iterator[Session]:
        with super().writing() as session:
            yield session
            self.lease.check(session)


@dataclass(frozen=True)
class LeasedObjects(Objects):
    """Objects that a worker stores and deletes only while it has its lease."""

    lease: Lease

    def put(self, owner: str, kind: str, object_id: str, data: bytes) -> int:
        self.lease.require()
        return super().put(owner, kind, object_id, data)

    def put_from(self, owner: str, kind: str, object_id: str, write: Callable[[BinaryIO], None]) -> int:
        self.lease.require()
        return super().put_from(owner, kind, object_id, write)

    def delete(self, owner: str, kind: str, object_id: str) -> None:
        self.lease.require()
        super().delete(owner, kind, object_id)

    def erase(self, owner: str) -> int:
        self.lease.require()
        return super().erase(owner)


class Heartbeat:
    """A thread that beats every `BEAT_S` seconds, and calls `then` after each beat. Failures are tried again with the next one."""

    def __init__(self, lease: Lease, then: Callable[[], None]) -> None:
        self.lease, self.then = lease, then
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        self._thread.join(LEASE_S)

    def _run(self) -> None:
        while not self._ended.wait(BEAT_S):
            try:
                self.lease.beat()
                self.then()
            except LeaseLost:
                return
            except Exception:
                log.exception("a beat failed")
