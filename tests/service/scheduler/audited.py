"""A service with audits, whose worker stores made-up reports, and whose clock is moved by hand."""

import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from sqlalchemy import Engine

sys.path.insert(0, str(Path(__file__).parents[1] / "audits"))

import made_reports

from service.comparison.comparable_report import ComparableReport, stored_report
from service.contracts.audits.audit import AuditDefinition, AuditRun
from service.contracts.audits.resolution import Resolution
from service.contracts.progress import Failed
from service.scheduler.audit_rounds import AuditRound, run_audit_round
from service.store.artifacts import ArtifactStore
from service.store.audits import AuditStore
from service.store.jobs import Artifact, Claim, JobStore
from service.store.runs.store import RunStore
from service.store.statuses import Status

LEASE = 60.0
START = datetime(2026, 1, 1, tzinfo=UTC)
LIMIT = "nf4.kl_divergence.mean <= baseline * 1.2"


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        return self.now

    def move(self, **by: float) -> None:
        self.now += timedelta(**by)


class Model:
    """What the made-up worker finds and measures."""

    def __init__(self, weights: str = "a", shift: float = 0.0, text: int = 0) -> None:
        self.weights = weights
        """A digit of the fingerprint."""
        self.shift = shift
        """How much higher the scheme nf4's KL divergence is than that of the model without a shift."""
        self.text = text
        """Added to the calibration seed, to choose other predictions."""
        self.changes: dict[str, Any] = {}
        """Of the report."""

    def report(self, seed: int, source: str) -> ComparableReport:
        text = made_reports.made_up(seed + self.text)
        higher = made_reports.changed(text, "nf4", kl=lambda of: of.kl * (1 + self.shift))
        made = made_reports.report(higher, weights=self.weights, **self.changes)
        model = made.report.model.model_copy(update={"source": source})
        calibration = made.report.calibration.model_copy(update={"seed": seed})
        return made._replace(report=made.report.model_copy(update={"model": model, "calibration": calibration}))

    def identity(self, seed: int) -> str:
        return f"sha256:{self.weights}{self.shift}{seed}{sorted(self.changes)}"


class Service:
    """The stores of one database, one scheduler's rounds and one worker."""

    def __init__(self, engine: Engine, home: Path, clock: Callable[[], datetime]) -> None:
        self.artifacts = ArtifactStore(home / "artifacts")
        self.jobs = JobStore(engine, clock)
        self.audits = AuditStore(engine, self.artifacts, clock)
        self.runs = RunStore(engine, clock)

    def audit(self, **changes: Any) -> str:
        """Make an audit; return its name."""
        asked = {"name": "shipping", "model": "/models/llama", "limits": (LIMIT,)} | changes
        return self.audits.create(AuditDefinition.model_validate(asked)).definition.name

    def round(self) -> AuditRound:
        return run_audit_round(self.runs, self.reports, LEASE)

    def reports(self, report_id: str) -> ComparableReport:
        return stored_report(report_id, partial(self.path, report_id))

    def path(self, report_id: str, name: str) -> Path:
        return self.artifacts.path(self.jobs.artifact(report_id, name).sha256)

    def claim(self, job_id: str) -> Claim:
        claim = self.jobs.claim(job_id, self.jobs.get(job_id).dispatch, "worker", LEASE)
        assert claim is not None
        return claim

    def queued(self) -> list[str]:
        """Ids of the jobs that wait for a worker, oldest first."""
        return [job.id for job in reversed(self.jobs.list(status=Status.queued, page_size=1000).jobs)]

    def work(self, model: Model, job_id: str | None = None) -> str:
        """Do a queued job as a worker does, on what the model is now."""
        claim = self.claim(job_id or self.queued()[0])
        request, terms = claim.request, claim.terms
        assert terms is not None
        fingerprint = f"sha256:{model.weights * 64}"
        if terms.fingerprint not in (None, fingerprint):
            self.jobs.fail(claim, Failed(code="model-changed", message="other weights", bad_input=True))
            return claim.job_id
        identity = model.identity(request.seed)
        self.jobs.resolved(claim, Resolution(model=request.model, fingerprint=fingerprint, identity=identity))
        if identity == terms.unless_identity:
            self.jobs.unchanged(claim)
        else:
            self.jobs.succeed(claim, self.store(claim.job_id, model.report(request.seed, request.model)))
        return claim.job_id

    def store(self, job_id: str, made: ComparableReport) -> list[Artifact]:
        """Put a report's files into the artifact store."""
        files = {"report.json": made.report.model_dump_json().encode()}
        for table in ("tokens", "sites"):
            columns = {"tokens": made_reports.COLUMNS, "sites": ("component", "port", "abs_max")}[table]
            sink = pa.BufferOutputStream()
            pq.write_table(pa.table(dict(made.read(table, columns) or {})), sink)
            files[f"tables/{table}.parquet"] = sink.getvalue().to_pybytes()
        return [Artifact(job_id, name, *self.artifacts.put(content), "x/y") for name, content in files.items()]

    def run(self, model: Model, baseline_model: Model | None = None) -> AuditRun:
        """Ask for a run and bring it to its end; reruns of the baseline measure `baseline_model`."""
        asked = self.audits.request_run("shipping")
        self.round()
        self.work(model)
        self.round()
        while jobs := self.queued():
            wanted = self.claim_terms(jobs[0])
            is_candidate = wanted in (None, f"sha256:{model.weights * 64}")
            self.work(model if is_candidate or baseline_model is None else baseline_model)
        self.round()
        return self.audits.run(asked.id)

    def claim_terms(self, job_id: str) -> str | None:
        """Return the fingerprint that a job asks for."""
        from service.store.tables import JobRow

        with self.jobs._read() as session:
            row = session.get(JobRow, job_id)
            assert row is not None
            assert row.terms is not None
            return row.terms["fingerprint"]
