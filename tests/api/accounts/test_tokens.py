from __future__ import annotations

import base64
import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from joserfc import jwt
from joserfc.jwk import ECKey, OctKey

from api.accounts import tokens as module
from api.accounts.tokens import API, AccessTokenClaims, BadToken, Capability, Tokens
from api.records.database import Records
from photoflux.vault.blobs import FolderStore
from photoflux.vault.keyring import Keyring
from tests.vault.conftest import new_kek

ADA = AccessTokenClaims("ada", "user", "s1")
ISSUER = "https://photos.example"


@pytest.fixture
def keyring(tmp_path: Path) -> Keyring:
    return Keyring(FolderStore(tmp_path / "keyring"), new_kek(tmp_path))


@pytest.fixture
def tokens(records: Records, keyring: Keyring) -> Tokens:
    return Tokens(records, keyring, issuer=ISSUER)


def claims(token: str) -> dict[str, Any]:
    return json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "=="))


def header(token: str) -> dict[str, Any]:
    return json.loads(base64.urlsafe_b64decode(token.split(".")[0] + "=="))


def refused(tokens: Tokens, token: str) -> None:
    with pytest.raises(BadToken, match="not valid"):
        tokens.verify_access(token)


def test_an_access_token_says_whom_it_speaks_for(tokens: Tokens):
    token = tokens.access_token(ADA)
    assert tokens.verify_access(token) == ADA
    assert header(token) == {"alg": "ES256", "typ": "at+jwt", "kid": tokens.jwks()["keys"][0]["kid"]}
    told = claims(token)
    assert {name: told[name] for name in ("iss", "aud", "sub")} == {"iss": ISSUER, "aud": API, "sub": "ada"}
    assert told["exp"] - told["iat"] == 600


def test_other_processes_accept_it_and_make_no_key_of_their_own(tokens: Tokens, records: Records, keyring: Keyring):
    token = tokens.access_token(ADA)
    other = Tokens(records, Keyring(keyring.store, keyring.kek_uri), issuer=ISSUER)
    assert other.verify_access(token) == ADA
    assert header(other.access_token(ADA))["kid"] == header(token)["kid"]


def test_the_public_keys_hold_no_secret_and_suffice(tokens: Tokens):
    token = tokens.access_token(ADA)
    (public,) = tokens.jwks()["keys"]
    assert set(public) == {"kty", "crv", "x", "y", "kid", "use", "alg"}
    assert jwt.decode(token, ECKey.import_key(public), algorithms=["ES256"]).claims["sub"] == "ada"


def test_the_private_key_is_sealed_in_the_records(tokens: Tokens, records: Records):
    from sqlalchemy import select

    from api.records.tables import SigningKey

    tokens.access_token(ADA)
    with records.reading() as session:
        private = session.scalars(select(SigningKey)).one().private
    assert b"PRIVATE KEY" not in private and private.startswith(b'{"format": "photoflux-sealed')


def test_rotation_lets_old_tokens_run_out(
    tokens: Tokens, records: Records, keyring: Keyring, monkeypatch: pytest.MonkeyPatch
):
    old = tokens.access_token(ADA)
    kid = tokens.rotate()
    assert header(tokens.access_token(ADA))["kid"] == kid != header(old)["kid"]
    assert tokens.verify_access(old) == ADA and len(tokens.jwks()["keys"]) == 2
    later = module.now_ms() + 1000 * 700
    monkeypatch.setattr(module, "now_ms", lambda: later)
    fresh = Tokens(records, keyring, issuer=ISSUER)
    assert [key["kid"] for key in fresh.jwks()["keys"]] == [kid]
    refused(fresh, old)


def test_a_process_learns_of_a_rotation_elsewhere(
    tokens: Tokens, records: Records, keyring: Keyring, monkeypatch: pytest.MonkeyPatch
):
    other = Tokens(records, keyring, issuer=ISSUER)
    other.verify_access(tokens.access_token(ADA))
    tokens.rotate()
    token = tokens.access_token(ADA)
    refused(other, token)  # it has only just read the keys
    monkeypatch.setattr(module, "KEYS_REFRESH_MIN_S", 0.0)
    assert other.verify_access(token) == ADA


def test_an_expired_token_is_refused(tokens: Tokens, monkeypatch: pytest.MonkeyPatch):
    now = time.time()
    token = tokens.access_token(ADA)
    monkeypatch.setattr(time, "time", lambda: now + 600 + 20)
    assert tokens.verify_access(token) == ADA, "clocks may differ a little"
    monkeypatch.setattr(time, "time", lambda: now + 600 + 40)
    refused(tokens, token)


def forged(tokens: Tokens, **changes: Any) -> str:
    """A token as it would be, but for `changes` of claims (None: left out), `head` of the header, or another `key`."""
    good = tokens.access_token(ADA)
    key = changes.pop("key", tokens._signer)
    head = header(good) | changes.pop("head", {})
    body = {name: value for name, value in (claims(good) | changes).items() if value is not None}
    return jwt.encode(
        {n: v for n, v in head.items() if v is not None}, body, key, algorithms=["ES256", "HS256", "none"]
    )


@pytest.mark.parametrize(
    "changes",
    [{"aud": "photoflux-engine"}, {"aud": "another"}, {"aud": None}, {"iss": "https://evil.example"}, {"iss": None},
     {"exp": None}, {"exp": "soon"}, {"exp": 1}, {"iat": None}, {"iat": 4_000_000_000}, {"sub": None},
     {"head": {"typ": "JWT"}}, {"head": {"typ": None}}, {"head": {"kid": "unknown"}}, {"head": {"kid": None}}],
)  # fmt: skip
def test_a_token_for_something_else_is_refused(tokens: Tokens, changes: dict[str, Any]):
    refused(tokens, forged(tokens, **changes))


def test_another_key_of_the_same_name_is_refused(tokens: Tokens):
    refused(tokens, forged(tokens, key=ECKey.generate_key("P-256")))


def test_the_header_does_not_choose_the_algorithm(tokens: Tokens):
    public = json.dumps(tokens.jwks()["keys"]).encode()
    refused(tokens, forged(tokens, head={"alg": "HS256"}, key=OctKey.import_key(public)))
    head, body, _ = tokens.access_token(ADA).split(".")
    none = base64.urlsafe_b64encode(json.dumps(header(f"{head}.") | {"alg": "none"}).encode()).decode().rstrip("=")
    refused(tokens, f"{none}.{body}.")


@pytest.mark.parametrize("token", ["", ".", "..", "a.b.c", "a" * 5000, "ä.ö.ü", "\x00", "eyJhbGciOiJFUzI1NiJ9.e30."])
def test_nonsense_is_refused(tokens: Tokens, token: str):
    refused(tokens, token)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(min_value=0), character=st.sampled_from("abcXYZ019-_."))
def test_an_altered_token_never_speaks_for_another(tokens: Tokens, place: int, character: str):
    token = tokens.access_token(ADA)
    altered = token[: (at := place % len(token))] + character + token[at + 1 :]
    with suppress(BadToken):
        assert tokens.verify_access(altered) == ADA  # unused bits of a last base64 character


def test_a_capability_is_for_the_engine_and_one_adapter(tokens: Tokens):
    token = tokens.capability_token(Capability("ada", "f" * 64))
    assert tokens.verify_capability(token) == Capability("ada", "f" * 64)
    assert claims(token)["exp"] - claims(token)["iat"] <= 60
    refused(tokens, token)
    with pytest.raises(BadToken):
        tokens.verify_capability(tokens.access_token(ADA))
