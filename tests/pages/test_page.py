"""A page is made once and saved twice: in full, and without what is a person's own."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from PIL import Image

from photoflux.pages.page import Page
from photoflux.report import publish, sealed_beside
from photoflux.vault import opened

PERSON = {"id": "ada", "consent": "own"}


def page() -> Page:
    made = Page("Title & more", subtitle="3 photos", full_subtitle="3 photos from grandma")
    made.verdict("PASS", "All <good>.")
    made.section("Numbers")
    made.figure(Figure(figsize=(1, 1)), "a figure")
    with made.only(full=True):
        made.section("Pictures")
        made.table([{"picture": Image.new("RGB", (4, 4)), "file": "grandma.jpg", "verdict": "warn"}])
    with made.only(full=False):
        made.text("Pictures are on the sealed copy.")
    made.section("Facts")
    made.facts({"seed": 3, "share": 0.25})
    return made


def test_each_copy_has_its_parts_in_order_and_every_section_ends() -> None:
    full, open_copy = (page().html(full=full) for full in (True, False))
    titles = [re.findall("<h2>(.*?)</h2>", text) for text in (full, open_copy)]
    assert titles == [["Numbers", "Pictures", "Facts"], ["Numbers", "Facts"]]
    for text in (full, open_copy):
        tags = re.findall("</?section>", text)
        assert tags == ["<section>", "</section>"] * (len(tags) // 2)
        assert "All &lt;good&gt;." in text and "<dt>share</dt><dd>0.250</dd>" in text and "http" not in text
    assert "grandma" in full and "sealed copy" not in full
    assert "grandma" not in open_copy and "sealed copy" in open_copy


def test_a_person_has_an_open_page_and_a_sealed_one(tmp_path: Path) -> None:
    report = publish(tmp_path / "report.html", page(), subject=PERSON, key="vault://ada/run-1")
    assert report.read_text() == page().html(full=False)
    with opened(sealed_beside(report), key="vault://ada/run-1") as full:
        assert full.read_text() == page().html(full=True)
    assert b"grandma" not in sealed_beside(report).read_bytes()


def test_sample_data_has_one_page_in_full(tmp_path: Path) -> None:
    report = publish(tmp_path / "report.html", page(), subject=PERSON | {"consent": "sample"}, key="plain://demo")
    assert report.read_text() == page().html(full=True)
    assert not sealed_beside(report).exists()


def test_every_figure_is_drawn_once_for_both_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They took a third of a small evaluation."""
    drawn = list[Figure]()
    savefig = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: [drawn.append(self), savefig(self, *a, **k)])
    report = publish(tmp_path / "report.html", page(), subject=PERSON, key="plain://demo")
    assert len(drawn) == 1
    assert all("a figure" in copy.read_text() for copy in (report, sealed_beside(report)))
