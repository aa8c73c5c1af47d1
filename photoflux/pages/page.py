"""Self-contained HTML pages, one file without network or script; each in a full copy and an open one without personal content."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from photoflux.manifest import write_text
from photoflux.pages.palette import CSS, SOFT, TONES

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL import Image

SECTION = "<section>"
STYLE = """
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
.chip { color: var(--paper); background: var(--tone); border-radius: 99px; padding: 1px 9px; font-size: 12px; font-weight: 600; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 4px 20px; margin: 0; font-size: 13.5px; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
"""


@dataclass(frozen=True)
class PagePart:
    """HTML of a page; `full` says on which copy it is, None for both; a `block` closes the section before it."""

    html: str
    full: bool | None
    block: bool = False


class Page:
    """A page that is built from top to bottom and saved as two copies; every method adds to the current section.

    Content added within `only(full=True)` is on the full copy alone, and within `only(full=False)` on the open one.
    """

    def __init__(self, title: str, *, subtitle: str = "", full_subtitle: str = "") -> None:
        self.title = title
        self.subtitles = {False: subtitle, True: full_subtitle or subtitle}
        self._parts: list[PagePart] = []
        self._full: bool | None = None

    @contextmanager
    def only(self, *, full: bool) -> Iterator[None]:
        """Content added in the block is on one of the two copies alone."""
        self._full = full
        try:
            yield
        finally:
            self._full = None

    def verdict(self, word: str, sentence: str) -> None:
        """A banner of one word (PASS, FAIL, …) and one sentence."""
        self._add(
            f'<div class="verdict" style="--tone:{TONES.get(word.upper(), SOFT)}"><strong>{html.escape(word)}</strong>'
            f"<span>{html.escape(sentence)}</span></div>",
            block=True,
        )

    def section(self, title: str) -> None:
        self._add(f"{SECTION}<h2>{html.escape(title)}</h2>", block=True)

    def text(self, text: str) -> None:
        self._add(f"<p>{html.escape(text)}</p>")

    def table(self, rows: Sequence[Mapping[str, object]], caption: str = "") -> None:
        """Rows as dictionaries; the first one's keys are the columns. PIL images become pictures, verdict words chips."""
        if not rows:
            return
        columns = list(rows[0])
        head = "".join(f"<th>{html.escape(c)}</th>" for c in columns)
        body = "".join("<tr>" + "".join(_cell(row.get(c, "")) for c in columns) + "</tr>" for row in rows)
        note = f"<caption>{html.escape(caption)}</caption>" if caption else ""
        self._add(f"<table>{note}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>")

    def image(self, image: Image.Image, caption: str = "") -> None:
        self._figure(_image_uri(image), caption)

    def figure(self, figure: Figure, caption: str = "") -> None:
        """A matplotlib figure, laid out by its layout engine, as inline PNG at 2x."""
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=144, metadata={"Software": None})
        self._figure(_uri(buffer.getvalue(), "png"), caption)

    def facts(self, facts: Mapping[str, object]) -> None:
        items = "".join(f"<dt>{html.escape(k)}</dt><dd>{html.escape(_format_value(v))}</dd>" for k, v in facts.items())
        self._add(f"<dl>{items}</dl>")

    def html(self, *, full: bool) -> str:
        title = html.escape(self.title)
        subtitle = f'<p class="subtitle">{html.escape(self.subtitles[full])}</p>'
        return (
            f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
            f'<meta name="viewport" content="width=device-width"><style>{CSS}{STYLE}</style></head>'
            f"<body><main><h1>{title}</h1>{subtitle}{self._body(full=full)}</main></body></html>\n"
        )

    def save(self, path: Path, *, full: bool = True) -> Path:
        """Write one of the two copies atomically."""
        return write_text(path, self.html(full=full))

    def _add(self, part: str, *, block: bool = False) -> None:
        self._parts.append(PagePart(part, self._full, block))

    def _figure(self, uri: str, caption: str) -> None:
        text = html.escape(caption)
        self._add(f'<figure><img src="{uri}" alt="{text}"><figcaption>{text}</figcaption></figure>')

    def _body(self, *, full: bool) -> str:
        body, in_section = "", False
        for part in self._parts:
            if part.full in (None, full):
                body += "</section>" * (in_section and part.block) + part.html
                in_section = part.html.startswith(SECTION) if part.block else in_section
        return body + "</section>" * in_section


def _cell(value: object) -> str:
    if hasattr(value, "convert"):
        return f'<td><img src="{_image_uri(value)}" alt=""></td>'  # type: ignore[arg-type]
    if isinstance(value, str) and value.upper() in TONES:
        return f'<td><span class="chip" style="--tone:{TONES[value.upper()]}">{value}</span></td>'
    kind = ' class="number"' if isinstance(value, int | float) else ""
    return f"<td{kind}>{html.escape(_format_value(value))}</td>"


def _format_value(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _image_uri(image: Image.Image) -> str:
    """PNG for small pictures (tiles stay crisp), JPEG for large ones (pages stay small)."""
    buffer = io.BytesIO()
    kind = "png" if image.width * image.height <= 512 * 512 else "jpeg"
    image.convert("RGB").save(buffer, format=kind, **({"quality": 88} if kind == "jpeg" else {"optimize": True}))
    return _uri(buffer.getvalue(), kind)


def _uri(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
