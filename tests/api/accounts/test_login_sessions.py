from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from threading import Barrier
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from sqlalchemy import event, func, select

from api.accounts import login_sessions as module
from api.accounts.login_sessions import GRACE_MS, LoginSessions, SignedOut, digest_of
from api.records.database import Records, open_engine
from api.records.tables import Base, RefreshToken, User, new_id


@pytest.fixture
def user(records: Records) -> str:
    with records.writing() as session:
        session.add(user := User(login=new_id()))
    return user.id


@pytest.fixture
def login_sessions(records: Records) -> LoginSessions:
    return LoginSessions(records, key=KEY)


KEY = b"k" * 32


class Clock:
    """The time that sessions see."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ms = module.now_ms()
        monkeypatch.setattr(module, "now_ms", lambda: self.ms)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_a_sign_in_goes_on_with_a_new_token_each_time(login_sessions: LoginSessions, user: str):
    first = login_sessions.begin(user)
    second = login_sessions.refresh(first.token)
    assert (second.user_id, second.role, second.login_session_id) == (user, "user", first.login_session_id)
    assert first.token != second.token and login_sessions.is_open(first.login_session_id)


def test_tokens_are_kept_as_digests(login_sessions: LoginSessions, user: str, records: Records):
    token = login_sessions.begin(user).token
    with records.reading() as session:
        kept = session.scalars(select(RefreshToken.digest)).all()
    assert token not in kept and len(kept) == 1 and len(kept[0]) == 64


def test_a_token_that_comes_back_ends_the_family(login_sessions: LoginSessions, user: str, clock: Clock):
    stolen = login_sessions.begin(user)
    mine, elsewhere = login_sessions.refresh(stolen.token), login_sessions.begin(user)
    clock.ms += GRACE_MS + 1
    with pytest.raises(SignedOut, match="used from elsewhere"):
        login_sessions.refresh(stolen.token)
    with pytest.raises(SignedOut):
        login_sessions.refresh(mine.token)
    assert not login_sessions.is_open(stolen.login_session_id)
    assert login_sessions.refresh(elsewhere.token), "another device is not affected"


def count(records: Records) -> int:
    with records.reading() as session:
        return session.scalar(select(func.count()).select_from(RefreshToken)) or 0


def test_two_tabs_may_refresh_at_once(login_sessions: LoginSessions, user: str, clock: Clock, records: Records):
    """Both send the same token, and are given the same one for it, however often they ask."""
    shared = login_sessions.begin(user).token
    given = {login_sessions.refresh(shared).token for _ in range(20)}
    assert len(given) == 1 and count(records) == 2
    clock.ms += GRACE_MS + 1
    assert login_sessions.refresh(given.pop())


def test_tabs_that_refresh_in_parallel_are_given_one_successor(
    login_sessions: LoginSessions, user: str, records: Records
):
    for _ in range(5):
        shared, together = login_sessions.begin(user).token, Barrier(4)

        def tab(_: int, shared: str = shared, together: Barrier = together) -> str:
            together.wait(20)
            return login_sessions.refresh(shared).token

        with ThreadPoolExecutor(4) as pool:
            given = set(pool.map(tab, range(4)))
        assert len(given) == 1
    assert count(records) == 10


def test_a_successor_that_was_used_is_given_again_but_not_to_be_kept(
    login_sessions: LoginSessions, user: str, records: Records
):
    """The browser holds a newer one by then; were it to go back, its next refresh would look like a theft."""
    first = login_sessions.begin(user)
    second = login_sessions.refresh(first.token)
    assert not second.superseded
    third = login_sessions.refresh(second.token)
    again = login_sessions.refresh(first.token)
    assert again.token == second.token and again.superseded and count(records) == 3
    assert login_sessions.refresh(second.token) == third


def test_the_same_key_derives_the_same_successor_in_every_process(
    login_sessions: LoginSessions, user: str, records: Records
):
    shared = login_sessions.begin(user).token
    successor = login_sessions.refresh(shared).token
    assert LoginSessions(records, key=KEY).refresh(shared).token == successor
    with pytest.raises(SignedOut):
        LoginSessions(records, key=b"another" * 5).refresh(shared)
    assert count(records) == 2 and login_sessions.is_open(login_sessions.begin(user).login_session_id)
    assert re.fullmatch(r"[A-Za-z0-9_-]{43}", successor)


@contextmanager
def statements(records: Records) -> Iterator[list[str]]:
    """What is sent to the database meanwhile."""
    sent: list[str] = []

    def note(*args: Any) -> None:
        sent.append(" ".join(args[2].split()))

    event.listen(records.engine, "before_cursor_execute", note)
    yield sent
    event.remove(records.engine, "before_cursor_execute", note)


WAYS: dict[str, Callable[[LoginSessions, str, str], object]] = {
    "begin": lambda login_sessions, user, _: login_sessions.begin(user),
    "refresh": lambda login_sessions, _, token: login_sessions.refresh(token),
    "end": lambda login_sessions, _, token: login_sessions.end(token),
    "end_all": lambda login_sessions, user, _: login_sessions.end_all(user),
}


@pytest.mark.parametrize("way", WAYS)
def test_the_person_is_locked_first_then_the_sign_in_then_the_token(
    login_sessions: LoginSessions, user: str, records: Records, way: str
):
    if records.engine.dialect.name == "sqlite":
        pytest.skip("SQLite has one lock")
    token = login_sessions.begin(user).token
    with statements(records) as sent:
        WAYS[way](login_sessions, user, token)
    locking = [one for one in sent if one.endswith("FOR UPDATE") or one.startswith(("UPDATE", "INSERT"))]
    tables = [re.search(r"(?:FROM|UPDATE|INTO) (\w+)", one)[1] for one in locking]  # type: ignore[index]
    order = ["users", "login_sessions", "refresh_tokens"]
    firsts = list(dict.fromkeys(tables))
    assert firsts == sorted(firsts, key=order.index) and firsts[0] == "users"


@pytest.mark.parametrize("ask", [LoginSessions.refresh, LoginSessions.end])
def test_a_token_that_never_was_takes_no_write_lock(
    login_sessions: LoginSessions, ask: Callable[[LoginSessions, str], object], monkeypatch: pytest.MonkeyPatch
):
    """Anybody can send one."""
    monkeypatch.setattr(Records, "writing", lambda _: pytest.fail("a transaction that writes was begun"))
    assert login_sessions.session_of("unknown") is None
    with suppress(SignedOut):
        ask(login_sessions, "unknown")


def test_signing_out_ends_the_family(login_sessions: LoginSessions, user: str):
    one, other = login_sessions.begin(user), login_sessions.begin(user)
    login_sessions.end(one.token)
    login_sessions.end("unknown")
    with pytest.raises(SignedOut, match="sign in again"):
        login_sessions.refresh(one.token)
    assert login_sessions.is_open(other.login_session_id)
    login_sessions.end_all(user)
    assert not login_sessions.is_open(other.login_session_id)


def test_a_sign_in_ends_by_itself(login_sessions: LoginSessions, user: str, clock: Clock):
    idle = login_sessions.begin(user).token
    clock.ms += module.IDLE_MS + 1
    with pytest.raises(SignedOut):
        login_sessions.refresh(idle)
    busy = login_sessions.begin(user)
    for _ in range(4):
        clock.ms += 6 * 24 * 3600 * 1000
        busy = login_sessions.refresh(busy.token)
    clock.ms += 6 * 24 * 3600 * 1000
    with pytest.raises(SignedOut):
        login_sessions.refresh(busy.token)


@pytest.mark.parametrize("state", ["blocked", "erasing"])
def test_who_may_not_sign_in_does_not(login_sessions: LoginSessions, user: str, records: Records, state: str):
    before = login_sessions.begin(user)
    with records.writing() as session:
        session.get_one(User, user).state = state
    with pytest.raises(SignedOut):
        login_sessions.begin(user)
    with pytest.raises(SignedOut):
        login_sessions.refresh(before.token)
    assert not login_sessions.is_open(before.login_session_id)


@pytest.mark.parametrize("token", ["", "x", "é" * 100, "\x00"])
def test_an_unknown_token_signs_nobody_in(login_sessions: LoginSessions, token: str):
    with pytest.raises(SignedOut):
        login_sessions.refresh(token)


class Families(RuleBasedStateMachine):
    """Whatever is sent in whatever order: each token has one successor, one token is unused, a late reuse ends it all."""

    @initialize()
    def begin(self) -> None:
        engine = open_engine("sqlite://")
        Base.metadata.create_all(engine)
        self.login_sessions = LoginSessions(Records(engine), key=KEY)
        self.patch = pytest.MonkeyPatch()
        self.clock = Clock(self.patch)
        with self.login_sessions.records.writing() as session:
            session.add(user := User(login=new_id()))
        first = self.login_sessions.begin(user.id)
        self.sign_in, self.over = first.login_session_id, False
        self.chain, self.used = [first.token], list[int]()
        """Tokens from the first to the unused one, and when each but the last was used."""

    @rule()
    def refresh(self) -> None:
        if self.over:
            with pytest.raises(SignedOut):
                self.login_sessions.refresh(self.chain[-1])
            return
        given = self.login_sessions.refresh(self.chain[-1])
        assert not given.superseded and given.token not in self.chain
        self.chain.append(given.token)
        self.used.append(self.clock.ms)

    @rule(back=st.integers(1, 5))
    def send_a_used_one(self, back: int) -> None:
        if back > len(self.used):
            return
        place = len(self.used) - back
        if self.over or self.clock.ms - self.used[place] > GRACE_MS:
            with pytest.raises(SignedOut):
                self.login_sessions.refresh(self.chain[place])
            self.over = True
        else:
            given = self.login_sessions.refresh(self.chain[place])
            assert given.token == self.chain[place + 1]
            assert given.superseded == (place + 1 < len(self.used))

    @rule(ms=st.one_of(st.integers(0, 2 * GRACE_MS), st.sampled_from([GRACE_MS, GRACE_MS + 1])))
    def wait(self, ms: int) -> None:
        self.clock.ms += ms

    @rule()
    def sign_out(self) -> None:
        self.login_sessions.end(self.chain[0])
        self.over = True

    @invariant()
    def open_until_over(self) -> None:
        if hasattr(self, "sign_in"):
            assert self.login_sessions.is_open(self.sign_in) != self.over

    @invariant()
    def one_token_is_unused_and_each_has_one_successor(self) -> None:
        if not hasattr(self, "sign_in"):
            return
        with self.login_sessions.records.reading() as session:
            kept = {one.digest: one.used_ms for one in session.scalars(select(RefreshToken))}
        assert set(kept) == {digest_of(token) for token in self.chain}
        assert [kept[digest_of(token)] for token in self.chain] == [*self.used, None]

    def teardown(self) -> None:
        if hasattr(self, "patch"):
            self.patch.undo()
            self.login_sessions.records.engine.dispose()


TestFamilies = Families.TestCase
TestFamilies.settings = settings(max_examples=50, stateful_step_count=20, deadline=None)
