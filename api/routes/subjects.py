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
    AuditLogDep,
    ClassNounsDep,
    CollectionDep,
    CurrentUser,
    IdempotencyDep,
    MeteredUser,
    ModeratorDep,
    ObjectsDep,
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
from api.records.audit_log import AuditLog
from api.records.database import Records, is_rolled_back, retry_on_rollback
from api.records.tables import Photo, Subject, new_id
from api.schemas import Id, Page, PhotoPublic, PhotoSetPublic, Reason, SubjectCreate, SubjectPublic, UploadResult, utc
from api.settings import ApiSettings
from api.training.photo_decoding import DecodedUpload, rejected
from api.training.photo_intake import PhotoIntake
from api.training.photo_sets import Comparisons, PhotoCollection
from api.transport.paging import PageQueryDep
from api.transport.problems import BODY, SIGNED_IN, Problem, problem_responses
from api.transport.quotas import check_capacity, check_storage
from api.transport.routing import make_router

router = make_router(prefix="/api", tags=["subjects and photos"], responses=problem_responses(*SIGNED_IN, 422))
UPLOAD_BYTES, FILES_MAX = 128_000_000, 20
DECODED_AT_ONCE = 2
"""Files of an upload that are decoded at a time: more would only be in memory twice."""
uploads = APIRouter(  # not retried as a whole: files can be read once, and `_record_photos` retries itself
    prefix="/api",
    tags=["subjects and photos"],
    form_limits={"max_files": FILES_MAX, "max_fields": 4, "max_part_size": 1000},
    responses=problem_responses(*SIGNED_IN, *BODY, 403, 404, 409, 411, 503),
)


@router.post("/subjects", operation_id="createSubject", status_code=201, responses=problem_responses(*BODY, 403, 409))
def create_subject(
    body: SubjectCreate,
    records: RecordsDep,
    collection: CollectionDep,
    audit_log: AuditLogDep,
    settings: SettingsDep,
    class_nouns: ClassNounsDep,
    trigger: TriggerDep,
    current_user: MeteredUser,
    idempotency: IdempotencyDep,
) -> SubjectPublic:
    """Begin a subject: who or what pictures are wanted of."""
    if class_nouns and body.class_noun not in class_nouns:
        known = ", ".join(class_nouns)
        raise Problem(422, "invalid", f"The base does not know '{body.class_noun}'; choose one of {known}.")
    if (body.class_noun == "person") != (body.depicts != consents.NO_PERSON):
        raise Problem(
            422, "invalid", "Say who a person is: 'me' or 'consenting_adult'; things and animals are 'no_person'."
        )
    limit = settings.subjects_max
    full = Problem(409, "too-many-subjects", f"You have {limit} subjects; delete one first.")
    with records.writing_for(current_user.user_id) as session:
        if stored := idempotency.replay(session, SubjectPublic):
            return stored
        consents.require_consents(session, current_user.user_id, person=body.depicts != consents.NO_PERSON)
        check_capacity(session, Subject, Subject.user_id == current_user.user_id, limit=limit, problem=full)
        subject = Subject(
            id=new_id(), user_id=current_user.user_id, class_noun=body.class_noun, depicts=body.depicts, trigger=trigger
        )
        if body.name:
            subject.name = collection.seal_name(current_user.user_id, "subject-name", subject.id, body.name)
        session.add(subject)
        session.flush()
        audit_log.record(session, current_user.user_id, "subject.created", subject.id)
        return idempotency.store(session, to_public(session, collection, subject), status=201)


@router.get("/subjects", operation_id="listSubjects")
def list_subjects(
    records: RecordsDep, collection: CollectionDep, current_user: CurrentUser, page: PageQueryDep
) -> Page[SubjectPublic]:
    """Your subjects."""
    with records.reading() as session:
        rows, after = page.rows(session, select(Subject).where(Subject.user_id == current_user.user_id), Subject)
        return Page(items=[to_public(session, collection, row) for row in rows], next=after)


@router.get("/subjects/{subject_id}", operation_id="getSubject", responses=problem_responses(404))
def get_subject(
    subject_id: Id, records: RecordsDep, collection: CollectionDep, current_user: CurrentUser
) -> SubjectPublic:
    """One subject."""
    with records.reading() as session:
        return to_public(session, collection, owned(session, Subject, subject_id, current_user))


@router.delete(
    "/subjects/{subject_id}", operation_id="deleteSubject", status_code=204, responses=problem_responses(404)
)
def delete_subject(
    subject_id: Id,
    records: RecordsDep,
    objects: ObjectsDep,
    audit_log: AuditLogDep,
    queue: QueueDep,
    current_user: CurrentUser,
) -> None:
    """Delete a subject with its photos, models, runs and pictures; what runs for it is cancelled."""
    with records.writing_for(current_user.user_id) as session:
        subject = owned(session, Subject, subject_id, current_user, lock=True)
        audit_log.record(session, current_user.user_id, "subject.deleted", subject.id)
        plan = erase_subject(session, subject)
        queue.enqueue_deletion(session, plan)
    plan.delete_objects(objects)


@router.get("/subjects/{subject_id}/photos", operation_id="listPhotos", responses=problem_responses(404))
def list_photos(
    subject_id: Id, records: RecordsDep, collection: CollectionDep, current_user: CurrentUser
) -> UploadResult:
    """The photos of a subject, oldest first, and what is said of them as a set."""
    with records.reading() as session:
        subject = owned(session, Subject, subject_id, current_user)
        if subject.verdict is not None:
            return _photo_list(session, collection, subject, Comparisons())

    def list_with(known: Comparisons) -> UploadResult:
        with records.writing_for(current_user.user_id) as session:  # the verdict on the set is kept
            return _photo_list(session, collection, owned(session, Subject, subject_id, current_user, lock=True), known)

    return collection.with_comparisons(list_with)


def _photo_list(session: Session, collection: PhotoCollection, subject: Subject, known: Comparisons) -> UploadResult:
    photos = collection.photos(session, subject)
    return _upload_result(session, collection, subject, [(photo, None) for photo in photos], known=known)


@uploads.post("/upload", operation_id="upload", status_code=201, max_body_size=UPLOAD_BYTES)
def upload(
    records: RecordsDep,
    collection: CollectionDep,
    intake: PhotoIntakeDep,
    moderator: ModeratorDep,
    audit_log: AuditLogDep,
    settings: SettingsDep,
    current_user: MeteredUser,
    idempotency: IdempotencyDep,
    subject: Annotated[str, Form(pattern="^[0-9a-f]{32}$", description="the subject's id")],
    photos: Annotated[list[UploadFile], File(description="JPEG, PNG, TIFF, WebP, HEIC or AVIF files, one or many")],
) -> UploadResult:
    """Add photos to a subject. Each is judged by the same rules as in the pipeline; what is no photo is not kept."""
    idempotency = idempotency.including(
        subject.encode(), *(part for photo in photos for part in _name_and_digest(photo))
    )
    with records.reading() as session:
        row = owned(session, Subject, subject, current_user)
        consents.require_consents(session, current_user.user_id, person=row.depicts != consents.NO_PERSON)
        if stored := idempotency.replay(session, UploadResult):
            return stored
        arriving = sum(photo.size or 0 for photo in photos)
        check_storage(session, current_user.user_id, limit=settings.stored_bytes_max, more=arriving)
    decoded = [
        one
        for start in range(0, len(photos), DECODED_AT_ONCE)
        for one in _decode_files(intake, moderator, photos[start:][:DECODED_AT_ONCE], current_user.user_id)
    ]
    names = [photo.filename or "" for photo in photos]
    return _store_photos(
        records,
        collection,
        audit_log,
        settings,
        subject,
        current_user,
        idempotency,
        list(zip(names, decoded, strict=True)),
    )


def _decode_files(
    intake: PhotoIntake, moderator: Moderator, photos: Sequence[UploadFile], person: str
) -> list[DecodedUpload]:
    """Decode a few files, check them, and close them, which frees their memory."""
    files = [photo.file.read() for photo in photos]
    found = [_moderated(moderator, one) for one in intake.decode(files, person)]
    for photo in photos:
        photo.file.close()
    return found


def _name_and_digest(photo: UploadFile) -> tuple[bytes, bytes]:
    """A file's name and SHA-256; the file is rewound."""
    digest = hashlib.file_digest(photo.file, "sha256").digest()  # type: ignore[arg-type]
    photo.file.seek(0)
    return (photo.filename or "").encode(errors="surrogatepass"), digest


def _moderated(moderator: Moderator, decoded: DecodedUpload) -> DecodedUpload:
    """The decoded upload, or its refusal where moderation finds it unsafe."""
    try:
        if decoded.photo:
            moderator.check(decoded.photo)
        return decoded
    except UnsafeImage as error:
        return rejected("unsafe", str(error))


def _store_photos(
    records: Records,
    collection: PhotoCollection,
    audit_log: AuditLog,
    settings: ApiSettings,
    subject_id: str,
    current_user: CurrentUser,
    idempotency: IdempotencyDep,
    decoded: list[tuple[str, DecodedUpload]],
) -> UploadResult:
    """Seal the photos, then record all of them or none; photos without a row are deleted again."""
    owner, stored_ids, recorded_ids = current_user.user_id, list[str](), set[str]()
    try:
        for _, one in decoded:  # one by one, so that what was stored before one that cannot be is deleted
            stored_ids.append(collection.store(owner, one) if one.photo else "")
        stored_photos = [(photo_id, name, one) for photo_id, (name, one) in zip(stored_ids, decoded, strict=True)]
        with records.reading() as session:
            subject = owned(session, Subject, subject_id, current_user)
            missing, known = collection.comparisons_needed(
                session, subject, [(photo_id, one) for photo_id, _, one in stored_photos]
            )
        collection.compare_missing(missing, known)
        answer, recorded = collection.with_comparisons(
            lambda known: _record_photos(
                records, collection, audit_log, settings, subject_id, current_user, idempotency, stored_photos, known
            ),
            known,
        )
        recorded_ids = recorded & set(stored_ids)
        return answer
    except DBAPIError as error:  # it may have been committed all the same; retention deletes what no row names
        recorded_ids = set() if is_rolled_back(error) else set(stored_ids)
        raise
    finally:
        for photo_id in set(filter(None, stored_ids)) - recorded_ids:
            collection.delete(owner, photo_id)


@retry_on_rollback
def _record_photos(
    records: Records,
    collection: PhotoCollection,
    audit_log: AuditLog,
    settings: ApiSettings,
    subject_id: str,
    current_user: CurrentUser,
    idempotency: IdempotencyDep,
    stored_photos: list[tuple[str, str, DecodedUpload]],
    known: Comparisons,
) -> tuple[UploadResult, set[str]]:
    """Record photos that are stored, by id and name; the answer, and the ids of photos that it names. Raises ComparisonsMissing."""
    owner = current_user.user_id
    with records.writing_for(owner) as session:
        if stored := idempotency.replay(session, UploadResult):
            return stored, set()
        more = sum(len(one.photo) for _, _, one in stored_photos)
        check_storage(session, owner, limit=settings.stored_bytes_max, more=more)
        subject = owned(session, Subject, subject_id, current_user, lock=True)
        rows: list[tuple[Photo | None, DecodedUpload]] = []
        for photo_id, name, one in stored_photos:
            photo = None
            if photo_id:
                photo = collection.find_duplicate(session, subject, one)
                photo = photo or collection.add(session, subject, one, name=_display_name(name), photo_id=photo_id)
            rows.append((photo, one))
        names = {id(one): _display_name(name) for _, name, one in stored_photos}
        answer = _upload_result(session, collection, subject, rows, names=names, known=known)
        audit_log.record(session, owner, "photos.uploaded", subject.id)
        idempotency.store(session, answer, status=201)
        return answer, {photo.id for photo, _ in rows if photo}


@router.delete("/photos/{photo_id}", operation_id="deletePhoto", status_code=204, responses=problem_responses(404))
def delete_photo(
    photo_id: Id, records: RecordsDep, collection: CollectionDep, audit_log: AuditLogDep, current_user: CurrentUser
) -> None:
    """Delete a photo. Models that were trained with it are not changed."""
    with records.writing_for(current_user.user_id) as session:
        photo = owned(session, Photo, photo_id, current_user)
        session.get_one(Subject, photo.subject_id, with_for_update=True).verdict = None
        session.flush()
        session.delete(owned(session, Photo, photo_id, current_user, lock=True))
        audit_log.record(session, current_user.user_id, "photo.deleted", photo.id)
    collection.delete(current_user.user_id, photo_id)


def to_public(session: Session, collection: PhotoCollection, subject: Subject) -> SubjectPublic:
    """A subject for its owner."""
    photos = session.scalar(select(func.count()).select_from(Photo).where(Photo.subject_id == subject.id)) or 0
    return SubjectPublic(
        id=subject.id,
        class_noun=subject.class_noun,
        depicts=subject.depicts,  # type: ignore[arg-type]
        name=collection.open_name(subject.user_id, "subject-name", subject.id, subject.name),
        trigger=subject.trigger,
        photos=photos,
        champion=subject.champion_id,
        created=utc(subject.created_ms),
    )


def _upload_result(
    session: Session,
    collection: PhotoCollection,
    subject: Subject,
    rows: list[tuple[Photo | None, DecodedUpload | None]]
    | list[tuple[Photo | None, DecodedUpload]]
    | list[tuple[Photo, None]],
    names: dict[int, str] | None = None,
    *,
    known: Comparisons,
) -> UploadResult:
    """The photos with their verdicts as members of the set. Raises ComparisonsMissing."""
    verdict = collection.verdict(session, subject, known)
    by_id = {photo["file"]: photo for photo in verdict["photos"]}
    photos = [
        _photo_public(collection, photo, by_id[photo.id])
        if photo
        else _rejected_photo(collection, decoded, (names or {}).get(id(decoded), ""))
        for photo, decoded in rows
    ]
    return UploadResult(
        photos=photos, set=PhotoSetPublic(verdict=verdict["verdict"], score=verdict["score"], advice=verdict["advice"])
    )


def _photo_public(collection: PhotoCollection, photo: Photo, verdict: dict[str, object]) -> PhotoPublic:
    reasons = [Reason.model_validate(reason) for reason in verdict["reasons"]]  # type: ignore[attr-defined]
    return PhotoPublic(
        id=photo.id,
        name=collection.open_name(photo.user_id, "photo-name", photo.id, photo.name),
        status=verdict["status"],  # type: ignore[arg-type]
        reasons=reasons,
        width=photo.width,
        height=photo.height,
        thumbnail=f"/api/media/photos/{photo.id}",
    )


def _rejected_photo(collection: PhotoCollection, decoded: DecodedUpload | None, name: str) -> PhotoPublic:
    assert decoded is not None
    status, reasons = collection.photo_verdict(decoded)
    return PhotoPublic(
        id=None,
        name=name,
        status=status,  # type: ignore[arg-type]
        reasons=[Reason.model_validate(reason) for reason in reasons],
        width=0,
        height=0,
        thumbnail=None,
    )


def _display_name(name: str) -> str:
    """A file's name without its path and what cannot be shown, at most 120 letters."""
    last = name.replace("\\", "/").rsplit("/", 1)[-1]
    return "".join(letter for letter in last if letter.isprintable())[:120].encode(errors="replace").decode()
