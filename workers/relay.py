"""Stores what a child process reports on its standard output: every warning, and progress at most twice a second."""

import logging
import time

from pydantic import ValidationError
from sqlalchemy.exc import SQLAlchemyError

from service.contracts.progress import PROGRESS_LINE, Failed, Finished, Progress
from service.contracts.warnings import Warning
from service.store.job_records import Claim
from service.store.leases import Leases

log = logging.getLogger(__name__)

PROGRESS_SECONDS = 0.5
"""Least time between two stored lines of one stage."""
_GARBAGE_LOGGED = 5


class Relay:
    """Takes lines, stores what they say, and remembers the last word: `finished`, `failed` or none.

    Of every stage the first and the last line are stored, and between them one in `seconds`. A line that is no
    progress line is logged and otherwise ignored. A database that cannot be reached costs progress, not the job.
    """

    def __init__(self, store: Leases, claim: Claim, seconds: float = PROGRESS_SECONDS) -> None:
        self.last_word: Finished | Failed | None = None
        self.layers = 0
        """Layers that the sweep has done, as far as it said."""
        self.batch_sequences: int | None = None
        """Sequences in a batch, once the sweep said so."""
        self._store = store
        self._claim = claim
        self._seconds = seconds
        self._stored: Progress | None = None
        self._stored_at = float("-inf")
        self._held_back: Progress | None = None
        self._garbage = 0

    def line(self, text: bytes) -> None:
        """Take one line of JSON. Raises LeaseLost."""
        try:
            said = PROGRESS_LINE.validate_json(text)
        except ValidationError:
            self._garbage += 1
            if self._garbage <= _GARBAGE_LOGGED:
                log.warning("job %s: not a progress line: %.200r", self._claim.job_id, text)
            return
        if isinstance(said, Progress):
            self.progress(said)
        elif isinstance(said, Warning):
            self.warning(said)
        else:
            self.last_word = said

    def progress(self, said: Progress) -> None:
        """Store progress, at most twice a second. Raises LeaseLost."""
        if said.stage == "sweep":
            self.layers = said.done
            self.batch_sequences = said.batch_sequences or self.batch_sequences
        if self._stored is None or said.stage != self._stored.stage:
            self.flush()
        elif said.done == self._stored.done:
            return
        elif time.monotonic() - self._stored_at < self._seconds and said.done < said.total:
            self._held_back = said
            return
        self._held_back = None
        self._stored, self._stored_at = said, time.monotonic()
        self._store_line(said)

    def warning(self, said: Warning) -> None:
        """Store a warning. Raises LeaseLost."""
        self.flush()
        self._store_line(said)

    def flush(self) -> None:
        """Store the line that was held back, if any. Raises LeaseLost."""
        if self._held_back is not None:
            held, self._held_back = self._held_back, None
            self._store_line(held)

    def _store_line(self, said: Progress | Warning) -> None:
        try:
            self._store.progress(self._claim, said)
        except SQLAlchemyError as error:
            log.warning("job %s: progress was not stored: %s", self._claim.job_id, error)
