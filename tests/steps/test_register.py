"""Registering: only what the gate let through, once, whole, and the better version keeps the crown."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from photoflux.errors import GateRejected, InputError
from photoflux.manifest import write_json, write_tar, write_text
from photoflux.params import GateParams, RegisterParams
from photoflux.steps import gate, register
from photoflux.tracking import Registry

SUBJECT = {"id": "rex", "class_noun": "dog", "trigger": "sks", "consent": "sample"}
GOOD = {
    "identity_gain": 0.7, "prompt_change": 0.0, "leakage": 0.05, "drift_change": 0.0, "drift_kid_sd": 0.0,
    "diversity": 1.0, "class_diversity": 1.0, "copy_rate": 0.0, "memorisation_gap": 0.0, "broken_rate": 0.0,
    "sharpness": 1.0, "overall": 0.6,
}  # fmt: skip


@dataclasses.dataclass
class Case:
    """One judged adapter in a folder of its own, and what registering it writes."""

    folder: Path
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)

    def path(self, name: str) -> Path:
        return self.folder / name

    def run(self, **params: str) -> dict[str, Any]:
        inputs = [self.path(name) for name in ("adapter.tar", "decision.json", "evaluation.json", "audit.json")]
        outputs = {"card": self.path("card.md"), "receipt": self.path("receipt.json")}
        self.metrics = register.run(*inputs, **outputs, params=RegisterParams(**params)).metrics
        return json.loads(self.path("receipt.json").read_text())


def judged(folder: Path, *, overall: float = 0.6, severity: str = "none", audit: str = "PASS", judges: str = "j1",
           weights: bytes = b"w", subject: dict[str, str] | None = None, **changed: float) -> Case:  # fmt: skip
    """An adapter with its evaluation and audit, decided on by the real gate."""
    folder.mkdir()
    about = subject or SUBJECT
    curves = {
        "steps": [0, 10, 20], "subject": [1.0, 0.5, 0.25], "preserved": [],
        "candidates": [
            {"step": 10, "identity": 0.4, "validation": None}, {"step": 20, "identity": 0.6, "validation": 0.3},
        ],
    }  # fmt: skip
    manifest = {"subject": about, "base": {"name": "pocket", "hash": "b" * 64}, "params": {"rank": 8, "lr": 0.001},
                "step": 20, "seconds": 61.5}  # fmt: skip
    files = {"pytorch_lora_weights.safetensors": weights, "curves.json": json.dumps(curves).encode()}
    sha = write_tar(folder / "adapter.tar", files=files, manifest=manifest)
    points = GOOD | {"overall": overall} | changed
    evaluation = {
        "kind": "evaluation", "schema_version": 1, "subject": about, "base": manifest["base"], "profile": "smoke",
        "hashes": {"dataset": "d" * 64, "adapter": sha, "judges": judges, "prompts": "p"},
        "photos": {"trained": 5, "held_out": 1}, "made_share": 1.0, "exact_attributes": True, "invalid": [],
        "metrics": {name: {"point": v, "lo": v - 0.01, "hi": v + 0.01} for name, v in points.items()},
    }  # fmt: skip
    finding = {"name": "skin tone", "severity": severity, "reason": "judges err too often"}
    audited = {
        "kind": "audit", "schema_version": 1, "subject": about, "verdict": audit, "severity": severity,
        "findings": [] if severity == "none" else [finding], "hashes": {"adapter": sha},
    }  # fmt: skip
    write_json(folder / "evaluation.json", evaluation)
    write_json(folder / "audit.json", audited)
    write_json(folder / "decision.json", gate.decide(evaluation, audited, params=GateParams()))
    for page in ("decision.html", "evaluation.html", "finetune.html"):
        write_text(folder / page, f"<p>{page}</p>")
    return Case(folder)


@pytest.fixture(autouse=True)
def tables(empty_registry: Path, own_state: Path) -> None:
    shutil.copy(empty_registry, own_state / "mlflow.db")


@pytest.fixture
def better(tmp_path: Path) -> Case:
    return judged(tmp_path / "better", overall=0.7, weights=b"better")


@pytest.fixture
def worse(tmp_path: Path) -> Case:
    return judged(tmp_path / "worse", overall=0.5, weights=b"worse")


def test_first_version_becomes_champion_with_its_lineage(better: Case):
    receipt = better.run(name="rex-model")
    assert (receipt["name"], receipt["version"], receipt["alias"]) == ("rex-model", 1, "champion")
    version = Registry().at("rex-model", "champion")
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
    assert run.data.metrics["training/seconds"] == 61.5
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


def test_a_worse_version_does_not_take_the_crown(better: Case, worse: Case):
    better.run(name="m")
    receipt = worse.run(name="m")
    assert receipt["alias"] == "challenger"
    assert "0.490 is lower than version 1's 0.690" in receipt["why"]
    assert Registry().aliases("m") == {"champion": 1, "challenger": 2}
    assert worse.metrics["champion"] == 0


def test_a_better_version_takes_it(better: Case, worse: Case):
    worse.run(name="m")
    assert better.run(name="m")["alias"] == "champion"
    assert Registry().aliases("m") == {"champion": 2, "challenger": 2}


def test_scores_by_another_yardstick_are_not_compared(better: Case, tmp_path: Path):
    better.run(name="m")
    receipt = judged(tmp_path / "x", overall=0.5, judges="j2", weights=b"x").run(name="m")
    assert receipt["alias"] == "champion"
    assert "other judges" in receipt["why"]


def test_the_same_adapter_again_is_the_same_version(better: Case):
    first, second = better.run(name="m"), better.run(name="m")
    assert (first["version"], first["run_id"]) == (second["version"], second["run_id"])
    assert second["alias"] == "champion"


def test_name_defaults_to_the_subject(better: Case):
    assert better.run()["name"] == "rex"


def test_another_subject_may_not_move_in(better: Case, tmp_path: Path):
    better.run(name="m")
    other = judged(tmp_path / "other", weights=b"o", subject=SUBJECT | {"id": "bello"})
    with pytest.raises(InputError, match="holds the subject 'rex', not 'bello'"):
        other.run(name="m")
    assert Registry().aliases("m") == {"champion": 1, "challenger": 1}


def test_a_failed_gate_names_its_rule_and_registers_nothing(tmp_path: Path):
    bad = judged(tmp_path / "bad", leakage=0.9)
    with pytest.raises(GateRejected, match=r"said FAIL .* class leakage: 0\.90"):
        bad.run(sign_off_by="Ada", sign_off_reason="because I like it")
    assert Registry().names() == []
    assert not bad.path("card.md").exists()


def test_an_open_question_needs_a_signature_which_is_recorded(tmp_path: Path):
    case = judged(tmp_path / "case", severity="inconclusive", audit="INCONCLUSIVE")
    with pytest.raises(GateRejected, match=r"bias audit: inconclusive.*set register\.sign_off_by"):
        case.run()
    assert case.run(sign_off_by="Ada", sign_off_reason="looked at 200 pictures")["alias"] == "champion"
    tags = Registry().at("rex", "champion").tags
    assert (tags["sign_off_by"], tags["sign_off_reason"]) == ("Ada", "looked at 200 pictures")
    assert "Ada: looked at 200 pictures" in case.path("card.md").read_text()


def test_a_straddled_limit_cannot_be_signed_away(tmp_path: Path):
    case = judged(tmp_path / "case", identity_gain=GateParams().identity_gain_min)
    with pytest.raises(GateRejected, match="said INCONCLUSIVE and nothing is registered: identity gain"):
        case.run(sign_off_by="Ada", sign_off_reason="looked at 200 pictures")


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
    case.run(sign_off_by="<b>Ada</b>", sign_off_reason="a | b\nnew line and more")
    card = case.path("card.md").read_text()
    assert r"\<b\>Ada\</b\>: a \| b new line and more |" in card


def test_a_broken_document_is_named(better: Case):
    better.path("audit.json").write_text("{")
    with pytest.raises(InputError, match=r"audit\.json: not JSON .* run the audit step again"):
        better.run()
