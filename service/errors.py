"""Everything that can go wrong on purpose, as one tree.

An error's message is written for the person who must act on it: it names the parameter, the value that was
given and what is allowed. `code` is stable and becomes the `type` of an HTTP problem document; `status` is the
HTTP status the API answers with.
"""

from typing import ClassVar


class HeadroomError(Exception):
    """Something Headroom was asked to do cannot be done."""

    code: ClassVar[str] = "error"
    status: ClassVar[int] = 500


class InvalidRequest(HeadroomError):
    """A value in a request is not allowed."""

    code = "invalid-request"
    status = 422

    def __init__(self, parameter: str, value: object, allowed: str) -> None:
        super().__init__(f"{parameter}: {value!r} is not allowed; {allowed}")
        self.parameter = parameter
        self.value = value
        self.allowed = allowed


class Unauthorized(HeadroomError):
    """The API key is missing or not known."""

    code = "unauthorized"
    status = 401


class NotFound(HeadroomError):
    """No such job, report, figure or table."""

    code = "not-found"
    status = 404


class Conflict(HeadroomError):
    """The request does not fit the present state of what it names."""

    code = "conflict"
    status = 409


class TransitionNotAllowed(Conflict):
    """A job cannot go from its present status to the one asked for."""

    code = "transition-not-allowed"


class IdempotencyKeyReused(Conflict):
    """An Idempotency-Key came back with a different request."""

    code = "idempotency-key-reused"


class LeaseLost(HeadroomError):
    """The job was offered to somebody else, or ended, while this worker held it."""

    code = "lease-lost"
    status = 409


class ServiceUnreachable(HeadroomError):
    """No Headroom service answers at the address in use."""

    code = "service-unreachable"
    status = 503


class StoreFailed(HeadroomError):
    """An artifact could not be written whole, so nothing of it was kept."""

    code = "store-failed"
    status = 507
