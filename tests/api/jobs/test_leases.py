"""Leases: who is declared dead, by whom, and what a worker without one can still do."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest
from sqlalchemy import select

from api.jobs import leases
from api.jobs.leases import Heartbeat, Lease, LeasedObjects, LeasedRecords, LeaseLost
from api.records.database import Records, database_ms
from api.records.tables import User, Worker, new_id
from photoflux.vault.blobs import FolderStore
from photoflux.vault.kek import create_kek
from photoflux.vault.keyring import Keyring


def lease_of(records: Records, folder: Path) -> Lease:
    """A lease that has beaten for long, and whose end raises instead of ending the tests."""
    lease = Lease(records, folder, on_lost=lambda: None)
    lease.acquire()
    lease._steady_since_ms = 0
    return lease


def make_late(records: Records, lease: Lease) -> None:
    """As if its last beat were long ago."""
    with records.writing() as session:
        session.get_one(Worker, lease.id).beat_ms = database_ms(session) - round(1000 * leases.LEASE_S) - 1


def workers(records: Records) -> dict[str, bool]:
    """Ids of known workers, and whether they are declared dead."""
    with records.reading() as session:
        return {one.id: one.dead_ms is not None for one in session.scalars(select(Worker))}


def test_two_that_beat_live_side_by_side(records: Records, tmp_path: Path):
    first, second = lease_of(records, tmp_path), lease_of(records, tmp_path)
    first.beat()
    second.beat()
    assert first.live() == {first.id, second.id}


def test_one_that_stopped_beating_is_declared_dead_and_forgotten(records: Records, tmp_path: Path):
    first, second = lease_of(records, tmp_path / "a"), lease_of(records, tmp_path / "b")
    make_late(records, first)
    second.beat()
    assert workers(records) == {first.id: True, second.id: False}
    second.forget_dead()
    assert workers(records) == {second.id: False}


def test_on_one_machine_an_ended_process_is_known_at_once(records: Records, tmp_path: Path):
    first, second = lease_of(records, tmp_path), lease_of(records, tmp_path)
    second.beat()
    assert second.live() == {first.id, second.id}
    assert first._lock is not None
    os.close(first._lock)  # as the end of its process does
    second.beat()
    assert second.live() == {second.id}
    second.forget_dead()
    assert [file.stem for file in tmp_path.glob("[!.]*.lock")] == [second.id]


def test_whoever_was_declared_dead_exits_with_its_next_beat(records: Records, tmp_path: Path):
    told: list[str] = []
    first, second = lease_of(records, tmp_path / "a"), lease_of(records, tmp_path / "b")
    first.on_lost = lambda: told.append("lost")
    make_late(records, first)
    second.beat()
    with pytest.raises(LeaseLost):
        first.beat()
    second.forget_dead()
    with pytest.raises(LeaseLost):
        first.beat()
    assert told == ["lost", "lost"]


def test_a_late_beat_that_nobody_missed_counts(records: Records, tmp_path: Path):
    lease = lease_of(records, tmp_path)
    make_late(records, lease)
    lease.beat()
    assert lease.live() == {lease.id}


def test_nothing_is_recorded_without_the_lease(records: Records, tmp_path: Path):
    lease = lease_of(records, tmp_path)
    leased = LeasedRecords(records, lease)
    with leased.writing() as session:
        session.add(User(id=new_id(), login="before"))
    with records.writing() as session:
        session.get_one(Worker, lease.id).dead_ms = 1
    with pytest.raises(LeaseLost), leased.writing() as session:
        session.add(User(id=new_id(), login="after"))
    with records.reading() as session:
        assert list(session.scalars(select(User.login))) == ["before"]


def test_nobody_is_declared_dead_while_it_records(records: Records, tmp_path: Path):
    """What has passed its check is committed before the lease can end."""
    if records.engine.dialect.name == "sqlite":
        pytest.skip("SQLite has one writer at a time; PostgreSQL locks rows")
    first, second = lease_of(records, tmp_path / "a"), lease_of(records, tmp_path / "b")
    make_late(records, first)
    with records.writing() as session:
        first.check(session)
        second.beat()
        assert second.live() == {first.id, second.id}
    second.beat()
    assert second.live() == {second.id}


def test_nothing_is_stored_or_deleted_without_the_lease(records: Records, tmp_path: Path):
    kek = f"local-kms://{tmp_path / 'kek'}"
    create_kek(kek)
    lease = lease_of(records, tmp_path / "locks")
    objects = LeasedObjects(FolderStore(tmp_path / "blobs"), Keyring(FolderStore(tmp_path / "keys"), kek), lease)
    objects.put("ada", "photo", "1", b"a")
    lease.release()
    with pytest.raises(LeaseLost):
        objects.put("ada", "photo", "2", b"b")
    with pytest.raises(LeaseLost):
        objects.put_from("ada", "photo", "3", lambda sink: sink.write(b"c"))
    with pytest.raises(LeaseLost):
        objects.delete("ada", "photo", "1")
    assert objects.ids("ada", "photo") == ["1"]


def test_a_released_lease_leaves_nothing(records: Records, tmp_path: Path):
    lease = lease_of(records, tmp_path / "locks")
    lease.release()
    assert (workers(records), list((tmp_path / "locks").iterdir())) == ({}, [])


def test_a_heartbeat_goes_on_after_what_fails(records: Records, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(leases, "BEAT_S", 0.01)
    beaten = threading.Semaphore(0)

    def fail() -> None:
        beaten.release()
        raise OSError("the database is away")

    heart = Heartbeat(lease_of(records, tmp_path), fail)
    heart.start()
    for _ in range(3):
        assert beaten.acquire(timeout=20)
    heart.stop()


def test_who_was_away_itself_declares_nobody_dead(records: Records, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """After the database was away for all of them, whoever beats first must not end the others."""
    first, second = lease_of(records, tmp_path / "a"), lease_of(records, tmp_path / "b")
    make_late(records, first)
    monkeypatch.setattr(leases, "LEASE_S", 0.4)
    monkeypatch.setattr(second, "_last_ms", second._last_ms - 400)
    second.beat()
    second.beat()
    assert first.live() == {first.id, second.id}, "its connection may still hang when ours does not"
    until = time.monotonic() + 0.5
    while time.monotonic() < until:
        second.beat()
        time.sleep(0.05)
    assert first.live() == {second.id}


def test_who_has_only_just_begun_declares_nobody_dead(records: Records, tmp_path: Path):
    first = lease_of(records, tmp_path / "a")
    make_late(records, first)
    second = Lease(records, tmp_path / "b", on_lost=lambda: None)
    second.acquire()
    second.beat()
    assert first.live() == {first.id, second.id}


def test_an_ended_process_is_known_however_late_a_beat_is(
    records: Records, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    first, second = lease_of(records, tmp_path), lease_of(records, tmp_path)
    assert first._lock is not None
    os.close(first._lock)
    monkeypatch.setattr(second, "_last_ms", second._last_ms - 2000 * leases.LEASE_S)
    second.beat()
    assert second.live() == {second.id}
