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
JSON_BYTES = 1 << 20
"""The largest body of every call but that which uploads a file."""
UPLOAD_PATH = "/v1/files"


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
    """Answers 413 to a body above the limit, with or without a Content-Length; no more of it is read.

    The limit is JSON_BYTES, and for an uploaded file `upload_limit` bytes, if that is more.
    """

    def __init__(self, app: ASGIApp, upload_limit: int) -> None:
        self.app = app
        self.upload_limit = upload_limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        limit, refusal = self._limit(scope["path"])
        announced = Headers(scope=scope).get("content-length", "")
        if announced.isdecimal() and int(announced) > limit:
            await problem("body-too-large", 413, refusal)(scope, receive, send)
            return
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > limit:
                raise HTTPException(413, refusal)
            return message

        await self.app(scope, counted, send)

    def _limit(self, path: str) -> tuple[int, str]:
        """Return the largest body of a call in bytes, and the message for a larger one."""
        if path == UPLOAD_PATH:
            limit = self.upload_limit
            return limit, f"the file is too large; allowed: {limit} bytes (HEADROOM_MAX_UPLOAD_BYTES of the service)"
        limit = min(JSON_BYTES, self.upload_limit)
        return limit, f"the body is too large; allowed: {limit} bytes; upload larger files with POST {UPLOAD_PATH}"


def _presented_key(headers: Headers) -> str | None:
    scheme, _, credentials = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and credentials.strip():
        return credentials.strip()
    return headers.get("x-api-key") or None
