"""Files in a job request. A file's name states its format."""

import base64
import binascii
from pathlib import PurePath
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from service.contracts.record import Frozen

FileFormat = Literal["text", "jsonl", "parquet"]

PARQUET_MAGIC = b"PAR1"
"""The first bytes of every Parquet file."""

LONGEST_CONTENT = 1 << 20
"""Characters of a file inside a request."""
FILE_ID = r"^[0-9a-f]{32}$"
"""Pattern of the id of an uploaded file."""

_BY_EXTENSION: dict[str, FileFormat] = {".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}


def format_of(name: str) -> FileFormat:
    """Return the format that a file's name states: JSON Lines, Parquet, else text."""
    return _BY_EXTENSION.get(PurePath(name).suffix.lower(), "text")


class Upload(Frozen):
    """A file of a job: text or base64 inside the request, or the id of an uploaded file; exactly one of them."""

    name: Annotated[str, Field(min_length=1, max_length=255)] | None = None
    """File name, for the report; its extension states the format. Default: that of the uploaded file."""
    text: Annotated[str, Field(max_length=LONGEST_CONTENT)] | None = None
    """The content; UTF-8 text."""
    content_base64: Annotated[str, Field(max_length=LONGEST_CONTENT)] | None = None
    """The content in standard base64; for Parquet."""
    file: Annotated[str, Field(pattern=FILE_ID)] | None = None
    """Id of a file from `POST /v1/files`; required for larger ones."""

    @field_validator("text")
    @classmethod
    def _is_text(cls, text: str | None) -> str | None:
        try:
            (text or "").encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(f"UTF-8 cannot encode it: character {error.start} is half of a surrogate pair") from error
        return text

    @field_validator("content_base64")
    @classmethod
    def _is_base64(cls, encoded: str | None) -> str | None:
        if encoded is not None:
            try:
                base64.b64decode(encoded, validate=True)
            except (binascii.Error, ValueError) as error:
                raise ValueError(f"it is not standard base64 without line breaks: {error}") from error
        return encoded

    @model_validator(mode="after")
    def _one_content(self) -> Self:
        if sum(content is not None for content in (self.text, self.content_base64, self.file)) != 1:
            raise ValueError("give either text or content_base64, or the id of an uploaded file, and only one of them")
        if self.name is None and self.file is None:
            raise ValueError("give the file's name too; it states the format")
        return self

    @property
    def content(self) -> bytes:
        """The file's bytes, where it is inside the request."""
        return base64.b64decode(self.content_base64 or "") if self.text is None else self.text.encode()


class StoredFile(Frozen):
    """A file of a job request, in the artifact store."""

    name: Annotated[str, Field(max_length=255)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    size: Annotated[int, Field(ge=0)]
    """Bytes."""
