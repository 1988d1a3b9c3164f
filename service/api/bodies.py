"""Reads JSON bodies and refuses duplicate keys, whose meaning is ambiguous."""

import json
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

SHOWN_CHARACTERS = 80
"""A longer key is cut to this length in the message."""


class UniqueKeys(APIRoute):
    """A route that answers 400 to a body with a duplicate key."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return a handler that reads the request's body strictly."""
        handle = super().get_route_handler()

        async def handle_strictly(request: Request) -> Response:
            return await handle(_StrictRequest(request.scope, request.receive))

        return handle_strictly


class _StrictRequest(Request):
    async def json(self) -> Any:
        """Return the body. Raises json.JSONDecodeError, also for a duplicate key."""
        return json.loads(await self.body(), object_pairs_hook=_object)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for key, value in pairs:
        if key in fields:
            raise json.JSONDecodeError(f"the key {key[:SHOWN_CHARACTERS]!r} occurs twice in one object", "", 0)
        fields[key] = value
    return fields
