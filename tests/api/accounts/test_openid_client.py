"""The whole sign-in, over HTTP on loopback, against the embedded provider; and what must not sign anybody in."""

from __future__ import annotations

import hmac
import socket
import threading
import time
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import httpx2
import pytest
import uvicorn
from fastapi import FastAPI
from joserfc import jwt
from joserfc.jwk import KeySet, RSAKey
from pwdlib import PasswordHash
from pwdlib.hashers.argon2 import Argon2Hasher
from sqlalchemy import func, select

from api.accounts import openid_client as module
from api.accounts.embedded_provider import CLIENT_ID, Accounts
from api.accounts.openid_client import Identities, Identity, Provider, SignInFailed
from api.records.database import Records
from api.records.tables import User
from api.routes.provider_pages import make_provider
from api.transport.rate_limits import RateLimiter
from photoflux.errors import InputError
from photoflux.vault import open_keyring
from photoflux.vault.keyring import Keyring

QUICK = PasswordHash((Argon2Hasher(time_cost=1, memory_cost=64, parallelism=1),))
EMAIL, PASSWORD, REDIRECT = "ada@example.org", "correct horse battery", "http://127.0.0.1:1/api/auth/callback"


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[FastAPI, str]]:
    """The embedded provider on loopback, and its issuer."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    issuer, outer = f"http://127.0.0.1:{port}/provider", FastAPI()
    app = make_provider(issuer=issuer, redirect_uri=REDIRECT, accounts=Accounts(Path("unset"), hasher=QUICK))
    outer.mount("/provider", app)
    server = uvicorn.Server(uvicorn.Config(outer, host="127.0.0.1", port=port, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield app, issuer
    server.should_exit = True
    thread.join()


@pytest.fixture
def issuer(served: tuple[FastAPI, str], own_state: Path) -> str:
    app, issuer = served
    app.state.checks.rate_limiter = RateLimiter("memory://")
    app.state.provider.accounts = Accounts(own_state / "accounts", hasher=QUICK)
    app.state.provider.accounts.add(EMAIL, name="Ada", password=PASSWORD)
    return issuer


@pytest.fixture
def keyring(own_state: Path) -> Keyring:
    return open_keyring()


@pytest.fixture
def identities(records: Records, keyring: Keyring, issuer: str) -> Identities:
    return Identities(records, keyring, Provider(issuer, client_id=CLIENT_ID), redirect_uri=REDIRECT)


def signed_in(url: str, *, password: str = PASSWORD, email: str = EMAIL) -> dict[str, str]:
    """What a browser comes back with after its user filled in the form at `url`."""
    page = httpx2.get(url)
    assert page.status_code == 200 and "Sign in" in page.text, page.text
    answer = httpx2.post(url, data={"email": email, "password": password})
    assert answer.status_code == 302, answer.status_code
    assert answer.headers["location"].startswith(f"{REDIRECT}?")
    return {name: values[0] for name, values in parse_qs(urlsplit(answer.headers["location"]).query).items()}


def changed(url: str, **changes: str | None) -> str:
    """The address with other parameters; None takes one away."""
    parts = urlsplit(url)
    query = {name: values[0] for name, values in parse_qs(parts.query).items()} | changes
    return parts._replace(query=urlencode({n: v for n, v in query.items() if v is not None})).geturl()


def test_who_signs_in_is_known_from_then_on(identities: Identities, records: Records):
    url, state = identities.begin()
    back = signed_in(url)
    assert back["state"] == state
    who = identities.finish(state=back["state"], code=back["code"])
    assert (who.name, who.email) == ("Ada", EMAIL)
    user = identities.account(who)
    assert identities.account(who).id == user.id and user.role == "user"
    assert identities.profile(user) == {"name": "Ada", "email": EMAIL}


def test_the_records_hold_neither_name_nor_subject(identities: Identities, records: Records):
    user = identities.account(Identity("https://i", "subject-canary", "Ada Canary", "canary@example.org"))
    for value in (user.login, user.profile.decode("latin-1")):
        assert not any(word in value for word in ("canary", "Canary", "https://i"))


def test_an_account_that_is_as_it_was_is_not_written(identities: Identities, monkeypatch: pytest.MonkeyPatch):
    """Whoever signs in again waits for nobody; a new name is kept."""
    user = identities.account(Identity("https://i", "1", "Ada", EMAIL))
    with monkeypatch.context() as patch:
        patch.setattr(Records, "writing", lambda _: pytest.fail("a transaction that writes was begun"))
        again = identities.account(Identity("https://i", "1", "Ada", EMAIL))
    assert (again.id, again.profile) == (user.id, user.profile)
    renamed = identities.account(Identity("https://i", "1", "Ada Lovelace", EMAIL))
    assert identities.profile(renamed) == {"name": "Ada Lovelace", "email": EMAIL}


def test_nothing_is_sealed_while_others_wait_for_the_records(identities: Identities, monkeypatch: pytest.MonkeyPatch):
    """A new person's keyset takes a while."""
    sealed, writing, inside = identities._sealed_profile, Records.writing, list[str]()

    @contextmanager
    def noted(records: Records) -> Iterator[Any]:
        with writing(records) as session:
            inside.append("")
            yield session
            inside.clear()

    def asked(*args: Any) -> bytes:
        assert not inside
        return sealed(*args)

    monkeypatch.setattr(Records, "writing", noted)
    monkeypatch.setattr(identities, "_sealed_profile", asked)
    for name in ("Ada", "Ada Lovelace"):
        identities.account(Identity("https://i", "1", name, EMAIL))


@pytest.mark.parametrize("state", ["blocked", "erasing"])
@pytest.mark.parametrize("name", ["Ada", "Another"])
def test_a_closed_account_is_not_written(identities: Identities, records: Records, state: str, name: str):
    """Also where it is closed while somebody is signing in."""
    user = identities.account(Identity("https://i", "1", "Ada", EMAIL))
    sealed = identities._sealed_profile

    def closed_meanwhile(*args: Any) -> bytes:
        with records.writing() as session:
            session.get_one(User, user.id).state = state
        return sealed(*args)

    identities._sealed_profile = closed_meanwhile  # type: ignore[method-assign]
    if name != "Ada":
        with pytest.raises(SignInFailed, match="cannot sign in"):
            identities.account(Identity("https://i", "1", name, EMAIL))
    else:
        closed_meanwhile(user.id, Identity("https://i", "1", "Ada", EMAIL))
    with pytest.raises(SignInFailed, match="cannot sign in"):
        identities.account(Identity("https://i", "1", name, EMAIL))
    with records.reading() as session:
        assert identities.profile(session.get_one(User, user.id)) == {"name": "Ada", "email": EMAIL}


def test_whoever_is_erased_while_signing_in_does_not(identities: Identities, keyring: Keyring):
    user = identities.account(Identity("https://i", "1", "Ada", EMAIL))
    keyring.erase(user.id)
    with pytest.raises(SignInFailed, match="cannot sign in"):
        identities.account(Identity("https://i", "1", "Another", EMAIL))


def test_two_first_sign_ins_make_one_account(identities: Identities, records: Records):
    who = Identity("https://i", "1", "Ada", "")
    identities.login_of(who)
    with ThreadPoolExecutor(4) as pool:
        users = list(pool.map(lambda _: identities.account(who).id, range(8)))
    assert len(set(users)) == 1
    with records.reading() as session:
        assert session.scalar(select(func.count()).select_from(User)) == 1


def test_an_account_is_issuer_and_subject_not_an_address(identities: Identities):
    people = [Identity(*one, "Ada", EMAIL) for one in (("https://a", "1"), ("https://a", "2"), ("https://b", "1"))]
    assert len({identities.account(one).id for one in people}) == 3


def test_a_state_and_a_code_work_once(identities: Identities):
    url, state = identities.begin()
    back = signed_in(url)
    identities.finish(state=state, code=back["code"])
    with pytest.raises(SignInFailed, match="before"):
        identities.finish(state=state, code=back["code"])
    _, fresh = identities.begin()
    with pytest.raises(SignInFailed, match="refused"):
        identities.finish(state=fresh, code=back["code"])


@pytest.mark.parametrize("state", ["", "unknown", "é", "\x00"])
def test_an_unknown_state_is_refused(identities: Identities, state: str):
    with pytest.raises(SignInFailed, match="sign in again"):
        identities.finish(state=state, code="x")


def test_a_late_answer_is_refused(identities: Identities, monkeypatch: pytest.MonkeyPatch):
    url, state = identities.begin()
    code, later = signed_in(url)["code"], module.now_ms() + module.FLOW_MS + 1
    monkeypatch.setattr(module, "now_ms", lambda: later)
    with pytest.raises(SignInFailed, match="before"):
        identities.finish(state=state, code=code)


def test_another_sign_ins_code_is_refused(identities: Identities):
    """A code bound to one browser's verifier is worth nothing in another's."""
    theirs, _ = identities.begin()
    _, mine = identities.begin()
    with pytest.raises(SignInFailed, match="refused"):
        identities.finish(state=mine, code=signed_in(theirs)["code"])


def test_a_wrong_password_is_refused(identities: Identities):
    url, _ = identities.begin()
    for fields in ({"email": EMAIL, "password": "wrong"}, {"email": "x@y.z", "password": PASSWORD}, {"email": ""}):
        answer = httpx2.post(url, data=fields)
        assert answer.status_code == 401 and "do not belong together" in answer.text


@pytest.mark.parametrize(
    "changes",
    [{"code_challenge": None}, {"code_challenge_method": None}, {"code_challenge_method": "plain"}, {"nonce": None},
     {"code_challenge": None, "code_challenge_method": None}, {"code_challenge": "short"}],
)  # fmt: skip
def test_a_code_is_not_given_without_pkce_and_nonce(identities: Identities, changes: dict[str, str | None]):
    url = changed(identities.begin()[0], **changes)
    for answer in (httpx2.get(url), httpx2.post(url, data={"email": EMAIL, "password": PASSWORD})):
        assert answer.status_code in (302, 400)
        assert "code=" not in answer.headers.get("location", "") and "Sign in" not in answer.text


@pytest.mark.parametrize("uri", [f"{REDIRECT}/", f"{REDIRECT}?x=1", "https://evil.example/", "http://127.0.0.1:1"])
def test_a_browser_is_not_sent_elsewhere(identities: Identities, uri: str):
    url = changed(identities.begin()[0], redirect_uri=uri)
    for answer in (httpx2.get(url), httpx2.post(url, data={"email": EMAIL, "password": PASSWORD})):
        assert answer.status_code == 400 and "location" not in answer.headers


def test_a_page_does_not_run_what_it_was_sent(identities: Identities):
    url = changed(identities.begin()[0], state='"><script>alert(1)</script>')
    page = httpx2.get(url)
    assert "<script>" not in page.text and "default-src 'none'" in page.headers["content-security-policy"]


def test_a_public_client_exchanges_with_the_verifier_only(identities: Identities, issuer: str, records: Records):
    url, _ = identities.begin()
    code = signed_in(url)["code"]
    fields = {"grant_type": "authorization_code", "code": code, "redirect_uri": REDIRECT, "client_id": CLIENT_ID}
    assert httpx2.post(f"{issuer}/token", data=fields).json()["error"] in ("invalid_request", "invalid_grant")
    right = {**fields, "code_verifier": "x" * 43}
    assert httpx2.post(f"{issuer}/token", data=right).json()["error"] == "invalid_grant", "the code is spent by now"


Forge = Callable[..., str]


@pytest.fixture
def forge(served: tuple[FastAPI, str], issuer: str) -> Forge:
    """ID tokens as the provider would sign them, but for what is changed."""
    right = served[0].state.provider.key

    def forge(*, key: Any = right, head: dict[str, Any] | None = None, **changes: Any) -> str:
        now = int(time.time())
        claims = {"iss": issuer, "aud": CLIENT_ID, "sub": "1", "iat": now, "exp": now + 60, "nonce": "n", **changes}
        header = {"alg": "RS256", "kid": right.kid, **(head or {})}
        kept = {name: value for name, value in claims.items() if value is not None}
        return jwt.encode(header, kept, key, algorithms=["RS256", "HS256", "none"])

    return forge


def test_a_right_token_is_believed(identities: Identities, forge: Forge):
    assert identities._verified_identity(forge(), nonce="n").subject == "1"
    assert identities._verified_identity(forge(aud=[CLIENT_ID, "other"], azp=CLIENT_ID), nonce="n").subject == "1"


@pytest.mark.parametrize(
    "changes",
    [{"aud": "another"}, {"aud": None}, {"iss": "https://evil.example"}, {"iss": "accounts.google.com"}, {"iss": None},
     {"exp": 1}, {"exp": None}, {"nonce": "other"}, {"nonce": None}, {"sub": None}, {"azp": "another"},
     {"iat": None}, {"head": {"kid": "unknown"}}, {"head": {"alg": "none"}, "key": None},
     {"key": RSAKey.generate_key(2048)}],
)  # fmt: skip
def test_a_wrong_token_is_not(identities: Identities, forge: Forge, changes: dict[str, Any]):
    with pytest.raises(SignInFailed):
        identities._verified_identity(forge(**changes), nonce="n")


def test_the_header_does_not_choose_the_algorithm(identities: Identities, forge: Forge, served: tuple[FastAPI, str]):
    head, body, _ = forge(key=None, head={"alg": "none"}).split(".")
    head = (
        urlsafe_b64encode(b'{"alg":"HS256","kid":"%s"}' % served[0].state.provider.key.kid.encode())
        .rstrip(b"=")
        .decode()
    )
    public = served[0].state.provider.key.as_pem(private=False)
    mac = urlsafe_b64encode(hmac.digest(public, f"{head}.{body}".encode(), "sha256")).rstrip(b"=").decode()
    with pytest.raises(SignInFailed):
        identities._verified_identity(f"{head}.{body}.{mac}", nonce="n")


@pytest.mark.parametrize("token", ["", "a.b.c", "ü" * 50])
def test_nonsense_is_not_believed(identities: Identities, token: str):
    with pytest.raises(SignInFailed):
        identities._verified_identity(token, nonce="n")


def test_an_unverified_address_is_not_kept(identities: Identities, forge: Forge):
    for verified, kept in ((True, EMAIL), (False, ""), ("true", ""), (None, "")):
        assert identities._verified_identity(forge(email=EMAIL, email_verified=verified), nonce="n").email == kept


def test_a_new_key_of_the_provider_is_read_but_not_at_anybodys_pace(
    identities: Identities, forge: Forge, monkeypatch: pytest.MonkeyPatch
):
    provider, reads = identities.provider, list[str]()
    key = RSAKey.generate_key(2048, parameters={"kid": "next"})
    fetch = provider._fetch_json

    def fetched(url: str) -> dict[str, Any]:
        reads.append(url)
        return fetch(url) if len([one for one in reads if "jwks" in one]) < 2 else KeySet([key]).as_dict(private=False)

    monkeypatch.setattr(provider, "_fetch_json", fetched)
    identities._verified_identity(forge(), nonce="n")
    for _ in range(3):
        with pytest.raises(SignInFailed):
            identities._verified_identity(forge(key=key, head={"kid": "next"}), nonce="n")
    assert len(reads) == 2, "discovery and keys, once each"
    monkeypatch.setattr(module, "KEYS_REFRESH_MIN_S", 0.0)
    assert identities._verified_identity(forge(key=key, head={"kid": "next"}), nonce="n").subject == "1"


def test_google_may_use_its_older_name(records: Records, keyring: Keyring, forge: Forge, issuer: str):
    provider = Provider(module.GOOGLE, client_id=CLIENT_ID)
    provider._discovery, provider._keys = {"jwks_uri": f"{issuer}/jwks", "issuer": module.GOOGLE}, None
    identities = Identities(records, keyring, provider, redirect_uri=REDIRECT)
    for name in ("accounts.google.com", "https://accounts.google.com"):
        assert identities._verified_identity(forge(iss=name), nonce="n").issuer == module.GOOGLE


def test_a_provider_that_is_another_or_away_is_said(records: Records, keyring: Keyring, issuer: str):
    elsewhere = Identities(records, keyring, Provider("http://127.0.0.1:9", client_id="x"), redirect_uri=REDIRECT)
    with pytest.raises(SignInFailed, match="cannot be reached"):
        elsewhere.begin()
    other = Provider(issuer.replace("127.0.0.1", "localhost"), client_id="x")
    with pytest.raises(SignInFailed, match="says it is another"):
        Identities(records, keyring, other, redirect_uri=REDIRECT).begin()


def test_accounts_are_kept_sealed_with_hashed_passwords(own_state: Path):
    accounts = Accounts(own_state / "accounts")
    accounts.add(EMAIL, name="Ada", password=PASSWORD)
    with pytest.raises(InputError, match="at least 12"):
        accounts.add("b@example.org", name="Bob", password="short")
    for email, password in (("b@example.org", "x" * 1001), ("b" * 255, PASSWORD)):
        with pytest.raises(InputError, match="at most"):
            accounts.add(email, name="Bob", password=password)
    with pytest.raises(InputError, match="has an account"):
        accounts.add(EMAIL.upper(), name="Ada", password=PASSWORD)
    assert b"ada@" not in (own_state / "accounts").read_bytes()
    (kept,) = accounts.all()
    assert kept.password.startswith("$argon2id$") and accounts.check(EMAIL.upper(), PASSWORD) == kept
    assert accounts.check(EMAIL, "wrong") is None and accounts.check("x@y.z", PASSWORD) is None
