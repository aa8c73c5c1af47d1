"""`make serve`: the whole service on one machine, its processes watched and started again when they end.

Prints the address and a ready account. Ctrl-C ends everything, in the order in which nothing is lost.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import httpx2

from api.accounts.embedded_provider import Accounts
from api.settings import ApiSettings, settings_or_exit
from photoflux import screen
from photoflux.priority import lower_priority

EMAIL, NAME = "demo@photoflux.local", "Demo"
MALLOC_SETTINGS = {
    "MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "2097152", "MALLOC_TRIM_THRESHOLD_": "8388608",
    "MALLOC_MMAP_MAX_": "65536",
}  # fmt: skip
"""Makes glibc return memory of uploads and downloads, of which it otherwise keeps some for each of forty threads. Both thresholds are
above the megabyte buffers of sealing: with lower ones, opening a sealed sentence took .94 ms instead of .09."""
ENGINE_NICE = 5
"""Drawing takes all cores for a while; the API's short requests go first."""
READY_S, GRACE_S, RESTART_PAUSE_S, POLL_S = 120.0, 30.0, 1.0, 0.2
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass
class ManagedProcess:
    """One process of the service. `ready` is a URL that answers once the process can be used."""

    name: str
    command: Sequence[str]
    ready: str = ""
    log: Path = Path("serve.log")
    scratch: Path = Path("scratch")
    settings: Mapping[str, str] = field(default_factory=dict)
    niceness: int = 0
    """Nice value, by which it yields to the others where all cores are busy."""
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    killed: bool = False

    def start(self, environment: dict[str, str]) -> None:
        """Start the process with an empty scratch folder, so that unsealed files of a killed one are not left there.

        Kills what is left of the last process group first: it would hold memory, and write into the new scratch folder.
        """
        self._kill_group()
        shutil.rmtree(self.scratch, ignore_errors=True)
        self.scratch.mkdir(parents=True, mode=0o700)
        environment = environment | dict(self.settings) | {"TMPDIR": str(self.scratch)}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                list(self.command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
        if self.niceness:
            lower_priority(self.process.pid, self.niceness)
        self.started, self.killed = time.monotonic(), False

    def stop(self) -> None:
        """Send SIGTERM, wait GRACE_S, then SIGKILL the process group."""
        if self.process is None:
            return
        if not self.ended:
            self.process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(GRACE_S)
        self._kill_group()
        self.process.wait()

    @property
    def ended(self) -> bool:
        """Whether the process has ended; kills the rest of its group when that is first seen."""
        if self.process is None:
            return False
        if self.process.poll() is not None:
            self._kill_group()
        return self.process.returncode is not None

    def _kill_group(self) -> None:
        """SIGKILL the process group, once: later the id may be another group's. Children with a session of their own stay."""
        if self.process is not None and not self.killed:
            self.killed = True
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)


@dataclass
class Supervisor:
    """Starts the service's processes, restarts those that end, and stops all of them; `environment` is theirs."""

    settings: ApiSettings
    processes: list[ManagedProcess]
    environment: dict[str, str] = field(default_factory=dict)

    def run(self) -> None:
        """Start all processes, print their addresses, and restart those that end, until interrupted."""
        for managed in self.processes:
            managed.start(self.environment)
        try:
            with screen.progress_bar("starting"):
                self._wait_until_ready()
            self._print_addresses()
            while True:
                time.sleep(POLL_S)
                for managed in self.processes:
                    if managed.ended and time.monotonic() - managed.started > RESTART_PAUSE_S:
                        print(f"{managed.name} ended and is started again; see {managed.log}", flush=True)
                        managed.start(self.environment)
        except KeyboardInterrupt:
            with suppress(OSError):  # the terminal may be gone
                print("stopping, which may take a quarter of a minute", flush=True)
        finally:
            for managed in self.processes:
                managed.stop()

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Locks the state folder: two services in one would delete each other's scratch folders. Raises SystemExit where it is locked,
        and where another program answers at one of the service's addresses."""
        self.settings.state_dir.mkdir(parents=True, exist_ok=True)
        with (self.settings.state_dir / "serve.lock").open("a+") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.seek(0)
                raise SystemExit(
                    f"error: {self.settings.state_dir} is served by process {lock.read().strip() or '?'}: end that one, or give "
                    "this one a folder and addresses of its own (PHOTOFLUX_STATE_DIR, PHOTOFLUX_PUBLIC_URL, PHOTOFLUX_ENGINE_URL)"
                ) from None
            lock.truncate(0)
            lock.write(str(os.getpid()))
            lock.flush()
            for name in ("public_url", "engine_url"):
                if _is_taken(url := getattr(self.settings, name)):
                    raise SystemExit(
                        f"error: another program answers at {url}: end it, or give PHOTOFLUX_{name.upper()} another port"
                    )
            yield

    def _wait_until_ready(self) -> None:
        until = time.monotonic() + READY_S
        for managed in filter(lambda one: one.ready, self.processes):
            while not _answers(managed.ready, self.settings):
                if managed.ended or time.monotonic() > until:
                    raise SystemExit(f"error: {managed.name} did not start; see {managed.log}")
                time.sleep(0.1)

    def _print_addresses(self) -> None:
        print(f"address  {self.settings.issuer}")
        for managed in self.processes:
            if managed.name in ("engine", "mlflow"):
                print(f"{managed.name:8} {managed.ready}")
        print("ready; Ctrl-C ends it", flush=True)


def _is_taken(url: str) -> bool:
    address = urlsplit(url)
    try:
        port = address.port or {"http": 80, "https": 443}[address.scheme]
        with socket.create_connection((address.hostname, port), timeout=1.0):
            return True
    except OSError:
        return False


def _answers(url: str, settings: ApiSettings) -> bool:
    try:
        return httpx2.get(url, timeout=2.0, verify=settings.trusted).status_code < 500
    except httpx2.HTTPError:
        return False


def make_supervisor(settings: ApiSettings, *, mlflow: bool = True) -> Supervisor:
    """The supervisor of engine, API, worker and MLflow's pages."""
    logs, scratch = settings.state_dir / "logs", (settings.state_dir / "scratch").absolute()
    logs.mkdir(parents=True, exist_ok=True)
    python, root = sys.executable, Path(__file__).resolve().parents[2]
    ports = {"mlflow": _free_port()}
    processes = [
        ManagedProcess(
            "engine",
            [python, "-m", "api.images.engine"],
            ready=f"{settings.engine_url}{settings.health_route}",
            niceness=ENGINE_NICE,
        ),
        ManagedProcess("api", [python, "-m", "api.main"], ready=f"{settings.issuer}/readyz", settings=MALLOC_SETTINGS),
        ManagedProcess("worker", [python, "-m", "api.jobs.worker"]),
    ]
    if mlflow:
        where = f"http://127.0.0.1:{ports['mlflow']}"
        command = [python, "-m", "api.ops.registry_pages", "--port", str(ports["mlflow"])]
        processes.append(ManagedProcess("mlflow", command, ready=where))
    for managed in processes:
        managed.log, managed.scratch = logs / f"{managed.name}.log", scratch / managed.name
    environment = {
        "GOMP_SPINCOUNT": "2000",
        **os.environ,
        **_environment(settings),
        "PHOTOFLUX_STATE_DIR": str(settings.state_dir.absolute()),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_CONFIGURE_LOGGING": "false",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH", "")])),
    }
    return Supervisor(settings, processes, environment)


def demo_account(settings: ApiSettings) -> str:
    """Make the demo account; returns its password, which is random and stored in the state folder."""
    accounts, file = Accounts(settings.state_dir / "accounts"), settings.state_dir / "demo-password"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    password = secrets.token_urlsafe(12)
    accounts.add(EMAIL, name=NAME, password=password)
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as written:
        written.write(password)
    return password


def with_certificate(settings: ApiSettings) -> ApiSettings:
    """The same service over TLS, with an authority and a certificate made on this machine."""
    import trustme

    folder, address = settings.state_dir / "tls", urlsplit(settings.public_url)
    cert, key, authority = (folder / name for name in ("cert.pem", "key.pem", "ca.pem"))
    if not key.is_file():
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        ca = trustme.CA(organization_name="PhotoFlux on this machine")
        issued = ca.issue_cert("localhost", "127.0.0.1", "::1")
        ca.cert_pem.write_to_path(authority)
        for blob in issued.cert_chain_pems:
            blob.write_to_path(cert, append=True)
        key.touch(mode=0o600)
        issued.private_key_pem.write_to_path(key)
    changes: dict[str, Any] = {
        "public_url": urlunsplit(("https", address.netloc, "", "", "")),
        "tls_cert": str(cert.absolute()),
        "tls_key": str(key.absolute()),
        "ca_file": str(authority.absolute()),
    }
    return ApiSettings(**changes)


def _environment(settings: ApiSettings) -> dict[str, str]:
    """The settings of addresses and TLS as environment variables of the processes."""
    names = ("public_url", "tls_cert", "tls_key", "ca_file", "engine_url")
    variables = {f"PHOTOFLUX_{name.upper()}": str(getattr(settings, name)) for name in names}
    return variables | {"AIP_HTTP_PORT": str(urlsplit(settings.engine_url).port or 80)}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(prog="python -m api.ops.serve", description=__doc__.split("\n")[0])
    parser.add_argument("--no-mlflow", action="store_true", help="leave MLflow's pages out")
    parser.add_argument("--tls", action="store_true", help="serve over TLS with a certificate made here")
    options = parser.parse_args(argv)
    settings = settings_or_exit()
    settings = with_certificate(settings) if options.tls else settings
    for message in settings.warnings:
        print(f"warning: {message}", file=sys.stderr)
    supervisor = make_supervisor(settings, mlflow=not options.no_mlflow)
    with supervisor.exclusive():
        for number in STOP_SIGNALS:
            # whoever started this may want it to outlive the terminal
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, _interrupt)
        print(f"sign in  {EMAIL}, password {demo_account(settings)}")
        if options.tls:
            print(f"trust    {settings.ca_file} (curl: export CURL_CA_BUNDLE={settings.ca_file})")
        supervisor.run()
    return 0


def _interrupt(*_: object) -> None:
    """Raise KeyboardInterrupt, and ignore further signals, so that every process is stopped."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


if __name__ == "__main__":
    raise SystemExit(main())
