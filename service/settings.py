"""Settings from the environment variables that begin with `HEADROOM_`; read once."""

import os
from functools import lru_cache
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated

import platformdirs
from pydantic import ByteSize, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from service.audits.networks import Network
from service.audits.receivers import Reach, is_mailbox
from service.contracts import refusals
from service.contracts.request import (
    DEFAULT_CHECKPOINT_SECONDS,
    DEFAULT_MEMORY,
    SIZE_CLASSES,
    CheckpointSeconds,
    Device,
    MemorySize,
    RetentionDays,
    SizeClass,
)
from service.errors import InvalidRequest

DEFAULT_ARTIFACT_CACHE = ByteSize(4 * 2**30)
DEFAULT_JOB_FILE = ByteSize(64 * 2**30)
DEFAULT_MODEL_BYTES = ByteSize(512 * 2**30)
DEFAULT_FILE_QUOTA = ByteSize(10 * 2**30)
DEFAULT_UPLOADS = ByteSize(10 * 2**30)
DEFAULT_SMALL = ByteSize(32 * 2**30)


class Settings(BaseSettings):
    """The settings of a process. `HEADROOM_LEASE_SECONDS=60` sets `lease_seconds`, and so on."""

    model_config = SettingsConfigDict(env_prefix="HEADROOM_", frozen=True)

    home: Path = Field(default_factory=lambda: Path(platformdirs.user_data_dir("headroom", appauthor=False)))
    """The embedded stack's database, artifacts, key and logs."""

    url: str | None = None
    """Address of a running service, for the command line; default: the embedded stack."""

    api_key: SecretStr | None = None
    """API key that the command line sends; default: the key in `home`. To the API: a key of the scope `admin`."""

    database_url: str | None = None
    """SQLAlchemy URL; default: an SQLite file in `home`."""

    broker_url: SecretStr | None = None
    """Redis URL of the queue; default: the embedded stack starts its own broker."""

    host: str = "127.0.0.1"
    """Address the API listens on."""

    port: int = Field(default=8400, ge=0, le=65535)
    """Port the API listens on; 0: any free port."""

    artifacts_url: str | None = None
    """Where files are kept: `file:///directory` or `s3://bucket/prefix`; default: a directory in `home`."""

    artifact_cache_bytes: MemorySize = DEFAULT_ARTIFACT_CACHE
    """Disk that copies of files from a bucket may take, in bytes; more only while they are in use."""

    retention_days: RetentionDays | None = None
    """Days after its job's end for which a report is kept, unless the job says so itself; default: forever."""

    model_cache_bytes: MemorySize | None = None
    """The models from the hub that a worker's machine keeps, in bytes, besides those in use; default: all."""

    presigned_downloads: bool = False
    """Whether downloads are redirected to URLs of the bucket that need no key and expire soon."""

    lease_seconds: float = Field(default=60.0, gt=0)
    """A worker that does not renew its claim for this long loses the job."""

    scheduler_seconds: float = Field(default=1.0, gt=0)
    """Pause between two rounds of the scheduler."""

    max_attempts: int = Field(default=3, ge=1)
    """A job fails when it has lost its worker this many times."""

    max_upload_bytes: int = Field(default=256 * 2**20, ge=1)
    """The largest file that can be uploaded; other request bodies have 1 MiB at most."""

    file_quota_bytes: MemorySize = DEFAULT_FILE_QUOTA
    """Largest total size of one owner's uploaded files, in bytes."""

    file_seconds: float = Field(default=7 * 86_400.0, gt=0)
    """An uploaded file that no job names is forgotten after this time."""

    requests_per_second: float = Field(default=50.0, gt=0)
    """Requests with one key that an API process answers, on average; twice as many may come at once."""

    queued_jobs: int = Field(default=1000, ge=1)
    """Jobs of one owner that may be in the queue."""

    running_jobs: int | None = Field(default=None, ge=1)
    """Jobs of one owner that run at a time, for a worker that chooses its next one; default: no limit."""

    upload_bytes_per_day: MemorySize = DEFAULT_UPLOADS
    """Bytes of files that one owner may upload in a day (UTC)."""

    queues: Annotated[tuple[SizeClass, ...], NoDecode] = SIZE_CLASSES
    """Classes of jobs that a worker takes: `small`, `large` or both, with a comma between them."""

    small_bytes: MemorySize = DEFAULT_SMALL
    """A model whose weights take more is large."""

    device: Device = "auto"
    """Device on which a worker measures: `auto`, `cpu`, `cuda` or `cuda:N`; part of the worker's name."""

    memory: MemorySize = DEFAULT_MEMORY
    """Hidden states of a measurement that need more than this are kept in memory-mapped files."""

    model_roots: Annotated[tuple[Path, ...], NoDecode] = ()
    """Directories below which a worker takes models, such as `/models:/mnt/more`; default: none, so jobs name the
    sample or models of the hub. The embedded stack on a loopback address takes models from anywhere."""

    any_model_type: bool = False
    """Measure model types too that the layer-by-layer computation has not been shown to run exactly. The embedded
    stack on a loopback address does."""

    model_bytes: MemorySize = DEFAULT_MODEL_BYTES
    """The largest model that a worker fetches from the hub: all its files together."""

    fetch_seconds: float = Field(default=6 * 3600.0, gt=0)
    """A model that takes longer to be fetched fails its job."""

    checkpoint_seconds: CheckpointSeconds = DEFAULT_CHECKPOINT_SECONDS
    """Seconds of a measurement that the loss of its worker may cost."""

    job_seconds: float = Field(default=86400.0, gt=0, allow_inf_nan=False)
    """An attempt at a job that takes longer fails."""

    job_memory: Annotated[MemorySize | None, Field(ge=1)] = None
    """Memory of a job's measurement or drawing; default: nine tenths of what the machine, container or unit has."""

    job_file_bytes: Annotated[MemorySize, Field(ge=1)] = DEFAULT_JOB_FILE
    """The largest file that a measurement or a drawing may write."""

    measurement_user: str | None = None
    """User that runs measurements and drawings; default: the worker's own."""

    webhook_networks: Annotated[tuple[Network, ...], NoDecode] = ()
    """Networks besides the public ones that webhooks may be in, such as `10.1.0.0/16,fd00::/64`."""

    delivery_days: int = Field(default=90, ge=7, le=36_500)
    """Days after its last attempt for which a message to a webhook or mailbox can be looked up and sent again."""

    smtp_url: SecretStr | None = None
    """Server for e-mail: `smtp://HOST:PORT`, `smtp://USER:PASSWORD@HOST:PORT?starttls=1` or `smtps://...`."""

    mail_from: str | None = None
    """Mailbox that e-mail is from."""

    @field_validator("webhook_networks", mode="plain")
    @classmethod
    def _parse_networks(cls, value: str | tuple[Network, ...]) -> tuple[Network, ...]:
        if isinstance(value, tuple):
            return value
        try:
            return tuple(ip_network(part.strip()) for part in value.split(",") if part.strip())
        except ValueError as error:
            raise ValueError(f"allowed: networks such as 10.1.0.0/16,fd00::/64 ({error})") from error

    @field_validator("model_roots", mode="plain")
    @classmethod
    def _parse_roots(cls, value: str | tuple[Path, ...]) -> tuple[Path, ...]:
        roots = tuple(map(Path, filter(None, value.split(os.pathsep)))) if isinstance(value, str) else value
        if not all(root.is_absolute() for root in roots):
            raise ValueError(f"allowed: absolute paths of directories, with {os.pathsep!r} between two of them")
        return roots

    @field_validator("queues", mode="plain")
    @classmethod
    def _parse_queues(cls, value: str | tuple[SizeClass, ...]) -> tuple[SizeClass, ...]:
        names = value.split(",") if isinstance(value, str) else value
        wanted = {name.strip() for name in names}
        if not wanted or wanted - set(SIZE_CLASSES):
            raise ValueError(f"allowed: one or more of {', '.join(SIZE_CLASSES)}, with a comma between them")
        return tuple(name for name in SIZE_CLASSES if name in wanted)

    @field_validator("mail_from")
    @classmethod
    def _check_mailbox(cls, value: str | None) -> str | None:
        if value is not None and not is_mailbox(value):
            raise ValueError("allowed: a mailbox such as headroom@example.org")
        return value

    @property
    def reach(self) -> Reach:
        """The receivers of alerts that this service can send to."""
        return Reach(self.webhook_networks, self.smtp_url is not None and self.mail_from is not None)

    @property
    def database(self) -> str:
        """SQLAlchemy URL of the database in use."""
        return self.database_url or f"sqlite:///{self.home / 'headroom.db'}"

    @property
    def artifacts_place(self) -> str:
        """URL of the artifact store in use."""
        return self.artifacts_url or self.artifacts.expanduser().absolute().as_uri()

    @property
    def artifacts(self) -> Path:
        """Directory of the artifact store, unless `artifacts_url` names another place."""
        return self.home / "artifacts"


@lru_cache
def settings() -> Settings:
    """Return the settings of this process. Raises InvalidRequest for an environment variable that is not allowed."""
    try:
        return Settings()
    except ValidationError as error:
        first = error.errors()[0]
        name = "HEADROOM_" + "_".join(str(part) for part in first["loc"]).upper()
        raise InvalidRequest(name, first["input"], refusals.allowed(first)) from error
