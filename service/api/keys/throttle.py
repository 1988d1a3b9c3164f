"""Limits the rate of each caller's requests by token buckets, in bounded memory."""

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable
from threading import Lock

MOST_REMEMBERED = 10_000
"""Callers with a bucket; the least recently seen one is dropped first, and starts again with a full bucket."""


class Buckets:
    """A bucket of tokens for each caller, refilled at a constant rate; safe to use from several threads."""

    def __init__(
        self,
        per_second: float,
        size: float | None = None,
        *,
        most: int = MOST_REMEMBERED,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """`per_second` tokens come into every bucket until it has `size`, by default those of two seconds."""
        self._rate = per_second
        self._size = size
        self._most = most
        self._now = now
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()
        """Tokens, and when they were counted."""
        self._lock = Lock()

    def take(self, caller: str, per_second: float | None = None) -> float:
        """Take a token and return 0.0; if there is none, return in how many seconds there will be one.

        `per_second` is the caller's own rate, where that is not the one of all.
        """
        rate = per_second or self._rate
        with self._lock:
            left, now = self._left(caller, rate)
            wait = 0.0 if left >= 1 else (1 - left) / rate
            self._buckets[caller] = (left if wait else left - 1, now)
            self._buckets.move_to_end(caller)
            while len(self._buckets) > self._most:
                self._buckets.popitem(last=False)
            return wait

    def wait(self, caller: str) -> float:
        """Return in how many seconds a token can be taken, without taking it; 0.0: now."""
        with self._lock:
            if caller not in self._buckets:
                return 0.0
            return max(0.0, (1 - self._left(caller, self._rate)[0]) / self._rate)

    def _left(self, caller: str, rate: float) -> tuple[float, float]:
        now = self._now()
        size = max(1.0, 2 * rate) if self._size is None else self._size
        tokens, then = self._buckets.get(caller, (size, now))
        return min(size, tokens + (now - then) * rate), now


class Remembered:
    """The texts that were added last, as their hashes; safe to use from several threads."""

    def __init__(self, most: int = MOST_REMEMBERED) -> None:
        self._most = most
        self._hashes: OrderedDict[bytes, None] = OrderedDict()
        self._lock = Lock()

    def __contains__(self, text: str) -> bool:
        return _hash(text) in self._hashes

    def add(self, text: str) -> None:
        """Remember a text, and forget the one that was added the longest ago if there are too many."""
        with self._lock:
            self._hashes[_hash(text)] = None
            self._hashes.move_to_end(_hash(text))
            while len(self._hashes) > self._most:
                self._hashes.popitem(last=False)


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
