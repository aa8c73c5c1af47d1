"""Contact sheets: images in labelled rows, as one image."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from photoflux.pages.palette import INK, SOFT

LINE_PX = 20
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def contact_sheet(
    rows: Sequence[Sequence[Image.Image]],
    *,
    row_labels: Sequence[str],
    column_labels: Sequence[str] | None = None,
    tile_px: int = 128,
    gap_px: int = 4,
) -> Image.Image:
    """Tiles in rows, each row below its label, with column labels at the top."""
    columns = max(len(row) for row in rows)
    width = columns * (tile_px + gap_px) + gap_px
    top = LINE_PX if column_labels else 0
    sheet = Image.new("RGB", (width, top + len(rows) * (tile_px + LINE_PX + gap_px)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for c, label in enumerate(column_labels or ()):
        draw.text((gap_px + c * (tile_px + gap_px), 3), _fit(draw, label, font, tile_px), fill=SOFT, font=font)
    for r, (row, label) in enumerate(zip(rows, row_labels, strict=True)):
        y = top + r * (tile_px + LINE_PX + gap_px)
        draw.text((gap_px, y + 3), _fit(draw, label, font, width - gap_px), fill=INK, font=font)
        for c, tile in enumerate(row):
            fitted = tile.convert("RGB").resize((tile_px, tile_px), Image.Resampling.LANCZOS)
            sheet.paste(fitted, (gap_px + c * (tile_px + gap_px), y + LINE_PX))
    return sheet


def _fit(draw: ImageDraw.ImageDraw, text: str, font: Font, width_px: int) -> str:
    """The text, shortened to a width."""
    while text and draw.textlength(text, font=font) > width_px:
        text = text[:-2].rstrip(" …") + "…" if len(text) > 2 else ""
    return text
