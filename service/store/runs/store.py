"""The scheduler's side of audits: every step of their runs."""

from service.store.runs.firing import Firing
from service.store.runs.judging import Judging
from service.store.runs.starting import Starting


class RunStore(Firing, Starting, Judging):
    """Steps of runs in one database; several schedulers may do them at once, and be killed in between."""
