"""The engine over HTTP: Vertex AI's container contract, and a capability in every call.

`python -m api.images.engine` serves the base of the settings. Health answers 200 once the base is loaded; predictions are images:

    {"instances": [{"model": …, "adapter_sha256": …, "prompt": …, "seed": 1}], "parameters": {"capability": …}}

A capability is for one adapter of one owner, so that nobody, on loopback either, generates with another's. It is in the body,
since Vertex AI uses the Authorization header itself.
"""

from __future__ import annotations

import asyncio
import base64
import io
import logging
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, Literal

import uvicorn
from fastapi import FastAPI, Request, Response
from pydantic import BaseModel, Field
from starlette.types import ASGIApp

from api.accounts.tokens import BadToken, Capability, RemoteTokenVerifier, TokenVerifier
from api.ops.telemetry import RequestLog, Telemetry, set_up_logs
from api.schemas import Id, RequestBody, Sha256
from api.settings import ApiSettings, get_api_settings, log_warnings, settings_or_exit
from api.transport import problems
from api.transport.hosts import TrustedHosts
from api.transport.middleware import ErrorBoundary
from api.transport.problems import Problem
from photoflux.params import STYLES
from photoflux.serving.adapters import Adapter, AdapterKey, read_adapter
from photoflux.serving.engine import Busy, DeadlineExceeded, Draining, Engine, OwnerForgotten
from photoflux.serving.engine import Request as GenerationRequest
from photoflux.vault.blobs import BlobMissing
from photoflux.vault.objects import Objects, open_objects

log = logging.getLogger(__name__)

DRAIN_S = 60.0
DISCONNECT_CHECK_S = 0.1
"""Seconds between checks whether the client is connected: if not, its request is cancelled after the current denoise step."""
PROMPT_MAX, INSTANCES_MAX, CAPABILITY_MAX = 1000, 16, 4096
BODY_BYTES = 256 << 10
"""A call's limit: INSTANCES_MAX prompts, each letter of them written as 12 bytes of JSON, and a capability."""


class Instance(RequestBody):
    """One image to generate."""

    model: Id
    adapter_sha256: Sha256
    prompt: Annotated[str, Field(min_length=1, max_length=PROMPT_MAX)]
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    style: Literal[STYLES] = "none"  # type: ignore[valid-type]


CapabilityToken = Annotated[str, Field(max_length=CAPABILITY_MAX)]


class Parameters(RequestBody):
    """What holds for the whole call."""

    capability: CapabilityToken
    deadline_s: Annotated[float, Field(gt=0, le=600)] = 60.0


class PredictRequest(RequestBody):
    instances: Annotated[list[Instance], Field(min_length=1, max_length=INSTANCES_MAX)]
    parameters: Parameters


class Prediction(BaseModel):
    image: str = Field(description="PNG at the base's resolution, base64")


class EngineResponse(BaseModel):
    predictions: list[Prediction]


class ForgetRequest(RequestBody):
    capability: CapabilityToken


def fetcher(objects: Objects, spec: Any) -> Callable[[AdapterKey], Adapter]:
    """A function that unseals and reads the adapter of a key; it raises PhotoFluxError where that is missing or another one."""

    def fetch(key: AdapterKey) -> Adapter:
        with tempfile.TemporaryDirectory(prefix="photoflux-") as scratch:
            unsealed = Path(scratch) / "adapter.tar"
            unsealed.write_bytes(objects.get(key.owner, "adapter", key.version))
            return read_adapter(unsealed, spec=spec, sha256=key.sha256)

    return fetch


def open_engine(settings: ApiSettings) -> Engine:
    """The engine with the base of the settings and the adapters of the blob store."""
    from photoflux.flux.loading import load_pipeline
    from photoflux.flux.spec import load_spec

    spec = load_spec(settings.base)
    pipe = load_pipeline(spec, device=settings.device or None)
    objects = open_objects()
    return Engine(
        pipe,
        spec=spec,
        fetch=fetcher(objects, spec),
        is_erased=objects.keyring.is_erased,
        waiting=settings.engine_waiting,
        host_bytes=settings.engine_host_bytes,
        device_bytes=settings.engine_device_bytes,
    )


def make_app(
    settings: ApiSettings | None = None, *, engine: Engine | None = None, checker: TokenVerifier | None = None
) -> ASGIApp:
    """The engine as an ASGI application; `engine` and `checker` replace those of the settings."""
    settings = settings or get_api_settings()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.engine = engine or await asyncio.to_thread(open_engine, settings)
        yield
        await asyncio.to_thread(app.state.engine.drain, DRAIN_S)

    telemetry = Telemetry("engine")
    app = FastAPI(
        title="PhotoFlux engine",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        telemetry=telemetry.config,
        max_body_size=BODY_BYTES,
    )
    missing = (404, "model-missing")
    problems.install_handlers(app, {BadToken: (401, "unauthorized"), BlobMissing: missing, OwnerForgotten: missing})
    tokens = checker or RemoteTokenVerifier(issuer=settings.issuer, jwks_url=settings.jwks_url, verify=settings.trusted)

    @app.get(settings.health_route)
    async def health() -> Response:
        """Whether the engine serves requests."""
        return Response(status_code=200 if app.state.engine.alive else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        """How the engine does, for Prometheus."""
        page, kind = telemetry.page()
        return Response(page, media_type=kind)

    @app.post(settings.predict_route)
    async def predict(asked: PredictRequest, request: Request) -> EngineResponse:
        """Generate images, all with one adapter."""
        granted = await asyncio.to_thread(tokens.verify_capability, asked.parameters.capability)
        deadline = time.monotonic() + asked.parameters.deadline_s
        wanted = [_engine_request(one, granted, deadline) for one in asked.instances]
        images = await _generate(app.state.engine, wanted, request)
        return EngineResponse(predictions=[Prediction(image=one) for one in images])

    @app.post("/forget", status_code=204)
    async def forget(asked: ForgetRequest) -> None:
        """Drop the adapters of the capability's owner, and cancel their requests."""
        granted = await asyncio.to_thread(tokens.verify_capability, asked.capability)
        await asyncio.to_thread(app.state.engine.forget, granted.owner)

    # Elsewhere its own network decides who asks, by names that nobody here knows; a capability is asked for everywhere.
    inner = app if settings.environment else TrustedHosts(app, probes=(settings.health_route,))
    return RequestLog(ErrorBoundary(inner))


def _engine_request(one: Instance, granted: Capability, deadline: float) -> GenerationRequest:
    if one.adapter_sha256 != granted.adapter_sha256:
        raise BadToken("the capability is for another adapter")
    key = AdapterKey(granted.owner, one.model, one.adapter_sha256)
    return GenerationRequest(key, one.prompt, (one.seed,), style=one.style, deadline=deadline)


async def _generate(engine: Engine, wanted: list[GenerationRequest], request: Request) -> list[str]:
    """All images, as PNG in base64, or none: where one fails, or the client disconnects, the others are cancelled."""
    futures = list[asyncio.Future[Any]]()
    try:
        for one in wanted:
            futures.append(asyncio.wrap_future(engine.submit(one)))
        together = asyncio.gather(*futures)
        while not together.done():
            await asyncio.wait([together], timeout=DISCONNECT_CHECK_S)
            if await request.is_disconnected():
                raise asyncio.CancelledError
        images = together.result()
    except BaseException as error:
        for one in wanted:
            engine.cancel(one)
        for future in futures:
            future.cancel()
        raise _as_problem(error) from error
    return [await asyncio.to_thread(_png, one[0]) for one in images]


def _as_problem(error: BaseException) -> BaseException:
    """Errors of the engine as HTTP problems, with Retry-After where trying again helps."""
    if isinstance(error, Busy):
        return Problem(429, "busy", str(error), headers={"Retry-After": f"{error.retry_after_s:.0f}"})
    if isinstance(error, Draining):
        return Problem(503, "draining", str(error), headers={"Retry-After": "5"})
    if isinstance(error, DeadlineExceeded):
        return Problem(504, "too-late", str(error))
    if isinstance(error, asyncio.CancelledError):
        return Problem(503, "cancelled", "The request was given up.")
    return error


def _png(image: Any) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=1)
    return base64.b64encode(buffer.getvalue()).decode()


def main() -> int:
    """Serve until SIGTERM, then finish what waits."""
    settings = settings_or_exit()
    set_up_logs("engine")
    log_warnings(settings)
    config = uvicorn.Config(
        make_app(settings),
        host=settings.engine_host,
        port=settings.engine_port,
        log_level="warning",
        timeout_graceful_shutdown=round(DRAIN_S),
        access_log=False,
        log_config=None,
    )
    with suppress(KeyboardInterrupt):
        uvicorn.Server(config).run()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
