"""The limits of one API key."""

from typing import Annotated

from pydantic import Field

from service.contracts.record import Frozen, NoBoolean
from service.contracts.request import MemorySize

Jobs = Annotated[int, Field(ge=1, lt=2**31), NoBoolean]


class KeyLimits(Frozen):
    """What one key may use in place of the service's limits; null: the service's."""

    queued_jobs: Jobs | None = None
    """Jobs of the owner that may be in the queue when this key submits another. Default: HEADROOM_QUEUED_JOBS."""
    running_jobs: Jobs | None = None
    """Jobs of the owner that run at a time; further ones wait in the queue. Of several keys of an owner the largest
    counts. Default: HEADROOM_RUNNING_JOBS."""
    upload_bytes_per_day: Annotated[MemorySize, Field(lt=2**63)] | None = None
    """Bytes that the owner may have uploaded in a day (UTC) after an upload with this key. Default:
    HEADROOM_UPLOAD_BYTES_PER_DAY."""
    requests_per_second: Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False), NoBoolean] | None = None
    """Requests with this key, on average; twice as many may come at once. Default: HEADROOM_REQUESTS_PER_SECOND."""
