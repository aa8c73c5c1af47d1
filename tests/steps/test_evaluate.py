"""The evaluation step on a tiny base with real files; what its numbers mean is tested on arrays in tests/judges."""

from __future__ import annotations

import base64
import io
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from photoflux.errors import InputError
from photoflux.flux.provision import pin
from photoflux.judges import sampling
from photoflux.manifest import digest, read_manifest, unpack, write_tar
from photoflux.params import EvaluateParams
from photoflux.report import sealed_beside
from photoflux.steps import StepResult
from photoflux.steps.evaluate import run
from tests.judges.tiny import make_adapter, make_base, make_dataset


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def files(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("files")
    return {
        "dataset": make_dataset(folder / "dataset.tar", class_noun="dog"),
        "adapter": make_adapter(folder / "adapter.tar", base, class_noun="dog"),
    }


def params(base: Path, **changes: Any) -> EvaluateParams:
    smoke = {"base": str(base), "prompts": "pocket", "profile": "smoke", "bootstrap": 200, "half_width_max": 1.0}
    return EvaluateParams(**(smoke | changes))


def evaluate(files: dict[str, Path], folder: Path, how: EvaluateParams) -> tuple[dict[str, Any], StepResult]:
    result = run(**files, evaluation=folder / "evaluation.json", report=folder / "evaluation.html", params=how)
    return json.loads((folder / "evaluation.json").read_text()), result


def test_a_run_says_what_it_compared_and_writes_a_self_contained_page(
    files: dict[str, Path], base: Path, tmp_path: Path
) -> None:
    document, result = evaluate(files, tmp_path, params(base))
    assert document["schema_version"] == 2
    assert document["subject"]["id"] == "dog-test"
    assert document["hashes"]["dataset"] == digest(files["dataset"])
    assert document["hashes"]["adapter"] == digest(files["adapter"])
    assert document["seeds"] == {"first": 1000, "per_prompt": 2, "prompts": 5}
    assert document["photos"] == {"trained": 4, "held_out": 2}
    assert document["exact_attributes"] is True
    for value in document["metrics"].values():
        assert value["lo"] <= value["hi"]
    assert result.metrics["identity_gain"] == document["metrics"]["identity_gain"]["point"]
    page = (tmp_path / "evaluation.html").read_text()
    assert "identity gain" in page
    assert 'src="http' not in page
    assert sealed_beside(tmp_path / "evaluation.html").exists()  # the photos are somebody's own


def test_the_same_inputs_give_the_same_numbers_and_the_base_is_drawn_once(
    files: dict[str, Path], base: Path, tmp_path: Path, own_state: Path
) -> None:
    first, _ = evaluate(files, tmp_path, params(base))
    cached = sorted((own_state / "cache" / "judging").iterdir())
    stamps = [path.stat().st_mtime_ns for path in cached]
    second, _ = evaluate(files, tmp_path, params(base))
    assert first == second
    assert len(cached) == 2
    assert [path.stat().st_mtime_ns for path in cached] == stamps


def test_a_damaged_cache_is_drawn_again(
    files: dict[str, Path], base: Path, tmp_path: Path, own_state: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, _ = evaluate(files, tmp_path, params(base))
    cached = sorted((own_state / "cache" / "judging").iterdir())
    cached[0].write_bytes(cached[0].read_bytes()[:5000])
    second, _ = evaluate(files, tmp_path, params(base))
    assert "damaged" in caplog.text
    assert first == second


def test_control_an_adapter_that_does_nothing_is_the_base(files: dict[str, Path], base: Path, tmp_path: Path) -> None:
    idle = make_adapter(tmp_path / "idle.tar", base, class_noun="dog", strength=0.0)
    metrics = evaluate({**files, "adapter": idle}, tmp_path, params(base))[0]["metrics"]
    assert metrics["leakage"]["point"] == pytest.approx(0, abs=1e-6)
    assert metrics["drift_change"]["point"] == 0
    assert metrics["drift_paired"]["point"] == pytest.approx(0, abs=1e-6)
    assert metrics["class_diversity"]["point"] == pytest.approx(1, abs=1e-6)


def test_an_adapter_that_changes_everything_is_seen(files: dict[str, Path], base: Path, tmp_path: Path) -> None:
    """Untrained judges see all pictures as much alike, so the scale is what a mild adapter does to the same seeds."""
    wild = make_adapter(tmp_path / "wild.tar", base, class_noun="dog", strength=3.0)
    mild, strong = (
        evaluate({**files, "adapter": adapter}, tmp_path, params(base))[0]["metrics"]["drift_paired"]
        for adapter in (files["adapter"], wild)
    )
    assert strong["lo"] > 2 * mild["hi"] > 0


def test_wide_intervals_double_the_seeds_once(
    files: dict[str, Path], base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A random base cannot tell the subject from its class; the span is lowered so that it counts as measured."""
    monkeypatch.setattr("photoflux.judges.scores.MIN_SPAN", -1.0)
    document, _ = evaluate(files, tmp_path, params(base, half_width_max=0.0))
    assert document["seeds"]["per_prompt"] == 4
    assert document["metrics"]["identity_gain"]["n_images"] == 20


@pytest.fixture(scope="module")
def person(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("person")
    return {
        "dataset": make_dataset(folder / "dataset.tar", class_noun="person"),
        "adapter": make_adapter(folder / "adapter.tar", base, class_noun="person", strength=3.0),
    }


def pictures_on(page: Path) -> set[bytes]:
    """Pixels of every picture on a page, contact sheets included."""
    parts = page.read_text().split("base64,")[1:]
    images = [Image.open(io.BytesIO(base64.b64decode(part.split('"')[0]))) for part in parts]
    return {image.convert("RGB").tobytes() for image in images}


def test_a_persons_pictures_are_on_the_sealed_page_only(person: dict[str, Path], base: Path, tmp_path: Path) -> None:
    document, _ = evaluate(person, tmp_path, params(base))
    assert "lightness_shift" in document["metrics"]
    open_page = (tmp_path / "evaluation.html").read_text()
    sealed = (tmp_path / "evaluation-sealed.html").read_text()
    for heading in ("The ten weakest pictures", "Pictures most like a training photo"):
        assert heading in sealed
        assert heading not in open_page
    assert "sks person" not in open_page
    assert len(pictures_on(tmp_path / "evaluation.html")) < len(pictures_on(tmp_path / "evaluation-sealed.html"))


def test_an_open_page_is_the_same_whatever_the_person_looks_like(
    person: dict[str, Path], base: Path, tmp_path: Path
) -> None:
    """Only base pictures and plots may be on it: two adapters whose numbers agree give the same contact sheets."""
    sheets = []
    for strength in (3.0, 2.0):
        adapter = make_adapter(tmp_path / f"{strength}.tar", base, class_noun="person", strength=strength)
        folder = tmp_path / str(strength)
        evaluate({**person, "adapter": adapter}, folder, params(base))
        parts = (folder / "evaluation.html").read_text().split("<section>")
        sheets.append([part for part in parts if "Pictures of the base" in part])
    assert sheets[0] == sheets[1] != []


def test_published_sample_people_may_be_shown_openly(base: Path, tmp_path: Path) -> None:
    files = {
        "dataset": make_dataset(tmp_path / "dataset.tar", class_noun="person", consent="sample"),
        "adapter": make_adapter(tmp_path / "adapter.tar", base, class_noun="person", consent="sample"),
    }
    evaluate(files, tmp_path, params(base))
    assert "The ten weakest pictures" in (tmp_path / "evaluation.html").read_text()
    assert not (tmp_path / "evaluation-sealed.html").exists()


def test_an_adapter_of_another_base_is_refused(files: dict[str, Path], base: Path, tmp_path: Path) -> None:
    unpack(files["adapter"], tmp_path / "parts")
    manifest = read_manifest(files["adapter"]) | {"base": {"name": "other", "hash": "0" * 64}}
    weights = {path.name: path for path in (tmp_path / "parts").iterdir()}
    write_tar(tmp_path / "other.tar", files=weights, manifest=manifest)
    with pytest.raises(InputError, match="trained on base 'other'"):
        evaluate({**files, "adapter": tmp_path / "other.tar"}, tmp_path, params(base))
    assert not (tmp_path / "evaluation.json").exists()


def test_a_dataset_without_held_out_photos_is_refused(files: dict[str, Path], base: Path, tmp_path: Path) -> None:
    alone = make_dataset(tmp_path / "all-trained.tar", class_noun="dog", held_out=0)
    with pytest.raises(InputError, match="no held-out"):
        evaluate({**files, "dataset": alone}, tmp_path, params(base))


def test_a_base_without_judges_says_so(files: dict[str, Path], base: Path, tmp_path: Path) -> None:
    shutil.copytree(base.with_suffix(""), tmp_path / "tiny")
    spec = yaml.safe_load(base.read_text()) | {"judges": None}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(spec))
    with pytest.raises(InputError, match="has no judges"):
        evaluate(files, tmp_path, params(base).replace(base=str(pin(tmp_path / "tiny.yaml"))))


def test_kept_pictures_come_back_as_they_were(tmp_path: Path) -> None:
    pictures = [Image.new("RGB", (128, 128), colour) for colour in ("red", "green", "blue", "white")]
    sampling._write_images(tmp_path / "grid.tar", pictures, {"seeds": 2})
    back = sampling._read_images(tmp_path / "grid.tar", 4)
    assert back is not None
    assert [p.tobytes() for p in back] == [p.tobytes() for p in pictures]
    assert sampling._read_images(tmp_path / "grid.tar", 5) is None


def test_what_is_kept_is_measured_by_the_code_of_today(
    files: dict[str, Path], base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kept measurements of the base beside new ones of the tuned model would double the ratio of sharpness."""
    first, _ = evaluate(files, tmp_path, params(base))
    usual = sampling.measure_quality

    def doubled(images: Any) -> Any:
        quality = usual(images)
        return replace(quality, sharpness=2 * quality.sharpness)

    monkeypatch.setattr(sampling, "measure_quality", doubled)
    second, _ = evaluate(files, tmp_path, params(base))
    assert second["metrics"]["sharpness"]["point"] == pytest.approx(first["metrics"]["sharpness"]["point"])


@pytest.mark.parametrize(
    "change",
    [
        {"resolution_px": 64},
        pytest.param({"steps": 2}, marks=pytest.mark.slow),
        pytest.param({"text_length": 12}, marks=pytest.mark.slow),
        pytest.param({"dtype": "bfloat16"}, marks=pytest.mark.slow),
    ],
)
def test_a_base_called_otherwise_is_drawn_anew_and_compared_with_itself(
    files: dict[str, Path], base: Path, tmp_path: Path, own_state: Path, change: dict[str, Any]
) -> None:
    first, _ = evaluate(files, tmp_path, params(base))
    cached = set((own_state / "cache" / "judging").iterdir())
    shutil.copytree(base.with_suffix(""), tmp_path / "tiny")
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(yaml.safe_load(base.read_text()) | change))
    idle = make_adapter(tmp_path / "idle.tar", base, class_noun="dog", strength=0.0)
    second, _ = evaluate({**files, "adapter": idle}, tmp_path, params(tmp_path / "tiny.yaml"))
    assert len(set((own_state / "cache" / "judging").iterdir()) - cached) == len(cached)
    assert second["metrics"]["drift_paired"]["point"] == pytest.approx(0, abs=1e-6)
    assert second["fingerprint"] != first["fingerprint"]


def champion_of(folder: Path, adapter: Path, document: dict[str, Any] | None) -> Path:
    about = {"name": "dog-test", "version": 3, "adapter": digest(adapter), "verdict": "PASS"}
    judged = {"evaluation.json": json.dumps(document).encode()} if document else {}
    write_tar(folder / "champion.tar", files={"adapter.tar": adapter, **judged}, manifest=about)
    return folder / "champion.tar"


def held_against(champion: Path, files: dict[str, Path], folder: Path, how: EvaluateParams) -> dict[str, Any]:
    run(**files, evaluation=folder / "against.json", report=folder / "against.html", params=how, champion=champion)
    document: dict[str, Any] = json.loads((folder / "against.json").read_text())
    return document


def test_the_champion_is_compared_by_its_own_evaluation_or_drawn_again_with_the_same_result(
    files: dict[str, Path], base: Path, tmp_path: Path
) -> None:
    """Drawing the same adapter on the same photos gives the numbers that its evaluation holds."""
    theirs, _ = evaluate(files, tmp_path, params(base))
    other = {**files, "adapter": make_adapter(tmp_path / "other.tar", base, class_noun="dog", strength=2.0)}
    by_numbers = held_against(champion_of(tmp_path, files["adapter"], theirs), other, tmp_path, params(base))[
        "champion"
    ]
    drawn = held_against(champion_of(tmp_path, files["adapter"], None), other, tmp_path, params(base))["champion"]
    assert (by_numbers["how"], drawn["how"]) == ("its own evaluation", "drawn again on these photos")
    assert (by_numbers["version"], by_numbers["adapter"]) == (3, digest(files["adapter"]))
    for side in ("point", "lo", "hi"):
        assert drawn["difference"][side] == pytest.approx(by_numbers["difference"][side], abs=1e-4)


def test_an_adapter_against_itself_differs_by_nothing(files: dict[str, Path], base: Path, tmp_path: Path) -> None:
    itself = held_against(champion_of(tmp_path, files["adapter"], None), files, tmp_path, params(base))["champion"]
    assert list(itself["difference"].values()) == pytest.approx([0, 0, 0], abs=1e-5)


def test_a_champion_of_another_base_and_none_at_all(files: dict[str, Path], base: Path, tmp_path: Path) -> None:
    unpack(files["adapter"], tmp_path / "parts")
    manifest = read_manifest(files["adapter"]) | {"base": {"name": "old", "hash": "0" * 64}}
    write_tar(
        tmp_path / "old.tar", files={path.name: path for path in (tmp_path / "parts").iterdir()}, manifest=manifest
    )
    found = held_against(champion_of(tmp_path, tmp_path / "old.tar", None), files, tmp_path, params(base))["champion"]
    assert found["difference"] is None
    assert "another base, 'old'" in found["how"]
    write_tar(tmp_path / "none.tar", files={}, manifest={"name": "dog-test", "version": 0})
    assert held_against(tmp_path / "none.tar", files, tmp_path, params(base))["champion"] is None
