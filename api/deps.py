"""What routes are given: the parts of the service that their signatures name, and who is asking."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from fastapi import Cookie, Depends, Header, Request
from fastapi.security import HTTPBearer
from fastapi.security.http import HTTPAuthorizationCredentials
from sqlalchemy.orm import Session

from api.accounts.login_sessions import SignIns
from api.accounts.openid_client import Identities
from api.accounts.tokens import Bearer, Tokens
from api.images.moderation import Moderator
from api.images.rendering import ImageRenderer
from api.jobs.generation_starter import GenerationStarter
from api.jobs.job_queue import JobQueue
from api.jobs.run_starter import RunStarter
from api.jobs.webhook_delivery import WebhookSubscriptions
from api.ops.health import Health
from api.records.audit_log import AuditHeads, Journal
from api.records.database import Records
from api.records.tables import Base
from api.settings import ApiSettings
from api.training.photo_intake import PhotoIntake
from api.training.photo_sets import PhotoCollection
from api.transport.concurrency import HeldRequests, Turns
from api.transport.idempotency import KEY, Once, once_of
from api.transport.problems import Problem
from api.transport.rate_limits import Limits
from photoflux.vault.keyring import Keyring
from photoflux.vault.objects import Objects


@dataclass(frozen=True)
class Service:
    """The parts, made once when the application starts. A route asks for those that it needs, by the types below."""

    settings: ApiSettings
    records: Records
    keyring: Keyring
    tokens: Tokens
    sign_ins: SignIns
    identities: Identities
    objects: Objects
    collection: PhotoCollection
    intake: PhotoIntake
    journal: Journal
    heads: AuditHeads
    queue: JobQueue
    run_starter: RunStarter
    generation_starter: GenerationStarter
    limits: Limits
    renderer: ImageRenderer
    moderator: Moderator
    subscriptions: WebhookSubscriptions
    health: Health
    held: HeldRequests
    looking_up: Turns
    """Look-ups of names that people give: somebody's name server may never answer, and a thread waits for it."""
    class_nouns: tuple[str, ...]
    trigger: str

    def close(self) -> None:
        """Let go of everything that was opened."""
        self.intake.close()
        self.renderer.close()
        self.queue.close()
        self.records.engine.dispose()


def _part(name: str) -> Any:
    """What gives a route one part of this application's service."""

    async def get_part(request: Request) -> Any:  # a coroutine: it needs no thread
        return getattr(request.app.state.service, name)

    return Depends(get_part)


SettingsDep = Annotated[ApiSettings, _part("settings")]
RecordsDep = Annotated[Records, _part("records")]
KeyringDep = Annotated[Keyring, _part("keyring")]
TokensDep = Annotated[Tokens, _part("tokens")]
SignInsDep = Annotated[SignIns, _part("sign_ins")]
IdentitiesDep = Annotated[Identities, _part("identities")]
ObjectsDep = Annotated[Objects, _part("objects")]
CollectionDep = Annotated[PhotoCollection, _part("collection")]
PhotoIntakeDep = Annotated[PhotoIntake, _part("intake")]
JournalDep = Annotated[Journal, _part("journal")]
HeadsDep = Annotated[AuditHeads, _part("heads")]
QueueDep = Annotated[JobQueue, _part("queue")]
RunStarterDep = Annotated[RunStarter, _part("run_starter")]
GenerationStarterDep = Annotated[GenerationStarter, _part("generation_starter")]
LimitsDep = Annotated[Limits, _part("limits")]
RendererDep = Annotated[ImageRenderer, _part("renderer")]
ModeratorDep = Annotated[Moderator, _part("moderator")]
SubscriptionsDep = Annotated[WebhookSubscriptions, _part("subscriptions")]
HealthDep = Annotated[Health, _part("health")]
HeldDep = Annotated[HeldRequests, _part("held")]
LookingUpDep = Annotated[Turns, _part("looking_up")]
ClassNounsDep = Annotated[tuple[str, ...], _part("class_nouns")]
TriggerDep = Annotated[str, _part("trigger")]
_bearer = HTTPBearer(auto_error=False, bearerFormat="JWT", description="an access token of POST /api/auth/refresh")


def get_caller(
    request: Request,
    tokens: TokensDep,
    sign_ins: SignInsDep,
    limits: LimitsDep,
    journal: JournalDep,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
) -> Bearer:
    """Who is asking. A problem of 401 without a good token, or with one whose sign-in is over."""
    if credentials is None:
        raise Problem(401, "unauthorized", "Sign in first.", headers={"WWW-Authenticate": "Bearer"})
    caller = tokens.bearer(credentials.credentials)
    request.state.actor = journal.pseudonym(caller.user_id)
    _count(caller, sign_ins, limits)
    return caller


def _count(bearer: Bearer, sign_ins: SignIns, limits: Limits) -> None:
    """Count a request for whom it is made. A problem of 401 where the sign-in is over: what a stolen token does is not its owner's."""
    limits.check("ask", bearer.sign_in_id)
    if not sign_ins.is_open(bearer.sign_in_id):
        raise Problem(401, "signed-out", "This sign-in is over; sign in again.", headers={"WWW-Authenticate": "Bearer"})
    limits.check("ask", bearer.user_id)


Caller = Annotated[Bearer, Depends(get_caller)]


def get_viewer(
    request: Request,
    tokens: TokensDep,
    sign_ins: SignInsDep,
    limits: LimitsDep,
    journal: JournalDep,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
    photoflux_media: Annotated[str | None, Cookie()] = None,
) -> Bearer:
    """Who looks at a picture: the caller, or the page that holds the cookie for pictures."""
    if credentials is not None or photoflux_media is None:
        return get_caller(request, tokens, sign_ins, limits, journal, credentials)
    viewer = tokens.viewer(photoflux_media)
    request.state.actor = journal.pseudonym(viewer.user_id)
    _count(viewer, sign_ins, limits)
    return viewer


async def get_once(
    request: Request,
    keyring: KeyringDep,
    caller: Caller,
    idempotency_key: Annotated[str | None, Header(min_length=1, max_length=200, description=KEY)] = None,
) -> Once:
    """The request by its own key."""
    return await once_of(request, caller.user_id, idempotency_key, keyring)


OnceDep = Annotated[Once, Depends(get_once)]


def get_maker(limits: LimitsDep, caller: Caller) -> Bearer:
    """Who has work done, counted as such."""
    limits.check("make", caller.user_id)
    return caller


def _having(role: str) -> Any:
    """A caller who has been given a role."""

    def get_one(caller: Caller) -> Bearer:
        if caller.role != role:
            raise Problem(403, "forbidden", f"This is for people with the role '{role}'.")
        return caller

    return get_one


Operator = Annotated[Bearer, Depends(_having("operator"))]
Auditor = Annotated[Bearer, Depends(_having("auditor"))]
Maker = Annotated[Bearer, Depends(get_maker)]
"""As `Caller`, for what costs more than an answer."""
Viewer = Annotated[Bearer, Depends(get_viewer)]
Row = TypeVar("Row", bound=Base)


def owned(session: Session, kind: type[Row], row_id: str, caller: Bearer, *, lock: bool = False) -> Row:
    """A row of the caller's. A problem of 404 for one that is not there, or is somebody else's: they must look the same."""
    row = session.get(kind, row_id, with_for_update=lock)
    if row is None or row.user_id != caller.user_id:  # type: ignore[attr-defined]
        raise Problem(404, "not-found", f"There is no such {kind.__name__.lower()} here.")
    return row
