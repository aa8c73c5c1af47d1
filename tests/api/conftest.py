"""The same tests on SQLite and on a real PostgreSQL that is started for them."""

from __future__ import annotations

import hashlib
import itertools
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text
from starlette.testclient import TestClient

from api.jobs import job_queue
from api.main import make_app
from api.records.database import Records, migrate, open_engine
from api.settings import ApiSettings
from api.training.photo_decoding import DecodedUpload
from benchmarks.postgres import Unavailable, postgres_server
from photoflux.photos.inspect import Fingerprint, Likeness
from photoflux.photos.table import Pair, pair_of
from photoflux.settings import sqlite_url
from tests.api.lock_order import LockOrder
from tests.api.people import PAIRS, Person, Site
from tests.cloud import GOOGLE_KEY, cloud_kms, new_bucket


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """URL of a PostgreSQL server on loopback, gone after the session."""
    with ExitStack() as stack:
        try:
            url = stack.enter_context(postgres_server())
        except Unavailable as reason:
            pytest.skip(str(reason))
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty database of each kind."""
    if request.param == "sqlite":
        yield sqlite_url(tmp_path / "records" / "photoflux.db")
    else:
        with new_database(request.getfixturevalue("postgres")) as url:
            yield url


@contextmanager
def new_database(server: str, *, like: str = "template0") -> Iterator[str]:
    """A database of a PostgreSQL server, a copy of `like`, dropped afterwards."""
    name, driver = f"t{uuid.uuid4().hex}", server.replace("postgresql", "postgresql+psycopg")
    admin = create_engine(f"{driver}/postgres", isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name} TEMPLATE {like} STRATEGY FILE_COPY"))
    yield f"{server}/{name}"
    with admin.connect() as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    admin.dispose()


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated file, to be copied."""
    file = tmp_path_factory.mktemp("migrated") / "photoflux.db"
    migrate(sqlite_url(file))
    job_queue.prepare(sqlite_url(file))
    return file


@pytest.fixture(scope="session")
def migrated_postgres(postgres: str) -> Iterator[str]:
    """Name of a migrated database, to be copied."""
    with new_database(postgres) as url:
        migrate(url)
        job_queue.prepare(url)
        yield url.rsplit("/", 1)[1]


@pytest.fixture(params=["sqlite", "postgresql"])
def records(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Records]:
    """Migrated records on each kind of database."""
    with migrated(request, tmp_path) as url:
        engine = open_engine(url)
        yield Records(engine)
        engine.dispose()


@contextmanager
def migrated(request: pytest.FixtureRequest, folder: Path) -> Iterator[str]:
    """URL of a migrated database of the kind that the fixture is asked for."""
    with ExitStack() as stack:
        if request.param == "sqlite":
            shutil.copy(request.getfixturevalue("migrated_sqlite"), folder / "photoflux.db")
            yield sqlite_url(folder / "photoflux.db")
        else:
            server, like = (request.getfixturevalue(name) for name in ("postgres", "migrated_postgres"))
            yield stack.enter_context(new_database(server, like=like))


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The service in this process for all tests of a module, each with people of its own: as on one machine, and as in the cloud.

    SQLite, folders and a key file; or PostgreSQL, a bucket's emulator and a server of Cloud KMS.
    """
    folder = tmp_path_factory.mktemp("site")
    with ExitStack() as stack:
        url = stack.enter_context(migrated(request, folder))
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setenv("PHOTOFLUX_STATE_DIR", str(folder / "state"))
        patch.setenv("PHOTOFLUX_DATABASE_URL", url)
        if request.param == "postgresql":
            stack.enter_context(cloud_kms())
            for name, value in in_the_cloud(request.getfixturevalue("emulator")).items():
                patch.setenv(name, value)
        app = make_app(ApiSettings())
        with TestClient(app, base_url="http://127.0.0.1:8000", raise_server_exceptions=False) as client:
            service = innermost(app).state.service
            service.intake.decode = remembering(service.intake.decode)
            object.__setattr__(service.collection, "compare", comparing_once(service.collection.compare))
            order = LockOrder(service.records.engine)
            yield Site(client, service, folder)
            # on SQLite statements do not say what they lock: there is one writer at a time
            if request.param == "postgresql":
                assert order.wrong == [], "transactions lock rows in the order of api.records.tables.LOCK_ORDER"


def remembering(
    decode: Callable[[Sequence[bytes], str], list[DecodedUpload]],
) -> Callable[[Sequence[bytes], str], list[DecodedUpload]]:
    """`decode` that decodes each file once in a session: the sample photos are uploaded by most tests."""

    def remembered(files: Sequence[bytes], person: str = "") -> list[DecodedUpload]:
        keys = [hashlib.sha256(data).digest() for data in files]
        new = [number for number, key in enumerate(keys) if key not in DECODED]
        fresh = dict(zip((keys[n] for n in new), decode([files[n] for n in new], person) if new else (), strict=True))
        # a slow machine's refusal is not kept
        DECODED.update({key: upload for key, upload in fresh.items() if upload.photo})
        return [DECODED.get(key) or fresh[key] for key in keys]

    return remembered


def comparing_once(compare: Callable[..., dict[Pair, Likeness]]) -> Callable[..., dict[Pair, Likeness]]:
    """`compare` that compares two photos once in a session."""

    def compared(prints: Sequence[Fingerprint], known: Mapping[Pair, Likeness], person: str) -> dict[Pair, Likeness]:
        PAIRS.update(compare(prints, {**PAIRS, **known}, person))
        return {
            pair: PAIRS[pair]
            for pair in itertools.starmap(pair_of, itertools.combinations(prints, 2))
            if pair not in known
        }

    return compared


DECODED: dict[bytes, DecodedUpload] = {}


def in_the_cloud(emulator: str) -> dict[str, str]:
    """Settings of a service whose objects and keysets lie in buckets, under a key of Cloud KMS."""
    return {
        "STORAGE_EMULATOR_HOST": emulator,
        "GOOGLE_CLOUD_PROJECT": "test",
        "PHOTOFLUX_BLOBS": f"gs://{new_bucket(emulator)}/objects",
        "PHOTOFLUX_KEYRING": f"gs://{new_bucket(emulator)}",
        "PHOTOFLUX_KEK_URI": f"gcp-kms://{GOOGLE_KEY}",
    }


def innermost(app: Any) -> Any:
    """The application inside its middleware."""
    while hasattr(app, "app"):
        app = app.app
    return app


@pytest.fixture
def ada(site: Site) -> Person:
    """Somebody who signed in and agreed to everything."""
    return site.person()


@pytest.fixture
def bob(site: Site) -> Person:
    """Somebody else."""
    return site.person()
