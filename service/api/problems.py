"""Every refusal in one form: problem documents after RFC 9457.

`type` is stable and meant for programs; `detail` is meant for the person who must act on it. A refused value
stands in `errors`, one entry each: the field, the value that was given and what is allowed.
"""

import json
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import OperationalError
from starlette.exceptions import HTTPException

from service.errors import HeadroomError, InvalidRequest, Unauthorized

TYPE_PREFIX = "urn:headroom:problem:"
"""Stands before an error's `code`, to make up the problem's `type`."""
MEDIA_TYPE = "application/problem+json"
LARGEST_NUMBER = 1e100
"""Numbers from here on, infinity and NaN are sent back as text: not every reader of JSON takes them."""
SHOWN_CHARACTERS = 200
"""Longer values are cut to this length before they are sent back."""

_IN_JSON = {"tuple_type": "a valid list", "model_attributes_type": "a valid object"}
"""What a field must hold, as JSON calls it, where the validator's message is in Python's words."""
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
    """Have `app` answer every error with a problem document."""
    app.add_exception_handler(HeadroomError, _headroom_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(OperationalError, _database_error)
    app.add_exception_handler(Exception, _unforeseen_error)


def _headroom_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HeadroomError)
    if isinstance(error, InvalidRequest):
        refused = {"field": _shown(error.parameter), "value": error.value, "allowed": error.allowed}
        return problem(error.code, error.status, _sentence(refused), errors=[refused])
    headers = {"WWW-Authenticate": "Bearer"} if isinstance(error, Unauthorized) else None
    return problem(error.code, error.status, str(error), headers=headers)


def _validation_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    found = error.errors()
    if isinstance(error.body, bytes) and error.body:  # read, and not taken for JSON
        sent = request.headers.get("content-type", "")[:SHOWN_CHARACTERS]
        return problem("unsupported-media-type", 415, f"Content-Type: {sent!r}; a body must be application/json")
    if any(item["type"] == "json_invalid" for item in found):
        return problem("malformed-request", 400, f"the body is not valid JSON: {found[0]['ctx']['error']}")
    errors = [_refused(item) for item in found]
    detail = "; ".join(map(_sentence, errors))
    return problem(InvalidRequest.code, InvalidRequest.status, detail, errors=errors)


def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    code = _HTTP_CODES.get(error.status_code, HTTPStatus(error.status_code).phrase.lower().replace(" ", "-"))
    detail = error.detail
    if detail == HTTPStatus(error.status_code).phrase:  # the framework's own words say nothing of what was asked
        detail = f"{detail}: {request.method} {request.url.path[:SHOWN_CHARACTERS]}"
    return problem(code, error.status_code, detail, headers=error.headers)


def _database_error(_: Request, __: Exception) -> JSONResponse:
    return problem("database-unavailable", 503, "the database does not answer; try again", headers={"Retry-After": "5"})


def _unforeseen_error(_: Request, __: Exception) -> JSONResponse:
    return problem("internal", 500, "something went wrong inside the service; its log says more")


def _refused(item: Mapping[str, Any]) -> dict[str, Any]:
    """Return one entry of `errors` for one of pydantic's."""
    place = [str(part) for part in item["loc"]]
    field = ".".join(place[1:]) or place[0]
    if item["type"] == "missing":
        return {"field": field, "value": None, "allowed": "it is required"}
    if item["type"] == "extra_forbidden":
        return {"field": field, "value": item["input"], "allowed": "there is no such field"}
    if item["type"] in _IN_JSON:
        return {"field": field, "value": item["input"], "allowed": f"Input should be {_IN_JSON[item['type']]}"}
    return {"field": field, "value": item["input"], "allowed": item["msg"].removeprefix("Value error, ")}


def _sentence(refused: Mapping[str, Any]) -> str:
    """Return one entry of `errors` in words."""
    value, shown = refused["value"], _shown(refused["value"])
    written = repr(shown) if isinstance(value, str) or not isinstance(shown, str) else shown
    return f"{refused['field']}: {written} is not allowed; {refused['allowed']}"


def _shown(value: Any) -> Any:
    """Return `value` as JSON can hold it and a person can read it: simple values as they are, cut when long."""
    if value is None or isinstance(value, bool) or (isinstance(value, int | float) and abs(value) < LARGEST_NUMBER):
        return value
    text = value if isinstance(value, str) else json.dumps(value, default=repr, ensure_ascii=False)
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")  # JSON can spell half a surrogate pair
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}… ({len(text)} characters)"
