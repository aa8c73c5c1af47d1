"""Requests that may be sent twice: the same `Idempotency-Key` gives the stored response, committed with the work."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TypeVar

from fastapi import Request
from pydantic import BaseModel
from sqlalchemy import delete
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from api.records.tables import REPLAY_MS, IdempotencyKey, now_ms
from api.transport.media_types import FORM, URLENCODED, media_type
from api.transport.problems import Problem
from photoflux.vault.keyring import Keyring
from photoflux.vault.sealed import Label, seal_bytes, unseal_bytes

Answer = TypeVar("Answer", bound=BaseModel)
KEY_DESCRIPTION = (
    "any text of yours: the same request with the same key, within a day, is done once and answered the same"
)


@dataclass(frozen=True)
class IdempotencyGuard:
    """Replays and stores the response of a request by its key; without a key it does neither."""

    user_id: str
    key_digest: str | None
    request_digest: str
    keyring: Keyring

    def including(self, *parts: bytes) -> IdempotencyGuard:
        """A guard whose request digest covers these parts too: a form's fields, and the digests of its files."""
        return replace(self, request_digest=_digest(self.request_digest.encode(), *parts))

    def replay(self, session: Session, kind: type[Answer]) -> Answer | None:
        """The stored response; None for a new key. A problem of 422 when the key came with another request."""
        if self.key_digest is None:
            return None
        stored = session.get(IdempotencyKey, (self.user_id, self.key_digest))
        if stored is None or stored.created_ms < now_ms() - REPLAY_MS:
            return None
        if stored.request_digest != self.request_digest:
            raise key_mismatch()
        assert stored.response is not None
        return kind.model_validate_json(unseal_bytes(stored.response, label=self._label, keyring=self.keyring))

    def store(self, session: Session, answer: Answer, *, status: int) -> Answer:
        """Store the response in the transaction of the work. Of two requests at once the later one fails here, with 409."""
        if self.key_digest is not None:
            old = IdempotencyKey.created_ms < now_ms() - REPLAY_MS
            session.execute(delete(IdempotencyKey).where(IdempotencyKey.user_id == self.user_id, old))
            sealed = seal_bytes(answer.model_dump_json().encode(), label=self._label, keyring=self.keyring)
            session.add(
                IdempotencyKey(
                    user_id=self.user_id,
                    key_digest=self.key_digest,
                    request_digest=self.request_digest,
                    status=status,
                    response=sealed,
                )
            )
            try:
                session.flush()
            except IntegrityError as error:
                raise Problem(409, "conflict", "The same request is being answered; send it again.") from error
        return answer

    @property
    def _label(self) -> Label:
        return Label(self.user_id, "response", str(self.key_digest))


def key_mismatch() -> Problem:
    """The problem of a key that came with another request."""
    return Problem(422, "idempotency-mismatch", "This Idempotency-Key was used for another request; take a new one.")


async def idempotency_guard(
    request: Request, user_id: str, idempotency_key: str | None, keyring: Keyring
) -> IdempotencyGuard:
    """The guard of a person's request, by its key and the digest of method, address and body."""
    form = media_type(request.headers) in (FORM, URLENCODED)
    body = b"" if form else await request.body()  # a form was read by now; `including` adds its files
    request_digest = _digest(request.method.encode(), request.url.path.encode(), request.url.query.encode(), body)
    key = _digest(idempotency_key.encode()) if idempotency_key else None
    return IdempotencyGuard(user_id, key, request_digest, keyring)


def _digest(*parts: bytes) -> str:
    state = hashlib.sha256()
    for part in parts:
        state.update(len(part).to_bytes(8, "big") + part)
    return state.hexdigest()
