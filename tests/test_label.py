"""Judge cards: a page to label on, and what becomes of the labels."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from photoflux.errors import InputError
from photoflux.label import READINGS_FILE, compare, main, make_sheet, read_labels, write_card
from photoflux.manifest import write_json
from tests.judges.tiny import make_base

CLASSES = {"gender": ["woman", "man"]}


@pytest.fixture(scope="module")
def sheet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sheet")
    make_sheet(folder / "out", base=str(make_base(folder)), prompts="pocket", count=9, seed=1)
    return folder / "out"


def labelled(folder: Path, *, wrong: int = 0, count: int = 60, name: str = "labels.csv") -> Path:
    """A folder as `label make` leaves it, and labels that agree with the judges but for the first `wrong`."""
    folder.mkdir(exist_ok=True)
    read = {f"pictures/{i:04}.png": {"gender": CLASSES["gender"][i % 2]} for i in range(count)}
    write_json(folder / READINGS_FILE, {"judges": "j", "base": "b", "seed": 0, "classes": CLASSES, "read": read})
    with (folder / name).open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["picture", "gender"])
        for i, (picture, values) in enumerate(read.items()):
            flipped = {"woman": "man", "man": "woman"}[values["gender"]]
            writer.writerow([picture, flipped if i < wrong else values["gender"]])
    return folder


def test_the_sheet_holds_pictures_and_hides_what_the_judges_read(sheet: Path) -> None:
    page = (sheet / "label.html").read_text()
    readings = json.loads((sheet / READINGS_FILE).read_text())
    assert len(list((sheet / "pictures").iterdir())) == len(readings["read"]) == page.count("<article") == 9
    assert set(readings["classes"]) == {"gender", "band", "hair"}
    assert "checked>" not in page
    assert "http" not in page
    rows = list(csv.DictReader((sheet / "labels-empty.csv").open()))
    assert [row["picture"] for row in rows] == list(readings["read"])
    assert {row["gender"] for row in rows} == {""}


def test_counts_are_true_by_read(tmp_path: Path) -> None:
    """60 pictures, 30 of each as read; the first 4 labels are flipped: 2 each way."""
    folder = labelled(tmp_path / "sheet", wrong=4)
    card = json.loads(write_card(folder, labels=[folder / "labels.csv"], card=tmp_path / "card.json").read_text())
    table = card["attributes"]["gender"]
    assert table["counts"] == [[28, 2], [2, 28]]
    assert table["balanced_accuracy"] == pytest.approx(28 / 30)
    assert (card["judges"], card["people"], table["labelled"]) == ("j", 1, 60)


def test_people_who_disagree_are_left_out_and_counted(tmp_path: Path) -> None:
    folder = labelled(tmp_path / "sheet")
    labelled(folder, wrong=6, name="second.csv")
    files = [folder / "labels.csv", folder / "second.csv"]
    table = json.loads(write_card(folder, labels=files, card=tmp_path / "card.json").read_text())["attributes"][
        "gender"
    ]
    assert (table["labelled"], table["disagreed"]) == (54, 6)
    assert table["kappa"] == pytest.approx(0.8)


def test_unsure_empty_and_missing_labels_are_counted_as_unsure() -> None:
    read = {str(i): {"gender": "man"} for i in range(4)}
    said = {"0": {"gender": "man"}, "1": {"gender": "unsure"}, "2": {"gender": "no person"}}
    found = compare("gender", CLASSES["gender"], [said], read)
    assert found.counts.tolist() == [[0, 0], [0, 1]]
    assert (found.unsure, found.disagreed, found.kappa) == (3, 0, None)


def test_a_class_that_too_few_pictures_show_makes_no_card(tmp_path: Path) -> None:
    folder = labelled(tmp_path / "sheet", count=12)
    with pytest.raises(InputError, match="only 6 pictures are labelled gender=woman"):
        write_card(folder, labels=[folder / "labels.csv"], card=tmp_path / "card.json")
    assert not (tmp_path / "card.json").exists()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("picture,gender\na,robot\n", "line 2: gender is 'robot'"),
        ("x\n1\n", "'picture' column"),
        ("", "'picture' column"),
    ],
)
def test_wrong_labels_are_named(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(InputError, match=says):
        read_labels(tmp_path / "labels.csv", CLASSES)


def test_empty_cells_are_unsure(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("picture,gender\na, \nb,man\n")
    assert read_labels(tmp_path / "labels.csv", CLASSES) == {"a": {"gender": "unsure"}, "b": {"gender": "man"}}


def test_command_line_makes_a_card(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = labelled(tmp_path / "sheet")
    assert main(["card", "--folder", str(folder), "--card", str(tmp_path / "card.json")]) == 0
    assert "gender: balanced accuracy 1.000 over 60 pictures" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["card", "--folder", "nowhere", "--card", "card.json"],
                                   ["make", "--folder", "sheet", "--count", "0"]])  # fmt: skip
def test_mistakes_are_sentences(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[Any]) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError):
        main(words)
    assert list(tmp_path.iterdir()) == []


def test_a_made_card_is_what_the_audit_reads(tmp_path: Path) -> None:
    folder = labelled(tmp_path / "sheet")
    card = json.loads(write_card(folder, labels=[folder / "labels.csv"], card=tmp_path / "card.json").read_text())
    table = card["attributes"]["gender"]
    assert np.asarray(table["counts"]).shape == (len(table["classes"]),) * 2
    assert table["classes"] == CLASSES["gender"]
