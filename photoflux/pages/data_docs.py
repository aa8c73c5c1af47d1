"""Great Expectations' own report of the suites' results, as one file that loads nothing from elsewhere."""

from __future__ import annotations

import re
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from photoflux.manifest import write_text
from photoflux.pages.palette import CSS

if TYPE_CHECKING:
    from great_expectations.core import ExpectationSuiteValidationResult

COUNT_FIELDS = (
    "element_count", "unexpected_count", "unexpected_percent", "missing_count", "missing_percent",
    "unexpected_percent_total", "unexpected_percent_nonmissing",
)  # fmt: skip
"""Fields of a result that are numbers about all photos together."""

TEMPLATE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Data Docs: the photos</title>
<meta name="viewport" content="width=device-width"><style>{% include 'data_docs_default_styles.css' %}</style>
<style>{{ style }}</style></head><body><main>
{% for section in sections %}{% set section_loop = loop -%}{% include 'section.j2' %}{% endfor %}
</main></body></html>
"""

STYLE = """
body { margin: 0; background: var(--wash); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 32px 24px 64px; }
.alert { background: var(--paper);
  border: 1px solid var(--line); border-left: 6px solid var(--soft); border-radius: 12px; padding: 12px 20px; }
h5, h6, .h6 { font-size: 16px; font-weight: 600; margin: 8px 0 4px; }
table { border-collapse: collapse; width: 100%; font-size: 13.5px; margin: 0 0 12px; }
th { text-align: left; color: var(--soft); } th, td { padding: 6px 12px 6px 0; vertical-align: top; border-bottom: 1px solid var(--line); }
.badge { background: var(--soft); color: var(--paper); border-radius: 6px; padding: 1px 6px; font-size: 12px; }
.text-danger { color: var(--bad); } .text-success { color: var(--good); }
.fa-times::before { content: "✗"; } .fa-check-circle::before { content: "✓"; }
.fa-exclamation-triangle::before, .fa-exclamation::before { content: "!"; }
"""


class DataDocs:
    """The report about both suites: in full, or with only numbers about all photos together."""

    def __init__(self, results: Mapping[str, ExpectationSuiteValidationResult]) -> None:
        self.results = list(results.values())

    def save(self, path: Path, *, full: bool) -> Path:
        """Write one of the two copies atomically."""
        return write_text(path, self.html(full=full))

    def html(self, *, full: bool) -> str:
        """Great Expectations' sections about each suite, in a page without its scripts and links."""
        from great_expectations.render.renderer.page_renderer import ValidationResultsPageRenderer
        from great_expectations.render.view import DefaultJinjaPageView
        from jinja2 import DictLoader

        shown = [deepcopy(result) if full else _without_photo_values(result) for result in self.results]
        first, *others = (ValidationResultsPageRenderer().render(result) for result in shown)
        for document in (first, *others):
            _drop_run_info(document)
        first.sections += [section for document in others for section in document.sections]
        view = DefaultJinjaPageView()
        view.env.loader.loaders.append(DictLoader({"one_file.j2": TEMPLATE}))
        page = view.render(first, template="one_file.j2", style=CSS + STYLE)
        page = re.sub(r"url\('https?://[^']*'\)", "none", page)  # a logo
        # links to pages that do not exist
        return re.sub(r'<a href="\.\./[^"]*"[^>]*>(.*?)</a>', r"\1", page, flags=re.DOTALL)


def _drop_run_info(document: Any) -> None:
    """Remove the run information, which would need a script to unfold."""
    from great_expectations.render import CollapseContent

    overview = document.sections[0]
    overview.content_blocks = [one for one in overview.content_blocks if not isinstance(one, CollapseContent)]


def _without_photo_values(result: ExpectationSuiteValidationResult) -> ExpectationSuiteValidationResult:
    """The result without values and file names of single photos."""
    stripped = deepcopy(result)
    for one in stripped.results:
        observed = one.result.get("observed_value")
        numbers = {name: value for name, value in one.result.items() if name in COUNT_FIELDS}
        one.result = numbers | ({"observed_value": observed} if isinstance(observed, int | float) else {})
    return stripped
