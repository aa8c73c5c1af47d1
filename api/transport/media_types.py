"""What kind of content a message says that it carries."""

from __future__ import annotations

from collections.abc import Mapping

FORM, URLENCODED = "multipart/form-data", "application/x-www-form-urlencoded"


def media_type(headers: Mapping[str, str]) -> str:
    """Type and subtype of `content-type` in small letters, without parameters; empty where nothing is said.

    They are compared without regard to case (RFC 9110, section 8.3.1). `headers` are Starlette's, which find any case.
    """
    return headers.get("content-type", "").partition(";")[0].strip().lower()
