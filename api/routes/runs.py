"""Runs: fine-tuning a subject, watching it, ending it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

from fastapi import Depends, Query, Request
from fastapi.sse import EventSourceResponse, ServerSentEvent
from sqlalchemy import select
from sqlalchemy.orm import Session

from api.accounts.login_sessions import LoginSessions
from api.accounts.tokens import AccessTokenClaims
from api.deps import (
    AuditLogDep,
    CollectionDep,
    CurrentUser,
    HeldRequestsDep,
    IdempotencyDep,
    LoginSessionsDep,
    MeteredUser,
    RecordsDep,
    RunStarterDep,
    owned,
)
from api.records.database import Records
from api.records.outcomes import cancel_run as cancel
from api.records.tables import ACTIVE, Model, Run, Subject
from api.schemas import Id, Page, RunCreate, RunFailure, RunPublic, StepPublic, failure, utc
from api.training.photo_sets import Comparisons
from api.transport.concurrency import is_shutting_down
from api.transport.paging import PageQueryDep
from api.transport.problems import BODY, SIGNED_IN, problem_responses
from api.transport.routing import make_router

router = make_router(prefix="/api/runs", tags=["runs"], responses=problem_responses(*SIGNED_IN, 422))
EVENT_S, EVENTS_S = 0.5, 3600.0


def _event(names: tuple[str, ...], data: dict[str, Any]) -> dict[str, Any]:
    """The OpenAPI schema of events of these names, whose `data` is JSON."""
    schema = {"type": "string", "contentMediaType": "application/json", "contentSchema": data}
    return {
        "type": "object",
        "required": ["event", "data"],
        "properties": {"event": {"type": "string", "enum": list(names)}, "data": schema},
    }


_RUN = {"$ref": f"#/components/schemas/{RunPublic.__name__}"}
_ID = {"type": "object", "required": ["id"], "properties": {"id": {"type": "string"}}}
EVENTS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "events until the run has ended, for an hour at most",
        "content": {"text/event-stream": {"itemSchema": {
            "oneOf": [_event(("run", "ended"), _RUN), _event(("deleted", "signed-out"), _ID)],
        }}},
    }
}  # fmt: skip


@router.post("", operation_id="createRun", status_code=202, responses=problem_responses(*BODY, 403, 404, 409))
def create_run(
    body: RunCreate,
    records: RecordsDep,
    collection: CollectionDep,
    run_starter: RunStarterDep,
    current_user: MeteredUser,
    idempotency: IdempotencyDep,
) -> RunPublic:
    """Fine-tune a subject on the photos that it has now. Answers at once, with an estimate of time and cost."""

    def created(known: Comparisons) -> RunPublic:
        with records.writing_for(current_user.user_id) as session:
            if stored := idempotency.replay(session, RunPublic):
                return stored
            subject = owned(session, Subject, body.subject, current_user, lock=True)
            run = run_starter.begin(session, subject, body.params, known)
            return idempotency.store(session, to_public(session, run), status=202)

    return collection.with_comparisons(created)


@router.get("", operation_id="listRuns")
def list_runs(
    records: RecordsDep, current_user: CurrentUser, page: PageQueryDep, subject: Annotated[Id | None, Query()] = None
) -> Page[RunPublic]:
    """Your runs, of one subject or of all."""
    query = select(Run).where(Run.user_id == current_user.user_id)
    with records.reading() as session:
        rows, after = page.rows(session, query.where(Run.subject_id == subject) if subject else query, Run)
        return Page(items=[to_public(session, row) for row in rows], next=after)


@router.get("/{run_id}", operation_id="getRun", responses=problem_responses(404))
def get_run(run_id: Id, records: RecordsDep, current_user: CurrentUser) -> RunPublic:
    """One run with its steps."""
    with records.reading() as session:
        return to_public(session, owned(session, Run, run_id, current_user))


@router.post("/{run_id}/cancel", operation_id="cancelRun", status_code=202, responses=problem_responses(404, 413))
def cancel_run(run_id: Id, records: RecordsDep, audit_log: AuditLogDep, current_user: CurrentUser) -> RunPublic:
    """End a run; one that has ended stays as it is."""
    with records.writing_for(current_user.user_id) as session:
        run = owned(session, Run, run_id, current_user, lock=True)
        if run.state in ACTIVE and not run.cancel_requested_ms:  # asked for twice, it is cancelled once
            audit_log.record(session, current_user.user_id, "run.cancelled", run.id)
        cancel(session, run, audit_log)
        return to_public(session, run)


async def _count_stream(held_requests: HeldRequestsDep, current_user: CurrentUser) -> AsyncIterator[None]:
    """Counts an event stream until it ends."""
    with held_requests.hold("stream", current_user.user_id):
        yield


@router.get(
    "/{run_id}/events",
    operation_id="watchRun",
    response_class=EventSourceResponse,
    dependencies=[Depends(_count_stream)],
    responses=EVENTS | problem_responses(404),
)
async def watch_run(
    run_id: Id,
    request: Request,
    login_sessions: LoginSessionsDep,
    records: RecordsDep,
    held_requests: HeldRequestsDep,
    current_user: CurrentUser,
    first: Annotated[RunPublic, Depends(get_run)],
) -> AsyncIterator[ServerSentEvent]:
    """The run whenever it has changed, as server-sent events of the kind `run`.

    The last one is `ended`, `deleted` when the run was deleted meanwhile, or `signed-out` when the sign-in is over.
    """
    now, last_sent = first, None
    for _ in range(round(EVENTS_S / EVENT_S)):
        if now != last_sent:
            last_sent = now
            yield ServerSentEvent(data=now, event="ended" if now.finished else "run")
        if now.finished or is_shutting_down(request):
            return
        await asyncio.sleep(EVENT_S)
        found = await held_requests.run(_reload, login_sessions, records, current_user, run_id)
        if isinstance(found, str):
            yield ServerSentEvent(data={"id": run_id}, event=found)  # browsers drop events without data
            return
        now = found


def _reload(
    login_sessions: LoginSessions, records: Records, current_user: AccessTokenClaims, run_id: str
) -> RunPublic | Literal["deleted", "signed-out"]:
    """The run as it is now, or the event that ends its stream."""
    if not login_sessions.is_open(current_user.login_session_id):
        return "signed-out"
    with records.reading() as session:
        run = session.get(Run, run_id)
        return to_public(session, run) if run is not None and run.user_id == current_user.user_id else "deleted"


def to_public(session: Session, run: Run) -> RunPublic:
    """A run for its owner."""
    model = session.scalar(select(Model.id).where(Model.run_id == run.id))
    return RunPublic(
        id=run.id,
        subject=run.subject_id,
        state=run.state,  # type: ignore[arg-type]
        steps=[StepPublic(**step) for step in run.steps or []],
        error=failure(RunFailure, run.error_code, run.error),
        estimate=run.estimate,
        actual=run.actual,
        model=model,
        created=utc(run.created_ms),
        finished=utc(run.finished_ms),
    )
