"""Reads the decoder layers' tensors from disk, one layer at a time.

On a CUDA device the next layer is fetched while the present one computes: a thread of its own reads it into pinned
memory and copies it over on a stream of its own, so the device waits for the disk at the first layer only. The device
then holds two layers' weights. On a CPU there is nothing to hide: the tensors are the mapped files themselves.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from workers.measurement.errors import BadModel
from workers.measurement.memory import drop_file_pages

Tensors = dict[str, torch.Tensor]
"""By name inside the layer."""


class LayerReader:
    """The layers' tensors on a device, in the types that the mapping of the weights gives them."""

    def __init__(
        self,
        weights: Mapping[str, torch.Tensor],
        names: Sequence[Mapping[str, str]],
        device: torch.device,
        *,
        ahead: bool,
    ) -> None:
        """Read nothing yet.

        Args:
            weights: from a tensor's full name to the tensor, read from disk at each look.
            names: for every layer, from names inside the layer to full names.
            device: where the tensors go.
            ahead: fetch the next layer while one is in use.
        """
        self._weights = weights
        self._names = names
        self._device = device
        self._thread = ThreadPoolExecutor(1, "layer-reader") if ahead else None
        self._next: tuple[int, Future[Tensors]] | None = None

    def take(self, layer: int) -> Tensors:
        """Return a layer's tensors, ready for use on the device's current stream.

        Raises:
            BadModel: a tensor holds NaN or infinite values; names it.
        """
        fetched, self._next = self._next, None
        tensors = fetched[1].result() if fetched is not None and fetched[0] == layer else self._read(layer)
        if self._thread is not None and layer + 1 < len(self._names):
            self._next = layer + 1, self._thread.submit(self._read, layer + 1)
        if _is_cuda(self._device):
            for tensor in tensors.values():
                tensor.record_stream(torch.cuda.current_stream(self._device))
        return tensors

    def _read(self, layer: int) -> Tensors:
        if not _is_cuda(self._device):
            return {name: self._read_one(full) for name, full in self._names[layer].items()}
        read = {name: finite(full, self._weights[full]) for name, full in self._names[layer].items()}
        stream = torch.cuda.Stream(self._device)
        with torch.cuda.stream(stream):
            copies = {name: tensor.pin_memory().to(self._device, non_blocking=True) for name, tensor in read.items()}
        stream.synchronize()
        return copies

    def _read_one(self, name: str) -> torch.Tensor:
        tensor = finite(name, self._weights[name])
        drop_file_pages(tensor)
        return tensor.to(self._device)


def finite(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor if all of it is finite.

    Raises:
        BadModel: it holds NaN or infinite values; names it.
    """
    checked = tensor.is_floating_point() and tensor.numel() > 0
    if checked and not all(bool(extreme.isfinite()) for extreme in tensor.aminmax()):
        raise BadModel(f"model: the weight {name} holds NaN or infinite values; a finite checkpoint is needed")
    return tensor


def _is_cuda(device: torch.device) -> bool:
    return device.type == "cuda"
