"""Settings of the service, read from `PHOTOFLUX_*` variables, beyond those of the library."""

from __future__ import annotations

import ipaddress
import logging
import re
import ssl
import sys
from collections.abc import Iterator
from typing import Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import SettingsConfigDict, SettingsError

from photoflux.settings import Settings, sqlite_url
from photoflux.vault.kek import GOOGLE

log = logging.getLogger(__name__)

LOOPBACK = ("127.0.0.1", "::1", "localhost")
BUCKET_SCHEME, METRICS_TOKEN_CHARS = "gs://", 16
IMAGE_BY_DIGEST = re.compile(r"[^@\s]+@sha256:[0-9a-f]{64}")


class RetentionPeriods(BaseModel):
    """How many days things are kept; 0: until they are deleted."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    photos: int = Field(default=90, ge=0, description="photos, after the subject's last run or upload")
    models: int = Field(default=180, ge=0, description="models of a subject, after its last picture or run")
    runs: int = Field(default=7, ge=0, description="sealed files of a pipeline, after it ended")
    images: int = Field(default=0, ge=0, description="generated pictures and their prompts")
    work: int = Field(default=30, ge=0, description="ids and states of durable work that has ended")
    webhook_deliveries: int = Field(default=30, ge=0, description="messages to webhooks, after they ended")
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
    runs_at_once: int = Field(
        default=1, ge=1, le=64, description="fine-tunings that run at a time, in all workers together"
    )
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
    apis: int | None = Field(
        default=None, ge=1, description="API processes that share the records; empty: not said, so perhaps several"
    )
    trusted_proxies: str = Field(
        default="",
        description="addresses or networks of the proxies in front, by commas; they end TLS and limit connections",
    )
    connections_per_address: int = Field(
        default=256, ge=1, description="connections that an address may hold at a time"
    )
    limits: str = Field(default="memory://", description="where requests are counted: memory:// or redis://host:port")
    rates: dict[str, str] = Field(default={}, description="requests allowed by kind, over the usual, as JSON")
    body_s: float = Field(default=60.0, gt=0, description="seconds in which a request's body must have arrived")
    uploads_at_once: int = Field(
        default=16, ge=1, description="uploads that arrive at a time; an eighth of them one person's"
    )
    metrics_token: SecretStr = Field(
        default=SecretStr(""), description="what /metrics is asked with; empty: it answers on loopback only"
    )
    image_check: Literal["none", "vision"] = Field(
        default="none", description="who looks at photos and pictures: nobody, or Google's Cloud Vision"
    )
    blocked_hashes: str = Field(
        default="", description="file with hashes of pictures that are never taken or given out"
    )
    retention: RetentionPeriods = Field(default=RetentionPeriods(), description="days that things are kept, as JSON")
    subjects_max: int = Field(default=50, ge=1, description="subjects a person may have")
    photos_max: int = Field(default=40, ge=1, description="photos a subject may have")
    run_hours: float = Field(default=12.0, gt=0, description="hours after which a run is ended")
    runs_a_day: int = Field(default=10, ge=1, description="fine-tunings a person may start a day")
    generations_waiting: int = Field(default=8, ge=1, description="generations of a person that may wait at a time")
    exports_a_day: int = Field(default=5, ge=1, description="exports a person may ask for a day")
    stored_bytes_max: int = Field(
        default=5_000_000_000, ge=1, description="bytes of photos, models and pictures a person may keep"
    )

    @property
    def records_url(self) -> str:
        """The database of the records."""
        return self.database_url or sqlite_url(self.state_dir / "photoflux.db")

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
        """How to verify the service's own certificate: by `ca_file`, or by the system's authorities."""
        return ssl.create_default_context(cafile=self.ca_file) if self.ca_file else True

    @property
    def secure(self) -> bool:
        """Whether the public address is https; cookies are then sent over TLS only."""
        return urlsplit(self.public_url).scheme == "https"

    @property
    def public_host(self) -> str:
        """The host of the public address, without brackets and port; empty where it has none."""
        return _host(self.public_url)

    @property
    def one_machine(self) -> bool:
        """Whether everything is reached from this machine alone, so that the embedded provider and open metrics are allowed."""
        return self.environment != "production" and not self._exposed_settings()

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences to show when the service starts."""
        if self.environment != "development" or self.one_machine:
            return ()
        names = ", ".join(self._exposed_settings())
        return (
            f"PHOTOFLUX_ENVIRONMENT: development on a network ({names}), for trying it out: everybody who reaches this "
            "machine reaches the service, and what production insists on is not asked for",
        )

    @model_validator(mode="after")
    def _check_settings(self) -> ApiSettings:
        """Raises ValueError with everything that is wrong at once; never with the given values, which may be secrets."""
        errors = [*_messages(self._field_errors()), *_messages(self._environment_errors())]
        if errors:
            raise ValueError("\n".join(errors))
        return self

    def _environment_errors(self) -> Iterator[tuple[bool, str, str]]:
        exposed = self._exposed_settings()
        if not self.environment and exposed:
            message = (
                f"is not set, which means this machine alone, but {', '.join(exposed)} is not loopback; set production "
                "(what is missing for it follows), or development to try it on a network"
            )
            yield False, "ENVIRONMENT", message
        if self.environment == "production" or (not self.environment and exposed):
            yield from self._production_errors()
        elif self.provider == "embedded":
            local = is_loopback(self.public_host) and is_loopback(self.listen)
            yield local, "PROVIDER", "the embedded provider serves loopback addresses only; set external"

    def _exposed_settings(self) -> list[str]:
        """The settings by which something answers, or is asked, beyond loopback."""
        hosts = {
            "PUBLIC_URL": self.public_host,
            "LISTEN": self.listen,
            "ENGINE_HOST": self.engine_host,
            "ENGINE_URL": _host(self.engine_url),
        }
        if self.tracking_uri.lower().startswith(("http:", "https:")):
            hosts["TRACKING_URI"] = _host(self.tracking_uri)
        return [f"PHOTOFLUX_{name}" for name, host in hosts.items() if not is_loopback(host)]

    def _field_errors(self) -> Iterator[tuple[bool, str, str]]:
        yield _is_origin(self.public_url), "PUBLIC_URL", "is an address such as https://photos.example, without a path"
        yield (
            _are_networks(self.trusted_proxies),
            "TRUSTED_PROXIES",
            ("holds addresses or networks, such as 10.0.0.0/24, by commas, and never the whole internet"),
        )
        if self.orchestrator == "vertex":
            yield bool(self.gcp_project), "GCP_PROJECT", "Vertex AI Pipelines run in a project; name it"
            yield (
                self.pipeline_root.startswith(BUCKET_SCHEME),
                "PIPELINE_ROOT",
                "pipelines that run elsewhere need a gs:// folder",
            )
        if self.orchestrator == "kubeflow":
            yield _is_private(self.kubeflow_host), "KUBEFLOW_HOST", "give the https:// address of Kubeflow Pipelines"
            yield (
                bool(self.pipeline_root),
                "PIPELINE_ROOT",
                "pipelines that run elsewhere need a folder, such as gs://…",
            )
        if self.orchestrator != "local":
            digest = bool(IMAGE_BY_DIGEST.fullmatch(self.pipeline_image))
            yield digest, "PIPELINE_IMAGE", "pipelines that run elsewhere use an image by digest: name@sha256:…"

    def _production_errors(self) -> Iterator[tuple[bool, str, str]]:
        url, proxies = self.records_url, bool(self.trusted_proxies.strip())
        in_front = "a proxy ends TLS and limits connections: name it, so that its clients can be told from each other"
        token = self.metrics_token.get_secret_value()
        yield self.provider == "external", "PROVIDER", "the embedded provider is for one machine only; set external"
        yield self.oidc_issuer.startswith("https://"), "OIDC_ISSUER", "a provider is asked over https only"
        yield bool(self.oidc_client_id), "OIDC_CLIENT_ID", "say what the provider calls this service"
        yield self.public_url.startswith("https://"), "PUBLIC_URL", "production is reached over https"
        yield proxies, "TRUSTED_PROXIES", in_front
        yield (
            _is_private(self.engine_url),
            "ENGINE_URL",
            "prompts and pictures go to the engine over https, or on loopback",
        )
        yield url.startswith("postgres"), "DATABASE_URL", "production keeps PostgreSQL: postgresql://…"
        yield self.kek_uri.startswith(GOOGLE), "KEK_URI", "production wraps keys with Cloud KMS: gcp-kms://…"
        yield self.keyring.startswith(BUCKET_SCHEME), "KEYRING", "production keeps keysets in a bucket: gs://…"
        yield self.blobs.startswith(BUCKET_SCHEME), "BLOBS", "production keeps objects in a bucket: gs://…"
        yield self.image_check != "none", "IMAGE_CHECK", "production has pictures looked at; set vision"
        enough = len(token) >= METRICS_TOKEN_CHARS
        yield (
            enough,
            "METRICS_TOKEN",
            f"metrics are not for everybody: a token of {METRICS_TOKEN_CHARS} characters or more",
        )
        shared = self.apis == 1 or not self.limits.startswith(("memory:", "async+memory:"))
        yield (
            shared,
            "LIMITS",
            "each API process would count for itself: set redis://…, or PHOTOFLUX_APIS=1 where there is one",
        )
        if re.match(r"https?:", self.tracking_uri, re.IGNORECASE):
            yield _is_private(self.tracking_uri), "TRACKING_URI", "the registry is asked over https, or on loopback"


def is_loopback(host: str) -> bool:
    """Whether a host, without brackets and port, is this machine by its name or its address."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _messages(facts: Iterator[tuple[bool, str, str]]) -> list[str]:
    return [f"PHOTOFLUX_{name}: {message}" for good, name, message in facts if not good]


def _host(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def _is_origin(url: str) -> bool:
    """Whether a URL is a scheme and a host, perhaps with a port, and nothing else."""
    try:
        parts = urlsplit(url)
        bare = not (parts.path.strip("/") or parts.query or parts.fragment) and "@" not in parts.netloc
        return bare and parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _is_private(url: str) -> bool:
    """Whether a URL is reached over https, or on loopback."""
    host = _host(url)
    return bool(host) and (url.lower().startswith("https://") or is_loopback(host))


SMALLEST_PREFIX = {4: 8, 6: 7}
"""By IP version, the shortest prefix of a trusted network: as the largest private ones have, 10.0.0.0/8 and fc00::/7."""


def _are_networks(text: str) -> bool:
    try:
        named = [ipaddress.ip_network(one.strip()) for one in text.split(",")] if text.strip() else []
        return all(one.prefixlen >= SMALLEST_PREFIX[one.version] for one in named)
    except ValueError:
        return False


def get_api_settings() -> ApiSettings:
    """The settings as the environment has them now. Raises ValidationError or SettingsError, without what was given."""
    return ApiSettings()


def settings_or_exit() -> ApiSettings:
    """The settings; what is wrong with them is printed, a line each, and ends the program with 2.

    To be called before `set_up_logs`, since these lines are for whoever starts the program, and have no request or time.
    """
    try:
        return get_api_settings()
    except (ValidationError, SettingsError) as error:
        sys.stderr.write("".join(f"error: {line}\n" for line in _error_lines(error)))
        raise SystemExit(2) from None


def log_warnings(settings: ApiSettings) -> None:
    """Log the warnings of the settings."""
    for message in settings.warnings:
        log.warning("%s", message)


def _error_lines(error: ValidationError | SettingsError) -> list[str]:
    if isinstance(error, SettingsError):  # not JSON where JSON belongs
        field = re.search(r'field "(\w+)"', str(error))
        return [f"PHOTOFLUX_{field[1].upper()}: is not JSON" if field else "a setting cannot be read"]
    lines: list[str] = []
    for one in error.errors(include_input=False, include_url=False):
        message = one["msg"].removeprefix("Value error, ")
        lines += [f"{_variable(one['loc'])}: {message}"] if one["loc"] else message.splitlines()
    return lines


def _variable(place: tuple[int | str, ...]) -> str:
    name = str(place[0])
    field = ApiSettings.model_fields.get(name)
    first = field.alias if field and field.alias else name if name.startswith("AIP_") else f"PHOTOFLUX_{name.upper()}"
    return ".".join([first, *map(str, place[1:])])
