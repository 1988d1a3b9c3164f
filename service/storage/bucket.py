"""Files in a bucket of an S3-compatible object store, through obstore.

Endpoint, region and credentials come from the usual AWS variables: AWS_ENDPOINT_URL, AWS_REGION, AWS_ACCESS_KEY_ID,
AWS_SECRET_ACCESS_KEY and so on. A file is read whole before it is put, so that its key is known; while it is sent its
SHA-256 is taken again, and a file that changed meanwhile never appears.
"""

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import obstore
from obstore.exceptions import BaseError, GenericError
from obstore.store import S3Store

from service.errors import StoreFailed, StoreUnreachable
from service.storage.cache import FileCache
from service.storage.port import CHUNK, Entry, check_digest, digest_of

PART_BYTES = 16 << 20
"""Size of the parts in which a file is sent and fetched; the largest file is 10,000 parts."""
FRESH = timedelta(hours=1)
"""A file that was put longer ago is put again, so that its time says when it was last asked for."""
_CONCURRENT_PARTS = 4
_CONNECT_SECONDS = timedelta(seconds=5)
_REQUEST_SECONDS = timedelta(seconds=120)
"""How long one request may take, which sends or fetches a part at most."""
_RETRIES = 4
_RETRY_SECONDS = timedelta(seconds=20)
_CHECK = "check AWS_ENDPOINT_URL, AWS_REGION, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and what the key may do"
_NO_BUCKET = "NoSuchBucket"


class BucketStorage:
    """The objects of a bucket under a prefix; safe to use from several threads and processes."""

    def __init__(self, bucket: str, prefix: str, cache: FileCache) -> None:
        self._name = f"s3://{bucket}/{prefix}".rstrip("/")
        self._cache = cache
        with self._reporting("be opened"):
            self._store = S3Store(
                bucket,
                prefix=prefix or None,
                client_options={
                    "connect_timeout": _CONNECT_SECONDS,
                    "timeout": _REQUEST_SECONDS,
                    "allow_http": _may_be_http(),
                },
                retry_config={"max_retries": _RETRIES, "retry_timeout": _RETRY_SECONDS},
            )

    @property
    def url(self) -> str:
        """`s3://BUCKET/PREFIX`."""
        return self._name

    def check(self) -> None:
        """Ask the store for something, whatever it is."""
        with suppress(FileNotFoundError):
            self.read("store-id")

    def put(self, content: Path | bytes, key_of: Callable[[str], str]) -> tuple[str, int]:
        """Keep content, in parts where it is large."""
        with BytesIO(content) if isinstance(content, bytes) else content.open("rb") as source:
            sha256, size = digest_of(source)
            key = key_of(sha256)
            if not self._is_fresh(key, size):
                source.seek(0)
                with self._reporting(f"take {key!r}"):
                    obstore.put(
                        self._store,
                        key,
                        _verified(source, sha256),
                        chunk_size=PART_BYTES,
                        max_concurrency=_CONCURRENT_PARTS,
                    )
        return sha256, size

    def path(self, key: str, sha256: str) -> Path:
        """Return the copy of an object on this machine, fetched if need be."""
        return self._cache.get(sha256, lambda target: self.copy(key, sha256, target))

    def copy(self, key: str, sha256: str, target: Path) -> None:
        """Fetch an object in parts, each of which is tried again by itself."""
        with self._reporting(f"give {key!r}"):
            size = obstore.head(self._store, key)["size"]
        digest = hashlib.sha256()
        with target.open("xb") as sink:
            for start in range(0, size, PART_BYTES):
                with self._reporting(f"give {key!r}"):
                    part = obstore.get_range(self._store, key, start=start, length=min(PART_BYTES, size - start))
                digest.update(part)
                sink.write(part)
        check_digest(self.url, key, sha256, digest.hexdigest())

    def read(self, key: str) -> bytes:
        """Return the content of an object."""
        with self._reporting(f"give {key!r}"):
            return bytes(obstore.get(self._store, key).bytes())

    def write(self, key: str, content: bytes) -> None:
        """Keep a small object in place of the one before."""
        with self._reporting(f"take {key!r}"):
            obstore.put(self._store, key, content)

    def delete(self, key: str) -> None:
        """Remove an object, if it is there."""
        with self._reporting(f"delete {key!r}"):
            obstore.delete(self._store, key)

    def entries(self, prefix: str = "") -> Iterator[Entry]:
        """Yield the objects under a prefix."""
        with self._reporting(f"list {prefix!r}"):
            for listed in obstore.list(self._store, prefix.rstrip("/") or None):
                yield from (Entry(one["path"], one["size"], one["last_modified"]) for one in listed)

    def delete_older(self, key: str, than: datetime) -> bool:
        """Remove an object that has not been put again; a put in the same moment may lose."""
        modified = self._modified(key)
        if modified is None or modified >= than:
            return False
        self.delete(key)
        return True

    def delete_unfinished(self, than: datetime) -> None:
        """Do nothing: a rule of the bucket removes uploads that were broken off."""

    def signed(self, key: str, seconds: int) -> str | None:
        """Return a presigned URL."""
        with self._reporting(f"sign {key!r}"):
            return obstore.sign(self._store, "GET", key, timedelta(seconds=seconds))

    def _is_fresh(self, key: str, size: int) -> bool:
        """Return whether an object is there whole and was put so lately that it need not be put again."""
        with self._reporting(f"find {key!r}"):
            try:
                facts = obstore.head(self._store, key)
            except FileNotFoundError:
                return False
        return facts["size"] == size and facts["last_modified"] > datetime.now(UTC) - FRESH

    def _modified(self, key: str) -> datetime | None:
        with self._reporting(f"find {key!r}"):
            try:
                return obstore.head(self._store, key)["last_modified"]
            except FileNotFoundError:
                return None

    @contextmanager
    def _reporting(self, what: str) -> Iterator[None]:
        """Turn what obstore raises into an error that says what to check."""
        try:
            yield
        except FileNotFoundError as error:
            if _NO_BUCKET in str(error):
                raise StoreFailed(
                    f"{self._name}: there is no such bucket; make it, or check AWS_ENDPOINT_URL"
                ) from error
            raise
        except GenericError as error:
            failure = StoreUnreachable if _is_transient(error) else StoreFailed
            raise failure(f"{self._name} did not {what}: {_reason(error)}; {_CHECK}") from error
        except BaseError as error:
            raise StoreFailed(f"{self._name} did not {what}: {_reason(error)}; {_CHECK}") from error


def _verified(source: BinaryIO, expected: str) -> Iterator[bytes]:
    """Yield a file in chunks; raises StoreFailed at the end when it is no longer what was read before."""
    digest = hashlib.sha256()
    while chunk := source.read(CHUNK):
        digest.update(chunk)
        yield chunk
    if digest.hexdigest() != expected:
        raise StoreFailed(f"{getattr(source, 'name', 'the content')} changed while it was stored; store it again")


def _may_be_http() -> bool:
    """Return whether an endpoint without TLS is meant: it is named with http://, or AWS_ALLOW_HTTP allows it."""
    endpoints = (os.environ.get(name, "") for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT"))
    allowed = os.environ.get("AWS_ALLOW_HTTP", "").lower() in {"1", "true", "yes"}
    return allowed or any(endpoint.startswith("http://") for endpoint in endpoints)


def _is_transient(error: GenericError) -> bool:
    """Return whether trying again later may help: the store did not answer, or answered that it cannot just now."""
    said = str(error)
    return "HTTP error" in said or "status code: 5" in said or "status code: 429" in said


def _reason(error: Exception) -> str:
    """Return the first line of a message, without the dump that follows it."""
    return str(error).strip().partition("\n")[0][:500]
