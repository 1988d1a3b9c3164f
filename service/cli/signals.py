"""A command that is asked to stop unwinds, whoever asks: Ctrl-C, a closed terminal, or a supervisor's SIGTERM."""

import contextlib
import signal
from collections.abc import Iterator


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Have SIGINT, SIGTERM and SIGHUP raise KeyboardInterrupt, also where the shell had SIGINT ignored."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, signal.default_int_handler) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
