"""Subjects, and their photos with what is said of them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, File, Form, UploadFile
from sqlalchemy import func, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from api.deps import (
    Caller,
    ClassNounsDep,
    CollectionDep,
    JournalDep,
    Maker,
    ModeratorDep,
    ObjectsDep,
    OnceDep,
    PhotoIntakeDep,
    QueueDep,
    RecordsDep,
    SettingsDep,
    TriggerDep,
    owned,
)
from api.images.moderation import Moderator, UnsafeImage
from api.privacy import consents
from api.privacy.erasure import erase_subject
from api.records.audit_log import Journal
from api.records.database import Records, is_rolled_back, retried
from api.records.tables import Photo, Subject, new_id
from api.schemas import Id, Listed, PhotoShown, Reason, SetShown, SubjectAsked, SubjectShown, Uploaded, utc
from api.settings import ApiSettings
from api.training.photo_decoding import DecodedUpload, rejected
from api.training.photo_intake import PhotoIntake
from api.training.photo_sets import Comparisons, PhotoCollection
from api.transport.paging import PageDep
from api.transport.problems import BODY, SIGNED_IN, Problem, answers
from api.transport.quotas import check_capacity, check_storage
from api.transport.routing import make_router

router = make_router(prefix="/api", tags=["subjects and photos"], responses=answers(*SIGNED_IN, 422))
UPLOAD_BYTES, FILES_MAX = 128_000_000, 20
DECODED_AT_ONCE = 2
"""Files of an upload that are handed to the decoding processes at a time: more would only lie in memory twice."""
uploads = APIRouter(  # not of routes that are repeated: files are read once, and what is recorded of them is repeated by itself
    prefix="/api",
    tags=["subjects and photos"],
    form_limits={"max_files": FILES_MAX, "max_fields": 4, "max_part_size": 1000},
    responses=answers(*SIGNED_IN, *BODY, 403, 404, 409, 411, 503),
)


@router.post("/subjects", operation_id="createSubject", status_code=201, responses=answers(*BODY, 403, 409))
def create_subject(
    asked: SubjectAsked,
    records: RecordsDep,
    collection: CollectionDep,
    journal: JournalDep,
    settings: SettingsDep,
    class_nouns: ClassNounsDep,
    trigger: TriggerDep,
    caller: Maker,
    once: OnceDep,
) -> SubjectShown:
    """Begin a subject: who or what pictures are wanted of."""
    if asked.class_noun not in class_nouns:
        known = ", ".join(class_nouns)
        raise Problem(422, "invalid", f"The base does not know '{asked.class_noun}'; choose one of {known}.")
    if (asked.class_noun == "person") != (asked.depicts != consents.NOBODY):
        raise Problem(
            422, "invalid", "Say who a person is: 'me' or 'consenting_adult'; things and animals are 'no_person'."
        )
    limit = settings.subjects_max
    full = Problem(409, "too-many-subjects", f"You have {limit} subjects; delete one first.")
    with records.writing_for(caller.user_id) as session:
        if answered := once.answered(session, SubjectShown):
            return answered
        consents.required(session, caller.user_id, person=asked.depicts != consents.NOBODY)
        check_capacity(session, Subject, Subject.user_id == caller.user_id, limit=limit, problem=full)
        subject = Subject(id=new_id(), user_id=caller.user_id, class_noun=asked.class_noun, depicts=asked.depicts,
                          trigger=trigger)  # fmt: skip
        if asked.name:
            subject.name = collection.seal_name(caller.user_id, "subject-name", subject.id, asked.name)
        session.add(subject)
        session.flush()
        journal.note(session, caller.user_id, "subject.created", subject.id)
        return once.keep(session, shown(session, collection, subject), status=201)


@router.get("/subjects", operation_id="listSubjects")
def list_subjects(
    records: RecordsDep, collection: CollectionDep, caller: Caller, page: PageDep
) -> Listed[SubjectShown]:
    """Your subjects."""
    with records.reading() as session:
        rows, after = page.rows(session, select(Subject).where(Subject.user_id == caller.user_id), Subject)
        return Listed(items=[shown(session, collection, row) for row in rows], next=after)


@router.get("/subjects/{subject_id}", operation_id="getSubject", responses=answers(404))
def get_subject(subject_id: Id, records: RecordsDep, collection: CollectionDep, caller: Caller) -> SubjectShown:
    """One subject."""
    with records.reading() as session:
        return shown(session, collection, owned(session, Subject, subject_id, caller))


@router.delete("/subjects/{subject_id}", operation_id="deleteSubject", status_code=204, responses=answers(404))
def delete_subject(
    subject_id: Id, records: RecordsDep, objects: ObjectsDep, journal: JournalDep, queue: QueueDep, caller: Caller
) -> None:
    """Delete a subject with its photos, models, runs and pictures; what runs for it is cancelled."""
    with records.writing_for(caller.user_id) as session:
        subject = owned(session, Subject, subject_id, caller, lock=True)
        journal.note(session, caller.user_id, "subject.deleted", subject.id)
        gone = erase_subject(session, subject)
        queue.enqueue_deletion(session, gone)
    gone.clear(objects)


@router.get("/subjects/{subject_id}/photos", operation_id="listPhotos", responses=answers(404))
def list_photos(subject_id: Id, records: RecordsDep, collection: CollectionDep, caller: Caller) -> Uploaded:
    """The photos of a subject, oldest first, and what is said of them as a set."""
    with records.reading() as session:
        subject = owned(session, Subject, subject_id, caller)
        if subject.verdict is not None:
            return _listed(session, collection, subject, Comparisons())

    def listed(known: Comparisons) -> Uploaded:
        with records.writing_for(caller.user_id) as session:  # the verdict on the set is kept
            return _listed(session, collection, owned(session, Subject, subject_id, caller, lock=True), known)

    return collection.with_comparisons(listed)


def _listed(session: Session, collection: PhotoCollection, subject: Subject, known: Comparisons) -> Uploaded:
    photos = collection.photos(session, subject)
    return _judged(session, collection, subject, [(photo, None) for photo in photos], known=known)


@uploads.post("/upload", operation_id="upload", status_code=201, max_body_size=UPLOAD_BYTES)
def upload(
    records: RecordsDep,
    collection: CollectionDep,
    intake: PhotoIntakeDep,
    moderator: ModeratorDep,
    journal: JournalDep,
    settings: SettingsDep,
    caller: Maker,
    once: OnceDep,
    subject: Annotated[str, Form(pattern="^[0-9a-f]{32}$", description="the subject's id")],
    photos: Annotated[list[UploadFile], File(description="JPEG, PNG, TIFF, WebP, HEIC or AVIF files, one or many")],
) -> Uploaded:
    """Add photos to a subject. Each is judged by the same rules as in the pipeline; what is no photo is not kept."""
    once = once.about(subject.encode(), *(part for photo in photos for part in _told_apart(photo)))
    with records.reading() as session:
        row = owned(session, Subject, subject, caller)
        consents.required(session, caller.user_id, person=row.depicts != consents.NOBODY)
        if answered := once.answered(session, Uploaded):
            return answered
        arriving = sum(photo.size or 0 for photo in photos)
        check_storage(session, caller.user_id, limit=settings.stored_bytes_max, more=arriving)
    decoded = [
        one
        for start in range(0, len(photos), DECODED_AT_ONCE)
        for one in _decoded(intake, moderator, photos[start:][:DECODED_AT_ONCE], caller.user_id)
    ]
    names = [photo.filename or "" for photo in photos]
    return _stored(
        records, collection, journal, settings, subject, caller, once, list(zip(names, decoded, strict=True))
    )


def _decoded(
    intake: PhotoIntake, moderator: Moderator, photos: Sequence[UploadFile], person: str
) -> list[DecodedUpload]:
    """A few files decoded and checked; their memory is given back before the next ones are read."""
    files = [photo.file.read() for photo in photos]
    found = [_moderated(moderator, one) for one in intake.decode(files, person)]
    for photo in photos:
        photo.file.close()
    return found


def _told_apart(photo: UploadFile) -> tuple[bytes, bytes]:
    """A file's name and digest; it can be read from its beginning afterwards."""
    digest = hashlib.file_digest(photo.file, "sha256").digest()  # type: ignore[arg-type]
    photo.file.seek(0)
    return (photo.filename or "").encode(errors="surrogatepass"), digest


def _moderated(moderator: Moderator, upload: DecodedUpload) -> DecodedUpload:
    """The upload itself, or its rejection."""
    try:
        if upload.photo:
            moderator.check(upload.photo)
        return upload
    except UnsafeImage as error:
        return rejected("unsafe", str(error))


def _stored(
    records: Records,
    collection: PhotoCollection,
    journal: Journal,
    settings: ApiSettings,
    subject_id: str,
    caller: Caller,
    once: OnceDep,
    uploads: list[tuple[str, DecodedUpload]],
) -> Uploaded:
    """Seal the pixels, then record them all or none; what was sealed for nothing is deleted."""
    owner, stored, recorded_ids = caller.user_id, list[str](), set[str]()
    try:
        for _, one in uploads:  # one by one, so that what was stored before one that cannot be is deleted
            stored.append(collection.store(owner, one) if one.photo else "")
        arrived = [(photo_id, name, one) for photo_id, (name, one) in zip(stored, uploads, strict=True)]
        with records.reading() as session:
            subject = owned(session, Subject, subject_id, caller)
            missing, known = collection.comparisons_needed(
                session, subject, [(photo_id, one) for photo_id, _, one in arrived]
            )
        collection.compare_missing(missing, known)
        answer, recorded = collection.with_comparisons(
            lambda known: _recorded(records, collection, journal, settings, subject_id, caller, once, arrived, known),
            known,
        )
        recorded_ids = recorded & set(stored)
        return answer
    except DBAPIError as error:  # it may have been committed all the same; the sweep tells by the rows
        recorded_ids = set() if is_rolled_back(error) else set(stored)
        raise
    finally:
        for photo_id in set(filter(None, stored)) - recorded_ids:
            collection.delete(owner, photo_id)


@retried
def _recorded(
    records: Records,
    collection: PhotoCollection,
    journal: Journal,
    settings: ApiSettings,
    subject_id: str,
    caller: Caller,
    once: OnceDep,
    arrived: list[tuple[str, str, DecodedUpload]],
    known: Comparisons,
) -> tuple[Uploaded, set[str]]:
    """Record photos that are stored, by id and name; the answer, and the ids of photos that it names. Raises ComparisonsMissing."""
    owner = caller.user_id
    with records.writing_for(owner) as session:
        if answered := once.answered(session, Uploaded):
            return answered, set()
        more = sum(len(one.photo) for _, _, one in arrived)
        check_storage(session, owner, limit=settings.stored_bytes_max, more=more)
        subject = owned(session, Subject, subject_id, caller, lock=True)
        rows: list[tuple[Photo | None, DecodedUpload]] = []
        for photo_id, name, one in arrived:
            photo = None
            if photo_id:
                photo = collection.find_duplicate(session, subject, one)
                photo = photo or collection.add(session, subject, one, name=_plain(name), photo_id=photo_id)
            rows.append((photo, one))
        names = {id(one): _plain(name) for _, name, one in arrived}
        answer = _judged(session, collection, subject, rows, names=names, known=known)
        journal.note(session, owner, "photos.uploaded", subject.id)
        once.keep(session, answer, status=201)
        return answer, {photo.id for photo, _ in rows if photo}


@router.delete("/photos/{photo_id}", operation_id="deletePhoto", status_code=204, responses=answers(404))
def delete_photo(
    photo_id: Id, records: RecordsDep, collection: CollectionDep, journal: JournalDep, caller: Caller
) -> None:
    """Delete a photo. Models that were trained with it are not changed."""
    with records.writing_for(caller.user_id) as session:
        photo = owned(session, Photo, photo_id, caller)
        session.get_one(Subject, photo.subject_id, with_for_update=True).verdict = None
        session.flush()
        session.delete(owned(session, Photo, photo_id, caller, lock=True))
        journal.note(session, caller.user_id, "photo.deleted", photo.id)
    collection.delete(caller.user_id, photo_id)


def shown(session: Session, collection: PhotoCollection, subject: Subject) -> SubjectShown:
    """A subject for its owner."""
    photos = session.scalar(select(func.count()).select_from(Photo).where(Photo.subject_id == subject.id)) or 0
    return SubjectShown(
        id=subject.id, class_noun=subject.class_noun, depicts=subject.depicts,  # type: ignore[arg-type]
        name=collection.open_name(subject.user_id, "subject-name", subject.id, subject.name), trigger=subject.trigger,
        photos=photos, champion=subject.champion_id, created=utc(subject.created_ms),
    )  # fmt: skip


def _judged(
    session: Session,
    collection: PhotoCollection,
    subject: Subject,
    rows: list[tuple[Photo | None, DecodedUpload | None]]
    | list[tuple[Photo | None, DecodedUpload]]
    | list[tuple[Photo, None]],
    names: dict[int, str] | None = None,
    *,
    known: Comparisons,
) -> Uploaded:
    """Photos with the verdict that the set gives each of them. Raises ComparisonsMissing."""
    said = collection.verdict(session, subject, known)
    by_id = {photo["file"]: photo for photo in said["photos"]}
    photos = [
        _photo(collection, photo, by_id[photo.id])
        if photo
        else _rejected(collection, upload, (names or {}).get(id(upload), ""))
        for photo, upload in rows
    ]
    return Uploaded(photos=photos, set=SetShown(verdict=said["verdict"], score=said["score"], advice=said["advice"]))


def _photo(collection: PhotoCollection, photo: Photo, said: dict[str, object]) -> PhotoShown:
    reasons = [Reason.model_validate(reason) for reason in said["reasons"]]  # type: ignore[attr-defined]
    return PhotoShown(
        id=photo.id, name=collection.open_name(photo.user_id, "photo-name", photo.id, photo.name),
        status=said["status"], reasons=reasons, width=photo.width, height=photo.height,  # type: ignore[arg-type]
        thumbnail=f"/api/media/photos/{photo.id}",
    )  # fmt: skip


def _rejected(collection: PhotoCollection, upload: DecodedUpload | None, name: str) -> PhotoShown:
    assert upload is not None
    status, reasons = collection.photo_verdict(upload)
    return PhotoShown(
        id=None, name=name, status=status, reasons=[Reason.model_validate(reason) for reason in reasons],  # type: ignore[arg-type]
        width=0, height=0, thumbnail=None,
    )  # fmt: skip


def _plain(name: str) -> str:
    """A file's name without its path and what cannot be shown, at most 120 letters."""
    last = name.replace("\\", "/").rsplit("/", 1)[-1]
    return "".join(letter for letter in last if letter.isprintable())[:120].encode(errors="replace").decode()
