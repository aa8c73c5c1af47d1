"""Subjects and their photos: what is stored of an upload, and what is said of the set."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from api.records.service_secrets import keyed_digest
from api.records.tables import Photo, Subject, new_id
from api.training.photo_decoding import Taken, unpack
from api.transport.problems import Problem
from photoflux.params import ValidateParams
from photoflux.photos.rules import REJECT, broken_rules, rule_table, status_of
from photoflux.photos.table import Examined, Pair, make_table, pair_of
from photoflux.photos.verdict import judge
from photoflux.vault.objects import Objects
from photoflux.vault.sealed import Label, seal_bytes, unseal_bytes

if TYPE_CHECKING:
    from photoflux.photos.inspect import Fingerprint, Likeness

R = TypeVar("R")


class NotCompared(Exception):
    """The verdict on a set needs photos compared, which takes seconds: not while others wait for what is locked.

    `photos`: of each in the set its id, and what was measured of it, sealed.
    """

    def __init__(self, owner: str, photos: Sequence[tuple[str, bytes]]) -> None:
        super().__init__("photos are to be compared first")
        self.owner, self.photos = owner, photos


@dataclass
class Compared:
    """Photos that were looked at: what is known of each, by its id, and how alike two are, by the digests of their pixels."""

    photos: dict[str, Examined] = field(default_factory=dict)
    alike: dict[Pair, Likeness] = field(default_factory=dict)

    def examined(self, ids: Sequence[str]) -> list[Examined] | None:
        """Those photos, to be judged as a set; None where one was not looked at, or not compared with another."""
        found = [replace(self.photos[one], row=dict(self.photos[one].row)) for one in ids if one in self.photos]
        prints = [one.print for one in found if one.print]
        known = all(pair_of(a, b) in self.alike for a, b in itertools.combinations(prints, 2))
        return found if known and len(found) == len(ids) else None


@dataclass(frozen=True)
class Album:
    """Photos of subjects, sealed under their owners' keys. `compare` is `Intake.compare`."""

    objects: Objects
    pepper: bytes
    params: ValidateParams
    photos_max: int
    compare: Callable[[Sequence[Fingerprint], Mapping[Pair, Likeness], str], dict[Pair, Likeness]]

    def apart(self, work: Callable[[Compared], R], known: Compared | None = None) -> R:
        """Do work that asks for verdicts in transactions of its own; photos are compared between two tries of it."""
        known = known or Compared()
        while True:
            try:
                return work(known)
            except NotCompared as missing:
                self.look(missing, known)

    def look(self, missing: NotCompared, known: Compared) -> None:
        """Look at photos, and compare each with each."""
        for photo_id, measured in missing.photos:
            if photo_id not in known.photos:
                plain = self._opened(missing.owner, photo_id, measured)
                known.photos[photo_id] = unpack(plain, name=photo_id)
        prints = [found.print for photo_id, _ in missing.photos if (found := known.photos[photo_id]).print]
        known.alike |= self.compare(prints, known.alike, missing.owner)  # type: ignore[arg-type]

    def verdict_alone(self, taken: Taken) -> tuple[str, list[dict[str, str]]]:
        """Status and reasons of one photo, before it is compared with others."""
        found = broken_rules(taken.row, rule_table(self.params))
        told = [rule for rule in found if rule.severity == REJECT] or found
        reasons = [{"code": taken.row["problem"] or rule.code, "message": rule.message_for(taken.row)} for rule in told]
        return status_of(found), reasons

    def known(self, session: Session, subject: Subject, taken: Taken) -> Photo | None:
        """The same picture, uploaded before, whatever file it came in."""
        query = select(Photo).where(
            Photo.subject_id == subject.id, Photo.fingerprint == self._fingerprint(subject, taken)
        )
        return session.scalar(query)

    def add(self, session: Session, subject: Subject, taken: Taken, *, name: str, photo_id: str) -> Photo:
        """Record a photo whose pixels are stored under `photo_id`. A problem of 409 beyond the quota."""
        count = session.scalar(select(func.count()).where(Photo.subject_id == subject.id)) or 0
        if count >= self.photos_max:
            raise Problem(409, "too-many-photos", f"A subject takes {self.photos_max} photos; delete some first.")
        status, reasons = self.verdict_alone(taken)
        photo = Photo(
            id=photo_id, user_id=subject.user_id, subject_id=subject.id, fingerprint=self._fingerprint(subject, taken),
            name=self._sealed(subject.user_id, "photo-name", photo_id, name.encode()),
            measured=self._sealed(subject.user_id, "measured", photo_id, taken.measured),
            width=taken.size[0], height=taken.size[1], stored_bytes=len(taken.photo), status=status, reasons=reasons,
        )  # fmt: skip
        session.add(photo)
        session.flush()
        subject.verdict = None
        return photo

    def store(self, owner: str, taken: Taken) -> str:
        """Seal a photo's pixels and its thumbnail; returns the id they are stored under."""
        photo_id = new_id()
        self.objects.put(owner, "photo", photo_id, taken.photo)
        self.objects.put(owner, "thumbnail", photo_id, taken.thumbnail)
        return photo_id

    def drop(self, owner: str, photo_id: str) -> None:
        """Delete a photo's pixels and its thumbnail."""
        for kind in ("photo", "thumbnail"):
            self.objects.delete(owner, kind, photo_id)

    def photos(self, session: Session, subject: Subject) -> list[Photo]:
        """All photos of a subject, oldest first."""
        query = select(Photo).where(Photo.subject_id == subject.id)
        return list(session.scalars(query.order_by(Photo.created_ms, Photo.id)))

    def foreseen(
        self, session: Session, subject: Subject, taken: Sequence[tuple[str, Taken]]
    ) -> tuple[NotCompared, Compared]:
        """What is to be compared once photos, by the ids that they will have, have come to a subject."""
        known = Compared({photo_id: unpack(one.measured, name=photo_id) for photo_id, one in taken if one.measured})
        sealed = [(photo.id, photo.measured or b"") for photo in self.photos(session, subject)]
        coming = [(photo_id, b"") for photo_id in known.photos]
        return NotCompared(subject.user_id, [*sealed, *coming][: self.photos_max]), known

    def verdict(self, session: Session, subject: Subject, known: Compared) -> dict[str, Any]:
        """What the pipeline's checks say of the whole set: verdict, score, advice, and photos by id.

        Kept, sealed, until a photo comes or goes. Raises NotCompared where that is to be done first.
        """
        label = Label(subject.user_id, "verdict", subject.id)
        if subject.verdict is not None:
            return dict(json.loads(unseal_bytes(subject.verdict, label=label, keyring=self.objects.keyring)))
        photos = self.photos(session, subject)
        examined = known.examined([photo.id for photo in photos])
        if examined is None:
            raise NotCompared(subject.user_id, [(photo.id, photo.measured or b"") for photo in photos])
        said = judge(make_table(examined, params=self.params, known=known.alike), params=self.params).as_json()
        said["advice"] = [_numbered(text, photos) for text in said["advice"]]
        subject.verdict = seal_bytes(json.dumps(said).encode(), label=label, keyring=self.objects.keyring)
        return said

    def usable(self, session: Session, subject: Subject, known: Compared) -> list[str]:
        """Ids of the photos that a run may train on. A problem of 409 when the set cannot be used; raises NotCompared."""
        said = self.verdict(session, subject, known)
        if said["verdict"] == REJECT:
            raise Problem(409, "photos-unfit", " ".join(said["advice"]) or "The photos cannot be trained on.")
        return [photo["file"] for photo in said["photos"] if photo["status"] != REJECT]

    def name_of(self, owner: str, kind: str, row_id: str, sealed: bytes | None) -> str:
        """The words that a sealed name holds."""
        if not sealed:
            return ""
        return unseal_bytes(sealed, label=Label(owner, kind, row_id), keyring=self.objects.keyring).decode()

    def sealed_name(self, owner: str, kind: str, row_id: str, name: str) -> bytes:
        return self._sealed(owner, kind, row_id, name.encode())

    def _opened(self, owner: str, photo_id: str, measured: bytes) -> bytes:
        return unseal_bytes(measured, label=Label(owner, "measured", photo_id), keyring=self.objects.keyring)

    def _sealed(self, owner: str, kind: str, row_id: str, data: bytes) -> bytes:
        return seal_bytes(data, label=Label(owner, kind, row_id), keyring=self.objects.keyring)

    def _fingerprint(self, subject: Subject, taken: Taken) -> str:
        return keyed_digest(self.pepper, subject.user_id, str(taken.row["sha256"]))


def _numbered(text: str, photos: Sequence[Photo]) -> str:
    """Advice names photos by their place among the subject's, since their names are sealed."""
    for number, photo in enumerate(photos, start=1):
        text = text.replace(photo.id, f"photo {number}")
    return text
