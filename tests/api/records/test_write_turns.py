"""Who writes to SQLite: one at a time, in turns, whatever processes do."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from api.records import write_turns
from api.records.database import BUSY_MS, Records, migrate, open_engine
from api.records.tables import User, new_id
from api.records.write_turns import WriteTurns
from photoflux.settings import sqlite_url

PATIENCE_S = 30.0
WRITING = """
import sys, time
from api.records.database import Records, open_engine
from api.records.tables import User, new_id
records = Records(open_engine(sys.argv[1]))
print("ready", flush=True)
while True:
    with records.writing() as session:
        session.add(User(id=new_id(), login=new_id()))
        session.flush()
        time.sleep(0.05)
"""


@pytest.fixture(autouse=True)
def asked_for_again_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write_turns, "WITHOUT_S", (0.0, 0.0))


@pytest.fixture
def url(tmp_path: Path) -> str:
    url = sqlite_url(tmp_path / "a.db")
    migrate(url)
    return url


def test_a_process_that_writes_without_a_pause_keeps_no_other_waiting(url: str):
    """SQLite alone lets the other one ask again every tenth of a second, which is never the right moment."""
    busy = subprocess.Popen([sys.executable, "-c", WRITING, url], stdout=subprocess.PIPE)
    try:
        assert busy.stdout is not None
        assert busy.stdout.readline() == b"ready\n"
        records, waited = Records(open_engine(url)), []
        for _ in range(20):
            started = time.monotonic()
            with records.writing() as session:
                session.add(User(id=new_id(), login=new_id()))
            waited.append(time.monotonic() - started)
        records.engine.dispose()
    finally:
        busy.kill()
        busy.wait()
    assert max(waited) < BUSY_MS / 1000 / 2, "where turns are taken it is one of the other's transactions"


def test_one_has_the_turn_at_a_time_and_none_who_waits_is_passed_over(tmp_path: Path):
    """Two processes, as far as files know: each has locks of its own."""
    sides = [WriteTurns(tmp_path / "a.db", wait_s=PATIENCE_S) for _ in range(2)]
    inside, order, over = [0], list[int](), threading.Event()

    def write(side: int) -> None:
        while not over.is_set():
            with sides[side]:
                inside[0] += 1
                assert inside[0] == 1
                order.append(side)
                time.sleep(0.003)
                inside[0] -= 1
                if len(order) >= 200:
                    over.set()

    threads = [threading.Thread(target=write, args=(side,)) for side in (0, 0, 0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert over.is_set()
    assert order.count(1) > 50


def test_a_turn_within_a_turn_is_the_same(tmp_path: Path):
    turns, other = WriteTurns(tmp_path / "a.db", wait_s=0.1), WriteTurns(tmp_path / "a.db", wait_s=0.1)
    with turns:
        with turns:
            pass
        with other:
            assert other._held is None, "it was not given back early"
    with other:
        assert other._held is not None


def test_the_end_of_a_process_gives_its_turn_back(tmp_path: Path):
    code = (
        "import sys, time; from pathlib import Path; from api.records.write_turns import WriteTurns\n"
        "with WriteTurns(Path(sys.argv[1]), wait_s=9): print('ready', flush=True); time.sleep(99)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "a.db")], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"ready\n"
    turns = WriteTurns(tmp_path / "a.db", wait_s=0.1)
    with turns:
        assert turns._held is None
    holder.kill()
    holder.wait()
    with turns:
        assert turns._held is not None


def test_one_that_was_stopped_while_it_waited_holds_up_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(write_turns, "PLACE_S", 0.05)
    turns = WriteTurns(tmp_path / "a.db", wait_s=PATIENCE_S)
    waiting = write_turns._lock_file(turns._files[0], 0.0)
    assert waiting is not None
    with turns:
        assert turns._held is not None
    os.close(waiting)


def test_a_lock_that_cannot_be_made_leaves_none_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    turns, other = WriteTurns(tmp_path / "a.db", wait_s=0.1), WriteTurns(tmp_path / "a.db", wait_s=0.1)
    locked = write_turns._lock_file

    def full(file: Path, until: float) -> int | None:
        if "turn" in file.name:
            raise OSError(errno.EMFILE, "too many open files")
        return locked(file, until)

    with monkeypatch.context() as patch:
        patch.setattr(write_turns, "_lock_file", full)
        with pytest.raises(OSError), turns:
            pass
    place = locked(other._files[0], 0.0)
    assert place is not None
    os.close(place)
    with turns:
        assert turns._held is not None


def test_only_one_waits_for_who_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(write_turns, "WITHOUT_S", (0.5, 0.5))
    monkeypatch.setattr(write_turns, "PLACE_S", 0.2)
    turns, asked = WriteTurns(tmp_path / "a.db", wait_s=0.2), list[str]()
    stopped = [write_turns._lock_file(file, 0.0) for file in turns._files]
    locked = write_turns._lock_file
    monkeypatch.setattr(
        write_turns, "_lock_file", lambda file, until: (asked.append(file.name), locked(file, until))[1]
    )
    for _ in range(5):
        with turns:
            assert turns._held is None
    assert len(asked) == 2
    for lock in stopped:
        assert lock is not None
        os.close(lock)
    time.sleep(0.5)
    with turns:
        assert turns._held is not None


def test_a_thread_that_does_not_get_the_turn_does_without(tmp_path: Path):
    """SQLite's own lock tells it, then; it would else wait as long as there are others in front."""
    turns, inside, over = WriteTurns(tmp_path / "a.db", wait_s=0.1), threading.Event(), threading.Event()

    def hold() -> None:
        with turns:
            inside.set()
            over.wait(PATIENCE_S)

    holder = threading.Thread(target=hold)
    holder.start()
    assert inside.wait(PATIENCE_S)
    with turns, turns:
        pass
    over.set()
    holder.join(PATIENCE_S)
    with turns:
        assert turns._held is not None
