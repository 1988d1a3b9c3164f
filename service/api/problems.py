"""Turns errors into problem documents (RFC 9457).

`type` is stable, for programs; `detail` is a message for the user. `errors` has one entry for each refused value: the
field, the value and what is allowed.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from http import HTTPStatus
from itertools import islice
from typing import Any

from anyio import to_thread
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import OperationalError
from starlette.exceptions import HTTPException

from service.api.bodies import ONE_BODY, BodyRefused
from service.contracts import refusals
from service.contracts.audits.audit import AuditSubmission
from service.contracts.request import JobSubmission
from service.errors import HeadroomError, InvalidRequest, LimitReached

TYPE_PREFIX = "urn:headroom:problem:"
"""A problem's `type` is this and the error's `code`."""
MEDIA_TYPE = "application/problem+json"
LARGEST_NUMBER = 1e100
"""Larger numbers, infinity and NaN are sent back as text: not every JSON parser accepts them."""
SHOWN_CHARACTERS = 200
"""Longer values are cut to this length before they are sent back."""
SHOWN_DEPTH = 3
"""Deeper values are left out."""
NAMED_ERRORS = 20
"""Refused values that a problem document names at most; its message states how many more there are."""

_HTTP_CODES = {
    400: "malformed-request",
    404: "not-found",
    405: "method-not-allowed",
    413: "body-too-large",
    416: "range-not-satisfiable",
}


def problem(
    code: str,
    status: int,
    detail: str,
    *,
    errors: Sequence[Mapping[str, Any]] = (),
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    """Return the response that states one problem."""
    title = code.replace("-", " ").capitalize()
    content: dict[str, Any] = {"type": TYPE_PREFIX + code, "title": title, "status": status, "detail": detail}
    if errors:
        content["errors"] = [{**error, "value": _shown(error["value"])} for error in errors]
    return JSONResponse(content, status_code=status, media_type=MEDIA_TYPE, headers=dict(headers or {}))


def install(app: FastAPI) -> None:
    """Make `app` answer every error with a problem document."""
    app.add_exception_handler(HeadroomError, _headroom_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(BodyRefused, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(OperationalError, _database_error)
    app.add_exception_handler(Exception, _unforeseen_error)


def _headroom_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HeadroomError)
    return problem_of(error)


def problem_of(error: HeadroomError) -> JSONResponse:
    """Return the problem document of an error."""
    if isinstance(error, InvalidRequest):
        field = _shown(error.parameter)
        entry = {"field": field, "value": error.value, "allowed": error.allowed}
        detail = error.message or f"{field}: {_written(error.value)} {error.problem}; allowed: {error.allowed}"
        return problem(error.code, error.status, detail, errors=[entry])
    headers = {"Retry-After": str(error.retry_after)} if isinstance(error, LimitReached) else {}
    return problem(error.code, error.status, str(error), headers=headers)


async def _validation_error(request: Request, error: Exception) -> JSONResponse:
    """Name what is wrong in a thread, one request at a time: finding similar names takes some milliseconds."""
    if isinstance(error, BodyRefused):
        error = error.validation
    assert isinstance(error, RequestValidationError)
    return await to_thread.run_sync(_named_errors, request, error, limiter=ONE_BODY)


def _named_errors(request: Request, error: RequestValidationError) -> JSONResponse:
    items = _causes(error.errors())
    if isinstance(error.body, bytes) and error.body:  # the body was not parsed as JSON
        sent = request.headers.get("content-type", "")[:SHOWN_CHARACTERS]
        return problem(
            "unsupported-media-type", 415, f"Content-Type: {sent!r} is not allowed; allowed: application/json"
        )
    if any(item["type"] == "json_invalid" for item in items):
        return problem("malformed-request", 400, f"the body is not valid JSON: {items[0]['ctx']['error']}")
    keys = (AuditSubmission if request.url.path.startswith("/v1/audits") else JobSubmission).model_fields
    entries, sentences = zip(*(_refused(item, keys) for item in items[:NAMED_ERRORS]), strict=True)
    more = (f"and {len(items) - NAMED_ERRORS} more errors",) if len(items) > NAMED_ERRORS else ()
    return problem(InvalidRequest.code, InvalidRequest.status, "; ".join((*sentences, *more)), errors=entries)


def _causes(items: Sequence[Any]) -> list[Any]:
    """Return errors without those that follow from others: a list is too short where its elements were refused."""
    places = [tuple(item["loc"]) for item in items]

    def follows(item: Any) -> bool:
        place = tuple(item["loc"])
        return item["type"] == "too_short" and any(o[: len(place)] == place and len(o) > len(place) for o in places)

    return [item for item in items if not follows(item)]


def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    code = _HTTP_CODES.get(error.status_code, HTTPStatus(error.status_code).phrase.lower().replace(" ", "-"))
    detail = error.detail
    if detail == HTTPStatus(error.status_code).phrase:  # the framework's text does not name the request
        detail = f"{detail}: {request.method} {request.url.path[:SHOWN_CHARACTERS]}"
    return problem(code, error.status_code, detail, headers=error.headers)


def _database_error(_: Request, __: Exception) -> JSONResponse:
    return database_unavailable()


def database_unavailable() -> JSONResponse:
    """Return the answer while the database cannot be reached."""
    return problem(
        "database-unavailable", 503, "the database does not answer; try again later", headers={"Retry-After": "5"}
    )


def _unforeseen_error(_: Request, __: Exception) -> JSONResponse:
    return problem("internal", 500, "the service failed; its log has the cause")


def _refused(item: Mapping[str, Any], keys: Collection[str]) -> tuple[dict[str, Any], str]:
    """Return the entry of `errors` for one of pydantic's errors, and its sentence; `keys` are the body's."""
    place = [str(part) for part in item["loc"]]
    field = ".".join(place[1:]) or place[0]
    value = None if item["type"] == "missing" else item["input"]
    entry = {"field": _shown(field), "value": value, "allowed": refusals.allowed(item) + _similar_field(item, keys)}
    return entry, refusals.sentence(_shown(field), _written(value), item) + _similar_field(item, keys)


def _similar_field(item: Mapping[str, Any], keys: Collection[str]) -> str:
    """Return a sentence that names the key most similar to an unknown one."""
    if item["type"] != "extra_forbidden" or len(item["loc"]) != 2:
        return ""
    return refusals.nearest(str(item["loc"][-1]), keys)


def _written(value: Any) -> str:
    """Return a value as a sentence shows it: text in quotes, the rest as JSON, cut when long."""
    shown = _shown(value)
    return repr(shown) if isinstance(value, str) or not isinstance(shown, str) else shown


def _shown(value: Any) -> Any:
    """Return `value` as JSON can hold it and a person can read it: simple values as they are, cut when long."""
    if value is None or isinstance(value, bool) or (isinstance(value, int | float) and abs(value) < LARGEST_NUMBER):
        return value
    length = f" ({len(value)} characters)" if isinstance(value, str) else ""
    text = _first_items(value)
    if not isinstance(text, str):
        text = json.dumps(text, default=repr, ensure_ascii=False)
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")  # JSON can spell half a surrogate pair
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}…{length}"


def _first_items(value: Any, depth: int = SHOWN_DEPTH) -> Any:
    """Return a value without what cannot be in its first characters, so that a large one is not written out whole."""
    if isinstance(value, str):
        return value[: SHOWN_CHARACTERS + 1]
    if not isinstance(value, Mapping | list | tuple):
        return value
    if depth == 0:
        return "…"
    items = list(islice(value.items() if isinstance(value, Mapping) else enumerate(value), SHOWN_CHARACTERS))
    if isinstance(value, Mapping):
        return {_first_items(key): _first_items(item, depth - 1) for key, item in items}
    return [_first_items(item, depth - 1) for _, item in items]
