from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from sqlalchemy import select

from api import sessions as module
from api.db import Base, Records, RefreshToken, User, new_id, open_engine
from api.sessions import GRACE_MS, SignedOut, SignIns


@pytest.fixture
def user(records: Records) -> str:
    with records.writing() as session:
        session.add(user := User(login=new_id()))
    return user.id


@pytest.fixture
def sign_ins(records: Records) -> SignIns:
    return SignIns(records)


class Clock:
    """The time that sessions see."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ms = module.now_ms()
        monkeypatch.setattr(module, "now_ms", lambda: self.ms)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_a_sign_in_goes_on_with_a_new_token_each_time(sign_ins: SignIns, user: str):
    first = sign_ins.begin(user)
    second = sign_ins.refresh(first.token)
    assert (second.user_id, second.role, second.sign_in_id) == (user, "user", first.sign_in_id)
    assert first.token != second.token and sign_ins.is_open(first.sign_in_id)


def test_tokens_are_kept_as_digests(sign_ins: SignIns, user: str, records: Records):
    token = sign_ins.begin(user).token
    with records.reading() as session:
        kept = session.scalars(select(RefreshToken.digest)).all()
    assert token not in kept and len(kept) == 1 and len(kept[0]) == 64


def test_a_token_that_comes_back_ends_the_family(sign_ins: SignIns, user: str, clock: Clock):
    stolen = sign_ins.begin(user)
    mine, elsewhere = sign_ins.refresh(stolen.token), sign_ins.begin(user)
    clock.ms += GRACE_MS + 1
    with pytest.raises(SignedOut, match="used from elsewhere"):
        sign_ins.refresh(stolen.token)
    with pytest.raises(SignedOut):
        sign_ins.refresh(mine.token)
    assert not sign_ins.is_open(stolen.sign_in_id)
    assert sign_ins.refresh(elsewhere.token), "another device is not affected"


def test_two_tabs_may_refresh_at_once(sign_ins: SignIns, user: str, clock: Clock):
    shared = sign_ins.begin(user).token
    one, other = sign_ins.refresh(shared), sign_ins.refresh(shared)
    clock.ms += GRACE_MS + 1
    assert sign_ins.refresh(one.token) and sign_ins.refresh(other.token)


def test_signing_out_ends_the_family(sign_ins: SignIns, user: str):
    one, other = sign_ins.begin(user), sign_ins.begin(user)
    sign_ins.end(one.token)
    sign_ins.end("unknown")
    with pytest.raises(SignedOut, match="sign in again"):
        sign_ins.refresh(one.token)
    assert sign_ins.is_open(other.sign_in_id)
    sign_ins.end_all(user)
    assert not sign_ins.is_open(other.sign_in_id)


def test_a_sign_in_ends_by_itself(sign_ins: SignIns, user: str, clock: Clock):
    idle = sign_ins.begin(user).token
    clock.ms += module.IDLE_MS + 1
    with pytest.raises(SignedOut):
        sign_ins.refresh(idle)
    busy = sign_ins.begin(user)
    for _ in range(4):
        clock.ms += 6 * 24 * 3600 * 1000
        busy = sign_ins.refresh(busy.token)
    clock.ms += 6 * 24 * 3600 * 1000
    with pytest.raises(SignedOut):
        sign_ins.refresh(busy.token)


@pytest.mark.parametrize("state", ["blocked", "erasing"])
def test_who_may_not_sign_in_does_not(sign_ins: SignIns, user: str, records: Records, state: str):
    before = sign_ins.begin(user)
    with records.writing() as session:
        session.get_one(User, user).state = state
    with pytest.raises(SignedOut):
        sign_ins.begin(user)
    with pytest.raises(SignedOut):
        sign_ins.refresh(before.token)
    assert not sign_ins.is_open(before.sign_in_id)


@pytest.mark.parametrize("token", ["", "x", "é" * 100, "\x00"])
def test_an_unknown_token_signs_nobody_in(sign_ins: SignIns, token: str):
    with pytest.raises(SignedOut):
        sign_ins.refresh(token)


class Families(RuleBasedStateMachine):
    """Whatever is sent in whatever order: a family that saw a late reuse is over, and its newest tokens are good before."""

    @initialize()
    def begin(self) -> None:
        engine = open_engine("sqlite://")
        Base.metadata.create_all(engine)
        self.sign_ins = SignIns(Records(engine))
        self.patch = pytest.MonkeyPatch()
        self.clock = Clock(self.patch)
        with self.sign_ins.records.writing() as session:
            session.add(user := User(login=new_id()))
        first = self.sign_ins.begin(user.id)
        self.sign_in, self.live, self.used, self.over = first.sign_in_id, [first.token], list[tuple[str, int]](), False

    @rule(which=st.integers(0, 5))
    def refresh(self, which: int) -> None:
        token = self.live[which % len(self.live)]
        if self.over:
            with pytest.raises(SignedOut):
                self.sign_ins.refresh(token)
            return
        self.live.append(self.sign_ins.refresh(token).token)
        self.live.remove(token)
        self.used.append((token, self.clock.ms))

    @rule(which=st.integers(0, 5))
    def send_a_used_one(self, which: int) -> None:
        if not self.used:
            return
        token, at = self.used[which % len(self.used)]
        if self.over or self.clock.ms - at > GRACE_MS:
            with pytest.raises(SignedOut):
                self.sign_ins.refresh(token)
            self.over = True
        else:
            self.live.append(self.sign_ins.refresh(token).token)

    @rule(ms=st.integers(0, 2 * GRACE_MS))
    def wait(self, ms: int) -> None:
        self.clock.ms += ms

    @invariant()
    def open_until_over(self) -> None:
        if hasattr(self, "sign_in"):
            assert self.sign_ins.is_open(self.sign_in) != self.over

    def teardown(self) -> None:
        if hasattr(self, "patch"):
            self.patch.undo()
            self.sign_ins.records.engine.dispose()


TestFamilies = Families.TestCase
TestFamilies.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)
