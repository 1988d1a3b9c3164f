"""A recommendation for a report that there is already: what is asked, and what the job that makes it must hold to."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, field_validator

from service.contracts.harm.recommendation import RecommendSettings
from service.contracts.harm.settings import HarmSettings
from service.contracts.record import Frozen


class EarlierReport(Frozen):
    """The report that a recommendation is for. Its model, text and settings are the job's; it is measured again."""

    job_id: Annotated[str, Field(pattern=r"^[0-9A-Za-z_-]{1,64}$")]
    """Id of the report, and of its job."""
    fingerprint: str
    """Of the report's model, as in report.json; with other weights the job fails with the code `model-changed`."""


class RecommendSubmission(Frozen):
    """The body of `POST /v1/reports/{job_id}/recommend`."""

    recommend: RecommendSettings = RecommendSettings(enabled=True)
    """The target."""
    harm: HarmSettings | None = None
    """Default: what a recommendation measures by itself."""

    @field_validator("recommend", mode="before")
    @classmethod
    def _enabled(cls, recommend: Any) -> Any:
        return {"enabled": True, **recommend} if isinstance(recommend, Mapping) else recommend
