"""The few pages that the service has of its own: its front door, its API's documentation, and the terms."""

from __future__ import annotations

import html
import os
from collections.abc import Collection
from functools import cache
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from markdown_it import MarkdownIt
from starlette.responses import HTMLResponse, Response
from starlette.staticfiles import StaticFiles

from api.privacy import consents

STATIC = Path(__file__).parent.parent / "static"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
CACHED = "public, max-age=3600"
PAGE_FILES = ("page.css", "home.js", "icon.svg")
DOCS_FILES = ("docs.css", "docs.js", "swagger-ui.css", "swagger-ui-bundle.js")


class NamedFiles(StaticFiles):
    """Some files of a folder and of packages, no others; browsers keep them for an hour."""

    def __init__(self, names: Collection[str], **more: Any) -> None:
        super().__init__(directory=STATIC, **more)
        self.names = names

    def lookup_path(self, path: str) -> tuple[str, os.stat_result | None]:
        """As its own, for the names that are served."""
        return super().lookup_path(path) if path in self.names else ("", None)

    def file_response(self, *args: Any, **more: Any) -> Response:
        """As its own, to be kept."""
        response = super().file_response(*args, **more)
        response.headers["Cache-Control"] = CACHED
        return response


def add_pages(app: FastAPI) -> None:
    """Serve the pages, and what they load."""

    @app.get("/", include_in_schema=False)
    def home() -> Response:
        """Who is signed in, and the way in and out."""
        return _page("home.html")

    @app.get("/docs", include_in_schema=False)
    def docs() -> Response:
        """The API's description, to be read and tried."""
        return _page("docs.html")

    @app.get("/terms", include_in_schema=False)
    def terms() -> Response:
        """The wordings in force."""
        return _page("terms.html", texts=_texts())

    app.mount("/pages", NamedFiles(PAGE_FILES))
    app.mount("/docs", NamedFiles(DOCS_FILES, packages=[("fastapi_swagger", "resources")]))


def _page(name: str, *, texts: str = "") -> Response:
    page = (STATIC / name).read_text(encoding="utf-8").replace("<!-- texts -->", texts)
    return HTMLResponse(page, headers={"Content-Security-Policy": POLICY})


@cache
def _texts() -> str:
    """The wordings as HTML; their headings are one level down, below the page's own."""
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
    return "\n".join(
        f'<article id="{html.escape(document.purpose)}">'
        f"{markdown.render(f'#{document.text}')}"
        f'<p class="version">Version {html.escape(document.version)}</p></article>'
        for document in consents.terms_documents().values()
    )
