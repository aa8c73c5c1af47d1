"""Folders as people call them: a checkout, a state folder and an environment below `50%20off, Rex' & "I"?`."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from sqlalchemy import create_engine, make_url, text

from photoflux.settings import get_settings, sqlite_url

UNLUCKY = '50%20off, Rex\' & "I"? #1 $5'
NAMES = [
    "plain",
    "two words",
    "50%20off",
    "100%",
    "%(here)s",
    "a?b=c",
    "a#b",
    "Rex'",
    'say "x"',
    "a&b",
    "a+b",
    "a;b",
    "$5",
    "a:b",
    "a@b",
    "ü€",
]
OPENS_ALL = """
import mlflow, api.records.database
from api.jobs import job_queue
from api.settings import get_api_settings
from photoflux.tracking import Registry

assert "%" in mlflow.__file__ and "%" in api.records.database.__file__
url = get_api_settings().records_url
api.records.database.migrate(url)
api.records.database.open_engine(url).connect().close()
job_queue.prepare(url)
assert Registry().names() == []
"""


@pytest.mark.parametrize("name", NAMES)
def test_a_url_of_sqlite_opens_the_file_that_is_meant(tmp_path: Path, name: str):
    file = tmp_path / name / f"{name}.db"
    file.parent.mkdir()
    url = sqlite_url(file)
    assert make_url(url).database == str(file)
    with create_engine(url).begin() as connection:
        connection.execute(text("create table a (b)"))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [file]
    assert make_url(str(make_url(url))) == make_url(url)


def test_a_state_folder_given_from_below_the_working_folder_stays_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from api.settings import ApiSettings

    monkeypatch.setenv("PHOTOFLUX_STATE_DIR", "50%20off")
    assert make_url(ApiSettings().records_url).database == "50%20off/photoflux.db"
    assert str(get_settings().state_dir) == "50%20off"


@pytest.mark.slow
def test_all_databases_open_from_a_checkout_and_an_environment_of_an_unlucky_name(root: Path, tmp_path: Path):
    """MLflow's and our own migrations, and the tables of durable work; each names its folder or its database to a library."""
    checkout, packages = tmp_path / UNLUCKY, tmp_path / UNLUCKY / "site-packages"
    checkout.mkdir()
    packages.symlink_to(sysconfig.get_paths()["purelib"])
    for part in ("api", "components", "photoflux", "pipelines"):
        (checkout / part).symlink_to(root / part)
    state = checkout / ".photoflux"
    environment = os.environ | {"PHOTOFLUX_STATE_DIR": str(state), "PYTHONPATH": f"{checkout}{os.pathsep}{packages}"}
    done = subprocess.run(
        [sys.executable, "-c", OPENS_ALL], cwd=checkout, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert {file.name for file in state.iterdir() if file.suffix == ".db"} == {"mlflow.db", "photoflux.db"}
    assert {file.name for file in tmp_path.iterdir()} == {UNLUCKY}
    assert {file.name for file in checkout.iterdir()} == {
        "api",
        "components",
        "photoflux",
        "pipelines",
        "site-packages",
        ".photoflux",
    }
