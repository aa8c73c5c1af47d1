"""What must not pass is made as it says; the gate's answer to it is `python -m benchmarks.subjects --controls`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from scipy.stats import binomtest

from benchmarks import controls
from photoflux.flux.loading import load_pipeline
from photoflux.flux.lora import load_adapter
from photoflux.flux.spec import load_spec
from photoflux.manifest import read_manifest, unpack, write_tar
from photoflux.pocket.world import KINDS
from tests.judges.tiny import make_adapter, make_base, make_dataset


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Path:
    return make_adapter(tmp_path / "adapter.tar", base, class_noun="dog")


@pytest.mark.parametrize(("hits", "total"), [(0, 60), (1, 60), (30, 60), (60, 60), (0, 12)])
def test_the_interval_is_the_exact_one(hits: int, total: int) -> None:
    exact = binomtest(hits, total).proportion_ci(0.95, method="exact")
    assert controls.clopper_pearson(hits, total) == pytest.approx((exact.low, exact.high))


def test_there_are_five_of_each_of_twelve_and_each_says_what_is_wrong() -> None:
    assert len(controls.CONTROLS) * len(KINDS) == 60
    assert len({control.name for control in controls.CONTROLS}) == 5 and all(
        control.says for control in controls.CONTROLS
    )


def test_another_one_of_its_kind_is_another_individual() -> None:
    for number, kind in enumerate(KINDS):
        one, other = (controls.subjects_of([number], seed=controls.SEED + more)[0][0] for more in (0, controls.OTHER))
        assert one.kind == other.kind == kind
        assert (one.colour, one.accent, one.pattern) != (other.colour, other.accent, other.pattern)


def test_captions_name_the_class_alone(tmp_path: Path) -> None:
    made = make_dataset(tmp_path / "made.tar", class_noun="dog")
    manifest = unpack(made, tmp_path / "files")
    items = [{**item, "caption": "a photo of sks dog on the beach"} for item in manifest["items"]]
    files = {item["file"]: tmp_path / "files" / item["file"] for item in items}
    write_tar(tmp_path / "dataset.tar", files=files, manifest={**manifest, "items": items})
    found = read_manifest(controls.as_class(tmp_path / "dataset.tar", tmp_path / "class.tar"))
    assert {item["caption"] for item in found["items"]} == {"a photo of a dog on the beach"}
    assert found["subject"] == manifest["subject"]
    unpack(tmp_path / "class.tar", tmp_path / "again")
    assert all((tmp_path / "again" / item["file"]).read_bytes() == files[item["file"]].read_bytes() for item in items)


def test_an_adapter_that_is_too_strong_is_the_same_but_for_the_size_of_its_updates(
    adapter: Path, base: Path, tmp_path: Path
) -> None:
    out = controls.altered(adapter, tmp_path / "strong.tar", controls.strengthened)
    before, after = (tmp_path / name for name in ("before", "after"))
    manifest, other = unpack(adapter, before), unpack(out, after)
    assert other["base"] == manifest["base"] and other["subject"] == manifest["subject"]
    one, two = (load_file(folder / controls.WEIGHTS) for folder in (before, after))
    ups = [name for name in sorted(one) if ".lora_B." in name]
    assert one.keys() == two.keys() and len(ups) > 4
    for name in one:
        assert torch.equal(two[name], (3 if name in ups else 1) * one[name])
    with safe_open(before / controls.WEIGHTS, "pt") as a, safe_open(after / controls.WEIGHTS, "pt") as b:
        assert a.metadata() == b.metadata()
    load_adapter(load_pipeline(load_spec(str(base))), after / controls.WEIGHTS)


def test_rows_are_counted_by_control_with_what_stopped_them() -> None:
    rules = {"identity gain": {"verdict": "FAIL"}, "sharpness": {"verdict": "INCONCLUSIVE"}}
    rows = [
        {"control": "untrained", "verdict": "FAIL", "rules": rules},
        {"control": "untrained", "verdict": "PASS", "rules": {}},
        {"control": "too strong", "verdict": "INCONCLUSIVE", "rules": {}},
    ]
    found = controls.counted(rows, "untrained")
    assert (found["count"], found["passed"], found["stopped_by"]) == (2, 1, {"identity gain": 1})
    assert found["verdicts"] == {"FAIL": 1, "PASS": 1}
    assert controls.counted(rows)["count"] == 3 and controls.counted(rows)["passed"] == 1
    assert (found["lo"], found["hi"]) == pytest.approx((0.0126, 0.9874), abs=1e-4)


def test_controls_of_one_subject_count_for_less_than_as_many_subjects() -> None:
    rows = [
        {"control": control.name, "subject": kind, "verdict": "FAIL"} for kind in KINDS for control in controls.CONTROLS
    ]
    none = controls.subject_interval(rows)
    assert none["lo"] == 0.0 and controls.clopper_pearson(0, 60)[1] < none["hi"] == pytest.approx(0.089, abs=0.002)
    rows[0]["verdict"] = "PASS"
    assert 0 < controls.subject_interval(rows)["lo"] < 1 / 60 < none["hi"] < controls.subject_interval(rows)["hi"]
