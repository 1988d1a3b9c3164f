"""The parameters of calls on audits, for FastAPI."""

import re
from typing import Annotated

from fastapi import Depends, Path

from service.errors import NotFound

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
"""Names of audits; ids have the same form."""
SHOWN_CHARACTERS = 64


def _audit_name(audit: Annotated[str, Path(description="Name or id of the audit.")]) -> str:
    """Return the name or id. Raises NotFound for a malformed one."""
    if not _NAME.fullmatch(audit):
        shown = audit[:SHOWN_CHARACTERS]
        raise NotFound(f"audit: {shown!r} is not the name or id of an audit; `headroom audits list` lists them")
    return audit


def _run_id(run_id: Annotated[str, Path(description="Id of the run.")]) -> str:
    """Return the id. Raises NotFound for a malformed one."""
    if not re.fullmatch("[0-9a-f]{32}", run_id):
        raise NotFound(f"run: {run_id[:SHOWN_CHARACTERS]!r} is not an id; allowed: 32 hexadecimal digits")
    return run_id


AuditName = Annotated[str, Depends(_audit_name)]
RunId = Annotated[str, Depends(_run_id)]
