"""Opens the place that HEADROOM_ARTIFACTS_URL names."""

import os
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from service.errors import InvalidRequest
from service.storage.cache import FileCache
from service.storage.directory import DirectoryStorage
from service.storage.port import Storage

_NAME = "HEADROOM_ARTIFACTS_URL"
_ALLOWED = "file:///DIRECTORY or s3://BUCKET/PREFIX"
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_PREFIX = re.compile(r"[A-Za-z0-9!_.*'()-]+(/[A-Za-z0-9!_.*'()-]+)*")


def open_storage(url: str, cache: FileCache, *, parameter: str = _NAME) -> Storage:
    """Return the place at a URL; a directory is made when missing.

    Files of a bucket are copied into `cache` to be read. Raises InvalidRequest, which names `parameter`, and
    StoreFailed.
    """
    parts = urlsplit(url)
    if "@" in parts.netloc:
        problem = "holds credentials, which come from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        raise InvalidRequest(parameter, f"{parts.scheme}://...@...", _ALLOWED, problem=problem)
    if parts.query or parts.fragment:
        raise InvalidRequest(parameter, url, _ALLOWED, problem="has a query or a fragment")
    if parts.scheme == "file" and parts.netloc in ("", "localhost") and parts.path.startswith("/"):
        return _directory(Path(unquote(parts.path)), parameter, url)
    prefix = parts.path.strip("/")
    if parts.scheme == "s3" and _BUCKET.fullmatch(parts.netloc) and _is_prefix(prefix):
        from service.storage.bucket import BucketStorage  # which loads obstore; a directory needs none

        return BucketStorage(parts.netloc, prefix, cache)
    raise InvalidRequest(parameter, url, _ALLOWED)


def _is_prefix(prefix: str) -> bool:
    return prefix == "" or (_PREFIX.fullmatch(prefix) is not None and not {".", ".."} & set(prefix.split("/")))


def _directory(root: Path, parameter: str, url: str) -> Storage:
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        problem = f"is a directory that cannot be made ({error.strerror})"
        raise InvalidRequest(parameter, url, _ALLOWED, problem=problem) from error
    if not os.access(root, os.R_OK | os.W_OK | os.X_OK):
        raise InvalidRequest(parameter, url, _ALLOWED, problem="is a directory that this user cannot write to")
    return DirectoryStorage(root)
