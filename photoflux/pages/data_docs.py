"""Great Expectations' own page about what the suites found, as one file that fetches nothing."""

from __future__ import annotations

import re
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from photoflux.manifest import write_text

if TYPE_CHECKING:
    from great_expectations.core import ExpectationSuiteValidationResult

COUNTS = (
    "element_count", "unexpected_count", "unexpected_percent", "missing_count", "missing_percent",
    "unexpected_percent_total", "unexpected_percent_nonmissing",
)  # fmt: skip
"""What of a result is a number about the photos together."""

TEMPLATE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Data Docs: the photos</title>
<meta name="viewport" content="width=device-width"><style>{% include 'data_docs_default_styles.css' %}</style>
<style>{{ style }}</style></head><body><main>
{% for section in sections %}{% set section_loop = loop -%}{% include 'section.j2' %}{% endfor %}
</main></body></html>
"""

STYLE = """
body { margin: 0; background: #f6f7f9; color: #1d1f23; font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 32px 24px 64px; }
.alert { background: #fff; border: 1px solid #e3e5ea; border-left: 6px solid #60656f; border-radius: 12px; padding: 12px 20px; }
h5, h6, .h6 { font-size: 16px; font-weight: 600; margin: 8px 0 4px; }
table { border-collapse: collapse; width: 100%; font-size: 13.5px; margin: 0 0 12px; }
th { text-align: left; color: #60656f; } th, td { padding: 6px 12px 6px 0; vertical-align: top; border-bottom: 1px solid #e3e5ea; }
.badge { background: #60656f; color: #fff; border-radius: 6px; padding: 1px 6px; font-size: 12px; }
.text-danger { color: #b3261e; } .text-success { color: #1b7f4b; }
.fa-times::before { content: "✗"; } .fa-check-circle::before { content: "✓"; }
.fa-exclamation-triangle::before, .fa-exclamation::before { content: "!"; }
"""


class DataDocs:
    """The page about both suites: in full, or with nothing but numbers about the photos together."""

    def __init__(self, results: Mapping[str, ExpectationSuiteValidationResult], *, full: bool) -> None:
        self.results = [deepcopy(result) if full else _numbers_alone(result) for result in results.values()]

    def save(self, path: Path) -> Path:
        """Write the page atomically."""
        return write_text(path, self.html())

    def html(self) -> str:
        """Great Expectations' sections about each suite, one after the other, in a page without its scripts and links."""
        from great_expectations.render.renderer.page_renderer import ValidationResultsPageRenderer
        from great_expectations.render.view import DefaultJinjaPageView
        from jinja2 import DictLoader

        first, *others = (ValidationResultsPageRenderer().render(result) for result in self.results)
        for document in (first, *others):
            _drop_run_info(document)
        first.sections += [section for document in others for section in document.sections]
        view = DefaultJinjaPageView()
        view.env.loader.loaders.append(DictLoader({"one_file.j2": TEMPLATE}))
        page = view.render(first, template="one_file.j2", style=STYLE)
        page = re.sub(r"url\('https?://[^']*'\)", "none", page)  # a logo
        return re.sub(r'<a href="\.\./[^"]*"[^>]*>(.*?)</a>', r"\1", page, flags=re.DOTALL)  # pages that are not here


def _drop_run_info(document: Any) -> None:
    """Leave out what a browser would have to unfold by script: when and as what the suite was run."""
    from great_expectations.render import CollapseContent

    overview = document.sections[0]
    overview.content_blocks = [one for one in overview.content_blocks if not isinstance(one, CollapseContent)]


def _numbers_alone(result: ExpectationSuiteValidationResult) -> ExpectationSuiteValidationResult:
    """The result without values and names of single photos."""
    bare = deepcopy(result)
    for one in bare.results:
        observed = one.result.get("observed_value")
        numbers = {name: value for name, value in one.result.items() if name in COUNTS}
        one.result = numbers | ({"observed_value": observed} if isinstance(observed, int | float) else {})
    return bare
