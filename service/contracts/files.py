"""What kind of file came with a job: its name says it, and its content must agree."""

from pathlib import PurePath
from typing import Literal

FileFormat = Literal["text", "jsonl", "parquet"]

PARQUET_MAGIC = b"PAR1"
"""Every Parquet file begins with these bytes."""

_BY_EXTENSION: dict[str, FileFormat] = {".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}


def format_of(name: str) -> FileFormat:
    """Return the format that a file's name stands for; any extension but those of JSON Lines and Parquet is text."""
    return _BY_EXTENSION.get(PurePath(name).suffix.lower(), "text")
