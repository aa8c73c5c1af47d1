"""`python -m tests.api.packing FOLDER MEGABYTES`: packs and downloads an export in this process and tells how its memory grew.

A process of its own, because the largest memory of a process is only known since its beginning.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from api.jobs import job_queue
from api.main import make_app
from api.privacy.export import Exports
from api.records.tables import Export, GeneratedImage, Generation, Subject, new_id, prompt_label
from api.settings import ApiSettings
from photoflux.vault.sealed import seal_bytes
from tests.api.conftest import innermost
from tests.api.people import Person, Site

STATUS = Path("/proc/self/status")


def with_pictures(site: Site, person: Person, count: int, *, size: int) -> list[str]:
    """Pictures of so many random bytes, as a worker leaves them; returns the names of their files in an export."""
    objects, names = site.service.objects, []
    row = Generation(
        id=new_id(), user_id=person.id, state="succeeded", n=count, seed=1, size="64x64", format="png", style="photo"
    )
    row.prompt = seal_bytes(b"a dog", label=prompt_label(row), keyring=objects.keyring)
    with site.service.records.writing() as session:
        subject = Subject(id=new_id(), user_id=person.id, class_noun="dog", depicts="no_person", trigger="sks")
        session.add(subject)
        session.flush()
        row.subject_id = subject.id
        session.add(row)
    for position in range(count):
        image = GeneratedImage(
            user_id=person.id,
            generation_id=row.id,
            position=position,
            object_id=f"{row.id}.{position}.{new_id()}",
            seed=1,
            sha256="ab" * 32,
            stored_bytes=size,
        )
        objects.put(person.id, "image", image.object_id, os.urandom(size))
        with site.service.records.writing() as session:
            session.add(image)
        names.append(f"images/{row.id}.{position}.png")
    return names


def ask_for_export(person: Person) -> str:
    """Id of a new export."""
    answer = person.post("/api/me/export")
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def peak_growth(do: Callable[[], object]) -> int:
    """Bytes by which the resident memory was at most larger while something was done."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the largest so far is the present one
    before = _largest()
    do()
    return _largest() - before


def _largest() -> int:
    (line,) = (line for line in STATUS.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM:"))
    return 1024 * int(line.split()[1])


async def downloaded(app: Any, token: str, path: str) -> tuple[int, str]:
    """Length and SHA-256 of an answer, piece by piece: a client would hold it all."""
    length, digest = 0, hashlib.sha256()

    async def receive() -> Any:
        return await asyncio.Event().wait()

    async def send(message: Any) -> None:
        nonlocal length
        if message["type"] == "http.response.body":
            length += len(message.get("body", b""))
            digest.update(message.get("body", b""))
        else:
            assert message["status"] == 200, message

    headers = [(b"host", b"127.0.0.1:8000"), (b"authorization", f"Bearer {token}".encode())]
    await app(
        {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "method": "GET",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": headers,
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 8000),
            "state": {},
        },
        receive,
        send,
    )
    return length, digest.hexdigest()


def packed_and_downloaded(site: Site, app: Any, person: Person) -> dict[str, int]:
    """Growths of memory in bytes, and the length of the ZIP."""
    service, export_id = site.service, ask_for_export(person)
    exports = Exports(service.records, service.objects, service.audit_log)
    packing = peak_growth(lambda: exports.perform(export_id))
    with service.records.reading() as session:
        row = session.get_one(Export, export_id)
    found, portal = list[tuple[int, str]](), site.client.portal  # type: ignore[attr-defined]
    path = f"/api/media/exports/{export_id}"
    downloading = peak_growth(lambda: found.append(portal.call(downloaded, app, person.token, path)))
    assert found == [(row.stored_bytes, row.sha256)]
    return {"packing": packing, "downloading": downloading, "bytes": found[0][0]}


def main() -> int:
    """Print the growths in bytes, as JSON."""
    folder, megabytes = Path(sys.argv[1]), int(sys.argv[2])
    os.environ["PHOTOFLUX_STATE_DIR"] = str(folder)
    app = make_app(ApiSettings())
    with TestClient(app, base_url="http://127.0.0.1:8000") as client:
        service = innermost(app).state.service
        job_queue.prepare(service.settings.records_url)
        site = Site(client, service, folder)
        person = site.person()
        for count in (2, megabytes):  # the first loads what is loaded once
            with_pictures(site, person, count, size=1_000_000)
            told = packed_and_downloaded(site, app, person)
    print(json.dumps(told))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
