"""The real pipeline from photos to a verdict: the compiled file, every real step, on the pocket base."""

from __future__ import annotations

import json
import re
from datetime import datetime
from pathlib import Path

import pytest

from photoflux.manifest import digest, read_manifest
from photoflux.runs import State
from photoflux.steps.import_photos import subject_of
from pipelines.graph import read_spec, step_titles
from tests.canaries import stored_below

PURE = ("import_data", "validate", "augment", "finetune", "evaluate", "audit", "gate")


def document(finished, step: str, name: str) -> dict:
    return json.loads((finished.folder / finished.run.artifacts[step][name]).read_text())


def manifest(finished, step: str, name: str) -> dict:
    return read_manifest(finished.folder / finished.run.artifacts[step][name])


def test_it_reaches_a_verdict(personalised):
    assert personalised.code == 0, personalised.out
    assert personalised.run.state is State.succeeded
    assert personalised.run.error is None
    assert [personalised.run.step(name).state for name in PURE] == [State.succeeded] * len(PURE)
    assert personalised.run.step("notify").state is State.succeeded


def test_eight_steps_do_not_make_a_likeness_and_nothing_is_registered(personalised):
    decision = document(personalised, "gate", "decision")
    assert personalised.run.verdict == decision["verdict"] != "PASS"
    assert decision["promote"] is False
    assert personalised.run.step("register").state is State.skipped
    assert "register" not in personalised.run.artifacts


def test_it_prints_its_steps_its_reports_its_reasons_and_last_the_verdict(personalised):
    lines = personalised.out.splitlines()
    assert lines[-1].split() == ["verdict", personalised.run.verdict]
    titles = step_titles(read_spec()).values()
    assert all(any(line.startswith(title) for line in lines) for title in titles)
    against = [r["message"] for r in document(personalised, "gate", "decision")["reasons"] if r["verdict"] != "PASS"]
    assert against
    assert [line.strip().removeprefix("- ") for line in lines if line.strip().startswith("- ")] == against
    reports = [line.split()[1] for line in lines if line.startswith("report ")]
    order = [step.name for step in personalised.run.steps]
    assert reports == [name for name in order if "report" in personalised.run.artifacts.get(name, {})]


@pytest.mark.parametrize("step", ["validate", "augment", "finetune", "evaluate", "audit", "gate"])
def test_every_report_stands_alone(personalised, step: str):
    page = (personalised.folder / personalised.run.artifacts[step]["report"]).read_text()
    assert page.lower().startswith("<!doctype html>")
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", page)


def test_great_expectations_decides_and_leaves_its_results_and_its_page(personalised):
    found = document(personalised, "validate", "expectations")
    assert found["verdict"] == manifest(personalised, "validate", "validated")["validation"]["verdict"]
    assert all(suite["results"] for suite in found["results"].values())
    page = (personalised.folder / personalised.run.artifacts["validate"]["data_docs"]).read_text()
    assert "Expectation Suite:" in page
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", page)


@pytest.mark.parametrize("step", PURE)
def test_every_step_leaves_numbers_and_a_log(personalised, step: str):
    assert personalised.run.step(step).metrics
    assert (personalised.folder / "logs" / f"{step}.log").stat().st_size > 0


def test_whose_photos_these_are_is_known_to_the_end(personalised):
    subject_id = subject_of("data/samples/dog")
    subject = {"id": subject_id, "class_noun": "dog", "trigger": "sks", "consent": "sample"}
    for step, name in (
        ("import_data", "photos"),
        ("validate", "validated"),
        ("augment", "dataset"),
        ("finetune", "adapter"),
    ):
        assert manifest(personalised, step, name)["subject"] == subject, step
    assert document(personalised, "evaluate", "evaluation")["subject"]["id"] == subject_id
    assert document(personalised, "gate", "decision")["subject"]["id"] == subject_id


def test_judgements_name_the_very_adapter_they_judged(personalised):
    adapter = digest(personalised.folder / personalised.run.artifacts["finetune"]["adapter"])
    for step, name in (("evaluate", "evaluation"), ("audit", "audit"), ("gate", "decision")):
        assert document(personalised, step, name)["hashes"]["adapter"] == adapter, step


def test_it_leaves_nothing_else_behind(personalised):
    assert sorted(p.name for p in personalised.folder.iterdir()) == [
        "artifacts",
        "lock",
        "logs",
        "run.json",
        "steps.lock",
    ]


def test_nothing_it_keeps_names_a_folder_of_this_machine(personalised, root: Path):
    """But for the logs, in which libraries warn about their own files."""
    state = personalised.folder.parents[1]
    stored = [(name, data) for name, data in stored_below(state) if "/logs/" not in name]
    assert len(stored) > 20
    assert [name for name, data in stored if str(state).encode() in data or str(root).encode() in data] == []


def test_the_orchestrator_itself_costs_little(personalised):
    """kfp and the start of nine processes, without the time that steps take."""
    run = personalised.run
    first = min(step.started for step in run.steps if step.started)
    whole = (datetime.fromisoformat(run.ended) - datetime.fromisoformat(first)).total_seconds()
    assert whole - sum(step.seconds for step in run.steps) < 10
