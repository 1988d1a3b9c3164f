"""Settings, read once from the environment: every variable begins with `HEADROOM_`."""

from functools import lru_cache
from pathlib import Path

import platformdirs
from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from service.contracts.request import (
    DEFAULT_CHECKPOINT_SECONDS,
    DEFAULT_MEMORY,
    CheckpointSeconds,
    Device,
    MemorySize,
)
from service.errors import InvalidRequest


class Settings(BaseSettings):
    """What an operator can set. `HEADROOM_LEASE_SECONDS=60` sets `lease_seconds`, and so on."""

    model_config = SettingsConfigDict(env_prefix="HEADROOM_", frozen=True)

    home: Path = Field(default_factory=lambda: Path(platformdirs.user_data_dir("headroom", appauthor=False)))
    """The embedded stack's database, artifacts, key and logs."""

    url: str | None = None
    """Address of a running service, for the command line; without it an embedded stack is used."""

    api_key: SecretStr | None = None
    """The key the command line sends; without it the one in `home` is used."""

    database_url: str | None = None
    """SQLAlchemy URL; by default an SQLite file in `home`."""

    broker_url: SecretStr | None = None
    """Redis URL of the queue; by default the embedded stack starts a broker of its own."""

    host: str = "127.0.0.1"
    """Address the API listens on."""

    port: int = Field(default=8400, ge=0, le=65535)
    """Port the API listens on; 0 takes a free one."""

    lease_seconds: float = Field(default=60.0, gt=0)
    """A worker that has not renewed its claim for this long has lost the job."""

    scheduler_seconds: float = Field(default=1.0, gt=0)
    """Pause between two rounds of the scheduler."""

    max_attempts: int = Field(default=3, ge=1)
    """How often a job whose worker was lost is offered before it fails."""

    max_upload_bytes: int = Field(default=32 * 2**20, ge=1)
    """The largest request body the API takes."""

    device: Device = "auto"
    """Where a worker measures: `auto`, `cpu`, `cuda` or `cuda:N`; part of its name."""

    memory: MemorySize = DEFAULT_MEMORY
    """A measurement's hidden states that take more than this in all are kept in memory-mapped files."""

    checkpoint_seconds: CheckpointSeconds = DEFAULT_CHECKPOINT_SECONDS
    """How much of a measurement the loss of its worker may cost."""

    @property
    def database(self) -> str:
        """SQLAlchemy URL of the database in use."""
        return self.database_url or f"sqlite:///{self.home / 'headroom.db'}"

    @property
    def artifacts(self) -> Path:
        """Directory of the artifact store."""
        return self.home / "artifacts"


@lru_cache
def settings() -> Settings:
    """Return the settings of this process. Raises InvalidRequest for an environment variable that is not allowed."""
    try:
        return Settings()
    except ValidationError as error:
        first = error.errors()[0]
        name = "HEADROOM_" + "_".join(str(part) for part in first["loc"]).upper()
        raise InvalidRequest(name, first["input"], first["msg"]) from error
