"""Checks the size of every body before a route reads it, so that none above the limit is held in memory."""

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.problems import problem

JSON_BYTES = 1 << 20
"""The largest body of every call but that which uploads a file."""
UPLOAD_PATH = "/v1/files"


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
