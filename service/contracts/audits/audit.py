"""Audits: what is asked for, a run of one, and what it says of every limit.

An audit is a job request with a schedule, a baseline and limits. A run of it measures the model, or finds it
unchanged, and holds the report to the limits. The meaning of schedules, limits, baselines and verdicts is in
`service/audits`; these are the records.
"""

import re
from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field, field_validator

from service.contracts.files import StoredFile, Upload
from service.contracts.record import Frozen, NoBoolean, Record, allowing, at_most
from service.contracts.report import Estimate
from service.contracts.request import Analysis

FindingVerdict = Literal["pass", "warn", "broken", "not_judged"]
"""`pass`: the limit holds. `warn`: it is broken, within the figure's noise. `broken`: it is broken beyond the noise, or
the figure has none. `not_judged`: the figures do not decide it, or there is no baseline; `reason` says which."""

RunVerdict = Literal["pass", "warn", "fail", "unconfirmed", "unchanged", "error", "skipped"]
"""`pass`: no limit is broken. `warn`: one is, within its noise, or one could not be judged against the baseline that
there is. `fail`: one is broken beyond it, and was again on
other text, or could not be measured again. `unconfirmed`: one was broken beyond it, and not on other text.
`unchanged`: nothing differs from the last completed run, so nothing was measured. `error`: there is no report.
`skipped`: the run did not take place."""

Trigger = Literal["schedule", "request", "gate"]
"""What started a run: its schedule, somebody who asked for it, or a gate in a pipeline."""

_ID = re.compile("[0-9a-f]{32}")
"""Form of the ids of audits, which are addressed by name or id."""

Seconds = Annotated[int, Field(ge=0, le=31 * 86400), NoBoolean]

Receiver = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=4096)]], Field(max_length=8)
]


class NewestIn(Frozen):
    """A model that moves: the directory made last inside another one."""

    newest_in: Annotated[str, Field(min_length=1, max_length=1024)]
    """Absolute path of the directory that holds the checkpoints."""


class AuditSettings(Analysis):
    """The settings of an audit: the keys of a job but for its files, and those of an audit.

    Texts are checked by `service/audits`.
    """

    name: Annotated[
        str,
        Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$"),
        allowing("allowed: 1 to 63 of a-z, 0-9 and -, first a letter or a digit"),
    ]
    """What commands and pages call it."""
    model: Annotated[
        Annotated[str, Field(min_length=1, max_length=1024)] | NewestIn,
        allowing('allowed: text, such as org/name@branch or an absolute path, or {"newest_in": DIRECTORY}'),
    ]
    """As in a job request, resolved again for every run: a hub id with a branch moves with it."""
    schedule: Annotated[str, Field(max_length=255)] | None = None
    """Cron expression of five fields; without one, runs are asked for."""
    timezone: Annotated[str, Field(max_length=64)] = "UTC"
    """IANA time zone of the schedule."""
    catch_up_seconds: Seconds = 86_400
    """How late, in seconds, the latest missed time is still made up for; earlier ones never are."""
    jitter_seconds: Seconds = 0
    """Longest time after the scheduled one at which a run starts, in seconds."""
    overlap: Literal["skip", "queue"] = "skip"
    """What becomes of a time at which the run before has not ended."""
    pause_after_errors: Annotated[int, Field(ge=1, le=1000), NoBoolean] = 3
    """Runs in a row with the verdict `error` after which the audit pauses."""
    skip_unchanged: bool = True
    """A run that would measure what the last completed run did ends as `unchanged`, without a measurement."""
    baseline: Annotated[str, Field(max_length=128)] = "last-passing"
    """`last-passing`, `median:K` or `report:ID`."""
    limits: Annotated[tuple[Annotated[str, Field(max_length=512)], ...], Field(max_length=256), at_most(256)] = ()
    """What the report is held to, such as `int8.kl_divergence.mean <= baseline * 1.2`; none is there twice."""
    reruns: Annotated[int, Field(ge=0, le=16), NoBoolean] = 1
    """Other calibration seeds on which a figure that breaks its limit beyond its noise is measured again. With 0 the
    first measurement decides."""
    notify: Annotated[tuple[Receiver, ...], Field(max_length=64), at_most(64)] = ()
    """Receivers of the alerts, such as {"webhook": "https://example.org/hook"}."""

    @field_validator("name")
    @classmethod
    def _no_id(cls, name: str) -> str:
        if _ID.fullmatch(name):
            raise ValueError(f"{name!r} has the form of an id; allowed: any other name")
        return name


class AuditDefinition(AuditSettings):
    """What an audit is asked to do."""

    calibration: StoredFile | None = None
    """As in a job request."""
    labelled: StoredFile | None = None
    """As in a job request."""


class AuditSubmission(AuditSettings):
    """The body that makes an audit: its definition with its files."""

    calibration: Upload | None = None
    """As in a job."""
    labelled: Upload | None = None
    """As in a job."""


class SkippedTime(Record):
    """A scheduled time at which no run takes place."""

    scheduled_at: datetime
    reason: str


class Finding(Record):
    """What a run says of one limit."""

    limit: str
    """As it was written, with single spaces."""
    figure: str
    """The figure's whole path in report.json, or the name of one that is worked out, such as `block.abs_max`."""
    value: float | str | tuple[int, ...] | None
    """The report's figure: a number in the figure's own unit, a level, or the dimensions gained. None where there is no
    such figure in the report, or no finite one."""
    baseline: float | str | None = None
    """The baseline's figure, likewise; None for absolute limits, and where there is no baseline or no figure."""
    bound: float | str | None = None
    """What the value is held to: a number in the figure's own unit, or a level."""
    interval: tuple[float, float] | None = None
    """95% interval of `value`; None where it has none."""
    excess: Estimate | None = None
    """How far the figure lies beyond the bound, positive where it breaks the limit, over the text that was judged. Of
    perplexities and their ratio it is the logarithm. None where effect size alone decides."""
    p_value: float | None = None
    """Probability of an excess as clear as this one if the limit just held: one-sided Student t. None likewise."""
    level_needed: float | None = None
    """`p_value` up to which the breach is beyond noise, by Holm's method over all limits of the run."""
    verdict: FindingVerdict
    uncompared: bool = False
    """The limit is against a baseline; there is one, but the limit could not be judged."""
    final: bool = False
    """The first measurement decides: the weights are the baseline's, so that a rerun would give the same."""
    reason: str
    """A sentence."""


class Rerun(Record):
    """The measurement of a broken figure on another calibration seed, of the candidate and the baseline's model."""

    seed: int
    """Calibration seed of both reports."""
    status: Literal["completed", "failed", "baseline_gone"]
    """`baseline_gone`: the baseline's model is not to be had anymore, so limits against it cannot be judged."""
    report_id: str | None = None
    """The candidate's report."""
    baseline_report_id: str | None = None
    findings: tuple[Finding, ...] = ()
    """On the limits that were broken; empty where it failed. With the baseline's model gone, absolute limits are judged
    alone."""


class AuditRun(Record):
    """One execution of an audit."""

    id: str
    audit_id: str
    trigger: Trigger
    scheduled_at: datetime | None
    """The scheduled time that it is for, UTC; None where somebody asked."""
    started_at: datetime | None = None
    finished_at: datetime | None = None
    verdict: RunVerdict | None = None
    """None until it ends."""
    reasons: tuple[str, ...] = ()
    """Sentences: why this verdict."""
    job_id: str | None = None
    """The job that measured the model; None where none did."""
    report_id: str | None = None
    """Its report."""
    baseline_report_id: str | None = None
    """The report that it was compared with; None where there was none yet."""
    findings: tuple[Finding, ...] = ()
    """One for each limit, in their order."""
    reruns: tuple[Rerun, ...] = ()


class PastRun(Record):
    """A run of the past, as far as the choice of a baseline needs it."""

    report_id: str | None
    """None where the run has no report of its own: an error, a skip, an unchanged model."""
    finished_at: datetime
    verdict: RunVerdict
    values: dict[str, float] = Field(default_factory=dict)
    """Its numeric figures by their paths, as in `Finding.figure`."""


class LimitNoise(Record):
    """How a limited figure varies with the calibration text, for one and the same model."""

    limit: str
    figure: str
    values: tuple[float | str | None, ...]
    """By report, in their order: a number in the figure's unit, a level, or how many dimensions a set has."""
    mean: float | None
    """Over the reports; None for a figure that is no number."""
    standard_deviation: float | None
    """Of one report's figure, with n - 1; None likewise."""
    chance: float | None
    """Probability that the figure breaks the limit on one new text, the baseline measured on another: more than on
    the same text, as audits do. None where a report lacks the figure."""
    alarms_per_year: float | None
    """False alarms to expect if every scheduled run brought a model that is as good as the baseline's."""
    tight: bool
    """`chance` is over 0.05: the limit lies inside the figure's noise."""
    suggestion: str | None
    """The closest limit of the same kind that is not tight; None where this one is not, or none is known."""


class Calibration(Record):
    """What `--calibrate` shows: the noise of every limit, from reports of one model on several texts."""

    seeds: tuple[int, ...]
    """Calibration seeds of the reports, the baseline's first."""
    runs_per_year: float
    limits: tuple[LimitNoise, ...]
    alarms_per_year: float
    """Sum over the limits."""
