"""What people are asked to agree to, and what they agreed to."""

from __future__ import annotations

from typing import Literal

from api.deps import Caller, JournalDep, QueueDep, RecordsDep
from api.privacy import consents
from api.privacy.erasure import end_work, erase_models
from api.records.tables import Consent
from api.schemas import ConsentAsked, ConsentShown, Listed, WordingShown, utc
from api.transport.problems import BODY, SIGNED_IN, Problem, answers
from api.transport.routing import make_router
from photoflux.errors import PhotoFluxError

router = make_router(prefix="/api", tags=["terms and consents"])
WITHDRAWN = "the consent that it needs was withdrawn"


@router.get("/terms", operation_id="getTerms")
def get_terms() -> Listed[WordingShown]:
    """The wordings in force: the terms, the consent to learning a person's likeness, and the privacy notice."""
    shown = [
        WordingShown(
            purpose=w.purpose, version=w.version, sha256=w.sha256, text=w.text, agree=w.purpose in consents.PURPOSES
        )
        for w in consents.wordings().values()
    ]
    return Listed(items=shown, next=None)


@router.get("/consents", operation_id="listConsents", responses=answers(*SIGNED_IN))
def list_consents(records: RecordsDep, caller: Caller) -> Listed[ConsentShown]:
    """What you agree to now, oldest first."""
    with records.reading() as session:
        shown = [_shown(consent) for consent in consents.in_force(session, caller.user_id)]
    return Listed(items=shown, next=None)


@router.post("/consents", operation_id="giveConsent", status_code=201, responses=answers(*SIGNED_IN, *BODY, 409))
def give_consent(asked: ConsentAsked, records: RecordsDep, journal: JournalDep, caller: Caller) -> ConsentShown:
    """Agree to a wording, named by its digest."""
    with records.writing_for(caller.user_id) as session:
        try:
            consent = consents.grant(session, caller.user_id, asked.purpose, asked.sha256)
        except PhotoFluxError as error:
            raise Problem(409, "wording-changed", str(error)) from error
        journal.note(session, caller.user_id, "consent.given", asked.purpose)
        return _shown(consent)


@router.delete(
    "/consents/{purpose}", operation_id="withdrawConsent", status_code=204, responses=answers(*SIGNED_IN, 422)
)
def withdraw_consent(
    purpose: Literal["terms", "likeness"], records: RecordsDep, journal: JournalDep, queue: QueueDep, caller: Caller
) -> None:
    """Take an agreement back: what runs under it is ended, and models of people are deleted; photos and pictures stay."""
    with records.writing_for(caller.user_id) as session:
        consents.withdraw(session, caller.user_id, purpose)
        journal.note(session, caller.user_id, "consent.withdrawn", purpose)
        subjects = consents.concerned(session, caller.user_id, purpose)
        end_work(session, subjects, journal, WITHDRAWN)
        for subject in subjects:
            if subject.depicts != consents.NOBODY:
                gone = erase_models(session, subject, journal, WITHDRAWN)
                queue.enqueue_deletion(session, gone)


def _shown(consent: Consent) -> ConsentShown:
    return ConsentShown(
        purpose=consent.purpose, version=consent.version, sha256=consent.sha256, granted=utc(consent.granted_ms)
    )
