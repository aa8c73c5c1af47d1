"""Pictures: asking for them, looking at what came of it, saying what one thinks of them."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated

from fastapi import Query, Request
from sqlalchemy import select
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from api.accounts.login_sessions import LoginSessions
from api.deps import (
    AuditLogDep,
    CollectionDep,
    CurrentUser,
    GenerationStarterDep,
    HeldRequestsDep,
    IdempotencyDep,
    KeyringDep,
    LoginSessionsDep,
    MeteredUser,
    ObjectsDep,
    RecordsDep,
    owned,
)
from api.images.rendering import checked_size
from api.privacy.erasure import DeletionPlan
from api.records.database import Records
from api.records.tables import Feedback, GeneratedImage, Generation, Subject, new_id, prompt_label
from api.schemas import (
    FeedbackCreate,
    GenerationCreate,
    GenerationFailure,
    GenerationPublic,
    Id,
    ImagePublic,
    Page,
    failure,
    utc,
)
from api.training.photo_sets import Comparisons
from api.transport.concurrency import is_disconnected, is_shutting_down
from api.transport.paging import PageQueryDep
from api.transport.problems import BODY, SIGNED_IN, Problem, problem_responses
from api.transport.routing import make_router
from photoflux.vault.keyring import Keyring
from photoflux.vault.sealed import Label, seal_bytes, unseal_bytes

router = make_router(prefix="/api", tags=["images"], responses=problem_responses(*SIGNED_IN, 422))
WAIT_S, POLL_INTERVAL_S, POLL_INTERVAL_MAX_S = 30, 0.25, 1.0
"""Longest wait for a result in seconds; seconds between two looks at first, and at most."""


@router.post("/generate", operation_id="generate", status_code=202, responses=problem_responses(*BODY, 403, 404, 409))
def generate(
    body: GenerationCreate,
    records: RecordsDep,
    collection: CollectionDep,
    keyring: KeyringDep,
    starter: GenerationStarterDep,
    current_user: MeteredUser,
    idempotency: IdempotencyDep,
) -> GenerationPublic:
    """Draw pictures of a subject. One without a model is fine-tuned first, and drawn when the model is ready."""
    checked_size(body.size)

    def created(known: Comparisons) -> GenerationPublic:
        with records.writing_for(current_user.user_id) as session:
            if stored := idempotency.replay(session, GenerationPublic):
                return stored
            subject = owned(session, Subject, body.subject, current_user, lock=True)
            row = starter.begin(session, subject, body, known)
            return idempotency.store(session, to_public(session, keyring, row), status=202)

    return collection.with_comparisons(created)


@router.get("/results", operation_id="listResults")
def list_results(
    records: RecordsDep,
    keyring: KeyringDep,
    current_user: CurrentUser,
    page: PageQueryDep,
    subject: Annotated[Id | None, Query()] = None,
) -> Page[GenerationPublic]:
    """What you asked for, of one subject or of all."""
    query = select(Generation).where(Generation.user_id == current_user.user_id)
    with records.reading() as session:
        rows, after = page.rows(
            session, query.where(Generation.subject_id == subject) if subject else query, Generation
        )
        return Page(items=[to_public(session, keyring, row) for row in rows], next=after)


@router.get("/results/{result_id}", operation_id="getResult", responses=problem_responses(404))
async def get_result(
    request: Request,
    result_id: Id,
    login_sessions: LoginSessionsDep,
    records: RecordsDep,
    keyring: KeyringDep,
    held_requests: HeldRequestsDep,
    current_user: CurrentUser,
    wait: Annotated[int, Query(ge=0, le=WAIT_S)] = 0,
) -> GenerationPublic:
    """One generation with its pictures. `wait`: seconds to hold the answer back for until they are drawn.

    So many at a time may be held back; more are answered with 429.
    """
    found = await run_in_threadpool(_result, result_id, records, keyring, current_user)
    if found.finished or not wait:
        return found
    since = time.monotonic()
    with held_requests.hold("poll", current_user.user_id):
        while not found.finished and (waited := time.monotonic() - since) < wait:
            if is_shutting_down(request) or await is_disconnected(request):
                break
            # a tenth of the wait so far is hardly noticed, and saves many looks
            await asyncio.sleep(min(max(POLL_INTERVAL_S, waited / 10), POLL_INTERVAL_MAX_S, wait - waited))
            found = await held_requests.run(_reload, result_id, login_sessions, records, keyring, current_user)
    return found


def _reload(
    result_id: Id, login_sessions: LoginSessions, records: Records, keyring: Keyring, current_user: CurrentUser
) -> GenerationPublic:
    """A generation that is waited for. A problem of 401 when its owner has signed out, and of 404 when it was deleted."""
    if not login_sessions.is_open(current_user.login_session_id):
        raise Problem(401, "signed-out", "This sign-in is over; sign in again.", headers={"WWW-Authenticate": "Bearer"})
    return _result(result_id, records, keyring, current_user)


def _result(result_id: Id, records: Records, keyring: Keyring, current_user: CurrentUser) -> GenerationPublic:
    with records.reading() as session:
        return to_public(session, keyring, owned(session, Generation, result_id, current_user))


@router.delete("/results/{result_id}", operation_id="deleteResult", status_code=204, responses=problem_responses(404))
def delete_result(
    result_id: Id, records: RecordsDep, objects: ObjectsDep, audit_log: AuditLogDep, current_user: CurrentUser
) -> None:
    """Delete a generation with its prompt and pictures; one under way is given up."""
    with records.writing_for(current_user.user_id) as session:
        row = owned(session, Generation, result_id, current_user, lock=True)
        session.delete(row)
        audit_log.record(session, current_user.user_id, "generation.deleted", row.id)
    plan = DeletionPlan(current_user.user_id)
    plan.add("image", f"{result_id}.")
    plan.delete_objects(objects)


@router.put(
    "/results/{result_id}/feedback",
    operation_id="giveFeedback",
    status_code=204,
    responses=problem_responses(*BODY, 404),
)
def give_feedback(
    result_id: Id, body: FeedbackCreate, records: RecordsDep, keyring: KeyringDep, current_user: CurrentUser
) -> None:
    """Say what you think of the pictures; said again, it replaces what was said before."""
    with records.writing_for(current_user.user_id) as session:
        row = owned(session, Generation, result_id, current_user, lock=True)
        feedback = session.scalar(select(Feedback).where(Feedback.generation_id == row.id))
        if feedback is None:
            feedback = Feedback(id=new_id(), user_id=row.user_id, generation_id=row.id, rating=body.rating)
            session.add(feedback)
        feedback.rating, feedback.reason = body.rating, body.reason
        label = Label(row.user_id, "feedback", feedback.id)
        feedback.text = body.text and seal_bytes(body.text.encode(), label=label, keyring=keyring)  # type: ignore[assignment]


def to_public(session: Session, keyring: Keyring, row: Generation) -> GenerationPublic:
    """A generation for its owner."""
    rows = session.scalars(
        select(GeneratedImage).where(GeneratedImage.generation_id == row.id).order_by(GeneratedImage.position)
    )
    prompt = unseal_bytes(row.prompt, label=prompt_label(row), keyring=keyring).decode()
    images = [
        ImagePublic(position=p.position, seed=p.seed, sha256=p.sha256, url=f"/api/media/images/{row.id}.{p.position}")
        for p in rows
    ]
    return GenerationPublic(
        id=row.id,
        subject=row.subject_id,
        state=row.state,  # type: ignore[arg-type]
        prompt=prompt,
        n=row.n,
        seed=row.seed,
        size=row.size,
        format=row.format,
        style=row.style,
        model=row.model_id,
        run=row.run_id,
        images=images,
        error=failure(GenerationFailure, row.error_code, row.error),
        created=utc(row.created_ms),
        finished=utc(row.finished_ms),
    )
