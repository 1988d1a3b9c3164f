"""Says where streams of the harm measurement lie: in memory up to a budget, in files beyond it."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Storage:
    """Room for streams."""

    budget_bytes: int
    """Streams that are larger than this in all lie in files."""
    directory: Path
    """Where those files go; made when it is needed."""
