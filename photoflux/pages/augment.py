"""The page of one training set: which photos are held out, and how each picture was made of which photo."""

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


def dataset_page(
    manifest: Mapping[str, Any], *, pictures: Mapping[str, Image.Image], photos: Mapping[str, Path]
) -> Page:
    """Pictures, names and captions, which are a person's own, are on the full copy alone.

    `pictures` are those of the manifest's items by file, `photos` the files of the photos by the name they came with.
    """
    subject, base = manifest["subject"], manifest["base"]
    items = list({item["file"]: item for item in manifest["items"]}.values())  # originals are listed once per variant
    held, train = ([item for item in items if (item["split"] == "heldout") is out] for out in (True, False))
    name = f"{subject['trigger']} {subject['class_noun']}"
    page = Page(
        "Training set", subtitle=f"{subject.get('id', '')} · {name} · {base['name']} at {base['resolution_px']} px"
    )
    made = f"{len(photos)} photos became {len(train)} training pictures"
    page.verdict("OK", f"{made}; {len(held)} held out for evaluation.")
    with page.only(full=True):
        page.section("Trained on")
        page.image(_sheet(train, pictures, photos), "The photo with the square used, its picture, its variants")
        page.section("Held out: never seen in training")
        page.image(_sheet(held, pictures, photos), "Chosen before anything was varied")
        page.section("How each picture was made")
        page.table([_line(item) for item in items])
    return page


def _sheet(items: Sequence[Item], pictures: Mapping[str, Image.Image], photos: Mapping[str, Path]) -> Image.Image:
    rows: dict[str, list[Item]] = {}
    for item in items:
        rows.setdefault(item["source"], []).append(item)
    columns = 1 + max(len(row) for row in rows.values())
    blank = Image.new("RGB", (TILE_PX, TILE_PX), "white")
    tiles = [
        [_outlined(photos[source], row[0]["transforms"]), *(pictures[item["file"]] for item in row)]
        for source, row in rows.items()
    ]
    return contact_sheet(
        [row + [blank] * (columns - len(row)) for row in tiles],
        row_labels=[f"{source}: {row[0]['caption']}" for source, row in rows.items()],
        column_labels=["photo", "picture", *(f"variant {n}" for n in range(1, columns - 1))],
        tile_px=TILE_PX,
    )


def _outlined(photo: Path, made: Mapping[str, float]) -> Image.Image:
    """The whole photo, letterboxed, with the square that is used drawn on it."""
    with Image.open(photo) as opened:
        image = opened.convert("RGB")
    scale = TILE_PX / max(image.size)
    tile = ImageOps.pad(image, (TILE_PX, TILE_PX), color="white")
    x0, y0 = ((TILE_PX - side * scale) / 2 for side in image.size)
    left, top = x0 + made["left"] * scale, y0 + made["top"] * scale
    right, bottom = left + made["side"] * scale - 1, top + made["side"] * scale - 1
    ImageDraw.Draw(tile).rectangle((left, top, right, bottom), outline=OUTLINE, width=2)
    return tile


def _line(item: Item) -> dict[str, object]:
    made = item["transforms"]
    words = ["cropped to the square"] if not made["variant"] else [f"{made['side']:.0f} px of it"]
    if made.get("rotation_deg"):
        words.append(f"turned {made['rotation_deg']:+.1f}°")
    if made.get("mirrored"):
        words.append("mirrored")
    if made.get("brightness", 1) != 1:
        words.append(f"light ×{made['brightness']:.2f}")
    return {"picture": item["file"], "from": item["source"], "made by": ", ".join(words), "caption": item["caption"]}
