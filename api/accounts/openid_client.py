"""Signing in with an OpenID provider: authorization code with PKCE, and an ID token that is checked before it is believed.

The browser never sees the provider's tokens; it gets this service's own. An account is (issuer, subject), never an e-mail.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import threading
import time
from dataclasses import dataclass
from typing import Any

import httpx2
from authlib.integrations.base_client.errors import OAuthError
from authlib.integrations.httpx_client import OAuth2Client
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet
from sqlalchemy import delete, select
from sqlalchemy.exc import IntegrityError

from api.records.database import Records
from api.records.service_secrets import keyed_digest, pepper
from api.records.tables import LoginFlow, User, new_id, now_ms
from photoflux.errors import PhotoFluxError
from photoflux.vault.keyring import KeyMissing, Keyring
from photoflux.vault.sealed import Label, seal_bytes, unseal_bytes

FLOW_MS = 10 * 60 * 1000
LEEWAY_S = 30
ALGORITHMS = ["RS256"]
GOOGLE = "https://accounts.google.com"
GOOGLE_LEGACY_ISSUER = "accounts.google.com"
"""How Google's older ID tokens name their issuer."""
KEYS_TTL_S, KEYS_REFRESH_MIN_S = 3600.0, 10.0
TIMEOUT_S = 10.0
SCOPE = "openid email profile"
ACCOUNT_CLOSED = "this account cannot sign in"


class SignInFailed(PhotoFluxError):
    """The provider's answer does not sign anybody in: replayed, forged, late, or not for this service."""


@dataclass(frozen=True)
class Identity:
    """Who the provider says somebody is."""

    issuer: str
    subject: str
    name: str
    email: str


class Provider:
    """The OpenID provider at `issuer`: endpoints and keys, fetched when needed; keys are cached for KEYS_TTL_S."""

    def __init__(self, issuer: str, *, client_id: str, client_secret: str = "", verify: Any = True) -> None:
        self.issuer, self.client_id, self.client_secret = issuer.rstrip("/"), client_id, client_secret
        # made once: loading the authorities takes longer than all the rest of a sign-in
        self.verify = httpx2.create_ssl_context() if verify is True else verify
        self._discovery: dict[str, Any] = {}
        self._keys: KeySet | None = None
        self._keys_at, self._lock = -KEYS_TTL_S, threading.Lock()

    def client(self, redirect_uri: str) -> OAuth2Client:
        """An OAuth client of this provider; public when there is no secret."""
        method = "client_secret_basic" if self.client_secret else "none"
        return OAuth2Client(
            self.client_id,
            self.client_secret or None,
            token_endpoint_auth_method=method,
            scope=SCOPE,
            redirect_uri=redirect_uri,
            code_challenge_method="S256",
            timeout=TIMEOUT_S,
            verify=self.verify,
        )

    def endpoint(self, name: str) -> str:
        """An endpoint, by the name it has in the provider's discovery document."""
        if not self._discovery:
            document = self._fetch_json(f"{self.issuer}/.well-known/openid-configuration")
            if document.get("issuer") != self.issuer:
                raise SignInFailed(f"the provider at {self.issuer} says it is another; correct PHOTOFLUX_OIDC_ISSUER")
            self._discovery = document
        return str(self._discovery[name])

    def keys(self, *, kid: str | None = None) -> KeySet:
        """The provider's public keys; fetched again for an unknown `kid`, every KEYS_REFRESH_MIN_S at most."""
        with self._lock:
            age = time.monotonic() - self._keys_at
            lacking = self._keys is None or kid not in {key.kid for key in self._keys.keys}
            if self._keys is None or age > KEYS_TTL_S or (lacking and age > KEYS_REFRESH_MIN_S):
                self._keys = KeySet.import_key_set(self._fetch_json(self.endpoint("jwks_uri")))  # type: ignore[arg-type]
                self._keys_at = time.monotonic()
            return self._keys

    def _fetch_json(self, url: str) -> dict[str, Any]:
        try:
            answer = httpx2.get(url, timeout=TIMEOUT_S, verify=self.verify, follow_redirects=False)
            answer.raise_for_status()
            return dict(answer.json())
        except (httpx2.HTTPError, ValueError) as error:
            raise SignInFailed("the sign-in provider cannot be reached; try again in a minute") from error


class Identities:
    """Begins and finishes sign-ins at the provider, and finds or makes the account of an identity."""

    def __init__(self, records: Records, keyring: Keyring, provider: Provider, *, redirect_uri: str) -> None:
        self.records, self.keyring, self.provider, self.redirect_uri = records, keyring, provider, redirect_uri
        self._pepper: bytes | None = None

    def begin(self) -> tuple[str, str]:
        """Where to send the browser, and the state to tie to it."""
        state, nonce, verifier = (secrets.token_urlsafe(size) for size in (32, 16, 48))
        with self.provider.client(self.redirect_uri) as client:
            url, _ = client.create_authorization_url(
                self.provider.endpoint("authorization_endpoint"), state=state, nonce=nonce, code_verifier=verifier
            )
        with self.records.writing() as session:
            session.execute(delete(LoginFlow).where(LoginFlow.expires_ms < now_ms()))
            session.add(LoginFlow(state=_digest(state), verifier=verifier, nonce=nonce, expires_ms=now_ms() + FLOW_MS))
        return url, state

    def finish(self, *, state: str, code: str) -> Identity:
        """Exchange the code that the provider sent the browser back with. Raises SignInFailed; a state works once."""
        flow = self._consume_flow(state)
        try:
            with self.provider.client(self.redirect_uri) as client:
                tokens = client.fetch_token(
                    self.provider.endpoint("token_endpoint"),
                    grant_type="authorization_code",
                    code=code,
                    code_verifier=flow.verifier,
                )
        except (OAuthError, httpx2.HTTPError, ValueError) as error:
            raise SignInFailed("the sign-in provider refused; sign in again") from error
        return self._verified_identity(str(tokens.get("id_token", "")), nonce=flow.nonce)

    def _consume_flow(self, state: str) -> LoginFlow:
        with self.records.writing() as session:
            flow = session.get(LoginFlow, _digest(state), with_for_update=True)
            if flow is not None:
                session.delete(flow)
        if flow is None or flow.expires_ms < now_ms():
            raise SignInFailed("this sign-in was finished or given up before; sign in again")
        return flow

    def _verified_identity(self, token: str, *, nonce: str) -> Identity:
        """OpenID Connect Core 3.1.3.7: signature, algorithm, issuer, audience, authorised party, expiry, nonce."""
        from joserfc.jws import extract_compact

        issuers = [self.provider.issuer, *([GOOGLE_LEGACY_ISSUER] if self.provider.issuer == GOOGLE else [])]
        try:
            kid = extract_compact(token.encode()).headers().get("kid")
            claims = jwt.decode(token, self.provider.keys(kid=kid), algorithms=ALGORITHMS).claims
            jwt.JWTClaimsRegistry(
                leeway=LEEWAY_S,
                iss={"essential": True, "values": issuers},
                sub={"essential": True},
                aud={"essential": True, "value": self.provider.client_id},
                exp={"essential": True},
                iat={"essential": True},
                nonce={"essential": True, "value": nonce},
            ).validate(claims)
        except (JoseError, ValueError, TypeError, KeyError) as error:
            raise SignInFailed("the sign-in provider's answer cannot be believed; sign in again") from error
        if claims.get("azp", self.provider.client_id) != self.provider.client_id:
            raise SignInFailed("the sign-in provider's answer is for another service; sign in again")
        return Identity(self.provider.issuer, str(claims["sub"]), str(claims.get("name", "")), _email(claims))

    def account(self, identity: Identity) -> User:
        """The account of an identity, made at the first sign-in; name and e-mail are kept sealed and up to date."""
        login = self.login_of(identity)
        for _ in range(2):
            try:
                return self._account(login, identity)
            except IntegrityError:
                continue  # another sign-in of the same person was first
            except KeyMissing as error:  # erased meanwhile
                raise SignInFailed(ACCOUNT_CLOSED) from error
        raise SignInFailed("signing in did not work; try again")

    def _account(self, login: str, identity: Identity) -> User:
        with self.records.reading() as session:
            known = session.scalar(select(User).where(User.login == login))
        if known and known.state != "active":
            raise SignInFailed(ACCOUNT_CLOSED)
        if known and self.profile(known) == _profile(identity):
            return known
        user_id = known.id if known else new_id()
        # before the transaction: it may make a keyset, which takes longer than others should wait
        profile = self._sealed_profile(user_id, identity)
        with self.records.writing() as session:
            if known is None:
                session.add(user := User(id=user_id, login=login, profile=profile))
                return user
            locked = session.get(User, user_id, with_for_update=True)
            if locked is None or locked.state != "active":
                raise SignInFailed(ACCOUNT_CLOSED)
            locked.profile = profile
            return locked

    def login_of(self, identity: Identity) -> str:
        """The keyed digest by which the records know an identity."""
        self._pepper = self._pepper or pepper(self.keyring)
        return keyed_digest(self._pepper, identity.issuer, identity.subject)

    def profile(self, user: User) -> dict[str, str]:
        """Name and e-mail."""
        if user.profile is None:
            return {"name": "", "email": ""}
        return dict(json.loads(unseal_bytes(user.profile, label=_label(user.id), keyring=self.keyring)))

    def _sealed_profile(self, user_id: str, identity: Identity) -> bytes:
        return seal_bytes(json.dumps(_profile(identity)).encode(), label=_label(user_id), keyring=self.keyring)


def _profile(identity: Identity) -> dict[str, str]:
    return {"name": identity.name, "email": identity.email}


def _label(user_id: str) -> Label:
    return Label(user_id, "profile", user_id)


def _email(claims: dict[str, Any]) -> str:
    """The e-mail; empty unless the provider has verified it."""
    return str(claims.get("email", "")) if claims.get("email_verified") is True else ""


def _digest(state: str) -> str:
    return hashlib.sha256(state.encode()).hexdigest()
