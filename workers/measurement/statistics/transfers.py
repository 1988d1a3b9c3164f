"""Copies figures from a device to the host, all of a batch together, while the next batch computes.

A device works through what it has been asked for while the host asks for more; whoever reads a figure makes the host
wait, and the device then has nothing to do until the host has asked again. So whatever a batch leaves is put into one
piece of memory on the device and copied in one go, into pinned memory, where a copy needs no help of the host. It is
used once the next batch has been asked for: the host then waits for a batch that is done, or nearly so.

Figures in host memory are used at once.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

Use = Callable[..., None]
"""Takes one array for each tensor, all of them parts of one piece of memory: what is kept of them must be copied."""


@dataclass(frozen=True)
class _Copy:
    """Figures on their way to the host."""

    entries: Sequence[tuple[Sequence[torch.Tensor], Use]]
    packed: torch.Tensor
    """All bytes on the host, those of larger elements first, so that each tensor is aligned."""
    done: Any
    """A CUDA event; the copy is there once it has happened."""


class HostCopies:
    """The figures of the batch at hand, and of the one before it."""

    def __init__(self, device: torch.device | None = None) -> None:
        """Begin with nothing; tensors will be on `device`, by default in host memory."""
        self.on_host = device is None or device.type == "cpu"
        """Whether tensors are in host memory already, and used at once."""
        self._waiting: list[tuple[Sequence[torch.Tensor], Use]] = []
        self._under_way: _Copy | None = None
        self._in_use = False

    def add(self, tensors: Sequence[torch.Tensor], use: Use) -> None:
        """Call `use` with the tensors as arrays: at once if they are in host memory, else after the next batch."""
        if self.on_host:
            use(*(tensor.numpy() for tensor in tensors))
        else:
            self._waiting.append((tensors, use))

    def next_batch(self) -> None:
        """Begin to copy what was added since the last call, and use what was added before that."""
        before, self._under_way = self._under_way, _start(self._waiting) if self._waiting else None
        self._waiting = []
        if before is not None:
            self._in_use = True
            _use(before)
            self._in_use = False

    def finish(self) -> None:
        """Use everything that was added, in its order; not to be called from a `use`, which is amid it."""
        if self._in_use:
            raise RuntimeError("finish: it was called while figures are in use; call it after they have been used")
        while self._waiting or self._under_way is not None:
            self.next_batch()


def _start(entries: Sequence[tuple[Sequence[torch.Tensor], Use]]) -> _Copy:
    tensors = _by_element_size(entries)
    on_device = torch.cat([tensor.reshape(-1).view(torch.uint8) for tensor in tensors])
    return _Copy(entries, *to_pinned(on_device))


def to_pinned(on_device: torch.Tensor) -> tuple[torch.Tensor, Any]:
    """Begin to copy bytes to pinned memory, which torch keeps for the next time; return it and when it is done."""
    pinned = torch.empty(len(on_device), dtype=torch.uint8, pin_memory=True)
    pinned.copy_(on_device, non_blocking=True)
    done = torch.cuda.Event()
    done.record(torch.cuda.current_stream(on_device.device))
    return pinned, done


def _use(copy: _Copy) -> None:
    copy.done.synchronize()
    arrays, begin, memory = {}, 0, copy.packed.numpy()
    for tensor in _by_element_size(copy.entries):
        end = begin + tensor.nbytes
        dtype = np.dtype(str(tensor.dtype).removeprefix("torch."))
        arrays[id(tensor)] = memory[begin:end].view(dtype).reshape(tensor.shape)
        begin = end
    for tensors, use in copy.entries:
        use(*(arrays[id(tensor)] for tensor in tensors))


def _by_element_size(entries: Sequence[tuple[Sequence[torch.Tensor], Use]]) -> list[torch.Tensor]:
    """Return the tensors of all entries, each once, those of the largest elements first."""
    tensors = {id(tensor): tensor for tensors, _ in entries for tensor in tensors}
    return sorted(tensors.values(), key=lambda tensor: -tensor.itemsize)
