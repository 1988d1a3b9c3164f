"""Sharing a kernel's work among as many threads as torch uses.

numba's own parallel loops are not used. Their OpenMP threads, like torch's, spin for a while when they have nothing
to do, and two such pools take the cores from each other; the alternative that does not spin may not be entered from
two threads. These threads sleep between calls, and kernels hold no lock.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")

_PARTS_PER_THREAD = 4
"""So that a thread that is held up leaves the rest to the others."""
_POOL = ThreadPoolExecutor(max_workers=os.cpu_count(), thread_name_prefix="statistics")


def share_out(units: int, work: Callable[[int, int, int], None]) -> None:
    """Call work(thread, first, last) until all units of 0..units are done; thread < `most_threads()`.

    Which thread takes which units is left to chance: results must not depend on it.
    """
    threads = min(most_threads(), units)
    count = min(units, threads * _PARTS_PER_THREAD)
    _share_out(threads, [(units * k // count, units * (k + 1) // count) for k in range(count)], work)


def each(work: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """Return work(item) for every item, in their order; the work may itself be shared out.

    Where work has parts that only one thread can do at a time, Python's above all, others go on meanwhile.
    """
    results: dict[int, Result] = {}

    def do(_: int, first: int, __: int) -> None:
        results[first] = work(items[first])

    _share_out(min(most_threads(), len(items)), [(k, k + 1) for k in range(len(items))], do)
    return [results[k] for k in range(len(items))]


def _share_out(threads: int, shares: Sequence[tuple[int, int]], work: Callable[[int, int, int], None]) -> None:
    parts = iter(shares)

    def take(thread: int) -> None:
        for first, last in parts:
            work(thread, first, last)

    helpers = [_POOL.submit(take, thread) for thread in range(1, threads)]
    try:
        take(0)
    finally:
        for helper in helpers:
            if not helper.cancel():  # one that has not begun would find nothing left to do
                helper.result()


def most_threads() -> int:
    """Return how many threads `share_out` uses at the most."""
    return torch.get_num_threads()
