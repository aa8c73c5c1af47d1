"""Pictures: asking for them, looking at what came of it, saying what one thinks of them."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated

from fastapi import Query, Request
from sqlalchemy import func, select
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from api.deps import Caller, Maker, OnceDep, Service, ServiceDep, owned
from api.images.prompt_rules import Unsafe, check_prompt
from api.images.rendering import checked_size
from api.privacy import consents
from api.privacy.erasure import Gone
from api.records.db import ACTIVE, Feedback, Generation, Picture, Run, Subject, new_id, prompt_label
from api.schemas import (
    FeedbackAsked,
    GenerateAsked,
    GenerationFailure,
    Id,
    ImageShown,
    Listed,
    ResultShown,
    failure,
    utc,
)
from api.training.photo_sets import Compared
from api.transport.concurrency import is_ending, is_gone
from api.transport.paging import PageDep
from api.transport.problems import BODY, SIGNED_IN, Problem, answers
from api.transport.quotas import check_storage
from api.transport.routing import make_router
from photoflux.vault.sealed import Label, seal_bytes, unseal_bytes

router = make_router(prefix="/api", tags=["pictures"], responses=answers(*SIGNED_IN, 422))
WAIT_S, LOOK_S, LOOKED_S = 30, 0.25, 1.0
"""How long an answer is held back at most; how often it is looked for at first, and after ten seconds."""


@router.post("/generate", operation_id="generate", status_code=202, responses=answers(*BODY, 403, 404, 409))
def generate(asked: GenerateAsked, service: ServiceDep, caller: Maker, once: OnceDep) -> ResultShown:
    """Draw pictures of a subject. One without a model is fine-tuned first, and drawn when the model is ready."""
    checked_size(asked.size)

    def created(known: Compared) -> ResultShown:
        with service.records.writing_for(caller.user_id) as session:
            if answered := once.answered(session, ResultShown):
                return answered
            subject = owned(session, Subject, asked.subject, caller, lock=True)
            consents.required(session, caller.user_id, person=subject.depicts != consents.NOBODY)
            _check(asked, subject)
            _check_quota(session, service, caller.user_id)
            check_storage(session, caller.user_id, limit=service.settings.stored_bytes_max)
            row = _new(session, service, subject, asked, known)
            service.journal.note(session, caller.user_id, "generation.created", row.id)
            return once.keep(session, shown(session, service, row), status=202)

    return service.album.apart(created)


def _check(asked: GenerateAsked, subject: Subject) -> None:
    """A problem of 422 for a prompt that is not drawn. What was asked for is not repeated, since logs read answers."""
    try:
        check_prompt(asked.prompt, person=subject.depicts != consents.NOBODY)
    except Unsafe as error:
        raise Problem(422, "unsafe-prompt", str(error)) from error


def _check_quota(session: Session, service: Service, user_id: str) -> None:
    waiting = select(func.count()).select_from(Generation)
    waiting = waiting.where(Generation.user_id == user_id, Generation.state.in_(ACTIVE))
    if (session.scalar(waiting) or 0) >= service.settings.generations_waiting:
        raise Problem(
            429, "quota", "So many of your pictures are waiting already; ask again when some are drawn.",
            headers={"Retry-After": "5"},
        )  # fmt: skip


def _new(session: Session, service: Service, subject: Subject, asked: GenerateAsked, known: Compared) -> Generation:
    """Record a generation and put it in line, or behind the run that makes its model. Raises NotCompared."""
    row = Generation(
        id=new_id(), user_id=subject.user_id, subject_id=subject.id, model_id=subject.champion_id, n=asked.n, seed=asked.seed,
        size=asked.size, format=asked.format, style=asked.style,
    )  # fmt: skip
    row.prompt = seal_bytes(asked.prompt.encode(), label=prompt_label(row), keyring=service.keyring)
    if row.model_id is None:
        active = session.scalar(
            select(Run).where(Run.subject_id == subject.id, Run.state.in_(ACTIVE)).with_for_update()
        )  # one that ends just now has looked for who waits for it before
        row.run_id = (active or service.run_starter.begin(session, subject, {}, known)).id
    session.add(row)
    session.flush()
    if row.run_id is None:
        service.line.put_generation(session, row)
    return row


@router.get("/results", operation_id="listResults")
def list_results(
    service: ServiceDep, caller: Caller, page: PageDep, subject: Annotated[Id | None, Query()] = None
) -> Listed[ResultShown]:
    """What you asked for, of one subject or of all."""
    query = select(Generation).where(Generation.user_id == caller.user_id)
    with service.records.reading() as session:
        rows, after = page.rows(
            session, query.where(Generation.subject_id == subject) if subject else query, Generation
        )
        return Listed(items=[shown(session, service, row) for row in rows], next=after)


@router.get("/results/{result_id}", operation_id="getResult", responses=answers(404))
async def get_result(
    request: Request,
    result_id: Id,
    service: ServiceDep,
    caller: Caller,
    wait: Annotated[int, Query(ge=0, le=WAIT_S)] = 0,
) -> ResultShown:
    """One generation with its pictures. `wait`: seconds to hold the answer back for until they are drawn.

    So many at a time may be held back; more are answered with 429.
    """
    found = await run_in_threadpool(_result, result_id, service, caller)
    if found.finished or not wait:
        return found
    since = time.monotonic()
    with service.held.hold("poll", caller.user_id):
        while not found.finished and (waited := time.monotonic() - since) < wait:
            if is_ending(request) or await is_gone(request):
                break
            # a tenth of what was waited already is hardly noticed, and so many looks less are taken
            await asyncio.sleep(min(max(LOOK_S, waited / 10), LOOKED_S, wait - waited))
            found = await service.held.look(_still, result_id, service, caller)
    return found


def _still(result_id: Id, service: Service, caller: Caller) -> ResultShown:
    """A generation for who waits for it. A problem of 401 when they have signed out, and of 404 when it was deleted."""
    if not service.sign_ins.is_open(caller.sign_in_id):
        raise Problem(401, "signed-out", "This sign-in is over; sign in again.", headers={"WWW-Authenticate": "Bearer"})
    return _result(result_id, service, caller)


def _result(result_id: Id, service: Service, caller: Caller) -> ResultShown:
    with service.records.reading() as session:
        return shown(session, service, owned(session, Generation, result_id, caller))


@router.delete("/results/{result_id}", operation_id="deleteResult", status_code=204, responses=answers(404))
def delete_result(result_id: Id, service: ServiceDep, caller: Caller) -> None:
    """Delete a generation with its prompt and pictures; one under way is given up."""
    with service.records.writing_for(caller.user_id) as session:
        row = owned(session, Generation, result_id, caller, lock=True)
        session.delete(row)
        service.journal.note(session, caller.user_id, "generation.deleted", row.id)
    gone = Gone(caller.user_id)
    gone.add("picture", f"{result_id}.")
    gone.clear(service.objects)


@router.put(
    "/results/{result_id}/feedback", operation_id="giveFeedback", status_code=204, responses=answers(*BODY, 404)
)
def give_feedback(result_id: Id, asked: FeedbackAsked, service: ServiceDep, caller: Caller) -> None:
    """Say what you think of the pictures; said again, it replaces what was said before."""
    with service.records.writing_for(caller.user_id) as session:
        row = owned(session, Generation, result_id, caller, lock=True)
        feedback = session.scalar(select(Feedback).where(Feedback.generation_id == row.id))
        if feedback is None:
            feedback = Feedback(id=new_id(), user_id=row.user_id, generation_id=row.id, rating=asked.rating)
            session.add(feedback)
        feedback.rating, feedback.reason = asked.rating, asked.reason
        label = Label(row.user_id, "feedback", feedback.id)
        feedback.text = asked.text and seal_bytes(asked.text.encode(), label=label, keyring=service.keyring)  # type: ignore[assignment]


def shown(session: Session, service: Service, row: Generation) -> ResultShown:
    """A generation for its owner."""
    pictures = session.scalars(select(Picture).where(Picture.generation_id == row.id).order_by(Picture.position))
    prompt = unseal_bytes(row.prompt, label=prompt_label(row), keyring=service.keyring).decode()
    images = [
        ImageShown(position=p.position, seed=p.seed, sha256=p.sha256, url=f"/api/media/pictures/{row.id}.{p.position}")
        for p in pictures
    ]
    return ResultShown(
        id=row.id, subject=row.subject_id, state=row.state, prompt=prompt, n=row.n, seed=row.seed, size=row.size,  # type: ignore[arg-type]
        format=row.format, style=row.style, model=row.model_id, run=row.run_id, images=images,
        error=failure(GenerationFailure, row.error_code, row.error), created=utc(row.created_ms), finished=utc(row.finished_ms),
    )  # fmt: skip
