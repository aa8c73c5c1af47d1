"""Prompts while they are typed."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query
from pydantic import BaseModel
from sqlalchemy import select

from api.deps import CurrentUser, KeyringDep, RecordsDep, owned
from api.images.suggestions import suggest, templates
from api.records.tables import Generation, Subject, prompt_label
from api.schemas import Id
from api.transport.problems import SIGNED_IN, problem_responses
from api.transport.routing import make_router
from photoflux.vault.sealed import unseal_bytes

router = make_router(prefix="/api/prompts", tags=["images"], responses=problem_responses(*SIGNED_IN, 404, 422))
REMEMBERED = 50


class PromptSuggestions(BaseModel):
    prompts: list[str]


@router.get("/suggest", operation_id="suggestPrompts")
def suggest_prompts(
    records: RecordsDep,
    keyring: KeyringDep,
    current_user: CurrentUser,
    subject: Annotated[Id, Query(description="whom the prompts are for")],
    q: Annotated[str, Query(max_length=200, description="what was typed so far")] = "",
    limit: Annotated[int, Query(ge=1, le=20)] = 8,
) -> PromptSuggestions:
    """Prompts that begin like what was typed, or are like it: yours of late, and templates."""
    with records.reading() as session:
        row = owned(session, Subject, subject, current_user)
        mine = select(Generation).where(Generation.subject_id == row.id).order_by(Generation.created_ms.desc())
        earlier = session.scalars(mine.limit(REMEMBERED)).all()
    own = [unseal_bytes(one.prompt, label=prompt_label(one), keyring=keyring).decode() for one in earlier]
    return PromptSuggestions(prompts=suggest(q, known=templates(row.trigger, row.class_noun), own=own, limit=limit))
