"""Runs: fine-tuning a subject, watching it, ending it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

from fastapi import Depends, Query, Request
from fastapi.sse import EventSourceResponse, ServerSentEvent
from sqlalchemy import select
from sqlalchemy.orm import Session

from api.accounts.login_sessions import SignIns
from api.accounts.tokens import Bearer
from api.deps import (
    Caller,
    CollectionDep,
    HeldDep,
    JournalDep,
    Maker,
    OnceDep,
    RecordsDep,
    RunStarterDep,
    SignInsDep,
    owned,
)
from api.records.database import Records
from api.records.outcomes import cancel_run as end_early
from api.records.tables import ACTIVE, Model, Run, Subject
from api.schemas import Id, Listed, RunAsked, RunFailure, RunShown, StepShown, failure, utc
from api.training.photo_sets import Comparisons
from api.transport.concurrency import is_ending
from api.transport.paging import PageDep
from api.transport.problems import BODY, SIGNED_IN, answers
from api.transport.routing import make_router

router = make_router(prefix="/api/runs", tags=["runs"], responses=answers(*SIGNED_IN, 422))
EVENT_S, EVENTS_S = 0.5, 3600.0


def _event(names: tuple[str, ...], data: dict[str, Any]) -> dict[str, Any]:
    """How events of a kind are described: their `data` is JSON."""
    said = {"type": "string", "contentMediaType": "application/json", "contentSchema": data}
    return {
        "type": "object", "required": ["event", "data"],
        "properties": {"event": {"type": "string", "enum": list(names)}, "data": said},
    }  # fmt: skip


_RUN = {"$ref": f"#/components/schemas/{RunShown.__name__}"}
_ID = {"type": "object", "required": ["id"], "properties": {"id": {"type": "string"}}}
EVENTS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "events until the run has ended, for an hour at most",
        "content": {"text/event-stream": {"itemSchema": {
            "oneOf": [_event(("run", "ended"), _RUN), _event(("deleted", "signed-out"), _ID)],
        }}},
    }
}  # fmt: skip


@router.post("", operation_id="createRun", status_code=202, responses=answers(*BODY, 403, 404, 409))
def create_run(
    asked: RunAsked,
    records: RecordsDep,
    collection: CollectionDep,
    run_starter: RunStarterDep,
    caller: Maker,
    once: OnceDep,
) -> RunShown:
    """Fine-tune a subject on the photos that it has now. Answers at once, with an estimate of time and cost."""

    def created(known: Comparisons) -> RunShown:
        with records.writing_for(caller.user_id) as session:
            if answered := once.answered(session, RunShown):
                return answered
            subject = owned(session, Subject, asked.subject, caller, lock=True)
            run = run_starter.begin(session, subject, asked.params, known)
            return once.keep(session, shown(session, run), status=202)

    return collection.with_comparisons(created)


@router.get("", operation_id="listRuns")
def list_runs(
    records: RecordsDep, caller: Caller, page: PageDep, subject: Annotated[Id | None, Query()] = None
) -> Listed[RunShown]:
    """Your runs, of one subject or of all."""
    query = select(Run).where(Run.user_id == caller.user_id)
    with records.reading() as session:
        rows, after = page.rows(session, query.where(Run.subject_id == subject) if subject else query, Run)
        return Listed(items=[shown(session, row) for row in rows], next=after)


@router.get("/{run_id}", operation_id="getRun", responses=answers(404))
def get_run(run_id: Id, records: RecordsDep, caller: Caller) -> RunShown:
    """One run with its steps."""
    with records.reading() as session:
        return shown(session, owned(session, Run, run_id, caller))


@router.post("/{run_id}/cancel", operation_id="cancelRun", status_code=202, responses=answers(404, 413))
def cancel_run(run_id: Id, records: RecordsDep, journal: JournalDep, caller: Caller) -> RunShown:
    """End a run; one that has ended stays as it is."""
    with records.writing_for(caller.user_id) as session:
        run = owned(session, Run, run_id, caller, lock=True)
        if run.state in ACTIVE and not run.cancel_ms:  # asked for twice, it is cancelled once
            journal.note(session, caller.user_id, "run.cancelled", run.id)
        end_early(session, run, journal)
        return shown(session, run)


async def _held_stream(held: HeldDep, caller: Caller) -> AsyncIterator[None]:
    """Counts an event stream until it ends."""
    with held.hold("stream", caller.user_id):
        yield


@router.get(
    "/{run_id}/events",
    operation_id="watchRun",
    response_class=EventSourceResponse,
    dependencies=[Depends(_held_stream)],
    responses=EVENTS | answers(404),
)
async def watch_run(
    run_id: Id,
    request: Request,
    sign_ins: SignInsDep,
    records: RecordsDep,
    held: HeldDep,
    caller: Caller,
    first: Annotated[RunShown, Depends(get_run)],
) -> AsyncIterator[ServerSentEvent]:
    """The run whenever it has changed, as server-sent events of the kind `run`.

    The last one is `ended`, `deleted` when the run was deleted meanwhile, or `signed-out` when the sign-in is over.
    """
    now, told = first, None
    for _ in range(round(EVENTS_S / EVENT_S)):
        if now != told:
            told = now
            yield ServerSentEvent(data=now, event="ended" if now.finished else "run")
        if now.finished or is_ending(request):
            return
        await asyncio.sleep(EVENT_S)
        found = await held.look(_still, sign_ins, records, caller, run_id)
        if isinstance(found, str):
            yield ServerSentEvent(data={"id": run_id}, event=found)  # without data browsers would not hear of it
            return
        now = found


def _still(
    sign_ins: SignIns, records: Records, caller: Bearer, run_id: str
) -> RunShown | Literal["deleted", "signed-out"]:
    """The run as it is now, or why nothing more is told of it."""
    if not sign_ins.is_open(caller.sign_in_id):
        return "signed-out"
    with records.reading() as session:
        run = session.get(Run, run_id)
        return shown(session, run) if run is not None and run.user_id == caller.user_id else "deleted"


def shown(session: Session, run: Run) -> RunShown:
    """A run for its owner."""
    model = session.scalar(select(Model.id).where(Model.run_id == run.id))
    return RunShown(
        id=run.id, subject=run.subject_id, state=run.state, steps=[StepShown(**step) for step in run.steps or []],  # type: ignore[arg-type]
        error=failure(RunFailure, run.error_code, run.error), estimate=run.estimate, actual=run.actual, model=model,
        created=utc(run.created_ms), finished=utc(run.finished_ms),
    )  # fmt: skip
