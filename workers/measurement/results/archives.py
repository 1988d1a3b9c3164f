"""Writes what the statistics of a layer hold as NumPy archives, and reads it again."""

from pathlib import Path

import numpy as np

from workers.measurement.statistics.llm_int8 import Hits
from workers.measurement.statistics.surface import Surface


def save_hits(file: Path, hits: Hits) -> None:
    """Write a layer's hits as a NumPy archive."""
    np.savez(file, **vars(hits))


def load_hits(file: Path) -> Hits:
    """Read what `save_hits` wrote."""
    with np.load(file) as stored:
        return Hits(**stored)


def save_surface(file: Path, surface: Surface) -> None:
    """Write a surface as a NumPy archive."""
    np.savez(file, **vars(surface))


def load_surface(file: Path) -> Surface:
    """Read what `save_surface` wrote."""
    with np.load(file) as stored:
        return Surface(
            sequence=int(stored["sequence"]),
            positions=int(stored["positions"]),
            channels=int(stored["channels"]),
            position=stored["position"],
            channel=stored["channel"],
            value=stored["value"],
        )
