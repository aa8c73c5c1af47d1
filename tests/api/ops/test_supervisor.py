"""The parts of `make serve`: started, watched, started again, ended; accounts and certificates made once. The parts here are small."""

from __future__ import annotations

import os
import signal
import ssl
import stat
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from api.accounts.embedded_provider import Accounts
from api.ops import serve
from api.ops.serve import EMAIL, ManagedProcess, Supervisor, demo_account, make_supervisor, with_certificate
from api.settings import ApiSettings
from benchmarks.postgres import free_port


def managed(folder: Path, code: str, **more: object) -> ManagedProcess:
    """A process of a few lines of Python."""
    made = ManagedProcess("part", [sys.executable, "-c", code], log=folder / "part.log", scratch=folder / "scratch")
    for name, value in more.items():
        setattr(made, name, value)
    return made


def until(fact: Callable[[], object], *, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not fact():
        assert time.monotonic() < deadline
        time.sleep(0.01)


WAIT = "import time; print('here', flush=True); time.sleep(600)"


def test_a_part_has_a_scratch_folder_that_is_empty_whenever_it_starts(tmp_path: Path):
    code = "import os, pathlib; pathlib.Path(os.environ['TMPDIR'], 'left').touch(); print(len(os.listdir(os.environ['TMPDIR'])))"
    one = managed(tmp_path, code)
    for _ in range(2):
        one.start(dict(os.environ))
        assert one.process is not None
        assert one.process.wait(20) == 0
    assert (tmp_path / "part.log").read_text().split() == ["1", "1"]
    assert stat.S_IMODE((tmp_path / "scratch").stat().st_mode) == 0o700


def test_a_part_ends_kindly_or_for_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    kind, stubborn = (
        managed(tmp_path, WAIT),
        managed(tmp_path, f"import signal; signal.signal(15, signal.SIG_IGN); {WAIT}"),
    )
    monkeypatch.setattr(serve, "GRACE_S", 1.0)
    for one, number in ((kind, signal.SIGTERM), (stubborn, signal.SIGKILL)):
        one.log = tmp_path / f"{number}.log"
        one.start(dict(os.environ))
        until(lambda one=one: "here" in one.log.read_text())
        assert not one.ended
        one.stop()
        assert one.ended
        assert one.process is not None
        assert one.process.returncode == -number
    managed(tmp_path, WAIT).stop()


def test_drawing_yields_to_answering(tmp_path: Path):
    yielding = {
        managed.name: managed.niceness
        for managed in make_supervisor(ApiSettings(state_dir=tmp_path), mlflow=False).processes
    }
    assert yielding == {"engine": serve.ENGINE_NICE, "api": 0, "worker": 0}
    one = managed(tmp_path, WAIT, niceness=3)
    one.start(dict(os.environ))
    assert one.process is not None
    assert os.getpriority(os.PRIO_PROCESS, one.process.pid) == min(19, os.getpriority(os.PRIO_PROCESS, 0) + 3)
    one.stop()


LEAVES = """
import os, pathlib, subprocess, sys, time
code = "import os, pathlib, time; pathlib.Path({0!r}, str(os.getpid())).touch(); time.sleep(600)"
subprocess.Popen([sys.executable, "-c", code.format(sys.argv[1])])
subprocess.Popen([sys.executable, "-c", code.format(sys.argv[2])], start_new_session=True)
time.sleep(600)
"""


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that waits to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("way", ["killed", "started again", "stopped"])
def test_nothing_of_a_part_that_ended_lives_on_but_what_has_a_session_of_its_own(tmp_path: Path, way: str):
    """A killed API's decoding processes go with it; a worker's pipelines stay."""
    mine, own = tmp_path / "mine", tmp_path / "own"
    mine.mkdir()
    own.mkdir()
    one = ManagedProcess(
        "part", [sys.executable, "-c", LEAVES, str(mine), str(own)], log=tmp_path / "log", scratch=tmp_path / "scratch"
    )
    one.start(dict(os.environ))
    try:
        until(lambda: list(mine.iterdir()) and list(own.iterdir()))
        child, pipeline = (int(next(folder.iterdir()).name) for folder in (mine, own))
        assert one.process is not None
        if way == "stopped":
            one.stop()
        else:
            os.kill(one.process.pid, signal.SIGKILL)
            one.process.wait(20)
            if way == "started again":
                one.start(dict(os.environ))
            assert one.ended == (way == "killed")
        until(lambda: not is_alive(child))
        assert is_alive(pipeline)
    finally:
        one.stop()
        for pid in (int(file.name) for folder in (mine, own) for file in folder.iterdir()):
            if is_alive(pid):
                os.kill(pid, signal.SIGKILL)


def test_what_ended_is_killed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Its number may be somebody else's group later."""
    killed, one = list[int](), managed(tmp_path, "pass")
    monkeypatch.setattr(serve.os, "killpg", lambda group, _: killed.append(group))
    one.start(dict(os.environ))
    until(lambda: one.ended)
    assert one.ended
    one.stop()
    assert one.process is not None
    assert killed == [one.process.pid]
    one.start(dict(os.environ))
    one.stop()
    assert killed == [killed[0], one.process.pid]


def test_what_ends_is_started_again_until_an_interrupt(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(serve, "RESTART_PAUSE_S", 0.0)
    frail, steady = managed(tmp_path, "print('here', flush=True)"), managed(tmp_path, WAIT, log=tmp_path / "steady.log")
    supervisor, interrupted, nap = (
        Supervisor(ApiSettings(), [frail, steady], dict(os.environ)),
        list[bool](),
        time.sleep,
    )

    def sleep(seconds: float) -> None:
        """The module's own naps; after three starts, Ctrl-C."""
        if (tmp_path / "part.log").read_text().count("here") >= 3 and not interrupted:
            interrupted.append(True)
            raise KeyboardInterrupt
        nap(min(seconds, 0.05))

    monkeypatch.setattr(serve.time, "sleep", sleep)
    supervisor.run()
    said = capsys.readouterr().out
    assert "ready; Ctrl-C ends it" in said
    assert "part ended and is started again" in said
    assert said.splitlines()[-1].startswith("stopping")
    assert steady.ended
    assert frail.ended


def test_readiness_is_waited_for_and_a_part_that_dies_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        there = managed(tmp_path, WAIT, ready=f"http://127.0.0.1:{server.server_port}/")
        there.start(dict(os.environ))
        Supervisor(ApiSettings(), [there])._wait_until_ready()
        there.stop()
        server.shutdown()
    dead = managed(tmp_path, "raise SystemExit(3)", ready=f"http://127.0.0.1:{free_port()}/")
    dead.start(dict(os.environ))
    with pytest.raises(SystemExit, match=r"part did not start; see .*part\.log"):
        Supervisor(ApiSettings(), [dead])._wait_until_ready()


def test_the_demo_account_is_made_once(own_state: Path):
    settings = ApiSettings()
    password = demo_account(settings)
    assert demo_account(settings) == password
    assert stat.S_IMODE((own_state / "demo-password").stat().st_mode) == 0o600
    assert Accounts(own_state / "accounts").check(EMAIL, password) is not None


def test_a_certificate_is_made_once_and_its_authority_is_trusted(own_state: Path):
    first = with_certificate(ApiSettings())
    again = with_certificate(ApiSettings())
    assert first.public_url == "https://127.0.0.1:8000"
    assert Path(first.tls_key).read_bytes() == Path(again.tls_key).read_bytes()
    assert stat.S_IMODE(Path(first.tls_key).stat().st_mode) == 0o600
    assert isinstance(first.trusted, ssl.SSLContext)
    assert (first.secure, own_state.name in first.ca_file) == (True, True)


@pytest.mark.parametrize("mlflow", [False, True])
def test_a_site_has_its_parts_and_tells_them_where_they_are(own_state: Path, mlflow: bool):
    supervisor = make_supervisor(
        ApiSettings(public_url="http://127.0.0.1:8123", engine_url="http://127.0.0.1:8124"), mlflow=mlflow
    )
    assert [one.name for one in supervisor.processes] == ["engine", "api", "worker", *(["mlflow"] if mlflow else [])]
    assert supervisor.environment["PHOTOFLUX_PUBLIC_URL"] == "http://127.0.0.1:8123"
    assert supervisor.environment["AIP_HTTP_PORT"] == "8124"
    assert supervisor.environment["GOMP_SPINCOUNT"] == "2000"
    assert all(one.log.parent == own_state / "logs" for one in supervisor.processes)
    assert len({one.scratch for one in supervisor.processes}) == len(supervisor.processes)
    assert not [
        word
        for one in supervisor.processes
        for word in one.command
        if "password" in word.lower() or "token" in word.lower()
    ]


def test_the_command_serves_until_it_is_ended(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    ran: list[Supervisor] = []
    monkeypatch.setattr(Supervisor, "run", lambda supervisor: ran.append(supervisor))
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert serve.main(["--no-mlflow", "--tls"]) == 0
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert ran[0].settings.secure
    assert f"sign in  {EMAIL}, password " in capsys.readouterr().out
