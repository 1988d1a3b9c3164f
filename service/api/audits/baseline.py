"""The report that an audit's next run would be compared with, or why there is none."""

from functools import partial
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel

from service.api.audits.names import AuditName
from service.api.bodies import UniqueKeys
from service.api.dependencies import Backend, FromApp
from service.api.reports import comparisons
from service.audits.baseline import choose, rule
from service.audits.figures import NotALimit, figure
from service.audits.limits import compared_figures, parse_all
from service.comparison.comparable_report import ComparableReport
from service.contracts.report import DEFINITIONS_VERSION
from service.errors import InvalidRequest
from service.store.audits import Audit

router = APIRouter(prefix="/v1/audits/{audit}/baseline", route_class=UniqueKeys)

Figures = Annotated[
    list[Annotated[str, Query(max_length=512)]] | None,
    Query(
        max_length=256,
        description="Figures that limits hold against the baseline, by which a median is chosen, such as "
        "int8.kl_divergence. Default: those of the audit's limits.",
    ),
]


class BaselineView(BaseModel):
    """A baseline, or why there is none."""

    report_id: str | None
    """The report; null where there is none."""
    outdated: str | None
    """A sentence where runs have passed, but none with the audit's present settings or definitions; else null."""


@router.get("")
def show(backend: FromApp, audit: AuditName, figure: Figures = None) -> BaselineView:
    """Return the report that the next run would be compared with: of the runs that passed, a comparable one."""
    of = backend.audits.get(audit)
    paths = None if figure is None else [_path(name, of) for name in figure]
    report = present_baseline(backend, of, paths)
    if report is not None:
        return BaselineView(report_id=report.name, outdated=None)
    passed = backend.audits.passed(of.id)
    outdated = passed.outdated
    if passed.comparable:
        outdated = f"The last runs that passed have other definitions than {DEFINITIONS_VERSION}."
    return BaselineView(report_id=None, outdated=outdated)


def present_baseline(backend: Backend, audit: Audit, figures: list[str] | None = None) -> ComparableReport | None:
    """Return the report that an audit's next run would be compared with; None where there is none yet.

    Args:
        backend: Has the reports.
        audit: The audit.
        figures: Paths of the figures by which a median is chosen; default: those of the audit's limits.

    Raises NotFound, SchemaVersionUnknown and ReportUnreadable for a report that cannot be read.
    """
    definition = audit.definition
    if figures is None:
        figures = compared_figures(parse_all(definition.limits, definition.scheme_names))
    runs = backend.audits.passed(audit.id).comparable
    read = partial(comparisons.stored, backend)
    return choose(rule(definition.baseline), runs, figures, read, DEFINITIONS_VERSION)


def _path(name: str, audit: Audit) -> str:
    try:
        return figure(name, audit.definition.scheme_names).path
    except NotALimit as error:
        raise InvalidRequest("figure", name, error.allowed, problem=f"is no figure: {error.problem}") from error
