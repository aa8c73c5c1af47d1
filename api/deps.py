"""Dependencies of routes: the parts of the service that their signatures name, and the current user."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from fastapi import Cookie, Depends, Header, Request
from fastapi.security import HTTPBearer
from fastapi.security.http import HTTPAuthorizationCredentials
from sqlalchemy.orm import Session

from api.accounts.login_sessions import LoginSessions
from api.accounts.openid_client import Identities
from api.accounts.tokens import AccessTokenClaims, Tokens
from api.images.moderation import Moderator
from api.images.rendering import ImageRenderer
from api.jobs.generation_starter import GenerationStarter
from api.jobs.job_queue import JobQueue
from api.jobs.run_starter import RunStarter
from api.jobs.webhook_delivery import WebhookSubscriptions
from api.ops.health import Health
from api.records.audit_log import AuditHeads, AuditLog
from api.records.database import Records
from api.records.tables import Base
from api.settings import ApiSettings
from api.training.photo_intake import PhotoIntake
from api.training.photo_sets import PhotoCollection
from api.transport.concurrency import FairLimiter, HeldRequests
from api.transport.idempotency import KEY_DESCRIPTION, IdempotencyGuard, idempotency_guard
from api.transport.problems import Problem
from api.transport.rate_limits import RateLimiter
from photoflux.vault.keyring import Keyring
from photoflux.vault.objects import Objects


@dataclass(frozen=True)
class Service:
    """The parts, made once when the application starts. A route asks for those that it needs, by the types below."""

    settings: ApiSettings
    records: Records
    keyring: Keyring
    tokens: Tokens
    login_sessions: LoginSessions
    identities: Identities
    objects: Objects
    collection: PhotoCollection
    intake: PhotoIntake
    audit_log: AuditLog
    heads: AuditHeads
    queue: JobQueue
    run_starter: RunStarter
    generation_starter: GenerationStarter
    rate_limiter: RateLimiter
    renderer: ImageRenderer
    moderator: Moderator
    subscriptions: WebhookSubscriptions
    health: Health
    held_requests: HeldRequests
    dns_lookups: FairLimiter
    """Limits look-ups of host names that people give: a name server may never answer, and a thread waits for it."""
    class_nouns: tuple[str, ...]
    trigger: str

    def close(self) -> None:
        """Close the processes, the queue and the database's connections."""
        self.intake.close()
        self.renderer.close()
        self.queue.close()
        self.records.engine.dispose()


def _provide(name: str) -> Any:
    """A dependency on one part of the application's service."""

    async def get_one(request: Request) -> Any:  # a coroutine: it needs no thread
        return getattr(request.app.state.service, name)

    return Depends(get_one)


SettingsDep = Annotated[ApiSettings, _provide("settings")]
RecordsDep = Annotated[Records, _provide("records")]
KeyringDep = Annotated[Keyring, _provide("keyring")]
TokensDep = Annotated[Tokens, _provide("tokens")]
LoginSessionsDep = Annotated[LoginSessions, _provide("login_sessions")]
IdentitiesDep = Annotated[Identities, _provide("identities")]
ObjectsDep = Annotated[Objects, _provide("objects")]
CollectionDep = Annotated[PhotoCollection, _provide("collection")]
PhotoIntakeDep = Annotated[PhotoIntake, _provide("intake")]
AuditLogDep = Annotated[AuditLog, _provide("audit_log")]
AuditHeadsDep = Annotated[AuditHeads, _provide("heads")]
QueueDep = Annotated[JobQueue, _provide("queue")]
RunStarterDep = Annotated[RunStarter, _provide("run_starter")]
GenerationStarterDep = Annotated[GenerationStarter, _provide("generation_starter")]
RateLimiterDep = Annotated[RateLimiter, _provide("rate_limiter")]
RendererDep = Annotated[ImageRenderer, _provide("renderer")]
ModeratorDep = Annotated[Moderator, _provide("moderator")]
SubscriptionsDep = Annotated[WebhookSubscriptions, _provide("subscriptions")]
HealthDep = Annotated[Health, _provide("health")]
HeldRequestsDep = Annotated[HeldRequests, _provide("held_requests")]
DnsLookupsDep = Annotated[FairLimiter, _provide("dns_lookups")]
ClassNounsDep = Annotated[tuple[str, ...], _provide("class_nouns")]
TriggerDep = Annotated[str, _provide("trigger")]
_bearer = HTTPBearer(auto_error=False, bearerFormat="JWT", description="an access token of POST /api/auth/refresh")


def get_current_user(
    request: Request,
    tokens: TokensDep,
    login_sessions: LoginSessionsDep,
    rate_limiter: RateLimiterDep,
    audit_log: AuditLogDep,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
) -> AccessTokenClaims:
    """The user whom the access token was issued to. A problem of 401 without a valid one, or when its login session has ended."""
    if credentials is None:
        raise Problem(401, "unauthorized", "Sign in first.", headers={"WWW-Authenticate": "Bearer"})
    current_user = tokens.verify_access(credentials.credentials)
    request.state.actor = audit_log.pseudonym(current_user.user_id)
    _count(current_user, login_sessions, rate_limiter)
    return current_user


def _count(claims: AccessTokenClaims, login_sessions: LoginSessions, rate_limiter: RateLimiter) -> None:
    """Count the request for its login session and for its user. A problem of 401 when the login session has ended."""
    rate_limiter.check("request", claims.login_session_id)
    if not login_sessions.is_open(claims.login_session_id):
        raise Problem(401, "signed-out", "This sign-in is over; sign in again.", headers={"WWW-Authenticate": "Bearer"})
    # counted last: what is sent with a stolen token of an ended session is not its owner's
    rate_limiter.check("request", claims.user_id)


CurrentUser = Annotated[AccessTokenClaims, Depends(get_current_user)]
"""Whoever sends a valid access token: reads, changes and deletes what is theirs."""


def get_media_user(
    request: Request,
    tokens: TokensDep,
    login_sessions: LoginSessionsDep,
    rate_limiter: RateLimiterDep,
    audit_log: AuditLogDep,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
    photoflux_media: Annotated[str | None, Cookie()] = None,
) -> AccessTokenClaims:
    """The user of the access token, or of the cookie that `<img>` elements load media with."""
    if credentials is not None or photoflux_media is None:
        return get_current_user(request, tokens, login_sessions, rate_limiter, audit_log, credentials)
    current_user = tokens.verify_media(photoflux_media)
    request.state.actor = audit_log.pseudonym(current_user.user_id)
    _count(current_user, login_sessions, rate_limiter)
    return current_user


async def get_idempotency_guard(
    request: Request,
    keyring: KeyringDep,
    current_user: CurrentUser,
    idempotency_key: Annotated[str | None, Header(min_length=1, max_length=200, description=KEY_DESCRIPTION)] = None,
) -> IdempotencyGuard:
    """The guard of this request's `Idempotency-Key`."""
    return await idempotency_guard(request, current_user.user_id, idempotency_key, keyring)


IdempotencyDep = Annotated[IdempotencyGuard, Depends(get_idempotency_guard)]


def get_metered_user(rate_limiter: RateLimiterDep, current_user: CurrentUser) -> AccessTokenClaims:
    """The current user, counted for the rate `work` too."""
    rate_limiter.check("work", current_user.user_id)
    return current_user


def _require_role(role: str) -> Any:
    """A dependency on a user with this role. A problem of 403 for others."""

    def get_user_with_role(current_user: CurrentUser) -> AccessTokenClaims:
        if current_user.role != role:
            raise Problem(403, "forbidden", f"This is for people with the role '{role}'.")
        return current_user

    return get_user_with_role


Operator = Annotated[AccessTokenClaims, Depends(_require_role("operator"))]
"""Answers complaints and sign-offs, and sees nobody's photos."""
Auditor = Annotated[AccessTokenClaims, Depends(_require_role("auditor"))]
"""Reads the audit log and checks its chain."""
MeteredUser = Annotated[AccessTokenClaims, Depends(get_metered_user)]
"""As `CurrentUser`, for uploads and whatever starts work."""
MediaUser = Annotated[AccessTokenClaims, Depends(get_media_user)]
"""Loads their own images, thumbnails, reports and exports, by token or by cookie."""
Row = TypeVar("Row", bound=Base)


def owned(
    session: Session, kind: type[Row], row_id: str, current_user: AccessTokenClaims, *, lock: bool = False
) -> Row:
    """A row of the current user's. A problem of 404 for one that does not exist or is somebody else's: both must look the same."""
    row = session.get(kind, row_id, with_for_update=lock)
    if row is None or row.user_id != current_user.user_id:  # type: ignore[attr-defined]
        raise Problem(404, "not-found", f"There is no such {kind.__name__.lower()} here.")
    return row
