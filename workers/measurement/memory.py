"""Gives memory back as soon as it is not needed, so that the peak is set by one layer and not by all that came before.

Two things would keep it when a layer is done. bitsandbytes' modules and weights refer to each other, so only the cycle
collector frees them, and it has no notion of how large they are. And the C library keeps what is freed, the longer the
larger it was, between pieces that are still in use. What lies outside the layers, embedding and head, is needed only
before and after them.
"""

import ctypes
import gc
import mmap
import sys

import torch


def release_memory() -> None:
    """Free what nothing refers to any more, and hand unused pages back to the system."""
    gc.collect()
    return_pages()


def return_pages() -> None:
    """Hand the pages of freed memory back to the system; they would stay resident in the gaps between what is used."""
    if _TRIM is not None:
        _TRIM(0)


def return_large_pieces_at_once(size: int = 4 << 20) -> None:
    """Have the C library return pieces of `size` bytes or more when they are freed.

    By itself it keeps ever larger ones for later, up to 32 MiB.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, size)


def keep_what_is_loaded() -> None:
    """Let later collections pass over everything that exists now; they take milliseconds then."""
    gc.collect()
    gc.freeze()


def page_out(tensor: torch.Tensor) -> None:
    """Let go of the pages of a tensor that lies in a mapped file; they are read again when it is used.

    Nothing happens to other tensors, nor where the system does not know the advice or does not allow it.
    """
    if tensor.device.type != "cpu" or _MADVISE is None:
        return
    first = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    last = (tensor.data_ptr() + tensor.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if first < last:
        _MADVISE(ctypes.c_void_p(first), ctypes.c_size_t(last - first), _MADV_PAGEOUT)


_MADV_PAGEOUT = 21
"""Of Linux 5.4 and later. Unlike other advice, it never loses what a page holds."""
_MADVISE = getattr(ctypes.CDLL(None), "madvise", None) if sys.platform == "linux" else None
_M_MMAP_THRESHOLD = -3
_TRIM = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
"""glibc's; other C libraries have none."""
