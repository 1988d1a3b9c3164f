"""Outcomes of an attempt to deliver a message, and the time of the next attempt."""

from datetime import timedelta
from typing import Literal, NamedTuple

Result = Literal["delivered", "failed", "gone", "refused"]
"""`delivered`: the receiver has it. `failed`: it is tried again later. `gone`: the receiver wants no more messages.
`refused`: this message can never be delivered."""

SECONDS = 20.0
"""How long one attempt may take."""
DELAYS = (
    timedelta(seconds=5),
    timedelta(minutes=5),
    timedelta(minutes=30),
    timedelta(hours=2),
    timedelta(hours=5),
    timedelta(hours=10),
    timedelta(hours=14),
    timedelta(hours=20),
    timedelta(hours=24),
)
"""Between an attempt and the next one, over 3 days, as Standard Webhooks suggests. Then the message has failed."""


LONGEST_WAIT = DELAYS[-1]
"""A receiver that asks to be left alone for longer is tried again after this."""


class Attempted(NamedTuple):
    """One attempt to deliver a message."""

    result: Result
    detail: str
    """What happened, as a sentence."""
    status: int | None = None
    """HTTP status or SMTP code of the receiver's answer; None where it gave none."""
    wait: timedelta = timedelta()
    """How long the receiver asks to be left alone."""


def next_delay(tries: int, wait: timedelta = timedelta()) -> timedelta | None:
    """Return how long after its attempt number `tries` (from 1) a message is due again; None where it is not.

    It is not before the receiver's `wait` is over, up to `LONGEST_WAIT`.
    """
    return max(DELAYS[tries - 1], min(wait, LONGEST_WAIT)) if tries <= len(DELAYS) else None
