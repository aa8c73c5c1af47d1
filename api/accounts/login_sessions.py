"""Login sessions: a chain of refresh tokens per device, each exchanged once; reuse of an old one revokes the session.

A token's successor is derived from it by HMAC, so that sending the same token twice gives the same successor, though the
records hold digests only. Of a chain the newest token alone is valid.
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
"""Two tabs that refresh at once send the same token; within this time the second one gets the same successor."""
IDLE_MS = 7 * 24 * 3600 * 1000


class SignedOut(PhotoFluxError):
    """The login session has ended or was revoked, or its token was used before."""


@dataclass(frozen=True)
class RefreshedSession:
    """A new or continued login session; `token` replaces the one that was sent."""

    user_id: str
    role: str
    login_session_id: str
    token: str
    superseded: bool = False
    """Whether `token` was exchanged already: the browser has a newer one, which must not be replaced."""


class LoginSessions:
    """Begins, continues and ends login sessions. `key` derives successors; all processes of a service need the same one.

    Rows are locked in this order: user, login session, token.
    """

    def __init__(self, records: Records, *, key: bytes, lifetime_days: int = 30) -> None:
        self.records, self.lifetime_ms = records, lifetime_days * 24 * 3600 * 1000
        self._key = key

    @retry_on_rollback
    def begin(self, user_id: str) -> RefreshedSession:
        """Begin a login session of an active user. Raises SignedOut for any other."""
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
        """Id of the login session of a token, whether or not they are still valid; None for an unknown token."""
        with self.records.reading() as session:
            return session.scalar(select(RefreshToken.login_session_id).where(RefreshToken.digest == digest_of(token)))

    @retry_on_rollback
    def refresh(self, token: str) -> RefreshedSession:
        """Exchange a refresh token for its successor. Raises SignedOut; reuse revokes the login session.

        Within GRACE_MS of its first use the token gives the same successor again.
        """
        if self.session_of(token) is None:  # checked without a write lock, which anybody could otherwise make us take
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
        if given is None:  # exchanged under another key: a second successor is never made
            raise SignedOut("you are signed out; sign in again")
        return RefreshedSession(user.id, user.role, login_session.id, successor, superseded=given.used_ms is not None)

    @retry_on_rollback
    def end(self, token: str) -> None:
        """Revoke the login session of a token; an unknown token is ignored."""
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
        """Revoke all login sessions of a person."""
        with self.records.writing() as session:
            _locked_user(session, user_id)
            self._revoke(session, LoginSession.user_id == user_id)

    def is_open(self, login_session_id: str) -> bool:
        """Whether a login session has neither expired nor been revoked, and its user is active."""
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
    """A token, its login session and its user, found without locks and then locked in LOCK_ORDER."""
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
