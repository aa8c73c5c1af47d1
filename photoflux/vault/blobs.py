"""Where sealed bytes lie: a folder or a Cloud Storage bucket behind five verbs.

Names are made by this program (ids, never a person's words) and are paths of letters, digits and `._-`.
"""

from __future__ import annotations

import os
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from photoflux.errors import InputError, PhotoFluxError

if TYPE_CHECKING:
    from google.cloud.storage import Client

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*")
BUCKET = "gs://"


class BlobExists(PhotoFluxError):
    """A name that was to be new is taken; what it holds is unchanged."""


class BlobMissing(PhotoFluxError):
    """No blob of this name."""


class BlobStore(Protocol):
    """Immutable blobs by name."""

    def put_new(self, name: str, data: bytes) -> None:
        """Store whole or not at all. Raises BlobExists and changes nothing when the name is taken."""

    def get(self, name: str) -> bytes:
        """Raises BlobMissing."""

    def delete(self, name: str) -> None:
        """Remove it; a name that is not there is no error, so that a deletion can be repeated."""

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
    """The name itself. Raises InputError for one that could leave the store or hide in it."""
    if not NAME.fullmatch(name) or len(name) > 512:
        raise InputError(f"blob name {name!r}: use letters, digits, '.', '_' and '-', with '/' between parts")
    return name


class FolderStore:
    """Blobs as files, readable by their owner alone."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def put_new(self, name: str, data: bytes) -> None:
        target = self.folder / check_name(name)
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor, partial = tempfile.mkstemp(dir=target.parent, prefix=".partial-")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.link(partial, target)  # fails where the name is taken, unlike a rename
        except FileExistsError:
            raise BlobExists(f"blob {name} exists already") from None
        finally:
            Path(partial).unlink()

    def get(self, name: str) -> bytes:
        try:
            return (self.folder / check_name(name)).read_bytes()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise BlobMissing(f"blob {name} is missing") from None

    def delete(self, name: str) -> None:
        target = self.folder / check_name(name)
        target.unlink(missing_ok=True)
        for parent in target.parents:
            if parent == self.folder or not _removed(parent):
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
        names = (file.relative_to(self.folder).as_posix() for file in start.rglob("*") if file.is_file())
        yield from sorted(name for name in names if name.startswith(prefix) and NAME.fullmatch(name))


def _removed(folder: Path) -> bool:
    try:
        folder.rmdir()
    except OSError:
        return False
    return True


class CloudStore:
    """Blobs as objects of a bucket, which must neither keep versions nor soft-deleted objects."""

    def __init__(self, client: Client, bucket: str, *, prefix: str = "") -> None:
        self.bucket, self.prefix = client.bucket(bucket), f"{prefix.rstrip('/')}/" if prefix else ""

    def put_new(self, name: str, data: bytes) -> None:
        from google.api_core.exceptions import PreconditionFailed

        try:
            self._blob(name).upload_from_string(data, content_type="application/octet-stream", if_generation_match=0)
        except PreconditionFailed:
            raise BlobExists(f"blob {name} exists already") from None

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
