"""Key-encrypting keys by URI: Cloud KMS in production, a key file on one machine, one code path for both."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from photoflux.errors import InputError

if TYPE_CHECKING:
    from tink.aead import Aead

LOCAL, GOOGLE = "local-kms://", "gcp-kms://"
LOCAL_KEK_NAME = f"{LOCAL}state/kek"
"""The name by which keysets refer to the key file in the state folder, so that the folder may be moved."""


class KeyFileExists(InputError):
    """The key file exists already; it is unchanged."""


def open_kek(uri: str) -> Aead:
    """The key that wraps keysets, ready to use.

    `local-kms:///folder/name` is a key file; `gcp-kms://projects/…/cryptoKeys/name` a Cloud KMS key, named without a
    version, so that rotation there needs no change here. Raises InputError for any other URI, and for a key file that is
    missing, damaged or readable by others.
    """
    from tink import aead

    aead.register()
    if uri.startswith(LOCAL):
        return _open_file(_file(uri))
    if uri.startswith(GOOGLE) and "/cryptoKeyVersions/" not in uri:
        from tink.integration import gcpkms

        return gcpkms.GcpKmsClient(None, "").get_aead(uri)
    raise InputError(f"key-encrypting key '{uri}': give {LOCAL}/path/of/a/file or {GOOGLE}projects/…/cryptoKeys/name")


def create_kek(uri: str) -> None:
    """Make the key file of a local URI, readable by its owner alone; an existing one is never replaced.

    Raises InputError for Cloud KMS keys, which are made where access to them is granted.
    """
    import tink
    from tink import aead, json_proto_keyset_format, secret_key_access

    if not uri.startswith(LOCAL):
        raise InputError(f"key-encrypting key '{uri}': create it in Cloud KMS; only {LOCAL} keys are made here")
    aead.register()
    handle = tink.new_keyset_handle(aead.aead_key_templates.AES256_GCM)
    _write_new(_file(uri), json_proto_keyset_format.serialize(handle, secret_key_access.TOKEN).encode())


def destroy_kek(uri: str) -> None:
    """Overwrite and remove the key file of a local URI: what it wrapped can never be opened again.

    Raises InputError for Cloud KMS keys, whose versions are destroyed there.
    """
    if not uri.startswith(LOCAL):
        raise InputError(f"key-encrypting key '{uri}': destroy its old version in Cloud KMS")
    file = _file(uri)
    with file.open("r+b") as key:
        key.write(os.urandom(file.stat().st_size))
        key.flush()
        os.fsync(key.fileno())
    file.unlink()


def _file(uri: str) -> Path:
    path = Path(uri.removeprefix(LOCAL))
    if not path.is_absolute():
        raise InputError(
            f"key-encrypting key '{uri}': the path of the key file must be absolute, as in {LOCAL}/etc/kek"
        )
    return path


def _open_file(file: Path) -> Aead:
    import tink
    from tink import aead, json_proto_keyset_format, secret_key_access

    if not file.is_file():
        raise InputError(f"key file {file} is missing; restore it, or make a new one with `photoflux keys create`")
    if file.stat().st_mode & 0o077:
        raise InputError(f"key file {file} can be read by others; run: chmod 600 {file}")
    try:
        handle = json_proto_keyset_format.parse(file.read_text(encoding="utf-8"), secret_key_access.TOKEN)
        return handle.primitive(aead.Aead)
    except (tink.TinkError, ValueError) as error:
        raise InputError(f"key file {file} is damaged; restore it from its backup") from error


def _write_new(file: Path, content: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor, name = tempfile.mkstemp(dir=file.parent, prefix=".kek-")  # made with mode 0600
    try:
        with os.fdopen(descriptor, "wb") as partial:
            partial.write(content)
            partial.flush()
            os.fsync(partial.fileno())
        os.link(name, file)
    except FileExistsError:
        raise KeyFileExists(f"key file {file} exists already; it is kept, since others may depend on it") from None
    finally:
        Path(name).unlink()
