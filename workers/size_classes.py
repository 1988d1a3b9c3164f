"""Whether a model is one of the small ones that a worker takes."""

from pathlib import Path

from service.settings import Settings


class LargeModel(Exception):
    """The model is large, and this worker takes small ones only."""


def check_size(model: Path, settings: Settings) -> None:
    """Raise LargeModel for a checkpoint with more weights than the worker takes."""
    if "large" in settings.queues:
        return
    weights = weights_bytes(model)
    if weights > settings.small_bytes:
        raise LargeModel(f"{weights} bytes of weights; this worker takes {int(settings.small_bytes)} at most")


def weights_bytes(model: Path) -> int:
    """Return the size of a checkpoint's weight files, in bytes."""
    return sum(file.stat().st_size for file in model.glob("*.safetensors") if file.is_file())
