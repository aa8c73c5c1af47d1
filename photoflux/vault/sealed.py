"""Sealed bytes: one line that says whose they are, then streaming ciphertext that is bound to that line.

Tink finishes a stream even when an exception leaves it, and gives out plaintext before it has seen the end. So nothing
written or read here counts until the whole went well: a sink is thrown away where sealing raised, and what was opened is
used only once its iterator has ended, or by who can take it back, as an HTTP response that is broken off.
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
LABEL_MAX = 1024
CHUNK = 1 << 20


class SealBroken(PhotoFluxError):
    """Sealed bytes that were altered, cut off, swapped for others, or never sealed."""


@dataclass(frozen=True)
class Label:
    """What sealed bytes are bound to: another owner's, kind's or object's bytes do not open in their place."""

    owner: str
    kind: str
    id: str


class _Sink(io.RawIOBase):
    """Takes what Tink writes; closing it closes nothing, so that only its user decides what is kept.

    Once `broken` it takes nothing more: a stream that is thrown away still writes an end, and what was cut off would open.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.broken = file, False

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]
        return len(data) if self.broken else self.file.write(data)


class _Source(io.RawIOBase):
    """Gives Tink what is left of a file."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        return self.file.read(size)


def seal(source: BinaryIO, sink: BinaryIO, *, label: Label, keyring: Keyring) -> None:
    """`seal_from` for what can be read from `source`."""

    def copy(stream: BinaryIO) -> None:
        while chunk := source.read(CHUNK):
            stream.write(chunk)

    seal_from(copy, sink, label=label, keyring=keyring)


def seal_from(write: Callable[[BinaryIO], None], sink: BinaryIO, *, label: Label, keyring: Keyring) -> None:
    """Write the sealed form of what `write` writes to `sink`, under the owner's newest key, made when there is none.

    `write` is given a stream that cannot seek. Where this raises (OwnerErased among others), `sink` holds nothing of use
    and must be thrown away.
    """
    version, primitive = keyring.sealing(label.owner)
    line = _line(label, version)
    sink.write(line)
    taker = _Sink(sink)
    stream = primitive.new_encrypting_stream(taker, line)
    try:
        write(stream)
        stream.close()
    except BaseException:
        taker.broken = True
        raise


def unseal(source: BinaryIO, sink: BinaryIO, *, label: Label, keyring: Keyring) -> None:
    """Write the plaintext of `source` to `sink`. What `sink` holds may only be used after this has returned.

    Raises SealBroken unless all of it was sealed under `label`, KeyMissing where the owner was erased.
    """
    for chunk in unsealed(source, label=label, keyring=keyring):
        sink.write(chunk)


def unsealed(source: BinaryIO, *, label: Label, keyring: Keyring) -> Iterator[bytes]:
    """The plaintext of `source` in pieces of a megabyte, none of them altered; it was all of it once the iterator has ended.

    Raises SealBroken, before it ends, unless all was sealed under `label`; KeyMissing where the owner was erased.
    """
    line = source.readline(LABEL_MAX)
    version = _checked(line, label)
    stream = keyring.primitive(label.owner, version).new_decrypting_stream(_Source(source), line)
    while chunk := _next(stream, label):
        yield chunk


def seal_bytes(data: bytes, *, label: Label, keyring: Keyring) -> bytes:
    """`seal` for what fits in memory."""
    return _through(seal, data, label=label, keyring=keyring)


def unseal_bytes(data: bytes, *, label: Label, keyring: Keyring) -> bytes:
    """`unseal` for what fits in memory."""
    return _through(unseal, data, label=label, keyring=keyring)


def _next(stream: BinaryIO, label: Label) -> bytes:
    """At most a megabyte more; nothing at the end."""
    import tink

    try:
        return stream.read(CHUNK)
    except (tink.TinkError, OSError, ValueError) as error:
        raise SealBroken(
            f"{label.kind} {label.id}: altered, cut off or sealed by another key; fetch it again"
        ) from error


def _through(way: Callable[..., None], data: bytes, *, label: Label, keyring: Keyring) -> bytes:
    sink = io.BytesIO()
    way(io.BytesIO(data), sink, label=label, keyring=keyring)
    return sink.getvalue()


def _line(label: Label, version: int) -> bytes:
    return json.dumps({"format": FORMAT, **asdict(label), "key": version}).encode() + b"\n"


def _checked(line: bytes, label: Label) -> int:
    """The key's version. The line itself is authenticated with the bytes that follow."""
    try:
        told = json.loads(line)
        version = told["key"]
    except (ValueError, KeyError, TypeError) as error:
        raise SealBroken(f"{label.kind} {label.id}: is not sealed; it was not made by this program") from error
    if line != _line(label, version) or not isinstance(version, int):
        raise SealBroken(
            f"{label.kind} {label.id}: these are the sealed bytes of something else, of another run or another owner "
            "perhaps; put back the file that belongs here, or make it again"
        )
    return version
