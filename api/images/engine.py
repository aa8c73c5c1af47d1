"""The engine over HTTP: Vertex AI's container contract, and a capability in every call.

`python -m api.images.engine` serves the base of the settings. Health is told once the base is loaded; predictions are pictures:

    {"instances": [{"model": …, "adapter_sha256": …, "prompt": …, "seed": 1}], "parameters": {"capability": …}}

A capability speaks for one adapter of one owner, so that nobody, on loopback either, draws with another's. It travels in the
body, since Vertex AI keeps the Authorization header for itself.
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

from api.accounts.tokens import BadToken, Capability, Checker, RemoteChecker
from api.ops.telemetry import Requests, Telemetry, set_up_logs
from api.schemas import Asked as Strict
from api.schemas import Id, Sha256
from api.settings import ApiSettings, get_api_settings, log_warnings, settings_or_exit
from api.transport import problems
from api.transport.hosts import KnownHosts
from api.transport.problems import Problem
from photoflux.params import STYLES
from photoflux.serving.adapters import Adapter, AdapterKey, read_adapter
from photoflux.serving.engine import Busy, DeadlineExceeded, Draining, Engine, OwnerForgotten
from photoflux.serving.engine import Request as Drawing
from photoflux.vault.blobs import BlobMissing
from photoflux.vault.objects import Objects, open_objects

log = logging.getLogger(__name__)

DRAIN_S = 60.0
GONE_CHECKED_S = 0.1
"""How soon a client that is gone is noticed: what it asked for is then given up after the denoise step under way."""
PROMPT_MAX, INSTANCES_MAX, CAPABILITY_MAX = 1000, 16, 4096
BODY_BYTES = 256 << 10
"""More than any call takes: INSTANCES_MAX prompts, each letter of them written as 12 bytes of JSON, and a capability."""


class Instance(Strict):
    """One picture to draw."""

    model: Id
    adapter_sha256: Sha256
    prompt: Annotated[str, Field(min_length=1, max_length=PROMPT_MAX)]
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    style: Literal[STYLES] = "none"  # type: ignore[valid-type]


Capable = Annotated[str, Field(max_length=CAPABILITY_MAX)]


class Parameters(Strict):
    """What holds for the whole call."""

    capability: Capable
    deadline_s: Annotated[float, Field(gt=0, le=600)] = 60.0


class Asked(Strict):
    instances: Annotated[list[Instance], Field(min_length=1, max_length=INSTANCES_MAX)]
    parameters: Parameters


class Prediction(BaseModel):
    image: str = Field(description="PNG at the base's resolution, base64")


class Drawn(BaseModel):
    predictions: list[Prediction]


class Forget(Strict):
    capability: Capable


def fetcher(objects: Objects, spec: Any) -> Callable[[AdapterKey], Adapter]:
    """Gives the adapter of a key, opened from its object. Raises PhotoFluxError where it is not there or not the one."""

    def fetch(key: AdapterKey) -> Adapter:
        with tempfile.TemporaryDirectory(prefix="photoflux-") as scratch:
            plain = Path(scratch) / "adapter.tar"
            plain.write_bytes(objects.get(key.owner, "adapter", key.version))
            return read_adapter(plain, spec=spec, sha256=key.sha256)

    return fetch


def open_engine(settings: ApiSettings) -> Engine:
    """The engine with the base of the settings and the adapters of the blob store."""
    from photoflux.flux.loading import load_pipeline
    from photoflux.flux.spec import load_spec

    spec = load_spec(settings.base)
    pipe = load_pipeline(spec, device=settings.device or None)
    objects = open_objects()
    return Engine(
        pipe, spec=spec, fetch=fetcher(objects, spec), is_erased=objects.keyring.is_erased,
        waiting=settings.engine_waiting, host_bytes=settings.engine_host_bytes, device_bytes=settings.engine_device_bytes,
    )  # fmt: skip


def make_app(
    settings: ApiSettings | None = None, *, engine: Engine | None = None, checker: Checker | None = None
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
        title="PhotoFlux engine", lifespan=lifespan, docs_url=None, redoc_url=None, telemetry=telemetry.config,
        max_body_size=BODY_BYTES,
    )  # fmt: skip
    missing = (404, "model-missing")
    problems.install(app, {BadToken: (401, "unauthorized"), BlobMissing: missing, OwnerForgotten: missing})
    tokens = checker or RemoteChecker(issuer=settings.issuer, jwks_url=settings.jwks_url, verify=settings.trusted)

    @app.get(settings.health_route)
    async def health() -> Response:
        """Whether requests are drawn."""
        return Response(status_code=200 if app.state.engine.alive else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        """How the engine does, for Prometheus."""
        page, kind = telemetry.page()
        return Response(page, media_type=kind)

    @app.post(settings.predict_route)
    async def predict(asked: Asked, request: Request) -> Drawn:
        """Draw the pictures, all of one adapter."""
        granted = await asyncio.to_thread(tokens.granted, asked.parameters.capability)
        deadline = time.monotonic() + asked.parameters.deadline_s
        jobs = [_drawing(one, granted, deadline) for one in asked.instances]
        pictures = await _drawn(app.state.engine, jobs, request)
        return Drawn(predictions=[Prediction(image=one) for one in pictures])

    @app.post("/forget", status_code=204)
    async def forget(asked: Forget) -> None:
        """Drop everything that is kept of the capability's owner, and give up what is drawn for them."""
        granted = await asyncio.to_thread(tokens.granted, asked.capability)
        await asyncio.to_thread(app.state.engine.forget, granted.owner)

    # Elsewhere its own network decides who asks, by names that nobody here knows; a capability is asked for everywhere.
    inner = app if settings.environment else KnownHosts(app, probes=(settings.health_route,))
    return Requests(problems.Outermost(inner))


def _drawing(one: Instance, granted: Capability, deadline: float) -> Drawing:
    if one.adapter_sha256 != granted.adapter_sha256:
        raise BadToken("the capability is for another adapter")
    key = AdapterKey(granted.owner, one.model, one.adapter_sha256)
    return Drawing(key, one.prompt, (one.seed,), style=one.style, deadline=deadline)


async def _drawn(engine: Engine, jobs: list[Drawing], request: Request) -> list[str]:
    """All pictures or none: when one fails, or whoever asked is gone, the rest is given up."""
    futures = list[asyncio.Future[Any]]()
    try:
        for job in jobs:
            futures.append(asyncio.wrap_future(engine.submit(job)))
        together = asyncio.gather(*futures)
        while not together.done():
            await asyncio.wait([together], timeout=GONE_CHECKED_S)
            if await request.is_disconnected():
                raise asyncio.CancelledError
        pictures = together.result()
    except BaseException as error:
        for job in jobs:
            engine.cancel(job)
        for future in futures:
            future.cancel()
        raise _told(error) from error
    return [await asyncio.to_thread(_png, one[0]) for one in pictures]


def _told(error: BaseException) -> BaseException:
    """Errors of the engine as problems that say when to come back."""
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
        make_app(settings), host=settings.engine_host, port=settings.engine_port, log_level="warning",
        timeout_graceful_shutdown=round(DRAIN_S), access_log=False, log_config=None,
    )  # fmt: skip
    with suppress(KeyboardInterrupt):
        uvicorn.Server(config).run()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
