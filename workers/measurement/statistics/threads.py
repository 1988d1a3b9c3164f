"""Sharing a kernel's work among as many threads as torch uses.

numba's own parallel loops are not used. Their OpenMP threads, like torch's, spin for a while when they have nothing
to do, and two such pools take the cores from each other; the alternative that does not spin may not be entered from
two threads. These threads sleep between calls, and kernels hold no lock.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

_PARTS_PER_THREAD = 4
"""So that a thread that is held up leaves the rest to the others."""
_POOL = ThreadPoolExecutor(max_workers=os.cpu_count(), thread_name_prefix="statistics")


def share_out(units: int, work: Callable[[int, int, int], None]) -> None:
    """Call work(thread, first, last) until all units of 0..units are done; thread < `most_threads()`.

    Which thread takes which units is left to chance: results must not depend on it.
    """
    threads = min(most_threads(), units)
    count = min(units, threads * _PARTS_PER_THREAD)
    parts = iter([(units * k // count, units * (k + 1) // count) for k in range(count)])

    def take(thread: int) -> None:
        for first, last in parts:
            work(thread, first, last)

    helpers = [_POOL.submit(take, thread) for thread in range(1, threads)]
    try:
        take(0)
    finally:
        for helper in helpers:
            helper.result()


def most_threads() -> int:
    """Return how many threads `share_out` uses at the most."""
    return torch.get_num_threads()
