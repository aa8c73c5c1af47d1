"""Settings: one machine needs none; whatever is reached from elsewhere is refused with one list until it is fit for that."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from api.settings import ApiSettings, is_loopback, log_warnings, settings_or_exit

PRODUCTION: dict[str, Any] = {
    "environment": "production", "public_url": "https://photos.example", "provider": "external", "oidc_client_id": "photoflux",
    "database_url": "postgresql://db/photoflux", "kek_uri": "gcp-kms://projects/p/locations/l/keyRings/r/cryptoKeys/k",
    "keyring": "gs://keys", "blobs": "gs://objects", "image_check": "vision", "metrics_token": "0123456789abcdef",
    "limits": "redis://redis:6379", "engine_url": "https://engine.example", "tracking_uri": "https://mlflow.example",
    "trusted_proxies": "10.0.0.7",
}  # fmt: skip
SECRET = "hush-hush-hush"
UNFIT: dict[str, list[Any]] = {
    "provider": ["embedded"], "oidc_issuer": ["http://accounts.example", "accounts.example"], "oidc_client_id": [""],
    "public_url": ["http://photos.example"], "database_url": ["", "sqlite:///x.db", "mysql://db/x"],
    "metrics_token": ["", "x", "0123456789abcde"],
    "kek_uri": ["", "local-kms:///etc/kek"], "keyring": ["", "/keys"], "blobs": ["", "/objects"], "image_check": ["none"],
    "limits": ["memory://"], "engine_url": ["http://engine.example", "http://10.0.0.1:8001", "engine.example"],
    "tracking_uri": ["http://mlflow.example"], "trusted_proxies": ["", " "],
}  # fmt: skip
"""What production refuses, each beside everything else as it should be."""
ELSEWHERE: list[dict[str, Any]] = [
    {"public_url": "https://photos.example"}, {"public_url": "http://192.168.1.4:8000"}, {"listen": "0.0.0.0"}, {"listen": "::"},
    {"listen": ""}, {"engine_host": "0.0.0.0"}, {"engine_url": "http://10.0.0.9:8001"}, {"tracking_uri": "http://mlflow:5000"},
    {"public_url": "http://127.0.0.1.nip.io"}, {"public_url": "http://localhost.example"}, {"listen": "photos.example"},
]  # fmt: skip


def refused(**facts: Any) -> list[str]:
    """The lines that settings are refused with."""
    with pytest.raises(ValidationError) as caught:
        ApiSettings(**facts)
    (error,) = caught.value.errors()
    return str(error["msg"]).removeprefix("Value error, ").splitlines()


def test_one_machine_needs_no_settings():
    made = ApiSettings()
    assert (made.environment, made.one_machine, made.warnings) == ("", True, ())
    assert ApiSettings(
        public_url="https://localhost:8000", listen="::1", tracking_uri="http://127.0.0.1:5000"
    ).one_machine
    assert ApiSettings(tracking_uri="sqlite:///x.db").one_machine


@pytest.mark.parametrize("facts", ELSEWHERE, ids=str)
def test_what_is_reached_from_elsewhere_is_not_switched_on_by_omission(facts: dict[str, Any]):
    first, *others = refused(**facts)
    assert first.startswith("PHOTOFLUX_ENVIRONMENT: ")
    assert f"PHOTOFLUX_{next(iter(facts)).upper()}" in first
    assert "development" in first
    told = {line.partition(":")[0] for line in others}
    assert {"PHOTOFLUX_PROVIDER", "PHOTOFLUX_DATABASE_URL", "PHOTOFLUX_KEK_URI", "PHOTOFLUX_METRICS_TOKEN"} <= told


def test_a_service_that_is_fit_for_production_still_has_to_say_so():
    (line,) = refused(**PRODUCTION | {"environment": ""})
    assert line.startswith("PHOTOFLUX_ENVIRONMENT: is not set")


def test_production_takes_what_is_fit_for_it():
    made = ApiSettings(**PRODUCTION)
    assert (made.one_machine, made.warnings, made.public_host) == (False, (), "photos.example")
    for more in (
        {"engine_url": "http://127.0.0.1:8001"},
        {"tracking_uri": ""},
        {"tracking_uri": "http://localhost:5000"},
        {"limits": "memory://", "apis": 1},
        {"listen": "0.0.0.0", "engine_host": "::", "trusted_proxies": "10.0.0.0/24, 10.0.1.7"},
    ):
        ApiSettings(**PRODUCTION | more)


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in UNFIT.items() for value in values])
def test_production_refuses_what_is_for_one_machine(name: str, value: Any):
    (line,) = refused(**PRODUCTION | {name: value})
    assert line.startswith(f"PHOTOFLUX_{name.upper()}: ")


def test_production_tells_everything_at_once():
    """All that is missing, a line each, and nothing of what was given."""
    lines = refused(environment="production", **{name: values[0] for name, values in UNFIT.items()})
    assert sorted(line.partition(":")[0] for line in lines) == sorted(f"PHOTOFLUX_{name.upper()}" for name in UNFIT)


def test_several_apis_do_not_count_for_themselves():
    for apis in (None, 2):
        assert refused(**PRODUCTION | {"limits": "memory://", "apis": apis})[0].startswith("PHOTOFLUX_LIMITS")


def test_development_on_a_network_is_possible_by_name_and_warned_of(caplog: pytest.LogCaptureFixture):
    made = ApiSettings(
        environment="development", provider="external", public_url="http://192.168.1.4:8000", listen="0.0.0.0"
    )
    assert not made.one_machine
    assert "PHOTOFLUX_LISTEN" in made.warnings[0]
    with caplog.at_level("WARNING"):
        log_warnings(made)
    assert "development on a network" in caplog.text
    here = ApiSettings(environment="development")
    assert (here.one_machine, here.warnings) == (True, ())


@pytest.mark.parametrize("facts", [{"public_url": "http://192.168.1.4:8000"}, {"listen": "0.0.0.0"}], ids=str)
def test_the_embedded_provider_stays_on_loopback(facts: dict[str, Any]):
    (line,) = refused(environment="development", **facts)
    assert line.startswith("PHOTOFLUX_PROVIDER: the embedded provider serves loopback addresses only")


@pytest.mark.parametrize("environment", ["", "development"])
def test_pipelines_elsewhere_have_all_that_they_need(environment: str):
    image = f"gcr.io/p/steps@sha256:{'0' * 64}"
    vertex = {"orchestrator": "vertex", "gcp_project": "p", "pipeline_root": "gs://b/runs", "pipeline_image": image}
    kubeflow = {
        "orchestrator": "kubeflow",
        "kubeflow_host": "https://k",
        "pipeline_root": "minio://b",
        "pipeline_image": image,
    }
    for facts in (vertex, kubeflow, kubeflow | {"kubeflow_host": "http://127.0.0.1:8080"}):
        ApiSettings(environment=environment, **facts)
    for facts, name, value in (
        (vertex, "gcp_project", ""),
        (vertex, "pipeline_root", ""),
        (vertex, "pipeline_root", "/runs"),
        (vertex, "pipeline_image", "gcr.io/p/steps:latest"),
        (vertex, "pipeline_image", f"x@sha256:{'0' * 63}"),
        (kubeflow, "kubeflow_host", ""),
        (kubeflow, "kubeflow_host", "http://k"),
        (kubeflow, "pipeline_root", ""),
        (kubeflow, "pipeline_image", ""),
    ):
        (line,) = refused(environment=environment, **facts | {name: value})
        assert line.startswith(f"PHOTOFLUX_{name.upper()}: ")


@pytest.mark.parametrize(
    "url", ["", "photos.example", "ftp://127.0.0.1", "http://", "http://a@127.0.0.1", "http://127.0.0.1/x", "http://[::1", "http://127.0.0.1:0"]
)  # fmt: skip
def test_the_public_address_is_an_origin(url: str):
    assert any(line.startswith("PHOTOFLUX_PUBLIC_URL: ") for line in refused(public_url=url))


@pytest.mark.parametrize(
    "text", ["*", "0.0.0.0/0", "::/0", "0.0.0.0/1,128.0.0.0/1", "2000::/3", "10.0.0.1/8", "proxy", "10.0.0.1,,"]
)
def test_proxies_are_named_one_by_one(text: str):
    (line,) = refused(trusted_proxies=text)
    assert line.startswith("PHOTOFLUX_TRUSTED_PROXIES: ")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "LOCALHOST"])
def test_loopback_is_this_machine(host: str):
    assert is_loopback(host)


@given(st.text() | st.ip_addresses().map(str))
def test_nothing_else_is_loopback(host: str):
    assert (
        not is_loopback(host)
        or host.lower() == "localhost"
        or host.startswith("127.")
        or host.replace("0", "").endswith(":1")
    )


def test_what_is_wrong_is_printed_without_what_was_given(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    for name, value, told in (
        ("PHOTOFLUX_LISTEN", "0.0.0.0", "error: PHOTOFLUX_METRICS_TOKEN: metrics are not for everybody"),
        ("PHOTOFLUX_RUNS_AT_ONCE", SECRET, "error: PHOTOFLUX_RUNS_AT_ONCE: "),
        ("AIP_HTTP_PORT", SECRET, "error: AIP_HTTP_PORT: "),
        ("PHOTOFLUX_RETENTION", SECRET, "error: PHOTOFLUX_RETENTION: is not JSON"),
        ("PHOTOFLUX_RETENTION", f'{{"photos": "{SECRET}"}}', "error: PHOTOFLUX_RETENTION.photos: "),
    ):
        with monkeypatch.context() as patch:
            patch.setenv("PHOTOFLUX_OIDC_CLIENT_SECRET", SECRET)
            patch.setenv(name, value)
            with pytest.raises(SystemExit) as ended:
                settings_or_exit()
        said = capsys.readouterr().err
        assert ended.value.code == 2
        assert all(line.startswith("error: ") for line in said.splitlines())
        assert told in said
        assert SECRET not in said
    assert settings_or_exit().one_machine


def test_an_error_elsewhere_quotes_no_secret(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PHOTOFLUX_OIDC_CLIENT_SECRET", SECRET)
    monkeypatch.setenv("PHOTOFLUX_LISTEN", "0.0.0.0")
    with pytest.raises(ValidationError) as caught:
        ApiSettings()
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("module", ["api.ops.serve"])
def test_a_program_says_what_is_wrong_and_ends(module: str, root: Path, tmp_path: Path):
    more = {"PHOTOFLUX_LISTEN": "0.0.0.0", "PHOTOFLUX_STATE_DIR": str(tmp_path / "state")}
    done = subprocess.run(
        [sys.executable, "-m", module], cwd=root, env=os.environ | more, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert all(line.startswith("error: PHOTOFLUX_") for line in done.stderr.splitlines())
    assert len(done.stderr.splitlines()) > 5
    assert not (tmp_path / "state").exists()
