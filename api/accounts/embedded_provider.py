"""An OpenID provider for one machine: the same authorization code flow with PKCE as any other, on loopback only.

It knows one client, this service. Codes live for a minute and are used once; PKCE with S256 is demanded when a code is
asked for, not only when it is exchanged. Accounts are kept sealed. Production refuses to start with it.

A check of a password takes 64 MB and a tenth of a second: two at a time are made, the others wait their turn, and whoever keeps
failing waits longer each time.
"""

from __future__ import annotations

import asyncio
import hashlib
import html
import json
import os
import secrets
import sys
import threading
import time
import uuid
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import parse_qs, parse_qsl

from authlib.oauth2 import OAuth2Error, OAuth2Request
from authlib.oauth2.rfc6749 import AuthorizationServer, InvalidRequestError
from authlib.oauth2.rfc6749.grants import AuthorizationCodeGrant
from authlib.oauth2.rfc6749.requests import BasicOAuth2Payload
from authlib.oauth2.rfc7636 import CodeChallenge
from authlib.oidc.core import UserInfo
from authlib.oidc.core.grants import OpenIDCode
from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from joserfc.jwk import KeySet, RSAKey
from pwdlib import PasswordHash
from starlette.concurrency import run_in_threadpool

from api.transport import problems
from api.transport.media_types import URLENCODED, media_type
from api.transport.problems import Problem
from api.transport.rate_limits import Limits, address_of, too_many
from photoflux.errors import InputError
from photoflux.vault import committed, opened

CLIENT_ID = "photoflux"
KEY = "vault://service"
CODE_S = 60
CHECKS_AT_ONCE, TURN_S = 2, 20.0
"""Passwords that are checked at a time, and how long the next waits for its turn: a hundred people at once have theirs."""
HASHING_NICE = 10
KNOWN_S = 30 * 24 * 3600
"""How long an address from which somebody signed in is trusted to be theirs."""
NO_HEADERS: Mapping[str, str] = MappingProxyType({})
FORM_BYTES, FIELDS_MAX = 4096, 16
EMAIL_LETTERS, PASSWORD_LETTERS = 254, 1000
PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Sign in</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>body{{font:16px system-ui;max-width:22rem;margin:15vh auto;padding:0 1rem}}input,button{{font:inherit;width:100%;
box-sizing:border-box;padding:.6rem;margin:.3rem 0}}.error{{color:#a11}}</style>
<h1>PhotoFlux on this machine</h1><p class="error" role="alert">{error}</p>
<form method="post" action="{action}"><label>E-mail<input name="email" type="email" autocomplete="username" required></label>
<label>Password<input name="password" type="password" autocomplete="current-password" required></label>
<button>Sign in</button></form></html>"""


@dataclass(frozen=True)
class Account:
    """Somebody who can sign in here."""

    sub: str
    email: str
    name: str
    password: str
    """Argon2 hash."""


class Accounts:
    """The accounts of this machine, in one sealed file."""

    def __init__(self, file: Path, *, hasher: PasswordHash | None = None) -> None:
        self.file, self._hash = file, hasher or PasswordHash.recommended()
        self._nobody = self._hash.hash(secrets.token_urlsafe())
        self._hashing = ThreadPoolExecutor(CHECKS_AT_ONCE, "passwords", initializer=_yielding)

    def all(self) -> list[Account]:
        """Every account."""
        if not self.file.is_file():
            return []
        with opened(self.file, key=KEY) as plain:
            return [Account(**one) for one in json.loads(plain.read_text(encoding="utf-8"))]

    def add(self, email: str, *, name: str, password: str) -> Account:
        """Raises InputError for an address that is taken or too long, or a password of less than 12 or over 1000 characters."""
        if len(password) < 12:
            raise InputError("the password is too short: use at least 12 characters")
        if len(password) > PASSWORD_LETTERS or len(email) > EMAIL_LETTERS:
            raise InputError(f"use at most {EMAIL_LETTERS} letters of e-mail and {PASSWORD_LETTERS} of password")
        known = self.all()
        if any(one.email == email.lower() for one in known):
            raise InputError(f"{email} has an account already; sign in with it")
        account = Account(uuid.uuid4().hex, email.lower(), name, self._hash.hash(password))
        with committed(self.file, key=KEY) as plain:
            plain.write_text(json.dumps([vars(one) for one in (*known, account)]), encoding="utf-8")
        return account

    def check(self, email: str, password: str) -> Account | None:
        """The account, if the password is right. It takes as long when there is no such account."""
        account = next((one for one in self.all() if one.email == email.lower()), None)
        hashed = account.password if account else self._nobody
        right = self._hashing.submit(self._hash.verify, password, hashed).result()
        return account if account and right else None


def _yielding() -> None:
    """Linux weighs threads: one that hashes takes what those that answer requests leave, and so do those that it starts."""
    if sys.platform == "linux":
        with suppress(OSError):
            thread = threading.get_native_id()
            os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + HASHING_NICE)


class PasswordChecks:
    """Checks passwords for whoever sends the form: a few at a time, and ever more slowly for whoever fails.

    Failures count for the account from this address, for the address, and for the account from anywhere. The last two do
    not hold back somebody who signed in from here before: else anybody could lock them out by failing in their name.
    Checks that were begun together are all finished, so that CHECKS_AT_ONCE - 1 guesses more than counted may pass.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._places = asyncio.Semaphore(CHECKS_AT_ONCE)

    async def account(self, accounts: Accounts, *, email: str, password: str, address: str) -> Account | None:
        """The account, if the password is right. Raises a problem of 429 or 503 where nothing was checked."""
        email = email[: EMAIL_LETTERS + 1].lower()
        await run_in_threadpool(self._admit, email, address)
        try:
            async with asyncio.timeout(TURN_S):
                await self._places.acquire()
        except TimeoutError:
            sentence = "Many people are signing in; try again in a moment."
            raise Problem(503, "busy", sentence, headers={"Retry-After": "5"}) from None
        try:
            return await run_in_threadpool(self._checked, accounts, email, password, address)
        finally:
            self._places.release()

    def _admit(self, email: str, address: str) -> None:
        account, here = _digest(email), _digest(email, address)
        waits = [self.limits.wait_s("password", here)]
        if not self.limits.is_known("password", here):
            waits.append(self.limits.wait_s("password-address", address))
            waits.append(self.limits.wait_s("password-account", account))
        if wait := max(waits):
            raise too_many("Too many wrong passwords", wait_s=wait)

    def _checked(self, accounts: Accounts, email: str, password: str, address: str) -> Account | None:
        self._admit(email, address)  # again: others may have failed while this one waited for its turn
        fits = len(email) <= EMAIL_LETTERS and len(password) <= PASSWORD_LETTERS
        account = accounts.check(email, password) if fits else None
        who = {"password": _digest(email, address), "password-account": _digest(email), "password-address": address}
        if account is None:
            for kind, one in who.items():
                self.limits.failed(kind, one)
            return None
        for kind in ("password", "password-account"):
            self.limits.forgive(kind, who[kind])
        self.limits.remember("password", who["password"], seconds=KNOWN_S)
        return account


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


@dataclass(frozen=True)
class Client:
    """This service, as the provider knows it."""

    redirect_uri: str

    def get_client_id(self) -> str:
        return CLIENT_ID

    def get_default_redirect_uri(self) -> str:
        return self.redirect_uri

    def get_allowed_scope(self, scope: str | None) -> str:
        return " ".join(one for one in (scope or "").split() if one in ("openid", "email", "profile"))

    def check_redirect_uri(self, redirect_uri: str) -> bool:
        return redirect_uri == self.redirect_uri

    def check_endpoint_auth_method(self, method: str, endpoint: str) -> bool:
        return endpoint != "token" or method == "none"

    def check_response_type(self, response_type: str) -> bool:
        return response_type == "code"

    def check_grant_type(self, grant_type: str) -> bool:
        return grant_type == "authorization_code"


@dataclass(frozen=True)
class Code:
    """An authorization code that was given out."""

    account: Account
    redirect_uri: str
    scope: str
    nonce: str | None
    code_challenge: str
    code_challenge_method: str
    code: str
    expires: float
    auth_time: int = field(default_factory=lambda: int(time.time()))

    def get_redirect_uri(self) -> str:
        return self.redirect_uri

    def get_scope(self) -> str:
        return self.scope

    def get_nonce(self) -> str | None:
        return self.nonce

    def get_auth_time(self) -> int:
        return self.auth_time

    def get_acr(self) -> None: ...

    def get_amr(self) -> None: ...


class Codes:
    """Codes by themselves; taking one uses it up."""

    def __init__(self) -> None:
        self._codes: dict[str, Code] = {}
        self._lock = threading.Lock()

    def put(self, code: Code) -> None:
        with self._lock:
            self._codes = {name: one for name, one in self._codes.items() if one.expires > time.monotonic()}
            self._codes[code.code] = code

    def take(self, code: str) -> Code | None:
        with self._lock:
            found = self._codes.pop(code, None)
        return found if found and found.expires > time.monotonic() else None


class _Asked(OAuth2Request):
    """A request as Authlib reads it. That it came over loopback is not for Authlib to judge, which wants https."""

    def __init__(self, method: str, query: str, form: Mapping[str, str], headers: Mapping[str, str]) -> None:
        super().__init__(method, f"https://provider/?{query}", headers=dict(headers))
        self._args = {name: values[0] for name, values in parse_qs(query).items()}
        self._form = dict(form)
        self.payload = BasicOAuth2Payload(self._args | self._form)

    @property
    def args(self) -> dict[str, str]:
        return self._args

    @property
    def form(self) -> dict[str, str]:
        return self._form


class S256(CodeChallenge):
    """PKCE with S256, asked for at once: Authlib alone gives codes to whoever sends no challenge."""

    SUPPORTED_CODE_CHALLENGE_METHOD = ("S256",)

    def validate_code_challenge(self, grant: Any, redirect_uri: str) -> None:
        asked = grant.request.payload.data
        if not asked.get("code_challenge") or asked.get("code_challenge_method") != "S256":
            raise InvalidRequestError("PKCE is required: send code_challenge with code_challenge_method S256")
        super().validate_code_challenge(grant, redirect_uri)


class Server(AuthorizationServer):
    """The server behind the pages."""

    def __init__(self, *, issuer: str, redirect_uri: str, accounts: Accounts) -> None:
        super().__init__(scopes_supported=["openid", "email", "profile"])
        self.issuer, self.client, self.accounts, self.codes = issuer, Client(redirect_uri), accounts, Codes()
        self.key = RSAKey.generate_key(2048, parameters={"kid": secrets.token_hex(8)})
        self.register_token_generator("default", _access_token)
        self.register_grant(_grant(self), [S256(required=True), _openid(self)])

    def query_client(self, client_id: str) -> Client | None:
        return self.client if client_id == CLIENT_ID else None

    def save_token(self, token: dict[str, Any], request: OAuth2Request) -> None:
        """Nothing is served for access tokens: the service only wants to know who signed in."""

    def create_oauth2_request(self, request: OAuth2Request) -> OAuth2Request:
        return request

    def send_signal(self, name: str, *args: Any, **kwargs: Any) -> None:
        """Nobody listens."""

    def handle_response(self, status: int, body: Any, headers: list[tuple[str, str]]) -> Response:
        if isinstance(body, dict):
            return JSONResponse(body, status, headers=dict(headers))
        return Response(body, status, headers=dict(headers))


def _access_token(**about: Any) -> dict[str, Any]:
    return {"token_type": "Bearer", "access_token": secrets.token_urlsafe(), "expires_in": 60, "scope": about["scope"]}


def _grant(provider: Server) -> type[AuthorizationCodeGrant]:
    class Grant(AuthorizationCodeGrant):
        TOKEN_ENDPOINT_AUTH_METHODS = ("none",)

        def save_authorization_code(self, code: str, request: OAuth2Request) -> None:
            asked = request.payload.data
            provider.codes.put(
                Code(
                    request.user, request.payload.redirect_uri, request.scope, asked.get("nonce"),
                    asked["code_challenge"], asked["code_challenge_method"], code, time.monotonic() + CODE_S,
                )
            )  # fmt: skip

        def query_authorization_code(self, code: str, client: Client) -> Code | None:  # noqa: ARG002
            return provider.codes.take(code)

        def delete_authorization_code(self, authorization_code: Code) -> None:
            """Taking it used it up, so that a wrong verifier spends it too."""

        def authenticate_user(self, authorization_code: Code) -> Account:
            return authorization_code.account

    return Grant


def _openid(provider: Server) -> OpenIDCode:
    class OpenID(OpenIDCode):
        def exists_nonce(self, nonce: str, request: OAuth2Request) -> bool:  # noqa: ARG002
            return False

        def resolve_client_private_key(self, client: Client) -> RSAKey:  # noqa: ARG002
            return provider.key

        def get_client_claims(self, client: Client) -> dict[str, Any]:
            return {"iss": provider.issuer, "aud": [client.get_client_id()]}

        def get_encode_header(self, client: Client) -> dict[str, Any]:  # noqa: ARG002
            return {"alg": "RS256", "kid": provider.key.kid}

        def get_client_algorithm(self, client: Client) -> str:  # noqa: ARG002
            return "RS256"

        def generate_user_info(self, user: Account, scope: str) -> UserInfo:  # noqa: ARG002
            return UserInfo(sub=user.sub, name=user.name, email=user.email, email_verified=True)

    return OpenID(require_nonce=True)


def make_provider(*, issuer: str, redirect_uri: str, accounts: Accounts, limits: Limits | None = None) -> FastAPI:
    """The provider's pages, to be mounted at the path of `issuer`. Without `limits` it counts by itself."""
    provider = Server(issuer=issuer, redirect_uri=redirect_uri, accounts=accounts)
    checks = PasswordChecks(limits or Limits("memory://"))
    app = FastAPI(
        title="PhotoFlux sign-in", docs_url=None, redoc_url=None, openapi_url=None, max_body_size=FORM_BYTES
    )  # fmt: skip
    problems.install(app)
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
        asked = _Asked("POST", "", await _form(request), request.headers)
        answer: Response = provider.create_token_response(asked)
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
    request: Request, provider: Server, error: str = "", status: int = 200, headers: Mapping[str, str] = NO_HEADERS
) -> Response:
    """The sign-in form, or why this request for a code is refused."""
    if refusal := _refused(request, provider):
        return refusal
    action = html.escape(f"authorize?{request.url.query}")
    policy = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"}
    return HTMLResponse(PAGE.format(error=html.escape(error), action=action), status, {**policy, **headers})


def _refused(request: Request, provider: Server) -> Response | None:
    """The answer to a request that no code is given for, whoever signs in."""
    try:
        provider.get_consent_grant(_Asked("GET", request.url.query, {}, {}), None)
    except OAuth2Error as refusal:
        if refusal.redirect_uri:
            return provider.handle_response(*refusal())
        return HTMLResponse(html.escape(f"{refusal.error}: {refusal.description}"), 400)
    return None


async def _authorized(request: Request, provider: Server, checks: PasswordChecks) -> Response:
    """The way back with a code, or the form again with what was wrong."""
    if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        return HTMLResponse("This form is sent from its own page only.", 403)  # others could lock somebody out with it
    form, address = await _form(request), address_of(request)
    if refusal := _refused(request, provider):
        return refusal
    try:
        await run_in_threadpool(checks.limits.check, "form", address)
        account = await checks.account(
            provider.accounts, email=form.get("email", ""), password=form.get("password", ""), address=address
        )
    except Problem as told:
        return _page(request, provider, told.detail, told.status, told.headers)
    if account is None:
        return _page(request, provider, "E-mail and password do not belong together.", 401)
    asked = _Asked("GET", request.url.query, {}, {})
    with suppress(OAuth2Error):
        grant = provider.get_consent_grant(asked, account)
        answer: Response = await run_in_threadpool(provider.create_authorization_response, asked, account, grant)
        return answer
    return _page(request, provider)
