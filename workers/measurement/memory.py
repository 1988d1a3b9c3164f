"""Gives memory back when a layer is done, so that the peak is set by one layer and not by all that came before it.

Two things would keep it. bitsandbytes' modules and weights refer to each other, so only the cycle collector frees
them, and it has no notion of how large they are. And the C library keeps freed pieces between those still in use.
"""

import ctypes
import gc
import sys


def release_memory() -> None:
    """Free what nothing refers to any more, and hand unused pages back to the system."""
    gc.collect()
    if _TRIM is not None:
        _TRIM(0)


def keep_what_is_loaded() -> None:
    """Let later collections pass over everything that exists now; they take milliseconds then."""
    gc.collect()
    gc.freeze()


_TRIM = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
"""glibc's; other C libraries have none."""
