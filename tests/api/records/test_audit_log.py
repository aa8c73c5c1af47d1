"""The audit log: what its keyed chain and its heads show, and what they do not."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator

import pytest
from sqlalchemy import delete, func, select, update

from api.records.audit_log import FIELDS, GENESIS_DIGEST, SYSTEM, AuditHeads, AuditLog
from api.records.database import Records
from api.records.tables import AuditEntry, now_ms
from photoflux.vault.blobs import FolderStore
from photoflux.vault.kek import create_kek
from photoflux.vault.keyring import Keyring
from photoflux.vault.objects import Objects


@pytest.fixture
def log(records: Records, tmp_path) -> Iterator[AuditHeads]:
    """A log of its own, with its heads in a folder."""
    kek = f"local-kms://{tmp_path / 'kek'}"
    create_kek(kek)
    objects = Objects(FolderStore(tmp_path / "blobs"), Keyring(FolderStore(tmp_path / "keys"), kek))
    yield AuditHeads(records, objects, AuditLog(b"a secret of the keyring"))


def note(log: AuditHeads, count: int) -> None:
    for number in range(count):
        with log.records.writing() as session:
            log.audit_log.record(session, SYSTEM, "test", str(number))


def recompute(log: AuditHeads, digest_of: Callable[[AuditEntry], str]) -> None:
    """Make the chain fit again from its first entry on, as somebody would who changed one."""
    with log.records.writing() as session:
        before = GENESIS_DIGEST
        for number, entry in enumerate(session.scalars(select(AuditEntry).order_by(AuditEntry.number)), start=1):
            session.execute(update(AuditEntry).where(AuditEntry.number == entry.number).values(number=-number))
            session.expire(entry)
            changed = session.get_one(AuditEntry, -number)
            changed.number, changed.previous_digest = number, before
            changed.digest = digest_of(changed)
            before = changed.digest
            session.flush()


def test_a_whole_log_is_whole(log: AuditHeads):
    assert log.store() == 0
    assert log.first_broken() is None
    note(log, 3)
    assert log.store() == log.store() == 3
    note(log, 2)
    assert log.first_broken() is None
    assert [
        json.loads(log.objects.get("service", "head", name))["number"] for name in log.objects.ids("service", "head")
    ] == [3]


def test_the_newest_entries_cannot_be_taken_off_unseen(log: AuditHeads):
    note(log, 20)
    log.store()
    with log.records.writing() as session:
        session.execute(delete(AuditEntry).where(AuditEntry.number > 10))
    with log.records.reading() as session:
        assert log.audit_log.first_broken(session) is None, "by itself, the chain cannot tell"
    assert log.first_broken() == 11


def test_entries_newer_than_the_last_head_may_vanish(log: AuditHeads):
    """What is promised is no more than that."""
    note(log, 5)
    log.store()
    note(log, 5)
    with log.records.writing() as session:
        session.execute(delete(AuditEntry).where(AuditEntry.number > 5))
    assert log.first_broken() is None


def without_a_key(entry: AuditEntry) -> str:
    return hashlib.sha256(json.dumps([getattr(entry, name) for name in FIELDS]).encode()).hexdigest()


@pytest.mark.parametrize("digest_of", [AuditLog(b"another secret").digest_of, without_a_key])
def test_who_has_the_database_alone_cannot_make_it_fit(log: AuditHeads, digest_of: Callable[[AuditEntry], str]):
    """An entry taken out and the rest recomputed: with another key, or without one."""
    note(log, 6)
    log.store()
    with log.records.writing() as session:
        session.execute(delete(AuditEntry).where(AuditEntry.number == 3))
    recompute(log, digest_of)
    with log.records.reading() as session:
        assert log.audit_log.first_broken(session) == 1
    assert log.first_broken() == 1


def test_who_has_the_key_too_is_found_out_by_a_head(log: AuditHeads):
    """The chain fits again, and lacks an entry that a head knew of."""
    note(log, 6)
    log.store()
    with log.records.writing() as session:
        session.execute(delete(AuditEntry).where(AuditEntry.number == 3))
    recompute(log, log.audit_log.digest_of)
    with log.records.reading() as session:
        assert log.audit_log.first_broken(session) is None
    assert log.first_broken() == 6


@pytest.mark.parametrize("change", ["action", "outcome", "at_ms", "object", "actor"])
def test_every_word_of_an_entry_counts(log: AuditHeads, change: str):
    note(log, 3)
    with log.records.writing() as session:
        entry = session.get_one(AuditEntry, 2)
        setattr(entry, change, 7 if change == "at_ms" else "other")
    assert log.first_broken() == 2


def test_a_head_that_was_tampered_with_is_not_believed(log: AuditHeads):
    note(log, 4)
    log.store()
    (name,) = log.objects.ids("service", "head")
    sealed = log.objects.store.get(f"heads/service/{name}")
    log.objects.store.delete(f"heads/service/{name}")
    log.objects.store.put_new(f"heads/service/{name}", sealed[:-1] + bytes([sealed[-1] ^ 1]))
    assert log.first_broken() == 4


def test_old_heads_are_thinned_out_to_one_a_day(log: AuditHeads):
    for _ in range(5):
        note(log, 1)
        log.store()
    assert log.thin_out(older_than_ms=0) == 0
    assert log.thin_out(older_than_ms=now_ms() + 1000) in (3, 4), "a day may have begun meanwhile"
    assert log.objects.ids("service", "head")[-1] == f"{5:012}"
    assert log.first_broken() is None


def test_notes_of_a_transaction_come_last_and_in_order(log: AuditHeads):
    with log.records.writing() as session:
        log.audit_log.record(session, SYSTEM, "first")
        assert session.scalar(select(func.count()).select_from(AuditEntry)) == 0
        log.audit_log.record(session, SYSTEM, "second")
    with log.records.reading() as session:
        assert list(session.scalars(select(AuditEntry.action).order_by(AuditEntry.number))) == ["first", "second"]


def test_heads_that_are_thinned_out_meanwhile_are_no_tampering(log: AuditHeads, monkeypatch: pytest.MonkeyPatch):
    note(log, 3)
    log.store()
    ids = log.objects.ids

    def listed(*args: object, **how: object) -> list[str]:
        found = list(ids(*args, **how))  # type: ignore[arg-type]
        for name in found:
            log.objects.delete("service", "head", name)
        return found

    monkeypatch.setattr(type(log.objects), "ids", lambda _, *args, **how: listed(*args, **how))
    assert log.first_broken() is None
    log.store()
    assert log.thin_out(older_than_ms=1 << 60) == 0
