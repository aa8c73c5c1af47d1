"""The registry of adapters: runs, model versions and aliases. The only module that imports mlflow.

Each registered version is one adapter file with its lineage; the base is named in the adapter's manifest and is not
copied. `mlflow.pyfunc.load_model("models:/<name>@champion").predict(DataFrame({"prompt": [...]}))` draws.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import sqlite3
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from photoflux.errors import InputError
from photoflux.params import MODEL_NAME
from photoflux.settings import get_settings, sqlite_url

if TYPE_CHECKING:
    import pandas as pd
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import RegisteredModel
    from mlflow.models import ModelSignature
    from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
    from mlflow.store.entities import PagedList

log = logging.getLogger(__name__)

CHAMPION, CHALLENGER = "champion", "challenger"
"""Aliases of the best version of a model and of the newest; one version may have both."""
ADAPTER = "adapter.tar"
MODEL = "adapter"
LOADER = "photoflux.pyfunc"
"""Module by which MLflow loads a registered adapter; given by name, so that torch is not imported to register one."""
NOTE_CHARS, SHOWN_CHARS = 2000, 80
ABANDONED_AFTER_MS = 3_600_000
SCHEME, ARTIFACTS = "photoflux-artifacts", "artifacts"
"""URI scheme of the local registry's files, which lie in this folder of the state folder: that may be moved."""
LOCATIONS = (
    ("experiments", "artifact_location", 0), ("runs", "artifact_uri", 2), ("logged_models", "artifact_location", 3),
    ("model_versions", "storage_location", 3),
)  # fmt: skip
"""MLflow's tables and columns that hold locations, and how many of a location's last names lie below that folder."""
DATABASE_TIMEOUT_S = 60.0
ChooseVersions = Callable[[Sequence[int]], Collection[int]]
"""Given the numbers of all versions of a model, returns those to delete."""
DEFAULT_ROOT = "_MLFLOW_SERVER_ARTIFACT_ROOT"
"""Environment variable with the artifact root of MLflow's experiment 0, which we put nothing into."""
BATCH = {"params": 100, "metrics": 1000}  # what the tracking API takes in one call


IDENTITY = {
    "subject": ("subject", "import_photos.subject_id (--subject)"),
    "class_noun": ("class noun", "import_photos.class_noun (--class-noun)"),
    "trigger": ("trigger", "import_photos.trigger (--trigger)"),
}
"""Tags of a registered model that never change, with what a person calls each and where it is given."""
VERSION = re.compile(r"[1-9][0-9]{0,8}")
ALIAS = re.compile(r"(?![0-9]+$)[A-Za-z0-9_-]{1,255}")
"""A reference to a version of a model: its number, or an alias as MLflow takes them."""


def parse_model(text: str) -> tuple[str, str]:
    """`NAME`, `NAME@alias` or `NAME@3` as name and reference, which is the champion unless one is given.

    Raises InputError.
    """
    name, _, reference = text.partition("@")
    return check_name(name), check_reference(reference or CHAMPION)


def check_name(name: str) -> str:
    """The name itself. Raises InputError for one that no registered model can have."""
    if not re.fullmatch(MODEL_NAME, name):
        raise InputError(
            f"no model is called {_shorten(name)}: names are 1-63 of a-z, 0-9, - and _, such as rex-2; see `make mlflow`"
        )
    return name


def check_reference(reference: str) -> str:
    """The reference itself. Raises InputError for what is neither an alias nor the number of a version."""
    if not (_is_number(reference) or ALIAS.fullmatch(reference)):
        raise InputError(
            f"{_shorten(reference)} is no version of a model: write its number, as in @3, or an alias, as in @{CHAMPION}"
        )
    return reference


def _is_number(reference: str) -> bool:
    return bool(VERSION.fullmatch(reference))


def _shorten(text: str) -> str:
    quoted = repr(text)  # may be ten times as long: it escapes characters
    return quoted if len(quoted) <= SHOWN_CHARS else f"{quoted[:SHOWN_CHARS]}…{quoted[-1]}"


@dataclass(frozen=True)
class Record:
    """What the registry keeps about one adapter.

    `adapter` is the stored file (sealed under `key`), `digest` the SHA-256 of its plaintext. `curves` maps a name to
    (step, value) pairs, `files` a path below the run's artifacts to a file; `prompt` is an example of use.
    """

    adapter: Path
    digest: str
    subject: str
    prompt: str
    key: str
    experiment: str
    note: str
    params: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    curves: Mapping[str, Sequence[tuple[int, float]]] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, Path] = field(default_factory=dict)

    @property
    def identity(self) -> dict[str, str]:
        """Subject, class noun and trigger, as far as they are known: the same for all versions of one model."""
        known = {"subject": self.subject, **self.tags}
        return {kind: known[kind] for kind in IDENTITY if kind in known}


@dataclass(frozen=True)
class Version:
    """One version of a registered model."""

    name: str
    number: int
    run_id: str
    source: str
    tags: Mapping[str, str]

    @property
    def digest(self) -> str:
        return self.tags["adapter"]


class Registry:
    """The MLflow server of the settings, or SQLite and a folder under `state_dir`."""

    def __init__(self) -> None:
        _configure_logging()
        settings = get_settings()
        self._state = settings.state_dir.absolute()
        self.local = not settings.tracking_uri
        self.uri = settings.tracking_uri or sqlite_url(self._state / "mlflow.db")

    @contextmanager
    def registered(self, name: str, record: Record) -> Iterator[Version]:
        """Register `record` under `name`; yields its version, the existing one where this adapter was registered before.

        A new version, its run and its files are deleted again if the block raises. The version is created last, so that the
        registry never shows an incomplete one. Raises InputError when the name belongs to another subject or the registry
        cannot be reached.
        """
        with self._registration_lock(), self._one_sentence_errors(), ExitStack() as undo:
            self.check_same_subject(name, record.identity)
            version = self.find_version(name, record.digest)
            if version is None:
                self._drop_abandoned(record)
                run_id = self._record_run(record, name, undo)
                model_id = self._record_model(record, run_id, undo)
                self._client.set_terminated(run_id)
                version = self._create_version(name, record, (run_id, model_id), undo)
            yield version
            undo.pop_all()

    @contextmanager
    def aliased(self, version: Version, alias: str) -> Iterator[None]:
        """Set an alias to a version; if the block raises, it is set back, unless another process has moved it since.

        It is gone where what it pointed at is gone, too.
        """
        before = self.get_version(version.name, alias)
        with self._one_sentence_errors():
            self._client.set_registered_model_alias(version.name, alias, str(version.number))
        try:
            yield
        except BaseException:
            now = self.get_version(version.name, alias)
            if now is None or now.number != version.number:
                raise
            if before and self.get_version(version.name, str(before.number)):
                self._client.set_registered_model_alias(version.name, alias, str(before.number))
            else:
                self._client.delete_registered_model_alias(version.name, alias)
            raise

    def find_version(self, name: str, digest: str) -> Version | None:
        """The version of this adapter under `name`, if it was registered before."""
        with self._one_sentence_errors():
            wanted = f"name = '{check_name(name)}' and tags.adapter = '{digest}'"
            found = self._client.search_model_versions(wanted, max_results=1)
        return _as_version(found[0]) if found else None

    def get_version(self, name: str, reference: str) -> Version | None:
        """The version of an alias or a number; None where there is none. Raises InputError for what can be neither."""
        check_name(name)
        ask = self._client.get_model_version if _is_number(reference) else self._client.get_model_version_by_alias
        with self._one_sentence_errors():
            found = _get_or_none(ask, name, check_reference(reference))
        return _as_version(found) if found else None

    def versions(self, name: str) -> list[Version]:
        """All versions of a model, oldest first."""
        with self._one_sentence_errors():
            found = list(_paginate(self._client.search_model_versions, f"name = '{check_name(name)}'"))
        return sorted((_as_version(one) for one in found), key=lambda version: version.number)

    def set_tags(self, version: Version, tags: Mapping[str, str]) -> Version:
        """Set tags of a version; those that have the value already are not written. Returns the version with them."""
        with self._one_sentence_errors():
            for key in (key for key, value in tags.items() if version.tags.get(key) != value):
                self._client.set_model_version_tag(version.name, str(version.number), key, tags[key])
        return replace(version, tags={**version.tags, **tags})

    def download_document(self, version: Version, name: str) -> Path | None:
        """A file that was recorded with a version, as it was stored (sealed or not); None where there is none of that name."""
        import mlflow

        with self._one_sentence_errors():
            # it lists all, in one answer
            if name not in {file.path for file in self._client.list_artifacts(version.run_id)}:
                return None
            return Path(
                mlflow.artifacts.download_artifacts(run_id=version.run_id, artifact_path=name, tracking_uri=self.uri)
            )

    def names(self) -> list[str]:
        """The names of all registered models."""
        with self._one_sentence_errors():
            return [model.name for model in _paginate(self._client.search_registered_models)]

    def aliases(self, name: str) -> dict[str, int]:
        """Alias → version number of a registered model; empty when there is no such model."""
        model = self._registered(name)
        return {alias: int(number) for alias, number in model.aliases.items()} if model else {}

    def erase(self, name: str, choose: ChooseVersions = frozenset) -> int:
        """Delete versions of a registered model, with their runs and files, for good; returns how many.

        `choose` says which, by default all; with the last version the name is deleted. A server keeps the rows of deleted runs
        until `mlflow gc`; they hold numbers and random ids.
        """
        versions_of = f"name = '{check_name(name)}'"
        with self._registration_lock(), self._one_sentence_errors():
            found = [_as_version(one) for one in _paginate(self._client.search_model_versions, versions_of)]
            chosen = choose([version.number for version in found])
            versions = [version for version in found if version.number in chosen]
            runs, models = {v.run_id for v in versions}, {v.source.removeprefix("models:/") for v in versions}
            for model_id in models:
                self._drop_model(model_id)
            for run_id in runs:
                self._drop_run(run_id)
            if self.local:
                self._purge(runs, models)
            # Versions go last: by them an erasure that is repeated after a kill finds what the killed one left.
            for version in versions:
                self._client.delete_model_version(name, str(version.number))
            if self._registered(name):
                self._drop_if_empty(name)
        return len(versions)

    def _purge(self, runs: set[str], models: set[str]) -> None:
        """Delete rows, as `mlflow gc` does: MLflow's own deletions only flag them."""
        from mlflow.tracking._tracking_service.utils import _get_store

        store = _get_store(self.uri)
        for run_id in runs:
            _get_or_none(store._hard_delete_run, run_id)
        for model_id in models:
            _get_or_none(store._hard_delete_logged_model, model_id)

    def download_adapter(self, version: Version) -> tuple[Path, str]:
        """The stored adapter file of a version (downloaded from a server) and the key URI it is sealed under."""
        import mlflow

        if not {"adapter", "key"} <= version.tags.keys():
            raise InputError(
                f"{version.name} version {version.number} is no adapter of PhotoFlux; name another version"
            )
        model_id = version.source.removeprefix("models:/")
        with self._one_sentence_errors():
            folder = self._client.get_logged_model(model_id).artifact_location
            file = mlflow.artifacts.download_artifacts(f"{folder}/data/{ADAPTER}", tracking_uri=self.uri)
        return Path(file), version.tags["key"]

    @cached_property
    def _client(self) -> MlflowClient:
        import mlflow
        from mlflow import MlflowClient

        if not self.uri.startswith(("http:", "https:")):
            allow_percent_signs()
        if self.local:  # MLflow would put the working folder, unescaped, into an SQL statement
            os.environ[DEFAULT_ROOT] = (self._state / "artifacts").as_uri()
        self._state.mkdir(parents=True, exist_ok=True)
        mlflow.set_tracking_uri(self.uri)  # the registry resolves models:/ through the process-wide setting
        mlflow.set_registry_uri(self.uri)
        _register_scheme()  # also for a server: it may serve what was a local registry
        client = MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)
        if self.local:
            self._relocate_artifacts()
        return client

    def _relocate_artifacts(self) -> None:
        """Replace folders of this machine by `photoflux-artifacts:/…` in the database, so that the state folder may be moved.

        MLflow writes its own default folder, and older versions of ours wrote the state folder of that time.
        Raises InputError where the database cannot be written.
        """
        try:
            with closing(sqlite3.connect(self._state / "mlflow.db", timeout=DATABASE_TIMEOUT_S)) as database, database:
                for table, column, depth in LOCATIONS:
                    local = f"SELECT rowid, {column} FROM {table} WHERE {column} LIKE 'file:%' OR {column} LIKE '/%'"
                    for row, location in database.execute(local).fetchall():
                        if relocated := self._relocated(location, depth):
                            database.execute(f"UPDATE {table} SET {column} = ? WHERE rowid = ?", (relocated, row))
        except sqlite3.OperationalError as error:
            raise InputError(
                f"the registry at {self.uri} still names the folder it was in, and cannot be corrected ({error}); see that it "
                "can be written and is not in use, and try again"
            ) from error

    def _relocated(self, location: str, depth: int) -> str | None:
        """A location by our scheme, by its last `depth` names; None while its files are at the old place alone."""
        folder = Path(unquote(urlsplit(location).path) if location.startswith("file:") else location)
        names = folder.parts[-depth:] if depth else ()
        here = self._state.joinpath(ARTIFACTS, *names)
        return f"{SCHEME}:/{'/'.join(names)}" if not depth or here.exists() or not folder.exists() else None

    def _record_run(self, record: Record, name: str, undo: ExitStack) -> str:
        """A run with parameters, metrics, curves, tags and files; returns its id."""
        from mlflow.entities import Metric, Param

        client, now = self._client, int(time.time() * 1000)
        tags = {**record.tags, "adapter": record.digest, "subject": record.subject, "mlflow.note.content": record.note}
        run_id = client.create_run(self._experiment(record.experiment), run_name=name, tags=tags).info.run_id
        undo.callback(self._drop_run, run_id)
        params = [Param(key, str(value)) for key, value in record.params.items()]
        points = [(key, value, 0) for key, value in record.metrics.items()]
        points += [(key, value, step) for key, curve in record.curves.items() for step, value in curve]
        metrics = [Metric(key, float(value), now, int(step)) for key, value, step in points]
        for some in _batches(params, BATCH["params"]):
            client.log_batch(run_id, params=some)
        for some in _batches(metrics, BATCH["metrics"]):
            client.log_batch(run_id, metrics=some)
        for target, file in record.files.items():
            self._log_file(run_id, target, file)
        return str(run_id)

    def _record_model(self, record: Record, run_id: str, undo: ExitStack) -> str:
        """The adapter as a python_function model of that run; returns the model's id."""
        import mlflow.pyfunc
        from mlflow.models import Model

        experiment = self._experiment(record.experiment)
        logged = self._client.create_logged_model(experiment, name=MODEL, source_run_id=run_id, model_type="lora")
        undo.callback(self._drop_model, logged.model_id)
        with tempfile.TemporaryDirectory(prefix="photoflux-") as scratch:
            data, folder = Path(scratch) / ADAPTER, Path(scratch) / "model"
            data.symlink_to(record.adapter.resolve())
            mlflow.pyfunc.save_model(
                str(folder),
                loader_module=LOADER,
                data_path=str(data),
                mlflow_model=Model(model_id=logged.model_id, run_id=run_id, artifact_path=logged.artifact_location),
                signature=_signature(),
                input_example=_input_example(record.prompt),
                model_config={"key": record.key, "base": ""},
                pip_requirements=_requirements(),
                metadata={"adapter": record.digest, "subject": record.subject},
            )
            self._client.log_model_artifacts(logged.model_id, str(folder))
        self._client.finalize_logged_model(logged.model_id, "READY")
        return str(logged.model_id)

    def _create_version(self, name: str, record: Record, ids: tuple[str, str], undo: ExitStack) -> Version:
        client, (run_id, model_id) = self._client, ids
        self._create_model(name, record, undo)
        tags = {**record.tags, "adapter": record.digest, "subject": record.subject, "key": record.key}
        created = client.create_model_version(
            name, f"models:/{model_id}", run_id, tags=tags, description=record.note[:NOTE_CHARS], model_id=model_id
        )
        undo.callback(client.delete_model_version, name, created.version)
        return _as_version(created)

    def _create_model(self, name: str, record: Record, undo: ExitStack) -> None:
        """Create the registered model with its identity tags; an existing one gets those that it lacks."""
        from mlflow.exceptions import MlflowException

        try:
            self._client.create_registered_model(name, tags=dict(record.identity))
            undo.callback(self._drop_if_empty, name)
        except MlflowException as error:
            if not _already_exists(error):
                raise
            self.check_same_subject(name, record.identity)  # another machine may have been first
            model = self._registered(name)
            for kind in record.identity.keys() - (model.tags.keys() if model else set()):
                self._client.set_registered_model_tag(name, kind, record.identity[kind])
                undo.callback(self._client.delete_registered_model_tag, name, kind)

    def _drop_if_empty(self, name: str) -> None:
        """Delete a registered model unless another machine has added a version meanwhile."""
        if not self._client.search_model_versions(f"name = '{name}'", max_results=1):
            self._client.delete_registered_model(name)

    def check_same_subject(self, name: str, wanted: Mapping[str, str]) -> None:
        """Raises InputError, which says what to do, where the name is that of another subject."""
        with self._one_sentence_errors():
            registered = self._identity(name)
        for kind, (what, parameter) in IDENTITY.items():
            if kind in registered and kind in wanted and registered[kind] != wanted[kind]:
                raise InputError(
                    f"model '{name}' holds the {what} '{registered[kind]}', not '{wanted[kind]}'; choose another register.name "
                    f"(--name), or, if it is the same subject, give {parameter} '{registered[kind]}'"
                )

    def _identity(self, name: str) -> dict[str, str]:
        """Identity tags of a registered model; those that it lacks are taken from its newest version."""
        if (model := self._registered(name)) is None:
            return {}
        newest = self._client.search_model_versions(f"name = '{name}'", 1, ["version_number DESC"])
        return {**(newest[0].tags if newest else {}), **model.tags}

    def _registered(self, name: str) -> RegisteredModel | None:
        with self._one_sentence_errors():
            found: RegisteredModel | None = _get_or_none(self._client.get_registered_model, check_name(name))
        return found

    def _experiment(self, name: str) -> str:
        from mlflow.exceptions import MlflowException

        known = self._client.get_experiment_by_name(name)
        if known:
            return str(known.experiment_id)
        folder = f"{SCHEME}:/" if self.local else None
        try:
            return str(self._client.create_experiment(name, artifact_location=folder))
        except MlflowException as error:
            if not _already_exists(error):
                raise
            return str(self._client.get_experiment_by_name(name).experiment_id)  # another machine was first

    def _log_file(self, run_id: str, target: str, file: Path) -> None:
        folder, _, name = target.rpartition("/")
        with tempfile.TemporaryDirectory(prefix="photoflux-") as scratch:
            named = Path(scratch) / name
            named.symlink_to(file.resolve())
            self._client.log_artifact(run_id, str(named), folder or None)

    def _drop_abandoned(self, record: Record) -> None:
        """Remove the runs of this adapter that a killed process left unfinished."""
        before = int(time.time() * 1000) - (0 if self.local else ABANDONED_AFTER_MS)
        wanted = f"attributes.status = 'RUNNING' and tags.adapter = '{record.digest}'"
        experiment = self._experiment(record.experiment)
        search = self._client.search_logged_models
        # listed first: pages shift when rows are deleted
        for run in list(_paginate(self._client.search_runs, [experiment], wanted)):
            if run.info.start_time <= before:
                for model in list(_paginate(search, [experiment], f"source_run_id = '{run.info.run_id}'")):
                    self._drop_model(model.model_id)
                self._drop_run(run.info.run_id)

    def _drop_run(self, run_id: str) -> None:
        """Files first, then the row that says where they are; what is gone already is no error."""
        if run := _get_or_none(self._client.get_run, run_id):
            self._delete_files(run.info.artifact_uri)
            if run.info.lifecycle_stage == "active":
                self._client.set_terminated(run_id, "FAILED")
                self._client.delete_run(run_id)

    def _drop_model(self, model_id: str) -> None:
        if model := _get_or_none(self._client.get_logged_model, model_id):
            self._delete_files(model.artifact_location)
            self._client.delete_logged_model(model_id)

    def _delete_files(self, location: str) -> None:
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        get_artifact_repository(location, tracking_uri=self.uri).delete_artifacts()

    @contextmanager
    def _registration_lock(self) -> Iterator[None]:
        """One registration at a time on this machine, so that two do not both become champion."""
        self._state.mkdir(parents=True, exist_ok=True)
        with (self._state / "registry.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    @contextmanager
    def _one_sentence_errors(self) -> Iterator[None]:
        """Raise MLflow's errors as InputError of one sentence."""
        from mlflow.exceptions import MlflowException

        try:
            yield
        except MlflowException as error:
            first = str(error).strip().splitlines()[0]
            raise InputError(f"the registry at {self.uri} refused: {first}; check PHOTOFLUX_TRACKING_URI") from error


def open_artifacts(
    artifact_uri: str, tracking_uri: str | None = None, registry_uri: str | None = None
) -> LocalArtifactRepository:
    """The artifact repository at `photoflux-artifacts:/…`: a folder in the state folder of this process.

    MLflow finds this by the entry point in pyproject.toml. Raises MlflowException for a location outside that folder: the key
    file lies beside it, and MLflow's pages serve any file that an artifact's location names.
    """
    from mlflow.exceptions import MlflowException
    from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

    names = [name for name in unquote(urlsplit(artifact_uri).path).split("/") if name]
    if ".." in names:
        raise MlflowException.invalid_parameter_value(f"{artifact_uri}: leaves the folder of artifacts")
    folder = get_settings().state_dir.absolute().joinpath(ARTIFACTS, *names)
    return LocalArtifactRepository(folder.as_uri(), tracking_uri, registry_uri)


def _register_scheme() -> None:
    """Register our scheme with this process's MLflow, also where the installed package has no entry point yet."""
    from mlflow.store.artifact.artifact_repository_registry import _artifact_repository_registry

    _artifact_repository_registry.register(SCHEME, open_artifacts)


def _signature() -> ModelSignature:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema

    inputs = Schema([ColSpec("string", "prompt"), ColSpec("long", "seed", required=False)])
    return ModelSignature(inputs=inputs, outputs=Schema([ColSpec("string", "image")]))


def _input_example(prompt: str) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame({"prompt": [prompt], "seed": [0]})


def _requirements() -> list[str]:
    from photoflux import __version__

    return [f"photoflux[track,train]=={__version__}"]


def _as_version(found: Any) -> Version:
    return Version(found.name, int(found.version), str(found.run_id), str(found.source), dict(found.tags))


def _paginate(search: Callable[..., PagedList[Any]], *wanted: Any) -> Iterator[Any]:
    """All results of a search of the client, which answers in pages (of a hundred models by default)."""
    token = None
    while True:
        page = search(*wanted, page_token=token)
        yield from page
        if not (token := page.token):
            return


def _get_or_none(get: Callable[..., Any], *what: str) -> Any:
    """The result of `get`; None where MLflow says that there is no such model, version or alias."""
    from mlflow.exceptions import MlflowException

    try:
        return get(*what)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST" or "alias" in str(error).lower():
            return None  # MLflow reports an unknown alias as an invalid parameter
        raise


def _already_exists(error: Any) -> bool:
    return bool(error.error_code == "RESOURCE_ALREADY_EXISTS")


def _batches(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    yield from (items[start : start + size] for start in range(0, len(items), size))


def allow_percent_signs() -> None:
    """Let MLflow run from a folder with a percent sign in its name, which Alembic would interpolate."""
    from mlflow.store.db import utils

    migrations = str(Path(utils.__file__).parents[1] / "db_migrations").replace("%", "%%")
    if "%" in migrations and not isinstance(utils._get_alembic_config, partial):
        utils._get_alembic_config = partial(utils._get_alembic_config, alembic_dir=migrations)


def main(arguments: Sequence[str] | None = None) -> None:
    """`python -m photoflux.tracking …`: MLflow's own command line."""
    from mlflow.cli import cli

    allow_percent_signs()
    cli(arguments)


def _configure_logging() -> None:
    """No telemetry or progress bars, and of MLflow's and Alembic's logs only errors."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)


if __name__ == "__main__":
    main()
