"""Consents: the documents in `texts/` that people agree to, and which of them an action needs.

A document's version is the first line of its file; a changed text needs a new version, and a new consent.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from api.records.tables import Consent, Subject, now_ms
from photoflux.errors import PhotoFluxError

TEXTS = Path(__file__).parent / "texts"
TERMS, LIKENESS = "terms", "likeness"
PURPOSES = (TERMS, LIKENESS)
"""Agreed to one by one: the terms by everybody, *likeness* before photos of people are trained on."""
NO_PERSON = "no_person"
"""What a subject depicts that needs no *likeness*."""
NOTICE = "privacy"
"""The notice under Art. 13 GDPR: shown, not agreed to."""


class ConsentRequired(PhotoFluxError):
    """An action needs consents that were not given; `purposes` are the missing ones."""

    def __init__(self, purposes: list[str]) -> None:
        super().__init__(f"agree to {' and '.join(purposes)} first: read GET /api/terms, then POST /api/consents")
        self.purposes = purposes


@dataclass(frozen=True)
class TermsDocument:
    """A text that people agree to or are shown; a consent names it by its digest."""

    purpose: str
    version: str
    sha256: str
    text: str


@cache
def terms_documents() -> dict[str, TermsDocument]:
    """The documents in force, by purpose."""
    return {purpose: _read(TEXTS / f"{purpose}.md") for purpose in (*PURPOSES, NOTICE)}


def _read(file: Path) -> TermsDocument:
    content = file.read_text(encoding="utf-8")
    first, _, text = content.partition("\n")
    version = first.removeprefix("<!-- version ").removesuffix(" -->")
    return TermsDocument(file.stem, version, hashlib.sha256(content.encode()).hexdigest(), text.strip())


def require_consents(session: Session, user_id: str, *, person: bool) -> None:
    """Raises ConsentRequired unless the person agrees to what handling a subject needs."""
    given = {consent.purpose: consent for consent in in_force(session, user_id)}
    needed = [TERMS, *([LIKENESS] if person else [])]
    missing = [p for p in needed if p not in given or given[p].sha256 != terms_documents()[p].sha256]
    if missing:
        raise ConsentRequired(missing)


def in_force(session: Session, user_id: str) -> list[Consent]:
    """Consents that were not withdrawn, oldest first."""
    query = select(Consent).where(Consent.user_id == user_id, Consent.withdrawn_ms.is_(None))
    return list(session.scalars(query.order_by(Consent.granted_ms)))


def grant(session: Session, user_id: str, purpose: str, sha256: str) -> Consent:
    """Record the consent to the document in force. Raises PhotoFluxError for another one."""
    document = terms_documents()[purpose]
    if sha256 != document.sha256:
        raise PhotoFluxError(f"the {purpose} have changed since you read them; read GET /api/terms again")
    known = [c for c in in_force(session, user_id) if c.purpose == purpose and c.sha256 == sha256]
    if known:
        return known[0]
    consent = Consent(user_id=user_id, purpose=purpose, version=document.version, sha256=sha256)
    session.add(consent)
    session.flush()
    return consent


def withdraw(session: Session, user_id: str, purpose: str) -> int:
    """End all consents for a purpose; returns how many there were."""
    found = [consent for consent in in_force(session, user_id) if consent.purpose == purpose]
    for consent in found:
        consent.withdrawn_ms = now_ms()
    return len(found)


def affected_subjects(session: Session, user_id: str, purpose: str) -> list[Subject]:
    """The person's subjects that need a consent for this purpose, locked."""
    query = select(Subject).where(Subject.user_id == user_id).order_by(Subject.id).with_for_update()
    return list(session.scalars(query if purpose == TERMS else query.where(Subject.depicts != NO_PERSON)))
