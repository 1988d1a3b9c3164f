"""Validates audits, and makes them with their files.

What holds for an audit by itself is checked here: the form of the model's name, files, schedule, limits, the form of
the baseline. The store checks what depends on what it holds: names that are taken, and pinned reports.
"""

from collections.abc import Mapping
from typing import Any

from service.audits import definition
from service.contracts.audits.audit import AuditDefinition, AuditSubmission, NewestIn
from service.errors import InvalidRequest
from service.submission import FILES, Resolve, check_labelled, check_model, described_files, no_uploads

_DIRECTORIES = "the absolute path of a directory that holds checkpoints"


def defined(
    audit: AuditSubmission, resolve: Resolve = no_uploads, kept: Mapping[str, Any] | None = None
) -> AuditDefinition:
    """Return the definition that a submission makes, without storing anything.

    Args:
        audit: The submission.
        resolve: Gives the uploaded files that it names.
        kept: Stored files by their fields, which the audit keeps.

    Raises InvalidRequest.
    """
    if isinstance(audit.model, NewestIn):
        _check_directory(audit.model.newest_in)
    else:
        check_model(audit.model)
    files = {**(kept or {}), **described_files(audit, resolve)}
    check_labelled(audit, labelled=files.get("labelled") is not None)
    definition.check(audit)
    return AuditDefinition.model_validate({**audit.model_dump(exclude=set(FILES)), **files})


def changed(present: AuditDefinition, changes: Mapping[str, Any]) -> tuple[AuditSubmission, dict[str, Any]]:
    """Return the submission that a JSON merge patch (RFC 7396) makes of an audit, and the stored files that it keeps.

    Objects are merged, lists are replaced, and null sets a key to its default. Raises ValidationError.
    """
    stored = {name: getattr(present, name) for name in FILES}
    merged = _merged(present.model_dump(mode="json", exclude=set(FILES)), changes)
    return AuditSubmission.model_validate(merged), {name: stored[name] for name in FILES if name not in changes}


def _merged(present: Any, patch: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(present) if isinstance(present, Mapping) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = _merged(merged.get(key), value) if isinstance(value, Mapping) else value
    return merged


def _check_directory(path: str) -> None:
    if not path.startswith("/") or not path.isprintable():
        raise InvalidRequest("model.newest_in", path, _DIRECTORIES)
