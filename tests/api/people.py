"""People who use the service in tests, and what they do all the time."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
from sqlalchemy import select

from api.accounts.tokens import AccessTokenClaims
from api.deps import Service
from api.records.tables import Model, Run, Subject, User, new_id
from photoflux.photos.inspect import Likeness
from photoflux.photos.table import Pair
from photoflux.vault.objects import Objects

PAIRS: dict[Pair, Likeness] = {}
"""What was compared in this session."""
SAMPLES = sorted((Path(__file__).parents[2] / "data/samples/dog").glob("*.jpg"))


@dataclass(frozen=True)
class Site:
    """The service and a way to it."""

    client: httpx2.Client
    service: Service
    folder: Path

    def person(self, *, role: str = "user", agreed: bool = True) -> Person:
        """Somebody new who is signed in."""
        with self.service.records.writing() as session:
            user = User(id=new_id(), login=uuid.uuid4().hex, role=role)
            session.add(user)
        begun = self.service.login_sessions.begin(user.id)
        person = Person(
            self, user.id, self.service.tokens.access_token(AccessTokenClaims(user.id, role, begun.login_session_id))
        )
        if agreed:
            for wording in person.get("/api/terms").json()["items"]:
                if wording["agree"]:
                    asked = {"purpose": wording["purpose"], "sha256": wording["sha256"]}
                    assert person.post("/api/consents", json=asked).status_code == 201
        return person

    @property
    def objects(self) -> Objects:
        return self.service.objects


@dataclass(frozen=True)
class Person:
    """Somebody who is signed in."""

    site: Site
    id: str
    token: str

    def ask(self, method: str, path: str, **more: Any) -> httpx2.Response:
        headers = {"Authorization": f"Bearer {self.token}", **more.pop("headers", {})}
        return self.site.client.request(method, path, headers=headers, **more)

    def get(self, path: str, **more: Any) -> httpx2.Response:
        return self.ask("GET", path, **more)

    def post(self, path: str, **more: Any) -> httpx2.Response:
        return self.ask("POST", path, **more)

    def subject(self, **more: Any) -> str:
        """Id of a new subject of theirs."""
        answer = self.post("/api/subjects", json={"class_noun": "dog", "depicts": "no_person", **more})
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    def upload(self, subject: str, files: dict[str, bytes], **more: Any) -> httpx2.Response:
        parts = [("photos", (name, data, "application/octet-stream")) for name, data in files.items()]
        return self.post("/api/upload", data={"subject": subject}, files=parts, **more)

    def subject_with_photos(self, count: int = 5) -> str:
        """A subject with so many sample photos."""
        subject = self.subject()
        answer = self.upload(subject, {file.name: file.read_bytes() for file in SAMPLES[:count]})
        assert answer.status_code == 201, answer.text
        return subject

    def subject_with_model(self, *, number: int = 1, adapter: bytes = b"an adapter", sha256: str = "0" * 64) -> str:
        """A subject with a model, as a run would have left it."""
        subject = self.subject()
        with self.site.service.records.writing() as session:
            run = Run(
                id=new_id(),
                user_id=self.id,
                subject_id=subject,
                state="succeeded",
                params={},
                orchestrator="local",
                estimate={},
                steps=[],
            )
            session.add(run)
            session.flush()
            model = Model(
                id=new_id(),
                user_id=self.id,
                subject_id=subject,
                run_id=run.id,
                number=number,
                registry_name=subject,
                registry_version="1",
                adapter_sha256=sha256,
                verdict="PASS",
                metrics={"identity_gain": 0.8},
            )
            session.add(model)
            session.flush()
            session.get_one(Subject, subject).champion_id = model.id
        self.site.objects.put(self.id, "adapter", model.id, adapter)
        return subject

    def row(self, kind: Any, row_id: str) -> Any:
        """A row of the records."""
        with self.site.service.records.reading() as session:
            return session.scalar(select(kind).where(kind.id == row_id))


def is_problem(answer: httpx2.Response, status: int, kind: str) -> dict[str, Any]:
    """Asserts that an answer is that problem; returns it."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert body["type"].endswith(f"/{kind}"), body
    assert body["status"] == status
    assert body["title"]
    assert body["detail"]
    return dict(body)
