"""The errors of the service, as one tree.

A message names the parameter, its value and what is allowed. `code` is stable and becomes the `type` of an HTTP
problem document; `status` is the HTTP status of the API's answer.
"""

from typing import ClassVar


class HeadroomError(Exception):
    """Base of the errors that have a message for the user."""

    code: ClassVar[str] = "error"
    status: ClassVar[int] = 500


class InvalidRequest(HeadroomError):
    """A value in a request is not allowed."""

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


class Unauthorized(HeadroomError):
    """The API key is missing or unknown."""

    code = "unauthorized"
    status = 401


class NotFound(HeadroomError):
    """No such job, report, figure or table."""

    code = "not-found"
    status = 404


class Conflict(HeadroomError):
    """The present state of a resource does not allow the request."""

    code = "conflict"
    status = 409


class TransitionNotAllowed(Conflict):
    """The job's present status does not allow the requested one."""

    code = "transition-not-allowed"


class IdempotencyKeyReused(Conflict):
    """An Idempotency-Key was used before, with another request."""

    code = "idempotency-key-reused"


class LeaseLost(HeadroomError):
    """The job went to another worker, or ended, while this worker held it."""

    code = "lease-lost"
    status = 409


class ServiceUnreachable(HeadroomError):
    """The service, its database or its broker does not answer."""

    code = "service-unreachable"
    status = 503


class StoreFailed(HeadroomError):
    """An artifact could not be written; no part of it is kept."""

    code = "store-failed"
    status = 507
