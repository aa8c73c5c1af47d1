"""Sign-ins: one family of refresh tokens per device, each exchanged once; one that comes back late ends the family.

A token's successor is derived from it, so that whoever sends the same token twice is given the same one, though the
records hold digests only. A family is therefore a chain, and one token of it is good: the newest.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from base64 import urlsafe_b64encode
from dataclasses import dataclass

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from api.records.database import Records, retried
from api.records.tables import RefreshToken, SignIn, User, now_ms
from photoflux.errors import PhotoFluxError

TOKEN_BYTES = 32
GRACE_MS = 10_000
"""Two tabs that refresh at once send the same token; within this time the second is given the first one's successor."""
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
    superseded: bool = False
    """Whether `token` was itself exchanged already: the browser holds a newer one and is to keep that."""


class SignIns:
    """Begins, continues and ends sign-ins. `key` derives successors; all processes of a service must have the same.

    Rows are locked in this order: the person's, the sign-in's, the token's.
    """

    def __init__(self, records: Records, *, key: bytes, lifetime_days: int = 30) -> None:
        self.records, self.lifetime_ms = records, lifetime_days * 24 * 3600 * 1000
        self._key = key

    @retried
    def begin(self, user_id: str) -> Refreshed:
        """A new sign-in of an active user. Raises SignedOut for one who may not sign in."""
        with self.records.writing() as session:
            user = _locked_user(session, user_id)
            if user is None or user.state != "active":
                raise SignedOut("this account cannot sign in")
            sign_in = SignIn(user_id=user_id, expires_ms=now_ms() + self.lifetime_ms)
            session.add(sign_in)
            session.flush()
            token = secrets.token_urlsafe(TOKEN_BYTES)
            _keep(session, token, sign_in)
            return Refreshed(user_id, user.role, sign_in.id, token)

    def family_of(self, token: str) -> str | None:
        """Id of the sign-in that a token belongs to, whatever became of either; None for one that never was."""
        with self.records.reading() as session:
            return session.scalar(select(RefreshToken.sign_in_id).where(RefreshToken.digest == digest_of(token)))

    @retried
    def refresh(self, token: str) -> Refreshed:
        """Exchange a refresh token. Raises SignedOut; a token that was used before ends its whole family.

        Within GRACE_MS of its use the token gives the same successor again.
        """
        if self.family_of(token) is None:  # told without a write lock, which anybody could have us take
            raise SignedOut("you are signed out; sign in again")
        with self.records.writing() as session:
            known, sign_in, user = _locked(session, token)
            if known is None or sign_in is None or user is None or not _alive(known, sign_in, user):
                raise SignedOut("you are signed out; sign in again")
            if known.used_ms is None or now_ms() - known.used_ms <= GRACE_MS:
                return self._successor(session, token, known, sign_in, user)
            sign_in.revoked_ms = now_ms()
        raise SignedOut("this sign-in was used from elsewhere and has been ended; sign in again")

    def _successor(self, session: Session, token: str, known: RefreshToken, sign_in: SignIn, user: User) -> Refreshed:
        successor = urlsafe_b64encode(hmac.digest(self._key, token.encode(), "sha256")).rstrip(b"=").decode()
        if known.used_ms is None:
            known.used_ms = now_ms()
            _keep(session, successor, sign_in)
            return Refreshed(user.id, user.role, sign_in.id, successor)
        given = session.get(RefreshToken, digest_of(successor))
        if given is None:  # it was exchanged under another key: a second successor is never made
            raise SignedOut("you are signed out; sign in again")
        return Refreshed(user.id, user.role, sign_in.id, successor, superseded=given.used_ms is not None)

    @retried
    def end(self, token: str) -> None:
        """Sign out: the family of this token is over. One that is not known is over already."""
        sign_in_id = self.family_of(token)
        if sign_in_id is None:
            return
        with self.records.writing() as session:
            _locked_user(session, session.scalar(select(SignIn.user_id).where(SignIn.id == sign_in_id)))
            self._revoke(session, SignIn.id == sign_in_id)

    @retried
    def end_all(self, user_id: str) -> None:
        """Sign a person out everywhere."""
        with self.records.writing() as session:
            _locked_user(session, user_id)
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


def _locked_user(session: Session, user_id: str | None) -> User | None:
    """A person's row, locked; it must be the first lock of the transaction."""
    return session.get(User, user_id, with_for_update=True) if user_id else None


def _locked(session: Session, token: str) -> tuple[RefreshToken | None, SignIn | None, User | None]:
    """A token, its sign-in and whose it is, found without locks and then locked in the house's order."""
    digest = digest_of(token)
    chain = select(SignIn.user_id, SignIn.id).join(RefreshToken, RefreshToken.sign_in_id == SignIn.id)
    found = session.execute(chain.where(RefreshToken.digest == digest)).one_or_none()
    if found is None:
        return None, None, None
    user = _locked_user(session, found.user_id)
    sign_in = session.get(SignIn, found.id, with_for_update=True)
    return session.get(RefreshToken, digest, with_for_update=True), sign_in, user


def _keep(session: Session, token: str, sign_in: SignIn) -> None:
    session.add(RefreshToken(digest=digest_of(token), sign_in_id=sign_in.id, created_ms=now_ms()))


def digest_of(token: str) -> str:
    """SHA-256 of a random token: it needs no salt, and the records hold nothing that signs anybody in."""
    return hashlib.sha256(token.encode()).hexdigest()
