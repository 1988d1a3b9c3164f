"""Reads the decoder layers' tensors from disk, one layer at a time.

On a CUDA device the next layer is fetched while the present one computes: a thread of its own reads it into pinned
memory, which is kept from layer to layer, and copies it over on a stream of its own, so the device waits for the disk
at the first layer only. The device then holds two layers' weights. On a CPU there is nothing to hide: the tensors are
the mapped files themselves.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from workers.measurement.errors import BadModel
from workers.measurement.runtime.memory import drop_file_pages

Tensors = dict[str, torch.Tensor]
"""By name inside the layer."""
_ALIGNMENT = 64
"""Bytes at whose multiples tensors begin in pinned memory."""


class LayerReader:
    """Reads the layers' tensors to a device, in the dtypes of the mapping of the weights."""

    def __init__(
        self,
        weights: Mapping[str, torch.Tensor],
        names: Sequence[Mapping[str, str]],
        device: torch.device,
        *,
        ahead: bool,
    ) -> None:
        """Start a reader; nothing is read yet.

        Args:
            weights: from a tensor's full name to the tensor, read from disk at each access.
            names: for every layer, from names inside the layer to full names.
            device: where the tensors go.
            ahead: fetch the next layer while one is in use.
        """
        self._weights = weights
        self._names = names
        self._device = device
        self._thread = ThreadPoolExecutor(1, "layer-reader") if ahead else None
        self._next: tuple[int, Future[Tensors]] | None = None
        self._pinned: torch.Tensor | None = None
        # One for all layers: the memory that a layer leaves is given to the next only on the stream it was taken on.
        self._stream = torch.cuda.Stream(device) if _is_cuda(device) else None

    def take(self, layer: int, step: int = 1) -> Tensors:
        """Return a layer's tensors, ready for use on the device's current stream.

        `step`: 1 where `layer + 1` is taken next and is read ahead, -1 where it is `layer - 1`.

        Raises:
            BadModel: a tensor has NaN or infinite values; the message names the tensor.
        """
        fetched, self._next = self._next, None
        if self._thread is None:
            return self._read(layer)
        # Whatever is read is read by the thread, one layer after another: they share the pinned memory.
        ready = fetched[1] if fetched is not None and fetched[0] == layer else self._thread.submit(self._read, layer)
        tensors = ready.result()
        if 0 <= layer + step < len(self._names):
            self._next = layer + step, self._thread.submit(self._read, layer + step)
        if _is_cuda(self._device):
            for tensor in tensors.values():
                tensor.record_stream(torch.cuda.current_stream(self._device))
        return tensors

    def _read(self, layer: int) -> Tensors:
        names = self._names[layer]
        if _is_cuda(self._device):
            copies = self._copy_to_device({full: self._weights[full] for full in names.values()})
            return {name: copies[full] for name, full in names.items()}
        return {name: self._read_one(full) for name, full in names.items()}

    def _read_one(self, name: str) -> torch.Tensor:
        tensor = self._weights[name]
        check_finite({name: tensor})
        drop_file_pages(tensor)
        return tensor.to(self._device)

    def _copy_to_device(self, read: Tensors) -> Tensors:
        """Return copies of tensors on the CUDA device; one is written to pinned memory while another is on its way."""
        assert self._stream is not None
        copies = {}
        with torch.cuda.stream(self._stream):
            for name, pinned in self._pinned_like(read).items():
                copies[name] = pinned.copy_(read[name]).to(self._device, non_blocking=True)
                drop_file_pages(read[name])
            check_finite(copies)
        self._stream.synchronize()
        return copies

    def _pinned_like(self, read: Tensors) -> Tensors:
        """Return tensors of the same shapes and types in pinned memory, which is there until the next call."""
        offsets = [0]
        for tensor in read.values():
            offsets.append(offsets[-1] + tensor.nbytes + -tensor.nbytes % _ALIGNMENT)
        if self._pinned is None or len(self._pinned) < offsets[-1]:
            self._pinned = torch.empty(offsets[-1], dtype=torch.uint8, pin_memory=True)
        memory = self._pinned
        return {
            name: memory[begin : begin + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
            for begin, (name, tensor) in zip(offsets, read.items(), strict=False)
        }


def check_finite(tensors: Mapping[str, torch.Tensor]) -> None:
    """Check tensors for NaN and infinite values on their own device, with one synchronization for all of them.

    Raises:
        BadModel: a tensor has one; the message names the tensor.
    """
    checked = {name: t for name, t in tensors.items() if t.is_floating_point() and t.numel() > 0}
    finite = [torch.stack(tensor.detach().aminmax()).isfinite().all() for tensor in checked.values()]
    if not finite or bool(torch.stack(finite).all()):
        return
    name = next(name for name, one in zip(checked, finite, strict=True) if not one)
    raise BadModel(f"model: the weight {name} holds NaN or infinite values; a finite checkpoint is needed")


def _is_cuda(device: torch.device) -> bool:
    return device.type == "cuda"
