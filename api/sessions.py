"""Sign-ins: one family of refresh tokens per device, each exchanged once; one that comes back ends the family."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from api.db import Records, RefreshToken, SignIn, User, now_ms
from photoflux.errors import PhotoFluxError

TOKEN_BYTES = 32
GRACE_MS = 10_000
"""Two tabs that refresh at once send the same token; within this time the second is given a successor of its own."""
IDLE_MS = 7 * 24 * 3600 * 1000


class SignedOut(PhotoFluxError):
    """There is no such sign-in any more: it ended, was revoked, or its token was used before."""


@dataclass(frozen=True)
class Refreshed:
    """A sign-in that goes on: the token to keep in place of the one that was sent."""

    user_id: str
    role: str
    sign_in_id: str
    token: str


class SignIns:
    """Begins, continues and ends sign-ins."""

    def __init__(self, records: Records, *, lifetime_days: int = 30) -> None:
        self.records, self.lifetime_ms = records, lifetime_days * 24 * 3600 * 1000

    def begin(self, user_id: str) -> Refreshed:
        """A new sign-in of an active user. Raises SignedOut for one who may not sign in."""
        with self.records.writing() as session:
            user = session.get(User, user_id)
            if user is None or user.state != "active":
                raise SignedOut("this account cannot sign in")
            sign_in = SignIn(user_id=user_id, expires_ms=now_ms() + self.lifetime_ms)
            session.add(sign_in)
            session.flush()
            return Refreshed(user_id, user.role, sign_in.id, _new_token(session, sign_in.id))

    def refresh(self, token: str) -> Refreshed:
        """Exchange a refresh token. Raises SignedOut; a token that was used before ends its whole family."""
        reused = False
        with self.records.writing() as session:
            known = session.get(RefreshToken, digest_of(token), with_for_update=True)
            sign_in = session.get(SignIn, known.sign_in_id, with_for_update=True) if known else None
            user = session.get(User, sign_in.user_id) if sign_in else None
            if known is None or sign_in is None or user is None or not _alive(known, sign_in, user):
                raise SignedOut("you are signed out; sign in again")
            reused = known.used_ms is not None and now_ms() - known.used_ms > GRACE_MS
            if reused:
                sign_in.revoked_ms = now_ms()
            else:
                known.used_ms = known.used_ms or now_ms()
                return Refreshed(user.id, user.role, sign_in.id, _new_token(session, sign_in.id))
        raise SignedOut("this sign-in was used from elsewhere and has been ended; sign in again")

    def end(self, token: str) -> None:
        """Sign out: the family of this token is over. One that is not known is over already."""
        with self.records.writing() as session:
            known = session.get(RefreshToken, digest_of(token))
            if known:
                self._revoke(session, SignIn.id == known.sign_in_id)

    def end_all(self, user_id: str) -> None:
        """Sign a person out everywhere."""
        with self.records.writing() as session:
            self._revoke(session, SignIn.user_id == user_id)

    def is_open(self, sign_in_id: str) -> bool:
        """Whether a sign-in was neither ended nor revoked, and its user is active."""
        query = select(SignIn.id).join(User, User.id == SignIn.user_id)
        open_ = (
            SignIn.id == sign_in_id,
            SignIn.revoked_ms.is_(None),
            SignIn.expires_ms > now_ms(),
            User.state == "active",
        )
        with self.records.reading() as session:
            return session.scalar(query.where(*open_)) is not None

    @staticmethod
    def _revoke(session: Session, which: object) -> None:
        session.execute(update(SignIn).where(which, SignIn.revoked_ms.is_(None)).values(revoked_ms=now_ms()))  # type: ignore[arg-type]


def _alive(token: RefreshToken, sign_in: SignIn, user: User) -> bool:
    now = now_ms()
    return (
        sign_in.revoked_ms is None
        and now < sign_in.expires_ms
        and user.state == "active"
        and now < token.created_ms + IDLE_MS
    )


def _new_token(session: Session, sign_in_id: str) -> str:
    token = secrets.token_urlsafe(TOKEN_BYTES)
    session.add(RefreshToken(digest=digest_of(token), sign_in_id=sign_in_id, created_ms=now_ms()))
    return token


def digest_of(token: str) -> str:
    """SHA-256 of a random token: it needs no salt, and the records hold nothing that signs anybody in."""
    return hashlib.sha256(token.encode()).hexdigest()
