"""An OpenID provider for one machine: the same authorization code flow with PKCE as any other, on loopback only.

It knows one client, this service. Codes live for a minute and are used once; PKCE with S256 is demanded when a code is
asked for, not only when it is exchanged. Accounts are kept sealed. Production refuses to start with it.

A password check takes 64 MB and a tenth of a second; CHECKS_AT_ONCE run at a time.
"""

from __future__ import annotations

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
from typing import Any
from urllib.parse import parse_qs

from authlib.oauth2 import OAuth2Request
from authlib.oauth2.rfc6749 import AuthorizationServer, InvalidRequestError
from authlib.oauth2.rfc6749.grants import AuthorizationCodeGrant
from authlib.oauth2.rfc6749.requests import BasicOAuth2Payload
from authlib.oauth2.rfc7636 import CodeChallenge
from authlib.oidc.core import UserInfo
from authlib.oidc.core.grants import OpenIDCode
from fastapi.responses import JSONResponse, Response
from joserfc.jwk import RSAKey
from pwdlib import PasswordHash

from photoflux.errors import InputError
from photoflux.vault import committed, opened

CLIENT_ID = "photoflux"
ACCOUNTS_KEY = "vault://service"
CODE_S = 60
CHECKS_AT_ONCE = 2
"""Password checks that run at a time."""
HASHING_NICE = 10
EMAIL_MAX_CHARS, PASSWORD_MAX_CHARS = 254, 1000


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
        self._dummy_hash = self._hash.hash(secrets.token_urlsafe())
        self._hashing = ThreadPoolExecutor(CHECKS_AT_ONCE, "passwords", initializer=_lower_priority)

    def all(self) -> list[Account]:
        """Every account."""
        if not self.file.is_file():
            return []
        with opened(self.file, key=ACCOUNTS_KEY) as unsealed:
            return [Account(**one) for one in json.loads(unsealed.read_text(encoding="utf-8"))]

    def add(self, email: str, *, name: str, password: str) -> Account:
        """Add an account. Raises InputError for an e-mail that is taken or too long, or a password that is not of 12 to 1000 characters."""
        if len(password) < 12:
            raise InputError("the password is too short: use at least 12 characters")
        if len(password) > PASSWORD_MAX_CHARS or len(email) > EMAIL_MAX_CHARS:
            raise InputError(f"use at most {EMAIL_MAX_CHARS} letters of e-mail and {PASSWORD_MAX_CHARS} of password")
        known = self.all()
        if any(one.email == email.lower() for one in known):
            raise InputError(f"{email} has an account already; sign in with it")
        account = Account(uuid.uuid4().hex, email.lower(), name, self._hash.hash(password))
        with committed(self.file, key=ACCOUNTS_KEY) as unsealed:
            unsealed.write_text(json.dumps([vars(one) for one in (*known, account)]), encoding="utf-8")
        return account

    def check(self, email: str, password: str) -> Account | None:
        """The account, if the password is right. It takes as long when there is no such account."""
        account = next((one for one in self.all() if one.email == email.lower()), None)
        hashed = account.password if account else self._dummy_hash
        right = self._hashing.submit(self._hash.verify, password, hashed).result()
        return account if account and right else None


def _lower_priority() -> None:
    """Raise this thread's nice value, which Linux keeps by thread and passes on to threads that it starts: requests go first."""
    if sys.platform == "linux":
        with suppress(OSError):
            thread = threading.get_native_id()
            os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + HASHING_NICE)


@dataclass(frozen=True)
class OAuthClient:
    """This service as a client of the provider."""

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
class AuthorizationCode:
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


class AuthorizationCodes:
    """Issued codes; `take` removes the one that it returns."""

    def __init__(self) -> None:
        self._codes: dict[str, AuthorizationCode] = {}
        self._lock = threading.Lock()

    def put(self, code: AuthorizationCode) -> None:
        with self._lock:
            self._codes = {name: one for name, one in self._codes.items() if one.expires > time.monotonic()}
            self._codes[code.code] = code

    def take(self, code: str) -> AuthorizationCode | None:
        with self._lock:
            found = self._codes.pop(code, None)
        return found if found and found.expires > time.monotonic() else None


class CodeRequest(OAuth2Request):
    """A request as Authlib reads it. Its URL says https, since Authlib refuses http, which is fine on loopback."""

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
    """Requires PKCE with S256 when a code is asked for: Authlib itself gives codes to requests without a challenge."""

    SUPPORTED_CODE_CHALLENGE_METHOD = ("S256",)

    def validate_code_challenge(self, grant: Any, redirect_uri: str) -> None:
        data = grant.request.payload.data
        if not data.get("code_challenge") or data.get("code_challenge_method") != "S256":
            raise InvalidRequestError("PKCE is required: send code_challenge with code_challenge_method S256")
        super().validate_code_challenge(grant, redirect_uri)


class ProviderServer(AuthorizationServer):
    """Authlib's authorization server, with this service as its only client."""

    def __init__(self, *, issuer: str, redirect_uri: str, accounts: Accounts) -> None:
        super().__init__(scopes_supported=["openid", "email", "profile"])
        self.issuer, self.accounts = issuer, accounts
        self.client, self.codes = OAuthClient(redirect_uri), AuthorizationCodes()
        self.key = RSAKey.generate_key(2048, parameters={"kid": secrets.token_hex(8)})
        self.register_token_generator("default", _access_token)
        self.register_grant(_grant(self), [S256(required=True), _openid(self)])

    def query_client(self, client_id: str) -> OAuthClient | None:
        return self.client if client_id == CLIENT_ID else None

    def save_token(self, token: dict[str, Any], request: OAuth2Request) -> None:
        """Access tokens are not kept, since nothing accepts them: the service uses the ID token alone."""

    def create_oauth2_request(self, request: OAuth2Request) -> OAuth2Request:
        return request

    def send_signal(self, name: str, *args: Any, **kwargs: Any) -> None:
        """Signals are not used."""

    def handle_response(self, status: int, body: Any, headers: list[tuple[str, str]]) -> Response:
        if isinstance(body, dict):
            return JSONResponse(body, status, headers=dict(headers))
        return Response(body, status, headers=dict(headers))


def _access_token(**about: Any) -> dict[str, Any]:
    return {"token_type": "Bearer", "access_token": secrets.token_urlsafe(), "expires_in": 60, "scope": about["scope"]}


def _grant(provider: ProviderServer) -> type[AuthorizationCodeGrant]:
    class Grant(AuthorizationCodeGrant):
        TOKEN_ENDPOINT_AUTH_METHODS = ("none",)

        def save_authorization_code(self, code: str, request: OAuth2Request) -> None:
            data = request.payload.data
            provider.codes.put(
                AuthorizationCode(
                    request.user,
                    request.payload.redirect_uri,
                    request.scope,
                    data.get("nonce"),
                    data["code_challenge"],
                    data["code_challenge_method"],
                    code,
                    time.monotonic() + CODE_S,
                )
            )

        def query_authorization_code(self, code: str, client: OAuthClient) -> AuthorizationCode | None:  # noqa: ARG002
            return provider.codes.take(code)

        def delete_authorization_code(self, authorization_code: AuthorizationCode) -> None:
            """`take` has removed it already, so that a wrong verifier uses it up too."""

        def authenticate_user(self, authorization_code: AuthorizationCode) -> Account:
            return authorization_code.account

    return Grant


def _openid(provider: ProviderServer) -> OpenIDCode:
    class OpenID(OpenIDCode):
        def exists_nonce(self, nonce: str, request: OAuth2Request) -> bool:  # noqa: ARG002
            return False

        def resolve_client_private_key(self, client: OAuthClient) -> RSAKey:  # noqa: ARG002
            return provider.key

        def get_client_claims(self, client: OAuthClient) -> dict[str, Any]:
            return {"iss": provider.issuer, "aud": [client.get_client_id()]}

        def get_encode_header(self, client: OAuthClient) -> dict[str, Any]:  # noqa: ARG002
            return {"alg": "RS256", "kid": provider.key.kid}

        def get_client_algorithm(self, client: OAuthClient) -> str:  # noqa: ARG002
            return "RS256"

        def generate_user_info(self, user: Account, scope: str) -> UserInfo:  # noqa: ARG002
            return UserInfo(sub=user.sub, name=user.name, email=user.email, email_verified=True)

    return OpenID(require_nonce=True)
