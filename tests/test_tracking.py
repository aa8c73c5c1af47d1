"""The registry: what is entered is whole or not there at all, and a registered model draws."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from functools import partial
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from photoflux.errors import InputError
from photoflux.manifest import digest
from photoflux.params import RegisterParams
from photoflux.tracking import CHALLENGER, CHAMPION, IDENTITY, Record, Registry, Version, open_artifacts, parse_model
from tests.canaries import forms, holding, rows_of, stored_below


@pytest.fixture(autouse=True)
def tables(empty_registry: Path, own_state: Path) -> None:
    shutil.copy(empty_registry, own_state / "mlflow.db")


def record(folder: Path, content: bytes = b"weights", **changed: object) -> Record:
    """A record of a file of these bytes."""
    file = folder / "adapter.tar"
    file.write_bytes(content)
    facts = {"subject": "rex", "prompt": "a photo of sks dog", "key": "plain://demo", "experiment": "photoflux"}
    return Record(adapter=file, digest=digest(file), **facts | {"note": "A dog."} | changed)


def enter(name: str, one: Record) -> Version:
    with Registry().registered(name, one) as version:
        return version


def entries(registry: Registry) -> tuple[int, int, int]:
    """How many versions, runs and logged models there are."""
    from mlflow import MlflowClient

    client = MlflowClient(registry.uri, registry.uri)
    experiments = [e.experiment_id for e in client.search_experiments()]
    found = client.search_model_versions(), client.search_runs(experiments), client.search_logged_models(experiments)
    return tuple(len(entry) for entry in found)


def files(state: Path) -> list[Path]:
    return [path for path in (state / "artifacts").rglob("*") if path.is_file()]


def test_a_version_holds_the_adapter_and_the_database_stays_in_the_state_folder(tmp_path: Path, own_state: Path):
    version = enter("rex", record(tmp_path))
    stored, key = Registry().download_adapter(version)
    assert (stored.read_bytes(), key) == (b"weights", "plain://demo")
    assert stored.is_relative_to(own_state)
    assert entries(Registry()) == (1, 1, 1)


def test_an_erased_model_is_nowhere_and_others_stay(tmp_path: Path, own_state: Path):
    """Versions, runs, logged models and files go, and no row in the database names them any more."""
    for content in (b"canary one", b"canary two"):
        version = enter("rex", record(tmp_path, content, params={"rank": 4}, metrics={"overall": 0.5}))
    enter("mia", record(tmp_path, b"kept", subject="mia"))
    registry = Registry()
    with registry.aliased(version, CHAMPION):
        pass
    assert registry.erase("rex") == 2
    assert registry.names() == ["mia"]
    assert entries(registry) == (1, 1, 1)
    assert all(b"canary" not in file.read_bytes() for file in files(own_state))
    assert version.run_id.encode() not in rows_of(own_state / "mlflow.db")
    assert registry.erase("rex") == 0


def test_versions_that_are_not_to_go_stay_and_draw_on(tmp_path: Path, own_state: Path):
    older, newer = (enter("rex", record(tmp_path, content)) for content in (b"canary older", b"newer"))
    registry = Registry()
    with registry.aliased(older, CHALLENGER), registry.aliased(newer, CHAMPION):
        pass
    assert registry.erase("rex", lambda there: set(there) - {newer.number}) == 1
    assert registry.aliases("rex") == {CHAMPION: newer.number}
    assert registry.download_adapter(newer)[0].read_bytes() == b"newer"
    assert entries(registry) == (1, 1, 1)
    assert all(b"canary" not in file.read_bytes() for file in files(own_state))
    assert registry.erase("rex", lambda _: {older.number}) == 0
    assert registry.names() == ["rex"]


@pytest.mark.parametrize("stage", ["_drop_model", "_delete_files", "_drop_run", "_purge", "_drop_if_empty"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_an_erasure_that_was_killed_is_finished_by_the_next(
    tmp_path: Path, own_state: Path, monkeypatch: pytest.MonkeyPatch, stage: str, after: bool
):
    """Wherever it was ended, before or after any of its parts: files are found as long as any are left."""
    version = enter("rex", record(tmp_path, b"canary", params={"rank": 4}))
    original = getattr(Registry, stage)

    def killed(*args: object) -> None:
        if after:
            original(*args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Registry, stage, killed)
        Registry().erase("rex")
    registry = Registry()
    registry.erase("rex")
    assert (registry.names(), entries(registry), files(own_state)) == ([], (0, 0, 0), [])
    assert version.run_id.encode() not in rows_of(own_state / "mlflow.db")


def test_many_parameters_and_long_curves_are_kept(tmp_path: Path):
    from mlflow import MlflowClient

    params = {f"p{number:03}": number for number in range(130)}
    curve = [(step, step / 7) for step in range(2300)]
    version = enter("rex", record(tmp_path, params=params, curves={"loss/subject": curve}))
    client = MlflowClient(Registry().uri, Registry().uri)
    assert client.get_run(version.run_id).data.params == {name: str(value) for name, value in params.items()}
    points = client.get_metric_history(version.run_id, "loss/subject")
    assert sorted((point.step, point.value) for point in points) == curve


def test_the_model_says_how_it_is_asked(tmp_path: Path):
    import mlflow

    enter("rex", record(tmp_path))
    model = mlflow.models.get_model_info("models:/rex/1")
    assert model.signature.inputs.required_input_names() == ["prompt"]
    assert model.signature.inputs.optional_input_names() == ["seed"]
    assert model.signature.outputs.input_names() == ["image"]
    assert mlflow.models.Model.load("models:/rex/1").load_input_example()["prompt"][0] == "a photo of sks dog"


STAGES = (
    "create_logged_model", "finalize_logged_model", "log_model_artifacts", "set_terminated", "create_model_version",
)  # fmt: skip


@pytest.mark.parametrize("stage", STAGES)
def test_an_error_at_any_stage_leaves_nothing(
    tmp_path: Path, own_state: Path, monkeypatch: pytest.MonkeyPatch, stage: str
):
    registry, original = Registry(), None

    def failing(*args: object, **kwargs: object) -> None:
        monkeypatch.setattr(registry._client, stage, original)
        raise OSError(28, "No space left on device")

    original = getattr(registry._client, stage)
    monkeypatch.setattr(registry._client, stage, failing)
    with pytest.raises(OSError), registry.registered("rex", record(tmp_path)):
        pass
    assert entries(registry) == (0, 0, 0)
    assert registry.names() == []
    assert files(own_state) == []


def test_an_error_in_the_block_takes_the_version_back(tmp_path: Path, own_state: Path):
    registry = Registry()
    with pytest.raises(ZeroDivisionError), registry.registered("rex", record(tmp_path)) as version:
        assert registry.find_version("rex", version.digest) == version
        raise ZeroDivisionError
    assert (registry.names(), entries(registry), files(own_state)) == ([], (0, 0, 0), [])


def test_an_error_in_the_block_keeps_an_older_version(tmp_path: Path):
    registry, one = Registry(), record(tmp_path)
    enter("rex", one)
    with (
        pytest.raises(ZeroDivisionError),
        registry.registered("rex", one) as version,
        registry.aliased(version, "champion"),
    ):
        raise ZeroDivisionError
    assert registry.find_version("rex", one.digest).number == 1
    assert registry.aliases("rex") == {}


def test_an_alias_goes_back_to_where_it_was(tmp_path: Path):
    registry = Registry()
    first, second = enter("rex", record(tmp_path, b"1")), enter("rex", record(tmp_path, b"2"))
    with registry.aliased(first, "champion"):
        pass
    with pytest.raises(ZeroDivisionError), registry.aliased(second, "champion"):
        assert registry.aliases("rex") == {"champion": 2}
        raise ZeroDivisionError
    assert registry.get_version("rex", "champion") == first


def test_an_alias_does_not_go_back_to_a_version_that_is_gone(tmp_path: Path):
    registry = Registry()
    first, second = enter("rex", record(tmp_path, b"1")), enter("rex", record(tmp_path, b"2"))
    with registry.aliased(first, "champion"):
        pass
    with pytest.raises(ZeroDivisionError), registry.aliased(second, "champion"):
        registry.erase("rex", lambda _: {first.number})
        raise ZeroDivisionError
    assert registry.aliases("rex") == {}


def test_what_does_not_exist_is_none_or_empty(tmp_path: Path):
    registry = Registry()
    enter("rex", record(tmp_path))
    assert [registry.get_version(*where) for where in (("rex", "champion"), ("rex", "9"), ("bello", "champion"))] == [
        None
    ] * 3
    assert (registry.find_version("bello", "0" * 64), registry.aliases("bello"), registry.names()) == (
        None,
        {},
        ["rex"],
    )


@pytest.fixture
def crowd(own_state: Path) -> list[str]:
    """More registered models than the client answers with at once."""
    client, names = Registry()._client, [f"a{number:03}" for number in range(120)]
    for name in names:
        client.create_registered_model(name)
    return names


def test_a_registry_of_many_models_is_known_to_its_end(tmp_path: Path, crowd: list[str]):
    registry = Registry()
    version = enter("rex", record(tmp_path))
    with registry.aliased(version, CHAMPION):
        pass
    assert sorted(registry.names()) == [*crowd, "rex"]
    assert (
        registry.get_version("rex", CHAMPION)
        == registry.get_version("rex", "1")
        == registry.find_version("rex", version.digest)
        == version
    )
    assert registry.aliases("rex") == {CHAMPION: 1}
    assert enter("rex", record(tmp_path, b"newer")).number == 2
    assert registry.erase("rex") == 2
    assert sorted(registry.names()) == crowd


def test_a_registration_that_begins_again_clears_all_that_a_killed_one_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """More runs, and more models of one run, than a page holds."""
    registry, one = Registry(), record(tmp_path)
    client, experiment = registry._client, registry._experiment("photoflux")
    monkeypatch.setattr(client, "search_runs", partial(client.search_runs, max_results=3))
    monkeypatch.setattr(client, "search_logged_models", partial(client.search_logged_models, max_results=2))
    for _ in range(8):
        run = client.create_run(experiment, tags={"adapter": one.digest}).info
    for _ in range(5):
        client.create_logged_model(experiment, name="adapter", source_run_id=run.run_id)
    time.sleep(0.01)
    with registry.registered("rex", one):
        pass
    assert entries(registry) == (1, 1, 1)


ODD = (
    "",
    "'",
    "it's",
    "rex' or '1' = '1",
    "Rex",
    "rex/2",
    "models:/rex",
    "rex\n",
    "写真",
    "\ud800",
    "a" * 64,
    "%",
    "\0",
)


@pytest.mark.parametrize("name", ODD)
def test_what_cannot_be_a_name_is_said_before_the_registry_is_asked(name: str):
    """As registering says it: by the pattern, in one sentence."""
    registry = Registry()
    asks = (
        lambda: registry.get_version(name, CHAMPION),
        lambda: registry.find_version(name, "0" * 64),
        lambda: registry.aliases(name),
        lambda: registry.erase(name),
        lambda: parse_model(f"{name}@champion"),
    )
    for ask in asks:
        with pytest.raises(InputError, match=r"no model is called .* names are 1-63 of a-z, 0-9, - and _"):
            ask()


@pytest.mark.parametrize(
    "reference", ["99999999999999999999", "0", "007", "my alias", "it's", "ünïcode", "a" * 300, "3\n"]
)
def test_what_cannot_be_a_version_is_said_before_the_registry_is_asked(tmp_path: Path, reference: str):
    enter("rex", record(tmp_path))
    for ask in (lambda: Registry().get_version("rex", reference), lambda: parse_model(f"rex@{reference}")):
        with pytest.raises(InputError, match=r"is no version of a model: write its number, as in @3, or an alias"):
            ask()


@pytest.mark.parametrize("text", ["a" * 300, "\U0002ebe1" * 50, "\x1f" * 80])
def test_what_is_refused_is_told_shortened_however_its_characters_are_written(text: str):
    for asked in (text, f"rex@{text}"):
        with pytest.raises(InputError) as refused:
            parse_model(asked)
        assert len(str(refused.value)) < 300


def test_a_model_without_a_reference_is_its_champion():
    assert parse_model("rex") == parse_model("rex@") == ("rex", CHAMPION)
    assert parse_model("rex@3") == ("rex", "3")


TEXTS = st.one_of(
    st.text(), st.sampled_from(["rex", "'", "v1", "latest", "@", "1", "٣", "²", "-", "_"]), st.from_regex(r"\d+")
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=TEXTS, reference=TEXTS)
def test_any_text_finds_a_version_or_nothing_or_is_refused_in_a_sentence(
    one_model: Registry, name: str, reference: str
):
    for ask in (
        one_model.get_version,
        lambda name, reference: one_model.get_version(*parse_model(f"{name}@{reference}")),
    ):
        for asked in ((name, reference), ("rex", reference), (name, CHAMPION)):
            try:
                found = ask(*asked)
            except InputError as error:
                assert "registry" not in str(error)
                assert len(str(error)) < 300
            else:
                assert found is None or found.name == "rex"


@pytest.fixture
def one_model(tmp_path: Path) -> Registry:
    registry = Registry()
    with registry.registered("rex", record(tmp_path)) as version, registry.aliased(version, CHAMPION):
        return registry


def test_a_version_that_others_registered_is_no_adapter(own_state: Path):
    client = Registry()._client
    client.create_registered_model("rex")
    client.create_model_version("rex", (own_state / "elsewhere").as_uri())
    version = Registry().get_version("rex", "1")
    with pytest.raises(InputError, match="rex version 1 is no adapter of PhotoFlux"):
        Registry().download_adapter(version)


def naming(folder: Path, *places: Path) -> list[str]:
    """The files and databases below a folder in which one of the places stands."""
    return holding([form for place in places for form in forms(str(place))], stored_below(folder))


def test_nothing_that_is_stored_names_a_folder_of_this_machine(tmp_path: Path, own_state: Path, root: Path):
    (tmp_path / "page.html").write_text("<p>a page</p>")
    enter("rex", record(tmp_path, params={"rank": 4}, files={"reports/page.html": tmp_path / "page.html"}))
    assert len(files(own_state)) > 5
    assert naming(own_state, own_state, tmp_path, root, Path.cwd()) == []


@pytest.fixture(params=["now", "before"])
def state(request: pytest.FixtureRequest, tmp_path: Path, own_state: Path) -> Path:
    """The state folder of a registry with one version of one model; versions of ours before stored where that was."""
    (tmp_path / "page.html").write_text("<p>a page</p>")
    one, before = record(tmp_path, files={"reports/page.html": tmp_path / "page.html"}), request.param == "before"
    with pytest.MonkeyPatch.context() as patch:
        if before:
            patch.setattr(Registry, "_relocate_artifacts", lambda _: None)
            Registry()._client.create_experiment("photoflux", artifact_location=(own_state / "artifacts").as_uri())
        with Registry().registered("rex", one) as version, Registry().aliased(version, CHAMPION):
            pass
    assert (str(own_state).encode() in rows_of(own_state / "mlflow.db")) == before
    return own_state


def check_whole(folder: Path, tmp_path: Path) -> None:
    """The model there draws, its run shows its pages, it gets another version, and nothing is left when it is erased."""
    import mlflow

    registry = Registry()
    version = registry.get_version("rex", CHAMPION)
    adapter, _ = registry.download_adapter(version)
    assert adapter.is_relative_to(folder)
    assert adapter.read_bytes() == b"weights"
    assert [page.path for page in registry._client.list_artifacts(version.run_id, "reports")] == ["reports/page.html"]
    assert mlflow.artifacts.load_text(f"runs:/{version.run_id}/reports/page.html") == "<p>a page</p>"
    assert mlflow.pyfunc.load_model("models:/rex@champion").metadata.metadata["subject"] == "rex"
    assert enter("rex", record(tmp_path, b"newer")).number == 2
    assert (folder / "artifacts" / version.run_id).is_dir()
    assert registry.download_adapter(registry.get_version("rex", "2"))[0].is_relative_to(folder)
    assert registry.erase("rex") == 2
    assert (entries(registry), files(folder)) == ((0, 0, 0), [])


def test_a_registry_is_whole_where_it_was_made(state: Path, tmp_path: Path):
    check_whole(state, tmp_path)
    assert naming(state, state) == []


def test_a_registry_is_whole_after_its_folder_was_renamed(state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PHOTOFLUX_STATE_DIR", str(state.rename(tmp_path / "new place")))
    check_whole(tmp_path / "new place", tmp_path)
    assert not state.exists()
    assert naming(tmp_path / "new place", state) == []


def test_a_copy_of_a_registry_is_one_of_its_own(state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What is erased in the copy stays where it was copied from."""
    monkeypatch.setenv("PHOTOFLUX_STATE_DIR", str(shutil.copytree(state, tmp_path / "copy")))
    check_whole(tmp_path / "copy", tmp_path)
    monkeypatch.setenv("PHOTOFLUX_STATE_DIR", str(state))
    check_whole(state, tmp_path)


@pytest.mark.parametrize("state", ["before"], indirect=True)
def test_what_went_to_the_old_place_after_a_renaming_is_found_there_and_then_here(
    state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Versions of ours before stored the next version where the state folder had been."""
    moved = state.rename(tmp_path / "moved")
    monkeypatch.setenv("PHOTOFLUX_STATE_DIR", str(moved))
    with monkeypatch.context() as patch:
        patch.setattr(Registry, "_relocate_artifacts", lambda _: None)
        enter("rex", record(tmp_path, b"newer"))
    assert files(state)
    for _ in range(2):
        first, second = (Registry().download_adapter(Registry().get_version("rex", number))[0] for number in ("1", "2"))
        assert (first.read_bytes(), second.read_bytes()) == (b"weights", b"newer")
        assert (first.is_relative_to(moved), second.is_relative_to(state)) == (True, True)
    shutil.copytree(state / "artifacts", moved / "artifacts", dirs_exist_ok=True)
    shutil.rmtree(state)
    assert Registry().download_adapter(Registry().get_version("rex", "2"))[0].read_bytes() == b"newer"
    assert str(state).encode() not in rows_of(moved / "mlflow.db")


LOADED = """
import sys, mlflow
mlflow.set_tracking_uri(sys.argv[1])
print(mlflow.pyfunc.load_model("models:/rex/1")._model_impl._adapter)
"""


def test_mlflow_alone_finds_the_files_by_the_entry_point(tmp_path: Path, own_state: Path, root: Path):
    """An installation made of pyproject.toml as it stands: the one that runs these tests may be older."""
    import mlflow

    enter("rex", record(tmp_path))
    groups = tomllib.loads((root / "pyproject.toml").read_text())["project"]["entry-points"]
    installed = tmp_path / "site" / "photoflux_here-1.dist-info"
    installed.mkdir(parents=True)
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: photoflux-here\nVersion: 1\n")
    lines = [
        line for group, points in groups.items() for line in (f"[{group}]", *(f"{k} = {v}" for k, v in points.items()))
    ]
    (installed / "entry_points.txt").write_text("\n".join(lines))
    packages = tmp_path / "packages"  # by a name without "%", which MLflow alone, without our help, does not bear
    packages.symlink_to(Path(mlflow.__file__).parents[1])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (installed.parent, root, packages)))}
    command = [sys.executable, "-c", LOADED, Registry().uri]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.split()[-1]).read_bytes() == b"weights"
    assert Path(done.stdout.split()[-1]).is_relative_to(own_state)


@pytest.mark.parametrize("path", ["/../kek", "/a/../../kek", "/%2e%2e/kek", "/a/%2E%2E/b/../../kek"])
def test_an_artifacts_location_never_leaves_its_folder(path: str):
    from mlflow.exceptions import MlflowException

    with pytest.raises(MlflowException, match="leaves the folder"):
        open_artifacts(f"photoflux-artifacts:{path}")


def test_an_unreachable_server_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PHOTOFLUX_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(InputError, match=r"registry at http://127\.0\.0\.1:9 .* check PHOTOFLUX_TRACKING_URI"):
        Registry().names()


KILLED = """
import os, signal, sys
from pathlib import Path
from photoflux.manifest import digest
from photoflux.tracking import Record, Registry
registry, file = Registry(), Path(sys.argv[1])
registry._client.finalize_logged_model = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
one = Record(file, digest(file), "rex", "sks dog", "plain://demo", "photoflux", "A dog.")
with registry.registered("rex", one):
    pass
"""


def test_a_killed_registration_leaves_no_version_and_is_cleared_later(tmp_path: Path, own_state: Path, root: Path):
    one = record(tmp_path)
    ended = subprocess.run([sys.executable, "-c", KILLED, str(one.adapter)], cwd=root, env=os.environ, timeout=120)
    assert ended.returncode == -signal.SIGKILL
    assert Registry().names() == []
    time.sleep(0.01)
    assert enter("rex", one).number == 1
    assert entries(Registry()) == (1, 1, 1)
    assert len([file for file in files(own_state) if file.name == "adapter.tar"]) == 1


def test_the_registry_page_says_what_the_code_does(root: Path, tmp_path: Path):
    told = yaml.safe_load((root / "mlflow" / "registry.yaml").read_text())
    assert set(told["aliases"]) == {CHAMPION, CHALLENGER}
    assert told["model"]["tags"] == list(IDENTITY)
    for name in ("rex", "rex-2", "9_lives", "a" * 63, "", "-rex", "Rex", "a" * 64, "rex dog"):
        assert bool(re.fullmatch(told["model"]["name"], name)) == _accepted(name), name


def _accepted(name: str) -> bool:
    try:
        return bool(RegisterParams(name=name).name)
    except InputError:
        return False


def test_the_server_runs_the_version_that_is_tested(root: Path):
    pins = dict(line.split("==") for line in (root / "constraints.txt").read_text().split() if "==" in line)
    compose = (root / "mlflow" / "compose.yaml").read_text()
    for name, version in re.findall(r"\b(mlflow|google-cloud-storage)==([0-9.]+)", compose):
        assert pins[name] == version
