"""The parameters that several calls share, and what each may hold."""

import re
from typing import Annotated

from fastapi import Depends, Path, Query, Request

from service.errors import InvalidRequest, NotFound

PRINTABLE = r"^[^\x00-\x1f\x7f]+$"
"""No control characters: PostgreSQL holds no NUL, and nothing here has use for the others."""
MAX_PAGE_SIZE = 200

PageSize = Annotated[int, Query(ge=1, le=MAX_PAGE_SIZE, description="Most entries in one answer.")]
PageToken = Annotated[
    str | None, Query(max_length=512, pattern=PRINTABLE, description="`next_page_token` of the page before.")
]
ModelFilter = Annotated[
    str | None, Query(max_length=1024, pattern=PRINTABLE, description="Only jobs whose `model` is exactly this.")
]


def _job_id(job_id: Annotated[str, Path(description="Id of the job, and of its report.")]) -> str:
    """Return the id, or raise NotFound for what cannot be one."""
    if not re.fullmatch(r"[0-9A-Za-z_-]{1,64}", job_id):
        raise NotFound("no such job; an id has letters, digits, - and _ only, 64 at most")
    return job_id


JobId = Annotated[str, Depends(_job_id)]


def known_parameters_only(request: Request) -> None:
    """Raise InvalidRequest for a query parameter that the call does not take: a misspelled filter is an error."""
    known = [field.alias for field in request.scope["route"].dependant.query_params]
    for name, value in request.query_params.multi_items():
        if name not in known:
            takes = f"this call takes {', '.join(known)}" if known else "this call takes none"
            raise InvalidRequest(name, value, f"there is no such parameter; {takes}")
