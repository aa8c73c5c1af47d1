"""Logs as JSON lines, metrics for Prometheus, traces over OTLP.

None of it holds a person's words or names: people appear by the audit log's pseudonym, requests by route, errors by class and place,
since a message may quote what it is about, and records of libraries by level and place for the same reason.
"""

from __future__ import annotations

import atexit
import fcntl
import json
import logging
import os
import re
import secrets
import sys
import threading
import time
import traceback
import uuid
import warnings
from collections.abc import Callable, Iterable, MutableMapping
from contextlib import suppress
from types import TracebackType
from typing import Any, TextIO

import structlog
from opentelemetry import trace
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Span, SpanProcessor, TracerProvider
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from sqlalchemy import func, select
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.records.database import Records
from api.records.tables import ACTIVE, Export, Generation, Run, now_ms

log = logging.getLogger(__name__)

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{8,64}")
EXTRA_FIELDS = ["method", "route", "status", "ms", "actor", "place", "exception", "lines", "bytes"]
"""Fields that a line may have besides its event."""
OWN_PACKAGES = ("api", "photoflux", "pipelines", "components", "benchmarks", "__main__")
"""Packages whose messages are logged; they must contain nothing personal."""
LIBRARY_RECORD, WARNING, OUTPUT, UNCAUGHT_ERROR = "a library's record", "a warning", "output", "an error ended this"
PROBES = ("/livez", "/readyz", "/health", "/metrics")
"""Paths that machines ask every few seconds; they are not logged."""
HANDLER_INSTALLING = ("dbos",)
"""Libraries that add a handler of their own to a logger that has none."""
WORK_KINDS = {"runs": Run, "generations": Generation, "exports": Export}
PIPE_BYTES, CHUNK_BYTES, FLUSH_S = 1 << 20, 1 << 16, 2.0


def set_up_logs(service: str, stream: TextIO | None = None) -> None:
    """Have everything that this process logs or prints written to its error output, one JSON object a line.

    With a `stream` records go there, and what is printed is left alone. To be called once, after errors in the settings were printed:
    the process has no other output from here on.
    """
    output = None if stream else _OutputCapture()
    handler = logging.StreamHandler(output.stream if output else stream)
    handler.setFormatter(JsonLines(service))
    logging.raiseExceptions = False  # logging would print the record, words included
    logging.root.handlers[:] = [handler]
    logging.root.setLevel(logging.WARNING)
    for name in OWN_PACKAGES:
        logging.getLogger(name).setLevel(logging.INFO)
    quiet_libraries()
    sys.excepthook, threading.excepthook, sys.unraisablehook = _log_uncaught, _log_thread_uncaught, _log_unraisable
    warnings.showwarning = _log_warning
    if output:
        output.start(handler)


def quiet_libraries() -> None:
    """Have libraries log through the root logger alone. To be called again after setting one up, since some install handlers then."""
    own = [handler for handler in logging.root.handlers if isinstance(handler.formatter, JsonLines)]
    if not own:
        return
    logging.root.handlers[:] = own
    for logger in list(logging.root.manager.loggerDict.values()):
        if isinstance(logger, logging.Logger):
            logger.handlers.clear()
            logger.propagate = True
    for name in HANDLER_INSTALLING:
        logging.getLogger(name).addHandler(logging.NullHandler())


class JsonLines(structlog.stdlib.ProcessorFormatter):
    """Formats a record as one JSON object; of a library's record level and place alone."""

    def __init__(self, service: str) -> None:
        before: list[Any] = [
            structlog.contextvars.merge_contextvars,
            structlog.stdlib.add_log_level,
            structlog.stdlib.add_logger_name,
            structlog.stdlib.ExtraAdder(EXTRA_FIELDS),
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
            _add_trace,
            _add_exception,
            lambda *args: {**args[2], "service": service},
        ]
        meta = structlog.stdlib.ProcessorFormatter.remove_processors_meta
        super().__init__(foreign_pre_chain=before, processors=[meta, structlog.processors.JSONRenderer()])

    def format(self, record: logging.LogRecord) -> str:
        return super().format(record if record.name.partition(".")[0] in OWN_PACKAGES else _redacted(record))


def _redacted(record: logging.LogRecord) -> logging.LogRecord:
    names = ("name", "levelno", "levelname", "pathname", "lineno", "created", "exc_info")
    facts = {name: record.__dict__[name] for name in names}
    return logging.makeLogRecord({**facts, "msg": LIBRARY_RECORD, "place": f"{_tail(record.pathname)}:{record.lineno}"})


def _tail(file: str) -> str:
    return file.rpartition("/site-packages/")[2]


class _OutputCapture:
    """Replaces what this process and its children print, C libraries included, by log lines that say how much it was.

    JSON lines of children that log like this process are passed on unchanged.
    """

    def __init__(self) -> None:
        self.stream = os.fdopen(os.dup(2), "w", buffering=1, encoding="utf-8", errors="backslashreplace")
        self._read, self._write = os.pipe()
        self._over = secrets.token_hex(16).encode()
        with suppress(OSError, AttributeError):  # not everywhere, and not without bounds
            # A C library that prints must not wait for the thread that reads, which may wait for the library.
            fcntl.fcntl(self._write, fcntl.F_SETPIPE_SZ, PIPE_BYTES)

    def start(self, handler: logging.StreamHandler[Any]) -> None:
        """Begin; `handler` writes to `stream`."""
        self._handler = handler
        self._reader = threading.Thread(target=self._forward, name="output", daemon=True)
        self._reader.start()
        self._redirect(self._write)
        atexit.register(self._stop)

    def _redirect(self, descriptor: int) -> None:
        for text, number in ((sys.stdout, 1), (sys.stderr, 2)):
            text.flush()
            os.dup2(descriptor, number)

    def _stop(self) -> None:
        """Log what was printed so far; what is printed while the interpreter ends is discarded."""
        self._redirect(os.open(os.devnull, os.O_WRONLY))
        os.write(self._write, b"\n" + self._over + b"\n")
        self._reader.join(FLUSH_S)

    def _forward(self) -> None:
        partial_line = b""
        while data := os.read(self._read, CHUNK_BYTES):
            *lines, partial_line = (partial_line + data).split(b"\n")
            if len(partial_line) > CHUNK_BYTES:
                lines, partial_line = [*lines, partial_line], b""
            self._log_lines([line for line in lines if line.strip() and line != self._over])
            if self._over in lines:
                return

    def _log_lines(self, lines: list[bytes]) -> None:
        known = [line for line in lines if _is_own_line(line)]
        if known:
            self._handler.acquire()
            try:
                self.stream.write(b"".join(line + b"\n" for line in known).decode())
            finally:
                self._handler.release()
        if count := len(lines) - len(known):
            size = sum(map(len, lines)) - sum(map(len, known))
            log.info(OUTPUT, extra={"lines": count, "bytes": size})


def _is_own_line(line: bytes) -> bool:
    """Whether a line was made by `JsonLines`."""
    try:
        read = json.loads(line)
    except ValueError:
        return False
    return isinstance(read, dict) and {"event", "level", "logger", "time", "service"} <= read.keys()


def _log_uncaught(kind: type[BaseException], error: BaseException, origin: TracebackType | None) -> None:
    """Logs an uncaught error of the main thread."""
    log.critical(UNCAUGHT_ERROR, exc_info=(kind, error, origin))


def _log_thread_uncaught(args: Any) -> None:
    if args.exc_type is not SystemExit:
        log.error(UNCAUGHT_ERROR, exc_info=(args.exc_type, args.exc_value, args.exc_traceback))


def _log_unraisable(args: Any) -> None:
    log.error("an error could not be raised", exc_info=(args.exc_type, args.exc_value, args.exc_traceback))


def _log_warning(
    message: Warning | str,  # noqa: ARG001
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,  # noqa: ARG001
    line: str | None = None,  # noqa: ARG001
) -> None:
    log.warning(WARNING, extra={"exception": category.__name__, "place": f"{_tail(filename)}:{lineno}"})


def _add_trace(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Adds the id of the current trace."""
    context = trace.get_current_span().get_span_context()
    return {**event, "trace": f"{context.trace_id:032x}"} if context.is_valid else event


def _add_exception(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Adds the class and the places of an exception, without its message."""
    record = event.get("_record")
    event.pop("exc_info", None)
    event.pop("stack_info", None)
    if record is None or not record.exc_info or record.exc_info[0] is None:
        return event
    kind, _, origin = record.exc_info
    record.exc_info = record.exc_text = None
    frames = traceback.extract_tb(origin)
    places = [f"{_tail(one.filename)}:{one.lineno} {one.name}" for one in frames[-12:]]
    return {**event, "exception": kind.__name__, "places": places}


class Telemetry:
    """Metrics and traces of one application."""

    def __init__(self, service: str) -> None:
        resource = Resource.create({"service.name": f"photoflux-{service}"})
        self._registry = CollectorRegistry()
        reader = PrometheusMetricReader(scope_info_enabled=False, disable_target_info=True, registry=self._registry)
        self.meters = MeterProvider(metric_readers=[reader], resource=resource, shutdown_on_exit=False)
        self.traces = TracerProvider(resource=resource, shutdown_on_exit=False)
        self.traces.add_span_processor(_RedactQueries())

    @property
    def config(self) -> Any:
        """For FastAPI: its own spans and durations by route. Exporters come from the OTEL_* environment."""
        return {
            "tracer_provider": self.traces,
            "meter_provider": self.meters,
            "logs": False,
            "operation_spans": False,
            "auto_configure": True,
        }

    def observe_work(self, records: Records) -> None:
        """Add gauges of queued and running work, and of its age; the database is asked when metrics are."""
        meter = self.meters.get_meter("photoflux")
        meter.create_observable_gauge("photoflux.work", [_count_work(records)], description="work that waits or runs")
        meter.create_observable_gauge(
            "photoflux.work.oldest",
            [_oldest_work(records)],
            unit="s",
            description="age of the oldest that waits or runs",
        )

    def page(self) -> tuple[bytes, str]:
        """The metrics as Prometheus reads them, and their media type."""
        return generate_latest(self._registry), CONTENT_TYPE_LATEST


def _count_work(records: Records) -> Callable[[CallbackOptions], Iterable[Observation]]:
    def observe(_: CallbackOptions) -> Iterable[Observation]:
        with records.reading() as session:
            for name, kind in WORK_KINDS.items():
                query = select(kind.state, func.count()).where(kind.state.in_(ACTIVE)).group_by(kind.state)  # type: ignore[attr-defined]
                found: dict[str, int] = dict(session.execute(query).tuples().all())
                for state in ACTIVE:
                    yield Observation(found.get(state, 0), {"kind": name, "state": state})

    return observe


def _oldest_work(records: Records) -> Callable[[CallbackOptions], Iterable[Observation]]:
    def observe(_: CallbackOptions) -> Iterable[Observation]:
        with records.reading() as session:
            for name, kind in WORK_KINDS.items():
                first = session.scalar(select(func.min(kind.created_ms)).where(kind.state.in_(ACTIVE)))  # type: ignore[attr-defined]
                yield Observation((now_ms() - first) / 1000 if first else 0.0, {"kind": name})

    return observe


class _RedactQueries(SpanProcessor):
    """Removes query strings from spans, since people may have typed them."""

    def on_start(self, span: Span, parent_context: Any = None) -> None:  # noqa: ARG002
        if span.attributes and "url.query" in span.attributes:
            span.set_attribute("url.query", "REDACTED")


class RequestLog:
    """Gives each request an id, for its response and every line logged meanwhile, and logs its route, status and duration."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._other(scope, receive, send)
        given = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
        request_id = given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        status, started = 0, time.perf_counter()

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
            await send(message)

        with structlog.contextvars.bound_contextvars(request=request_id):
            try:
                await self.app(scope, receive, sending)
            finally:
                route = getattr(scope.get("route"), "path", None)
                if route not in PROBES:
                    ms = round(1000 * (time.perf_counter() - started), 1)
                    actor = scope.get("state", {}).get("actor")
                    fields = {"method": scope["method"], "route": route, "status": status, "ms": ms, "actor": actor}
                    log.info("request", extra=fields)

    async def _other(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Logs errors of start and end here, since the server's own record of them is a library's, without class and places."""
        try:
            await self.app(scope, receive, send)
        except Exception:
            log.exception(
                "the application could not start or end" if scope["type"] == "lifespan" else "a connection failed"
            )
            raise
