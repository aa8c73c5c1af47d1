"""Models: what a run made, how good it is, and which of them draws."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query
from sqlalchemy import select
from sqlalchemy.orm import Session

from api.deps import AuditLogDep, CurrentUser, RecordsDep, owned
from api.records.tables import Model, Subject
from api.schemas import Id, ModelPublic, Page, utc
from api.training.finetuning import REPORTS
from api.transport.paging import PageQueryDep
from api.transport.problems import SIGNED_IN, problem_responses
from api.transport.routing import make_router

router = make_router(prefix="/api/models", tags=["models"], responses=problem_responses(*SIGNED_IN, 422))


@router.get("", operation_id="listModels")
def list_models(
    records: RecordsDep, current_user: CurrentUser, page: PageQueryDep, subject: Annotated[Id | None, Query()] = None
) -> Page[ModelPublic]:
    """Your models, of one subject or of all."""
    query = select(Model).where(Model.user_id == current_user.user_id)
    with records.reading() as session:
        rows, after = page.rows(session, query.where(Model.subject_id == subject) if subject else query, Model)
        return Page(items=[to_public(session, row) for row in rows], next=after)


@router.get("/{model_id}", operation_id="getModel", responses=problem_responses(404))
def get_model(model_id: Id, records: RecordsDep, current_user: CurrentUser) -> ModelPublic:
    """One model with its measurements and reports."""
    with records.reading() as session:
        return to_public(session, owned(session, Model, model_id, current_user))


@router.post("/{model_id}/promote", operation_id="promoteModel", responses=problem_responses(404, 413))
def promote_model(model_id: Id, records: RecordsDep, audit_log: AuditLogDep, current_user: CurrentUser) -> ModelPublic:
    """Draw with this model from now on: a newer one, or an older one to roll back."""
    with records.writing_for(current_user.user_id) as session:
        model = owned(session, Model, model_id, current_user)
        subject = session.get_one(Subject, model.subject_id, with_for_update=True)
        # It may have been deleted before the subject was locked.
        model = owned(session, Model, model_id, current_user, lock=True)
        subject.champion_id = model.id
        audit_log.record(session, current_user.user_id, "model.promoted", model.id)
        session.flush()
        return to_public(session, model)


def to_public(session: Session, model: Model) -> ModelPublic:
    """A model for its owner."""
    champion = session.get_one(Subject, model.subject_id).champion_id == model.id
    return ModelPublic(
        id=model.id,
        subject=model.subject_id,
        run=model.run_id,
        number=model.number,
        verdict=model.verdict,
        champion=champion,
        metrics=model.metrics,
        adapter_sha256=model.adapter_sha256,
        reports={step: f"/api/media/reports/{model.run_id}/{step}" for step in REPORTS},
        card=f"/api/media/cards/{model.run_id}",
        created=utc(model.created_ms),
    )
