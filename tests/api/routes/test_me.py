"""Taking one's data along, and having it erased: no canary is left in any store, file or form."""

from __future__ import annotations

import hashlib
import io
import json
import sqlite3
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from sqlalchemy import select, text

from api.privacy.erasure import Erasure, WorkInProgress
from api.privacy.export import Exports
from api.records.audit_log import SYSTEM
from api.records.tables import Export, Run, User
from photoflux.vault.keyring import KeyMissing
from photoflux.vault.sealed_store import SealedStore
from tests.api.people import SAMPLES, Person, Site, is_problem
from tests.api.routes.test_generations import ask, finish
from tests.canaries import files_below, forms, holding

CANARY = "Kanarienvögel-8d1f"


@pytest.fixture
def exports(site: Site) -> Exports:
    return Exports(site.service.records, site.objects, site.service.audit_log)


@pytest.fixture
def erasure(site: Site, tmp_path: Path) -> Erasure:
    service, gone = site.service, list[str]()
    return Erasure(
        service.records,
        service.objects,
        service.keyring,
        service.audit_log,
        gone.append,
        lambda name, _: gone.append(name) or 1,
        gone.append,
        tmp_path / "cache",
    )


def with_canaries(site: Site, person: Person) -> str:
    """A subject whose name, photos, file names, prompts and feedback all hold the canary."""
    subject = person.subject(name=f"Rex {CANARY}")
    exif = Image.Exif()
    exif[0x010E] = CANARY
    buffer = io.BytesIO()
    Image.open(SAMPLES[0]).save(buffer, format="JPEG", exif=exif, quality=95)
    files = {f"{CANARY}.jpg": buffer.getvalue()} | {file.name: file.read_bytes() for file in SAMPLES[1:5]}
    assert person.upload(subject, files, headers={"Idempotency-Key": CANARY.encode()}).status_code == 201
    result = ask(person, subject, prompt=f"a photo of sks dog {CANARY}")["id"]
    finish(site, person, result)
    said = {"rating": 3, "text": f"not like {CANARY}"}
    assert person.ask("PUT", f"/api/results/{result}/feedback", json=said).status_code == 204
    return result


def test_an_export_opens_holds_everything_and_its_hashes_match(site: Site, ada: Person, exports: Exports):
    result = with_canaries(site, ada)
    asked = ada.post("/api/me/export").json()
    assert ada.post("/api/me/export").json()["id"] == asked["id"]
    is_problem(ada.get(f"/api/media/exports/{asked['id']}"), 404, "not-found")
    assert exports.perform(asked["id"]) == "succeeded"
    shown = ada.get(f"/api/me/exports/{asked['id']}").json()
    data = ada.get(shown["url"]).content
    assert hashlib.sha256(data).hexdigest() == shown["sha256"]
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        manifest = json.loads(archive.read("manifest.json"))["sha256"]
        assert set(manifest) == set(archive.namelist()) - {"manifest.json"}
        for name, sha256 in manifest.items():
            assert hashlib.sha256(archive.read(name)).hexdigest() == sha256
        (generation,) = json.loads(archive.read("generations.json"))
        assert generation["prompt"].endswith(CANARY)
        assert next(p["name"] for p in json.loads(archive.read("photos.json"))) == f"{CANARY}.jpg"
        assert json.loads(archive.read("feedback.json"))[0]["text"].endswith(CANARY)
        assert {c["purpose"] for c in json.loads(archive.read("consents.json"))} == {"terms", "likeness"}
        assert "generation.created" in [entry["action"] for entry in json.loads(archive.read("log.json"))]
        assert f"images/{result}.0.png" in manifest
        assert sum(name.startswith("photos/") for name in manifest) == 5
    assert exports.perform(asked["id"]) == "succeeded"


def test_somebody_elses_export_does_not_exist(ada: Person, bob: Person, exports: Exports):
    asked = ada.post("/api/me/export").json()["id"]
    exports.perform(asked)
    is_problem(bob.get(f"/api/me/exports/{asked}"), 404, "not-found")
    is_problem(bob.get(f"/api/media/exports/{asked}"), 404, "not-found")


def test_erasure_closes_the_account_at_once_and_leaves_nothing(
    site: Site, ada: Person, bob: Person, erasure: Erasure, exports: Exports, tmp_path: Path
):
    with_canaries(site, ada)
    theirs = with_canaries(site, bob)
    exports.perform(ada.post("/api/me/export").json()["id"])
    kept = {name: site.objects.store.get(name) for name in every_object(site, ada.id)}
    profile_before = ada.row(User, ada.id)
    SealedStore(erasure.cache_dir / "finetune" / ada.id / "x", f"plain://{ada.id}").put("latents", CANARY.encode())

    answer = ada.ask("DELETE", "/api/me")
    assert answer.status_code == 202
    receipt = answer.json()
    assert receipt["state"] == "erasing"
    is_problem(ada.get("/api/subjects"), 401, "signed-out")
    for name in kept:
        kind, _, object_id = name.split("/")
        with pytest.raises(KeyMissing):
            site.objects.get(ada.id, kind[:-1], object_id)

    with site.service.records.engine.connect() as reader:  # what was deleted is in the log for as long as this goes on
        reader = reader.execution_options(reading=True)
        reader.execute(select(User.id)).all()
        if site.service.records.engine.dialect.name == "sqlite":
            with pytest.raises(WorkInProgress):
                erasure.perform(receipt["receipt"])
            assert site.client.get(f"/api/erasures/{receipt['receipt']}").json()["state"] == "erasing"
    assert erasure.perform(receipt["receipt"]) == "done"
    assert erasure.perform(receipt["receipt"]) == "done"
    shown = site.client.get(f"/api/erasures/{receipt['receipt']}").json()
    assert (shown["state"], shown["done"] is not None) == ("done", True)
    assert list(every_object(site, ada.id)) == []
    assert not (erasure.cache_dir / "finetune" / ada.id).exists()
    assert rows_about(site, ada.id) == []
    assert profile_before.login not in str(rows_about(site, ada.id))
    assert site.service.keyring.versions(ada.id) == []
    with site.service.records.reading() as session:
        assert site.service.audit_log.first_broken(session) is None
    assert bob.get(f"/api/results/{theirs}").json()["prompt"].endswith(CANARY)


def every_object(site: Site, owner: str) -> Iterator[str]:
    for name in site.objects.store.list(""):
        if f"/{owner}/" in name:
            yield name


def rows_about(site: Site, owner: str) -> list[str]:
    """Tables that name a person, but for the tombstone, which is the proof."""
    found = []
    with site.service.records.reading() as session:
        for table, column in (
            ("users", "id"),
            ("subjects", "user_id"),
            ("photos", "user_id"),
            ("runs", "user_id"),
            ("generations", "user_id"),
            ("images", "user_id"),
            ("feedback", "user_id"),
            ("consents", "user_id"),
            ("exports", "user_id"),
            ("idempotency_keys", "user_id"),
            ("login_sessions", "user_id"),
            ("models", "user_id"),
        ):
            count = session.execute(text(f"select count(*) from {table} where {column} = :owner"), {"owner": owner})
            if count.scalar():
                found.append(table)
    return found


def test_no_canary_is_in_any_file(site: Site, ada: Person, erasure: Erasure, exports: Exports):
    """Before and after: personal words are sealed from the start, whatever form one looks for them in."""
    with_canaries(site, ada)
    exports.perform(ada.post("/api/me/export").json()["id"])
    assert holding_canary(site) == []
    receipt = ada.ask("DELETE", "/api/me").json()["receipt"]
    erasure.perform(receipt)
    assert holding_canary(site) == []


def holding_canary(site: Site) -> list[str]:
    """Files of the site, its log, its objects and a backup of its database included, in which the canary is found."""
    engine = site.service.records.engine
    if engine.dialect.name == "sqlite":
        source = sqlite3.connect(str(engine.url.database))
        backup = sqlite3.connect(site.folder / "backup.db")
        source.backup(backup)
        backup.close()
        source.close()
    else:
        (site.folder / "backup.sql").write_bytes(every_row(site))
    stores = {"object": site.objects.store, "keyset": site.service.keyring.store}
    stored = [(f"{kind} {name}", store.get(name)) for kind, store in stores.items() for name in store.list()]
    files = [*files_below(site.folder), *stored]
    assert len(files) > 10
    return holding(forms(CANARY), files)


def every_row(site: Site) -> bytes:
    """What a dump of the whole database would hold, the tables of durable work included."""
    said = []
    with site.service.records.reading() as session:
        tables = session.execute(
            text(
                "select table_schema, table_name from information_schema.tables "
                "where table_schema not in ('pg_catalog', 'information_schema')"
            )
        )
        for schema, name in list(tables):
            for row in session.execute(text(f'select * from "{schema}"."{name}"')):
                said += [bytes(value) if isinstance(value, memoryview) else repr(value).encode() for value in row]
    assert len(said) > 100
    return b"\n".join(value if isinstance(value, bytes) else str(value).encode() for value in said)


def test_an_erasure_waits_for_what_runs(site: Site, ada: Person, erasure: Erasure):
    subject = ada.subject_with_photos(5)
    run = ada.post("/api/runs", json={"subject": subject}).json()["id"]
    receipt = ada.ask("DELETE", "/api/me").json()["receipt"]
    assert ada.row(Run, run).state == "cancelled"  # it had not begun
    with site.service.records.writing() as session:
        session.get_one(Run, run).state = "running"
    with pytest.raises(WorkInProgress):
        replace(erasure, is_idle=lambda owner: owner != ada.id).perform(receipt)
    assert site.client.get(f"/api/erasures/{receipt}").json()["state"] == "erasing"
    assert ada.row(User, ada.id).state == "erasing"
    assert erasure.perform(receipt) == "done"


def test_a_receipt_is_nobodys_guess(site: Site):
    is_problem(site.client.get(f"/api/erasures/{'0' * 32}"), 404, "not-found")
    is_problem(site.client.get("/api/erasures/x"), 422, "invalid")


def test_the_log_shows_what_was_changed_in_it(site: Site, ada: Person):
    ada.subject()
    with site.service.records.writing() as session:
        assert site.service.audit_log.first_broken(session) is None
        number = session.execute(text("select max(number) from audit_log")).scalar()
        session.execute(text("update audit_log set outcome = 'never' where number = :n"), {"n": number})
        session.expire_all()
        assert site.service.audit_log.first_broken(session) == number
        session.rollback()
    with site.service.records.writing() as session:
        site.service.audit_log.record(session, SYSTEM, "test", None)
    with site.service.records.reading() as session:
        assert site.service.audit_log.first_broken(session) is None


def test_an_export_of_nobody_is_none(exports: Exports, ada: Person):
    assert exports.perform("0" * 32) == "cancelled"
    asked = ada.post("/api/me/export").json()["id"]
    assert exports.fail(asked, "internal", "something went wrong") == "failed"
    assert ada.row(Export, asked).state == "failed"
