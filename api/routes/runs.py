"""Runs: fine-tuning a subject, watching it, ending it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

from fastapi import Depends, Query, Request
from fastapi.sse import EventSourceResponse, ServerSentEvent
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from api import consents
from api.db import ACTIVE, Model, Run, Subject, new_id
from api.deps import Caller, Maker, Service, ServiceDep, owned
from api.fine_tuning import cancel_run as end_early
from api.fine_tuning import estimate
from api.held import is_ending
from api.idempotency import OnceDep
from api.paging import PageDep
from api.problems import BODY, SIGNED_IN, Problem, answers
from api.quotas import check_storage, count_start
from api.routing import make_router
from api.schemas import Id, Listed, RunAsked, RunFailure, RunShown, StepShown, failure, utc
from api.subjects import Compared
from api.tokens import Bearer
from photoflux.photos.sets import write_set
from pipelines.parameters import resolve

router = make_router(prefix="/api/runs", tags=["runs"], responses=answers(*SIGNED_IN, 422))
TUNABLE = (
    "finetune_steps", "finetune_rank", "finetune_alpha", "finetune_lr", "finetune_preservation", "augment_variants",
    "evaluate_profile", "audit_profile",
)  # fmt: skip
"""Pipeline parameters that a person may change: none that reads a path or loosens the gate."""
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
def create_run(asked: RunAsked, service: ServiceDep, caller: Maker, once: OnceDep) -> RunShown:
    """Fine-tune a subject on the photos that it has now. Answers at once, with an estimate of time and cost."""

    def created(known: Compared) -> RunShown:
        with service.records.writing_for(caller.user_id) as session:
            if answered := once.answered(session, RunShown):
                return answered
            subject = owned(session, Subject, asked.subject, caller, lock=True)
            run = begin_run(session, service, subject, asked.params, known)
            return once.keep(session, shown(session, run), status=202)

    return service.album.apart(created)


def begin_run(session: Session, service: Service, subject: Subject, changes: dict[str, Any], known: Compared) -> Run:
    """Record a run and put it in line. A problem where the photos, the parameters, a quota or another run stand against it.

    Raises NotCompared.
    """
    consents.required(session, subject.user_id, person=subject.depicts != consents.NOBODY)
    _check_quota(session, service, subject)
    run = Run(id=new_id(), user_id=subject.user_id, subject_id=subject.id, orchestrator=service.settings.orchestrator)
    photos = service.album.usable(session, subject, known)
    run.params = _params(service, subject, run.id, changes)
    run.estimate = estimate(session, run.params, price_per_hour=service.settings.price_per_hour)
    write_set(service.objects, subject.user_id, run.id, photos)
    session.add(run)
    try:
        session.flush()
    except IntegrityError as error:
        raise Problem(
            409, "run-active", "This subject is being fine-tuned already; wait for it, or cancel it."
        ) from error
    service.line.put_run(session, run)
    service.journal.note(session, subject.user_id, "run.created", run.id)
    return run


def _check_quota(session: Session, service: Service, subject: Subject) -> None:
    active = select(Run.id).where(Run.subject_id == subject.id, Run.state.in_(ACTIVE))
    if session.scalar(active):
        raise Problem(409, "run-active", "This subject is being fine-tuned already; wait for it, or cancel it.")
    check_storage(session, subject.user_id, limit=service.settings.stored_bytes_max)
    count_start(session, subject.user_id, "run", limit=service.settings.runs_a_day, what="runs")


def _params(service: Service, subject: Subject, run_id: str, changes: dict[str, Any]) -> dict[str, Any]:
    """Every parameter of the pipeline, checked as its steps will check them. Raises InputError."""
    if unknown := sorted(changes.keys() - set(TUNABLE)):
        raise Problem(422, "invalid", f"{unknown[0]}: cannot be changed here; what can are {', '.join(TUNABLE)}.")
    given = {
        "base": service.settings.base, **service.settings.run_defaults, **changes,
        "import_photos_source": f"blob:{run_id}", "import_photos_class_noun": subject.class_noun,
        "import_photos_trigger": subject.trigger, "import_photos_subject_id": subject.id,
        "import_photos_consent": "granted" if subject.depicts == "consenting_adult" else "own",
        "register_name": subject.id,
    }  # fmt: skip
    resolved = resolve(given)
    del resolved["key"]  # is the owner's, whoever asks
    return resolved


@router.get("", operation_id="listRuns")
def list_runs(
    service: ServiceDep, caller: Caller, page: PageDep, subject: Annotated[Id | None, Query()] = None
) -> Listed[RunShown]:
    """Your runs, of one subject or of all."""
    query = select(Run).where(Run.user_id == caller.user_id)
    with service.records.reading() as session:
        rows, after = page.rows(session, query.where(Run.subject_id == subject) if subject else query, Run)
        return Listed(items=[shown(session, row) for row in rows], next=after)


@router.get("/{run_id}", operation_id="getRun", responses=answers(404))
def get_run(run_id: Id, service: ServiceDep, caller: Caller) -> RunShown:
    """One run with its steps."""
    with service.records.reading() as session:
        return shown(session, owned(session, Run, run_id, caller))


@router.post("/{run_id}/cancel", operation_id="cancelRun", status_code=202, responses=answers(404, 413))
def cancel_run(run_id: Id, service: ServiceDep, caller: Caller) -> RunShown:
    """End a run; one that has ended stays as it is."""
    with service.records.writing_for(caller.user_id) as session:
        run = owned(session, Run, run_id, caller, lock=True)
        if run.state in ACTIVE and not run.cancel_ms:  # asked for twice, it is cancelled once
            service.journal.note(session, caller.user_id, "run.cancelled", run.id)
        end_early(session, run, service.journal)
        return shown(session, run)


async def _held_stream(service: ServiceDep, caller: Caller) -> AsyncIterator[None]:
    """Counts an event stream until it ends."""
    with service.held.hold("stream", caller.user_id):
        yield


@router.get(
    "/{run_id}/events",
    operation_id="watchRun",
    response_class=EventSourceResponse,
    dependencies=[Depends(_held_stream)],
    responses=EVENTS | answers(404),
)
async def watch_run(
    run_id: Id, request: Request, service: ServiceDep, caller: Caller, first: Annotated[RunShown, Depends(get_run)]
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
        found = await service.held.look(_still, service, caller, run_id)
        if isinstance(found, str):
            yield ServerSentEvent(data={"id": run_id}, event=found)  # without data browsers would not hear of it
            return
        now = found


def _still(service: Service, caller: Bearer, run_id: str) -> RunShown | Literal["deleted", "signed-out"]:
    """The run as it is now, or why nothing more is told of it."""
    if not service.sign_ins.is_open(caller.sign_in_id):
        return "signed-out"
    with service.records.reading() as session:
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
