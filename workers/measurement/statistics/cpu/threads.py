"""Divides a kernel's work among as many threads as torch uses.

numba's own parallel loops are not used. Their OpenMP threads, like torch's, spin for a while when they have nothing
to do, and two such pools take the cores from each other; the alternative that does not spin may not be entered from
two threads. These threads sleep between calls, and kernels hold no lock.

What is shared out should be kernels, not torch's operations on much data: those make a second set of OpenMP threads
for the thread that calls them, after which OpenMP counts more threads than cores and lets none of them spin.

Work that is shared out may share out parts of itself. It then gets the threads that are not taken, which may be none:
more threads than cores would only wait for each other.
"""

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")

_UNIT_ELEMENTS = 1 << 18
"""Elements of a unit of work: to read them takes as long as a sleeping thread takes to begin."""
_PARTS_PER_THREAD = 4
"""So that a thread that is held up leaves the rest to the others."""
_POOL = ThreadPoolExecutor(max_workers=os.cpu_count(), thread_name_prefix="statistics")
_LOCK = threading.Lock()
_taken = 0
"""Threads of the pool that have something to do."""


def split_range(units: int, work: Callable[[int, int, int], None]) -> None:
    """Call work(thread, first, last) until all units of 0..units are done; thread < `most_threads()`.

    Which thread takes which units is left to chance: results must not depend on it.
    """
    helpers = _take_helpers(units - 1)
    count = min(units, (helpers + 1) * _PARTS_PER_THREAD) if helpers else 1
    _work_off(helpers, [(units * k // count, units * (k + 1) // count) for k in range(count)], work)


def split_tokens(tokens: int, channels: int, work: Callable[[int, int], None]) -> None:
    """Call work(first, last) until all tokens of 0..tokens, of `channels` elements each, are done."""
    unit = max(1, _UNIT_ELEMENTS // channels)
    split_range(-(-tokens // unit), lambda _, first, last: work(first * unit, min(last * unit, tokens)))


def map_in_threads(work: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """Return work(item) for every item, in their order; the work may itself use threads.

    Where work has parts that only one thread can do at a time, Python's above all, others go on meanwhile. Items are
    begun in their order: with the longest first, all threads are done at about the same time.
    """
    results: dict[int, Result] = {}

    def do(_: int, first: int, __: int) -> None:
        results[first] = work(items[first])

    _work_off(_take_helpers(len(items) - 1), [(k, k + 1) for k in range(len(items))], do)
    return [results[k] for k in range(len(items))]


def _work_off(helpers: int, shares: Sequence[tuple[int, int]], work: Callable[[int, int, int], None]) -> None:
    """Work off the shares, together with helpers that were taken."""
    parts = iter(shares)

    def take(thread: int) -> None:
        for first, last in parts:
            work(thread, first, last)

    def help_out(thread: int) -> None:
        try:
            take(thread)
        finally:
            _give_back(1)

    others = [_POOL.submit(help_out, thread) for thread in range(1, helpers + 1)]
    try:
        take(0)
    finally:
        for other in others:
            if other.cancel():  # it has not begun, and would find nothing left to do
                _give_back(1)
            else:
                other.result()


def _take_helpers(wanted: int) -> int:
    """Take threads of the pool, as many as are wanted and free; returns how many."""
    global _taken
    with _LOCK:
        got = max(0, min(wanted, most_threads() - 1 - _taken))
        _taken += got
    return got


def _give_back(helpers: int) -> None:
    global _taken
    with _LOCK:
        _taken -= helpers


def most_threads() -> int:
    """Return how many threads `split_range` uses at the most."""
    return torch.get_num_threads()
