"""Sandboxed processes for work on pictures: limited memory and processor time, and a lower priority than those that answer requests.

Picture decoders are the part of a service most often exploited or crashed, and they hold Python's lock for long. Each process has a
pipe of its own, so that its death loses no more than its job; and its answers are unpickled with a few types allowed, so that a
process under an attacker's control cannot run code in this one.
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
"""The processes' `nice` value above that of this process."""
IDLE_S = 300.0
"""Seconds without work after which a process is killed: the last person's picture would stay in its memory."""


_in_this_process = False


def in_sandbox() -> bool:
    """Whether this process is a sandboxed one."""
    return _in_this_process


class ProcessDied(Exception):
    """The process died while it worked: it crashed, was killed, or used up its processor time."""


class _DiedBeforeWork(ProcessDied):
    """The process had died before it received the job."""


class WorkFailed(Exception):
    """The work raised an error; the message is the name of its class."""


@dataclass(frozen=True, eq=False)
class _Job:
    work: Callable[..., Any]
    args: tuple[Any, ...]
    cpu_s: float
    timeout_s: float
    person: str
    future: Future[Any] = field(default_factory=Future)


@dataclass
class SandboxPool:
    """At most `workers` processes, each started when there is work for it.

    The next job is that of the person for whom the fewest processes work, among those the oldest: a person's long jobs delay their own
    other jobs and nobody else's.
    """

    workers: int
    preload: tuple[str, ...] = ()
    """Modules that each process imports at its start, so that the import does not count towards a job's time."""
    result_types: tuple[type, ...] = ()
    """Types that results may hold, besides those of Python's literals."""
    idle_s: float = IDLE_S
    _waiting: list[_Job] = field(default_factory=list, repr=False)
    _running_by_person: Counter[str] = field(default_factory=Counter, repr=False)
    _threads: list[threading.Thread] = field(default_factory=list, repr=False)
    _processes: set[_Process] = field(default_factory=set, repr=False)
    _closed: bool = False
    _changed: threading.Condition = field(default_factory=threading.Condition, repr=False)

    def submit(
        self, work: Callable[..., Any], *args: Any, cpu_s: float, timeout_s: float, person: str = ""
    ) -> Future[Any]:
        """Run a module's function in one of the processes, on behalf of a person.

        The future raises TimeoutError where the work took `timeout_s` after its start, or no process could be started; ProcessDied where
        the process died, also after `cpu_s` of processor time; WorkFailed where the work raised; CancelledError where the pool was
        closed meanwhile.
        """
        job = _Job(work, args, cpu_s, timeout_s, person)
        with self._changed:
            if self._closed:
                job.future.cancel()
            else:
                self._waiting.append(job)
                self._changed.notify()
            while not self._closed and len(self._threads) < self.workers:
                self._threads.append(threading.Thread(target=self._run_worker, name="confined", daemon=True))
                self._threads[-1].start()
        return job.future

    def close(self) -> None:
        """Kill the processes; jobs that wait are cancelled."""
        with self._changed:
            self._closed = True
            for job in self._waiting:
                job.future.cancel()
            self._waiting.clear()
            for process in self._processes:
                process.kill()
            self._changed.notify_all()

    def _run_worker(self) -> None:
        """Run jobs in one process, one after the other; without any for `idle_s` the process is killed."""
        process: _Process | None = None
        while not self._closed:
            job = self._next_job(timeout_s=self.idle_s if process else None)
            if job is None:
                self._kill(process)
                process = None
                continue
            try:
                process = self._live_process(process)
                try:
                    answer = process.run(job)
                except _DiedBeforeWork:  # it was killed while it was idle
                    process = self._live_process(process)
                    answer = process.run(job)
                job.future.set_result(answer)
            except BaseException as error:
                closed = self._closed and isinstance(error, ProcessDied)
                if isinstance(error, _DiedBeforeWork):  # which says nothing about the work
                    error = TimeoutError("no process begins")
                job.future.set_exception(CancelledError() if closed else error)
            finally:
                with self._changed:
                    self._running_by_person[job.person] -= 1
                    self._running_by_person += Counter()  # drops people at zero
        self._kill(process)

    def _next_job(self, *, timeout_s: float | None) -> _Job | None:
        """The next job, waited for; None after `timeout_s` or where the pool was closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed, timeout_s)
            if not self._waiting:
                return None
            job = min(self._waiting, key=lambda one: self._running_by_person[one.person])
            self._waiting.remove(job)
            self._running_by_person[job.person] += 1
            return job

    def _live_process(self, process: _Process | None) -> _Process:
        if process is not None and process.is_alive():
            return process
        self._kill(process)
        with self._changed:
            if self._closed:
                raise CancelledError
            process = _Process(self.preload, self.result_types)
            self._processes.add(process)
            return process

    def _kill(self, process: _Process | None) -> None:
        if process is not None:
            process.kill()
            with self._changed:
                self._processes.discard(process)


class _Process:
    """One process and the pipe to it; used by one thread at a time."""

    def __init__(self, preload: Sequence[str], result_types: Sequence[type]) -> None:
        context = multiprocessing.get_context("spawn")
        self._channel, theirs = context.Pipe()
        self._result_types = {(one.__module__, one.__qualname__) for one in result_types}
        self._process = context.Process(
            target=_process_main, args=(theirs, tuple(preload)), daemon=True, name="confined"
        )
        self._process.start()
        theirs.close()

    def is_alive(self) -> bool:
        return self._process.is_alive()

    def run(self, job: _Job) -> Any:
        """The job's result; raises as `SandboxPool.submit` says."""
        ended: type[ProcessDied] = _DiedBeforeWork
        with _Deadline(job.timeout_s, self.kill) as deadline:
            try:
                self._channel.send((job.work, job.args, job.cpu_s))
                self._channel.recv_bytes()
                ended = ProcessDied
                failed, answer = self._read(self._channel.recv_bytes())
            except (EOFError, OSError) as error:
                self.kill()
                if deadline.passed:
                    raise TimeoutError("the work took too long") from error
                raise ended(f"the process ended with {self._process.exitcode}") from error
            except Exception as error:
                self.kill()
                raise ProcessDied("the process answered with something else than it should") from error
        if failed:
            raise WorkFailed(failed)
        return answer

    def _read(self, answer: bytes) -> tuple[str, Any]:
        failed, value = _RestrictedUnpickler(io.BytesIO(answer), self._result_types).load()
        return str(failed), value

    def kill(self) -> None:
        self._process.kill()
        self._process.join()


class _Deadline:
    """Calls `on_timeout` after so many seconds, unless the block is left before."""

    def __init__(self, seconds: float, on_timeout: Callable[[], None]) -> None:
        self.passed, self._left, self._on_timeout, self._lock = False, False, on_timeout, threading.Lock()
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
                self._on_timeout()


class _RestrictedUnpickler(pickle.Unpickler):
    """Loads pickles of allowed types only: any other pickle may name a function that is called on loading."""

    def __init__(self, file: io.BytesIO, allowed: set[tuple[str, str]]) -> None:
        super().__init__(file)
        self._result_types = allowed

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._result_types:
            raise pickle.UnpicklingError(f"{module}.{name} is not among what may be answered")
        return super().find_class(module, name)


def _process_main(channel: Any, preload: Sequence[str]) -> None:
    """The process: runs jobs from the pipe, one after the other, until the pipe is closed."""
    _set_limits(preload)
    while True:
        try:
            work, args, cpu_s = channel.recv()
        except EOFError:
            return
        channel.send_bytes(b"begun")
        try:
            answer = pickle.dumps(("", _with_cpu_limit(work, cpu_s, *args)))
        except Exception as error:
            answer = pickle.dumps((type(error).__name__, None))
        del work, args
        channel.send_bytes(answer)
        del answer


def _with_cpu_limit(work: Callable[..., Any], cpu_s: float, *args: Any) -> Any:
    """Run the work with a limit on processor time; without one while it waits, since it would be killed for the next job."""
    import resource

    spent = resource.getrusage(resource.RUSAGE_SELF)
    limit_s = math.ceil(spent.ru_utime + spent.ru_stime + cpu_s)
    resource.setrlimit(resource.RLIMIT_CPU, (limit_s, resource.RLIM_INFINITY))
    try:
        return work(*args)
    finally:
        resource.setrlimit(resource.RLIMIT_CPU, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def _set_limits(preload: Sequence[str]) -> None:
    """Limit memory, use one thread, write no core dump (it would hold a photo), and discard what decoders print."""
    import os
    import resource

    global _in_this_process
    _in_this_process = True
    os.nice(NICE)
    os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    for module in preload:
        importlib.import_module(module)
