"""What people are asked to agree to, and what they agreed to."""

from __future__ import annotations

from typing import Literal

from api.deps import AuditLogDep, CurrentUser, QueueDep, RecordsDep
from api.privacy import consents
from api.privacy.erasure import cancel_work, erase_models
from api.records.tables import Consent
from api.schemas import ConsentCreate, ConsentPublic, Page, TermsDocumentPublic, utc
from api.transport.problems import BODY, SIGNED_IN, Problem, problem_responses
from api.transport.routing import make_router
from photoflux.errors import PhotoFluxError

router = make_router(prefix="/api", tags=["terms and consents"])
WITHDRAWN = "the consent that it needs was withdrawn"


@router.get("/terms", operation_id="getTerms")
def get_terms() -> Page[TermsDocumentPublic]:
    """The wordings in force: the terms, the consent to learning a person's likeness, and the privacy notice."""
    documents = [
        TermsDocumentPublic(
            purpose=w.purpose, version=w.version, sha256=w.sha256, text=w.text, agree=w.purpose in consents.PURPOSES
        )
        for w in consents.terms_documents().values()
    ]
    return Page(items=documents, next=None)


@router.get("/consents", operation_id="listConsents", responses=problem_responses(*SIGNED_IN))
def list_consents(records: RecordsDep, current_user: CurrentUser) -> Page[ConsentPublic]:
    """What you agree to now, oldest first."""
    with records.reading() as session:
        given = [_to_public(consent) for consent in consents.in_force(session, current_user.user_id)]
    return Page(items=given, next=None)


@router.post(
    "/consents", operation_id="giveConsent", status_code=201, responses=problem_responses(*SIGNED_IN, *BODY, 409)
)
def give_consent(
    body: ConsentCreate, records: RecordsDep, audit_log: AuditLogDep, current_user: CurrentUser
) -> ConsentPublic:
    """Agree to a wording, named by its digest."""
    with records.writing_for(current_user.user_id) as session:
        try:
            consent = consents.grant(session, current_user.user_id, body.purpose, body.sha256)
        except PhotoFluxError as error:
            raise Problem(409, "wording-changed", str(error)) from error
        audit_log.record(session, current_user.user_id, "consent.given", body.purpose)
        return _to_public(consent)


@router.delete(
    "/consents/{purpose}", operation_id="withdrawConsent", status_code=204, responses=problem_responses(*SIGNED_IN, 422)
)
def withdraw_consent(
    purpose: Literal["terms", "likeness"],
    records: RecordsDep,
    audit_log: AuditLogDep,
    queue: QueueDep,
    current_user: CurrentUser,
) -> None:
    """Take an agreement back: what runs under it is ended, and models of people are deleted; photos and pictures stay."""
    with records.writing_for(current_user.user_id) as session:
        consents.withdraw(session, current_user.user_id, purpose)
        audit_log.record(session, current_user.user_id, "consent.withdrawn", purpose)
        subjects = consents.affected_subjects(session, current_user.user_id, purpose)
        cancel_work(session, subjects, audit_log, WITHDRAWN)
        for subject in subjects:
            if subject.depicts != consents.NO_PERSON:
                plan = erase_models(session, subject, audit_log, WITHDRAWN)
                queue.enqueue_deletion(session, plan)


def _to_public(consent: Consent) -> ConsentPublic:
    return ConsentPublic(
        purpose=consent.purpose, version=consent.version, sha256=consent.sha256, granted=utc(consent.granted_ms)
    )
