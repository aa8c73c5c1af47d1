"""Pictures in another size or format are made in a process of their own, which is ended when it takes too long."""

from __future__ import annotations

import io
import time
from typing import Any

import pytest
from PIL import Image

from api.images import rendering as module
from api.images.credentials import make_credentials
from api.images.rendering import ImageRenderer
from api.transport.problems import Problem


def stall(*_: Any) -> bytes:
    time.sleep(60)
    raise AssertionError


def test_a_conversion_that_takes_too_long_is_given_up_and_the_next_is_made(monkeypatch: pytest.MonkeyPatch):
    buffer, renderer = io.BytesIO(), ImageRenderer(make_credentials())
    Image.new("RGB", (64, 64), "red").save(buffer, format="PNG")
    wanted: dict[str, Any] = {"size": "32x32", "fmt": "jpeg", "stored_format": "png", "provenance": {}}
    with monkeypatch.context() as patch:
        patch.setattr(module, "convert_file", stall)
        patch.setattr(module, "TIMEOUT_S", 0.5)
        with pytest.raises(Problem) as problem:
            renderer.convert(buffer.getvalue(), **wanted)
    assert (problem.value.status, problem.value.kind) == (503, "busy")
    made = Image.open(io.BytesIO(renderer.convert(buffer.getvalue(), **wanted)))
    assert (made.size, made.format) == ((32, 32), "JPEG")
    renderer.close()
