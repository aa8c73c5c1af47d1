"""What kind of content a message carries, however its sender writes it."""

from __future__ import annotations

import pytest
from starlette.datastructures import Headers

from api.transport.media_types import FORM, media_type


@pytest.mark.parametrize(
    "said",
    [
        "multipart/form-data", "Multipart/Form-Data", "MULTIPART/FORM-DATA; boundary=B", "multipart/form-data;boundary=B",
        " multipart/form-data ; boundary=B",
    ],
)  # fmt: skip
def test_it_is_told_without_regard_to_case_and_parameters(said: str):
    assert media_type(Headers({"Content-Type": said})) == FORM


def test_it_is_empty_where_nothing_is_said():
    assert media_type(Headers({})) == media_type(Headers({"Content-Type": ""})) == ""
    assert media_type(Headers({"Content-Type": "multipart/form-data-x"})) != FORM
