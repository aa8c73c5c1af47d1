"""Pictures: asking for them, looking at what came of it, saying what one thinks of them."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated

from fastapi import Query, Request
from sqlalchemy import select
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from api.accounts.login_sessions import SignIns
from api.deps import (
    Caller,
    CollectionDep,
    GenerationStarterDep,
    HeldDep,
    JournalDep,
    KeyringDep,
    Maker,
    ObjectsDep,
    OnceDep,
    RecordsDep,
    SignInsDep,
    owned,
)
from api.images.rendering import checked_size
from api.privacy.erasure import Gone
from api.records.database import Records
from api.records.tables import Feedback, GeneratedImage, Generation, Subject, new_id, prompt_label
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
from api.training.photo_sets import Comparisons
from api.transport.concurrency import is_ending, is_gone
from api.transport.paging import PageDep
from api.transport.problems import BODY, SIGNED_IN, Problem, answers
from api.transport.routing import make_router
from photoflux.vault.keyring import Keyring
from photoflux.vault.sealed import Label, seal_bytes, unseal_bytes

router = make_router(prefix="/api", tags=["images"], responses=answers(*SIGNED_IN, 422))
WAIT_S, LOOK_S, LOOKED_S = 30, 0.25, 1.0
"""How long an answer is held back at most; how often it is looked for at first, and after ten seconds."""


@router.post("/generate", operation_id="generate", status_code=202, responses=answers(*BODY, 403, 404, 409))
def generate(
    asked: GenerateAsked,
    records: RecordsDep,
    collection: CollectionDep,
    keyring: KeyringDep,
    starter: GenerationStarterDep,
    caller: Maker,
    once: OnceDep,
) -> ResultShown:
    """Draw pictures of a subject. One without a model is fine-tuned first, and drawn when the model is ready."""
    checked_size(asked.size)

    def created(known: Comparisons) -> ResultShown:
        with records.writing_for(caller.user_id) as session:
            if answered := once.answered(session, ResultShown):
                return answered
            subject = owned(session, Subject, asked.subject, caller, lock=True)
            row = starter.begin(session, subject, asked, known)
            return once.keep(session, shown(session, keyring, row), status=202)

    return collection.with_comparisons(created)


@router.get("/results", operation_id="listResults")
def list_results(
    records: RecordsDep,
    keyring: KeyringDep,
    caller: Caller,
    page: PageDep,
    subject: Annotated[Id | None, Query()] = None,
) -> Listed[ResultShown]:
    """What you asked for, of one subject or of all."""
    query = select(Generation).where(Generation.user_id == caller.user_id)
    with records.reading() as session:
        rows, after = page.rows(
            session, query.where(Generation.subject_id == subject) if subject else query, Generation
        )
        return Listed(items=[shown(session, keyring, row) for row in rows], next=after)


@router.get("/results/{result_id}", operation_id="getResult", responses=answers(404))
async def get_result(
    request: Request,
    result_id: Id,
    sign_ins: SignInsDep,
    records: RecordsDep,
    keyring: KeyringDep,
    held: HeldDep,
    caller: Caller,
    wait: Annotated[int, Query(ge=0, le=WAIT_S)] = 0,
) -> ResultShown:
    """One generation with its pictures. `wait`: seconds to hold the answer back for until they are drawn.

    So many at a time may be held back; more are answered with 429.
    """
    found = await run_in_threadpool(_result, result_id, records, keyring, caller)
    if found.finished or not wait:
        return found
    since = time.monotonic()
    with held.hold("poll", caller.user_id):
        while not found.finished and (waited := time.monotonic() - since) < wait:
            if is_ending(request) or await is_gone(request):
                break
            # a tenth of what was waited already is hardly noticed, and so many looks less are taken
            await asyncio.sleep(min(max(LOOK_S, waited / 10), LOOKED_S, wait - waited))
            found = await held.look(_still, result_id, sign_ins, records, keyring, caller)
    return found


def _still(result_id: Id, sign_ins: SignIns, records: Records, keyring: Keyring, caller: Caller) -> ResultShown:
    """A generation for who waits for it. A problem of 401 when they have signed out, and of 404 when it was deleted."""
    if not sign_ins.is_open(caller.sign_in_id):
        raise Problem(401, "signed-out", "This sign-in is over; sign in again.", headers={"WWW-Authenticate": "Bearer"})
    return _result(result_id, records, keyring, caller)


def _result(result_id: Id, records: Records, keyring: Keyring, caller: Caller) -> ResultShown:
    with records.reading() as session:
        return shown(session, keyring, owned(session, Generation, result_id, caller))


@router.delete("/results/{result_id}", operation_id="deleteResult", status_code=204, responses=answers(404))
def delete_result(result_id: Id, records: RecordsDep, objects: ObjectsDep, journal: JournalDep, caller: Caller) -> None:
    """Delete a generation with its prompt and pictures; one under way is given up."""
    with records.writing_for(caller.user_id) as session:
        row = owned(session, Generation, result_id, caller, lock=True)
        session.delete(row)
        journal.note(session, caller.user_id, "generation.deleted", row.id)
    gone = Gone(caller.user_id)
    gone.add("image", f"{result_id}.")
    gone.clear(objects)


@router.put(
    "/results/{result_id}/feedback", operation_id="giveFeedback", status_code=204, responses=answers(*BODY, 404)
)
def give_feedback(
    result_id: Id, asked: FeedbackAsked, records: RecordsDep, keyring: KeyringDep, caller: Caller
) -> None:
    """Say what you think of the pictures; said again, it replaces what was said before."""
    with records.writing_for(caller.user_id) as session:
        row = owned(session, Generation, result_id, caller, lock=True)
        feedback = session.scalar(select(Feedback).where(Feedback.generation_id == row.id))
        if feedback is None:
            feedback = Feedback(id=new_id(), user_id=row.user_id, generation_id=row.id, rating=asked.rating)
            session.add(feedback)
        feedback.rating, feedback.reason = asked.rating, asked.reason
        label = Label(row.user_id, "feedback", feedback.id)
        feedback.text = asked.text and seal_bytes(asked.text.encode(), label=label, keyring=keyring)  # type: ignore[assignment]


def shown(session: Session, keyring: Keyring, row: Generation) -> ResultShown:
    """A generation for its owner."""
    rows = session.scalars(
        select(GeneratedImage).where(GeneratedImage.generation_id == row.id).order_by(GeneratedImage.position)
    )
    prompt = unseal_bytes(row.prompt, label=prompt_label(row), keyring=keyring).decode()
    images = [
        ImageShown(position=p.position, seed=p.seed, sha256=p.sha256, url=f"/api/media/images/{row.id}.{p.position}")
        for p in rows
    ]
    return ResultShown(
        id=row.id, subject=row.subject_id, state=row.state, prompt=prompt, n=row.n, seed=row.seed, size=row.size,  # type: ignore[arg-type]
        format=row.format, style=row.style, model=row.model_id, run=row.run_id, images=images,
        error=failure(GenerationFailure, row.error_code, row.error), created=utc(row.created_ms), finished=utc(row.finished_ms),
    )  # fmt: skip
