"""The base of everything that a report holds."""

from pydantic import BaseModel, ConfigDict


class Record(BaseModel):
    """Base of everything in a report: immutable; keys that a newer version added are kept, not refused."""

    model_config = ConfigDict(frozen=True, extra="allow")
