from __future__ import annotations

import gc
import io
from collections.abc import Iterator
from pathlib import Path

import pytest
import tink
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from photoflux.errors import PhotoFluxError
from photoflux.vault.keyring import Keyring
from photoflux.vault.sealed import CHUNK_BYTES, Label, SealBroken, seal, seal_bytes, unseal, unseal_bytes

LABEL = Label("ada", "photo", "7")
SAME_KEYRING = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
SIZES = sorted({0, 1, *(CHUNK_BYTES * n + more for n in (1, 2) for more in (-400, -377, -1, 0, 1))})


@pytest.mark.parametrize("size", SIZES)
def test_any_size_comes_back(keyring: Keyring, size: int):
    data = bytes(range(251)) * (size // 251 + 1)
    sealed = seal_bytes(data[:size], label=LABEL, keyring=keyring)
    assert unseal_bytes(sealed, label=LABEL, keyring=keyring) == data[:size]
    assert size < 64 or data[:64] not in sealed


@SAME_KEYRING
@given(data=st.binary(max_size=3000), place=st.integers(min_value=0), flip=st.integers(1, 255))
def test_any_altered_byte_is_noticed(keyring: Keyring, data: bytes, place: int, flip: int):
    sealed = bytearray(seal_bytes(data, label=LABEL, keyring=keyring))
    sealed[place % len(sealed)] ^= flip
    with pytest.raises(PhotoFluxError):
        unseal_bytes(bytes(sealed), label=LABEL, keyring=keyring)


@SAME_KEYRING
@given(data=st.binary(max_size=3000), kept=st.floats(0, 1, exclude_max=True))
def test_any_cut_is_noticed(keyring: Keyring, data: bytes, kept: float):
    sealed = seal_bytes(data, label=LABEL, keyring=keyring)
    with pytest.raises(SealBroken):
        unseal_bytes(sealed[: int(kept * len(sealed))], label=LABEL, keyring=keyring)


def test_a_cut_between_segments_is_noticed(keyring: Keyring):
    sealed = seal_bytes(b"x" * (3 * CHUNK_BYTES), label=LABEL, keyring=keyring)
    line = sealed.index(b"\n") + 1
    for segments in (1, 2):
        with pytest.raises(SealBroken):
            unseal_bytes(sealed[: line + segments * CHUNK_BYTES], label=LABEL, keyring=keyring)
    with pytest.raises(SealBroken):
        unseal_bytes(sealed + b"more", label=LABEL, keyring=keyring)


@pytest.mark.parametrize(
    "label", [Label("bob", "photo", "7"), Label("ada", "adapter", "7"), Label("ada", "photo", "8")]
)
def test_sealed_bytes_do_not_open_in_anothers_place(keyring: Keyring, label: Label):
    sealed = seal_bytes(b"face", label=LABEL, keyring=keyring)
    seal_bytes(b"other", label=label, keyring=keyring)
    with pytest.raises(SealBroken, match="something else"):
        unseal_bytes(sealed, label=label, keyring=keyring)
    line, rest = sealed.split(b"\n", 1)
    told = line.replace(b'"ada"', f'"{label.owner}"'.encode()).replace(b'"photo"', f'"{label.kind}"'.encode())
    forged = told.replace(b'"7"', f'"{label.id}"'.encode()) + b"\n" + rest
    with pytest.raises(SealBroken, match="altered"):
        unseal_bytes(forged, label=label, keyring=keyring)


@pytest.mark.parametrize(
    "data", [b"", b"\n", b"{}\n", b"[1]\n", b"null\nxyz", b"\xff\xfe\n", b'{"key": true}\n', b"x" * 5000]
)
def test_what_was_never_sealed_is_called_so(keyring: Keyring, data: bytes):
    with pytest.raises(SealBroken):
        unseal_bytes(data, label=LABEL, keyring=keyring)


def test_a_source_that_breaks_off_leaves_nothing_that_opens(keyring: Keyring):
    """An exception inside Tink's own stream would still write an end, and what was cut off would pass for whole."""

    class Breaking(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if self.tell() >= 2 * CHUNK_BYTES:
                raise ConnectionError
            return super().read(size)

    sink = io.BytesIO()
    with pytest.raises(ConnectionError):
        seal(Breaking(b"x" * (5 * CHUNK_BYTES)), sink, label=LABEL, keyring=keyring)
    assert not sink.closed
    gc.collect()  # closes the stream
    with pytest.raises(SealBroken):
        unseal_bytes(sink.getvalue(), label=LABEL, keyring=keyring)


@pytest.mark.parametrize("room", [0, 100, CHUNK_BYTES, 3 * CHUNK_BYTES])
def test_a_sink_that_is_full_is_noticed(keyring: Keyring, room: int):
    """Whoever seals is told, and what there is does not open."""

    class Full(io.BytesIO):
        def write(self, data: object) -> int:
            if self.tell() >= room:
                raise OSError(28, "No space left on device")
            return super().write(data)  # type: ignore[arg-type]

    sink = Full()
    with pytest.raises((tink.TinkError, OSError), match="No space left"):
        seal(io.BytesIO(b"x" * (5 * CHUNK_BYTES)), sink, label=LABEL, keyring=keyring)
    gc.collect()  # closes the stream
    with pytest.raises(SealBroken):
        unseal_bytes(sink.getvalue(), label=LABEL, keyring=keyring)


def test_files_stream_through(keyring: Keyring, tmp_path: Path):
    with (tmp_path / "sealed").open("wb") as sink:
        seal(io.BytesIO(b"photo" * CHUNK_BYTES), sink, label=LABEL, keyring=keyring)
    with (tmp_path / "sealed").open("rb") as source, (tmp_path / "out").open("wb") as sink:
        unseal(source, sink, label=LABEL, keyring=keyring)
    assert (tmp_path / "out").read_bytes() == b"photo" * CHUNK_BYTES


def test_equal_bytes_are_sealed_differently(keyring: Keyring):
    def sealings() -> Iterator[bytes]:
        for _ in range(2):
            yield seal_bytes(b"face", label=LABEL, keyring=keyring)

    assert len(set(sealings())) == 2
