"""What tests of the scheduler share."""

from pathlib import Path

import pytest
from audited import Clock, Service
from sqlalchemy import Engine


@pytest.fixture
def clock() -> Clock:
    """The clock of `service`."""
    return Clock()


@pytest.fixture
def service(engine: Engine, tmp_path: Path, clock: Clock) -> Service:
    """A service without audits."""
    return Service(engine, tmp_path, clock)
