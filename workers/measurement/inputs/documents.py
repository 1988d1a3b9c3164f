"""Reads the documents in a calibration file piece by piece, so that a large file never lies in memory whole.

    text      UTF-8; the file is one document
    jsonl     one JSON object a line: {"text": "..."} or {"token_ids": [1, 2, 3]}
    parquet   one row a document: a column `text` of strings, or `token_ids` of lists of integers

The file's format is known from its name; its content must agree. The first record, or the columns, decide whether
texts or token ids are read. A file that has both is refused: which of the two was meant is not known.
"""

from collections.abc import Collection, Iterator
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from service.contracts.files import PARQUET_MAGIC
from service.contracts.request import CalibrationFile
from workers.measurement.errors import BadCalibration, first_line, shown
from workers.measurement.inputs.input_files import read_json_lines, refuser

TOKEN_IDS = "token_ids"
"""Field or column of documents that are tokenized already."""
TEXT_BYTES = 1 << 20
"""Bytes of a plain text that are handed on at a time, about; it is only ever cut at the end of a line."""
PARQUET_ROWS = 64
"""Rows of a Parquet file that are in memory at a time."""


class Piece(NamedTuple):
    """A document, or a part of one; the parts of a document follow one another."""

    document: int
    """From 1."""
    content: str | list[int]
    """Text, or token ids; the same kind in all pieces of a file."""


def read_documents(file: CalibrationFile, text_field: str, vocabulary: int) -> Iterator[Piece]:
    """Yield the documents of a file.

    Args:
        file: says where it lies and what its format is.
        text_field: the field or column that holds a document's text.
        vocabulary: token ids must be below.

    Raises:
        BadCalibration: naming the file and, where there is one, the line or the row, and the field.
    """
    reader = _Reader(file, text_field, vocabulary)
    try:
        with file.path.open("rb") as stream:
            parquet = stream.read(len(PARQUET_MAGIC)) == PARQUET_MAGIC
    except OSError as error:
        raise reader.refuse(f"cannot be read: {error.strerror}") from error
    if parquet and file.format != "parquet":
        raise reader.refuse(f"is a Parquet file, but its name stands for {file.format}; its name must end in .parquet")
    if file.format == "parquet" and not parquet:
        raise reader.refuse("is not a Parquet file; it must begin with the bytes PAR1")
    empty = True
    for piece in {"text": reader.text, "jsonl": reader.json_lines, "parquet": reader.parquet}[file.format]():
        empty = empty and isinstance(piece.content, str) and not piece.content.strip()
        yield piece
    if empty:
        raise reader.refuse("is empty; text or token ids are needed")


class _Reader:
    """One file, and what its errors must name."""

    def __init__(self, file: CalibrationFile, text_field: str, vocabulary: int) -> None:
        self._path = file.path
        self.refuse = refuser(BadCalibration, "calibration", file)
        self._text_field = text_field
        self._vocabulary = vocabulary

    def text(self) -> Iterator[Piece]:
        """Yield plain text, cut at the ends of lines."""
        offset = 0
        with self._path.open("rb") as stream:
            while lines := stream.readlines(TEXT_BYTES):
                content = b"".join(lines)
                try:
                    text = content.decode("utf-8")
                except UnicodeDecodeError as error:
                    byte = error.object[error.start]
                    raise self.refuse(f"is not UTF-8: byte {byte:#04x} at offset {offset + error.start}") from error
                yield Piece(1, text.removeprefix("\ufeff") if offset == 0 else text)
                offset += len(content)

    def json_lines(self) -> Iterator[Piece]:
        """Yield the documents of JSON Lines."""
        field = None
        for document, (line, record) in enumerate(read_json_lines(self._path, self.refuse), start=1):
            where = f"line {line}"
            field = field or self._field(record, where)
            if field not in record:
                raise self.refuse(f"{where}: there is no field {field!r}, which the first record has")
            yield Piece(document, self._checked(record[field], field, where))

    def parquet(self) -> Iterator[Piece]:
        """Yield the documents of a Parquet file."""
        try:
            with pq.ParquetFile(self._path, pre_buffer=False) as table:
                field = self._field(table.schema_arrow.names, "row 1")
                document = 0
                for batch in table.iter_batches(batch_size=PARQUET_ROWS, columns=[field]):
                    for value in batch.column(field):
                        document += 1
                        yield Piece(document, self._checked(value.as_py(), field, f"row {document}"))
        except (pa.ArrowException, OSError) as error:
            raise self.refuse(f"cannot be read as Parquet: {first_line(error)}") from error

    def _field(self, names: Collection[str], where: str) -> str:
        """Return the field to read, out of those that there are."""
        wanted = dict.fromkeys((self._text_field, TOKEN_IDS))
        present = [name for name in wanted if name in names]
        if len(present) == 1:
            if (times := list(names).count(present[0])) > 1:
                raise self.refuse(f"has {times} columns named {present[0]!r}; only one is allowed")
            return present[0]
        if present:
            raise self.refuse(
                f"{where}: it has both {self._text_field!r} and {TOKEN_IDS!r}; only one of them is allowed"
            )
        raise self.refuse(
            f"{where}: there is no field {' or '.join(map(repr, wanted))}; the fields are "
            f"{shown(sorted(map(str, names)))}"
        )

    def _checked(self, value: object, field: str, where: str) -> str | list[int]:
        return self._token_ids(value, where) if field == TOKEN_IDS else self._string(value, where)

    def _string(self, value: object, where: str) -> str:
        if not isinstance(value, str):
            raise self.refuse(f"{where}: {self._text_field!r} is {shown(value)}; a string is needed")
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise self.refuse(
                f"{where}: {self._text_field!r} has half of a surrogate pair, which is not valid text"
            ) from error
        return value

    def _token_ids(self, value: object, where: str) -> list[int]:
        if not isinstance(value, list):
            raise self.refuse(f"{where}: {TOKEN_IDS!r} is {shown(value)}; a list of integers is needed")
        for position, token in enumerate(value):
            if type(token) is not int or not 0 <= token < self._vocabulary:
                raise self.refuse(
                    f"{where}: {TOKEN_IDS!r} holds {shown(token)} at position {position}; allowed are integers from 0 "
                    f"to {self._vocabulary - 1}, the rows of the model's embedding"
                )
        return value
