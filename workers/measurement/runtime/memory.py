"""Gives memory back when it is not needed, so that the peak is set by one layer and not by all that came before.

Two things would keep it when a layer is done. bitsandbytes' modules and weights refer to each other, so only the cycle
collector frees them, and it has no notion of how large they are. And the C library keeps what is freed, in gaps
between pieces that are still in use. What comes next uses most of that again, and pages that the system has to clear
anew cost more than many a statistic; so it goes back only where much more has gathered than a batch needs. What is
mapped from files, weights as well as code, needs no room of its own between two uses.
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
    """Hands unused pages back to the system where they make up much of what is resident."""

    def __init__(self) -> None:
        """Start before the first batch."""
        self._least: int | None = None

    def after_batch(self) -> None:
        """Take note of what is resident when a batch has been through a layer, and `check`."""
        resident = resident_bytes()
        self._least = min(resident, self._least or resident)
        self.check()

    def check(self) -> None:
        """Return pages if much more is resident than after the batch that left the least; not before any has."""
        if self._least is not None and resident_bytes() > self._least + self._least // GROWTH:
            return_pages()


def return_pages() -> None:
    """Hand the pages of freed memory back to the system."""
    if _TRIM is not None:
        _TRIM(0)


def resident_bytes() -> int:
    """Return how much of the process is in memory."""
    resident: int = _PROCESS.memory_info().rss
    return resident


def ran_out(error: BaseException) -> bool:
    """Tell whether an error says that there was no memory left, on the host or on a device."""
    return isinstance(error, MemoryError) or "allocate memory" in str(error) or device_is_full(error)


def device_is_full(error: BaseException) -> bool:
    """Tell whether an error says that a device, and not the host, has no memory left.

    Only allocators of devices raise torch's own error. Libraries beneath it raise a RuntimeError that names theirs:
    `CUBLAS_STATUS_ALLOC_FAILED`, `CUDA error: out of memory`, `Triton Error [CUDA]: out of memory`.
    """
    text = str(error)
    of_library = "ALLOC_FAILED" in text or ("CUDA" in text and "out of memory" in text)
    return isinstance(error, torch.OutOfMemoryError) or (isinstance(error, RuntimeError) and of_library)


def is_fatal(error: BaseException) -> bool:
    """Tell whether an error says nothing of what was tried: no memory was left, or the device itself has failed."""
    return ran_out(error) or isinstance(error, torch.AcceleratorError)


def keep_what_is_loaded() -> None:
    """Let later collections pass over everything that exists now; they take milliseconds then."""
    gc.collect()
    gc.freeze()


def drop_file_pages(tensor: torch.Tensor, *, whole_file: bool = False) -> None:
    """Let go of a tensor's pages in the file that is mapped for it, or of all that file's pages.

    The system maps them anew when they are used. It still holds the file's pages as long as it has room for them, so
    that takes no reading. Nothing happens to small tensors, to those in other memory, to pages that were written to,
    nor where the system does not tell which they are.
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
    """Let go of the pages of all program code: most of it has been of use in loading and compiling, and no further.

    As with tensors, the system maps anew what is used again.
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
