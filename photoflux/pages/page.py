"""Self-contained HTML reports and contact sheets: no network, no script, one file."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from photoflux.manifest import write_text
from photoflux.vault import committed

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL import Image

VERDICT_COLOURS = {
    "PASS": "#1b7f4b", "OK": "#1b7f4b", "WARN": "#a86400", "INCONCLUSIVE": "#a86400",
    "FAIL": "#b3261e", "REJECT": "#b3261e", "INVALID": "#5f6368",
}  # fmt: skip

STYLE = """
:root { --ink: #1d1f23; --soft: #60656f; --line: #e3e5ea; --paper: #fff; --wash: #f6f7f9; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--wash); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 32px 24px 64px; }
h1 { font-size: 28px; margin: 0; letter-spacing: -.01em; } h2 { font-size: 18px; margin: 0 0 12px; }
.subtitle { color: var(--soft); margin: 4px 0 20px; }
section, .verdict { background: var(--paper); border: 1px solid var(--line); border-radius: 12px;
  padding: 20px 24px; margin: 0 0 18px; overflow-x: auto; }
.verdict { display: flex; gap: 16px; align-items: center; border-left: 6px solid var(--tone); }
.verdict strong { color: var(--tone); font-size: 20px; } p { max-width: 78ch; margin: 0 0 12px; }
table { border-collapse: collapse; width: 100%; font-size: 13.5px; margin: 0 0 12px; }
th { text-align: left; color: var(--soft); font-weight: 600; border-bottom: 2px solid var(--line); }
th, td { padding: 6px 12px 6px 0; vertical-align: top; } td { border-bottom: 1px solid var(--line); }
td.number { font-variant-numeric: tabular-nums; white-space: nowrap; }
caption, figcaption { color: var(--soft); font-size: 13px; text-align: left; padding: 4px 0; }
figure { margin: 0 12px 12px 0; display: inline-block; max-width: 100%; } img { max-width: 100%; border-radius: 6px; }
.chip { color: #fff; background: var(--tone); border-radius: 99px; padding: 1px 9px; font-size: 12px; font-weight: 600; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 4px 20px; margin: 0; font-size: 13.5px; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
"""


def is_personal(subject: Mapping[str, Any]) -> bool:
    """Whether pictures of this subject stay sealed: all but those of published sample data."""
    return subject.get("consent") != "sample"


def sealed_beside(report: Path) -> Path:
    """Where the copy with the subject's pictures lies."""
    return report.with_name(f"{report.stem}-sealed{report.suffix}")


class Page(Protocol):
    """What can be written as one HTML file."""

    def save(self, path: Path) -> Path: ...


def publish(report: Path, page: Callable[..., Page], *, subject: Mapping[str, Any], key: str) -> Path:
    """Write `page(full=True)`; of a person `page(full=False)`, with the full one sealed under `key` beside it.

    Returns `report`.
    """
    personal = is_personal(subject)
    if personal:
        with committed(sealed_beside(report), key=key) as path:
            page(full=True).save(path)
    page(full=not personal).save(report)
    return report


class Report:
    """A page built top to bottom; every method adds to the current section."""

    def __init__(self, title: str, *, subtitle: str = "") -> None:
        self.title = title
        self.subtitle = subtitle
        self._parts: list[str] = []
        self._in_section = False

    def verdict(self, word: str, sentence: str) -> None:
        """The banner: one word (PASS, FAIL, …) and one sentence."""
        self._close()
        tone = VERDICT_COLOURS.get(word.upper(), "#60656f")
        self._parts.append(
            f'<div class="verdict" style="--tone:{tone}"><strong>{html.escape(word)}</strong>'
            f"<span>{html.escape(sentence)}</span></div>"
        )

    def section(self, title: str) -> None:
        self._close()
        self._parts.append(f"<section><h2>{html.escape(title)}</h2>")
        self._in_section = True

    def text(self, text: str) -> None:
        self._parts.append(f"<p>{html.escape(text)}</p>")

    def table(self, rows: Sequence[Mapping[str, object]], caption: str = "") -> None:
        """Rows as dictionaries; the keys of the first are the columns. PIL images and verdict words are drawn."""
        if not rows:
            return
        columns = list(rows[0])
        head = "".join(f"<th>{html.escape(c)}</th>" for c in columns)
        body = "".join("<tr>" + "".join(_cell(row.get(c, "")) for c in columns) + "</tr>" for row in rows)
        note = f"<caption>{html.escape(caption)}</caption>" if caption else ""
        self._parts.append(f"<table>{note}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>")

    def image(self, image: Image.Image, caption: str = "") -> None:
        self._figure(_image_uri(image), caption)

    def figure(self, figure: Figure, caption: str = "") -> None:
        """A matplotlib figure, laid out by its layout engine, as inline PNG at 2x."""
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=144, metadata={"Software": None})
        self._figure(_uri(buffer.getvalue(), "png"), caption)

    def facts(self, facts: Mapping[str, object]) -> None:
        items = "".join(f"<dt>{html.escape(k)}</dt><dd>{html.escape(_plain(v))}</dd>" for k, v in facts.items())
        self._parts.append(f"<dl>{items}</dl>")

    def save(self, path: Path) -> Path:
        """Write the page atomically."""
        self._close()
        title = html.escape(self.title)
        subtitle = f'<p class="subtitle">{html.escape(self.subtitle)}</p>'
        return write_text(
            path,
            f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
            f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head>'
            f"<body><main><h1>{title}</h1>{subtitle}{''.join(self._parts)}</main></body></html>\n",
        )

    def _figure(self, uri: str, caption: str) -> None:
        text = html.escape(caption)
        self._parts.append(f'<figure><img src="{uri}" alt="{text}"><figcaption>{text}</figcaption></figure>')

    def _close(self) -> None:
        if self._in_section:
            self._parts.append("</section>")
            self._in_section = False


def contact_sheet(
    rows: Sequence[Sequence[Image.Image]],
    *,
    row_labels: Sequence[str],
    column_labels: Sequence[str] | None = None,
    tile_px: int = 128,
    gap_px: int = 4,
) -> Image.Image:
    """Tiles in rows, each row with its label above it, the columns named once at the top."""
    from PIL import Image, ImageDraw, ImageFont

    line_px = 20
    columns = max(len(row) for row in rows)
    width = columns * (tile_px + gap_px) + gap_px
    top = line_px if column_labels else 0
    sheet = Image.new("RGB", (width, top + len(rows) * (tile_px + line_px + gap_px)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for c, label in enumerate(column_labels or ()):
        draw.text((gap_px + c * (tile_px + gap_px), 3), _fit(draw, label, font, tile_px), fill="#60656f", font=font)
    for r, (row, label) in enumerate(zip(rows, row_labels, strict=True)):
        y = top + r * (tile_px + line_px + gap_px)
        draw.text((gap_px, y + 3), _fit(draw, label, font, width - gap_px), fill="#1d1f23", font=font)
        for c, tile in enumerate(row):
            fitted = tile.convert("RGB").resize((tile_px, tile_px), Image.Resampling.LANCZOS)
            sheet.paste(fitted, (gap_px + c * (tile_px + gap_px), y + line_px))
    return sheet


def _fit(draw, text: str, font, width_px: int) -> str:  # type: ignore[no-untyped-def]
    while text and draw.textlength(text, font=font) > width_px:
        text = text[:-2].rstrip(" …") + "…" if len(text) > 2 else ""
    return text


def _cell(value: object) -> str:
    if hasattr(value, "convert"):
        return f'<td><img src="{_image_uri(value)}" alt=""></td>'  # type: ignore[arg-type]
    if isinstance(value, str) and value.upper() in VERDICT_COLOURS:
        return f'<td><span class="chip" style="--tone:{VERDICT_COLOURS[value.upper()]}">{value}</span></td>'
    kind = ' class="number"' if isinstance(value, int | float) else ""
    return f"<td{kind}>{html.escape(_plain(value))}</td>"


def _plain(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _image_uri(image: Image.Image) -> str:
    """PNG for small pictures (tiles stay crisp), JPEG for large ones (pages stay small)."""
    buffer = io.BytesIO()
    kind = "png" if image.width * image.height <= 512 * 512 else "jpeg"
    image.convert("RGB").save(buffer, format=kind, **({"quality": 88} if kind == "jpeg" else {"optimize": True}))
    return _uri(buffer.getvalue(), kind)


def _uri(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
