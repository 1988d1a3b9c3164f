"""Checks piece by piece that a file is not empty, and is of the format that its name states."""

import codecs

from service.contracts.files import PARQUET_MAGIC, format_of
from service.errors import InvalidRequest

_SHOWN = 20


class FormatCheck:
    """The check of one file: `take` every piece in order, then `end`."""

    def __init__(self, field: str, name: str, *, in_base64: bool = True) -> None:
        """Take the field that errors name, and the file's name; `in_base64`: its field can hold Parquet."""
        self._field = field
        self._name = name
        self._parquet = format_of(name) == "parquet"
        self._where = "" if in_base64 else " in content_base64"
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._beginning = b""
        self._seen = 0
        self._blank = True

    def take(self, piece: bytes) -> None:
        """Check one piece. Raises InvalidRequest."""
        if len(self._beginning) < _SHOWN:
            self._beginning += piece[:_SHOWN]
        self._blank = self._blank and not piece.strip()
        if not self._parquet:
            self._decode(piece, final=False)
        self._seen += len(piece)

    def end(self) -> None:
        """Check what only the whole file shows. Raises InvalidRequest."""
        if self._blank:
            raise self._refused("is empty", "a file with content")
        if not self._parquet:
            self._decode(b"", final=True)
        elif not self._beginning.startswith(PARQUET_MAGIC):
            allowed = f"a Parquet file{self._where}, as the name {self._name!r} states"
            raise self._refused("is not the content of a Parquet file", allowed)

    def _decode(self, piece: bytes, *, final: bool) -> None:
        pending = len(self._decoder.getstate()[0])
        try:
            self._decoder.decode(piece, final)
        except UnicodeDecodeError as error:
            byte = self._seen - pending + error.start
            allowed = f"UTF-8 text, as the name {self._name!r} states"
            raise self._refused(f"is not UTF-8 text at byte {byte}", allowed) from error

    def _refused(self, problem: str, allowed: str) -> InvalidRequest:
        shown = self._beginning[:_SHOWN].decode("utf-8", "replace")
        return InvalidRequest(self._field, shown, allowed, problem=problem)
