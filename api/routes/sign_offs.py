"""Sign-offs: runs whose check left a question open, for operators to answer for, or not."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, Field
from sqlalchemy import select

from api.deps import AuditLogDep, KeyringDep, Operator, QueueDep, RecordsDep
from api.records.tables import Run
from api.schemas import Id, Page, RequestBody, Text, Time, utc
from api.training.finetuning import sign_off
from api.transport.paging import PageQueryDep
from api.transport.problems import BODY, SIGNED_IN, Problem, problem_responses
from api.transport.routing import make_router

MISSING = "There is no run here that waits for an answer."
router = make_router(prefix="/api/sign-offs", tags=["sign-offs"], responses=problem_responses(*SIGNED_IN, 403, 422))


class SignOffPublic(BaseModel):
    """A run that made no model because its check could not tell. Nothing in it says whose it is."""

    run: str
    reasons: str = Field(description="what the check left open, in its own words")
    findings: list[str] = Field(description="the rules that are open, each of which whoever signs has to name")
    signed: bool
    created: Time


class SignOffCreate(RequestBody):
    reason: Annotated[Text, Field(min_length=10, max_length=400, description="why this model may be used")]
    findings: list[Annotated[str, Field(max_length=60)]] = Field(
        max_length=20, description="the rules that are open, by name: what you answer for"
    )


@router.get("", operation_id="listSignOffs")
def list_sign_offs(records: RecordsDep, operator: Operator, page: PageQueryDep) -> Page[SignOffPublic]:  # noqa: ARG001
    """Runs that wait for an answer, newest first."""
    with records.reading() as session:
        rows, after = page.rows(session, select(Run).where(Run.sign_off == "open"), Run)
    return Page(items=[_to_public(row) for row in rows], next=after)


@router.post("/{run_id}", operation_id="signOff", status_code=202, responses=problem_responses(*BODY, 404, 409))
def sign_off_run(
    run_id: Id,
    body: SignOffCreate,
    records: RecordsDep,
    keyring: KeyringDep,
    audit_log: AuditLogDep,
    queue: QueueDep,
    operator: Operator,
) -> SignOffPublic:
    """Answer for a run: its model is registered, with your pseudonym and reason, and draws from then on.

    What a check calls critical nobody can sign for.
    """
    with records.reading() as session:
        found = session.get(Run, run_id)
    if found is None:
        raise Problem(404, "not-found", MISSING)
    with records.writing_for(found.user_id) as session:
        row = session.get(Run, run_id, with_for_update=True)
        if row is None or row.sign_off is None:
            raise Problem(404, "not-found", MISSING)
        if row.sign_off == "open":
            if row.remote_id is None:
                raise Problem(409, "too-late", "The files of this run are not kept any more; have it run again.")
            if sorted(body.findings) != _open(row):
                named = ", ".join(_open(row))
                raise Problem(422, "invalid", f"Name in `findings` exactly what you answer for, which is: {named}.")
            by = audit_log.pseudonym(operator.user_id)
            sign_off(session, row, by=by, reason=body.reason, findings=body.findings, keyring=keyring)
            queue.enqueue_sign_off(session, row)
            audit_log.record(session, operator.user_id, "run.signed-off", row.id)
        return _to_public(row)


def _to_public(row: Run) -> SignOffPublic:
    signed = row.sign_off == "given"
    return SignOffPublic(
        run=row.id, reasons=row.error or "", findings=_open(row), signed=signed, created=utc(row.created_ms)
    )


def _open(row: Run) -> list[str]:
    return list((row.actual or {}).get("open", []))
