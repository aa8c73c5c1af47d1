"""Files of a base: held to their hashes, fetched into a cache that is whole or absent; every error says what to do."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import yaml

from photoflux.errors import InputError
from photoflux.flux import provision
from photoflux.flux.loading import load_pipeline
from photoflux.flux.provision import pin, verify
from photoflux.flux.spec import BaseSpec, load_spec
from photoflux.manifest import digest
from tests.flux.training import WEIGHTS, edit


def at(spec: BaseSpec, folder: str) -> BaseSpec:
    return replace(spec, folder=folder)


def test_a_whole_base_verifies(own: Path) -> None:
    """Every file is the pinned one; the folder comes back."""
    assert verify(load_spec(own)) == own.parent / "tiny"


def test_a_base_that_is_not_pinned_is_not_loaded(own: Path) -> None:
    """Unknown weights are never run: the sentence says how to pin them, and pinning helps."""
    edit(own, manifest=None)
    with pytest.raises(InputError, match=r"lists no files in its manifest.* `python -m photoflux\.flux\.provision"):
        load_pipeline(load_spec(own))
    assert verify(load_spec(pin(own)))


def test_pinning_lists_every_file_with_its_hash(own: Path) -> None:
    """SHA-256 of all files but hidden ones, the rest of the spec unchanged; twice is the same file."""
    before = yaml.safe_load(own.read_text())
    (own.parent / "tiny" / ".DS_Store").write_text("x")
    (own.parent / "tiny" / "vae" / ".photoflux-left").mkdir()
    (own.parent / "tiny" / "vae" / ".photoflux-left" / "half.safetensors").write_text("x")
    content = yaml.safe_load(pin(own).read_text())
    assert content == before
    files = [path for path in (own.parent / "tiny").rglob("*") if path.is_file() and "/." not in str(path)]
    assert content["manifest"] == {str(f.relative_to(own.parent / "tiny")): digest(f) for f in files}
    text = own.read_text()
    assert pin(own).read_text() == text
    with pytest.raises(InputError, match="pinning needs the files in a local folder"):
        pin(edit(own, folder="gs://bucket/flux"))


def test_a_missing_file_is_named(own: Path) -> None:
    """The path, and what to do about it."""
    (own.parent / "tiny" / WEIGHTS).unlink()
    with pytest.raises(InputError, match=rf"{WEIGHTS} is missing; restore it from version control or its source"):
        load_pipeline(load_spec(own))


@pytest.mark.parametrize("large", [False, True], ids=["small", "large"])
def test_an_altered_file_is_named(large: bool, own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One flipped bit, the size unchanged, also where a large file's hash was remembered."""
    if large:
        monkeypatch.setattr(provision, "LARGE_BYTES", 1)
    spec, file = load_spec(own), own.parent / "tiny" / WEIGHTS
    verify(spec)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    os.utime(file, (1, 1))
    with pytest.raises(InputError, match=rf"{WEIGHTS} is not the file its spec pins \(SHA-256 differs\); restore it"):
        verify(spec)


def test_large_files_are_hashed_once(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as they lie untouched; small files are hashed every time."""
    spec, hashed = load_spec(own), list[str]()

    def counted(path: Path) -> str:
        hashed.append(path.name)
        return digest(path)

    monkeypatch.setattr(provision, "digest", counted)
    monkeypatch.setattr(provision, "LARGE_BYTES", (own.parent / "tiny" / WEIGHTS).stat().st_size)
    verify(spec)
    first = len(hashed)
    assert first == len(spec.manifest)
    verify(spec)
    large = sum((own.parent / "tiny" / name).stat().st_size >= provision.LARGE_BYTES for name in spec.manifest)
    assert large >= 1
    assert len(hashed) == 2 * first - large


def test_a_missing_folder_says_how_to_get_it(own: Path) -> None:
    """The pocket base is made, another is copied."""
    spec = replace(load_spec(own), folder=own.parent / "gone")
    with pytest.raises(InputError, match=r"folder .*gone is missing; make it with `photoflux pretrain`"):
        verify(spec)
    with pytest.raises(InputError, match="copy it there or correct `folder` in the spec"):
        verify(replace(spec, name="flux1-schnell"))


# Stores


@pytest.fixture(params=["file", "memory"])
def remote(request: pytest.FixtureRequest, own: Path) -> tuple[BaseSpec, Callable[[str, bytes | None], None]]:
    """The base in a store that fsspec knows, and a way to change a file there."""
    import fsspec

    place = (
        f"{request.param}://{own.parent / 'tiny'}" if request.param == "file" else f"memory://{own.parent.parent.name}"
    )
    store, root = fsspec.core.url_to_fs(place)
    if request.param == "memory":
        store.put(str(own.parent / "tiny"), root, recursive=True)

    def change(name: str, content: bytes | None) -> None:
        if content is None:
            store.rm(f"{root}/{name}")
        else:
            store.pipe_file(f"{root}/{name}", content)

    return at(load_spec(own), place), change


Remote = tuple[BaseSpec, Callable[[str, bytes | None], None]]


def cached(own_state: Path) -> list[str]:
    """Everything in the cache of bases, unfinished folders included."""
    folder = own_state / "cache" / "bases"
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_a_base_is_fetched_once_and_checked(remote: Remote, own_state: Path) -> None:
    """From the store into a folder named by its hash; afterwards the store is not asked."""
    spec, change = remote
    folder = verify(spec)
    assert cached(own_state) == [folder.name] == [spec.hash[:32]]
    assert {name: digest(folder / name) for name in spec.manifest} == dict(spec.manifest)
    change(WEIGHTS, None)
    assert verify(spec) == folder


@pytest.mark.parametrize("content", [b"other weights", None], ids=["altered", "missing"])
def test_what_the_store_has_wrong_never_reaches_the_cache(
    content: bytes | None, remote: Remote, own_state: Path
) -> None:
    """A file altered or missing there is said with the place, and nothing stays behind."""
    spec, change = remote
    change(WEIGHTS, content)
    said = f"{WEIGHTS} at .* is not the file its spec pins; replace it there" if content else "cannot be fetched"
    with pytest.raises(InputError, match=said) as caught:
        verify(spec)
    assert str(spec.folder) in str(caught.value)
    assert cached(own_state) == []


def test_an_interrupted_fetch_leaves_nothing(remote: Remote, own_state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever ends it half-way: no folder that looks whole; the next fetch is a fresh one."""
    spec, _ = remote
    files = list[Path]()

    def interrupted(path: Path) -> str:
        files.append(path)
        if len(files) == 5:
            raise KeyboardInterrupt
        return digest(path)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(provision, "digest", interrupted)
        verify(spec)
    assert len(files) == 5
    assert cached(own_state) == []
    assert verify(spec).name == spec.hash[:32]


def test_two_fetches_at_once_end_in_one_folder(
    remote: Remote, own_state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Should another process finish first, its folder stays and ours vanishes."""
    spec, _ = remote
    copy = provision._copy

    def slow(spec: BaseSpec, store: Any, root: str, into: Path) -> None:
        copy(spec, store, root, into)
        monkeypatch.setattr(provision, "_copy", copy)
        (verify(spec) / "first").write_text("")

    monkeypatch.setattr(provision, "_copy", slow)
    folder = verify(spec)
    assert cached(own_state) == [folder.name]
    assert (folder / "first").exists()


def test_a_spoilt_cache_says_to_delete_it(remote: Remote) -> None:
    """The file in the cache, and that its folder may go; then it is fetched again."""
    spec, _ = remote
    folder = verify(spec)
    (folder / WEIGHTS).write_bytes(b"spoilt")
    with pytest.raises(InputError, match=rf"{folder}/{WEIGHTS} is not the file .*delete its folder to fetch it again"):
        verify(spec)
    shutil.rmtree(folder)
    assert verify(spec) == folder


def test_a_store_that_cannot_be_reached_is_said(own: Path) -> None:
    """An unknown kind of store, or one that is not installed, ends in a sentence."""
    with pytest.raises(
        InputError, match=r"nowhere://bucket/flux cannot be fetched .*check the address and your access"
    ):
        verify(at(load_spec(own), "nowhere://bucket/flux"))


def test_the_hub_is_asked_for_the_pinned_files(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`owner/name@revision`, only the files of the manifest; what comes back is checked."""
    asked: dict[str, Any] = {}

    def download(name: str, **how: Any) -> str:
        asked.update(how, name=name)
        return str(own.parent / "tiny")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    spec = at(load_spec(own), "hub:owner/flux@abc")
    assert verify(spec) == own.parent / "tiny"
    assert asked == {"name": "owner/flux", "revision": "abc", "allow_patterns": sorted(spec.manifest)}
    (own.parent / "tiny" / WEIGHTS).write_bytes(b"spoilt")
    with pytest.raises(InputError, match="is not the file its spec pins"):
        verify(spec)


def test_a_gated_repository_says_how_to_get_in(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Terms, token, or a copy: whatever the hub's own error was."""

    def refused(*_: Any, **__: Any) -> str:
        raise PermissionError("401 Client Error")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refused)
    with pytest.raises(
        InputError, match=r"owner/flux cannot be fetched from the hub .*accept its terms and set HF_TOKEN"
    ):
        verify(at(load_spec(own), "hub:owner/flux"))
