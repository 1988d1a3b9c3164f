"""Checks that a model is small enough for a worker that takes only small ones."""

from pathlib import Path

from service.contracts.progress import Failed, Finished
from service.settings import Settings
from workers.failures import LARGE_MODEL


class LargeModel(Exception):
    """The model is large, and this worker takes small ones only."""


def check_size(model: Path, settings: Settings) -> None:
    """Raise LargeModel for a checkpoint with more weights than the worker takes."""
    if "large" in settings.queues:
        return
    weights = weights_bytes(model)
    if weights > settings.small_bytes:
        raise LargeModel(f"{weights} bytes of weights; this worker takes {int(settings.small_bytes)} at most")


def fetch_options(settings: Settings) -> list[str]:
    """Return the options of the program that fetches models, which compare the sizes that the hub lists."""
    small = [] if "large" in settings.queues else [f"--small={int(settings.small_bytes)}"]
    return [f"--bytes={int(settings.model_bytes)}", *small]


def check_fetched(said: Finished | Failed | None) -> None:
    """Raise LargeModel where the program that fetches models said that the weights are more than the worker takes."""
    if isinstance(said, Failed) and said.code == LARGE_MODEL:
        raise LargeModel(said.message)


def weights_bytes(model: Path) -> int:
    """Return the size of a checkpoint's weight files, in bytes."""
    return sum(file.stat().st_size for file in model.glob("*.safetensors") if file.is_file())
