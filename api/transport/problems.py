"""Every error as application/problem+json (RFC 9457), with a type that clients can rely on and nothing of what was sent."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from sqlalchemy.exc import DBAPIError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from api.accounts.login_sessions import SignedOut
from api.accounts.openid_client import SignInFailed
from api.accounts.tokens import BadToken
from api.privacy.consents import ConsentRequired
from api.records.database import AccountClosed, is_unavailable
from photoflux.errors import InputError, PhotoFluxError
from photoflux.vault.blobs import BlobMissing
from photoflux.vault.keyring import KeyMissing, OwnerErased

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
TYPES = "https://photoflux.dev/problems/"
KINDS = {
    400: "bad-request", 401: "unauthorized", 403: "forbidden", 404: "not-found", 405: "method-not-allowed",
    408: "timeout", 409: "conflict", 411: "length-required", 412: "precondition-failed", 413: "too-large",
    415: "unsupported-media-type", 422: "invalid",
    421: "misdirected", 428: "precondition-required", 429: "too-many-requests", 500: "internal", 503: "unavailable",
    504: "too-late",
}  # fmt: skip
DETAILS = {
    400: "The request cannot be understood.",
    401: "Sign in first.",
    403: "You may not do this.",
    404: "There is no such thing here.",
    405: "This address does not take this method.",
    408: "The request did not arrive in time; send it again.",
    409: "What is there already stands against it.",
    411: "Say how long the body is: send its Content-Length.",
    413: "The request is larger than is taken here.",
    415: "This kind of content is not taken here.",
    422: "Some fields are not as they should be, or what they ask for cannot be done.",
    429: "Too many requests; try again later.",
    500: "Something went wrong here; it has been noted. Try again later.",
    503: "The service is busy or stopping; try again later.",
}

NOT_READABLE = "The body cannot be read: send JSON in UTF-8, or a form as multipart/form-data."
NOT_JSON = "The body is not JSON."
REASONS = (
    (r"Too many files\. Maximum number of files is (\d+)\.",
     "At most {} files are taken at a time; send the rest with another request."),
    (r"Too many fields\. Maximum number of fields is (\d+)\.",
     "A form has at most {} fields beside its files; leave out what is not asked for."),
    (r"(?:Part|Field) exceeded maximum size of \d+KB\.",
     "A field of the form is longer than is taken here; photos are sent as files, with a file name."),
    (r"Missing boundary in multipart\.",
     "The form's Content-Type names no boundary; let your client set that header by itself."),
    (r'The Content-Disposition header field "name" must be provided\.', "A part of the form has no name; give each one its field's name."),
    (r"Invalid multipart data\.", "The form is broken off, or not written as multipart/form-data is."),
    (r"There was an error parsing the body", NOT_READABLE),
)  # fmt: skip
"""Messages of the libraries that read bodies, as patterns, and the sentence shown instead. Their other messages are not shown."""
SIGNED_IN, BODY, IDEMPOTENT = (401, 429), (400, 408, 413, 422), (408, 409, 413, 422)
"""Statuses of operations that need a sign-in, that have a body, and that take an `Idempotency-Key`."""
HEADERS = {
    401: {"WWW-Authenticate": {"schema": {"type": "string"}}},
    429: {"Retry-After": {"description": "seconds", "schema": {"type": "integer"}}},
    503: {"Retry-After": {"description": "seconds", "schema": {"type": "integer"}}},
}
"""Headers of problems by status, as OpenAPI describes them."""


class FieldError(BaseModel):
    """One field that is not as it should be."""

    where: str = Field(description="path of the field, such as body.n")
    message: str


class ProblemDetails(BaseModel):
    """What every error looks like."""

    type: str = Field(description="stable identifier of the kind of problem", examples=[f"{TYPES}not-found"])
    title: str = Field(examples=["not found"])
    status: int = Field(examples=[404])
    detail: str = Field(examples=[DETAILS[404]])
    errors: list[FieldError] | None = None


class Problem(PhotoFluxError):
    """An error that a route answers with: `kind` is the last part of its type."""

    def __init__(self, status: int, kind: str, detail: str, *, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status, self.kind, self.detail, self.headers = status, kind, detail, dict(headers or {})


def problem(
    status: int, kind: str = "", detail: str = "", *, headers: Mapping[str, str] | None = None, **more: Any
) -> JSONResponse:
    """A problem as a response."""
    return JSONResponse(_body(status, kind, detail) | more, status, headers=dict(headers or {}), media_type=MEDIA_TYPE)


def _body(status: int, kind: str, detail: str) -> dict[str, Any]:
    kind = kind or KINDS.get(status, "error")
    detail = detail or DETAILS.get(status, "The request was refused.")
    return {"type": TYPES + kind, "title": kind.replace("-", " "), "status": status, "detail": detail}


def problem_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI responses of an operation that answers with problems of these statuses."""
    schema = {"$ref": f"#/components/schemas/{ProblemDetails.__name__}"}
    return {
        status: {
            "description": DETAILS[status],
            "content": {MEDIA_TYPE: {"schema": schema, "example": _body(status, "", "")}},
            "headers": HEADERS.get(status, {}),
        }
        for status in statuses
    }


def explanation_of(detail: object) -> str:
    """The sentence for a library's reason why a body cannot be read; empty for an unknown one."""
    for pattern, sentence in REASONS:
        if found := re.fullmatch(pattern, detail if isinstance(detail, str) else ""):
            return sentence.format(*found.groups())
    return ""


def install_handlers(app: FastAPI, more: Mapping[type[Exception], tuple[int, str]] = MappingProxyType({})) -> None:
    """Answer every exception with a problem; `more` gives status and kind of further ones."""
    known: dict[type[Exception], tuple[int, str]] = {
        BadToken: (401, "unauthorized"),
        SignedOut: (401, "signed-out"),
        AccountClosed: (401, "signed-out"),
        SignInFailed: (400, "sign-in-failed"),
        ConsentRequired: (403, "consent-required"),
        OwnerErased: (401, "signed-out"),
        BlobMissing: (404, "not-found"),
        KeyMissing: (404, "not-found"),
        InputError: (422, "invalid"),
        **more,
    }

    async def handle_own_error(_: Request, error: Exception) -> JSONResponse:
        if isinstance(error, Problem):
            return problem(error.status, error.kind, error.detail, headers=error.headers)
        status, kind = next((answer for cls, answer in known.items() if isinstance(error, cls)), (422, "refused"))
        headers = {"WWW-Authenticate": "Bearer"} if status == 401 else None
        internal = isinstance(error, BlobMissing | KeyMissing)  # their sentences name blobs and owners
        return problem(status, kind, "" if internal else str(error), headers=headers)

    async def handle_http_error(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        detail = explanation_of(error.detail) if error.status_code == 400 else ""
        return problem(error.status_code, detail=detail, headers=error.headers)

    async def handle_invalid_fields(_: Request, error: Exception) -> JSONResponse:
        """Names fields and what is wrong, never the values, which may be prompts."""
        assert isinstance(error, RequestValidationError)
        found = [{"where": ".".join(map(str, one["loc"])), "message": str(one["msg"])} for one in error.errors()]
        broken = any(one["type"] == "json_invalid" for one in error.errors())
        return problem(422, "invalid", NOT_JSON if broken else "Some fields are not as they should be.", errors=found)

    async def handle_database_error(_: Request, error: Exception) -> JSONResponse:
        """503 while the database cannot be reached or is locked for long; any other error of it is raised again."""
        assert isinstance(error, DBAPIError)
        if not is_unavailable(error):
            raise error
        log.warning("the database could not be reached, or was busy for long")
        return problem(503, "unavailable", headers={"Retry-After": "5"})

    app.add_exception_handler(DBAPIError, handle_database_error)
    app.add_exception_handler(PhotoFluxError, handle_own_error)
    app.add_exception_handler(HTTPException, handle_http_error)
    app.add_exception_handler(RequestValidationError, handle_invalid_fields)
