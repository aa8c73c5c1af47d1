"""Great Expectations' page: one file that fetches nothing, and without names unless it is in full."""

# ruff: noqa: F811 (the photos are those of tests/photos)

from __future__ import annotations

import re
from pathlib import Path

import pytest

from photoflux.pages.data_docs import DataDocs
from photoflux.params import ValidateParams
from photoflux.photos.suite import Decision, Suites
from tests.photos.conftest import defects  # noqa: F401
from tests.photos.test_suite import SHIPPED


@pytest.fixture(scope="module")
def decision(defects: list[dict]) -> Decision:
    return Suites(SHIPPED, params=ValidateParams()).decide(defects)


@pytest.mark.parametrize("full", [True, False])
def test_the_page_stands_alone(decision: Decision, tmp_path: Path, full: bool) -> None:
    """No address is fetched, no script runs, no link leads anywhere; both suites are on it, the same each time."""
    page = DataDocs(decision.results).save(tmp_path / "data_docs.html", full=full).read_text()
    assert not re.search(r"https?:|<script|<link|<a |url\(", page)
    assert "values must be greater than or equal to" in page
    for shown in ("photo_set", "sharpness", "backgrounds", "Unsuccessful Expectations"):
        assert shown in page
    assert DataDocs(decision.results).html(full=full) == page


def test_the_open_page_has_numbers_and_no_names(decision: Decision, defects: list[dict]) -> None:
    """How many fail each expectation is on both; which ones, and by what value, on the full one alone."""
    page = DataDocs(decision.results)
    full, bare = (page.html(full=wanted) for wanted in (True, False))
    names = [row["file"] for row in defects]
    assert "blurry.jpg" in full and "good-0.jpg" in full
    assert [name for name in names if name in bare] == []
    assert "unexpected values found" in full and "unexpected values found" in bare
    assert "Unexpected Value" in full and "Unexpected Value" not in bare
    assert page.html(full=True) == full, "what the bare one leaves out is still there"
