"""How much a person may have and start. Everything is counted under the person's lock, so that two requests at once count as two."""

from __future__ import annotations

from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from api.records.tables import GeneratedImage, Model, Photo, Usage, now_ms
from api.transport.problems import Problem

DAY_MS = 24 * 3600 * 1000
STORED: tuple[Any, ...] = (Photo, GeneratedImage, Model)
"""What has `stored_bytes` and counts. Exports do not: whoever has too much may still take it along."""


def count_start(session: Session, user_id: str, kind: str, *, limit: int, what: str) -> None:
    """Count that a person starts one more `what`. A problem of 429 beyond `limit` in 24 hours, whatever became of those before."""
    recent = select(func.count()).select_from(Usage)
    recent = recent.where(Usage.user_id == user_id, Usage.kind == kind, Usage.created_ms > now_ms() - DAY_MS)
    if (session.scalar(recent) or 0) >= limit:
        raise Problem(
            429, "quota", f"You may start {limit} {what} a day; come back tomorrow.", headers={"Retry-After": "3600"}
        )
    session.add(Usage(user_id=user_id, kind=kind))
    session.flush()


def check_capacity(session: Session, kind: Any, *conditions: Any, limit: int, problem: Problem) -> None:
    """Raises `problem` where as many rows as may be there are there already."""
    if (session.scalar(select(func.count()).select_from(kind).where(*conditions)) or 0) >= limit:
        raise problem


def stored_bytes(session: Session, user_id: str) -> int:
    """Bytes that are kept of a person: photos, models and pictures."""
    return sum(
        session.scalar(select(func.coalesce(func.sum(kind.stored_bytes), 0)).where(kind.user_id == user_id)) or 0
        for kind in STORED
    )


def check_storage(session: Session, user_id: str, *, limit: int, more: int = 0) -> None:
    """A problem of 409 when what is kept of a person, and `more` bytes, would be over `limit`."""
    if stored_bytes(session, user_id) + more > limit:
        raise Problem(
            409,
            "storage-full",
            f"You keep {limit / 1e9:.3g} GB here, which is all there is room for; delete something first.",
        )
