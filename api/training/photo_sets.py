"""The photos of subjects: storing uploads, and the verdict on the whole set."""

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
from api.training.photo_decoding import DecodedUpload, unpack
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


class ComparisonsMissing(Exception):
    """The verdict on a set needs likenesses that are not there yet. Comparing takes seconds, and must not hold row locks.

    `photos`: for each in the set its id, and what was measured of it, sealed.
    """

    def __init__(self, owner: str, photos: Sequence[tuple[str, bytes]]) -> None:
        super().__init__("photos are to be compared first")
        self.owner, self.photos = owner, photos


@dataclass
class Comparisons:
    """Photos that were unsealed, by id, and the likenesses of pairs, by the digests of their pixels."""

    photos: dict[str, Examined] = field(default_factory=dict)
    likenesses: dict[Pair, Likeness] = field(default_factory=dict)

    def examined(self, ids: Sequence[str]) -> list[Examined] | None:
        """Those photos, to be judged as a set; None where one was not unsealed, or not compared with another."""
        found = [replace(self.photos[one], row=dict(self.photos[one].row)) for one in ids if one in self.photos]
        prints = [one.print for one in found if one.print]
        known = all(pair_of(a, b) in self.likenesses for a, b in itertools.combinations(prints, 2))
        return found if known and len(found) == len(ids) else None


@dataclass(frozen=True)
class PhotoCollection:
    """Photos of subjects, sealed under their owners' keys. `compare` is `PhotoIntake.compare`."""

    objects: Objects
    pepper: bytes
    params: ValidateParams
    photos_max: int
    compare: Callable[[Sequence[Fingerprint], Mapping[Pair, Likeness], str], dict[Pair, Likeness]]

    def with_comparisons(self, work: Callable[[Comparisons], R], known: Comparisons | None = None) -> R:
        """Do work that raises ComparisonsMissing inside its transaction: again, after the photos were compared outside of it."""
        known = known or Comparisons()
        while True:
            try:
                return work(known)
            except ComparisonsMissing as missing:
                self.compare_missing(missing, known)

    def compare_missing(self, missing: ComparisonsMissing, known: Comparisons) -> None:
        """Unseal the photos that `missing` names and add their likenesses to `known`."""
        for photo_id, measured in missing.photos:
            if photo_id not in known.photos:
                unsealed = self._opened(missing.owner, photo_id, measured)
                known.photos[photo_id] = unpack(unsealed, name=photo_id)
        prints = [found.print for photo_id, _ in missing.photos if (found := known.photos[photo_id]).print]
        known.likenesses |= self.compare(prints, known.likenesses, missing.owner)  # type: ignore[arg-type]

    def photo_verdict(self, upload: DecodedUpload) -> tuple[str, list[dict[str, str]]]:
        """Status and reasons of one photo, before it is compared with others."""
        found = broken_rules(upload.row, rule_table(self.params))
        shown = [rule for rule in found if rule.severity == REJECT] or found
        reasons = [
            {"code": upload.row["problem"] or rule.code, "message": rule.message_for(upload.row)} for rule in shown
        ]
        return status_of(found), reasons

    def find_duplicate(self, session: Session, subject: Subject, upload: DecodedUpload) -> Photo | None:
        """The subject's photo with the same pixels, in whatever file they came; None where there is none."""
        query = select(Photo).where(
            Photo.subject_id == subject.id, Photo.fingerprint == self._fingerprint(subject, upload)
        )
        return session.scalar(query)

    def add(self, session: Session, subject: Subject, upload: DecodedUpload, *, name: str, photo_id: str) -> Photo:
        """Record a photo whose pixels are stored under `photo_id`. A problem of 409 beyond the quota."""
        count = session.scalar(select(func.count()).where(Photo.subject_id == subject.id)) or 0
        if count >= self.photos_max:
            raise Problem(409, "too-many-photos", f"A subject takes {self.photos_max} photos; delete some first.")
        status, reasons = self.photo_verdict(upload)
        photo = Photo(
            id=photo_id,
            user_id=subject.user_id,
            subject_id=subject.id,
            fingerprint=self._fingerprint(subject, upload),
            name=self._sealed(subject.user_id, "photo-name", photo_id, name.encode()),
            measured=self._sealed(subject.user_id, "measured", photo_id, upload.measured),
            width=upload.size[0],
            height=upload.size[1],
            stored_bytes=len(upload.photo),
            status=status,
            reasons=reasons,
        )
        session.add(photo)
        session.flush()
        subject.verdict = None
        return photo

    def store(self, owner: str, upload: DecodedUpload) -> str:
        """Seal a photo's pixels and its thumbnail; returns the id they are stored under."""
        photo_id = new_id()
        self.objects.put(owner, "photo", photo_id, upload.photo)
        self.objects.put(owner, "thumbnail", photo_id, upload.thumbnail)
        return photo_id

    def delete(self, owner: str, photo_id: str) -> None:
        """Delete a photo's pixels and its thumbnail."""
        for kind in ("photo", "thumbnail"):
            self.objects.delete(owner, kind, photo_id)

    def photos(self, session: Session, subject: Subject) -> list[Photo]:
        """All photos of a subject, oldest first."""
        query = select(Photo).where(Photo.subject_id == subject.id)
        return list(session.scalars(query.order_by(Photo.created_ms, Photo.id)))

    def comparisons_needed(
        self, session: Session, subject: Subject, uploads: Sequence[tuple[str, DecodedUpload]]
    ) -> tuple[ComparisonsMissing, Comparisons]:
        """What a verdict will ask for once `uploads`, by the ids that they will have, are recorded: to be compared before that."""
        known = Comparisons(
            {photo_id: unpack(one.measured, name=photo_id) for photo_id, one in uploads if one.measured}
        )
        sealed = [(photo.id, photo.measured or b"") for photo in self.photos(session, subject)]
        coming = [(photo_id, b"") for photo_id in known.photos]
        return ComparisonsMissing(subject.user_id, [*sealed, *coming][: self.photos_max]), known

    def verdict(self, session: Session, subject: Subject, known: Comparisons) -> dict[str, Any]:
        """What the pipeline's checks say of the whole set: verdict, score, advice, and photos by id.

        Stored, sealed, until a photo comes or goes. Raises ComparisonsMissing.
        """
        label = Label(subject.user_id, "verdict", subject.id)
        if subject.verdict is not None:
            return dict(json.loads(unseal_bytes(subject.verdict, label=label, keyring=self.objects.keyring)))
        photos = self.photos(session, subject)
        examined = known.examined([photo.id for photo in photos])
        if examined is None:
            raise ComparisonsMissing(subject.user_id, [(photo.id, photo.measured or b"") for photo in photos])
        said = judge(make_table(examined, params=self.params, known=known.likenesses), params=self.params).as_json()
        said["advice"] = [_numbered(text, photos) for text in said["advice"]]
        subject.verdict = seal_bytes(json.dumps(said).encode(), label=label, keyring=self.objects.keyring)
        return said

    def usable_photos(self, session: Session, subject: Subject, known: Comparisons) -> list[str]:
        """Ids of the photos that a run may train on. A problem of 409 when the set cannot be used; raises ComparisonsMissing."""
        said = self.verdict(session, subject, known)
        if said["verdict"] == REJECT:
            raise Problem(409, "photos-unfit", " ".join(said["advice"]) or "The photos cannot be trained on.")
        return [photo["file"] for photo in said["photos"] if photo["status"] != REJECT]

    def open_name(self, owner: str, kind: str, row_id: str, sealed: bytes | None) -> str:
        """A sealed name in the clear; empty where there is none."""
        if not sealed:
            return ""
        return unseal_bytes(sealed, label=Label(owner, kind, row_id), keyring=self.objects.keyring).decode()

    def seal_name(self, owner: str, kind: str, row_id: str, name: str) -> bytes:
        return self._sealed(owner, kind, row_id, name.encode())

    def _opened(self, owner: str, photo_id: str, measured: bytes) -> bytes:
        return unseal_bytes(measured, label=Label(owner, "measured", photo_id), keyring=self.objects.keyring)

    def _sealed(self, owner: str, kind: str, row_id: str, data: bytes) -> bytes:
        return seal_bytes(data, label=Label(owner, kind, row_id), keyring=self.objects.keyring)

    def _fingerprint(self, subject: Subject, upload: DecodedUpload) -> str:
        return keyed_digest(self.pepper, subject.user_id, str(upload.row["sha256"]))


def _numbered(text: str, photos: Sequence[Photo]) -> str:
    """Advice names photos by their place among the subject's, since their names are sealed."""
    for number, photo in enumerate(photos, start=1):
        text = text.replace(photo.id, f"photo {number}")
    return text
