"""Tokens this service signs itself: ES256 with `kid`, so that who checks them needs no secret, and keys can rotate.

Access tokens (RFC 9068) are for the API, media tokens for the cookie that pictures are loaded with; capabilities are for the
engine, one adapter of one owner, a minute at most.
"""

from __future__ import annotations

import threading
import time
import uuid
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import ECKey
from sqlalchemy import select

from api.records.database import Records
from api.records.service_secrets import service_label
from api.records.tables import SigningKey, now_ms
from photoflux.errors import PhotoFluxError
from photoflux.vault.keyring import Keyring
from photoflux.vault.sealed import seal_bytes, unseal_bytes

ALGORITHM = "ES256"
API, MEDIA, ENGINE = "photoflux-api", "photoflux-media", "photoflux-engine"
TYPES = {API: "at+jwt", MEDIA: "media+jwt", ENGINE: "cap+jwt"}
CAPABILITY_S = 60
LEEWAY_S = 30
TIMEOUT_S = 5.0
KEYS_TTL_S, KEYS_REFRESH_MIN_S = 60.0, 5.0
"""Keys are loaded again after KEYS_TTL_S, since other processes rotate them too; for an unknown `kid` after KEYS_REFRESH_MIN_S."""


class BadToken(PhotoFluxError):
    """A token that is foreign, for another audience, expired or altered. The message does not say which."""


@dataclass(frozen=True)
class AccessTokenClaims:
    """The claims of an access or media token: user, role and login session."""

    user_id: str
    role: str
    login_session_id: str


@dataclass(frozen=True)
class Capability:
    """The claims of an engine token: one adapter of one owner."""

    owner: str
    adapter_sha256: str


class TokenVerifier(ABC):
    """Verifies tokens of `issuer` by its public keys; subclasses load them, by `kid`."""

    def __init__(self, *, issuer: str) -> None:
        self.issuer = issuer
        self._verifiers: dict[str, ECKey] = {}
        self._read_at, self._lock = float("-inf"), threading.Lock()

    def verify_access(self, token: str) -> AccessTokenClaims:
        """The claims of an access token. Raises BadToken."""
        return _access_claims(self._verified_payload(token, API))

    def verify_media(self, token: str) -> AccessTokenClaims:
        """The claims of a media token, which a cookie holds. Raises BadToken."""
        return _access_claims(self._verified_payload(token, MEDIA))

    def verify_capability(self, token: str) -> Capability:
        """The claims of an engine token. Raises BadToken."""
        claims = self._verified_payload(token, ENGINE)
        return Capability(str(claims["sub"]), str(claims.get("adapter")))

    @abstractmethod
    def _load_keys(self) -> dict[str, ECKey]: ...

    def _verified_payload(self, token: str, audience: str) -> dict[str, Any]:
        try:
            decoded = jwt.decode(token, self._verifier(token), algorithms=[ALGORITHM])
            jwt.JWTClaimsRegistry(
                leeway=LEEWAY_S,
                iss={"essential": True, "value": self.issuer},
                exp={"essential": True},
                aud={"essential": True, "value": audience},
                sub={"essential": True},
                iat={"essential": True},
            ).validate(decoded.claims)
        except (JoseError, ValueError, TypeError, KeyError) as error:
            raise BadToken("the token is not valid; sign in again") from error
        if decoded.header.get("typ") != TYPES[audience]:
            raise BadToken("the token is not valid; sign in again")
        return dict(decoded.claims)

    def _verifier(self, token: str) -> ECKey:
        """The public key of the token's `kid`; nothing else of its header is used."""
        from joserfc.jws import extract_compact

        kid = extract_compact(token.encode()).headers().get("kid")
        if not isinstance(kid, str):
            raise BadToken("the token is not valid; sign in again")
        if kid not in self._verifiers:
            self._refresh_keys(force=time.monotonic() - self._read_at > KEYS_REFRESH_MIN_S)
        return self._verifiers[kid]

    def _refresh_keys(self, *, force: bool = False) -> None:
        with self._lock:
            if force or time.monotonic() - self._read_at >= KEYS_TTL_S:
                self._verifiers, self._read_at = self._load_keys(), time.monotonic()


class RemoteTokenVerifier(TokenVerifier):
    """Verifies tokens by the keys that their issuer publishes at `jwks_url`."""

    def __init__(self, *, issuer: str, jwks_url: str, verify: Any = True) -> None:
        super().__init__(issuer=issuer)
        self.jwks_url, self.verify = jwks_url, verify

    def _load_keys(self) -> dict[str, ECKey]:
        import httpx2

        try:
            answer = httpx2.get(self.jwks_url, timeout=TIMEOUT_S, verify=self.verify)
            answer.raise_for_status()
            return {key["kid"]: ECKey.import_key(key) for key in answer.json()["keys"]}
        except httpx2.HTTPError as error:
            raise BadToken("the token cannot be checked now; try again in a minute") from error


class Tokens(TokenVerifier):
    """Signs and verifies tokens with the keys in the records."""

    def __init__(self, records: Records, keyring: Keyring, *, issuer: str, access_s: int = 600) -> None:
        super().__init__(issuer=issuer)
        self.records, self.keyring, self.access_s = records, keyring, access_s
        self._signer: ECKey | None = None

    def access_token(self, claims: AccessTokenClaims) -> str:
        """An access token for the API."""
        return self._sign(API, _payload(claims), seconds=self.access_s)

    def media_token(self, claims: AccessTokenClaims) -> str:
        """A token for the cookie that pictures are loaded with, since an `<img>` sends no headers."""
        return self._sign(MEDIA, _payload(claims), seconds=self.access_s)

    def capability_token(self, capability: Capability) -> str:
        """A token for the engine."""
        payload = {"sub": capability.owner, "adapter": capability.adapter_sha256}
        return self._sign(ENGINE, payload, seconds=CAPABILITY_S)

    def rotate(self) -> str:
        """Sign with a new key from now on and return its id.

        Older keys verify until the last token has expired that another process signed before it loaded the new one.
        """
        key = ECKey.generate_key("P-256")
        kid = key.thumbprint()
        private = seal_bytes(key.as_pem(private=True), label=_label(kid), keyring=self.keyring)
        with self.records.writing() as session:
            for older in session.scalars(select(SigningKey).where(SigningKey.retired_ms.is_(None))):
                older.retired_ms = now_ms() + round(1000 * (self.access_s + LEEWAY_S + KEYS_TTL_S))
            session.add(SigningKey(kid=kid, private=private, public=key.as_dict(private=False)))
        self._refresh_keys(force=True)
        return kid

    def jwks(self) -> dict[str, Any]:
        """The public keys, for whoever checks these tokens elsewhere (RFC 7517)."""
        self._signing_key()
        keys = [key.as_dict(private=False) | {"kid": kid} for kid, key in self._verifiers.items()]
        return {"keys": [key | {"use": "sig", "alg": ALGORITHM} for key in keys]}

    def _sign(self, audience: str, payload: dict[str, Any], *, seconds: int) -> str:
        key, now = self._signing_key(), int(time.time())
        header = {"alg": ALGORITHM, "kid": key.thumbprint(), "typ": TYPES[audience]}
        more = {"iss": self.issuer, "aud": audience, "iat": now, "exp": now + seconds, "jti": uuid.uuid4().hex}
        return jwt.encode(header, more | payload, key, algorithms=[ALGORITHM])

    def _signing_key(self) -> ECKey:
        self._refresh_keys()
        if self._signer is None:
            self.rotate()
        assert self._signer is not None
        return self._signer

    def _load_keys(self) -> dict[str, ECKey]:
        """The keys that still verify; the newest is kept to sign with."""
        with self.records.reading() as session:
            rows = list(session.scalars(select(SigningKey).order_by(SigningKey.created_ms)))
        valid = [row for row in rows if row.retired_ms is None or row.retired_ms > now_ms()]
        signing = [row for row in valid if row.retired_ms is None]
        if signing and (self._signer is None or self._signer.thumbprint() != signing[-1].kid):
            pem = unseal_bytes(signing[-1].private, label=_label(signing[-1].kid), keyring=self.keyring)
            self._signer = ECKey.import_key(pem)
        return {row.kid: ECKey.import_key(row.public) for row in valid}


def _payload(claims: AccessTokenClaims) -> dict[str, Any]:
    return {"sub": claims.user_id, "role": claims.role, "sid": claims.login_session_id}


def _access_claims(payload: dict[str, Any]) -> AccessTokenClaims:
    return AccessTokenClaims(str(payload["sub"]), str(payload.get("role")), str(payload.get("sid")))


def _label(kid: str) -> Any:
    return service_label("signing-key", kid)
