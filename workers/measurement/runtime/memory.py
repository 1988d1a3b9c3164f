"""Returns unused memory to the system, so that one layer sets the peak, and not all layers before it.

Memory stays in use after a layer for two reasons. bitsandbytes' modules and weights refer to each other, so only the
cycle collector frees them, and it does not know their size. And the C library keeps freed memory, between blocks that
are still in use. The next layer uses most of that again, and new pages cost time since the system has to clear them; so
it is returned only where much more has been freed than a batch needs. Pages mapped from files, weights as well as
code, can be dropped between two uses.
"""

import ctypes
import gc
import mmap
import os
import sys
from pathlib import Path

import numpy as np
import psutil
import torch


class PageReturn:
    """Returns freed memory to the system where it is much of the resident memory."""

    def __init__(self) -> None:
        """Start before the first batch."""
        self._least: int | None = None

    def after_batch(self) -> None:
        """Record the resident memory after a batch has passed a layer, and `check`."""
        resident = resident_bytes()
        self._least = min(resident, self._least or resident)
        self.check()

    def check(self) -> None:
        """Return pages if much more is resident than after the batch with the least; nothing before the first batch."""
        if self._least is not None and resident_bytes() > self._least + self._least // GROWTH:
            return_pages()


def return_pages() -> None:
    """Hand the pages of freed memory back to the system."""
    if _TRIM is not None:
        _TRIM(0)


def resident_bytes() -> int:
    """Return the resident memory of this process, in bytes."""
    resident: int = _PROCESS.memory_info().rss
    return resident


def ran_out(error: BaseException) -> bool:
    """Whether an error reports that the host or a device is out of memory."""
    return isinstance(error, MemoryError) or "allocate memory" in str(error) or device_is_full(error)


def device_is_full(error: BaseException) -> bool:
    """Whether an error reports that a device, and not the host, is out of memory.

    Only allocators of devices raise torch's own error. Libraries beneath it raise a RuntimeError that names theirs:
    `CUBLAS_STATUS_ALLOC_FAILED`, `CUDA error: out of memory`, `Triton Error [CUDA]: out of memory`.
    """
    text = str(error)
    of_library = "ALLOC_FAILED" in text or ("CUDA" in text and "out of memory" in text)
    return isinstance(error, torch.OutOfMemoryError) or (isinstance(error, RuntimeError) and of_library)


def is_fatal(error: BaseException) -> bool:
    """Whether an error has nothing to do with the operation that raised it: out of memory, or a failed device."""
    return ran_out(error) or isinstance(error, torch.AcceleratorError)


def keep_what_is_loaded() -> None:
    """Exclude all present objects from later garbage collections, which then take milliseconds."""
    gc.collect()
    gc.freeze()


def drop_file_pages(tensor: torch.Tensor, *, whole_file: bool = False) -> None:
    """Drop the pages of the file that a tensor is mapped from: the tensor's, or all of them.

    The system maps them again when they are used. It still holds the file's pages as long as it has room for them, so
    that takes no reading. Nothing happens to small tensors, to those in other memory, to pages that were written to,
    nor where the system does not report them.
    """
    if tensor.device.type != "cpu" or tensor.nbytes < _SMALLEST_DROPPED:
        return
    storage, start = tensor.untyped_storage(), tensor.data_ptr()
    stop = start + tensor.nbytes
    # What the system maps at once may reach beyond the tensor, but no further than these.
    begin, end = storage.data_ptr(), storage.data_ptr() + storage.nbytes()
    if not whole_file:
        begin, end = max(begin, start - start % _HUGE_PAGE), min(end, stop + -stop % _HUGE_PAGE)
    _drop(begin, end)


def drop_code_pages() -> None:
    """Drop the pages of all program code, most of which is only used for loading and compiling.

    As with tensors, the system maps again what is used again.
    """
    try:
        mappings = [line.split(maxsplit=5) for line in _MAPS.read_text().splitlines()]
    except OSError:
        return
    for addresses, permissions, _, _, _, *file in mappings:
        if "w" not in permissions and file and file[0].startswith("/") and not file[0].startswith("/dev/"):
            begin, end = (int(address, 16) for address in addresses.split("-"))
            _drop(begin, end)


def _drop(begin: int, end: int) -> None:
    """Let go of the whole pages between two addresses, stretch by stretch, where all are pages of files."""
    first, stop = -(-begin // mmap.PAGESIZE), end // mmap.PAGESIZE
    for page in range(first, stop, _STRETCH):
        last = min(page + _STRETCH, stop)
        if _MADVISE is not None and _only_of_files(page, last):
            address, length = page * mmap.PAGESIZE, (last - page) * mmap.PAGESIZE
            _MADVISE(ctypes.c_void_p(address), ctypes.c_size_t(length), _MADV_DONTNEED)


def _only_of_files(first: int, last: int) -> bool:
    """Whether every resident page of a range lies in a file or in shared memory, unchanged by this process alone."""
    try:
        with open("/proc/self/pagemap", "rb", buffering=0) as table:
            entries = np.frombuffer(os.pread(table.fileno(), (last - first) * 8, first * 8), dtype=np.uint64)
    except OSError:
        return False
    here, of_file = (entries >> 62) != 0, (entries >> 61) & 1 != 0
    return len(entries) == last - first and bool((of_file | ~here).all())


GROWTH = 4
"""By this part of what a batch leaves may be more resident."""
_PROCESS = psutil.Process()
_MAPS = Path("/proc/self/maps")
_SMALLEST_DROPPED = 4 << 20
_HUGE_PAGE = 2 << 20
_STRETCH = 1 << 18
"""Pages that are looked at together."""
_MADV_DONTNEED = 4
_MADVISE = getattr(ctypes.CDLL(None), "madvise", None) if sys.platform == "linux" else None
_TRIM = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
"""glibc's; other C libraries have none."""
