"""What tests of workers share."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from bench import Bench


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """A bench whose job asks for the sample model."""
    made = Bench(tmp_path)
    yield made
    made.engine.dispose()
