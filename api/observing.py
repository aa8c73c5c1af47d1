"""What operators see of the service: logs as JSON lines, metrics for Prometheus, traces over OTLP.

None of it holds a person's words or names: people appear by the audit log's pseudonym, addresses by their route, and errors by
their kind and place, since a message may quote what it is about.
"""

from __future__ import annotations

import logging
import re
import time
import traceback
import uuid
from collections.abc import Callable, Iterable, MutableMapping
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

from api.db import ACTIVE, Export, Generation, Records, Run, now_ms

log = logging.getLogger(__name__)

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{8,64}")
TOLD = ["method", "route", "status", "ms", "actor"]
"""Of a request, in its line."""
PROBES = ("/livez", "/readyz", "/health", "/metrics")
"""Asked every few seconds by machines; not worth a line."""
QUIET = {"httpx2": logging.WARNING, "dbos": logging.WARNING, "alembic": logging.WARNING}
WAITING = {"runs": Run, "generations": Generation, "exports": Export}


def set_up_logs(service: str, stream: TextIO | None = None) -> None:
    """Have everything that this process logs written to `stream`, or its error output, one JSON object a line."""
    before: list[Any] = [
        structlog.contextvars.merge_contextvars, structlog.stdlib.add_log_level, structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(TOLD), structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"), _traced,
        _where_it_failed,
    ]  # fmt: skip
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[*before, lambda *args: {**args[2], "service": service}],
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, structlog.processors.JSONRenderer()],
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter)
    logging.raiseExceptions = False  # it would print what was to be logged
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    for logger in logging.root.manager.loggerDict.values():
        if isinstance(logger, logging.Logger):  # libraries that would write by themselves
            logger.handlers.clear()
            logger.propagate = True
    for name, level in QUIET.items():
        logging.getLogger(name).setLevel(level)


def _traced(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """The trace that a line belongs to."""
    context = trace.get_current_span().get_span_context()
    return {**event, "trace": f"{context.trace_id:032x}"} if context.is_valid else event


def _where_it_failed(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """An exception as its kind and where it came from, without its message."""
    record = event.get("_record")
    if record is None or not record.exc_info or record.exc_info[1] is None:
        return event
    kind, _, origin = record.exc_info
    event.pop("exc_info", None)
    record.exc_info = record.exc_text = None
    frames = traceback.extract_tb(origin)
    places = [f"{one.filename.rpartition('/site-packages/')[2]}:{one.lineno} {one.name}" for one in frames[-12:]]
    return {**event, "exception": kind.__name__, "places": places}


class Telemetry:
    """Metrics and traces of one application; `records` are counted when somebody looks."""

    def __init__(self, service: str) -> None:
        resource = Resource.create({"service.name": f"photoflux-{service}"})
        self._registry = CollectorRegistry()
        reader = PrometheusMetricReader(scope_info_enabled=False, disable_target_info=True, registry=self._registry)
        self.meters = MeterProvider(metric_readers=[reader], resource=resource, shutdown_on_exit=False)
        self.traces = TracerProvider(resource=resource, shutdown_on_exit=False)
        self.traces.add_span_processor(_WithoutQueries())

    @property
    def config(self) -> Any:
        """For FastAPI: its own spans and durations by route. Exporters come from the OTEL_* environment."""
        return {
            "tracer_provider": self.traces, "meter_provider": self.meters, "logs": False, "operation_spans": False,
            "auto_configure": True,
        }  # fmt: skip

    def watch(self, records: Records) -> None:
        """Count what waits, and how long it has."""
        meter = self.meters.get_meter("photoflux")
        meter.create_observable_gauge("photoflux.work", [_counted(records)], description="work that waits or runs")
        meter.create_observable_gauge(
            "photoflux.work.oldest", [_oldest(records)], unit="s", description="age of the oldest that waits or runs"
        )

    def page(self) -> tuple[bytes, str]:
        """The metrics as Prometheus reads them, and their media type."""
        return generate_latest(self._registry), CONTENT_TYPE_LATEST


def _counted(records: Records) -> Callable[[CallbackOptions], Iterable[Observation]]:
    def observe(_: CallbackOptions) -> Iterable[Observation]:
        with records.reading() as session:
            for name, kind in WAITING.items():
                query = select(kind.state, func.count()).where(kind.state.in_(ACTIVE)).group_by(kind.state)  # type: ignore[attr-defined]
                found: dict[str, int] = dict(session.execute(query).tuples().all())
                for state in ACTIVE:
                    yield Observation(found.get(state, 0), {"kind": name, "state": state})

    return observe


def _oldest(records: Records) -> Callable[[CallbackOptions], Iterable[Observation]]:
    def observe(_: CallbackOptions) -> Iterable[Observation]:
        with records.reading() as session:
            for name, kind in WAITING.items():
                first = session.scalar(select(func.min(kind.created_ms)).where(kind.state.in_(ACTIVE)))  # type: ignore[attr-defined]
                yield Observation((now_ms() - first) / 1000 if first else 0.0, {"kind": name})

    return observe


class _WithoutQueries(SpanProcessor):
    """Queries may be what somebody typed: they do not leave the process."""

    def on_start(self, span: Span, parent_context: Any = None) -> None:  # noqa: ARG002
        if span.attributes and "url.query" in span.attributes:
            span.set_attribute("url.query", "REDACTED")


class Requests:
    """Gives each request an id, which its answer and every line logged for it carry, and logs how it went."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
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
                    told = {"method": scope["method"], "route": route, "status": status, "ms": ms, "actor": actor}
                    log.info("request", extra=told)
