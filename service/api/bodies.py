"""JSON bodies in which a key stands once: of two values for one field, none says which was meant."""

import json
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

SHOWN_CHARACTERS = 80
"""A longer key is cut to this length in the refusal."""


class UniqueKeys(APIRoute):
    """A route that answers 400 to a body with a doubled key."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the handler, which is given the request with a stricter reader."""
        handle = super().get_route_handler()

        async def handle_strictly(request: Request) -> Response:
            return await handle(_StrictRequest(request.scope, request.receive))

        return handle_strictly


class _StrictRequest(Request):
    async def json(self) -> Any:
        """Return the body. Raises json.JSONDecodeError, also for a doubled key."""
        return json.loads(await self.body(), object_pairs_hook=_object)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise json.JSONDecodeError(f"{key[:SHOWN_CHARACTERS]!r} stands twice in one object", "", 0)
        found[key] = value
    return found
