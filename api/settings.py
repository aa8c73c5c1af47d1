"""What the service is told by its environment, beyond what the library is."""

from __future__ import annotations

from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, model_validator

from photoflux.settings import Settings

LOOPBACK = ("127.0.0.1", "::1", "localhost")


class ApiSettings(Settings):
    """Built by `get_api_settings()`, never at import."""

    database_url: str = Field(default="", description="SQLAlchemy URL of the records; empty: SQLite in state_dir")
    blobs: str = Field(
        default="", description="folder or gs://bucket of sealed photos and pictures; empty: in state_dir"
    )
    public_url: str = Field(default="http://127.0.0.1:8000", description="where browsers reach the service")
    provider: Literal["embedded", "external"] = Field(
        default="embedded", description="who signs people in: this machine's own provider, or the one at oidc_issuer"
    )
    oidc_issuer: str = Field(default="https://accounts.google.com", description="OpenID provider, when external")
    oidc_client_id: str = Field(default="", description="what the provider calls this service")
    oidc_client_secret: SecretStr = Field(default=SecretStr(""), description="the provider's secret for it")
    access_token_s: int = Field(default=600, ge=60, le=900, description="how long an access token is good for")
    session_days: int = Field(default=30, ge=1, le=90, description="how long a sign-in lasts at most")

    @property
    def records_url(self) -> str:
        """The database of the records."""
        return self.database_url or f"sqlite:///{self.state_dir / 'photoflux.db'}"

    @property
    def secure(self) -> bool:
        """Whether browsers come over TLS, so that cookies are kept from anything else."""
        return urlsplit(self.public_url).scheme == "https"

    @model_validator(mode="after")
    def _fit_for_production(self) -> ApiSettings:
        """What is only meant for one machine is refused before anything starts."""
        host = urlsplit(self.public_url).hostname or ""
        if self.environment == "production":
            _require(self.provider == "external", "PHOTOFLUX_PROVIDER: the embedded provider is for one machine only")
            _require(self.secure, "PHOTOFLUX_PUBLIC_URL: production is reached over https")
            _require(not self.records_url.startswith("sqlite"), "PHOTOFLUX_DATABASE_URL: production keeps PostgreSQL")
            _require(bool(self.oidc_client_id), "PHOTOFLUX_OIDC_CLIENT_ID: say what the provider calls this service")
        if self.provider == "embedded":
            _require(host in LOOPBACK, "PHOTOFLUX_PUBLIC_URL: the embedded provider serves loopback addresses only")
        return self


def _require(fact: bool, otherwise: str) -> None:
    if not fact:
        raise ValueError(otherwise)


def get_api_settings() -> ApiSettings:
    """The settings as the environment has them now."""
    return ApiSettings()
