"""What tests of workers share."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from bench import Bench


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """A bench whose job asks for the sample model, and whose supervisor soon hears what becomes of the job.

    The lease itself is long: a machine that stands still for a moment does not lose it.
    """
    monkeypatch.setattr("workers.lease.RENEWALS", 240)
    monkeypatch.setattr("workers.model_files.cache.HF_HUB_CACHE", str(tmp_path / "hub"))
    made = Bench(tmp_path)
    yield made
    made.engine.dispose()
