"""Files: thumbnails, images and reports of their owner, by access token or by the cookie that `<img>` sends."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

from fastapi import Depends, Header, Path, Query, Request, Response
from sqlalchemy import select
from starlette.concurrency import run_in_threadpool

from api.accounts.tokens import AccessTokenClaims
from api.deps import MediaUser, ObjectsDep, RecordsDep, RendererDep, owned
from api.images.generator import provenance
from api.images.rendering import MEDIA_TYPES, checked_size
from api.records.database import Records
from api.records.tables import GeneratedImage, Generation, Model, Photo, Run
from api.schemas import Format, Id, Size
from api.training.finetuning import CARD, REPORTS
from api.transport.concurrency import CLIENT_CLOSED_REQUEST, is_disconnected
from api.transport.problems import SIGNED_IN, Problem, problem_responses
from api.transport.routing import make_router
from photoflux.images import SUFFIXES
from photoflux.vault.blobs import BlobMissing
from photoflux.vault.objects import Objects

router = make_router(prefix="/api/media", tags=["media"], responses=problem_responses(*SIGNED_IN, 404, 422))
PRIVATE = "private, no-cache"
PAGE_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; frame-ancestors 'self'"
IMAGES: dict[int | str, dict[str, Any]] = {
    200: {"content": {kind: {"schema": {"type": "string", "format": "binary"}} for kind in MEDIA_TYPES.values()}},
    304: {"description": "not changed since the `ETag` that was sent"},
}
PAGES: dict[int | str, dict[str, Any]] = {200: {"content": {"text/html": {"schema": {"type": "string"}}}}}
CARDS: dict[int | str, dict[str, Any]] = {200: {"content": {"text/markdown": {"schema": {"type": "string"}}}}}
IfNoneMatch = Annotated[str, Header(max_length=200, description="`ETag` of what you have: 304 if it is the same still")]


@router.get("/photos/{photo_id}", operation_id="getThumbnail", response_class=Response, responses=IMAGES)
def get_thumbnail(
    photo_id: Id, records: RecordsDep, objects: ObjectsDep, current_user: MediaUser, if_none_match: IfNoneMatch = ""
) -> Response:
    """The preview of an uploaded photo, as JPEG whatever it came as."""
    with records.reading() as session:
        photo = owned(session, Photo, photo_id, current_user)
    etag = f'"{photo.id}"'
    if if_none_match == etag:
        return Response(status_code=304, headers={"ETag": etag, "Cache-Control": PRIVATE})
    return _file(objects.get(current_user.user_id, "thumbnail", photo_id), "image/jpeg", etag)


async def _limit_downloads(renderer: RendererDep, current_user: MediaUser) -> AsyncIterator[None]:
    """Limits the images sent to a person at a time: each stays in memory until its last byte is read."""
    async with renderer.downloads.take(current_user.user_id):
        yield


@router.get(
    "/images/{result_id}.{position}",
    operation_id="getImage",
    response_class=Response,
    responses=IMAGES | problem_responses(503),
    dependencies=[Depends(_limit_downloads)],
)
async def get_image(
    request: Request,
    result_id: Id,
    position: Annotated[int, Path(ge=0, le=63)],
    records: RecordsDep,
    objects: ObjectsDep,
    renderer: RendererDep,
    current_user: MediaUser,
    size: Annotated[Size | None, Query()] = None,
    format: Annotated[Format | None, Query()] = None,  # noqa: A002
    download: bool = False,
    if_none_match: IfNoneMatch = "",
) -> Response:
    """An image, as it was asked for or in another size or format."""
    if size is not None:
        checked_size(size)
    image, row, provenance_facts = await run_in_threadpool(_find_image, records, current_user, result_id, position)
    kind = format or row.format
    etag = f'"{hashlib.sha256(f"{image.sha256} {size} {kind}".encode()).hexdigest()[:32]}"'
    if if_none_match == etag:
        return Response(status_code=304, headers={"ETag": etag, "Cache-Control": PRIVATE})

    def finished() -> bytes:
        file = objects.get(current_user.user_id, "image", image.object_id)
        return renderer.convert(file, size=size, fmt=kind, stored_format=row.format, provenance=provenance_facts)

    if size is None and kind == row.format:
        data = await run_in_threadpool(finished)
    else:
        async with renderer.conversions.take(current_user.user_id):
            if await is_disconnected(request):
                return Response(status_code=CLIENT_CLOSED_REQUEST)
            data = await run_in_threadpool(finished)
    name = f"photoflux-{result_id[:8]}-{position}{SUFFIXES[kind]}" if download else ""
    return _file(data, MEDIA_TYPES[kind], etag, name=name)


def _find_image(
    records: Records, current_user: AccessTokenClaims, result_id: str, position: int
) -> tuple[GeneratedImage, Generation, dict[str, str]]:
    """An image, the generation that it is of, and what its file says of its making. A problem of 404 without one."""
    with records.reading() as session:
        row = owned(session, Generation, result_id, current_user)
        where = (GeneratedImage.generation_id == result_id, GeneratedImage.position == position)
        image, model = session.scalar(select(GeneratedImage).where(*where)), session.get(Model, row.model_id or "")
    if image is None:
        raise Problem(404, "not-found", "There is no such picture here.")
    return image, row, provenance(model, seed=image.seed, style=row.style) if model else {}


@router.get("/reports/{run_id}/{step}", operation_id="getReport", response_class=Response, responses=PAGES)
def get_report(
    run_id: Id,
    step: Literal[REPORTS],  # type: ignore[valid-type]
    records: RecordsDep,
    objects: ObjectsDep,
    current_user: MediaUser,
) -> Response:
    """The page that a step of a run wrote, with the subject's pictures."""
    page = _document(
        records, objects, current_user, run_id, step, missing="This step wrote no report, or has not ended."
    )
    return Response(
        page,
        media_type="text/html; charset=utf-8",
        headers={"Cache-Control": PRIVATE, "Content-Security-Policy": PAGE_POLICY},
    )


@router.get("/cards/{run_id}", operation_id="getCard", response_class=Response, responses=CARDS)
def get_card(run_id: Id, records: RecordsDep, objects: ObjectsDep, current_user: MediaUser) -> Response:
    """The card of the model that a run made: what it was learnt from, how good it is, and what it is not for."""
    card = _document(records, objects, current_user, run_id, CARD, missing="This run made no model, or has not ended.")
    return Response(card, media_type="text/markdown; charset=utf-8", headers={"Cache-Control": PRIVATE})


def _document(
    records: Records, objects: Objects, current_user: AccessTokenClaims, run_id: str, name: str, *, missing: str
) -> bytes:
    """A document of a run. A problem of 404 for a run of somebody else's, or one that has none."""
    with records.reading() as session:
        owned(session, Run, run_id, current_user)
    try:
        return objects.get(current_user.user_id, "report", f"{run_id}.{name}")
    except BlobMissing as error:
        raise Problem(404, "not-found", missing) from error


def _file(data: bytes, media_type: str, etag: str, *, name: str = "") -> Response:
    headers = {"ETag": etag, "Cache-Control": PRIVATE}
    if name:
        headers["Content-Disposition"] = f'attachment; filename="{name}"'
    return Response(data, media_type=media_type, headers=headers)
