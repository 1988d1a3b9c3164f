"""The strict reading of JSON bodies, which no body makes costly for other callers.

C code that parses or validates does not let other threads run. So a body is refused by its number of parts before it
is parsed, and a large one is parsed and validated in a thread, one at a time, while the event loop answers others.
"""

import json
import re
from collections.abc import Callable, Coroutine
from itertools import islice
from typing import Any

from anyio import CapacityLimiter, to_thread
from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope

SMALL_BODY = 16 << 10
"""Bytes of a body that is parsed in the event loop."""
MOST_KEYS = 2000
"""Keys that the objects of one body may have together: a validator names every unknown one."""
MOST_PARTS = 50_000
"""Texts, commas and opening brackets of one body, those inside of texts not counted."""
SHOWN_CHARACTERS = 200
"""A longer key is cut to this length in the message."""
ONE_BODY = CapacityLimiter(1)
"""For threads that parse, validate or refuse a body: more of them would only keep the event loop from its turn."""
# The possessive repetitions, and the closing mark that may be missing, keep the search linear in the body's length.
_PART = re.compile(rb'[,\[{]|"(?:[^"\\]++|\\.)*+"?', re.DOTALL)


class BodyRefused(HTTPException):
    """Raised for a large body that is not what its route takes."""

    def __init__(self, errors: list[dict[str, Any]], body: Any) -> None:
        super().__init__(422)
        self.validation = RequestValidationError(errors, body=body)


class UniqueKeys(APIRoute):
    """A route that answers 400 to a body with a duplicate key, or with too many keys or parts."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return a handler that reads the request's body strictly."""
        handle = super().get_route_handler()

        async def handle_strictly(request: Request) -> Response:
            return await handle(_StrictRequest(request.scope, request.receive, self.body_field))

        return handle_strictly


class _StrictRequest(Request):
    def __init__(self, scope: Scope, receive: Receive, field: Any) -> None:
        """`field` is what FastAPI validates the body with; None where the route takes none."""
        super().__init__(scope, receive)
        self._field = field

    async def json(self) -> Any:
        """Return the body; a large one already validated, which FastAPI then takes as it is.

        Raises json.JSONDecodeError, also for a duplicate key and for too many keys or parts, and BodyRefused.
        """
        body = await self.body()
        if len(body) <= SMALL_BODY:
            return _parse(body)
        return await to_thread.run_sync(self._validated, body, limiter=ONE_BODY)

    def _validated(self, body: bytes) -> Any:
        parsed = _parse(body)
        value, errors = self._field.validate(parsed, {}, loc=("body",))
        if errors:
            raise BodyRefused(errors, parsed)
        return value


def _parse(body: bytes) -> Any:
    if next(islice(_PART.finditer(body), MOST_PARTS, None), None) is not None:
        raise json.JSONDecodeError(f"it has more than {MOST_PARTS} texts, commas and opening brackets", "", 0)
    return json.loads(body, object_pairs_hook=_Keys().object)


class _Keys:
    """Makes the objects of one body, and counts their keys."""

    def __init__(self) -> None:
        self._left = MOST_KEYS

    def object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        """Return an object of these keys and values."""
        self._left -= len(pairs)
        if self._left < 0:
            raise json.JSONDecodeError(f"it has more than {MOST_KEYS} keys", "", 0)
        fields: dict[str, Any] = {}
        for key, value in pairs:
            if key in fields:
                raise json.JSONDecodeError(f"the key {key[:SHOWN_CHARACTERS]!r} occurs twice in one object", "", 0)
            fields[key] = value
        return fields
