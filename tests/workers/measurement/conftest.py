"""Checkpoints and a text that the tests of the measurement share."""

from pathlib import Path

import pytest
from tiny_models import CONFIGS, save_checkpoint, words


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One bf16 checkpoint for each architecture."""
    root = tmp_path_factory.mktemp("checkpoints")
    return {name: save_checkpoint(root / name, make(), adds_bos=name == "llama") for name, make in CONFIGS.items()}


@pytest.fixture(scope="session")
def calibration_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "calibration.txt"
    path.write_text(words(4000, seed=1), encoding="utf-8")
    return path
