"""Checks every request before a route reads it: first the API key, then the size of the body.

So an unknown caller cannot make the service parse anything, and no body above the limit is held in memory. Only
`/healthz`, `/readyz`, badges and feeds need no key; the addresses of the latter two cannot be guessed.
"""

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.problems import problem
from service.store.keys import KeyStore

OPEN_PATHS = frozenset({"/healthz", "/readyz"})
OPEN_FOLDERS = ("/v1/badges/", "/v1/feeds/")


class KeyRequired:
    """Answers 401 unless `Authorization: Bearer` or `X-API-Key` has a known key."""

    def __init__(self, app: ASGIApp, keys: KeyStore) -> None:
        self.app = app
        self.keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS or scope["path"].startswith(OPEN_FOLDERS):
            await self.app(scope, receive, send)
            return
        presented = _presented_key(Headers(scope=scope))
        if presented is None:
            refusal = "an API key is required; send the header Authorization: Bearer KEY, or X-API-Key: KEY"
        elif await run_in_threadpool(self.keys.verify, presented) is None:
            refusal = "the service does not know this API key; send another key"
        else:
            await self.app(scope, receive, send)
            return
        response = problem("unauthorized", 401, refusal, headers={"WWW-Authenticate": "Bearer"})
        await response(scope, receive, send)


class BodyLimit:
    """Answers 413 to a body of more than `limit` bytes, with or without a Content-Length."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self.app = app
        self.limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        refusal = f"the body is too large; allowed: {self.limit} bytes (HEADROOM_MAX_UPLOAD_BYTES of the service)"
        announced = Headers(scope=scope).get("content-length", "")
        if announced.isdecimal() and int(announced) > self.limit:
            await problem("body-too-large", 413, refusal)(scope, receive, send)
            return
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.limit:
                raise HTTPException(413, refusal)
            return message

        await self.app(scope, counted, send)


def _presented_key(headers: Headers) -> str | None:
    scheme, _, credentials = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and credentials.strip():
        return credentials.strip()
    return headers.get("x-api-key") or None
