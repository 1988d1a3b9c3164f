"""Reads the reports of a comparison, and computes the differences between them."""

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from service.comparison.comparable_report import ComparableReport, check_count
from service.comparison.compare import compare
from service.contracts.comparison import Comparison
from service.contracts.report import SchemeFacts
from service.errors import ReportUnreadable
from service.evaluation.stored_report import row_reader
from workers.reporting.loading import Source, load


class Gathered(NamedTuple):
    """All that the figures and the page of a comparison read."""

    comparison: Comparison
    sources: tuple[Source, ...]
    """The reports, in the order of `comparison.reports`; the baseline first."""

    @property
    def labels(self) -> tuple[str, ...]:
        """What each report is called."""
        return tuple(report.label for report in self.comparison.reports)

    @property
    def schemes(self) -> tuple[str, ...]:
        """Every scheme of any report, each once."""
        return tuple(dict.fromkeys(name for source in self.sources for name in source.report.schemes))

    def facts(self, scheme: str) -> SchemeFacts:
        """Return the facts of a scheme from the first report that has it."""
        return next(source.report.schemes[scheme] for source in self.sources if scheme in source.report.schemes)


def gather(directories: Sequence[Path]) -> Gathered:
    """Read the reports in `directories` and compare them.

    Raises:
        ReportUnreadable: one is missing or damaged; the message names its directory.
        NotComparable: they cannot be compared.
    """
    check_count(len(directories))
    sources = tuple(_loaded(directory) for directory in directories)
    return Gathered(compare([_comparable(source) for source in sources], version("headroom")), sources)


def _loaded(directory: Path) -> Source:
    try:
        return load(directory)
    except ReportUnreadable as error:
        raise type(error)(f"{directory}: {error}") from error


def _comparable(source: Source) -> ComparableReport:
    read = row_reader(str(source.directory), source.report, source.directory.joinpath)
    return ComparableReport(source.directory.resolve().name, source.report, read)
