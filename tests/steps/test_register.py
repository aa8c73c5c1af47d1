"""Registering: only what the gate let through, once, whole, and the better version keeps the crown."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from photoflux.errors import GateRejected, InputError
from photoflux.judges.champion import Cells, comparable, difference
from photoflux.manifest import write_json, write_tar, write_text
from photoflux.params import GateParams, RegisterParams
from photoflux.settings import sqlite_url
from photoflux.signing import SignOff
from photoflux.steps import gate, register
from photoflux.tracking import Registry

SUBJECT = {"id": "rex", "class_noun": "dog", "trigger": "sks", "consent": "sample"}
SIGNED = SignOff("Ada", "looked at 200 pictures", ("bias audit",))
GOOD = {
    "identity_gain": 0.7, "prompt_change": 0.0, "leakage": 0.05, "drift_change": 0.0, "drift_kid": 0.0,
    "diversity": 1.0, "class_diversity": 1.0, "copy_rate": 0.0, "memorisation_gap": 0.0, "broken_rate": 0.0,
    "sharpness": 1.0, "overall": 0.6,
}  # fmt: skip


@dataclasses.dataclass
class Case:
    """One judged adapter in a folder of its own, and what registering it writes."""

    folder: Path
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    signed: SignOff | None = None

    def path(self, name: str) -> Path:
        return self.folder / name

    def run(self, **params: str) -> dict[str, Any]:
        inputs = [self.path(name) for name in ("adapter.tar", "decision.json", "evaluation.json", "audit.json")]
        outputs = {"card": self.path("card.md"), "receipt": self.path("receipt.json")}
        self.metrics = register.run(*inputs, **outputs, params=RegisterParams(**params), sign_off=self.signed).metrics
        return json.loads(self.path("receipt.json").read_text())


def judged(
    folder: Path,
    *,
    overall: float = 0.6,
    severity: str = "none",
    audit: str = "PASS",
    judges: str = "j1",
    weights: bytes = b"w",
    subject: dict[str, str] | None = None,
    name: str = "m",
    **changed: float,
) -> Case:
    """An adapter with its evaluation and audit, held against the champion of now and decided on by the real gate."""
    folder.mkdir(parents=True)
    about = subject or SUBJECT
    curves = {
        "steps": [0, 10, 20],
        "subject": [1.0, 0.5, 0.25],
        "preserved": [],
        "candidates": [
            {"step": 10, "identity": 0.4, "validation": None},
            {"step": 20, "identity": 0.6, "validation": 0.3},
        ],
    }
    manifest = {
        "subject": about,
        "base": {"name": "pocket", "hash": "b" * 64},
        "params": {"rank": 8, "lr": 0.001},
        "step": 20,
    }
    files = {"pytorch_lora_weights.safetensors": weights, "curves.json": json.dumps(curves).encode()}
    sha = write_tar(folder / "adapter.tar", files=files, manifest=manifest)
    points = GOOD | {"overall": overall} | changed
    evaluation = {
        "kind": "evaluation",
        "schema_version": 2,
        "subject": about,
        "base": manifest["base"],
        "profile": "smoke",
        "hashes": {"dataset": "d" * 64, "adapter": sha, "judges": judges, "prompts": "p"},
        "photos": {"trained": 5, "held_out": 1},
        "made_share": 1.0,
        "exact_attributes": True,
        "invalid": [],
        "metrics": {name: {"point": v, "lo": v - 0.01, "hi": v + 0.01} for name, v in points.items()},
        "fingerprint": judges,
        "cells": cells_of(overall),
        "champion": None,
    }
    evaluation["champion"] = held_against(evaluation, name)
    finding = {"name": "skin tone", "severity": severity, "reason": "judges err too often"}
    audited = {
        "kind": "audit",
        "schema_version": 1,
        "subject": about,
        "verdict": audit,
        "severity": severity,
        "findings": [] if severity == "none" else [finding],
        "hashes": {"adapter": sha},
    }
    write_json(folder / "evaluation.json", evaluation)
    write_json(folder / "audit.json", audited)
    write_json(folder / "decision.json", gate.decide(evaluation, audited, params=GateParams(drift_kid_of="")))
    for page in ("decision.html", "evaluation.html", "finetune.html"):
        write_text(folder / page, f"<p>{page}</p>")
    return Case(folder)


def cells_of(overall: float) -> dict[str, Any]:
    """Pictures that come to this overall score."""
    flat = np.ones((5, 2))
    return Cells((0.2 + 0.5 * overall) * flat, 0.2 * flat, flat, flat, 0.7).as_dict()


def held_against(evaluation: dict[str, Any], name: str) -> dict[str, Any] | None:
    """What `evaluate` says of the present champion."""
    registry = Registry()
    if (version := registry.get_version(name, "champion")) is None:
        return None
    theirs = json.loads(registry.download_document(version, "evaluation.json").read_text())
    about = {"name": name, "version": version.number, "adapter": version.digest, "verdict": version.tags["verdict"]}
    if not comparable(evaluation, theirs):
        return {**about, "how": "cannot be drawn: it belongs to another base, 'old'", "difference": None}
    change = difference(Cells.of(evaluation), Cells.of(theirs), resamples=200)
    return {**about, "how": "its own evaluation", "difference": change.as_dict()}


@pytest.fixture(autouse=True)
def tables(empty_registry: Path, own_state: Path) -> None:
    shutil.copy(empty_registry, own_state / "mlflow.db")


def make_better(folder: Path) -> Case:
    return judged(folder / "better", overall=0.7, weights=b"better")


def make_worse(folder: Path) -> Case:
    return judged(folder / "worse", overall=0.66, weights=b"worse")


@pytest.fixture
def better(tmp_path: Path) -> Case:
    return make_better(tmp_path)


@pytest.fixture
def worse(tmp_path: Path) -> Case:
    return make_worse(tmp_path)


def test_first_version_becomes_champion_with_its_lineage(better: Case):
    receipt = better.run(name="rex-model")
    assert (receipt["name"], receipt["version"], receipt["alias"]) == ("rex-model", 1, "champion")
    version = Registry().get_version("rex-model", "champion")
    assert version.digest == receipt["adapter"]
    lineage = {name: version.tags[name] for name in ("data", "base", "verdict", "subject", "consent")}
    assert lineage == {"data": "d" * 64, "base": "b" * 64, "verdict": "PASS", "subject": "rex", "consent": "sample"}
    assert json.loads(version.tags["params"]) == {"rank": 8, "lr": 0.001}
    assert version.tags["code"] == register.code_version()


def test_the_run_shows_parameters_metrics_curves_and_reports(better: Case):
    from mlflow import MlflowClient

    receipt = better.run()
    registry = Registry()
    client = MlflowClient(registry.uri, registry.uri)
    run = client.get_run(receipt["run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.params == {"rank": "8", "lr": "0.001"}
    assert run.data.metrics["overall_lo"] == pytest.approx(0.69)
    assert run.data.metrics["training/step"] == 20
    curves = {
        name: sorted((p.step, p.value) for p in client.get_metric_history(receipt["run_id"], name))
        for name in ("loss/subject", "candidate/identity", "candidate/validation")
    }
    assert curves == {
        "loss/subject": [(0, 1.0), (10, 0.5), (20, 0.25)],
        "candidate/identity": [(10, 0.4), (20, 0.6)],
        "candidate/validation": [(20, 0.3)],
    }
    paths = {file.path for file in client.list_artifacts(receipt["run_id"])}
    assert paths == {"card.md", "decision.json", "evaluation.json", "audit.json", "reports"}
    reports = {file.path for file in client.list_artifacts(receipt["run_id"], "reports")}
    assert reports == {"reports/decision.html", "reports/evaluation.html", "reports/finetune.html"}


def test_a_worse_version_does_not_take_the_crown(better: Case, tmp_path: Path):
    better.run(name="m")
    worse = make_worse(tmp_path)
    receipt = worse.run(name="m")
    assert receipt["alias"] == "challenger"
    assert "overall -0.040" in receipt["why"]
    assert "version 1" in receipt["why"]
    assert Registry().aliases("m") == {"champion": 1, "challenger": 2}
    assert worse.metrics["champion"] == 0


def test_a_better_version_takes_it(worse: Case, tmp_path: Path):
    worse.run(name="m")
    assert make_better(tmp_path).run(name="m")["alias"] == "champion"
    assert Registry().aliases("m") == {"champion": 2, "challenger": 2}


@pytest.mark.parametrize("first", ["better", "worse"])
def test_of_two_that_were_judged_at_the_same_time_the_better_one_is_champion(better: Case, worse: Case, first: str):
    """Both were held against nobody; whichever is registered last."""
    order = [better, worse] if first == "better" else [worse, better]
    for case in order:
        case.run(name="m")
    champion = Registry().get_version("m", "champion")
    assert champion.tags["overall"] == "0.7"


def test_who_was_held_against_one_that_is_champion_no_more_has_to_be_better_than_the_present_one(tmp_path: Path):
    judged(tmp_path / "first", overall=0.6, weights=b"1").run(name="m")
    late, stray = (
        judged(tmp_path / "late", overall=0.68, weights=b"l"),
        judged(tmp_path / "s", overall=0.9, judges="j2", weights=b"s"),
    )
    judged(tmp_path / "second", overall=0.65, weights=b"2").run(name="m")
    judged(tmp_path / "third", overall=0.7, weights=b"3").run(name="m")
    assert Registry().aliases("m")["champion"] == 3
    receipt = late.run(name="m")
    assert (receipt["alias"], receipt["why"]) == (
        "challenger",
        "version 3, which became champion meanwhile, is no worse",
    )
    receipt = stray.run(name="m")
    assert receipt["alias"] == "challenger"
    assert "run again to have them compared" in receipt["why"]
    assert Registry().aliases("m")["champion"] == 3


def test_one_of_another_base_makes_room(better: Case, tmp_path: Path):
    better.run(name="m")
    receipt = judged(tmp_path / "x", overall=0.5, judges="j2", weights=b"x").run(name="m")
    assert receipt["alias"] == "champion"
    assert "another base" in receipt["why"]


@pytest.mark.parametrize(
    "delays", [(0.0, 0.0), *(pytest.param(x, marks=pytest.mark.slow) for x in [(0.0, 0.3), (0.3, 0.0)])]
)
def test_two_machines_that_register_at_once_leave_the_better_one(
    better: Case, worse: Case, own_state: Path, tmp_path: Path, delays: tuple[float, float]
):
    """Each process has a state folder, and so a lock, of its own; what they share is the registry's database alone."""
    code = (
        "import sys, time; from pathlib import Path; from photoflux.params import RegisterParams; from photoflux.steps import register\n"
        "from photoflux.tracking import Registry; Registry().names(); print('ready', flush=True); sys.stdin.readline()\n"
        "time.sleep(float(sys.argv[2])); f = Path(sys.argv[1])\n"
        "register.run(f/'adapter.tar', f/'decision.json', f/'evaluation.json', f/'audit.json', card=f/'card.md',"
        " receipt=f/'receipt.json', params=RegisterParams(name='m'))"
    )
    (tmp_path / "work").mkdir()
    started = []
    for number, (case, delay) in enumerate(zip((better, worse), delays, strict=True)):
        state = tmp_path / f"state-{number}"
        settings = {
            "PHOTOFLUX_TRACKING_URI": sqlite_url(own_state / "mlflow.db"),
            "PHOTOFLUX_STATE_DIR": str(state),
            "PHOTOFLUX_MODELS_DIR": str(Path(gate.__file__).resolve().parents[2] / "models"),
        }
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", code, str(case.folder), str(delay)],
                cwd=tmp_path / "work",
                env=os.environ | settings,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
    assert [one.stdout.readline() for one in started] == ["ready\n"] * 2
    for one in started:
        one.stdin.write("go\n")
        one.stdin.flush()
    assert [one.wait(120) for one in started] == [0, 0]
    registry = Registry()
    assert len(registry.versions("m")) == 2
    assert (
        registry.get_version("m", "champion").digest == json.loads(better.path("receipt.json").read_text())["adapter"]
    )


def test_the_same_adapter_again_is_the_same_version(better: Case):
    first, second = better.run(name="m"), better.run(name="m")
    assert (first["version"], first["run_id"]) == (second["version"], second["run_id"])
    assert second["alias"] == "champion"


def test_the_same_training_run_again_is_held_against_itself_and_stays_one_version(better: Case, tmp_path: Path):
    """As `make demo` twice is: another evaluation and another decision, which know of a champion, about the same adapter."""
    first = better.run(name="m")
    again = make_better(tmp_path / "again")
    decided = json.loads(again.path("decision.json").read_text())
    assert (decided["champion"]["version"], decided["champion"]["adapter"]) == (1, first["adapter"])
    second = again.run(name="m")
    assert [second[name] for name in ("version", "run_id", "alias")] == [1, first["run_id"], "champion"]
    assert [version.number for version in Registry().versions("m")] == [1]
    assert make_worse(tmp_path).run(name="m")["alias"] == "challenger"


@pytest.mark.parametrize("order", ["before", "after"])
def test_a_champion_trained_again_claims_nothing_of_whoever_takes_its_place(better: Case, tmp_path: Path, order: str):
    """One that cannot be compared with it by their numbers, registered before or after the champion is once more."""
    better.run(name="m")
    again, other = make_better(tmp_path / "again"), judged(tmp_path / "x", overall=0.5, judges="j2", weights=b"x")
    for case in [again, other] if order == "after" else [other, again]:
        receipt = case.run(name="m")
        assert receipt["alias"] == ("champion" if case is other or order == "after" else "challenger")
    assert Registry().aliases("m")["champion"] == 2


def test_name_defaults_to_the_subject(better: Case):
    assert better.run()["name"] == "rex"


def test_another_subject_may_not_move_in(better: Case, tmp_path: Path):
    better.run(name="m")
    other = judged(tmp_path / "other", overall=0.7, weights=b"o", subject=SUBJECT | {"id": "bello"})
    with pytest.raises(InputError, match="holds the subject 'rex', not 'bello'"):
        other.run(name="m")
    assert Registry().aliases("m") == {"champion": 1, "challenger": 1}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"class_noun": "mug"},
            r"model 'rex' holds the class noun 'dog', not 'mug'; choose another register\.name \(--name\)",
        ),
        ({"trigger": "zwx"}, r"holds the trigger 'sks', not 'zwx'; .* give import_photos\.trigger \(--trigger\) 'sks'"),
        (
            {"id": "bello"},
            r"holds the subject 'rex', not 'bello'; .* give import_photos\.subject_id \(--subject\) 'rex'",
        ),
    ],
)
@pytest.mark.parametrize("before", [False, True], ids=["as it is registered", "registered when fewer tags were kept"])
def test_a_name_stays_that_of_one_subject(better: Case, tmp_path: Path, change: dict, sentence: str, before: bool):
    better.run(name="rex")
    client = Registry()._client
    if before:
        for tag in ("class_noun", "trigger"):
            client.delete_registered_model_tag("rex", tag)
    other = judged(tmp_path / "other", weights=b"o", subject=SUBJECT | change)
    with pytest.raises(InputError, match=sentence):
        other.run(name="rex")
    assert Registry().aliases("rex") == {"champion": 1, "challenger": 1}


def test_a_model_of_before_is_told_apart_from_its_next_version_on(better: Case, worse: Case):
    better.run(name="rex")
    client = Registry()._client
    for tag in ("class_noun", "trigger"):
        client.delete_registered_model_tag("rex", tag)
        client.delete_model_version_tag("rex", "1", tag)
    worse.run(name="rex")
    assert client.get_registered_model("rex").tags == {"subject": "rex", "class_noun": "dog", "trigger": "sks"}


def test_a_failed_gate_names_its_rule_and_registers_nothing(tmp_path: Path):
    bad = judged(tmp_path / "bad", leakage=0.9)
    bad.signed = SignOff("Ada", "because I like it", ("class leakage",))
    with pytest.raises(GateRejected, match=r"said FAIL .* class leakage: 0\.90"):
        bad.run()
    assert Registry().names() == []
    assert not bad.path("card.md").exists()


def test_an_open_question_needs_a_signature_which_is_recorded(tmp_path: Path):
    case = judged(tmp_path / "case", severity="inconclusive", audit="INCONCLUSIVE")
    with pytest.raises(GateRejected, match=r"bias audit: inconclusive.*`photoflux sign-off`"):
        case.run()
    for findings, told in (((), "does not name .*bias audit"), (("bias audit", "leakage"), "'leakage' is not open")):
        case.signed = SignOff("Ada", "looked at 200 pictures", findings)
        with pytest.raises(InputError, match=told):
            case.run()
    case.signed = SIGNED
    assert case.run()["alias"] == "champion"
    tags = Registry().get_version("rex", "champion").tags
    signed = tuple(tags[f"sign_off_{name}"] for name in ("by", "reason", "findings"))
    assert signed == ("Ada", "looked at 200 pictures", "bias audit")
    assert "Ada, for bias audit: looked at 200 pictures" in case.path("card.md").read_text()


def test_one_that_was_signed_for_leaves_the_place_to_one_that_passed(better: Case, tmp_path: Path):
    better.run(name="m")
    case = judged(tmp_path / "case", overall=0.9, weights=b"c", severity="inconclusive", audit="INCONCLUSIVE")
    case.signed = SIGNED
    receipt = case.run(name="m")
    assert receipt["alias"] == "challenger"
    assert "version 1 passed by itself" in receipt["why"]


@pytest.mark.parametrize("moved_on", [False, True], ids=["both held against nobody", "the champion was replaced"])
def test_one_that_is_signed_for_later_leaves_the_place_to_one_that_passed_meanwhile(tmp_path: Path, moved_on: bool):
    """A question stays open for days; when it is signed, a run of the same photos has passed, with a lower score."""
    if moved_on:
        first = judged(tmp_path / "1", overall=0.5, weights=b"1", severity="inconclusive", audit="INCONCLUSIVE")
        first.signed = SIGNED
        first.run(name="m")
    open_question = judged(tmp_path / "open", overall=0.9, weights=b"o", severity="inconclusive", audit="INCONCLUSIVE")
    if moved_on:
        judged(tmp_path / "second", overall=0.55, weights=b"2").run(name="m")
    passed = judged(tmp_path / "passed", overall=0.7, weights=b"p").run(name="m")
    open_question.signed = SIGNED
    receipt = open_question.run(name="m")
    assert receipt["alias"] == "challenger"
    assert f"version {passed['version']}, " in receipt["why"]
    assert "passed by itself, this one did not" in receipt["why"]
    assert Registry().aliases("m")["champion"] == passed["version"]


def test_a_version_says_what_was_said_of_it_last(tmp_path: Path):
    """The same adapter is judged anew, with another judge card perhaps: its verdict, and who signed, are those of the last time."""
    case = judged(tmp_path / "passed", weights=b"w")
    case.run(name="m")
    again = judged(tmp_path / "open", weights=b"w", severity="inconclusive", audit="INCONCLUSIVE")
    again.signed = SIGNED
    assert again.run(name="m")["version"] == 1
    tags = Registry().get_version("m", "1").tags
    assert [tags.get(name) for name in ("verdict", "sign_off_by")] == ["INCONCLUSIVE", "Ada"]
    judged(tmp_path / "once more", weights=b"w").run(name="m")
    assert Registry().get_version("m", "1").tags["verdict"] == "PASS"


def test_the_alias_stays_where_a_person_put_it_back(tmp_path: Path):
    """Version 2 was taken out of its place by hand; one that cannot be compared with it brings it back no more."""
    judged(tmp_path / "1", overall=0.6, weights=b"1").run(name="m")
    judged(tmp_path / "2", overall=0.7, weights=b"2").run(name="m")
    registry = Registry()
    with registry.aliased(registry.get_version("m", "1"), "champion"):
        pass
    new = judged(tmp_path / "3", overall=0.65, judges="j2", weights=b"3")
    assert json.loads(new.path("decision.json").read_text())["champion"]["version"] == 1
    assert new.run(name="m")["alias"] == "champion"
    assert registry.aliases("m")["champion"] == 3


def test_where_the_champion_was_deleted_an_old_claim_is_not_carried_out(tmp_path: Path):
    judged(tmp_path / "1", overall=0.6, weights=b"1").run(name="m")
    judged(tmp_path / "2", overall=0.7, weights=b"2").run(name="m")
    registry = Registry()
    assert registry.erase("m", lambda _: {2}) == 1
    receipt = judged(tmp_path / "3", overall=0.65, judges="j2", weights=b"3").run(name="m")
    assert (receipt["alias"], receipt["why"]) == ("champion", "there was no champion")
    assert registry.aliases("m")["champion"] == 3


def test_who_gave_way_to_one_that_is_not_registered_after_all_has_the_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Two machines, without a lock between them: the good one sees the better one's claim, whose card then cannot be written."""
    monkeypatch.setattr(Registry, "_registration_lock", lambda _: contextlib.nullcontext())
    judged(tmp_path / "first", overall=0.5, weights=b"1").run(name="m")
    better, good = judged(tmp_path / "b", overall=0.8, weights=b"b"), judged(tmp_path / "g", overall=0.7, weights=b"g")
    original, receipts = register.render_card, []

    def fail_beside_another(*args: Any, version: int | None, **kwargs: Any) -> str:
        if version != 2 or receipts:
            return original(*args, version=version, **kwargs)
        receipts.append(None)
        receipts.append(good.run(name="m"))
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(register, "render_card", fail_beside_another)
    with pytest.raises(OSError):
        better.run(name="m")
    assert receipts[1]["why"] == "version 2, registered meanwhile, is no worse"
    assert [version.number for version in Registry().versions("m")] == [1, 3]
    assert Registry().aliases("m")["champion"] == 3


def test_the_champion_of_before_has_its_place_back_whatever_others_did(
    worse: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Of two that fail at once each brings back the alias as it found it, and what it found was the other."""
    worse.run(name="m")
    original = register.render_card

    def fail_without_an_alias(*args: Any, version: int | None, **kwargs: Any) -> str:
        if version is None:
            return original(*args, version=version, **kwargs)
        Registry()._client.delete_registered_model_alias("m", "champion")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(register, "render_card", fail_without_an_alias)
    with pytest.raises(OSError):
        judged(tmp_path / "again", overall=0.8, weights=b"again").run(name="m")
    assert Registry().aliases("m") == {"champion": 1, "challenger": 1}


def test_another_version_of_the_champions_number_is_another_champion(tmp_path: Path):
    """A name that was deleted begins again at version 1, which nobody was held against."""
    judged(tmp_path / "first", overall=0.5, weights=b"1").run(name="m")
    late = judged(tmp_path / "late", overall=0.6, weights=b"l")
    assert Registry().erase("m") == 1
    judged(tmp_path / "anew", overall=0.8, weights=b"a").run(name="m")
    receipt = late.run(name="m")
    assert (receipt["alias"], receipt["why"]) == (
        "challenger",
        "version 1, which became champion meanwhile, is no worse",
    )
    assert Registry().aliases("m")["champion"] == 1


def test_a_straddled_limit_cannot_be_signed_away(tmp_path: Path):
    case = judged(tmp_path / "case", identity_gain=GateParams().identity_gain_min)
    case.signed = SignOff("Ada", "looked at 200 pictures", ("identity gain",))
    with pytest.raises(GateRejected, match="said INCONCLUSIVE and nothing is registered: identity gain"):
        case.run()


@pytest.mark.parametrize(
    ("by", "reason"), [("", "looked at 200 pictures"), (" ", "looked at 200 pictures"), ("Ada", "fine")]
)
def test_a_signature_says_who_and_why(by: str, reason: str):
    with pytest.raises(InputError, match=r"name of who signs|too short"):
        SignOff(by, reason, ("bias audit",))


def test_documents_of_another_adapter_are_refused(better: Case, worse: Case):
    better.path("decision.json").write_bytes(worse.path("decision.json").read_bytes())
    with pytest.raises(InputError, match=r"decision\.json is about adapter .* run decision on this one"):
        better.run()


def test_nothing_stays_when_the_card_cannot_be_written(better: Case, worse: Case, monkeypatch: pytest.MonkeyPatch):
    from mlflow import MlflowClient

    worse.run(name="m")
    better.path("receipt.json").mkdir()
    with pytest.raises(OSError):
        better.run(name="m")
    registry = Registry()
    assert registry.aliases("m") == {"champion": 1, "challenger": 1}
    client = MlflowClient(registry.uri, registry.uri)
    assert len(client.search_model_versions("name = 'm'")) == 1
    experiments = [e.experiment_id for e in client.search_experiments()]
    assert len(client.search_runs(experiments)) == 1
    assert len(client.search_logged_models(experiments)) == 1


def test_the_card_tells_what_matters(better: Case):
    better.run(name="m")
    card = better.path("card.md").read_text()
    assert card.startswith("# m, version 1 (champion)\n")
    told = (
        "**PASS**",
        "`sks dog`",
        "| overall | 0.700 | 0.690 to 0.710 |",
        "| rank | 8 |",
        "d" * 64,
        "Consent | sample",
    )
    assert [text for text in told if text not in card] == []
    assert "{{" not in card


def test_text_in_the_card_is_no_markup(tmp_path: Path):
    case = judged(tmp_path / "case", severity="inconclusive", audit="INCONCLUSIVE")
    case.signed = SignOff("<b>Ada</b>", "a | b\nnew line and more", ("bias audit",))
    case.run()
    card = case.path("card.md").read_text()
    assert r"\<b\>Ada\</b\>, for bias audit: a \| b new line and more |" in card


def test_a_broken_document_is_named(better: Case):
    better.path("audit.json").write_text("{")
    with pytest.raises(InputError, match=r"audit\.json: not JSON .* run the audit step again"):
        better.run()
