"""Settings of this installation; PHOTOFLUX_* in the environment overrides each field."""

from __future__ import annotations

from pathlib import Path
from typing import Literal
from urllib.parse import quote

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Built by `get_settings()`, never at import."""

    model_config = SettingsConfigDict(env_prefix="PHOTOFLUX_", extra="ignore", hide_input_in_errors=True)

    state_dir: Path = Field(default=Path(".photoflux"), description="registry, caches and records of this machine")
    models_dir: Path = Field(default=Path("models"), description="base specs and their weights")
    expectations_dir: Path = Field(
        default=Path("data/expectations"), description="Great Expectations suites that decide about photos"
    )
    runs_dir: Path = Field(default=Path("runs"), description="one folder per pipeline run")
    tracking_uri: str = Field(default="", description="MLflow server; empty: SQLite in state_dir")
    device: str = Field(default="", description="torch device; empty: cuda when there is one, else cpu")
    environment: Literal["", "development", "production"] = Field(
        default="",
        description="empty: this machine alone, and nothing that is reached from elsewhere; development: trying it on a"
        " network; production: refuses whatever is only meant for one machine",
    )
    keyring: str = Field(
        default="", description="folder or gs://bucket of wrapped keysets; empty: a folder in state_dir"
    )
    kek_uri: str = Field(
        default="", description="key that wraps keysets: local-kms:// or gcp-kms://; empty: a key file"
    )
    blobs: str = Field(default="", description="folder or gs://bucket of sealed objects; empty: a folder in state_dir")
    base: str = Field(
        default="pocket", description="base that the service draws with: a name in models/ or a spec .yaml"
    )
    threads: int = Field(default=0, ge=0, description="CPU threads for torch; 0: all cores")

    @property
    def cache_dir(self) -> Path:
        return self.state_dir / "cache"

    @property
    def blobs_uri(self) -> str:
        """Where sealed objects are."""
        return self.blobs or str(self.state_dir / "blobs")


def sqlite_url(file: Path) -> str:
    """The SQLAlchemy URL of a SQLite file, with its path quoted, since a `?` in it would begin options."""
    # The driver is named because MLflow, without it, makes a folder of the path after sqlite:/// without unquoting it.
    return f"sqlite+pysqlite:///{quote(str(file), safe='/ +')}"


def get_settings() -> Settings:
    """The settings as the environment has them now."""
    return Settings()
