"""Files that come with a job. A file's name says what kind it is, and its content must agree."""

import base64
import binascii
from pathlib import PurePath
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from service.contracts.record import Frozen

FileFormat = Literal["text", "jsonl", "parquet"]

PARQUET_MAGIC = b"PAR1"
"""Every Parquet file begins with these bytes."""

_BY_EXTENSION: dict[str, FileFormat] = {".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}


def format_of(name: str) -> FileFormat:
    """Return the format that a file's name stands for; any extension but those of JSON Lines and Parquet is text."""
    return _BY_EXTENSION.get(PurePath(name).suffix.lower(), "text")


class Upload(Frozen):
    """A file that travels inside a job request, as text or as base64; exactly one of the two."""

    name: Annotated[str, Field(min_length=1, max_length=255)]
    """File name, for the report; its extension tells the format."""
    text: str | None = None
    """The content; UTF-8 text."""
    content_base64: str | None = None
    """The content in standard base64; Parquet travels so."""

    @field_validator("text")
    @classmethod
    def _is_text(cls, text: str | None) -> str | None:
        try:
            (text or "").encode("utf-8")
        except UnicodeEncodeError as error:
            at = f"character {error.start} is half a surrogate pair"
            raise ValueError(f"it must be text that UTF-8 can hold; {at}") from error
        return text

    @field_validator("content_base64")
    @classmethod
    def _is_base64(cls, encoded: str | None) -> str | None:
        if encoded is not None:
            try:
                base64.b64decode(encoded, validate=True)
            except (binascii.Error, ValueError) as error:
                raise ValueError(f"it must be standard base64 without line breaks; {error}") from error
        return encoded

    @model_validator(mode="after")
    def _one_content(self) -> Self:
        if (self.text is None) == (self.content_base64 is None):
            raise ValueError("exactly one of text and content_base64 must be given")
        return self

    @property
    def content(self) -> bytes:
        """The file's bytes."""
        return base64.b64decode(self.content_base64 or "") if self.text is None else self.text.encode()


class StoredFile(Frozen):
    """A file that came with a job request and lies in the artifact store."""

    name: str
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    size: Annotated[int, Field(ge=0)]
    """Bytes."""
