"""The API's description for people and programs: `/openapi.json`, which the page at `/docs` shows."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema

from api.transport.problems import ProblemDetails

REFERENCE = "#/components/schemas/{model}"
ASSUMED = ("HTTPValidationError", "ValidationError")
"""FastAPI's own schemas of invalid requests, which are problems here."""
TEXT = """\
**Signing in.** A browser is sent to `GET /api/auth/login` and comes back with a cookie; `POST /api/auth/refresh` gives an access
token for it, which is sent as `Authorization: Bearer …` and lasts ten minutes. Ask for the next one in the same way.

**Errors** are problems (RFC 9457): `type` is for programs and stays as it is, `detail` is for people. Besides the problems that an
operation names, any may be answered with 421 (the service has another address), 500 (something went wrong here, and has been
noted) or 503 (it is busy or stopping). 429 and 503 say in `Retry-After` after how many seconds to ask again.

**Sending again.** What makes or starts something takes an `Idempotency-Key`, any text of yours: when no answer came, send the same
request with the same key, and it is done once.

**Asking often.** Every JSON document has an `ETag`. Sent back as `If-None-Match`, it is answered with 304 and no body while nothing
has changed. To hear of a run at once, watch its events; for pictures, ask with `wait`.

**Lists** come in pages: `items`, and `next`, which is the `cursor` of the next page, or null.

**Times** are ISO 8601 in UTC, ids are 32 hexadecimal digits. Every answer has an `X-Request-Id`, taken from the request when it is 8 to 64
letters, digits, dots, dashes or underscores; name it when you report something.
"""
TAGS = {
    "sign-in": "Signing in and out, and access tokens.",
    "terms and consents": "The texts in force, and what you agreed to.",
    "subjects and photos": "Who or what pictures are wanted of, and the photos of it.",
    "runs": "Fine-tuning a subject on its photos.",
    "images": "Asking for pictures, and what came of it.",
    "models": "What runs made, and which model draws.",
    "your data": "Taking everything along, and having it erased.",
    "webhooks": "Being told when work has ended.",
    "complaints": "Reporting a picture; for operators, answering reports.",
    "sign-offs": "For operators: runs whose check left a question open.",
    "audit": "For auditors: what was done, in an order that cannot be changed unseen.",
    "media": "Photos, pictures and reports themselves, as files.",
    "health": "Whether the service is well; for machines.",
}


class DescribedApp(FastAPI):
    """An application that describes its errors as they are sent."""

    def openapi(self) -> dict[str, Any]:
        """The description, made once."""
        if not self.openapi_schema:
            _correct(super().openapi())
        return super().openapi()


def _correct(schema: dict[str, Any]) -> None:
    """Add the schema of problems, and remove FastAPI's own of invalid requests."""
    kinds = schema["components"]["schemas"]
    for name in ASSUMED:
        kinds.pop(name, None)
    _, problems = models_json_schema([(ProblemDetails, "serialization")], ref_template=REFERENCE)
    kinds.update(problems["$defs"])
    for operations in schema["paths"].values():
        for operation in operations.values():
            if ASSUMED[0] in str(operation["responses"].get("422")):
                del operation["responses"]["422"]
