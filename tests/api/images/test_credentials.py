"""Content credentials: signed last, valid in every format, silent about people, broken by any change."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from PIL import Image

from api.images.credentials import SOURCE_TYPE, Credentials, _manifest, make_credentials, open_credentials, read
from api.images.rendering import MEDIA_TYPES, ImageRenderer, RenderRequest
from photoflux.vault import open_keyring
from photoflux.watermark import is_watermarked

FORMATS = sorted(MEDIA_TYPES)


@pytest.fixture(scope="module")
def credentials() -> Credentials:
    return make_credentials()


def drawn(side_px: int = 128) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((side_px, side_px), 3).save(buffer, format="PNG")
    return buffer.getvalue()


def request(fmt: str, size: str = "512x512") -> RenderRequest:
    return RenderRequest(size, fmt, "none", {"seed": "7", "software": "PhotoFlux"})


@pytest.mark.parametrize("fmt", FORMATS)
def test_a_delivered_picture_is_marked_and_carries_valid_credentials(credentials: Credentials, fmt: str):
    file = ImageRenderer(credentials).render(drawn(), request(fmt))
    said = read(file, MEDIA_TYPES[fmt])
    assert said is not None
    assert said["state"] == "Valid"
    manifest = said["manifests"][said["active_manifest"]]
    (action,) = next(a["data"]["actions"] for a in manifest["assertions"] if a["label"].startswith("c2pa.actions"))
    assert (action["action"], action["digitalSourceType"]) == ("c2pa.created", SOURCE_TYPE)
    assert "thumbnail" not in json.dumps(said)
    image = Image.open(io.BytesIO(file))
    assert image.size == (512, 512)
    assert is_watermarked(image)


@pytest.mark.parametrize("fmt", FORMATS)
def test_a_changed_file_says_so(credentials: Credentials, fmt: str):
    file = bytearray(ImageRenderer(credentials).render(drawn(), request(fmt)))
    file[len(file) // 2] ^= 1
    said = read(bytes(file), MEDIA_TYPES[fmt])
    assert said is None or said["state"] == "Invalid"


def test_another_size_or_format_is_marked_and_signed_anew(credentials: Credentials):
    renderer = ImageRenderer(credentials)
    file = renderer.render(drawn(), request("png"))
    assert renderer.convert(file, size=None, fmt="png", stored_format="png", provenance={}) == file
    assert renderer.convert(file, size="512x512", fmt=None, stored_format="png", provenance={}) == file
    other = renderer.convert(file, size="256x256", fmt="webp", stored_format="png", provenance={"seed": "7"})
    renderer.close()
    said = read(other, "image/webp")
    assert said is not None
    assert said["state"] == "Valid"
    image = Image.open(io.BytesIO(other))
    assert image.size == (256, 256)
    assert is_watermarked(image)


def test_a_file_without_credentials_has_none():
    assert read(drawn(), "image/png") is None


def test_a_file_that_names_an_address_makes_no_request(credentials: Credentials, monkeypatch: pytest.MonkeyPatch):
    """A manifest kept elsewhere is not fetched: whoever uploads a file would choose what this machine asks for."""
    import socket

    from c2pa import Builder, C2paError, Context, Settings

    asked: list[object] = []
    monkeypatch.setattr(socket, "create_connection", lambda *a, **_: asked.append(a))
    sink = io.BytesIO()
    with (
        Context(settings=Settings()) as context,
        Builder(_manifest("image/png"), context) as builder,
    ):
        builder.set_no_embed()
        builder.set_remote_url("http://127.0.0.1:9/manifest.c2pa")
        builder.sign(credentials._signer, "image/png", io.BytesIO(drawn()), sink)
    with pytest.raises(C2paError, match="must fetch"):
        read(sink.getvalue(), "image/png")
    assert asked == []


def test_all_processes_sign_with_the_same_key_which_is_sealed():
    first, second = open_credentials(open_keyring()), open_credentials(open_keyring())
    assert first == second
    stored = open_keyring().store.get("secrets/content-credentials")
    assert b"PRIVATE KEY" not in stored
