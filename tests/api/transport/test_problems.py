"""Problems say what is wrong, and nothing of what was sent."""

from __future__ import annotations

import sqlite3
from typing import Any

import psycopg
import pytest
from sqlalchemy.exc import OperationalError

from api.transport.problems import explanation_of
from tests.api.people import Person, Site, is_problem

CANARY = b"canaryword"
EDGE = b"----edge"


def part(name: bytes, value: bytes, *, file: bytes | None = None) -> bytes:
    """One part of a form."""
    named = b'; filename="' + file + b'"' if file is not None else b""
    return (
        b"--"
        + EDGE
        + b'\r\nContent-Disposition: form-data; name="'
        + name
        + b'"'
        + named
        + b"\r\n\r\n"
        + value
        + b"\r\n"
    )


def form(*parts: bytes, end: bytes = b"--" + EDGE + b"--\r\n") -> bytes:
    return b"".join(parts) + end


NAMELESS = b"--" + EDGE + b"\r\nContent-Disposition: form-data\r\n\r\n" + CANARY + b"\r\n"
FORMS: dict[str, tuple[bytes, str]] = {
    "21 files": (form(*[part(b"photos", CANARY, file=CANARY + b".jpg")] * 21), "At most 20 files"),
    "many fields": (form(*[part(CANARY, b"x")] * 5), "at most 4 fields"),
    "a photo without a file name": (form(part(b"photos", CANARY * 1000)), "as files, with a file name"),
    "a part without a name": (form(NAMELESS), "has no name"),
    "no form": (CANARY * 10, "written as multipart/form-data"),
}


@pytest.mark.parametrize("kind", FORMS)
def test_what_is_wrong_with_a_form_is_told(ada: Person, kind: str) -> None:
    body, told = FORMS[kind]
    headers = {"Content-Type": f"multipart/form-data; boundary={EDGE.decode()}"}
    answer = ada.post("/api/upload", content=body, headers=headers)
    assert told in is_problem(answer, 400, "bad-request")["detail"]
    assert CANARY.decode() not in answer.text


def test_a_database_that_is_away_or_busy_is_not_the_requests_fault(
    site: Site, ada: Person, monkeypatch: pytest.MonkeyPatch
):
    busy = sqlite3.OperationalError("database is locked")
    busy.sqlite_errorcode = sqlite3.SQLITE_BUSY
    broken = sqlite3.OperationalError("no such table")
    broken.sqlite_errorcode = sqlite3.SQLITE_ERROR
    away = psycopg.OperationalError("connection refused")
    for error, status in ((busy, 503), (away, 503), (broken, 500)):

        def failing(*_: Any, error: Exception = error) -> Any:
            raise OperationalError("select 1", {}, error)

        monkeypatch.setattr(type(site.service.login_sessions), "is_open", failing)
        answer = ada.get("/api/subjects")
        assert is_problem(answer, status, "unavailable" if status == 503 else "internal")
        assert ("retry-after" in answer.headers) is (status == 503)


def test_a_missing_boundary_is_told(ada: Person) -> None:
    answer = ada.post("/api/upload", content=form(), headers={"Content-Type": "multipart/form-data"})
    assert "boundary" in is_problem(answer, 400, "bad-request")["detail"]


def test_a_long_field_of_the_other_kind_of_form_is_told(ada: Person) -> None:
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    answer = ada.post("/api/upload", content=b"subject=" + CANARY * 1000, headers=headers)
    assert "longer than is taken" in is_problem(answer, 400, "bad-request")["detail"]
    assert CANARY.decode() not in answer.text


def test_a_body_that_is_no_text_is_told(ada: Person) -> None:
    headers = {"Content-Type": "application/json"}
    answer = ada.post("/api/subjects", content=b'{"name": "\xff' + CANARY + b'"}', headers=headers)
    assert "UTF-8" in is_problem(answer, 400, "bad-request")["detail"]
    assert CANARY.decode() not in answer.text


def test_a_body_that_is_no_json_is_told(ada: Person) -> None:
    answer = ada.post("/api/subjects", content=b'{"name": ' + CANARY, headers={"Content-Type": "application/json"})
    assert "JSON" in is_problem(answer, 422, "invalid")["detail"]
    assert CANARY.decode() not in answer.text


@pytest.mark.parametrize("detail", ["", "canaryword", "Too many files. Maximum number of files is canaryword.", None])
def test_a_reason_that_is_not_known_is_not_told(detail: Any) -> None:
    assert explanation_of(detail) == ""


def test_what_the_service_answers_for_itself_stays_as_it_is(site: Site) -> None:
    assert is_problem(site.client.get("/api/nothing"), 404, "not-found")["detail"] == "There is no such thing here."
