"""Finds the baseline of a gate: a report of the service or of this machine, or the baseline of an audit.

The model is measured with the baseline's settings and text, since texts that differ are never compared.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from service.audits.baseline import mismatches
from service.audits.limits import Limit, compared_figures
from service.cli.client import Client, Document, fetch
from service.cli.reports.drawing import check_report, is_directory
from service.cli.running import Refused
from service.comparison.comparable_report import ComparableReport
from service.contracts.audits.audit import AuditSettings
from service.contracts.request import JOB_ID, SAMPLE, Analysis
from service.errors import InvalidRequest, ReportUnreadable
from service.evaluation.stored_report import read_report, row_reader

FILES = ("calibration", "labelled")
"""Files of a job."""
_ALLOWED = "the id or the directory of a report, or the name of an audit"


class ServiceFile(NamedTuple):
    """A file that the service has."""

    path: str
    """Of the API, from which it can be downloaded."""
    name: str
    sha256: str


class Source(NamedTuple):
    """Where a baseline comes from, before its report is read."""

    name: str
    """As it was typed."""
    words: str
    """What messages and outcomes call it."""
    settings: dict[str, Any]
    """Keys of a job that measures as the baseline was measured, but for model and files."""
    reruns: int
    directory: Path | None = None
    """Of a report on this machine."""
    report_id: str | None = None
    """Of a report of the service."""
    audit: Document | None = None
    text: str | None = None
    """Name of the calibration text of a report on this machine; None where the service has the text."""
    files: Mapping[str, ServiceFile] = MappingProxyType({})
    """Files of the baseline's job, by key."""

    @property
    def scheme_names(self) -> tuple[str, ...]:
        """The schemes that are measured."""
        return Analysis.model_validate(self.settings).scheme_names


class Chosen(NamedTuple):
    """The report that a gate compares with."""

    report: ComparableReport | None
    """None where no run of the audit has passed yet, or none that is comparable."""
    outdated: str | None = None
    """A sentence where runs have passed, and none of them is comparable with the audit as it is now."""


def find(client: Client, name: str) -> Source:
    """Return what `--baseline` names. Raises InvalidRequest for what is none."""
    if is_directory(name):
        return _of_directory(name)
    if re.fullmatch(JOB_ID, name):
        if (audit := _get(client, f"/v1/audits/{name}")) is not None:
            return _of_audit(name, audit)
        if (job := _get(client, f"/v1/jobs/{name}")) is not None:
            return _of_job(name, job)
    raise InvalidRequest("--baseline", name, _ALLOWED, problem="is neither a report nor an audit")


def chosen(client: Client, source: Source, limits: tuple[Limit, ...], into: Path) -> Chosen:
    """Return the report of a baseline, downloaded below `into` where the service has it.

    Of an audit it is the one that its next run would be compared with.
    """
    report_id, outdated = source.report_id, None
    if source.directory is not None:
        return Chosen(side(source.directory, source.directory.name))
    if source.audit is not None:
        answer = client.get(f"/v1/audits/{source.audit['id']}/baseline", figure=compared_figures(limits))
        report_id, outdated = answer["report_id"], answer["outdated"]
    if report_id is None:
        return Chosen(None, outdated)
    fetch(client, report_id, into / report_id)
    return Chosen(side(into / report_id, report_id))


def side(directory: Path, name: str) -> ComparableReport:
    """Return the report in a directory, as comparisons and limits take it. Raises ReportUnreadable."""
    try:
        report = read_report(directory / "report.json", directory / "tables" / "tokens.parquet")
    except ReportUnreadable as error:
        raise type(error)(f"{directory}: {error}") from error
    return ComparableReport(name, report, row_reader(str(directory), report, lambda file: directory / file))


def cautions(source: Source, baseline: Chosen) -> tuple[str, ...]:
    """Return why limits against a baseline would mean little; none where its settings are those of the gate."""
    if baseline.report is None:
        return () if baseline.outdated is None else (baseline.outdated,)
    return mismatches(baseline.report.report, AuditSettings(name="gate", model=SAMPLE, **source.settings))


def _of_directory(name: str) -> Source:
    directory = Path(name)
    check_report(directory, "--baseline")
    report = side(directory, name).report
    settings = {**_settings(report.analysis), "label_threshold": None}
    text = report.calibration.source
    return Source(name, f"the report in {name}", settings, 1, directory=directory, text=text)


def _of_job(name: str, job: Document) -> Source:
    if job["status"] != "succeeded":
        raise InvalidRequest("--baseline", name, _ALLOWED, problem=f"is a job without a report ({job['status']})")
    request = job["request"]
    files = _files(f"/v1/jobs/{name}", request)
    settings = _settings(Analysis.model_validate(_keys(request)))
    return Source(name, f"report {name}", settings, 1, report_id=name, files=files)


def _of_audit(name: str, audit: Document) -> Source:
    definition = audit["definition"]
    files = _files(f"/v1/audits/{name}", definition)
    settings = _settings(Analysis.model_validate(_keys(definition)))
    return Source(name, f"audit {audit['name']}", settings, definition["reruns"], audit=audit, files=files)


def _files(path: str, content: Document) -> dict[str, ServiceFile]:
    return {
        key: ServiceFile(f"{path}/files/{key}", content[key]["name"], content[key]["sha256"])
        for key in FILES
        if content[key]
    }


def _keys(content: Document) -> Document:
    return {key: value for key, value in content.items() if key in Analysis.model_fields}


def _settings(analysis: Analysis) -> dict[str, Any]:
    """Return the settings that limits depend on: none of them is about harm or mixes, which take long."""
    return analysis.model_dump(mode="json", include=set(Analysis.model_fields) - {"harm", "recommend"})


def _get(client: Client, path: str) -> Document | None:
    try:
        return client.get(path)
    except Refused as error:
        if error.answered == 404:
            return None
        raise
