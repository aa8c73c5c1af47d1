"""The report of a training set: held-out photos, and how each training picture was made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageOps

from photoflux.pages.contact_sheet import contact_sheet
from photoflux.pages.page import Page
from photoflux.pages.palette import OUTLINE

TILE_PX = 148
Item = Mapping[str, Any]


def dataset_page(manifest: Mapping[str, Any], *, images: Mapping[str, Image.Image], photos: Mapping[str, Path]) -> Page:
    """The report. Pictures, file names and captions, which are personal, are on the full copy alone.

    `images` are those of the manifest's items by file, `photos` the files of the photos by the name they came with.
    """
    subject, base = manifest["subject"], manifest["base"]
    items = list({item["file"]: item for item in manifest["items"]}.values())  # originals are listed once per variant
    held_out, train = ([item for item in items if (item["split"] == "heldout") is out] for out in (True, False))
    name = f"{subject['trigger']} {subject['class_noun']}"
    page = Page(
        "Training set", subtitle=f"{subject.get('id', '')} · {name} · {base['name']} at {base['resolution_px']} px"
    )
    summary = f"{len(photos)} photos became {len(train)} training pictures"
    page.verdict("OK", f"{summary}; {len(held_out)} held out for evaluation.")
    with page.only(full=True):
        page.section("Trained on")
        page.image(_sheet(train, images, photos), "The photo with the square used, its picture, its variants")
        page.section("Held out: never seen in training")
        page.image(_sheet(held_out, images, photos), "Chosen before anything was varied")
        page.section("How each picture was made")
        page.table([_row(item) for item in items])
    return page


def _sheet(items: Sequence[Item], images: Mapping[str, Image.Image], photos: Mapping[str, Path]) -> Image.Image:
    rows: dict[str, list[Item]] = {}
    for item in items:
        rows.setdefault(item["source"], []).append(item)
    columns = 1 + max(len(row) for row in rows.values())
    blank = Image.new("RGB", (TILE_PX, TILE_PX), "white")
    tiles = [
        [_photo_with_square(photos[source], row[0]["transforms"]), *(images[item["file"]] for item in row)]
        for source, row in rows.items()
    ]
    return contact_sheet(
        [row + [blank] * (columns - len(row)) for row in tiles],
        row_labels=[f"{source}: {row[0]['caption']}" for source, row in rows.items()],
        column_labels=["photo", "picture", *(f"variant {n}" for n in range(1, columns - 1))],
        tile_px=TILE_PX,
    )


def _photo_with_square(photo: Path, transforms: Mapping[str, float]) -> Image.Image:
    """The whole photo, letterboxed, with an outline of the square that is used."""
    with Image.open(photo) as opened:
        image = opened.convert("RGB")
    scale = TILE_PX / max(image.size)
    tile = ImageOps.pad(image, (TILE_PX, TILE_PX), color="white")
    x0, y0 = ((TILE_PX - side * scale) / 2 for side in image.size)
    left, top = x0 + transforms["left"] * scale, y0 + transforms["top"] * scale
    right, bottom = left + transforms["side"] * scale - 1, top + transforms["side"] * scale - 1
    ImageDraw.Draw(tile).rectangle((left, top, right, bottom), outline=OUTLINE, width=2)
    return tile


def _row(item: Item) -> dict[str, object]:
    transforms = item["transforms"]
    words = ["cropped to the square"] if not transforms["variant"] else [f"{transforms['side']:.0f} px of it"]
    if transforms.get("rotation_deg"):
        words.append(f"turned {transforms['rotation_deg']:+.1f}°")
    if transforms.get("mirrored"):
        words.append("mirrored")
    if transforms.get("brightness", 1) != 1:
        words.append(f"light ×{transforms['brightness']:.2f}")
    return {"picture": item["file"], "from": item["source"], "made by": ", ".join(words), "caption": item["caption"]}
