"""Sealed bytes: a header line with owner, kind, id and key version, then streaming ciphertext that is bound to that header.

Tink writes the end of a stream even when an exception leaves it, and yields plaintext before it has authenticated the end. So a
sink must be thrown away where sealing raised, and opened plaintext may be used only once its iterator has ended, or where it
can still be taken back, as an HTTP response that is aborted.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import BinaryIO

from photoflux.errors import PhotoFluxError
from photoflux.vault.keyring import Keyring

FORMAT = "photoflux-sealed-1"
HEADER_MAX_BYTES = 1024
CHUNK_BYTES = 1 << 20


class SealBroken(PhotoFluxError):
    """The bytes were altered, cut off, swapped for others, or never sealed."""


@dataclass(frozen=True)
class Label:
    """What sealed bytes are bound to: another owner's, kind's or object's bytes do not open in their place."""

    owner: str
    kind: str
    id: str


class _CiphertextSink(io.RawIOBase):
    """Writes Tink's ciphertext to `file`, and does not close it.

    Once `discarded` is set it writes nothing more: Tink ends a stream also after an error, and the truncated file would then open.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.discarded = file, False

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]
        return len(data) if self.discarded else self.file.write(data)


class _CiphertextSource(io.RawIOBase):
    """Reads the rest of `file` for Tink."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        return self.file.read(size)


def seal(source: BinaryIO, sink: BinaryIO, *, label: Label, keyring: Keyring) -> None:
    """`seal_from` with the bytes of `source`."""

    def copy(stream: BinaryIO) -> None:
        while chunk := source.read(CHUNK_BYTES):
            stream.write(chunk)

    seal_from(copy, sink, label=label, keyring=keyring)


def seal_from(write: Callable[[BinaryIO], None], sink: BinaryIO, *, label: Label, keyring: Keyring) -> None:
    """Seal what `write` writes, to `sink`, under the owner's newest key, made when there is none.

    `write` is given a stream that cannot seek. Where this raises (OwnerErased among others), `sink` holds nothing of use
    and must be thrown away.
    """
    version, primitive = keyring.newest_primitive(label.owner)
    header = _header(label, version)
    sink.write(header)
    ciphertext = _CiphertextSink(sink)
    stream = primitive.new_encrypting_stream(ciphertext, header)
    try:
        write(stream)
        stream.close()
    except BaseException:
        ciphertext.discarded = True
        raise


def unseal(source: BinaryIO, sink: BinaryIO, *, label: Label, keyring: Keyring) -> None:
    """Write the plaintext of `source` to `sink`. What `sink` holds may only be used after this has returned.

    Raises SealBroken unless all of it was sealed under `label`, KeyMissing where the owner was erased.
    """
    for chunk in unsealed_chunks(source, label=label, keyring=keyring):
        sink.write(chunk)


def unsealed_chunks(source: BinaryIO, *, label: Label, keyring: Keyring) -> Iterator[bytes]:
    """The plaintext of `source` in chunks of a megabyte, each authenticated; it is complete once the iterator has ended.

    Raises SealBroken, before it ends, unless all was sealed under `label`; KeyMissing where the owner was erased.
    """
    header = source.readline(HEADER_MAX_BYTES)
    version = _check_header(header, label)
    stream = keyring.primitive(label.owner, version).new_decrypting_stream(_CiphertextSource(source), header)
    while chunk := _read_chunk(stream, label):
        yield chunk


def seal_bytes(data: bytes, *, label: Label, keyring: Keyring) -> bytes:
    """`seal` for what fits in memory."""
    return _in_memory(seal, data, label=label, keyring=keyring)


def unseal_bytes(data: bytes, *, label: Label, keyring: Keyring) -> bytes:
    """`unseal` for what fits in memory."""
    return _in_memory(unseal, data, label=label, keyring=keyring)


def _read_chunk(stream: BinaryIO, label: Label) -> bytes:
    """The next chunk, of a megabyte at most; empty at the end. Raises SealBroken."""
    import tink

    try:
        return stream.read(CHUNK_BYTES)
    except (tink.TinkError, OSError, ValueError) as error:
        raise SealBroken(
            f"{label.kind} {label.id}: altered, cut off or sealed by another key; fetch it again"
        ) from error


def _in_memory(seal_or_unseal: Callable[..., None], data: bytes, *, label: Label, keyring: Keyring) -> bytes:
    sink = io.BytesIO()
    seal_or_unseal(io.BytesIO(data), sink, label=label, keyring=keyring)
    return sink.getvalue()


def _header(label: Label, version: int) -> bytes:
    return json.dumps({"format": FORMAT, **asdict(label), "key": version}).encode() + b"\n"


def _check_header(header: bytes, label: Label) -> int:
    """The key's version, where the header is that of `label`. It is authenticated with the bytes that follow. Raises SealBroken."""
    try:
        fields = json.loads(header)
        version = fields["key"]
    except (ValueError, KeyError, TypeError) as error:
        raise SealBroken(f"{label.kind} {label.id}: is not sealed; it was not made by this program") from error
    if header != _header(label, version) or not isinstance(version, int):
        raise SealBroken(
            f"{label.kind} {label.id}: these are the sealed bytes of something else, of another run or another owner "
            "perhaps; put back the file that belongs here, or make it again"
        )
    return version
