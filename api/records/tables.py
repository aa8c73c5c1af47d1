"""The records: what is kept of whom, in SQLite on one machine or in PostgreSQL, by the same models.

No column holds a person's words, names or pictures in the clear: what is personal is bytes that the vault sealed under
the owner's keyset, or lies in the blob store. Times are milliseconds since 1970 in UTC, ids are random.
"""

from __future__ import annotations

import time
import uuid
from typing import Any, ClassVar

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    ForeignKey,
    Index,
    LargeBinary,
    MetaData,
    String,
    UniqueConstraint,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from photoflux.vault.sealed import Label

LOCK_ORDER = (
    "login_flows", "signing_keys", "users", "sign_ins", "refresh_tokens", "consents", "subjects", "photos", "runs", "generations",
    "images", "feedback", "models", "exports", "webhooks", "idempotency", "usage", "complaints",
    "tombstones", "workers", "webhook_deliveries", "audit_log",
)  # fmt: skip
"""Transactions lock rows of tables in this order and no other, so that no two wait for each other; a test reads the statements."""
STATES = ("queued", "running", "succeeded", "failed", "cancelled")
"""Of runs, generations and exports; the last three are final."""
ACTIVE = STATES[:2]
ANSWERS_KEPT_MS = 24 * 3600 * 1000
"""How long a repeated request is given the answer of the first."""


def now_ms() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def new_id() -> str:
    """A random id of 32 hexadecimal digits."""
    return uuid.uuid4().hex


class Base(DeclarativeBase):
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map: ClassVar = {
        int: BigInteger,
        str: String(64),
        dict[str, Any]: JSON,
        list[Any]: JSON,
        bytes: LargeBinary,
    }


def _key() -> Mapped[str]:
    return mapped_column(String(32), primary_key=True, default=new_id)


def _owner() -> Mapped[str]:
    return mapped_column(String(32), ForeignKey("users.id", ondelete="CASCADE"), index=True)


def _state() -> Mapped[str]:
    return mapped_column(String(16), default="queued")


def _known_states(name: str = "state") -> CheckConstraint:
    return CheckConstraint(f"state in {STATES}", name=name)


class User(Base):
    """A person who signed in. `login` is a keyed digest of the provider's name for them; `profile` holds name and e-mail."""

    __tablename__ = "users"
    id: Mapped[str] = _key()
    login: Mapped[str] = mapped_column(unique=True)
    role: Mapped[str] = mapped_column(String(16), default="user")
    state: Mapped[str] = mapped_column(String(16), default="active")
    profile: Mapped[bytes | None]
    created_ms: Mapped[int] = mapped_column(default=now_ms)
    __table_args__ = (
        CheckConstraint("role in ('user', 'operator', 'auditor')", name="role"),
        CheckConstraint("state in ('active', 'blocked', 'erasing')", name="state"),
    )


class LoginFlow(Base):
    """A sign-in under way, from the redirect to the provider until its callback, which uses it up."""

    __tablename__ = "login_flows"
    state: Mapped[str] = mapped_column(primary_key=True)
    """Digest of the state parameter."""
    verifier: Mapped[str] = mapped_column(String(128))
    nonce: Mapped[str] = mapped_column(String(64))
    expires_ms: Mapped[int] = mapped_column(index=True)


class SignIn(Base):
    """One sign-in on one device: a family of refresh tokens, each used once, all revoked when one comes back."""

    __tablename__ = "sign_ins"
    id: Mapped[str] = _key()
    user_id: Mapped[str] = _owner()
    created_ms: Mapped[int] = mapped_column(default=now_ms)
    expires_ms: Mapped[int]
    revoked_ms: Mapped[int | None]


class RefreshToken(Base):
    """Known by its digest only. `used_ms` is when it was exchanged for its successor."""

    __tablename__ = "refresh_tokens"
    digest: Mapped[str] = mapped_column(primary_key=True)
    sign_in_id: Mapped[str] = mapped_column(String(32), ForeignKey("sign_ins.id", ondelete="CASCADE"), index=True)
    created_ms: Mapped[int] = mapped_column(default=now_ms)
    used_ms: Mapped[int | None]


class SigningKey(Base):
    """An ES256 key of the access tokens; the private half is sealed by the service's own keyset."""

    __tablename__ = "signing_keys"
    kid: Mapped[str] = mapped_column(primary_key=True)
    private: Mapped[bytes]
    public: Mapped[dict[str, Any]]
    created_ms: Mapped[int] = mapped_column(default=now_ms)
    retired_ms: Mapped[int | None]


class Consent(Base):
    """What a person agreed to, in which wording, and until when."""

    __tablename__ = "consents"
    id: Mapped[str] = _key()
    user_id: Mapped[str] = _owner()
    purpose: Mapped[str] = mapped_column(String(32))
    version: Mapped[str] = mapped_column(String(32))
    sha256: Mapped[str]
    granted_ms: Mapped[int] = mapped_column(default=now_ms)
    withdrawn_ms: Mapped[int | None]


class Subject(Base):
    """Who or what a person wants pictures of. `name` and `verdict`, on the photos as a set, are sealed; `champion_id` draws."""

    __tablename__ = "subjects"
    id: Mapped[str] = _key()
    user_id: Mapped[str] = _owner()
    class_noun: Mapped[str] = mapped_column(String(32))
    trigger: Mapped[str] = mapped_column(String(16))
    depicts: Mapped[str] = mapped_column(String(16))
    name: Mapped[bytes | None]
    champion_id: Mapped[str | None] = mapped_column(String(32))
    verdict: Mapped[bytes | None]
    created_ms: Mapped[int] = mapped_column(default=now_ms)
    __table_args__ = (
        CheckConstraint("depicts in ('me', 'consenting_adult', 'no_person')", name="depicts"),
        Index(None, "user_id", "created_ms", "id"),
    )


class Photo(Base):
    """An uploaded photo as it was normalised; `name` and `measured` are sealed.

    `fingerprint` is a digest keyed for its owner, so that doubles are seen.
    """

    __tablename__ = "photos"
    id: Mapped[str] = _key()
    user_id: Mapped[str] = _owner()
    subject_id: Mapped[str] = mapped_column(String(32), ForeignKey("subjects.id", ondelete="CASCADE"))
    fingerprint: Mapped[str]
    name: Mapped[bytes | None]
    measured: Mapped[bytes | None]
    width: Mapped[int]
    height: Mapped[int]
    stored_bytes: Mapped[int]
    status: Mapped[str] = mapped_column(String(8))
    reasons: Mapped[list[Any]]
    created_ms: Mapped[int] = mapped_column(default=now_ms)
    __table_args__ = (UniqueConstraint("subject_id", "fingerprint"), Index(None, "subject_id", "created_ms", "id"))


class Run(Base):
    """A fine-tuning from photos to a registered model. At most one of a subject is queued or running.

    `sign_off` is `open` where the check left a question that an operator may answer, `given` once one has; why, is sealed.
    """

    __tablename__ = "runs"
    id: Mapped[str] = _key()
    user_id: Mapped[str] = _owner()
    subject_id: Mapped[str] = mapped_column(String(32), ForeignKey("subjects.id", ondelete="CASCADE"))
    state: Mapped[str] = _state()
    params: Mapped[dict[str, Any]]
    steps: Mapped[list[Any]] = mapped_column(default=list)
    error_code: Mapped[str | None] = mapped_column(String(32))
    error: Mapped[str | None] = mapped_column(String(500))
    orchestrator: Mapped[str] = mapped_column(String(16))
    remote_id: Mapped[str | None] = mapped_column(String(256))
    estimate: Mapped[dict[str, Any]]
    actual: Mapped[dict[str, Any] | None]
    cancel_ms: Mapped[int | None]
    sign_off: Mapped[str | None] = mapped_column(String(16))
    sign_off_reason: Mapped[bytes | None]
    created_ms: Mapped[int] = mapped_column(default=now_ms)
    started_ms: Mapped[int | None]
    finished_ms: Mapped[int | None]
    __table_args__ = (
        _known_states(),
        CheckConstraint("sign_off in ('open', 'given')", name="sign_off"),
        Index(None, "user_id", "created_ms", "id"),
        Index(
            "uq_runs_active", "subject_id", unique=True,
            sqlite_where=state.in_(STATES[:2]), postgresql_where=state.in_(STATES[:2]),
        ),
    )  # fmt: skip


class Model(Base):
    """A registered adapter of a subject."""

    __tablename__ = "models"
    id: Mapped[str] = _key()
    user_id: Mapped[str] = _owner()
    subject_id: Mapped[str] = mapped_column(String(32), ForeignKey("subjects.id", ondelete="CASCADE"))
    run_id: Mapped[str] = mapped_column(String(32), ForeignKey("runs.id", ondelete="CASCADE"), unique=True)
    number: Mapped[int]
    registry_name: Mapped[str] = mapped_column(String(64))
    registry_version: Mapped[str] = mapped_column(String(16))
    adapter_sha256: Mapped[str]
    stored_bytes: Mapped[int] = mapped_column(default=0)
    verdict: Mapped[str] = mapped_column(String(16))
    metrics: Mapped[dict[str, Any]]
    created_ms: Mapped[int] = mapped_column(default=now_ms)
    __table_args__ = (UniqueConstraint("subject_id", "number"),)


class Generation(Base):
    """Pictures asked for. `prompt` is sealed. It waits for `run_id` when the subject had no model yet."""

    __tablename__ = "generations"
    id: Mapped[str] = _key()
    user_id: Mapped[str] = _owner()
    subject_id: Mapped[str] = mapped_column(String(32), ForeignKey("subjects.id", ondelete="CASCADE"))
    model_id: Mapped[str | None] = mapped_column(String(32))
    run_id: Mapped[str | None] = mapped_column(String(32))
    state: Mapped[str] = _state()
    prompt: Mapped[bytes]
    n: Mapped[int]
    seed: Mapped[int]
    size: Mapped[str] = mapped_column(String(16))
    format: Mapped[str] = mapped_column(String(8))
    style: Mapped[str] = mapped_column(String(16))
    error_code: Mapped[str | None] = mapped_column(String(32))
    error: Mapped[str | None] = mapped_column(String(500))
    created_ms: Mapped[int] = mapped_column(default=now_ms)
    finished_ms: Mapped[int | None]
    __table_args__ = (_known_states(), Index(None, "user_id", "created_ms", "id"))


def prompt_label(row: Generation) -> Label:
    """What a sealed prompt is bound to."""
    return Label(row.user_id, "prompt", row.id)


class GeneratedImage(Base):
    """One generated picture; its sealed bytes are the object `object_id`, which names the attempt that stored it."""

    __tablename__ = "images"
    id: Mapped[str] = _key()
    user_id: Mapped[str] = _owner()
    generation_id: Mapped[str] = mapped_column(String(32), ForeignKey("generations.id", ondelete="CASCADE"))
    position: Mapped[int]
    object_id: Mapped[str] = mapped_column(String(128))
    seed: Mapped[int]
    sha256: Mapped[str]
    stored_bytes: Mapped[int]
    __table_args__ = (UniqueConstraint("generation_id", "position"),)


class Feedback(Base):
    """What a person thinks of their pictures; `text` is sealed."""

    __tablename__ = "feedback"
    id: Mapped[str] = _key()
    user_id: Mapped[str] = _owner()
    generation_id: Mapped[str] = mapped_column(
        String(32), ForeignKey("generations.id", ondelete="CASCADE"), unique=True
    )
    rating: Mapped[int]
    reason: Mapped[str | None] = mapped_column(String(32))
    text: Mapped[bytes | None]
    created_ms: Mapped[int] = mapped_column(default=now_ms)
    __table_args__ = (CheckConstraint("rating between 1 and 5", name="rating"),)


class Idempotency(Base):
    """A request that may be repeated: the same key gives the stored answer. `answer` is sealed, None while it is made."""

    __tablename__ = "idempotency"
    user_id: Mapped[str] = mapped_column(String(32), ForeignKey("users.id", ondelete="CASCADE"), primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    """Digest of the key that was sent."""
    request: Mapped[str]
    status: Mapped[int | None]
    answer: Mapped[bytes | None]
    created_ms: Mapped[int] = mapped_column(default=now_ms, index=True)


class Usage(Base):
    """That a person started something of which so many a day are allowed. It outlives what was started."""

    __tablename__ = "usage"
    id: Mapped[str] = _key()
    user_id: Mapped[str] = mapped_column(String(32), ForeignKey("users.id", ondelete="CASCADE"))
    kind: Mapped[str] = mapped_column(String(16))
    created_ms: Mapped[int] = mapped_column(default=now_ms)
    __table_args__ = (Index(None, "user_id", "kind", "created_ms"),)


class Webhook(Base):
    """Where a person wants to be told of finished work; address and secret are sealed."""

    __tablename__ = "webhooks"
    id: Mapped[str] = _key()
    user_id: Mapped[str] = _owner()
    address: Mapped[bytes]
    secret: Mapped[bytes]
    created_ms: Mapped[int] = mapped_column(default=now_ms)


class WebhookDelivery(Base):
    """That an address is to be told of something: what it was about, and whether it has been."""

    __tablename__ = "webhook_deliveries"
    id: Mapped[str] = _key()
    user_id: Mapped[str] = _owner()
    webhook_id: Mapped[str] = mapped_column(String(32), ForeignKey("webhooks.id", ondelete="CASCADE"), index=True)
    event: Mapped[str] = mapped_column(String(32))
    object_id: Mapped[str] = mapped_column(String(32))
    outcome: Mapped[str] = mapped_column(String(16))
    state: Mapped[str] = _state()
    created_ms: Mapped[int] = mapped_column(default=now_ms)
    finished_ms: Mapped[int | None]
    __table_args__ = (_known_states(),)


class Export(Base):
    """A ZIP of everything kept of a person, sealed in the object `object_id`, which names the attempt that stored it."""

    __tablename__ = "exports"
    id: Mapped[str] = _key()
    user_id: Mapped[str] = _owner()
    state: Mapped[str] = _state()
    error_code: Mapped[str | None] = mapped_column(String(32))
    error: Mapped[str | None] = mapped_column(String(500))
    object_id: Mapped[str | None] = mapped_column(String(96))
    sha256: Mapped[str | None]
    stored_bytes: Mapped[int | None]
    created_ms: Mapped[int] = mapped_column(default=now_ms)
    expires_ms: Mapped[int | None]
    __table_args__ = (_known_states(),)


class Complaint(Base):
    """What somebody, who need not have an account, reports; `details` is sealed by the service's own keyset.

    `about` is the adapter's digest as a picture's credentials name it.
    """

    __tablename__ = "complaints"
    id: Mapped[str] = _key()
    reason: Mapped[str] = mapped_column(String(16))
    about: Mapped[str | None]
    details: Mapped[bytes]
    request_key: Mapped[str | None] = mapped_column(unique=True)
    """Digest of the `Idempotency-Key` that it came with; None once a repeat would be a new complaint."""
    request: Mapped[str | None]
    """Digest of what came with that key."""
    state: Mapped[str] = mapped_column(String(16), default="open")
    created_ms: Mapped[int] = mapped_column(default=now_ms, index=True)
    closed_ms: Mapped[int | None]
    __table_args__ = (CheckConstraint("state in ('open', 'removed', 'dismissed')", name="state"),)


class AuditEntry(Base):
    """What was done, by whom (a pseudonym), to what; each entry holds the digest of the one before. Nothing personal.

    `scheme` says how the digest was made: 2 is keyed (HMAC-SHA256), 1 is the SHA-256 that older programs wrote.
    """

    __tablename__ = "audit_log"
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    at_ms: Mapped[int]
    actor: Mapped[str]
    action: Mapped[str]
    object: Mapped[str | None]
    outcome: Mapped[str] = mapped_column(String(16))
    before: Mapped[str]
    digest: Mapped[str] = mapped_column(unique=True)
    scheme: Mapped[int] = mapped_column(default=2)


class Worker(Base):
    """A worker process. It beats every few seconds; one that stopped beating is marked dead, and its work taken up by another."""

    __tablename__ = "workers"
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    started_ms: Mapped[int]
    beat_ms: Mapped[int]
    """By the database's clock."""
    dead_ms: Mapped[int | None]


class Tombstone(Base):
    """That somebody was erased, or is being: `login` again, so that a restored backup can be erased anew."""

    __tablename__ = "tombstones"
    receipt: Mapped[str] = mapped_column(String(32), primary_key=True)
    login: Mapped[str] = mapped_column(index=True)
    user_id: Mapped[str] = mapped_column(String(32))
    erased_ms: Mapped[int]
    done_ms: Mapped[int | None]
