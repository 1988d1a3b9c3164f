"""Makes of a stored report the request of a job that recommends a mix for its model."""

import json
from typing import Any

from pydantic import ValidationError

from service.contracts import refusals
from service.contracts.harm.earlier import EarlierReport, RecommendSubmission
from service.contracts.request import JobRequest
from service.errors import InvalidRequest, ReportUnreadable
from service.store.artifacts import ArtifactStore
from service.store.jobs import JobStore


def request_for_report(
    store: JobStore, artifacts: ArtifactStore, job_id: str, submission: RecommendSubmission
) -> JobRequest:
    """Return the request: the model, the revision, the texts and the settings of the report, and what is asked of harm.

    Raises NotFound for an id without a report, ReportUnreadable, and InvalidRequest where the report's settings and
    what is asked do not go together.
    """
    job = store.get(job_id)
    model = _model_of(artifacts, store.artifact(job_id, "report.json").sha256)
    harm = {} if submission.harm is None else submission.harm.model_dump(exclude_unset=True)
    fields = job.request.model_dump(exclude={"harm", "recommend"}) | {
        "model": _named(model),
        "harm": harm,
        "recommend": submission.recommend.model_dump() | {"enabled": True},
        "earlier": EarlierReport(job_id=job_id, fingerprint=model["fingerprint"]),
    }
    try:
        return JobRequest.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        message = refusals.sentence(field, repr(first["input"]), first)
        raise InvalidRequest(field, first["input"], refusals.allowed(first), message=message) from error


def _model_of(artifacts: ArtifactStore, sha256: str) -> dict[str, Any]:
    """Return what a report says of its model."""
    try:
        model: dict[str, Any] = json.loads(artifacts.path(sha256).read_bytes())["model"]
        return {name: model[name] for name in ("source", "revision", "fingerprint")}
    except (ValueError, KeyError, TypeError) as error:
        raise ReportUnreadable(f"report.json does not name its model: {error}") from error


def _named(model: dict[str, Any]) -> str:
    """Return the model as a job names it, with the revision that the report is of."""
    source = str(model["source"])
    return source if model["revision"] is None else f"{source.partition('@')[0]}@{model['revision']}"
