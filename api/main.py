"""The application: `make_app()` puts the parts together; nothing is opened at import."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Response
from sqlalchemy import text
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api import problems
from api.db import Records, migrate, open_engine
from api.deps import Service, ServiceDep
from api.embedded_provider import CLIENT_ID, Accounts, make_provider
from api.identity import Identities, Provider
from api.problems import Problem, ProblemDetails
from api.routes import auth
from api.sessions import SignIns
from api.settings import ApiSettings, get_api_settings
from api.tokens import Tokens
from photoflux import __version__
from photoflux.vault import open_keyring

BODY_BYTES = 64 * 1024
"""What a request may hold, but for uploads."""
PROVIDER_PATH, CALLBACK_PATH = "/provider", "/api/auth/callback"
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "private, no-store",
}


def make_service(settings: ApiSettings) -> Service:
    """Open and migrate the records, open the keyring, and know the provider."""
    url, public = settings.records_url, settings.public_url.rstrip("/")
    migrate(url)
    records, keyring = Records(open_engine(url)), open_keyring()
    embedded = settings.provider == "embedded"
    provider = Provider(
        f"{public}{PROVIDER_PATH}" if embedded else settings.oidc_issuer,
        client_id=CLIENT_ID if embedded else settings.oidc_client_id,
        client_secret="" if embedded else settings.oidc_client_secret.get_secret_value(),
    )
    return Service(
        settings,
        records,
        keyring,
        Tokens(records, keyring, issuer=public, access_s=settings.access_token_s),
        SignIns(records, lifetime_days=settings.session_days),
        Identities(records, keyring, provider, redirect_uri=f"{public}{CALLBACK_PATH}"),
    )


def make_app(settings: ApiSettings | None = None) -> ASGIApp:
    """The whole service as one ASGI application."""
    settings = settings or get_api_settings()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.service = make_service(settings)
        yield
        app.state.service.records.engine.dispose()

    app = FastAPI(
        title="PhotoFlux",
        version=__version__,
        summary="Private FLUX.1 [schnell] adapters from a handful of photos",
        lifespan=lifespan,
        max_body_size=BODY_BYTES,
        responses={status: _problem_response() for status in (400, 401, 404, 413, 422, 429)},
    )
    problems.install(app)
    _add_probes(app)
    app.include_router(auth.router)
    if settings.provider == "embedded":
        public = settings.public_url.rstrip("/")
        accounts = Accounts(settings.state_dir / "accounts")
        issuer, back = f"{public}{PROVIDER_PATH}", f"{public}{CALLBACK_PATH}"
        app.mount(PROVIDER_PATH, make_provider(issuer=issuer, redirect_uri=back, accounts=accounts))
    return problems.Outermost(SafeHeaders(app))


def _problem_response() -> dict[str, object]:
    return {"model": ProblemDetails, "content": {problems.MEDIA_TYPE: {}}, "description": "a problem (RFC 9457)"}


def _add_probes(app: FastAPI) -> None:
    @app.get("/livez", operation_id="livez", status_code=204, tags=["health"])
    def livez() -> Response:
        """The process answers."""
        return Response(status_code=204)

    @app.get("/readyz", operation_id="readyz", status_code=204, tags=["health"])
    def readyz(service: ServiceDep) -> Response:
        """What the service needs is there."""
        try:
            with service.records.reading() as session:
                session.execute(text("select 1"))
        except Exception as error:
            raise Problem(503, "unavailable", "The records cannot be reached.") from error
        return Response(status_code=204)


class SafeHeaders:
    """Headers that keep browsers from guessing, framing, sharing and storing, unless a page sets its own."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                present = {name.lower() for name, _ in message["headers"]}
                ours = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
                message["headers"] = [*message["headers"], *(one for one in ours if one[0] not in present)]
            await send(message)

        await self.app(scope, receive, sending)
