"""The API: `make_app()` assembles it; nothing is opened at import."""

from __future__ import annotations

import secrets
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import FastAPI, Header, Request, Response
from fastapi.responses import PlainTextResponse
from starlette.formparsers import MultiPartParser
from starlette.types import ASGIApp

from api.accounts.embedded_provider import CLIENT_ID, Accounts
from api.accounts.login_sessions import LoginSessions, SignedOut
from api.accounts.openid_client import Identities, Provider
from api.accounts.tokens import AccessTokenClaims, Tokens
from api.deps import HealthDep, Service
from api.images.credentials import open_credentials
from api.images.moderation import ModerationUnavailable, open_moderator
from api.images.rendering import ImageRenderer
from api.jobs.generation_starter import GenerationStarter
from api.jobs.job_queue import JobQueue, prepare
from api.jobs.run_starter import RunStarter
from api.jobs.webhook_delivery import WebhookSubscriptions
from api.ops.health import Health
from api.ops.memory import trim_heap
from api.ops.telemetry import RequestLog, Telemetry, set_up_logs
from api.records.audit_log import AuditHeads, AuditLog
from api.records.database import Records, migrate, open_engine
from api.records.service_secrets import pepper, service_secret
from api.routes import (
    audit,
    auth,
    complaints,
    generations,
    me,
    media,
    models,
    prompts,
    runs,
    sign_offs,
    subjects,
    terms,
    webhooks,
)
from api.routes.pages import add_pages
from api.routes.provider_pages import make_provider
from api.settings import LOOPBACK, ApiSettings, get_api_settings, log_warnings, settings_or_exit
from api.training.photo_intake import PhotoIntake
from api.training.photo_sets import PhotoCollection
from api.transport import problems
from api.transport.concurrency import FairLimiter, HeldRequests
from api.transport.hosts import trusted_hosts
from api.transport.middleware import BodyLimits, ErrorBoundary, ETags, SecurityHeaders
from api.transport.openapi import TAGS, TEXT, DescribedApp
from api.transport.problems import Problem, problem_responses
from api.transport.rate_limits import RateLimiter
from photoflux import __version__
from photoflux.params.files import load_params, read_spec
from photoflux.vault import open_keyring
from photoflux.vault.objects import open_objects

BODY_BYTES = 64 * 1024
"""Largest body of a request, but for uploads."""
PROVIDER_PATH, CALLBACK_PATH = "/provider", "/api/auth/callback"
DNS_LOOKUPS, DNS_WAIT_S = 4, 10.0
DNS_BUSY = "Many addresses are being looked up; ask again in a moment."
SWITCH_INTERVAL_S = 0.0005
"""How long a computing thread keeps Python's lock. A short request takes it dozens of times, each time behind computing threads: with
the default of 5 ms, reads under attack took twice as long."""


def make_service(settings: ApiSettings) -> Service:
    """Migrate and open the records, open the keyring, and make all parts of the service."""
    url, public = settings.records_url, settings.issuer
    migrate(url)
    prepare(url)
    records, keyring = Records(open_engine(url)), open_keyring()
    objects, key = open_objects(keyring), pepper(keyring)
    checks = load_params("validate")
    intake = PhotoIntake(checks)
    embedded = settings.provider == "embedded"
    provider = Provider(
        f"{public}{PROVIDER_PATH}" if embedded else settings.oidc_issuer,
        client_id=CLIENT_ID if embedded else settings.oidc_client_id,
        client_secret="" if embedded else settings.oidc_client_secret.get_secret_value(),
        verify=settings.trusted if embedded else True,
    )
    queue = JobQueue(url)
    subscriptions = WebhookSubscriptions(queue)
    audit_log = AuditLog(key, on_entry=subscriptions.on_entry)
    collection = PhotoCollection(objects, key, checks, settings.photos_max, intake.compare)
    run_starter = RunStarter(settings, objects, collection, queue, audit_log)
    return Service(
        settings=settings,
        records=records,
        keyring=keyring,
        tokens=Tokens(records, keyring, issuer=public, access_s=settings.access_token_s),
        login_sessions=LoginSessions(
            records, lifetime_days=settings.session_days, key=service_secret(keyring, "refresh")
        ),
        identities=Identities(records, keyring, provider, redirect_uri=f"{public}{CALLBACK_PATH}"),
        objects=objects,
        collection=collection,
        intake=intake,
        audit_log=audit_log,
        heads=AuditHeads(records, objects, audit_log),
        queue=queue,
        subscriptions=subscriptions,
        run_starter=run_starter,
        generation_starter=GenerationStarter(settings, keyring, run_starter, queue, audit_log),
        rate_limiter=RateLimiter(settings.limits, rates=settings.rates),
        renderer=ImageRenderer(open_credentials(keyring)),
        moderator=open_moderator(settings),
        health=Health(records, objects),
        held_requests=HeldRequests(),
        dns_lookups=FairLimiter(DNS_LOOKUPS, per_person=1, wait_s=DNS_WAIT_S, busy_message=DNS_BUSY),
        class_nouns=class_nouns(settings.base),
        trigger=load_params("import_photos").trigger,
    )


def class_nouns(base: str) -> tuple[str, ...]:
    """The class nouns that the base was trained on."""
    return tuple(read_spec(base).get("class_nouns") or ())


def make_app(settings: ApiSettings | None = None) -> ASGIApp:
    """The whole service as one ASGI application."""
    settings = settings or get_api_settings()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.service, ended = make_service(settings), threading.Event()
        telemetry.observe_work(app.state.service.records)
        threading.Thread(target=trim_heap, args=[ended], name="memory", daemon=True).start()
        yield
        ended.set()
        app.state.service.close()

    telemetry = Telemetry("api")
    app = DescribedApp(
        title="PhotoFlux",
        version=__version__,
        summary="Private FLUX.1 [schnell] adapters from a handful of photos",
        description=TEXT,
        openapi_tags=[{"name": name, "description": description} for name, description in TAGS.items()],
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        max_body_size=BODY_BYTES,
        telemetry=telemetry.config,
    )
    problems.install_handlers(app, {ModerationUnavailable: (503, "unchecked")})
    MultiPartParser.spool_max_size = subjects.UPLOAD_BYTES  # photos are not written to disk before they are sealed
    _add_probes(app, telemetry, settings)
    add_pages(app)
    for module in (
        auth,
        terms,
        subjects,
        runs,
        generations,
        models,
        prompts,
        me,
        webhooks,
        complaints,
        sign_offs,
        audit,
        media,
    ):
        app.include_router(module.router)
    app.include_router(subjects.uploads)
    if settings.provider == "embedded":
        public = settings.issuer
        accounts = Accounts(settings.state_dir / "accounts")
        issuer, back = f"{public}{PROVIDER_PATH}", f"{public}{CALLBACK_PATH}"
        rate_limiter = RateLimiter(settings.limits, rates=settings.rates)
        provider = make_provider(issuer=issuer, redirect_uri=back, accounts=accounts, rate_limiter=rate_limiter)
        app.mount(PROVIDER_PATH, provider)
    # from the inside out: what is added last sees a request first
    limited = BodyLimits(
        ETags(app),
        seconds=settings.body_s,
        uploads=settings.uploads_at_once,
        check=lambda token: _verify_uploader(app.state.service, token),
    )
    secured = SecurityHeaders(trusted_hosts(limited, settings), tls=settings.secure)
    return RequestLog(ErrorBoundary(secured))


def _verify_uploader(service: Service, token: str) -> AccessTokenClaims:
    """The claims of an upload's access token. Raises BadToken, or SignedOut where its login session has ended."""
    sender = service.tokens.verify_access(token)
    if not service.login_sessions.is_open(sender.login_session_id):
        raise SignedOut("this sign-in is over; sign in again")
    return sender


def _add_probes(app: FastAPI, telemetry: Telemetry, settings: ApiSettings) -> None:
    @app.get("/livez", operation_id="livez", status_code=204, tags=["health"])
    async def livez() -> Response:
        """The process answers, however long its threads are busy."""
        return Response(status_code=204)

    @app.get("/readyz", operation_id="readyz", status_code=204, tags=["health"], responses=problem_responses(503))
    def readyz(health: HealthDep) -> Response:
        """What the service needs is there: records, objects and the key that keysets are wrapped by."""
        if missing := health.unreachable():
            raise Problem(503, "unavailable", f"{missing} cannot be reached.", headers={"Retry-After": "5"})
        return Response(status_code=204)

    @app.get(
        "/metrics",
        operation_id="metrics",
        tags=["health"],
        response_class=PlainTextResponse,
        responses=problem_responses(401, 403),
    )
    def metrics(request: Request, authorization: Annotated[str, Header()] = "") -> Response:
        """How the service does, for Prometheus; with the token of the settings, or from this machine where there is none."""
        token = settings.metrics_token.get_secret_value()
        if token and not secrets.compare_digest(authorization.encode(), f"Bearer {token}".encode()):
            raise Problem(401, "unauthorized", "Ask with the metrics token.", headers={"WWW-Authenticate": "Bearer"})
        near = request.client is not None and request.client.host in (*LOOPBACK, "testclient")
        if not token and not (near and settings.one_machine):  # a proxy beside it makes everybody look near
            raise Problem(403, "forbidden", "Metrics are told on this machine only; set PHOTOFLUX_METRICS_TOKEN.")
        page, kind = telemetry.page()
        return Response(page, media_type=kind)


def main() -> int:
    """Serve until SIGTERM; requests that are being answered are finished."""
    from urllib.parse import urlsplit

    from api.transport.connections import serve

    settings = settings_or_exit()
    set_up_logs("api")
    log_warnings(settings)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    serve(
        make_app(settings),
        host=settings.listen,
        port=urlsplit(settings.public_url).port or (443 if settings.secure else 80),
        per_address=settings.connections_per_address,
        proxies=settings.trusted_proxies.strip(),
        tls_cert=settings.tls_cert,
        tls_key=settings.tls_key,
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
