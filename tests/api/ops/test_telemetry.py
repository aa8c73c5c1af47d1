"""Logs, metrics and traces: there, useful, and without a word of anybody's."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from api.ops.health import Health
from api.ops.telemetry import REQUEST_ID, RequestLog, Telemetry, quiet_libraries, set_up_logs
from benchmarks.log_check import lines_not_json, lines_with_words
from tests.api.people import Person, Site, is_problem

WORD = "Kanarienvogel"
HOOKS = [(sys, "excepthook"), (sys, "unraisablehook"), (threading, "excepthook"), (warnings, "showwarning")]


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """What a process that logs writes."""
    root, stream = logging.getLogger(), io.StringIO()
    monkeypatch.setattr(logging, "raiseExceptions", False)
    for place, name in HOOKS:
        monkeypatch.setattr(place, name, getattr(place, name))
    handlers, level = root.handlers[:], root.level
    # What other tests import silences libraries: DVC asyncio, say.
    for logger in list(root.manager.loggerDict.values()):
        if isinstance(logger, logging.Logger):
            monkeypatch.setattr(logger, "level", logging.NOTSET)
            monkeypatch.setattr(logger, "disabled", False)
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
    assert line["actor"] == site.service.audit_log.pseudonym(ada.id)
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
            logging.getLogger("api.x").exception("it failed")
    (line,) = told(lines)
    assert (line["event"], line["exception"], line["level"], line["request"]) == (
        "it failed",
        "ValueError",
        "error",
        "r",
    )
    assert "test_telemetry.py" in str(line["places"])
    assert WORD not in str(line)


def test_records_of_libraries_are_told_by_level_and_place(lines: io.StringIO, capfd: pytest.CaptureFixture[str]):
    try:
        raise ValueError(WORD)
    except ValueError:
        logging.getLogger("library").error(
            "about %s", WORD, exc_info=True, stack_info=True, extra={"route": WORD, WORD: 1}
        )
    logging.getLogger("library").info("%s", WORD)
    (line,) = told(lines)
    assert (line["level"], line["logger"], line["exception"]) == ("error", "library", "ValueError")
    assert str(line["place"]).partition(":")[0].endswith("tests/api/ops/test_telemetry.py")
    assert WORD not in lines.getvalue()
    assert capfd.readouterr().err == ""


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(
    st.text(),
    st.lists(st.text() | st.integers(), max_size=3),
    st.sampled_from(["library", "uvicorn.error", "", "apix", "asyncio"]),
)
def test_nothing_that_libraries_say_is_written(lines: io.StringIO, message: str, arguments: list[Any], name: str):
    lines.seek(0)
    lines.truncate()
    logging.getLogger(name).warning(f"{WORD}{message}", *arguments)
    (line,) = told(lines)
    assert line["event"] == "a library's record"
    assert WORD not in lines.getvalue()


def test_the_library_of_durable_work_adds_no_handler(lines: io.StringIO, capfd: pytest.CaptureFixture[str]):
    from dbos._logger import dbos_logger, init_logger

    init_logger()
    dbos_logger.warning(WORD)
    assert [line["logger"] for line in told(lines)] == ["dbos"]
    assert capfd.readouterr().err == ""


def test_handlers_that_libraries_add_later_are_taken_away(lines: io.StringIO, capfd: pytest.CaptureFixture[str]):
    library = logging.getLogger("library.that.installs")
    library.addHandler(logging.StreamHandler())
    library.propagate = False
    logging.root.addHandler(logging.StreamHandler())
    quiet_libraries()
    library.warning(WORD)
    assert [line["logger"] for line in told(lines)] == ["library.that.installs"]
    assert capfd.readouterr().err == ""


def test_handlers_stay_where_logs_were_not_set_up(monkeypatch: pytest.MonkeyPatch):
    handler, library = logging.NullHandler(), logging.getLogger("library.of.a.program")
    monkeypatch.setattr(logging.root, "handlers", [])
    library.addHandler(handler)
    quiet_libraries()
    assert library.handlers == [handler]


def test_warnings_are_told_by_category_and_place(lines: io.StringIO):
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = sys.modules["api.ops.telemetry"]._log_warning
        warnings.warn(WORD, UserWarning, stacklevel=1)
    (line,) = told(lines)
    assert (line["exception"], "test_telemetry.py" in str(line["place"])) == ("UserWarning", True)
    assert WORD not in str(line)


def test_an_application_that_cannot_start_says_where(lines: io.StringIO):
    async def app(*_: Any) -> None:
        raise ValueError(WORD)

    with pytest.raises(ValueError, match=WORD):
        asyncio.run(RequestLog(app)({"type": "lifespan"}, None, None))  # type: ignore[arg-type]
    (line,) = told(lines)
    assert (line["exception"], line["level"]) == ("ValueError", "error")


NOISY = f"""
import asyncio, logging, os, subprocess, sys, threading, warnings
from api.ops.telemetry import set_up_logs
set_up_logs("noisy")
from dbos._logger import init_logger
init_logger()
logging.getLogger("dbos").warning("{WORD}")
logging.getLogger("library").error("{WORD}")
logging.getLogger("api.x").info("of ours")
print("{WORD}"); print("{WORD}", file=sys.stderr); os.write(2, b"{WORD} without an end")
os.write(1, b"\\xff\\xfe " + b"x" * 200_000 + b"\\n")
warnings.warn("{WORD}")
subprocess.run([sys.executable, "-c", "print('{WORD}'); raise ValueError('{WORD}')"])
subprocess.run([sys.executable, "-c", "from api.ops.telemetry import *; set_up_logs('child'); log.info('of a child'); print('{WORD}')"])
def fail(): raise ValueError("{WORD}")
thread = threading.Thread(target=fail); thread.start(); thread.join()
class Unraisable:
    def __del__(self): fail()
Unraisable()
async def forgotten(): asyncio.get_running_loop().create_task(failing()); await asyncio.sleep(0.01)
async def failing(): fail()
asyncio.run(forgotten())
print('{{"a": "{WORD}"}}')
fail()
"""


def test_whatever_a_process_writes_is_json_without_words(tmp_path: Path, root: Path):
    """Prints, C libraries, children, warnings, threads, and the error that ends it."""
    with (tmp_path / "noisy.log").open("wb") as log:
        done = subprocess.run(
            [sys.executable, "-c", NOISY],
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=root,
            timeout=120,
            check=False,
            env=os.environ | {"PYTHONPATH": str(root)},
        )
    assert done.returncode == 1
    assert lines_not_json(tmp_path) == []
    assert lines_with_words(tmp_path, [WORD]) == []
    found = [json.loads(line) for line in (tmp_path / "noisy.log").read_text().splitlines()]
    assert {"of ours", "of a child", "output", "a warning", "an error ended this"} <= {line["event"] for line in found}
    assert {"dbos", "library", "asyncio"} <= {line["logger"] for line in found}
    assert {line["service"] for line in found} == {"noisy", "child"}
    assert found[-1]["event"] in ("an error ended this", "output")
    assert len([line for line in found if line.get("exception") == "ValueError"]) >= 4


def test_the_check_finds_plain_lines_and_words_behind_escapes(tmp_path: Path):
    (tmp_path / "a.log").write_text('{"event": "K\\u0061narienvogel"}\nTraceback\n\n[1]\n')
    assert lines_not_json(tmp_path) == ["a.log:2: Traceback", "a.log:4: [1]"]
    assert lines_with_words(tmp_path, [WORD]) == [f"a.log:1: {WORD}"]
    with pytest.raises(FileNotFoundError):
        lines_not_json(tmp_path / "none")


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
    for name, part in (
        ("_check_keys", "The keys"),
        ("_check_objects", "The objects"),
        ("_check_records", "The records"),
    ):

        def away(name: str = name) -> None:
            asked.append(name)
            raise ConnectionError

        monkeypatch.setattr(health, name, away)
        assert site.client.get("/readyz").status_code in (204, 503), "kept for ten seconds"
        health._at = float("-inf")
        told = is_problem(site.client.get("/readyz"), 503, "unavailable")
        assert told["detail"] == f"{part} cannot be reached."
        is_problem(site.client.get("/readyz"), 503, "unavailable")
    assert asked == ["_check_keys", "_check_objects", "_check_records"]
    assert site.client.get("/livez").status_code == 204
