"""Files that a command sends: small ones inside the request, larger ones uploaded before it."""

import base64
from pathlib import Path
from typing import Any

from service.contracts.files import PARQUET_MAGIC, format_of
from service.errors import InvalidRequest
from service.file_checks import FormatCheck

INLINE_BYTES = 64 << 10
"""The largest file inside a request."""
_CHUNK = 1 << 20
_NO_ID = "0" * 32


class LargeFile(dict[str, str]):
    """A file in the body of a request, which the client uploads when it sends the body."""

    def __init__(self, name: str, path: Path) -> None:
        super().__init__(name=name, file=_NO_ID)
        self.path = path


def upload(option: str, path: Path, largest: int, *, name: str | None = None) -> dict[str, Any]:
    """Return what a request holds of the file that `option` names: its text, Parquet in base64, or a LargeFile.

    Args:
        option: For errors.
        path: Where it is.
        largest: Bytes that it may have.
        name: What the service calls it; default: the path's name.

    Raises InvalidRequest.
    """
    name = name or path.name
    parquet = format_of(name) == "parquet"
    what = "a Parquet file" if parquet else "a file of UTF-8 text"
    if _size(option, path, f"{what}, 1 to {largest} bytes") > INLINE_BYTES:
        _check_large(option, path, name, largest, what)
        return LargeFile(name, path)
    if not parquet:
        return {"name": name, "text": read_text(option, path, largest)}
    content = _read(option, path, largest, what)
    if not content.startswith(PARQUET_MAGIC):
        raise InvalidRequest(
            option, str(path), "a file that begins with the bytes PAR1", problem="is not a Parquet file"
        )
    return {"name": name, "content_base64": base64.b64encode(content).decode()}


def read_text(option: str, path: Path, largest: int) -> str:
    """Return the text in the file that `option` names. Raises InvalidRequest.

    It must be UTF-8 and hold something, and have at most `largest` bytes.
    """
    content = _read(option, path, largest, "a file of UTF-8 text")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        allowed = f"a file of UTF-8 text, 1 to {largest} bytes"
        raise InvalidRequest(option, str(path), allowed, problem=f"is not UTF-8 at byte {error.start}") from error


def _size(option: str, path: Path, allowed: str) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise InvalidRequest(option, str(path), allowed, problem=f"cannot be read ({error.strerror})") from error


def _check_large(option: str, path: Path, name: str, largest: int, what: str) -> None:
    """Raise InvalidRequest for a file that the service would refuse."""
    check = FormatCheck(option, name)
    size = 0
    try:
        with path.open("rb") as file:
            while piece := file.read(_CHUNK):
                size += len(piece)
                if size > largest:
                    allowed = f"{what}, 1 to {largest} bytes"
                    raise InvalidRequest(option, str(path), allowed, problem="is too large")
                check.take(piece)
        check.end()
    except OSError as error:
        raise InvalidRequest(option, str(path), what, problem=f"cannot be read ({error.strerror})") from error
    except InvalidRequest as error:
        raise InvalidRequest(option, str(path), error.allowed, problem=error.problem) from error


def _read(option: str, path: Path, largest: int, what: str) -> bytes:
    allowed = f"{what}, 1 to {largest} bytes"
    try:
        with path.open("rb") as file:
            content = file.read(largest + 1)
    except OSError as error:
        raise InvalidRequest(option, str(path), allowed, problem=f"cannot be read ({error.strerror})") from error
    if not content.strip():
        raise InvalidRequest(option, str(path), allowed, problem="is empty")
    if len(content) > largest:
        raise InvalidRequest(option, str(path), allowed, problem="is too large")
    return content
