"""One round of cleaning: removes expired reports, and then the files that nothing needs.

Of all schedulers one at most does it in an interval. A round that is broken off is finished by the next one.
"""

import logging
from dataclasses import dataclass
from datetime import timedelta

from service.store.files.garbage import Collected, Garbage
from service.store.files.removals import Removals

log = logging.getLogger(__name__)

INTERVAL = timedelta(hours=1)
LOOK_SECONDS = 60.0
"""How often a scheduler looks whether it is to clean."""


@dataclass(frozen=True)
class Cleaned:
    """What one round removed."""

    expired: int
    """Reports."""
    collected: Collected


def clean(removals: Removals, garbage: Garbage, retention_days: int | None) -> Cleaned | None:
    """Do a round if it is this scheduler's turn; None if not."""
    if not garbage.take_turn(INTERVAL):
        return None
    cleaned = Cleaned(removals.expire(retention_days), garbage.collect())
    if cleaned.expired or cleaned.collected.files or cleaned.collected.checkpoints:
        log.info(
            "%d expired reports, %d unneeded files (%d bytes), checkpoints of %d ended jobs removed",
            cleaned.expired,
            cleaned.collected.files,
            cleaned.collected.size,
            cleaned.collected.checkpoints,
        )
    return cleaned
