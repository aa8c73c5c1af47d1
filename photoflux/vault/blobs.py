"""Stores of immutable blobs, in a folder or in a Cloud Storage bucket, behind one interface.

Names are made by this program (ids, never a person's words) and are paths of letters, digits and `._-`.
"""

from __future__ import annotations

import os
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol, cast

from photoflux.errors import InputError, PhotoFluxError

if TYPE_CHECKING:
    from google.cloud.storage import Client

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*")
BUCKET = "gs://"
PARTIAL = ".partial-"
LEFTOVER_AGE_S = 24 * 3600
"""A partial file this old was left by a process that was killed, and is removed."""
LINK_TRIES = 100
UPLOAD_CHUNK_BYTES = 8 << 20
"""Bytes of a file that are in memory while it is uploaded; the client's own default is 100 MiB."""


class BlobExists(PhotoFluxError):
    """A blob of this name exists already; it is unchanged."""


class BlobMissing(PhotoFluxError):
    """No blob of this name."""


class BlobStore(Protocol):
    """Immutable blobs by name."""

    def put_new(self, name: str, data: bytes) -> None:
        """Store a new blob, whole or not at all. Raises BlobExists, and changes nothing, when the name is taken."""

    def put_file(self, name: str, path: Path) -> None:
        """As `put_new`, from a file that `scratch` gave."""

    def scratch(self) -> AbstractContextManager[Path]:
        """An empty file, readable by its owner alone, to be written and `put_file`; gone after the block."""

    def get(self, name: str) -> bytes:
        """Raises BlobMissing."""

    def open(self, name: str) -> BinaryIO:
        """A stream that the caller closes; it stays readable when the blob is deleted meanwhile. Raises BlobMissing."""

    def delete(self, name: str) -> None:
        """Delete the blob; a missing one is no error, so that a deletion can be repeated."""

    def exists(self, name: str) -> bool: ...

    def age_s(self, name: str) -> float:
        """Seconds since it was stored; 0 when it is not there."""

    def list(self, prefix: str = "") -> Iterator[str]:
        """Names that begin with `prefix`, sorted."""


def open_store(uri: str, *, client: Client | None = None) -> BlobStore:
    """The store at `gs://bucket/prefix`, or in a folder. `client` replaces the one of the environment's credentials."""
    if not uri.startswith(BUCKET):
        return FolderStore(Path(uri))
    from google.cloud.storage import Client

    bucket, _, prefix = uri.removeprefix(BUCKET).partition("/")
    return CloudStore(client or Client(), bucket, prefix=prefix)


def check_name(name: str) -> str:
    """The name itself. Raises InputError for one that could lead out of the store, or that begins with a dot."""
    if not NAME.fullmatch(name) or len(name) > 512:
        raise InputError(f"blob name {name!r}: use letters, digits, '.', '_' and '-', with '/' between parts")
    return name


class FolderStore:
    """Blobs as files, readable by their owner alone."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def put_new(self, name: str, data: bytes) -> None:
        check_name(name)
        with self.scratch() as partial:
            partial.write_bytes(data)
            self.put_file(name, partial)

    def put_file(self, name: str, path: Path) -> None:
        target = self.folder / check_name(name)
        with path.open("rb") as file:
            os.fsync(file.fileno())
        try:
            _link(path, target)
        except FileExistsError:
            raise BlobExists(f"blob {name} exists already") from None

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        _remove_leftovers(self.folder)
        with _scratch(self.folder) as partial:  # on the store's own disk, so that it can be linked
            yield partial

    def get(self, name: str) -> bytes:
        with self.open(name) as file:
            return file.read()

    def open(self, name: str) -> BinaryIO:
        try:
            return (self.folder / check_name(name)).open("rb")
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise BlobMissing(f"blob {name} is missing") from None

    def delete(self, name: str) -> None:
        target = self.folder / check_name(name)
        target.unlink(missing_ok=True)
        for parent in target.parents:
            if parent == self.folder or not _remove_if_empty(parent):
                break

    def exists(self, name: str) -> bool:
        return (self.folder / check_name(name)).is_file()

    def age_s(self, name: str) -> float:
        try:
            return max(0.0, time.time() - (self.folder / check_name(name)).stat().st_mtime)
        except (FileNotFoundError, NotADirectoryError):
            return 0.0

    def list(self, prefix: str = "") -> Iterator[str]:
        start = self.folder / prefix.rpartition("/")[0]
        walked = os.walk(start)  # unlike rglob it goes on when a folder is deleted during the walk
        names = (Path(at, file).relative_to(self.folder).as_posix() for at, _, files in walked for file in files)
        yield from sorted(name for name in names if name.startswith(prefix) and NAME.fullmatch(name))


def _link(path: Path, target: Path) -> None:
    """Hard-link a file to `target`. Raises FileExistsError where that exists, which a rename would replace."""
    for attempt in range(1, LINK_TRIES + 1):
        with suppress(FileExistsError, FileNotFoundError):  # `delete` may remove the empty folder meanwhile
            target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            os.link(path, target)
            break
        except FileNotFoundError:
            if attempt == LINK_TRIES:
                raise


@contextmanager
def _scratch(folder: Path | None) -> Iterator[Path]:
    descriptor, partial = tempfile.mkstemp(dir=folder, prefix=PARTIAL)  # made with mode 0600
    os.close(descriptor)
    try:
        yield Path(partial)
    finally:
        Path(partial).unlink(missing_ok=True)


def _remove_leftovers(folder: Path) -> None:
    for file in folder.glob(f"{PARTIAL}*"):
        with suppress(FileNotFoundError):  # its writer has just removed it
            if time.time() - file.stat().st_mtime > LEFTOVER_AGE_S:
                file.unlink()


def _remove_if_empty(folder: Path) -> bool:
    try:
        folder.rmdir()
    except OSError:
        return False
    return True


class CloudStore:
    """Blobs as objects of a bucket, in which versioning and soft delete must be off."""

    def __init__(self, client: Client, bucket: str, *, prefix: str = "") -> None:
        self.bucket, self.prefix = client.bucket(bucket), f"{prefix.rstrip('/')}/" if prefix else ""

    def put_new(self, name: str, data: bytes) -> None:
        from google.api_core.exceptions import PreconditionFailed

        try:
            self._blob(name).upload_from_string(data, content_type="application/octet-stream", if_generation_match=0)
        except PreconditionFailed:
            raise BlobExists(f"blob {name} exists already") from None

    def put_file(self, name: str, path: Path) -> None:
        from google.api_core.exceptions import PreconditionFailed

        blob = self._blob(name)
        blob.chunk_size = UPLOAD_CHUNK_BYTES
        try:
            blob.upload_from_filename(str(path), content_type="application/octet-stream", if_generation_match=0)
        except PreconditionFailed:
            raise BlobExists(f"blob {name} exists already") from None

    def scratch(self) -> AbstractContextManager[Path]:
        return _scratch(None)

    def open(self, name: str) -> BinaryIO:
        from google.api_core.exceptions import NotFound

        blob = self._blob(name)
        with ExitStack() as stack:
            file = stack.enter_context(tempfile.TemporaryFile())  # unnamed: gone with this process
            try:
                blob.download_to_file(file)
            except NotFound:
                raise BlobMissing(f"blob {name} is missing") from None
            file.seek(0)
            stack.pop_all()
            return cast(BinaryIO, file)

    def get(self, name: str) -> bytes:
        from google.api_core.exceptions import NotFound

        try:
            return self._blob(name).download_as_bytes()
        except NotFound:
            raise BlobMissing(f"blob {name} is missing") from None

    def delete(self, name: str) -> None:
        from google.api_core.exceptions import NotFound

        try:
            self._blob(name).delete()
        except NotFound:
            return

    def exists(self, name: str) -> bool:
        return self._blob(name).exists()

    def age_s(self, name: str) -> float:
        blob = self.bucket.get_blob(self.prefix + check_name(name))
        return max(0.0, time.time() - blob.time_created.timestamp()) if blob else 0.0

    def list(self, prefix: str = "") -> Iterator[str]:
        found = self.bucket.client.list_blobs(self.bucket, prefix=self.prefix + prefix)
        yield from sorted(blob.name.removeprefix(self.prefix) for blob in found)

    def _blob(self, name: str):
        return self.bucket.blob(self.prefix + check_name(name))
