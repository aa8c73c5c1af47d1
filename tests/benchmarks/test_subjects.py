"""Which subjects are drawn when, where the rivals' settings come from, and what is written of what was measured."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from benchmarks import controls, recipes, subjects, tuning
from benchmarks import subjects_pages as pages
from benchmarks.recipes import CALIBRATION_SEED, DREAMBOOTH, HEADLINE_SEED, OURS, RECIPES, RIVALS, STARTED
from photoflux.judges.gate_rules import rules
from photoflux.manifest import write_json
from photoflux.params import EvaluateParams, FinetuneParams, GateParams, as_dict
from photoflux.pocket.world import KINDS

ROOT = Path(__file__).resolve().parent.parent.parent
CHOSEN = {"dreambooth": {"lr": 1e-3, "steps": 200}, "dreambooth_started": {"lr": 3e-4, "steps": 100}}
METRICS = ("identity_gain", "prompt_following", "prompt_change", "leakage", "copy_rate", "overall")


def measured(gain: float, leakage: float, verdict: str, *, seconds: float = 20.0) -> dict[str, Any]:
    """One subject under one recipe."""
    values = dict.fromkeys(METRICS, 0.0) | {"identity_gain": gain, "leakage": leakage, "overall": gain}
    failing = {"class leakage"} if verdict == "FAIL" else set()
    return {
        "metrics": {name: {"point": x, "lo": x - 0.1, "hi": x + 0.1} for name, x in values.items()},
        "identity_gain_fresh": gain,
        "captions": ["beach", "city", "space", "snow"],
        "seconds": seconds,
        "prepared_s": 3.0,
        "trained_s": 6.0,
        "verdict": verdict,
        "folder": "somewhere",
        "curve": [
            {"seconds": 2.0, "identity": gain / 2, "leakage": leakage},
            {"seconds": 4.0, "identity": gain, "leakage": leakage},
        ],
        "rules": {
            rule.name: {"verdict": verdict if rule.name in failing else "PASS", "value": 0.5, "lo": 0.4, "hi": 0.6}
            for rule in rules({"exact_attributes": True}, GateParams())
        },
    }


def row(kind: str, **found: dict[str, Any]) -> dict[str, Any]:
    looks = {"colour": "red", "accent": "blue", "pattern": "plain", "mark": "moon", "mark_colour": "white"}
    return {"subject": kind, "looks": looks, "seed": 1, "photos": {}, "gate": None, **found}


@pytest.fixture
def rows() -> list[dict[str, Any]]:
    return [
        row(
            "mug",
            ours=measured(0.6, 0.4, "FAIL"),
            dreambooth=measured(0.2, 0.0, "PASS"),
            dreambooth_started=measured(0.7, 0.1, "PASS"),
        ),
        row(
            "dog",
            ours=measured(0.9, 0.0, "PASS"),
            dreambooth=measured(0.5, 0.7, "FAIL", seconds=40),
            dreambooth_started=measured(0.7, 0.1, "PASS"),
        ),
    ]


@pytest.fixture
def result(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What the pages are made of, with everything in it that is measured on rows alone."""
    machine = {"processor": "one", "cores": 2, "threads": 2, "memory_gib": 8, "device": "cpu", "system": "Linux"}
    settings = {name: {"title": name, **chosen} for name, chosen in CHOSEN.items()}
    return {
        "schema_version": subjects.SCHEMA_VERSION,
        "verdicts": "the gate's rules",
        "machine": machine,
        "versions": {"torch": "2"},
        "base": {"name": "pocket", "hash": "b" * 64},
        "hashes": {"params": "p", "calibration": subjects.calibration(rows)},
        "seeds": {"subjects": 5},
        "params": {"finetune": {"steps": 100, "batch_size": 4}, "evaluate": {"profile": "smoke"}},
        "recipes": {"ours": {"title": "PhotoFlux"}, **settings},
        "targets": subjects.targets(rows),
        "summary": {recipe.name: subjects.summary(rows, recipe) for recipe in RECIPES},
        "time_to_gain": subjects.times(rows),
        "margins": subjects.margins(rows, GateParams()),
        "fresh": 12,
        "subjects": rows,
    }


def test_nobody_is_drawn_from_two_seeds() -> None:
    """Subjects that something is chosen on, that are reported, that must not pass: each from seeds of its own, written in 0023."""
    seeds = [
        {first + number for number in range(len(KINDS))}
        for first in (CALIBRATION_SEED, HEADLINE_SEED, controls.SEED, controls.SEED + controls.OTHER)
    ]
    assert len(set.union(*seeds)) == 4 * len(KINDS)
    decided = (ROOT / "docs/decisions/0023-headline-subjects.md").read_text(encoding="utf-8")
    for first in (CALIBRATION_SEED, HEADLINE_SEED, controls.SEED, controls.SEED + controls.OTHER):
        assert f"{first:,} + `i`".replace(",", " ") in decided


def test_the_headline_is_refused_where_its_results_are(tmp_path: Path) -> None:
    write_json(tmp_path / "subjects.json", {})
    write_json(tmp_path / "tuning.json", {"chosen": CHOSEN})
    with pytest.raises(SystemExit, match=r"reported whatever comes.*--again"):
        subjects.main(["--headline", "--out", str(tmp_path)])


@pytest.mark.parametrize("mode", [["--headline"], ["--headline", "--again"]])
def test_nothing_is_drawn_before_the_rivals_are_tuned(tmp_path: Path, mode: list[str]) -> None:
    with pytest.raises(SystemExit, match=r"tuning\.json is missing.*--tune"):
        subjects.main([*mode, "--out", str(tmp_path)])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("less", [["--subjects", "1"], ["--steps", "20"], ["--profile", "smoke"]])
def test_the_headline_is_whole_or_not_drawn(
    tmp_path: Path, less: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    write_json(tmp_path / "tuning.json", {"chosen": CHOSEN})
    with pytest.raises(SystemExit):
        subjects.main(["--headline", *less, "--out", str(tmp_path)])
    assert "drawn whole" in capsys.readouterr().err


def test_the_rivals_settings_are_those_that_were_tuned_and_the_rest_is_ours(tmp_path: Path) -> None:
    file = write_json(tmp_path / "tuning.json", {"chosen": CHOSEN})
    params = FinetuneParams(rank=8, alpha=4.0, batch_size=3, seed=7)
    one, other = recipes.rivals(file, params)
    assert (one.name, other.name) == (DREAMBOOTH.name, STARTED.name)
    assert one.rival is not None and other.rival is not None
    assert (one.rival.lr, one.rival.steps, one.rival.started) == (1e-3, 200, False)
    assert (other.rival.lr, other.rival.steps, other.rival.started) == (3e-4, 100, True)
    for rival in (one.rival, other.rival):
        assert (rival.rank, rival.alpha, rival.batch_size, rival.seed) == (8, 4.0, 3, 7)


def test_no_rate_or_number_of_steps_of_a_rival_is_typed_in() -> None:
    """Outside of the grid that is searched."""
    assert all(rival.rival is None for rival in RIVALS)
    for module in (subjects, recipes, pages, controls):
        source = Path(str(module.__file__)).read_text(encoding="utf-8")
        assert not re.search(r"DreamBooth\([^)]*lr=[0-9]", source)


def test_results_of_other_settings_lie_elsewhere(tmp_path: Path) -> None:
    file = write_json(tmp_path / "tuning.json", {"chosen": CHOSEN})
    other = write_json(tmp_path / "other.json", {"chosen": CHOSEN | {"dreambooth": {"lr": 2e-3, "steps": 200}}})
    params = FinetuneParams()
    before, after = recipes.rivals(file, params), recipes.rivals(other, params)
    assert before[0].folder != after[0].folder and before[1].folder == after[1].folder
    assert len({one.folder for one in (OURS, *before)}) == 3


def test_subjects_are_one_of_each_kind_and_depend_on_their_own_seed() -> None:
    twelve = recipes.subjects_of(range(len(KINDS)), seed=5)
    assert [subject.kind for subject, _ in twelve] == list(KINDS)
    assert recipes.subjects_of([3], seed=5) == [twelve[3]]
    assert recipes.subjects_of([0], seed=6)[0][0] != twelve[0][0]


def test_a_target_is_met_by_our_figures_and_shows_the_rivals_beside(rows: list[dict[str, Any]]) -> None:
    found = {aim["target"]: aim for aim in subjects.targets(rows)}
    assert found["evaluations that pass"]["reached"] == 1 and found["evaluations that pass"]["aim"] == round(10 / 6)
    assert not found["evaluations that pass"]["met"]
    assert found["mean leakage"]["reached"] == pytest.approx(0.2) and found["mean leakage"]["met"]
    assert found["mean identity gain"]["beside"] == pytest.approx({"dreambooth": 0.35, "dreambooth_started": 0.7})


def test_the_time_to_a_gain_is_read_off_between_points_and_clean_only_at_one(rows: list[dict[str, Any]]) -> None:
    found = subjects.times(rows)
    assert found["first"]["per_subject"]["dog"]["ours"] == pytest.approx(2 + 2 * 0.15 / 0.45)
    assert found["clean"]["per_subject"]["dog"] == {"ours": 4.0, "dreambooth": None, "dreambooth_started": 4.0}
    assert found["first"]["per_subject"]["mug"]["ours"] == 4.0 and found["clean"]["per_subject"]["mug"]["ours"] is None
    assert found["clean"]["reached_by"] == {"ours": 1, "dreambooth": 0, "dreambooth_started": 2}


def test_limits_are_shown_beside_our_worst_and_either_rivals_middle_subject(rows: list[dict[str, Any]]) -> None:
    found = {one["rule"]: one for one in subjects.margins(rows, GateParams())}
    assert found["identity gain"]["our_worst_bound"] == 0.4 and found["class leakage"]["our_worst_bound"] == 0.6
    assert found["class leakage"]["not_passed"] == {"ours": 1, "dreambooth": 1, "dreambooth_started": 0}
    assert found["identity gain"]["median"] == {"dreambooth": 0.5, "dreambooth_started": 0.5}


def test_a_calibration_is_named_by_what_limits_are_chosen_on_which_rivals_are_not(rows: list[dict[str, Any]]) -> None:
    before = subjects.calibration(rows)
    assert subjects.calibration(list(reversed(rows))) == before
    rows[1]["dreambooth"]["rules"]["sharpness"]["value"] += 0.001
    assert subjects.calibration(rows) == before
    rows[1]["ours"]["rules"]["sharpness"]["value"] += 0.001
    assert subjects.calibration(rows) != before


class Opened:
    """What a headline is drawn with, as far as is looked at before."""

    def __init__(self, folder: str = "a", **gate: Any) -> None:
        self.folder, self.spec = Path(folder), SimpleNamespace(name="pocket", hash="b")
        self.params = {"gate": GateParams(**gate), "evaluate": EvaluateParams()}


def test_the_headline_goes_on_as_it_began_or_not_at_all(tmp_path: Path) -> None:
    write_json(tmp_path / "tuning.json", {"chosen": CHOSEN})
    subjects.record_start(tmp_path, tmp_path, Opened())  # type: ignore[arg-type]
    subjects.record_start(tmp_path, tmp_path, Opened())  # type: ignore[arg-type]
    for other, named in ((Opened("b"), "bench"), (Opened(leakage_max=0.5), "gate")):
        with pytest.raises(SystemExit, match=f"begun with other {named} "):
            subjects.record_start(tmp_path, tmp_path, other)  # type: ignore[arg-type]
    write_json(tmp_path / "tuning.json", {"chosen": {}})
    with pytest.raises(SystemExit, match="begun with other files"):
        subjects.record_start(tmp_path, tmp_path, Opened())  # type: ignore[arg-type]


def test_rivals_that_were_tuned_under_other_limits_are_tuned_again(tmp_path: Path) -> None:
    tuned = {
        "limits": recipes.short_hash(as_dict(GateParams())),
        "profile": EvaluateParams().profile,
        "base": {"name": "pocket", "hash": "b"},
    }
    file = write_json(tmp_path / "tuning.json", tuned)
    subjects.check_tuning(file, Opened())  # type: ignore[arg-type]
    with pytest.raises(SystemExit, match=r"other limits; run .*--tune"):
        subjects.check_tuning(file, Opened(leakage_max=0.5))  # type: ignore[arg-type]
    write_json(file, tuned | {"profile": "smoke", "base": {"name": "pocket", "hash": "c"}})
    with pytest.raises(SystemExit, match="other profile and base"):
        subjects.check_tuning(file, Opened())  # type: ignore[arg-type]


def test_subjects_from_another_seed_are_no_results(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        subjects.main(["--headline", "--seed", "7"])
    assert "written elsewhere" in capsys.readouterr().err


def grid() -> dict[str, Any]:
    cells = [
        {"lr": lr, "steps": steps, "passes": 1, "subjects": 4, "score": 0.4, "identity_gain": 0.5, "leakage": 0.1}
        for lr in tuning.RATES
        for steps in tuning.STEPS
    ]
    return {
        "subjects": ["dog", "fish"],
        "profile": "smoke",
        "rule": tuning.RULE,
        "chosen": CHOSEN,
        "grid": {rival.name: cells for rival in RIVALS},
    }


def test_a_page_tells_of_all_recipes_their_tuning_and_the_controls(result: dict[str, Any]) -> None:
    passed = {"count": 12, "passed": 0, "lo": 0.0, "hi": 0.26, "stopped_by": {"identity gain": 12}}
    held = {
        "subjects": ["dog"] * 12,
        "seeds": {"subjects": controls.SEED},
        "all": passed | {"count": 60},
        "by_control": {"untrained": {"says": "saw no photo", **passed}},
    }
    for name in pages.NAMES:
        told = pages.page(name, result, tuned=grid(), controls=held)
        assert all(recipe.title in told for recipe in RECIPES)
        assert f"({name}.png)" in told and f"({name}_curves.png)" in told
        assert "| DreamBooth | 0.001 | 200 |" in told and told.count("| chosen |") == 2
        assert "| **all** |  | 0 of 60 |" in told
    assert "## How the rival was tuned" not in pages.page("subjects", result, tuned=None, controls=None)


def test_a_calibration_tells_of_our_recipe_alone(rows: list[dict[str, Any]], result: dict[str, Any]) -> None:
    alone = [{name: one for name, one in row.items() if name not in {rival.name for rival in RIVALS}} for row in rows]
    found = result | {
        "subjects": alone,
        "targets": subjects.targets(alone),
        "time_to_gain": subjects.times(alone),
        "margins": subjects.margins(alone, GateParams()),
        "recipes": {OURS.name: {}},
    }
    told = pages.page("calibration", found, tuned=None, controls=None)
    assert OURS.title in told and "DreamBooth" not in told
    assert pages.figure_png(pages.curves(found)).startswith(b"\x89PNG")


def test_pictures_stand_side_by_side_under_their_recipes(result: dict[str, Any], tmp_path: Path) -> None:
    for one in result["subjects"]:
        home = tmp_path / one["subject"]
        for number in range(4):
            (home / "photos").mkdir(parents=True, exist_ok=True)
            (home / "somewhere/pictures").mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (32, 32), "red").save(home / f"photos/{number}.jpg")
            Image.new("RGB", (32, 32), "blue").save(home / f"somewhere/pictures/{number}.png")
    drawn = pages.sheet(result, tmp_path)
    tiles = 2 + sum(recipe.shown for recipe in RECIPES)
    assert drawn.width > tiles * pages.TILE_PX and drawn.height > 2 * pages.TILE_PX
    assert pages.figure_png(pages.curves(result)).startswith(b"\x89PNG")


def test_a_text_that_is_wider_than_its_tiles_is_cut_and_one_that_is_not_stays() -> None:
    tile = [Image.new("RGB", (8, 8))]
    wide = pages.grouped([[pages.Group("x" * 400, tile)]], heads=[("one", [""])])
    assert wide.width == pages.TILE_PX + 2 * pages.GAP_PX - pages.GAP_PX
    assert pages.grouped([[pages.Group("x", tile)]], heads=[("one", [""])]).size == wide.size


def test_the_readme_is_given_the_figures_between_its_marks_and_stays_as_it_is_elsewhere(result: dict[str, Any]) -> None:
    before = (ROOT / "README.md").read_text(encoding="utf-8")
    after = pages.readme(before, result)
    begin, end = pages.README_MARKS
    assert after.split(begin)[0] == before.split(begin)[0] and after.split(end)[1] == before.split(end)[1]
    assert (
        "| PhotoFlux | 1 of 2 | 0.75 | 0.20 | 0.00 | 20 |" in after
        and "| DreamBooth | 1 of 2 | 0.35 | 0.35 | 0.00 | 30 |" in after
    )
    assert pages.readme(after, result) == after


def test_the_readme_says_what_rivals_fail_by(result: dict[str, Any]) -> None:
    before = (ROOT / "README.md").read_text(encoding="utf-8")
    for margin in result["margins"]:
        margin["not_passed"] = {"ours": 2, "dreambooth": 1, "dreambooth_started": 2}
    assert "either rival fails" not in pages.readme(before, result)
    result["margins"][2]["not_passed"]["dreambooth"] = 2
    assert f"fails by, on most subjects: {result['margins'][2]['rule']}." in pages.readme(before, result)


def test_limits_stand_on_calibration_subjects_and_figures_on_the_headlines() -> None:
    """Whatever of the two results is there."""
    for name, seed in (("calibration", CALIBRATION_SEED), ("subjects", HEADLINE_SEED)):
        file = subjects.RESULTS / f"{name}.json"
        if name == "calibration" or file.exists():
            assert json.loads(file.read_text(encoding="utf-8"))["seeds"]["subjects"] == seed


@pytest.mark.slow
def test_everything_from_tuning_to_the_readme_on_one_subject(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With few steps and pictures, and subjects from a seed that nothing is reported on."""
    for name in ("models", "params.yaml", "data"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "README.md").write_text((ROOT / "README.md").read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tuning, "RATES", (1e-3,))
    monkeypatch.setattr(tuning, "LADDER", (1e-3,))
    few = ["--subjects", "1", "--steps", "4", "--profile", "smoke", "--seed", "7", "--out", "results"]
    for mode in (None, "--tune", "--controls", "--headline"):
        subjects.main([*filter(None, [mode]), *few])
    tuned, calibrated, held, told = (
        json.loads(Path(f"results/{name}.json").read_text(encoding="utf-8"))
        for name in ("tuning", "calibration", "controls", "subjects")
    )
    assert {name: one["lr"] for name, one in tuned["chosen"].items()} == {rival.name: 1e-3 for rival in RIVALS}
    assert told["recipes"]["dreambooth"]["steps"] == 4 and list(calibrated["recipes"]) == [OURS.name]
    assert (
        told["subjects"][0]["ours"] == calibrated["subjects"][0]["ours"]
        and "dreambooth" not in calibrated["subjects"][0]
    )
    assert held["all"]["count"] == 5 and {one["subject"] for one in held["controls"]} == {"dog"}
    untrained = next(one for one in held["controls"] if one["control"] == "untrained")
    assert abs(untrained["metrics"]["identity_gain"]["point"]) < 0.3
    for name in ("calibration", "subjects"):
        assert "## Negative controls" in Path(f"results/{name}.md").read_text(encoding="utf-8")
    with pytest.raises(SystemExit, match="reported whatever comes"):
        subjects.main(["--headline", *few])
    subjects.main(["--readme", "--out", "results"])
    assert "| DreamBooth + start |" in Path("README.md").read_text(encoding="utf-8")
    finished = {file: file.stat().st_mtime_ns for file in Path(".cache").rglob("row.json")}
    capsys.readouterr()
    subjects.main(["--headline", "--again", *few])
    assert {file: file.stat().st_mtime_ns for file in Path(".cache").rglob("row.json")} == finished, (
        "run again, not read"
    )
