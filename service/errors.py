"""The errors of the service and the API, as one tree; those of the command line are in `service.cli`.

A message names the parameter, its value and what is allowed. `code` is stable and becomes the `type` of an HTTP
problem document; `status` is the HTTP status of the API's answer.
"""

import math
from typing import ClassVar


class HeadroomError(Exception):
    """Base of the errors that have a message for the user."""

    code: ClassVar[str] = "error"
    status: ClassVar[int] = 500


class InvalidRequest(HeadroomError):
    """Raised when a parameter, a field of a request or a setting has a value that is not allowed."""

    code = "invalid-request"
    status = 422

    def __init__(
        self, parameter: str, value: object, allowed: str, *, problem: str = "is not allowed", message: str = ""
    ) -> None:
        """Make the message `PARAMETER: VALUE PROBLEM; allowed: ALLOWED`, unless `message` gives another."""
        super().__init__(message or f"{parameter}: {value!r} {problem}; allowed: {allowed}")
        self.parameter = parameter
        self.value = value
        self.allowed = allowed
        self.problem = problem
        self.message = message


class NotFound(HeadroomError):
    """Raised when there is no job, report, figure or table of that name."""

    code = "not-found"
    status = 404


class Gone(NotFound):
    """Raised for a job that was deleted, and for a report that was deleted or has expired; the message says when."""

    code = "gone"
    status = 410


class ScopeMissing(HeadroomError):
    """Raised when the caller's API key is not of the scope that a request needs."""

    code = "scope-missing"
    status = 403


class Conflict(HeadroomError):
    """Raised when the present state of a resource does not allow the request, such as a name that is taken."""

    code = "conflict"
    status = 409


class TransitionNotAllowed(Conflict):
    """Raised when the table of transitions has no step from a job's status to the requested one."""

    code = "transition-not-allowed"


class IdempotencyKeyReused(Conflict):
    """Raised when an Idempotency-Key was used before, with another request."""

    code = "idempotency-key-reused"


class LimitReached(HeadroomError):
    """Raised when a caller has used what the service's limits allow; the message names the limit."""

    code = "limit-reached"
    status = 429

    def __init__(self, message: str, retry_after: float) -> None:
        """`retry_after` is in how many seconds there may be room again."""
        super().__init__(message)
        self.retry_after = max(1, math.ceil(retry_after))


class HomeInUse(Conflict):
    """Raised when another embedded stack runs on the same HEADROOM_HOME."""

    code = "home-in-use"


class QuotaReached(HeadroomError):
    """Raised when an owner's uploaded files would have more bytes than they may."""

    code = "quota-reached"
    status = 413


class NotComparable(HeadroomError):
    """Raised when reports cannot be compared; the message names them and the reason."""

    code = "not-comparable"
    status = 422


class ReportUnreadable(HeadroomError):
    """Raised when a stored report, or a table of it, is missing, damaged or of a form that this version cannot read."""

    code = "report-damaged"


class SchemaVersionUnknown(ReportUnreadable):
    """Raised when a stored report is of another major schema version."""


class JobUnreadable(HeadroomError):
    """Raised for a stored job that this version cannot read; the message says which part, and how to remove it."""

    code = "job-unreadable"
    status = 409


class LeaseLost(HeadroomError):
    """Raised when a worker writes to a job that went to another worker, or ended, while it held it."""

    code = "lease-lost"
    status = 409


class ServiceUnreachable(HeadroomError):
    """Raised when the service, its database or its broker does not answer."""

    code = "service-unreachable"
    status = 503


class NoBroker(HeadroomError):
    """Raised when no program on this machine can serve as the queue's broker."""

    code = "no-broker"
    status = 503


class StackStopped(HeadroomError):
    """Raised when a process of the embedded stack ended by itself."""

    code = "stack-stopped"
    status = 503


class StoreFailed(HeadroomError):
    """Raised when an artifact cannot be read or written whole; no part of it is kept."""

    code = "store-failed"
    status = 507


class StoreUnreachable(StoreFailed):
    """Raised when the artifact store does not answer, or answers that it cannot just now; a later try may succeed."""

    code = "store-unreachable"
    status = 503


class OtherStore(StoreFailed):
    """Raised when the artifact store is not the one that belongs to the database."""

    code = "other-store"
    status = 503
