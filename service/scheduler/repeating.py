"""Repeats a step of the scheduler until the process is told to stop."""

import logging
from collections.abc import Callable
from threading import Event
from typing import Generic, TypeVar

from sqlalchemy.exc import SQLAlchemyError

from service.errors import ServiceUnreachable

log = logging.getLogger(__name__)

Done = TypeVar("Done")


class Repeating(Generic[Done]):
    """A step and how it goes: a failure is logged when it begins and when it ends, not every time."""

    def __init__(self, name: str, once: Callable[[], Done]) -> None:
        """Take the step, and what the log calls it, such as `rounds of jobs`."""
        self.name = name
        self._once = once
        self._trouble: str | None = None

    def step(self) -> Done | None:
        """Do the step; None when the broker, the database or a fault was in the way, which is logged once."""
        try:
            done = self._once()
        except Exception as error:  # the process must go on, whatever one step met
            if self._trouble != type(error).__name__:
                expected = isinstance(error, ServiceUnreachable | SQLAlchemyError)
                log.error("%s fail, and are tried again: %s", self.name, error, exc_info=None if expected else error)
            self._trouble = type(error).__name__
            return None
        if self._trouble:
            log.info("%s succeed again", self.name)
            self._trouble = None
        return done

    def run(self, seconds: float, stop: Event) -> None:
        """Repeat the step with a pause of `seconds` until `stop` is set."""
        while not stop.is_set():
            self.step()
            stop.wait(seconds)
