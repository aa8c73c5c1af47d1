"""Running a compiled file here: states, artifacts, logs, and what a failure looks like from outside."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.metadata import distributions
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from photoflux.runs import Run, State, load_run, new_run, save_run
from photoflux.vault import committed
from pipelines import process
from pipelines.local import Recorder, environment_digest
from pipelines.orchestrators import LOST, LocalOrchestrator, RunNotFound, RunRef
from pipelines.watch import follow

QUICK = {"trouble": "none", "wait_s": 0.0, "wanted": "mug"}


def ended(orchestrator: LocalOrchestrator, ref: RunRef) -> Run:
    return follow(lambda: orchestrator.status(ref), Console(quiet=True))


def drawing(ref: RunRef, *, timeout_s: float = 30) -> Run:
    """The run as soon as its first step runs."""
    deadline = time.monotonic() + timeout_s
    while (run := load_run(Path(ref.where))).step("draw").state is not State.running:
        assert time.monotonic() < deadline, "the first step never ran"
        time.sleep(0.05)
    return run


def in_its_step(ref: RunRef, *, timeout_s: float = 30) -> Run:
    """The run as soon as its first step's own program is at work."""
    run, until = drawing(ref), time.monotonic() + timeout_s
    while not list(Path(ref.where).glob("tmp/*/opened.txt")):
        assert time.monotonic() < until, "the first step's program never began"
        time.sleep(0.05)
    return run


def without_its_runner(ref: RunRef) -> int:
    """Kill the runner of a run whose step is at work, and nothing else; returns their process group."""
    runner = in_its_step(ref).pid
    os.kill(runner, signal.SIGKILL)
    while (
        subprocess.run(["ps", "-o", "stat=", "-p", str(runner)], capture_output=True, text=True).stdout[:1] not in "Z"
    ):
        time.sleep(0.02)
    assert living(runner)
    return runner


def states(run) -> dict[str, str]:
    return {step.name: str(step.state) for step in run.steps}


def living(group: int) -> list[str]:
    """Processes of a group that still run (a zombie does not)."""
    listed = subprocess.run(["ps", "-eo", "pgid=,stat="], capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in listed.splitlines()]
    return [stat for pgid, stat in rows if int(pgid) == group and not stat.startswith("Z")]


def soon_gone(group: int) -> bool:
    """Whether nothing of a group lives. A process that has let go of its locks may take a moment to leave the list."""
    return any(not living(group) or time.sleep(0.05) for _ in range(20))


def test_a_run_ends_with_its_files_in_readable_places(local: LocalOrchestrator):
    ref = local.start(QUICK)
    run = ended(local, ref)
    assert run.error is None
    assert states(run) == dict.fromkeys(("draw", "judge", "hang", "notify"), "succeeded")
    assert run.artifacts["draw"] == {
        "picture": "artifacts/draw/picture.tar",
        "report": "artifacts/draw/report.html",
    }
    assert (Path(ref.where) / run.artifacts["hang"]["hung"]).read_text() == "a red mug, on the wall"
    assert (Path(ref.where) / "artifacts/draw/report-sealed.html").read_text().startswith("sealed")
    assert run.step("draw").metrics == {"pixels": 64.0}
    assert run.step("draw").title == "Draw"
    assert sorted(p.name for p in Path(ref.where).iterdir()) == ["artifacts", "lock", "logs", "run.json", "steps.lock"]
    assert sorted(p.name for p in (Path(ref.where) / "logs").iterdir()) == [
        "draw.log",
        "hang.log",
        "judge.log",
        "notify.log",
        "runner.log",
    ]


def test_a_false_condition_skips_its_steps_and_the_run_succeeds(local: LocalOrchestrator):
    run = ended(local, local.start(QUICK | {"wanted": "teapot"}))
    assert run.state is State.succeeded
    assert states(run) == {
        "draw": "succeeded",
        "judge": "succeeded",
        "hang": "skipped",
        "notify": "succeeded",
    }


def test_a_step_that_is_given_the_same_again_is_reused(tiny: Path, tmp_path: Path):
    """With its files and its numbers; what is given something else runs, and so does what may never be reused."""
    local = LocalOrchestrator(runs_dir=tmp_path / "runs", compiled=tiny, reuse=True)
    first = ended(local, local.start(QUICK))
    assert states(first) == dict.fromkeys(("draw", "judge", "hang", "notify"), "succeeded")
    again = local.start(QUICK)
    run = ended(local, again)
    assert states(run) == {"draw": "reused", "judge": "reused", "hang": "reused", "notify": "succeeded"}
    assert run.artifacts["draw"] == first.artifacts["draw"]
    assert run.step("draw").metrics == {"pixels": 64.0}
    assert (Path(again.where) / run.artifacts["draw"]["picture"]).read_text() == "a red mug"
    assert (Path(again.where) / "artifacts/draw/report-sealed.html").read_text().startswith("sealed")
    assert not (Path(again.where) / "logs" / "draw.log").exists()
    assert states(ended(local, local.start(QUICK | {"wanted": "red"}))) == {
        "draw": "reused",
        "judge": "succeeded",
        "hang": "reused",
        "notify": "succeeded",
    }


def test_what_other_code_made_is_not_reused(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Nor what was made with another base, or other suites."""
    (tmp_path / "models").mkdir()
    monkeypatch.setenv("PHOTOFLUX_MODELS_DIR", str(tmp_path / "models"))
    words = {environment_digest(), environment_digest()}
    (tmp_path / "models" / "base.yaml").write_text("steps: 4")
    words |= {environment_digest(), environment_digest()}
    assert len(words) == 2
    local = LocalOrchestrator(runs_dir=tmp_path / "runs", compiled=tiny, reuse=True)
    assert states(ended(local, local.start(QUICK)))["draw"] == "succeeded"
    (tmp_path / "models" / "base.yaml").write_text("steps: 5")
    assert states(ended(local, local.start(QUICK)))["draw"] == "succeeded"
    assert states(ended(local, local.start(QUICK)))["draw"] == "reused"


@pytest.mark.parametrize("given", ["alone", "among the overrides"])
def test_what_was_made_with_a_file_that_has_changed_is_not_reused(given: str, tmp_path: Path):
    """A judge card, a prompt set or a base may lie anywhere: it is named by its path, which stays."""
    card = tmp_path / "card.json"
    named = {"audit_judge_card": str(card)}
    params = {**named, "overrides": ""} if given == "alone" else {"overrides": json.dumps(named)}
    words = set()
    for content in ("{}", '{"attributes": {}}'):
        card.write_text(content)
        words |= {environment_digest(params), environment_digest(params)}
    assert len(words) == 2


def test_what_other_packages_made_is_not_reused(monkeypatch: pytest.MonkeyPatch):
    before = environment_digest()
    newer = [
        SimpleNamespace(name=one.name, version="99" if one.name == "torch" else one.version) for one in distributions()
    ]
    monkeypatch.setattr("pipelines.local.distributions", lambda: newer)
    assert environment_digest() != before


def test_a_folder_among_the_suites_is_no_suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """An editor keeps its copies there; without the folder itself the step that needs it says so."""
    monkeypatch.setenv("PHOTOFLUX_EXPECTATIONS_DIR", str(tmp_path / "suites"))
    without = environment_digest()
    (tmp_path / "suites" / ".ipynb_checkpoints").mkdir(parents=True)
    assert environment_digest() == without


def test_a_copy_of_the_runs_takes_nothing_from_the_original(tiny: Path, tmp_path: Path):
    """Which may be on another disk, and may be gone tomorrow."""
    original = LocalOrchestrator(runs_dir=tmp_path / "runs", compiled=tiny, reuse=True)
    ended(original, original.start(QUICK))
    copy = LocalOrchestrator(runs_dir=tmp_path / "copy", compiled=tiny, reuse=True)
    shutil.copytree(original.runs_dir, copy.runs_dir)
    assert states(ended(copy, copy.start(QUICK)))["draw"] == "succeeded"
    assert states(ended(copy, copy.start(QUICK)))["draw"] == "reused"


def test_nothing_is_reused_unasked(local: LocalOrchestrator):
    ended(local, local.start(QUICK))
    assert "reused" not in states(ended(local, local.start(QUICK))).values()
    assert not list(local.runs_dir.glob(".*"))


@pytest.mark.parametrize(
    ("trouble", "message"),
    [
        ("input", "the picture is upside down: turn it and run again"),
        ("full disk", "no space left to write the output: free some disk space and run again"),
        ("killed", "draw was killed (SIGKILL); most often memory ran out: run again; nothing half-made was kept"),
        ("silent", "draw ended with code 7: see logs/draw.log in the run's folder"),
    ],
)
def test_a_failing_step_ends_the_run_with_one_sentence(local: LocalOrchestrator, trouble: str, message: str):
    ref = local.start(QUICK | {"trouble": trouble})
    run = ended(local, ref)
    assert run.state is State.failed
    assert run.error.step == "draw"
    assert run.error.message.startswith(message)
    assert states(run) == {"draw": "failed", "judge": "skipped", "hang": "skipped", "notify": "succeeded"}
    assert "draw" not in run.artifacts
    assert not (Path(ref.where) / "work").exists()


def test_the_exit_step_tells_the_failing_steps_own_words(local: LocalOrchestrator):
    ref = local.start(QUICK | {"trouble": "input"})
    run = ended(local, ref)
    told = (Path(ref.where) / run.artifacts["notify"]["summary"]).read_text()
    assert "FAILED" in told
    assert "draw: the picture is upside down: turn it and run again" in told


def test_a_failed_step_is_not_tried_again_here(local: LocalOrchestrator):
    run = ended(local, local.start(QUICK | {"trouble": "input"}))
    assert run.step("draw").seconds < 20  # the compiled policy would wait a minute and try three times more


@pytest.mark.timeout(60)
def test_cancelling_ends_every_process(local: LocalOrchestrator):
    ref = local.start(QUICK | {"wait_s": 600.0})
    group = drawing(ref).pid
    local.cancel(ref)
    run = local.status(ref)
    assert run.state is State.cancelled
    assert states(run) == {"draw": "cancelled", "judge": "skipped", "hang": "skipped", "notify": "skipped"}
    while living(group):
        time.sleep(0.02)
    local.cancel(ref)
    assert local.status(ref) == run


def test_another_process_can_watch_and_cancel(local: LocalOrchestrator, tiny: Path):
    ref = local.start(QUICK | {"wait_s": 600.0})
    drawing(ref)
    stranger = LocalOrchestrator(runs_dir=local.runs_dir, compiled=tiny)
    assert stranger.status(ref).state is State.running
    stranger.cancel(RunRef(ref.id, ref.where))
    assert stranger.status(ref).state is State.cancelled


def test_a_runner_that_dies_is_told_from_a_slow_one(local: LocalOrchestrator):
    ref = local.start(QUICK | {"wait_s": 600.0})
    os.killpg(drawing(ref).pid, signal.SIGKILL)
    run = ended(local, ref)
    assert run.state is State.failed
    assert run.error.message.startswith("the run's own process ended before the run did")
    assert run.step("draw").state is State.failed
    assert load_run(Path(ref.where)) == run


def test_what_a_killed_step_had_opened_is_gone_once_it_is_found_dead(local: LocalOrchestrator):
    ref = local.start(QUICK | {"wait_s": 600.0})
    group, folder = drawing(ref).pid, Path(ref.where)
    until = time.monotonic() + 30
    while not list(folder.glob("tmp/*/opened.txt")):
        assert time.monotonic() < until, "it lies in the run's own folder"
        time.sleep(0.02)
    assert (folder / "tmp").stat().st_mode & 0o077 == 0
    os.killpg(group, signal.SIGKILL)
    assert ended(local, ref).error.kind == LOST
    assert not list(folder.rglob("opened.txt"))


@pytest.fixture(params=["who started it", "another worker"])
def finder(request: pytest.FixtureRequest, local: LocalOrchestrator) -> LocalOrchestrator:
    """Who finds that a run's own process is dead."""
    return local if request.param == "who started it" else LocalOrchestrator(local.runs_dir, local.compiled)


@pytest.mark.parametrize("trouble", ["none", "deaf"])
def test_a_run_is_lost_only_once_its_steps_are_gone(
    local: LocalOrchestrator, finder: LocalOrchestrator, monkeypatch: pytest.MonkeyPatch, trouble: str
):
    """A step outlives its runner's SIGKILL, and may ignore SIGTERM; the run is not lost before it has ended."""
    monkeypatch.setattr(process, "GRACE_S", 0.5)
    ref = local.start(QUICK | {"wait_s": 600.0, "trouble": trouble})
    runner = without_its_runner(ref)
    assert ended(finder, ref).error.kind == LOST
    assert soon_gone(runner)


def test_cancelling_ends_the_steps_of_a_dead_runner(local: LocalOrchestrator, finder: LocalOrchestrator):
    ref = local.start(QUICK | {"wait_s": 600.0})
    runner = without_its_runner(ref)
    finder.cancel(ref)
    assert soon_gone(runner)
    assert load_run(Path(ref.where)).state is State.cancelled


def test_discarding_ends_the_steps_of_a_dead_runner(local: LocalOrchestrator, finder: LocalOrchestrator):
    ref = local.start(QUICK | {"wait_s": 600.0}, name="abc-1")
    runner = without_its_runner(ref)
    finder.discard("abc")
    assert soon_gone(runner)
    assert list(local.runs_dir.iterdir()) == []


def test_letting_go_ends_the_steps_of_a_dead_runner(local: LocalOrchestrator):
    ref = local.start(QUICK | {"wait_s": 600.0})
    runner = without_its_runner(ref)
    local.shutdown()
    assert soon_gone(runner)


def test_a_run_that_is_only_just_starting_is_cancelled_by_another(local: LocalOrchestrator):
    """Nobody else knows its process yet."""
    ref = local.start(QUICK | {"wait_s": 600.0})
    runner = local._children[ref.id].pid
    LocalOrchestrator(local.runs_dir, local.compiled).cancel(ref)
    assert local.status(ref).state is State.cancelled
    assert soon_gone(runner)


def test_a_process_that_cannot_be_ended_is_not_called_lost(local: LocalOrchestrator, monkeypatch: pytest.MonkeyPatch):
    ref = local.start(QUICK | {"wait_s": 600.0})
    without_its_runner(ref)
    with monkeypatch.context() as patch:
        patch.setattr(process, "GRACE_S", 0.1)
        patch.setattr(process, "KILL_TIMEOUT_S", 0.1)
        patch.setattr(process, "_signal", lambda *_: None)
        assert local.status(ref).state is State.running
        with pytest.raises(TimeoutError, match="cannot be ended"):
            local.cancel(ref)
    assert ended(local, ref).error.kind == LOST


def test_discarding_ends_all_attempts_and_leaves_nothing(local: LocalOrchestrator):
    dead = local.start(QUICK, name="abc-1")
    ended(local, dead)
    alive, other = local.start(QUICK | {"wait_s": 600.0}, name="abc-2"), local.start(QUICK, name="abcd-1")
    group = drawing(alive).pid
    ended(local, other)
    local.discard("abc")
    assert [folder.name for folder in local.runs_dir.iterdir()] == ["gallery-abcd-1"]
    while living(group):
        time.sleep(0.02)
    local.discard("abc")


def test_a_folder_with_spaces_is_no_trouble(tiny: Path, tmp_path: Path):
    orchestrator = LocalOrchestrator(runs_dir=tmp_path / "my python3 runs", compiled=tiny)
    assert ended(orchestrator, orchestrator.start(QUICK)).state is State.succeeded


def test_after_a_failure_only_exit_steps_may_still_start(tmp_path: Path):
    (tmp_path / "logs").mkdir()
    save_run(new_run("gallery", steps={"draw": "Draw", "sign": "Sign", "notify": "Tell"}, params={}), tmp_path)
    recorder = Recorder(tmp_path, always={"notify"})
    assert [recorder.may_start(step) for step in ("draw", "sign", "notify")] == [True, True, True]
    recorder.started("draw")
    recorder.ended("draw", exit_code=-9, outputs={"outputFile": str(tmp_path / "work" / "run" / "draw" / "out.json")})
    assert [recorder.may_start(step) for step in ("sign", "notify")] == [False, True]
    assert recorder.failure.kind == "SIGKILL"


@pytest.mark.parametrize("key", ["plain://demo", "vault://ada"])
def test_the_verdict_is_read_with_the_runs_own_key(tmp_path: Path, key: str):
    """A sealed run ends like any other."""
    with committed(tmp_path / "artifacts" / "decision.json", key=key) as plain:
        plain.write_text('{"verdict": "PASS", "reasons": []}')
    queued = new_run("personalize", steps={"gate": "Decide"}, params={"key": key})
    save_run(replace(queued, artifacts={"gate": {"decision": "artifacts/decision.json"}}), tmp_path)
    done = Recorder(tmp_path, always=set()).finish(None)
    assert (done.state, done.verdict) == (State.succeeded, "PASS")
    assert load_run(tmp_path).verdict == "PASS"


def test_a_named_run_is_started_once(local: LocalOrchestrator):
    """Asked for again, by another process too, it is the run that is there; a start that was cut off is made good."""
    first = local.start(QUICK, name="abc-1")
    again = LocalOrchestrator(local.runs_dir, local.compiled).start(QUICK, name="abc-1")
    assert first == again
    assert first.id.endswith("-abc-1")
    assert local.find("abc-1") == first
    assert ended(local, first).state is State.succeeded
    assert local.start(QUICK, name="abc-1") == local.find("abc-1") == first
    with pytest.raises(RunNotFound, match="is not here"):
        local.find("abc-9")
    assert not list(local.runs_dir.glob("*abc-9"))
    assert load_run(Path(first.where)).state is State.succeeded
    folder = Path(first.where).with_name(first.id.replace("abc-1", "abc-2"))
    (folder / "logs").mkdir(parents=True)  # killed before its process was started
    second = local.start(QUICK, name="abc-2")
    assert ended(local, second).state is State.succeeded


def test_workers_that_start_a_run_at_once_start_one_process(local: LocalOrchestrator, monkeypatch: pytest.MonkeyPatch):
    started, popen = list[int](), subprocess.Popen

    def counted(*args: object, **more: object) -> subprocess.Popen[bytes]:
        started.append(1)
        time.sleep(0.2)  # for the others to come while it is only just starting
        return popen(*args, **more)

    monkeypatch.setattr(subprocess, "Popen", counted)
    workers = [LocalOrchestrator(local.runs_dir, local.compiled) for _ in range(4)]
    with ThreadPoolExecutor(len(workers)) as pool:
        refs = list(pool.map(lambda worker: worker.start(QUICK | {"wait_s": 1.0}, name="abc-1"), workers))
    assert len(set(refs)) == 1
    assert [ended(worker, refs[0]).state for worker in workers] == [State.succeeded] * 4
    assert len(started) == 1


def test_a_run_is_watched_by_others_while_it_is_started(local: LocalOrchestrator):
    """Starting it again does not wait until it has ended."""
    ref = local.start(QUICK | {"wait_s": 600.0}, name="abc-1")
    with ThreadPoolExecutor(1) as pool:
        again = pool.submit(LocalOrchestrator(local.runs_dir, local.compiled).start, QUICK, name="abc-1")
        try:
            assert again.result(30) == ref
        finally:
            local.cancel(ref)


CUT_OFF = """
import os, signal, sys
from pathlib import Path
from pipelines import orchestrators, process

def died(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

def then_died(call):
    def both(*args, **more):
        call(*args, **more)
        died()
    return both

point, runs, compiled = sys.argv[1:]
if point == "folder made":
    process.run_lock = process.start = died
elif point == "lock held":
    orchestrators.save_run = died
elif point == "recorded":
    orchestrators.save_run = then_died(orchestrators.save_run)
elif point == "log opened":
    process.subprocess.Popen = died
elif point == "process started":
    process.subprocess.Popen = then_died(process.subprocess.Popen)
orchestrator = orchestrators.LocalOrchestrator(Path(runs), Path(compiled))
orchestrator.start({"trouble": "none", "wait_s": 0.0, "wanted": "mug"}, name="abc-1")
"""


@pytest.mark.parametrize("point", ["folder made", "lock held", "recorded", "log opened", "process started"])
def test_a_start_that_is_killed_anywhere_can_be_repeated(local: LocalOrchestrator, root: Path, point: str):
    command = [sys.executable, "-c", CUT_OFF, point, str(local.runs_dir), str(local.compiled)]
    killed = subprocess.run(command, cwd=root, check=False)
    assert killed.returncode == -signal.SIGKILL
    ref = local.start(QUICK, name="abc-1")
    assert ended(local, ref).state is State.succeeded
    assert local.start(QUICK, name="abc-1") == ref
    assert local.status(ref).state is State.succeeded


def test_a_run_whose_start_was_cut_off_is_lost_and_can_be_discarded(local: LocalOrchestrator):
    folder = local.runs_dir / "gallery-abc-1"
    (folder / "logs").mkdir(parents=True)
    local.discard("abc")
    assert not folder.exists()
    folder.mkdir()
    save_run(new_run("gallery", steps={"draw": "Draw"}, params={}, name="abc-1"), folder)
    run = local.status(RunRef(folder.name, str(folder)))
    assert run.error.kind == LOST
    assert "never started" in run.error.message


def test_letting_go_ends_what_was_started_here_and_it_is_lost(local: LocalOrchestrator):
    ref = local.start(QUICK | {"wait_s": 30.0}, name="abc-3")
    run = drawing(ref)
    local.shutdown()
    assert living(run.pid) == []
    lost = local.status(ref)
    assert lost.state is State.failed
    assert lost.error is not None
    assert lost.error.kind == LOST
