"""Logs, metrics and traces: there, useful, and without a word of anybody's."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest
import structlog
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from api.health import Health
from api.observing import REQUEST_ID, Telemetry, set_up_logs
from tests.api.people import Person, Site, is_problem

WORD = "Kanarienvogel"


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """What a process that logs writes."""
    root, stream = logging.getLogger(), io.StringIO()
    monkeypatch.setattr(logging, "raiseExceptions", False)
    handlers, level = root.handlers[:], root.level
    set_up_logs("test", stream)
    yield stream
    root.handlers[:] = handlers
    root.setLevel(level)


def told(lines: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in lines.getvalue().splitlines()]


def test_a_request_is_one_line_with_its_id_and_a_pseudonym(site: Site, ada: Person, lines: io.StringIO):
    subject = ada.subject()
    lines.seek(0)
    lines.truncate()
    answer = ada.get(f"/api/subjects/{subject}?cursor={WORD}", headers={"X-Request-Id": "from-a-proxy-1"})
    assert answer.headers["x-request-id"] == "from-a-proxy-1"
    (line,) = [line for line in told(lines) if line["event"] == "request"]
    assert line["request"] == "from-a-proxy-1"
    assert (line["method"], line["status"], line["route"]) == ("GET", 200, "/api/subjects/{subject_id}")
    assert line["actor"] == site.service.journal.pseudonym(ada.id)
    assert line["service"] == "test"
    assert ada.id not in json.dumps(line)
    assert WORD not in json.dumps(line)


@pytest.mark.parametrize("given", ["", "short", "x" * 65, "a b c d e f", "ab\u00e9defgh"])
def test_an_id_that_is_none_is_replaced(site: Site, given: str):
    answer = site.client.get("/livez", headers={"X-Request-Id": given.encode("latin-1")})
    assert answer.headers["x-request-id"] != given
    assert REQUEST_ID.fullmatch(answer.headers["x-request-id"])


def test_an_error_is_told_by_kind_and_place_without_its_message(lines: io.StringIO):
    with structlog.contextvars.bound_contextvars(request="r"):
        try:
            raise ValueError(f"about {WORD}")
        except ValueError:
            logging.getLogger("x").exception("it failed")
    (line,) = told(lines)
    assert (line["event"], line["exception"], line["level"], line["request"]) == (
        "it failed",
        "ValueError",
        "error",
        "r",
    )
    assert "test_observing.py" in str(line["places"])
    assert WORD not in str(line)


def test_libraries_do_not_write_by_themselves(lines: io.StringIO, capfd: pytest.CaptureFixture[str]):
    logging.getLogger("dbos").warning("%s", "from a library")
    assert [line["event"] for line in told(lines)] == ["from a library"]
    assert capfd.readouterr().err == ""


def test_metrics_count_requests_by_route_and_what_waits(site: Site, ada: Person):
    ada.post("/api/generate", json={"subject": ada.subject_with_model(), "prompt": WORD})
    page = site.client.get("/metrics")
    assert page.headers["content-type"].startswith("text/plain")
    assert 'http_route="/api/generate"' in page.text
    assert "http_server_request_duration_seconds_bucket" in page.text
    waiting = [line for line in page.text.splitlines() if line.startswith('photoflux_work{kind="generations"')]
    assert float(next(line for line in waiting if 'state="queued"' in line).split()[-1]) >= 1
    assert "photoflux_work_oldest_seconds" in page.text
    assert ada.id not in page.text
    assert WORD not in page.text


def test_metrics_want_the_token_where_there_is_one(site: Site, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(site.service.settings.__dict__, "metrics_token", type(site.service.settings.metrics_token)("t"))
    is_problem(site.client.get("/metrics"), 401, "unauthorized")
    is_problem(site.client.get("/metrics", headers={"Authorization": "Bearer x"}), 401, "unauthorized")
    assert site.client.get("/metrics", headers={"Authorization": "Bearer t"}).status_code == 200


def test_spans_have_routes_and_no_queries():
    from fastapi import FastAPI
    from starlette.testclient import TestClient

    telemetry, kept = Telemetry("test"), InMemorySpanExporter()
    telemetry.traces.add_span_processor(SimpleSpanProcessor(kept))
    app = FastAPI(telemetry=telemetry.config)
    app.get("/things/{thing}")(lambda thing: thing)
    TestClient(app).get(f"/things/1?q={WORD}")
    (span,) = kept.get_finished_spans()
    assert span.name == "GET /things/{thing}"
    assert span.attributes["url.query"] == "REDACTED"
    assert WORD not in str(span.to_json())


def test_readiness_names_what_is_missing_and_asks_seldom(site: Site, monkeypatch: pytest.MonkeyPatch):
    health, asked = Health(site.service.records, site.objects), list[str]()
    monkeypatch.setitem(site.service.__dict__, "health", health)
    assert site.client.get("/readyz").status_code == 204
    for name, part in (("_ask_keys", "The keys"), ("_ask_objects", "The objects"), ("_ask_records", "The records")):

        def away(name: str = name) -> None:
            asked.append(name)
            raise ConnectionError

        monkeypatch.setattr(health, name, away)
        assert site.client.get("/readyz").status_code in (204, 503), "kept for ten seconds"
        health._at = float("-inf")
        told = is_problem(site.client.get("/readyz"), 503, "unavailable")
        assert told["detail"] == f"{part} cannot be reached."
        is_problem(site.client.get("/readyz"), 503, "unavailable")
    assert asked == ["_ask_keys", "_ask_objects", "_ask_records"]
    assert site.client.get("/livez").status_code == 204
