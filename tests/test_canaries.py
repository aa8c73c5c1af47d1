"""The search for words finds them wherever they were put, so that finding none means something."""

from __future__ import annotations

import base64
import bz2
import gzip
import io
import json
import lzma
import os
import pickle
import sqlite3
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.canaries import files_below, forms, holding

WORD = "Kanarienvögel-8d1f"


def zipped(data: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("inner.bin", data)
    return buffer.getvalue()


def tarred(data: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        info = tarfile.TarInfo("inner.bin")
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


WRAPPINGS: dict[str, Callable[[bytes], bytes]] = {
    "plain": lambda data: b"before " + data + b" after",
    "base64": base64.b64encode,
    "base64 in the middle": lambda data: b'{"a":"' + base64.urlsafe_b64encode(b"xy" + data) + b'"}',
    "base64 glued": lambda data: b"abc" + base64.b64encode(data),
    "hex": lambda data: data.hex().encode(),
    "pickle": pickle.dumps,
    "base64 of a pickle": lambda data: base64.b64encode(pickle.dumps({"prompt": data.decode()})),
    "gzip": gzip.compress,
    "gzip amid bytes": lambda data: os.urandom(100) + gzip.compress(data) + os.urandom(100),
    "zlib": zlib.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zip": zipped,
    "tar": tarred,
    "gzip of a tar": lambda data: gzip.compress(tarred(data)),
    "zip of base64 of gzip": lambda data: zipped(base64.b64encode(gzip.compress(data))),
    "json escapes": lambda data: json.dumps({"prompt": data.decode()}).encode(),
    "utf-16": lambda data: data.decode().encode("utf-16"),
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_a_word_is_found_behind(wrapping: str):
    data = WRAPPINGS[wrapping](f"a photo of {WORD} in space".encode())
    assert holding(forms(WORD), [("it", data)]) == ["it"]
    assert holding(forms("Kanarienvögel-0000"), [("it", data)]) == []


def test_a_word_is_found_in_databases_and_folders(tmp_path: Path):
    connection = sqlite3.connect(tmp_path / "a.db")
    connection.execute("create table t (x)")
    connection.execute("insert into t values (?)", (WORD,))
    connection.commit()
    connection.close()
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "other.bin").write_bytes(os.urandom(1000))
    assert holding(forms(WORD), files_below(tmp_path)) == [str(tmp_path / "a.db")]


def test_random_bytes_hold_nothing():
    assert holding(forms(WORD), [("it", os.urandom(1 << 20))]) == []
