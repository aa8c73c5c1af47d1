"""The embedded OpenID provider over HTTP: its form, and the addresses that this service asks."""

from __future__ import annotations

import html
from collections.abc import Mapping
from contextlib import suppress
from types import MappingProxyType
from typing import Any
from urllib.parse import parse_qsl

from authlib.oauth2 import OAuth2Error
from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, Response
from joserfc.jwk import KeySet
from starlette.concurrency import run_in_threadpool

from api.accounts.embedded_provider import Accounts, CodeRequest, ProviderServer
from api.transport import problems
from api.transport.media_types import URLENCODED, media_type
from api.transport.password_checks import PasswordChecks
from api.transport.problems import Problem
from api.transport.rate_limits import RateLimiter, client_address

NO_HEADERS: Mapping[str, str] = MappingProxyType({})
FORM_BYTES, FIELDS_MAX = 4096, 16
PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Sign in</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>body{{font:16px system-ui;max-width:22rem;margin:15vh auto;padding:0 1rem}}input,button{{font:inherit;width:100%;
box-sizing:border-box;padding:.6rem;margin:.3rem 0}}.error{{color:#a11}}</style>
<h1>PhotoFlux on this machine</h1><p class="error" role="alert">{error}</p>
<form method="post" action="{action}"><label>E-mail<input name="email" type="email" autocomplete="username" required></label>
<label>Password<input name="password" type="password" autocomplete="current-password" required></label>
<button>Sign in</button></form></html>"""


def make_provider(
    *, issuer: str, redirect_uri: str, accounts: Accounts, rate_limiter: RateLimiter | None = None
) -> FastAPI:
    """The provider's pages, to be mounted at the path of `issuer`. Without `rate_limiter` it counts by itself."""
    provider = ProviderServer(issuer=issuer, redirect_uri=redirect_uri, accounts=accounts)
    checks = PasswordChecks(rate_limiter or RateLimiter("memory://"))
    app = FastAPI(title="PhotoFlux sign-in", docs_url=None, redoc_url=None, openapi_url=None, max_body_size=FORM_BYTES)
    problems.install_handlers(app)
    app.state.provider, app.state.checks = provider, checks

    # What the service itself asks for is answered without a thread: all of them may be waiting for these very answers.
    @app.get("/.well-known/openid-configuration")
    async def discovery() -> dict[str, Any]:
        return {
            "issuer": issuer,
            "authorization_endpoint": f"{issuer}/authorize",
            "token_endpoint": f"{issuer}/token",
            "jwks_uri": f"{issuer}/jwks",
            "response_types_supported": ["code"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["RS256"],
            "scopes_supported": ["openid", "email", "profile"],
            "token_endpoint_auth_methods_supported": ["none"],
            "code_challenge_methods_supported": ["S256"],
        }

    @app.get("/jwks")
    async def jwks() -> dict[str, Any]:
        return dict(KeySet([provider.key]).as_dict(private=False))

    @app.get("/authorize")
    def ask(request: Request) -> Response:
        return _page(request, provider)

    @app.post("/authorize")
    async def answer(request: Request) -> Response:
        return await _authorized(request, provider, checks)

    @app.post("/token")
    async def token(request: Request) -> Response:
        oauth_request = CodeRequest("POST", "", await _form(request), request.headers)
        answer: Response = provider.create_token_response(oauth_request)
        return answer

    return app


async def _form(request: Request) -> dict[str, str]:
    """Its fields. A problem of 415 for anything but a form without files, of 400 for one that cannot be read."""
    if media_type(request.headers) != URLENCODED:
        raise Problem(415, "unsupported-media-type", f"Send the fields as {URLENCODED}.")
    try:
        text = (await request.body()).decode()
        return dict(parse_qsl(text, keep_blank_values=True, max_num_fields=FIELDS_MAX, errors="strict"))
    except ValueError as error:
        raise Problem(400, "bad-request", "The form cannot be read.") from error


def _page(
    request: Request,
    provider: ProviderServer,
    error: str = "",
    status: int = 200,
    headers: Mapping[str, str] = NO_HEADERS,
) -> Response:
    """The sign-in form, or why this request for a code is refused."""
    if refusal := _refused(request, provider):
        return refusal
    action = html.escape(f"authorize?{request.url.query}")
    policy = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"}
    return HTMLResponse(PAGE.format(error=html.escape(error), action=action), status, {**policy, **headers})


def _refused(request: Request, provider: ProviderServer) -> Response | None:
    """The answer to a request that no code is given for, whoever signs in."""
    try:
        provider.get_consent_grant(CodeRequest("GET", request.url.query, {}, {}), None)
    except OAuth2Error as refusal:
        if refusal.redirect_uri:
            return provider.handle_response(*refusal())
        return HTMLResponse(html.escape(f"{refusal.error}: {refusal.description}"), 400)
    return None


async def _authorized(request: Request, provider: ProviderServer, checks: PasswordChecks) -> Response:
    """The way back with a code, or the form again with what was wrong."""
    if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        return HTMLResponse("This form is sent from its own page only.", 403)  # others could lock somebody out with it
    form, address = await _form(request), client_address(request)
    if refusal := _refused(request, provider):
        return refusal
    try:
        await run_in_threadpool(checks.rate_limiter.check, "form", address)
        account = await checks.account(
            provider.accounts, email=form.get("email", ""), password=form.get("password", ""), address=address
        )
    except Problem as problem:
        return _page(request, provider, problem.detail, problem.status, problem.headers)
    if account is None:
        return _page(request, provider, "E-mail and password do not belong together.", 401)
    oauth_request = CodeRequest("GET", request.url.query, {}, {})
    with suppress(OAuth2Error):
        grant = provider.get_consent_grant(oauth_request, account)
        answer: Response = await run_in_threadpool(
            provider.create_authorization_response, oauth_request, account, grant
        )
        return answer
    return _page(request, provider)
