"""A person answers for a finished run, afterwards and by naming what is open; its model is registered then."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from photoflux.errors import InputError
from photoflux.runs import State, load_run, new_run, save_run
from photoflux.sign_off import main
from photoflux.tracking import Registry
from tests.steps.test_register import Case, judged

WORDS = ["--by", "Ada", "--reason", "looked at 200 pictures"]


@pytest.fixture(autouse=True)
def tables(empty_registry: Path, own_state: Path) -> None:
    shutil.copy(empty_registry, own_state / "mlflow.db")


def run_of(case: Case, folder: Path) -> str:
    """A finished run whose steps wrote what the case holds; its id."""
    steps = {"finetune": "Train", "evaluate": "Evaluate", "audit": "Audit", "gate": "Decide", "register": "Register"}
    params = {"register_name": "rex", "register_experiment": "photoflux", "key": "plain://demo"}
    run = new_run("personalize", steps=steps, params=params, name="r").finished(State.succeeded)
    written = (
        ("finetune", "adapter", "adapter.tar"),
        ("evaluate", "evaluation", "evaluation.json"),
        ("audit", "audit", "audit.json"),
        ("gate", "decision", "decision.json"),
    )
    for step, name, file in written:
        kept = folder / run.id / "artifacts" / step / name
        kept.parent.mkdir(parents=True)
        shutil.copy(case.path(file), kept)
        run.artifacts[step] = {name: f"artifacts/{step}/{name}"}
    save_run(run, folder / run.id)
    return run.id


@pytest.fixture
def open_run(tmp_path: Path, own_state: Path) -> str:
    case = judged(tmp_path / "case", severity="inconclusive", audit="INCONCLUSIVE")
    return run_of(case, own_state / "runs")


def test_what_is_open_is_told_first_and_nothing_happens(open_run: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([open_run]) == 0
    told = capsys.readouterr().out
    assert "verdict  INCONCLUSIVE: to answer for it" in told
    assert "- bias audit: bias audit: inconclusive" in told
    assert Registry().names() == []


def test_it_is_registered_once_every_finding_is_named(
    open_run: str, own_state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match="does not name what it answers for: bias audit"):
        main([open_run, *WORDS])
    assert Registry().names() == []
    for _ in range(2):  # again is the same version
        assert main([open_run, *WORDS, "--finding", "bias audit"]) == 0
        assert capsys.readouterr().out.startswith("model    rex version 1, @champion")
    assert Registry().get_version("rex", "champion").tags["sign_off_by"] == "Ada"
    folder = own_state / "runs" / open_run
    assert set(load_run(folder).artifacts["register"]) == {"card", "receipt"}
    assert json.loads((folder / "sign-off.json").read_text())["findings"] == ["bias audit"]


def test_what_failed_or_never_was_decided_cannot_be_signed_for(
    tmp_path: Path, own_state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    failed = run_of(judged(tmp_path / "bad", leakage=0.9), own_state / "runs")
    assert main([failed]) == 0
    assert "nobody can sign for it" in capsys.readouterr().out
    with pytest.raises(Exception, match="the gate said FAIL and nothing is registered"):
        main([failed, *WORDS, "--finding", "class leakage"])
    save_run(new_run("personalize", steps={}, params={}, name="early"), own_state / "runs" / "personalize-early")
    with pytest.raises(InputError, match="has no decision"):
        main(["personalize-early", *WORDS])
    with pytest.raises(InputError, match="no readable run there"):
        main(["nothing"])
