"""Webhooks: addresses that are told when work has ended."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, Field
from sqlalchemy import select
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from api.accounts.tokens import AccessTokenClaims
from api.deps import (
    AuditLogDep,
    CurrentUser,
    DnsLookupsDep,
    IdempotencyDep,
    KeyringDep,
    MeteredUser,
    RecordsDep,
    SettingsDep,
    SubscriptionsDep,
    owned,
)
from api.jobs.webhook_delivery import TEST, address_of, check_address, new_webhook
from api.records.audit_log import AuditLog
from api.records.database import Records, before_commit, retry_on_rollback
from api.records.tables import Webhook, WebhookDelivery
from api.schemas import Id, Page, RequestBody, State, Time, utc
from api.transport.idempotency import IdempotencyGuard
from api.transport.paging import PageQueryDep
from api.transport.problems import BODY, IDEMPOTENT, SIGNED_IN, Problem, problem_responses
from api.transport.quotas import check_capacity
from api.transport.routing import make_router
from photoflux.vault.keyring import Keyring

router = make_router(prefix="/api/webhooks", tags=["webhooks"], responses=problem_responses(*SIGNED_IN, 422))
WEBHOOKS_MAX = 5


class WebhookCreate(RequestBody):
    url: Annotated[str, Field(min_length=1, max_length=500, examples=["https://example.org/photoflux"])]


class WebhookPublic(BaseModel):
    """An address, and how the last message to it went."""

    id: str
    url: str
    secret: str | None = Field(
        description="what messages are signed with (Standard Webhooks); told once, when it is made"
    )
    last: State | None = Field(description="of the last message: `succeeded` was taken, `failed` was given up")
    created: Time


@router.post("", operation_id="createWebhook", status_code=201, responses=problem_responses(*BODY, 409, 503))
async def create_webhook(
    body: WebhookCreate,
    records: RecordsDep,
    keyring: KeyringDep,
    audit_log: AuditLogDep,
    dns_lookups: DnsLookupsDep,
    settings: SettingsDep,
    current_user: MeteredUser,
    idempotency: IdempotencyDep,
) -> WebhookPublic:
    """Be told of ended runs, generations and exports at an address of yours, by a signed POST."""
    async with dns_lookups.take(current_user.user_id):  # somebody's name server may never answer
        await run_in_threadpool(check_address, body.url, private=settings.one_machine)
    return await run_in_threadpool(_create, body, records, keyring, audit_log, current_user, idempotency)


@retry_on_rollback
def _create(
    body: WebhookCreate,
    records: Records,
    keyring: Keyring,
    audit_log: AuditLog,
    current_user: AccessTokenClaims,
    idempotency: IdempotencyGuard,
) -> WebhookPublic:
    with records.writing_for(current_user.user_id) as session:
        if stored := idempotency.replay(session, WebhookPublic):
            return stored
        full = Problem(409, "too-many-webhooks", f"You have {WEBHOOKS_MAX} webhooks; delete one first.")
        check_capacity(session, Webhook, Webhook.user_id == current_user.user_id, limit=WEBHOOKS_MAX, problem=full)
        row, secret = new_webhook(current_user.user_id, body.url, keyring)
        session.add(row)
        session.flush()
        audit_log.record(session, current_user.user_id, "webhook.created", row.id)
        return idempotency.store(session, _to_public(session, keyring, row, secret=secret), status=201)


@router.get("", operation_id="listWebhooks")
def list_webhooks(
    records: RecordsDep, keyring: KeyringDep, current_user: CurrentUser, page: PageQueryDep
) -> Page[WebhookPublic]:
    """Your webhooks."""
    with records.reading() as session:
        rows, after = page.rows(session, select(Webhook).where(Webhook.user_id == current_user.user_id), Webhook)
        return Page(items=[_to_public(session, keyring, row) for row in rows], next=after)


@router.post(
    "/{webhook_id}/test", operation_id="testWebhook", status_code=202, responses=problem_responses(*IDEMPOTENT, 404)
)
def test_webhook(
    webhook_id: Id,
    records: RecordsDep,
    keyring: KeyringDep,
    subscriptions: SubscriptionsDep,
    current_user: MeteredUser,
    idempotency: IdempotencyDep,
) -> WebhookPublic:
    """Have a message of the type `test` sent."""
    with records.writing_for(current_user.user_id) as session:
        if stored := idempotency.replay(session, WebhookPublic):
            return stored
        row = owned(session, Webhook, webhook_id, current_user, lock=True)
        before_commit(session, lambda session: subscriptions.enqueue(session, row, TEST, row.id, "succeeded"))
        return idempotency.store(session, _to_public(session, keyring, row), status=202)


@router.delete("/{webhook_id}", operation_id="deleteWebhook", status_code=204, responses=problem_responses(404))
def delete_webhook(webhook_id: Id, records: RecordsDep, audit_log: AuditLogDep, current_user: CurrentUser) -> None:
    """Tell this address nothing more."""
    with records.writing_for(current_user.user_id) as session:
        session.delete(owned(session, Webhook, webhook_id, current_user, lock=True))
        audit_log.record(session, current_user.user_id, "webhook.deleted", webhook_id)


def _to_public(session: Session, keyring: Keyring, row: Webhook, *, secret: str | None = None) -> WebhookPublic:
    last = (
        select(WebhookDelivery.state)
        .where(WebhookDelivery.webhook_id == row.id)
        .order_by(WebhookDelivery.created_ms.desc())
        .limit(1)
    )
    return WebhookPublic(
        id=row.id,
        url=address_of(row, keyring),
        secret=secret,
        last=session.scalar(last),
        created=utc(row.created_ms),
    )
