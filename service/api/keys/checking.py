"""Checks the API key of every request before anything else of it is read.

So an unknown caller cannot make the service parse anything. Only `/healthz`, `/readyz`, badges and feeds need no key;
the addresses of the latter two cannot be guessed.
"""

from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from service.api.keys.throttle import Buckets, Remembered
from service.api.problems import database_unavailable, problem, problem_of
from service.errors import LimitReached, ScopeMissing
from service.settings import Settings
from service.store.owners import access
from service.store.owners.access import EVERYTHING, Access, Limits
from service.store.owners.key_records import Key
from service.store.owners.keys import KeyStore

OPEN_PATHS = frozenset({"/healthz", "/readyz"})
OPEN_FOLDERS = ("/v1/badges/", "/v1/feeds/")
_KEY = "headroom.key"
_ACCESS = "headroom.access"
_READS = frozenset({"GET", "HEAD"})


BAD_KEYS = 20
"""Keys that are not valid which an address may send at once; afterwards one a second."""


class KeyRequired:
    """Answers 401 unless `Authorization: Bearer` or `X-API-Key` has a valid key; notes what the key lets one see.

    Keys of the scope `admin` have no limits. An address that sends many keys that are not valid gets 429 without a
    look at the database, except for keys that were valid before: they may come from others behind the same proxy.
    """

    def __init__(self, app: ASGIApp, keys: KeyStore, settings: Settings) -> None:
        self.app = app
        self.keys = keys
        self._settings = settings
        self._requests = Buckets(settings.requests_per_second)
        self._bad = Buckets(1.0, BAD_KEYS)
        self._good = Remembered()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if scope["path"] in OPEN_PATHS or scope["path"].startswith(OPEN_FOLDERS):
            scope[_ACCESS] = EVERYTHING
            await self.app(scope, receive, send)
            return
        presented = presented_key(Headers(scope=scope))
        try:
            refusal = await self._refusal(scope, presented)
        except LimitReached as error:
            refusal = problem_of(error)
        except (OperationalError, InterfaceError, PoolTimeout):
            refusal = database_unavailable()
        await (self.app if refusal is None else refusal)(scope, receive, send)

    async def _refusal(self, scope: Scope, presented: str | None) -> JSONResponse | None:
        """Return the answer to a request without a valid key; None for one that may go on. Raises LimitReached."""
        if presented is None:
            return _unauthorized("an API key is required; send the header Authorization: Bearer KEY, or X-API-Key: KEY")
        key = self.keys.verified(presented) or await self._verify(scope, presented)
        if key is None:
            return _unauthorized("this API key is unknown to the service, expired or revoked; send another key")
        scope[_KEY], scope[_ACCESS] = key, key.access
        if not key.allows("admin"):
            self._check_rate(key)
            scope[_ACCESS] = replace(key.access, limits=self._limits_of(key))
        return None

    async def _verify(self, scope: Scope, presented: str) -> Key | None:
        """Ask the database for a key. Raises LimitReached for an address that sent too many that are not valid."""
        address = (scope.get("client") or ("unknown", 0))[0]
        if presented not in self._good and (wait := self._bad.wait(address)):
            raise LimitReached(f"bad API keys: {address} sent too many; wait before the next", wait)
        key = await run_in_threadpool(self.keys.verify, presented)
        if key is None:
            self._bad.take(address)
        else:
            self._good.add(presented)
        return key

    def _limits_of(self, key: Key) -> Limits:
        own = key.limits
        queued = self._settings.queued_jobs if own.queued_jobs is None else own.queued_jobs
        uploads = self._settings.upload_bytes_per_day if own.upload_bytes_per_day is None else own.upload_bytes_per_day
        return Limits(queued, uploads)

    def _check_rate(self, key: Key) -> None:
        """Raise LimitReached for a request too many."""
        wait = self._requests.take(key.id, key.limits.requests_per_second)
        if wait:
            raise LimitReached(
                f"requests a second: the key {key.name!r} sent too many "
                "(HEADROOM_REQUESTS_PER_SECOND of the service, or the key's own limit); wait before the next",
                wait,
            )


def access_of(request: Request) -> Access:
    """Return what the caller of a request may see."""
    granted = request.scope[_ACCESS]
    assert isinstance(granted, Access)
    return granted


def requires(scope: access.Scope) -> Callable[[Request], Coroutine[Any, Any, None]]:
    """Return a dependency of routes that raises ScopeMissing unless the caller's key has the scope."""

    async def check(request: Request) -> None:
        _check(request, scope)

    return check


def requires_by_method(request: Request) -> None:
    """Raise ScopeMissing unless the caller's key has `read` for a request that changes nothing, else `submit`."""
    _check(request, "read" if request.method in _READS else "submit")


def _check(request: Request, scope: access.Scope) -> None:
    key = request.scope[_KEY]
    assert isinstance(key, Key)
    if not key.allows(scope):
        has = ", ".join(key.scopes)
        raise ScopeMissing(f"scope: the key {key.name!r} has {has}, and {request.method} of this needs {scope}")


def _unauthorized(detail: str) -> JSONResponse:
    return problem("unauthorized", 401, detail, headers={"WWW-Authenticate": "Bearer"})


def presented_key(headers: Headers) -> str | None:
    """Return the key that a request presents, valid or not."""
    scheme, _, credentials = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and credentials.strip():
        return credentials.strip()
    return headers.get("x-api-key") or None
