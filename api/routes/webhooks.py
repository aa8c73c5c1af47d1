"""Webhooks: addresses that are told when work has ended."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, Field
from sqlalchemy import select
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from api.accounts.tokens import Bearer
from api.deps import (
    Caller,
    JournalDep,
    KeyringDep,
    LookingUpDep,
    Maker,
    OnceDep,
    RecordsDep,
    SettingsDep,
    SubscriptionsDep,
    owned,
)
from api.jobs.webhook_delivery import TEST, address_of, check_address, new_webhook
from api.records.audit_log import Journal
from api.records.database import Records, at_end, retried
from api.records.tables import Webhook, WebhookDelivery
from api.schemas import Asked, Id, Listed, State, Time, utc
from api.transport.idempotency import Once
from api.transport.paging import PageDep
from api.transport.problems import BODY, ONCE, SIGNED_IN, Problem, answers
from api.transport.quotas import check_capacity
from api.transport.routing import make_router
from photoflux.vault.keyring import Keyring

router = make_router(prefix="/api/webhooks", tags=["webhooks"], responses=answers(*SIGNED_IN, 422))
WEBHOOKS_MAX = 5


class WebhookAsked(Asked):
    url: Annotated[str, Field(min_length=1, max_length=500, examples=["https://example.org/photoflux"])]


class WebhookShown(BaseModel):
    """An address, and how the last message to it went."""

    id: str
    url: str
    secret: str | None = Field(
        description="what messages are signed with (Standard Webhooks); told once, when it is made"
    )
    last: State | None = Field(description="of the last message: `succeeded` was taken, `failed` was given up")
    created: Time


@router.post("", operation_id="createWebhook", status_code=201, responses=answers(*BODY, 409, 503))
async def create_webhook(
    asked: WebhookAsked,
    records: RecordsDep,
    keyring: KeyringDep,
    journal: JournalDep,
    looking_up: LookingUpDep,
    settings: SettingsDep,
    caller: Maker,
    once: OnceDep,
) -> WebhookShown:
    """Be told of ended runs, generations and exports at an address of yours, by a signed POST."""
    async with looking_up.take(caller.user_id):  # somebody's name server may never answer
        await run_in_threadpool(check_address, asked.url, private=settings.one_machine)
    return await run_in_threadpool(_create, asked, records, keyring, journal, caller, once)


@retried
def _create(
    asked: WebhookAsked, records: Records, keyring: Keyring, journal: Journal, caller: Bearer, once: Once
) -> WebhookShown:
    with records.writing_for(caller.user_id) as session:
        if answered := once.answered(session, WebhookShown):
            return answered
        full = Problem(409, "too-many-webhooks", f"You have {WEBHOOKS_MAX} webhooks; delete one first.")
        check_capacity(session, Webhook, Webhook.user_id == caller.user_id, limit=WEBHOOKS_MAX, problem=full)
        row, secret = new_webhook(caller.user_id, asked.url, keyring)
        session.add(row)
        session.flush()
        journal.note(session, caller.user_id, "webhook.created", row.id)
        return once.keep(session, _shown(session, keyring, row, secret=secret), status=201)


@router.get("", operation_id="listWebhooks")
def list_webhooks(records: RecordsDep, keyring: KeyringDep, caller: Caller, page: PageDep) -> Listed[WebhookShown]:
    """Your webhooks."""
    with records.reading() as session:
        rows, after = page.rows(session, select(Webhook).where(Webhook.user_id == caller.user_id), Webhook)
        return Listed(items=[_shown(session, keyring, row) for row in rows], next=after)


@router.post("/{webhook_id}/test", operation_id="testWebhook", status_code=202, responses=answers(*ONCE, 404))
def test_webhook(
    webhook_id: Id,
    records: RecordsDep,
    keyring: KeyringDep,
    subscriptions: SubscriptionsDep,
    caller: Maker,
    once: OnceDep,
) -> WebhookShown:
    """Have a message of the type `test` sent."""
    with records.writing_for(caller.user_id) as session:
        if answered := once.answered(session, WebhookShown):
            return answered
        row = owned(session, Webhook, webhook_id, caller, lock=True)
        at_end(session, lambda session: subscriptions.enqueue(session, row, TEST, row.id, "succeeded"))
        return once.keep(session, _shown(session, keyring, row), status=202)


@router.delete("/{webhook_id}", operation_id="deleteWebhook", status_code=204, responses=answers(404))
def delete_webhook(webhook_id: Id, records: RecordsDep, journal: JournalDep, caller: Caller) -> None:
    """Tell this address nothing more."""
    with records.writing_for(caller.user_id) as session:
        session.delete(owned(session, Webhook, webhook_id, caller, lock=True))
        journal.note(session, caller.user_id, "webhook.deleted", webhook_id)


def _shown(session: Session, keyring: Keyring, row: Webhook, *, secret: str | None = None) -> WebhookShown:
    last = (
        select(WebhookDelivery.state)
        .where(WebhookDelivery.webhook_id == row.id)
        .order_by(WebhookDelivery.created_ms.desc())
        .limit(1)
    )
    return WebhookShown(
        id=row.id, url=address_of(row, keyring), secret=secret, last=session.scalar(last),
        created=utc(row.created_ms),
    )  # fmt: skip
