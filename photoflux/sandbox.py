"""Processes for work on pictures: with little memory and little time, and after whoever answers requests.

A picture decoder is the part of a service most often broken into or brought down, and one that works keeps Python's lock for long.
Each process has a pipe of its own, so that one that ends at any moment takes nothing with it but its work; and what it answers is
read with a few types known, so that one that was taken over cannot have this process run anything.
"""

from __future__ import annotations

import importlib
import io
import math
import multiprocessing
import pickle
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field
from typing import Any

MEMORY_BYTES = 4 << 30
NICE = 10
"""How far they stand back where all cores are busy."""
IDLE_S = 300.0
"""After so long without work they are ended: the last person's picture would stay in their memory."""


_here = False


def is_confined() -> bool:
    """Whether this is such a process."""
    return _here


class Ended(Exception):
    """The process ended while it worked: by itself, by somebody's hand, or after its processor time."""


class _NotBegun(Ended):
    """It had ended before."""


class Failed(Exception):
    """The work raised an error, whose kind this names."""


@dataclass(frozen=True, eq=False)
class _Job:
    work: Callable[..., Any]
    args: tuple[Any, ...]
    cpu_s: float
    timeout_s: float
    person: str
    future: Future[Any] = field(default_factory=Future)


@dataclass
class Confined:
    """So many processes, each started when there is work for it.

    Of what waits, that comes next for whose person the fewest processes work, and then what came first: who sends what takes long is in
    front of themselves and of nobody else.
    """

    workers: int
    needs: tuple[str, ...] = ()
    """Modules that each process imports before its first work, whose time that would otherwise take."""
    gives: tuple[type, ...] = ()
    """Types of what work answers with, beside those that Python's literals have."""
    idle_s: float = IDLE_S
    _waiting: list[_Job] = field(default_factory=list, repr=False)
    _working_for: Counter[str] = field(default_factory=Counter, repr=False)
    _threads: list[threading.Thread] = field(default_factory=list, repr=False)
    _processes: set[_Process] = field(default_factory=set, repr=False)
    _closed: bool = False
    _changed: threading.Condition = field(default_factory=threading.Condition, repr=False)

    def begin(
        self, work: Callable[..., Any], *args: Any, cpu_s: float, timeout_s: float, person: str = ""
    ) -> Future[Any]:
        """Do a function of a module in one of the processes, on behalf of a person.

        The result raises TimeoutError where that took `timeout_s` from its turn on, or no process begins, which says as much of the
        machine as of the work; Ended where the process ended, also after `cpu_s` of processor time; Failed where the work did;
        CancelledError where this was closed meanwhile.
        """
        job = _Job(work, args, cpu_s, timeout_s, person)
        with self._changed:
            if self._closed:
                job.future.cancel()
            else:
                self._waiting.append(job)
                self._changed.notify()
            while not self._closed and len(self._threads) < self.workers:
                self._threads.append(threading.Thread(target=self._attend, name="confined", daemon=True))
                self._threads[-1].start()
        return job.future

    def close(self) -> None:
        """End the processes; whoever still waits for one is told so."""
        with self._changed:
            self._closed = True
            for job in self._waiting:
                job.future.cancel()
            self._waiting.clear()
            for process in self._processes:
                process.end()
            self._changed.notify_all()

    def _attend(self) -> None:
        """One process and its work, job by job; without any for long, the process is ended."""
        process: _Process | None = None
        while not self._closed:
            job = self._next(patience_s=self.idle_s if process else None)
            if job is None:
                self._end(process)
                process = None
                continue
            try:
                process = self._living(process)
                try:
                    answer = process.ask(job)
                except _NotBegun:  # it was killed while it had no work
                    process = self._living(process)
                    answer = process.ask(job)
                job.future.set_result(answer)
            except BaseException as error:
                closed = self._closed and isinstance(error, Ended)
                begun = not isinstance(error, _NotBegun)
                told = error if begun else TimeoutError("no process begins")  # which says nothing of the work
                job.future.set_exception(CancelledError() if closed else told)
            finally:
                with self._changed:
                    self._working_for[job.person] -= 1
                    self._working_for += Counter()  # without those that are at zero
        self._end(process)

    def _next(self, *, patience_s: float | None) -> _Job | None:
        """What is to be done next; None where nothing came in time, or this was closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed, patience_s)
            if not self._waiting:
                return None
            job = min(self._waiting, key=lambda one: self._working_for[one.person])
            self._waiting.remove(job)
            self._working_for[job.person] += 1
            return job

    def _living(self, process: _Process | None) -> _Process:
        if process is not None and process.is_alive():
            return process
        self._end(process)
        with self._changed:
            if self._closed:
                raise CancelledError
            process = _Process(self.needs, self.gives)
            self._processes.add(process)
            return process

    def _end(self, process: _Process | None) -> None:
        if process is not None:
            process.end()
            with self._changed:
                self._processes.discard(process)


class _Process:
    """One process and the pipe to it; used by one thread at a time."""

    def __init__(self, needs: Sequence[str], gives: Sequence[type]) -> None:
        context = multiprocessing.get_context("spawn")
        self._ours, theirs = context.Pipe()
        self._known = {(one.__module__, one.__qualname__) for one in gives}
        self._process = context.Process(target=_serve, args=(theirs, tuple(needs)), daemon=True, name="confined")
        self._process.start()
        theirs.close()

    def is_alive(self) -> bool:
        return self._process.is_alive()

    def ask(self, job: _Job) -> Any:
        """What the work answers; raises as `Confined.begin` says."""
        ended: type[Ended] = _NotBegun
        with _Deadline(job.timeout_s, self.end) as deadline:
            try:
                self._ours.send((job.work, job.args, job.cpu_s))
                self._ours.recv_bytes()
                ended = Ended
                failed, answer = self._read(self._ours.recv_bytes())
            except (EOFError, OSError) as error:
                self.end()
                if deadline.passed:
                    raise TimeoutError("the work took too long") from error
                raise ended(f"the process ended with {self._process.exitcode}") from error
            except Exception as error:
                self.end()
                raise Ended("the process answered with something else than it should") from error
        if failed:
            raise Failed(failed)
        return answer

    def _read(self, answer: bytes) -> tuple[str, Any]:
        failed, value = _Careful(io.BytesIO(answer), self._known).load()
        return str(failed), value

    def end(self) -> None:
        self._process.kill()
        self._process.join()


class _Deadline:
    """Calls `late` after so many seconds, unless the block is left before."""

    def __init__(self, seconds: float, late: Callable[[], None]) -> None:
        self.passed, self._left, self._late, self._lock = False, False, late, threading.Lock()
        self._timer = threading.Timer(seconds, self._call)
        self._timer.daemon = True

    def __enter__(self) -> _Deadline:
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._left = True
        self._timer.cancel()

    def _call(self) -> None:
        with self._lock:
            if not self._left:
                self.passed = True
                self._late()


class _Careful(pickle.Unpickler):
    """Reads answers that hold nothing but what is known: a pickle may name any function, to be called where it is read."""

    def __init__(self, file: io.BytesIO, known: set[tuple[str, str]]) -> None:
        super().__init__(file)
        self._known = known

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._known:
            raise pickle.UnpicklingError(f"{module}.{name} is not among what may be answered")
        return super().find_class(module, name)


def _serve(channel: Any, needs: Sequence[str]) -> None:
    """What a process does: one piece of work after the other, until nobody is there to ask for more."""
    _confine(needs)
    while True:
        try:
            work, args, cpu_s = channel.recv()
        except EOFError:
            return
        channel.send_bytes(b"begun")
        try:
            answer = pickle.dumps(("", _bounded(work, cpu_s, *args)))
        except Exception as error:
            answer = pickle.dumps((type(error).__name__, None))
        del work, args
        channel.send_bytes(answer)
        del answer


def _bounded(work: Callable[..., Any], cpu_s: float, *args: Any) -> Any:
    """Only the work itself is bounded: the process would else be ended while it asks for more."""
    import resource

    spent = resource.getrusage(resource.RUSAGE_SELF)
    most = math.ceil(spent.ru_utime + spent.ru_stime + cpu_s)
    resource.setrlimit(resource.RLIMIT_CPU, (most, resource.RLIM_INFINITY))
    try:
        return work(*args)
    finally:
        resource.setrlimit(resource.RLIMIT_CPU, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def _confine(needs: Sequence[str]) -> None:
    """Less memory than the machine has, one thread, no core dump with a photo in it, and no word of what decoders complain of."""
    import os
    import resource

    global _here
    _here = True
    os.nice(NICE)
    os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    for module in needs:
        importlib.import_module(module)
