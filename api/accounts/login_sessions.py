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

from api.records.database import Records, retry_on_rollback
from api.records.tables import LoginSession, RefreshToken, User, now_ms
from photoflux.errors import PhotoFluxError

TOKEN_BYTES = 32
GRACE_MS = 10_000
"""Two tabs that refresh at once send the same token; within this time the second is given the first one's successor."""
IDLE_MS = 7 * 24 * 3600 * 1000


class SignedOut(PhotoFluxError):
    """There is no such sign-in any more: it ended, was revoked, or its token was used before."""


@dataclass(frozen=True)
class RefreshedSession:
    """A sign-in that goes on: the token to keep in place of the one that was sent."""

    user_id: str
    role: str
    login_session_id: str
    token: str
    superseded: bool = False
    """Whether `token` was itself exchanged already: the browser holds a newer one and is to keep that."""


class LoginSessions:
    """Begins, continues and ends sign-ins. `key` derives successors; all processes of a service must have the same.

    Rows are locked in this order: the person's, the sign-in's, the token's.
    """

    def __init__(self, records: Records, *, key: bytes, lifetime_days: int = 30) -> None:
        self.records, self.lifetime_ms = records, lifetime_days * 24 * 3600 * 1000
        self._key = key

    @retry_on_rollback
    def begin(self, user_id: str) -> RefreshedSession:
        """A new sign-in of an active user. Raises SignedOut for one who may not sign in."""
        with self.records.writing() as session:
            user = _locked_user(session, user_id)
            if user is None or user.state != "active":
                raise SignedOut("this account cannot sign in")
            login_session = LoginSession(user_id=user_id, expires_ms=now_ms() + self.lifetime_ms)
            session.add(login_session)
            session.flush()
            token = secrets.token_urlsafe(TOKEN_BYTES)
            _add_token(session, token, login_session)
            return RefreshedSession(user_id, user.role, login_session.id, token)

    def session_of(self, token: str) -> str | None:
        """Id of the sign-in that a token belongs to, whatever became of either; None for one that never was."""
        with self.records.reading() as session:
            return session.scalar(select(RefreshToken.login_session_id).where(RefreshToken.digest == digest_of(token)))

    @retry_on_rollback
    def refresh(self, token: str) -> RefreshedSession:
        """Exchange a refresh token. Raises SignedOut; a token that was used before ends its whole family.

        Within GRACE_MS of its use the token gives the same successor again.
        """
        if self.session_of(token) is None:  # told without a write lock, which anybody could have us take
            raise SignedOut("you are signed out; sign in again")
        with self.records.writing() as session:
            known, login_session, user = _locked(session, token)
            if known is None or login_session is None or user is None or not _is_valid(known, login_session, user):
                raise SignedOut("you are signed out; sign in again")
            if known.used_ms is None or now_ms() - known.used_ms <= GRACE_MS:
                return self._successor(session, token, known, login_session, user)
            login_session.revoked_ms = now_ms()
        raise SignedOut("this sign-in was used from elsewhere and has been ended; sign in again")

    def _successor(
        self, session: Session, token: str, known: RefreshToken, login_session: LoginSession, user: User
    ) -> RefreshedSession:
        successor = urlsafe_b64encode(hmac.digest(self._key, token.encode(), "sha256")).rstrip(b"=").decode()
        if known.used_ms is None:
            known.used_ms = now_ms()
            _add_token(session, successor, login_session)
            return RefreshedSession(user.id, user.role, login_session.id, successor)
        given = session.get(RefreshToken, digest_of(successor))
        if given is None:  # it was exchanged under another key: a second successor is never made
            raise SignedOut("you are signed out; sign in again")
        return RefreshedSession(user.id, user.role, login_session.id, successor, superseded=given.used_ms is not None)

    @retry_on_rollback
    def end(self, token: str) -> None:
        """Sign out: the family of this token is over. One that is not known is over already."""
        login_session_id = self.session_of(token)
        if login_session_id is None:
            return
        with self.records.writing() as session:
            _locked_user(
                session, session.scalar(select(LoginSession.user_id).where(LoginSession.id == login_session_id))
            )
            self._revoke(session, LoginSession.id == login_session_id)

    @retry_on_rollback
    def end_all(self, user_id: str) -> None:
        """Sign a person out everywhere."""
        with self.records.writing() as session:
            _locked_user(session, user_id)
            self._revoke(session, LoginSession.user_id == user_id)

    def is_open(self, login_session_id: str) -> bool:
        """Whether a sign-in was neither ended nor revoked, and its user is active."""
        query = select(LoginSession.id).join(User, User.id == LoginSession.user_id)
        open_ = (
            LoginSession.id == login_session_id,
            LoginSession.revoked_ms.is_(None),
            LoginSession.expires_ms > now_ms(),
            User.state == "active",
        )
        with self.records.reading() as session:
            return session.scalar(query.where(*open_)) is not None

    @staticmethod
    def _revoke(session: Session, which: object) -> None:
        open_ = update(LoginSession).where(which, LoginSession.revoked_ms.is_(None))  # type: ignore[arg-type]
        session.execute(open_.values(revoked_ms=now_ms()))


def _is_valid(token: RefreshToken, login_session: LoginSession, user: User) -> bool:
    now = now_ms()
    return (
        login_session.revoked_ms is None
        and now < login_session.expires_ms
        and user.state == "active"
        and now < token.created_ms + IDLE_MS
    )


def _locked_user(session: Session, user_id: str | None) -> User | None:
    """A person's row, locked; it must be the first lock of the transaction."""
    return session.get(User, user_id, with_for_update=True) if user_id else None


def _locked(session: Session, token: str) -> tuple[RefreshToken | None, LoginSession | None, User | None]:
    """A token, its sign-in and whose it is, found without locks and then locked in the house's order."""
    digest = digest_of(token)
    chain = select(LoginSession.user_id, LoginSession.id).join(
        RefreshToken, RefreshToken.login_session_id == LoginSession.id
    )
    found = session.execute(chain.where(RefreshToken.digest == digest)).one_or_none()
    if found is None:
        return None, None, None
    user = _locked_user(session, found.user_id)
    login_session = session.get(LoginSession, found.id, with_for_update=True)
    return session.get(RefreshToken, digest, with_for_update=True), login_session, user


def _add_token(session: Session, token: str, login_session: LoginSession) -> None:
    session.add(RefreshToken(digest=digest_of(token), login_session_id=login_session.id, created_ms=now_ms()))


def digest_of(token: str) -> str:
    """SHA-256 of a random token: it needs no salt, and the records hold nothing that signs anybody in."""
    return hashlib.sha256(token.encode()).hexdigest()
