"""Exports are packed in pieces, by attempts that disturb nobody; nothing of them outlives their owner."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from sqlalchemy import select

from api.privacy.export import ACCOUNT_CLOSED, Exports
from api.records.tables import AuditEntry, Export, GeneratedImage, User, WebhookDelivery
from photoflux.vault.keyring import Keyring
from photoflux.vault.objects import Objects
from tests.api.packing import STATUS, ask_for_export, with_pictures
from tests.api.people import Person, Site, is_problem
from tests.vault.test_erasure import Clock, Interrupted

GROWTH = 40_000_000
"""Bytes that packing 60 MB may need: pieces of a megabyte, and what libraries hold."""
POINTS = 60
"""More than there are operations on the stores while a small export is packed."""


@dataclass(frozen=True)
class Overtaken(Objects):
    """Objects during whose storing something else happens."""

    happen: Callable[[], Any]

    def put_from(self, owner: str, kind: str, object_id: str, write: Callable[[BinaryIO], None]) -> int:
        size = super().put_from(owner, kind, object_id, write)
        self.happen()
        return size


@pytest.fixture
def exports(site: Site) -> Exports:
    return Exports(site.service.records, site.objects, site.service.audit_log)


def overtaken(exports: Exports, happen: Callable[[], Any]) -> Exports:
    """An attempt that has stored its object, and not recorded it, when something else happens."""
    return replace(exports, objects=Overtaken(exports.objects.store, exports.objects.keyring, happen))


def row_of(site: Site, export_id: str) -> Any:
    with site.service.records.reading() as session:
        return session.get(Export, export_id)


def ended(site: Site, export_id: str) -> list[str]:
    """Outcomes that the log has of an export's end."""
    query = select(AuditEntry.outcome).where(AuditEntry.action == "export.ended", AuditEntry.object == export_id)
    with site.service.records.reading() as session:
        return list(session.scalars(query.order_by(AuditEntry.number)))


def stored(site: Site, person: Person) -> list[str]:
    return site.objects.ids(person.id, "export")


def test_a_zip_is_whole_though_it_is_written_from_front_to_end(site: Site, ada: Person, exports: Exports):
    names = with_pictures(site, ada, 3, size=1_300_000)
    asked = ask_for_export(ada)
    assert exports.perform(asked) == exports.perform(asked) == "succeeded"
    row = row_of(site, asked)
    assert stored(site, ada) == [row.object_id]
    assert row.object_id.startswith(f"{asked}.")
    answer = ada.get(f"/api/media/exports/{asked}")
    assert int(answer.headers["content-length"]) == row.stored_bytes == len(answer.content)
    assert (
        hashlib.sha256(answer.content).hexdigest() == row.sha256 == ada.get(f"/api/me/exports/{asked}").json()["sha256"]
    )
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.testzip() is None
        assert archive.namelist()[-1] == "manifest.json"
        manifest = json.loads(archive.read("manifest.json"))["sha256"]
        assert set(manifest) == set(archive.namelist()) - {"manifest.json"}
        assert set(names) <= set(manifest)
        for name, sha256 in manifest.items():
            assert hashlib.sha256(archive.read(name)).hexdigest() == sha256
        kinds = {name: archive.getinfo(name).compress_type for name in (names[0], "images.json")}
        assert kinds == {names[0]: zipfile.ZIP_STORED, "images.json": zipfile.ZIP_DEFLATED}
        assert "object_id" not in json.loads(archive.read("images.json"))[0]
        assert [entry["kind"] for entry in json.loads(archive.read("usage.json"))] == ["export"]
    assert ended(site, asked) == ["succeeded"]


def test_what_is_deleted_meanwhile_is_left_out(site: Site, ada: Person, exports: Exports):
    names = with_pictures(site, ada, 2, size=1000)
    with site.service.records.reading() as session:
        gone, there = session.scalars(
            select(GeneratedImage).where(GeneratedImage.user_id == ada.id).order_by(GeneratedImage.position)
        )
    site.objects.delete(ada.id, "image", gone.object_id)
    asked = ask_for_export(ada)
    assert exports.perform(asked) == "succeeded"
    with zipfile.ZipFile(io.BytesIO(ada.get(f"/api/media/exports/{asked}").content)) as archive:
        assert archive.testzip() is None
        assert [name for name in archive.namelist() if name.startswith("images/")] == [names[1]]
        assert archive.read(names[1]) == site.objects.get(ada.id, "image", there.object_id)
        assert names[0] not in json.loads(archive.read("manifest.json"))["sha256"]


def test_an_attempt_that_was_overtaken_leaves_the_others_object(site: Site, ada: Person, exports: Exports):
    """Two workers pack the same export: the first to record it wins, and its object stays."""
    asked = ask_for_export(ada)
    assert overtaken(exports, lambda: exports.perform(asked)).perform(asked) == "succeeded"
    row = row_of(site, asked)
    assert stored(site, ada) == [row.object_id]
    assert hashlib.sha256(ada.get(f"/api/media/exports/{asked}").content).hexdigest() == row.sha256
    assert ended(site, asked) == ["succeeded"], "told once"


def test_a_final_state_stays(site: Site, ada: Person, exports: Exports):
    """Also one that an export got while it was packed."""
    asked = ask_for_export(ada)
    assert overtaken(exports, lambda: exports.fail(asked, "killed", "its worker was killed")).perform(asked) == "failed"
    assert stored(site, ada) == []
    assert exports.fail(asked, "internal", "again") == exports.perform(asked) == "failed"
    shown = ada.get(f"/api/me/exports/{asked}").json()
    assert (shown["state"], shown["error"]) == ("failed", {"code": "killed", "message": "its worker was killed"})
    assert ended(site, asked) == ["failed"]
    other = ask_for_export(ada)
    assert exports.perform(other) == exports.fail(other, "internal", "late") == "succeeded"
    assert ended(site, other) == ["succeeded"]


def test_a_failed_export_is_told_to_who_wants_to_know(site: Site, ada: Person, exports: Exports):
    assert ada.post("/api/webhooks", json={"url": "http://127.0.0.1:9/x"}).status_code == 201
    asked = ask_for_export(ada)
    exports.fail(asked, "internal", "something went wrong")
    with site.service.records.reading() as session:
        deliveries = list(
            session.scalars(
                select(WebhookDelivery).where(WebhookDelivery.user_id == ada.id, WebhookDelivery.object_id == asked)
            )
        )
    assert [(delivery.event, delivery.outcome) for delivery in deliveries] == [("export.ended", "failed")]


def test_an_export_whose_row_is_deleted_meanwhile_leaves_nothing(site: Site, ada: Person, exports: Exports):
    asked = ask_for_export(ada)

    def forget() -> None:
        with site.service.records.writing() as session:
            session.delete(session.get_one(Export, asked))

    assert overtaken(exports, forget).perform(asked) == "cancelled"
    assert stored(site, ada) == []


def test_an_export_of_an_account_that_is_blocked_meanwhile_is_cancelled(site: Site, ada: Person, exports: Exports):
    asked = ask_for_export(ada)

    def block() -> None:
        with site.service.records.writing() as session:
            session.get_one(User, ada.id).state = "blocked"

    assert overtaken(exports, block).perform(asked) == "cancelled"
    row = row_of(site, asked)
    assert (row.state, row.error_code, row.error, row.object_id) == ("cancelled", "cancelled", ACCOUNT_CLOSED, None)
    assert (stored(site, ada), ended(site, asked)) == ([], ["cancelled"])


def test_no_export_outlives_its_owner_whenever_the_erasure_comes(site: Site, exports: Exports):
    """The erasure is accepted after each operation on the stores in turn; what is packed meanwhile is never kept."""
    sqlite = site.service.records.engine.dialect.name == "sqlite"
    for at in range(0, POINTS, 1 if sqlite else 4):
        person = site.person()
        with_pictures(site, person, 2, size=1000)
        asked = ask_for_export(person)

        def erase(person: Person = person) -> None:
            assert person.ask("DELETE", "/api/me").status_code == 202
            site.objects.erase(person.id)

        clock = Clock(at, erase)
        keyring = Keyring(Interrupted(site.service.keyring.store, clock), site.service.keyring.kek_uri)  # type: ignore[arg-type]
        attempt = replace(exports, objects=Objects(Interrupted(site.objects.store, clock), keyring))  # type: ignore[arg-type]
        state = attempt.perform(asked)
        if clock.count <= at:
            assert at > 0 and state == "succeeded"
            return
        assert state == row_of(site, asked).state == "cancelled", f"erased after operation {at}"
        assert ended(site, asked) == ["cancelled"]
        assert [name for name in site.objects.store.list() if f"/{person.id}/" in name] == [], f"after operation {at}"
        assert site.service.keyring.versions(person.id) == []
    pytest.fail("packing has more operations than were tried")


@pytest.mark.parametrize("harm", ["cut off", "altered"])
def test_a_damaged_export_is_broken_off_instead_of_ending_well(site: Site, ada: Person, exports: Exports, harm: str):
    with_pictures(site, ada, 4, size=1_000_000)
    asked = ask_for_export(ada)
    exports.perform(asked)
    row = row_of(site, asked)
    name = f"exports/{ada.id}/{row.object_id}"
    sealed = site.objects.store.get(name)
    site.objects.store.delete(name)
    site.objects.store.put_new(name, sealed[:-9] if harm == "cut off" else sealed[:-9] + bytes(9))
    answer = ada.get(f"/api/media/exports/{asked}")
    assert len(answer.content) < int(answer.headers["content-length"]) == row.stored_bytes
    site.objects.delete(ada.id, "export", row.object_id)
    is_problem(ada.get(f"/api/media/exports/{asked}"), 404, "not-found")


def test_a_repeated_request_is_the_same_export(ada: Person, exports: Exports):
    """Also when the export has ended meanwhile: without the key that would begin another."""
    key = {"Idempotency-Key": "once"}
    first = ada.post("/api/me/export", headers=key)
    exports.perform(first.json()["id"])
    again = ada.post("/api/me/export", headers=key)
    assert (again.status_code, again.json()) == (202, first.json())
    assert ada.post("/api/me/export").json()["id"] != first.json()["id"]


def test_so_many_exports_are_begun_a_day(site: Site, ada: Person, bob: Person, exports: Exports):
    """Counted is what was begun: neither asking again while one is packed, nor what becomes of it, changes that."""
    for _ in range(site.service.settings.exports_a_day):
        asked = ask_for_export(ada)
        assert ask_for_export(ada) == asked
        exports.fail(asked, "internal", "something went wrong")
    is_problem(ada.post("/api/me/export"), 429, "quota")
    with site.service.records.writing() as session:
        for row in session.scalars(select(Export).where(Export.user_id == ada.id)):
            session.delete(row)
    is_problem(ada.post("/api/me/export"), 429, "quota")
    ask_for_export(bob)


@pytest.mark.skipif(not STATUS.exists(), reason="this system does not tell a process its largest memory")
@pytest.mark.slow
def test_memory_does_not_grow_with_an_export(root: Path, tmp_path: Path):
    """Packing and downloading 60 MB, each in pieces."""
    others = {name: value for name, value in os.environ.items() if not name.startswith(("PHOTOFLUX_", "STORAGE_"))}
    ended = subprocess.run(
        [sys.executable, "-m", "tests.api.packing", str(tmp_path), "60"],
        cwd=root,
        capture_output=True,
        text=True,
        env=others,
    )
    assert ended.returncode == 0, ended.stderr
    told = json.loads(ended.stdout.splitlines()[-1])
    assert told["bytes"] > 60_000_000
    assert told["packing"] < GROWTH
    assert told["downloading"] < GROWTH


def test_a_newer_export_takes_the_place_of_an_older_one(site: Site, ada: Person, bob: Person):
    """So that what is kept of exports is bounded, and whoever keeps too much may still take it along."""
    exports = Exports(site.service.records, site.objects, site.service.audit_log)
    theirs, first = (person.post("/api/me/export").json()["id"] for person in (bob, ada))
    assert exports.perform(theirs) == exports.perform(first) == "succeeded"
    assert ada.get(f"/api/media/exports/{first}").status_code == 200
    second = ada.post("/api/me/export").json()["id"]
    assert ada.get(f"/api/media/exports/{first}").status_code == 200, "until the newer one is packed"
    assert exports.perform(second) == "succeeded"
    is_problem(ada.get(f"/api/media/exports/{first}"), 404, "not-found")
    assert ada.get(f"/api/media/exports/{second}").status_code == 200
    assert bob.get(f"/api/media/exports/{theirs}").status_code == 200
