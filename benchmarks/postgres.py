"""A PostgreSQL server on loopback for as long as it is needed, from the programs that this machine has."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PLACES = ("/usr/lib/postgresql/*/bin", "/opt/homebrew/opt/postgresql*/bin", "/usr/local/pgsql/bin")
MISSING = "PostgreSQL's server programs (initdb, pg_ctl) are missing; install the package postgresql"
NOBODY = "PostgreSQL does not run as root, and there is neither a user 'postgres' nor 'nobody'"


class Unavailable(Exception):
    """There is no PostgreSQL to be had here; the message says what is missing."""


@contextmanager
def postgres_server() -> Iterator[str]:
    """URL of a server, without a database's name; gone afterwards. Raises Unavailable.

    Its folder is not below anybody's own, which the user that the server runs as may not enter.
    """
    programs = _programs()
    folder = Path(tempfile.mkdtemp(prefix="photoflux-postgres-"))
    try:
        owner = _unprivileged(folder)
        run = {"user": owner, "check": True, "capture_output": True, "cwd": folder}
        initdb = [programs / "initdb", "-D", folder / "data", "-A", "trust", "-U", "photoflux", "--no-sync"]
        subprocess.run(initdb, **run)  # type: ignore[call-overload]
        port = free_port()
        options = f"-h 127.0.0.1 -p {port} -k {folder} -c fsync=off -c max_connections=200"
        control = [programs / "pg_ctl", "-D", folder / "data", "-l", folder / "log", "-w"]
        subprocess.run([*control, "-o", options, "start"], **run)  # type: ignore[call-overload]
        try:
            yield f"postgresql://photoflux@127.0.0.1:{port}"
        finally:
            subprocess.run([*control, "-m", "immediate", "stop"], **run)  # type: ignore[call-overload]
    finally:
        shutil.rmtree(folder)


def free_port() -> int:
    """A port of loopback that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _programs() -> Path:
    on_path = shutil.which("initdb")
    found = [Path(on_path).parent] if on_path else []
    found += [p for place in PLACES for p in sorted(Path("/").glob(place.lstrip("/"))) if (p / "initdb").exists()]
    if not found:
        raise Unavailable(MISSING)
    return found[-1]


def _unprivileged(folder: Path) -> str | None:
    """PostgreSQL refuses to run as root: the name of who runs it then, and the folder is theirs."""
    if os.geteuid() != 0:
        return None
    owner = next((name for name in ("postgres", "nobody") if _exists(name)), None)
    if owner is None:
        raise Unavailable(NOBODY)
    shutil.chown(folder, owner)
    return owner


def _exists(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True
