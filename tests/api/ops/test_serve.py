"""The service as `make serve` runs it, used by the README's own lines; and its processes killed under it."""

from __future__ import annotations

import io
import json
import re
import shutil
import sqlite3
import subprocess
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx2
import pytest
from PIL import Image

from api.ops.inventory import inventory
from api.records.service_secrets import OWNER
from benchmarks.chaos import RunningService
from photoflux.vault.blobs import FolderStore
from photoflux.vault.kek import LOCAL
from photoflux.vault.keyring import KeyMissing, Keyring
from photoflux.vault.sealed import FORMAT, Label, unseal_bytes
from tests.canaries import files_below, forms, holding

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[3]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Any]:
    running: list[RunningService] = []

    folder = tmp_path / "50%20off, Rex' photos"
    folder.mkdir()

    def started(*options: str, **settings: str) -> RunningService:
        running.append(RunningService(folder, *options, **settings))
        return running[-1]

    yield started
    for served in running:
        served.stop()


def signed_in(served: RunningService, verify: Any = True) -> httpx2.Client:
    """A client with an access token that agreed to the terms."""
    client = httpx2.Client(base_url=served.base, timeout=60, verify=verify)
    page = client.get("/api/auth/login").headers["location"]
    password = (served.state / "demo-password").read_text()
    back = client.post(page, data={"email": "demo@photoflux.local", "password": password}).headers["location"]
    client.get(back)
    client.headers["Authorization"] = f"Bearer {client.post('/api/auth/refresh').json()['access_token']}"
    for wording in client.get("/api/terms").json()["items"]:
        if wording["agree"]:
            client.post("/api/consents", json={name: wording[name] for name in ("purpose", "sha256")})
    return client


def test_the_readmes_lines_do_what_they_say(start: Any, tmp_path: Path):
    """The block as it stands there, run by bash; figures go to the test's output."""
    block = re.search(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert block
    served, folder = start("--no-mlflow"), tmp_path / "shell"
    folder.mkdir()
    (folder / "data").symlink_to(ROOT / "data")
    started = time.monotonic()
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block[1]],
        cwd=folder,
        env=served.environment | {"BASE": served.base},
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    print(f"README's lines: {time.monotonic() - started:.0f} s")
    said = done.stdout
    assert '["succeeded"]' in said
    assert '"state": "succeeded"' in said
    picture = Image.open(folder / "rex.jpg")
    assert (picture.size, picture.format) == ((512, 512), "JPEG")


CANARY = "Kanarienvögel-8d1f"


def with_canary(photo: Path) -> bytes:
    """A photo that says the canary in its metadata."""
    exif = Image.Exif()
    exif[0x010E] = CANARY.encode("ascii", "replace").decode()
    exif[0x9286] = CANARY
    buffer = io.BytesIO()
    Image.open(photo).save(buffer, format="JPEG", exif=exif, quality=95, comment=CANARY.encode())
    return buffer.getvalue()


def draw_with_canaries(client: httpx2.Client) -> tuple[str, list[bytes]]:
    """A subject's whole way to pictures and an export; its id, and pieces of everything that was given out of it."""
    subject = client.post("/api/subjects", json={"class_noun": "dog", "depicts": "no_person", "name": CANARY}).json()[
        "id"
    ]
    photos = sorted((ROOT / "data/samples/dog").glob("*.jpg"))[:6]
    files = [("photos", (f"{CANARY}-{n}.jpg", with_canary(photo), "image/jpeg")) for n, photo in enumerate(photos)]
    keyed = {"Idempotency-Key": CANARY.encode()}
    assert client.post("/api/upload", data={"subject": subject}, files=files, headers=keyed).status_code == 201
    assert client.post("/api/webhooks", json={"url": f"http://127.0.0.1:9/{quote(CANARY)}"}).status_code == 201
    asked = {"subject": subject, "prompt": f"a photo of sks dog {CANARY}", "n": 2}
    result = client.post("/api/generate", json=asked, headers={"Idempotency-Key": f"{CANARY}-2".encode()}).json()["id"]
    until = time.monotonic() + 1200  # a hang, and no slow machine
    while (shown := client.get(f"/api/results/{result}?wait=20").json())["finished"] is None:
        assert time.monotonic() < until
    assert shown["state"] == "succeeded", shown
    said = {"rating": 2, "text": CANARY}
    assert client.put(f"/api/results/{result}/feedback", json=said).status_code == 204
    client.get("/api/prompts/suggest", params={"subject": subject, "q": CANARY})
    export = client.post("/api/me/export").json()["id"]
    while (shown := client.get(f"/api/me/exports/{export}").json())["state"] in ("queued", "running"):
        assert time.monotonic() < until
        time.sleep(0.2)
    assert shown["state"] == "succeeded", shown
    pieces = [
        client.get(f"/api/media/photos/{photo['id']}").content
        for photo in client.get(f"/api/subjects/{subject}/photos").json()["photos"]
    ]
    with zipfile.ZipFile(io.BytesIO(client.get(f"/api/media/exports/{export}").content)) as archive:
        names = [name for name in archive.namelist() if name.startswith(("photos/", "models/", "images/"))]
        assert len(names) == 6 + 1 + 2
        pieces += [archive.read(name) for name in names]
    return subject, pieces


def test_of_an_erased_person_nothing_is_left_anywhere(tmp_path: Path):
    """After a real run: in records, log and backup, objects, registry, pipelines' folders, caches, logs and temporary files."""
    homes = {"HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path / "tmp"), "XDG_CACHE_HOME": str(tmp_path / "home")}
    for folder in ("home", "tmp"):
        (tmp_path / folder).mkdir()
    served = RunningService(tmp_path, "--no-mlflow", **homes)
    try:
        client = signed_in(served)
        subject, pieces = draw_with_canaries(client)
        needles = forms(CANARY) + [piece[len(piece) // 2 :][:24] for piece in pieces]
        assert holding(needles, files_below(tmp_path)) == [], "before it is erased, all of it is sealed"
        files = [file.relative_to(served.state).as_posix() for file in served.state.rglob("*") if file.is_file()]
        assert [name for name in files if not inventory().holds_file(name)] == []
        aside = tmp_path / "aside"
        shutil.copytree(served.state / "blobs", aside / "blobs")
        shutil.copytree(tmp_path / "runs", aside / "runs")
        copy_database(served.state / "photoflux.db", aside / "photoflux.db")
        receipt = client.delete("/api/me").json()["receipt"]
        until = time.monotonic() + 120
        while client.get(f"/api/erasures/{receipt}").json()["state"] != "done":
            assert time.monotonic() < until
            time.sleep(0.2)
    finally:
        served.stop()
    assert holding(needles, files_below(tmp_path)) == []
    assert unopenable(aside, served.state) >= 6 * 2 + 1 + 2 + 1
    assert not list((tmp_path / "runs").glob("personalize-*")), "pipelines' folders"
    assert not list(served.state.rglob("adapter*")), "registry"
    assert not list(served.state.glob(f"**/*{subject}*"))


def copy_database(source: Path, target: Path) -> None:
    """A backup, as an operator makes one."""
    with sqlite3.connect(source) as original, sqlite3.connect(target) as copy:
        original.backup(copy)


def unopenable(folder: Path, state: Path) -> int:
    """How many sealed files of a folder no key that is left opens; asserts that there is none other."""
    keyring, count = Keyring(FolderStore(state / "keyring"), f"{LOCAL}{state / 'kek'}"), 0
    columns = [name.split(".") for one in inventory().activities for name in one.sealed if "signing" not in name]
    with sqlite3.connect(folder / "photoflux.db") as records:
        rows = [row[0] for table, column in columns for row in records.execute(f"select {column} from {table}")]
    for data in [*(data for _, data in files_below(folder)), *filter(None, rows)]:
        if (label := label_of(data)) is None:
            continue
        if label.owner == OWNER:  # the service's own: heads of the audit log, which name nobody
            assert label.kind == "head"
            continue
        with pytest.raises(KeyMissing):
            unseal_bytes(data, label=label, keyring=keyring)
        count += 1
    return count


def label_of(data: bytes) -> Label | None:
    """What sealed bytes say of themselves; None for any others."""
    try:
        told = json.loads(data.partition(b"\n")[0])
    except ValueError:
        return None
    sealed = isinstance(told, dict) and told.get("format") == FORMAT
    return Label(told["owner"], told["kind"], told["id"]) if sealed else None


def test_it_serves_over_tls_with_an_authority_of_its_own(start: Any):
    import ssl

    served = start("--no-mlflow", "--tls")
    trusted = ssl.create_default_context(cafile=str(served.state / "tls" / "ca.pem"))
    client = signed_in(served, verify=trusted)
    assert client.get("/api/subjects").json() == {"items": [], "next": None}
    cookie = client.get("/api/auth/login").headers["set-cookie"]
    assert "Secure" in cookie
    assert (served.state / "tls" / "key.pem").stat().st_mode & 0o077 == 0
