"""What the service is told by its environment, beyond what the library is."""

from __future__ import annotations

import ssl
from typing import Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator
from pydantic_settings import SettingsConfigDict

from photoflux.settings import Settings

LOOPBACK = ("127.0.0.1", "::1", "localhost")


class Keep(BaseModel):
    """How many days things are kept; 0: until they are deleted."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    photos: int = Field(default=90, ge=0, description="photos, after the subject's last run or upload")
    models: int = Field(default=180, ge=0, description="models of a subject, after its last picture or run")
    runs: int = Field(default=7, ge=0, description="sealed files of a pipeline, after it ended")
    pictures: int = Field(default=0, ge=0, description="generated pictures and their prompts")
    work: int = Field(default=30, ge=0, description="ids and states of durable work that has ended")
    notices: int = Field(default=30, ge=0, description="what webhooks were told")
    complaints: int = Field(default=365, ge=0, description="complaints, after they were closed")
    signing_keys: int = Field(default=30, ge=0, description="days after which tokens are signed with a new key")
    tombstones: int = Field(default=365, ge=0, description="receipts of erasures; longer than any backup")


class ApiSettings(Settings):
    """Built by `get_api_settings()`, never at import."""

    model_config = SettingsConfigDict(populate_by_name=True)

    database_url: str = Field(default="", description="SQLAlchemy URL of the records; empty: SQLite in state_dir")
    public_url: str = Field(default="http://127.0.0.1:8000", description="where browsers reach the service")
    provider: Literal["embedded", "external"] = Field(
        default="embedded", description="who signs people in: this machine's own provider, or the one at oidc_issuer"
    )
    oidc_issuer: str = Field(default="https://accounts.google.com", description="OpenID provider, when external")
    oidc_client_id: str = Field(default="", description="what the provider calls this service")
    oidc_client_secret: SecretStr = Field(default=SecretStr(""), description="the provider's secret for it")
    access_token_s: int = Field(default=600, ge=60, le=900, description="how long an access token is good for")
    session_days: int = Field(default=30, ge=1, le=90, description="how long a sign-in lasts at most")
    tls_cert: str = Field(
        default="", description="certificate chain to serve over TLS with; empty: plain, or a proxy's"
    )
    tls_key: str = Field(default="", description="the certificate's private key")
    ca_file: str = Field(default="", description="certificate authority that the service's own address is signed by")
    listen: str = Field(default="127.0.0.1", description="address that the service listens on")
    engine_url: str = Field(default="http://127.0.0.1:8001", description="where the engine answers")
    engine_host: str = Field(default="127.0.0.1", description="address that the engine listens on")
    engine_port: int = Field(default=8001, alias="AIP_HTTP_PORT", description="its port; Vertex AI sets AIP_HTTP_PORT")
    health_route: str = Field(default="/health", alias="AIP_HEALTH_ROUTE", description="as Vertex AI sets it")
    predict_route: str = Field(default="/predict", alias="AIP_PREDICT_ROUTE", description="as Vertex AI sets it")
    engine_waiting: int = Field(default=64, ge=1, le=10_000, description="pictures that may wait to be drawn")
    engine_host_bytes: int = Field(default=8 << 30, ge=0, description="adapters kept in memory")
    engine_device_bytes: int = Field(default=2 << 30, ge=0, description="adapters kept on the device")
    orchestrator: Literal["local", "vertex", "kubeflow"] = Field(default="local", description="what runs the pipeline")
    runs_at_once: int = Field(default=1, ge=1, le=64, description="fine-tunings that run at a time")
    run_defaults: dict[str, int | float | str] = Field(
        default={}, description="pipeline parameters of every run, over those of params.yaml, as JSON"
    )
    price_per_hour: float = Field(default=0.0, ge=0, description="what an hour of fine-tuning costs, for estimates")
    gcp_project: str = Field(default="", description="project of Vertex AI Pipelines")
    gcp_location: str = Field(default="europe-west4", description="region of Vertex AI Pipelines")
    pipeline_root: str = Field(default="", description="gs:// folder of pipelines that run elsewhere")
    pipeline_image: str = Field(default="", description="image of the pipeline's steps, by digest")
    pipeline_account: str = Field(default="", description="service account of the pipeline's steps")
    kubeflow_host: str = Field(default="", description="address of a Kubeflow Pipelines server")
    limits: str = Field(default="memory://", description="where requests are counted: memory:// or redis://host:port")
    rates: dict[str, str] = Field(default={}, description="requests allowed by kind, over the usual, as JSON")
    body_s: float = Field(default=60.0, gt=0, description="seconds in which a request's body must have arrived")
    uploads_at_once: int = Field(default=8, ge=1, description="uploads that are held in memory at a time")
    metrics_token: SecretStr = Field(
        default=SecretStr(""), description="what /metrics is asked with; empty: it answers on loopback only"
    )
    picture_check: Literal["none", "vision"] = Field(
        default="none", description="who looks at photos and pictures: nobody, or Google's Cloud Vision"
    )
    blocked_hashes: str = Field(
        default="", description="file with hashes of pictures that are never taken or given out"
    )
    keep: Keep = Field(default=Keep(), description="days that things are kept, as JSON")
    subjects_max: int = Field(default=50, ge=1, description="subjects a person may have")
    photos_max: int = Field(default=40, ge=1, description="photos a subject may have")
    run_hours: float = Field(default=12.0, gt=0, description="hours after which a run is ended")
    runs_a_day: int = Field(default=10, ge=1, description="fine-tunings a person may start a day")
    generations_waiting: int = Field(default=8, ge=1, description="generations of a person that may wait at a time")

    @property
    def records_url(self) -> str:
        """The database of the records."""
        return self.database_url or f"sqlite:///{self.state_dir / 'photoflux.db'}"

    @property
    def issuer(self) -> str:
        """Who signs tokens: the service, by the address that browsers know."""
        return self.public_url.rstrip("/")

    @property
    def jwks_url(self) -> str:
        """Where the keys of those tokens are published."""
        return f"{self.issuer}/api/auth/jwks"

    @property
    def trusted(self) -> ssl.SSLContext | bool:
        """Whom to trust when asking the service itself."""
        return ssl.create_default_context(cafile=self.ca_file) if self.ca_file else True

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
            _require(self.picture_check != "none", "PHOTOFLUX_PICTURE_CHECK: production has pictures looked at: vision")
            _require(
                bool(self.metrics_token.get_secret_value()), "PHOTOFLUX_METRICS_TOKEN: metrics are not for everybody"
            )
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
