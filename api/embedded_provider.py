"""An OpenID provider for one machine: the same authorization code flow with PKCE as any other, on loopback only.

It knows one client, this service. Codes live for a minute and are used once; PKCE with S256 is demanded when a code is
asked for, not only when it is exchanged. Accounts are kept sealed. Production refuses to start with it.
"""

from __future__ import annotations

import html
import json
import secrets
import threading
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

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

from photoflux.errors import InputError
from photoflux.vault import committed, opened

CLIENT_ID = "photoflux"
KEY = "vault://service"
CODE_S = 60
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

    def all(self) -> list[Account]:
        """Every account."""
        if not self.file.is_file():
            return []
        with opened(self.file, key=KEY) as plain:
            return [Account(**one) for one in json.loads(plain.read_text(encoding="utf-8"))]

    def add(self, email: str, *, name: str, password: str) -> Account:
        """Raises InputError for an address that is taken or a password of less than 12 characters."""
        if len(password) < 12:
            raise InputError("the password is too short: use at least 12 characters")
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
        right = self._hash.verify(password, account.password if account else self._nobody)
        return account if account and right else None


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


def make_provider(*, issuer: str, redirect_uri: str, accounts: Accounts) -> FastAPI:
    """The provider's pages, to be mounted at the path of `issuer`."""
    provider = Server(issuer=issuer, redirect_uri=redirect_uri, accounts=accounts)
    app = FastAPI(title="PhotoFlux sign-in", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.provider = provider

    @app.get("/.well-known/openid-configuration")
    def discovery() -> dict[str, Any]:
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
    def jwks() -> dict[str, Any]:
        return dict(KeySet([provider.key]).as_dict(private=False))

    @app.get("/authorize")
    def ask(request: Request) -> Response:
        return _page(request, provider)

    @app.post("/authorize")
    async def answer(request: Request) -> Response:
        form = {name: str(value) for name, value in (await request.form()).items()}
        return await _in_thread(_authorized, request, provider, form)

    @app.post("/token")
    async def token(request: Request) -> Response:
        form = {name: str(value) for name, value in (await request.form()).items()}
        asked = _Asked("POST", "", form, request.headers)
        return await _in_thread(provider.create_token_response, asked)

    return app


async def _in_thread(work: Any, *args: Any) -> Response:
    from starlette.concurrency import run_in_threadpool

    return await run_in_threadpool(work, *args)


def _page(request: Request, provider: Server, error: str = "", status: int = 200) -> Response:
    """The sign-in form, or why this request for a code is refused."""
    asked = _Asked("GET", request.url.query, {}, {})
    try:
        provider.get_consent_grant(asked, None)
    except OAuth2Error as refusal:
        if refusal.redirect_uri:
            return provider.handle_response(*refusal())
        return HTMLResponse(html.escape(f"{refusal.error}: {refusal.description}"), 400)
    action = html.escape(f"authorize?{request.url.query}")
    headers = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"}
    return HTMLResponse(PAGE.format(error=html.escape(error), action=action), status, headers)


def _authorized(request: Request, provider: Server, form: Mapping[str, str]) -> Response:
    account = provider.accounts.check(form.get("email", ""), form.get("password", ""))
    if account is None:
        return _page(request, provider, "E-mail and password do not belong together.", 401)
    asked = _Asked("GET", request.url.query, {}, {})
    with suppress(OAuth2Error):
        grant = provider.get_consent_grant(asked, account)
        return provider.create_authorization_response(asked, account, grant)
    return _page(request, provider)
