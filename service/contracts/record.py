"""The bases of everything that is asked for, and of everything that a report holds."""

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """Base of every contract: immutable, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Record(BaseModel):
    """Base of everything in a report: immutable; keys that a newer version added are kept, not refused."""

    model_config = ConfigDict(frozen=True, extra="allow")
