"""Chooses and describes the device that a measurement computes on, and explains when it is full."""

import platform
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from workers.measurement.errors import BadRequest, DeviceOutOfMemory, MissingLibrary, device_full, first_line
from workers.measurement.runtime.memory import device_is_full

_ASKED = re.compile(
    r"Tried to allocate (?P<asked>[\d.]+ \w+)\. GPU \d+ has a total capacity of (?P<total>[\d.]+ \w+) "
    r"of which (?P<free>[\d.]+ \w+) is free"
)
"""How torch words what its allocator was asked for, and what the device has."""


def choose_device(name: str) -> torch.device:
    """Return the device of that name, which is the process's own from now on. Raises BadRequest if it is not there.

    Kernels of other libraries run on the current device, whichever one their tensors are on; so it is made the
    current one. Its peak of memory counts from here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device("cuda:0" if name == "cuda" else name)
    if device.type != "cuda":
        return device
    count = torch.cuda.device_count()
    if (device.index or 0) >= count:
        raise BadRequest(
            f"device: {name!r} does not exist; this machine has {count} CUDA devices; 'cpu' and 'auto' always work"
        )
    torch.cuda.set_device(device)
    torch.cuda.reset_peak_memory_stats(device)
    return device


def device_name(device: torch.device) -> str:
    """Return what the report calls a device: `cuda:1, NVIDIA H100 80GB HBM3`, `cpu (x86_64)`."""
    return f"{device}, {card_name(device)}" if device.type == "cuda" else f"cpu ({platform.machine()})"


def card_name(device: torch.device) -> str | None:
    """Return the name of a CUDA device's model; None on a CPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else None


def hardware(device: torch.device) -> str:
    """Return the hardware that decides the last digits: a GPU's model, or a CPU's kind and its instruction set."""
    return card_name(device) or f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


def peak_bytes(device: torch.device) -> int | None:
    """Return the most that tensors took on a CUDA device since it was chosen; None on a CPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def total_bytes(device: torch.device) -> int | None:
    """Return the memory of a CUDA device; None on a CPU."""
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None


def require_bitsandbytes(device: torch.device) -> None:
    """Raise MissingLibrary where bitsandbytes has no code for a CUDA device: every module would stay as it is."""
    from bitsandbytes import cextension

    if device.type == "cuda" and not isinstance(cextension.lib, cextension.CudaBNBNativeLibrary):
        why = getattr(cextension.lib, "error_msg", "") or "its library for CUDA was not loaded"
        raise MissingLibrary(
            f"bitsandbytes cannot quantize on {device}: {why}; install a bitsandbytes that supports CUDA "
            f"{torch.version.cuda}, or measure on device 'cpu'"
        )


@contextmanager
def device_memory(device: torch.device, batch: Sequence[int] | None = None) -> Iterator[None]:
    """Raise DeviceOutOfMemory where the device runs out of memory inside.

    `batch`: the sequences of a batch and the tokens in each, where batches are what takes the memory.
    """
    try:
        yield
    except RuntimeError as error:
        if not device_is_full(error):
            raise
        raise DeviceOutOfMemory(_full(device, error, batch), batch[0] if batch else None) from error


def _full(device: torch.device, error: RuntimeError, batch: Sequence[int] | None) -> str:
    """Return the message for torch's error: what its allocator was asked for, as far as it says."""
    asked = _ASKED.search(str(error))
    needed = (
        "tried to allocate {asked} with {free} of {total} free".format(**asked.groupdict())
        if asked
        else first_line(error)
    )
    return device_full(str(device), needed, batch)
