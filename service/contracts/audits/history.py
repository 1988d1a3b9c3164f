"""The history of an audit: every limited figure run by run, the steps in it, and what changed at them."""

from datetime import datetime
from typing import Literal

from service.contracts.audits.audit import FindingVerdict, RunVerdict, Trigger
from service.contracts.record import Record


class StateChange(Record):
    """One thing that two measured reports differ in."""

    kind: Literal["model", "calibration", "software", "device", "settings"]
    name: str
    """Such as `revision`, `transformers` or `sequence_length`."""
    before: str | None
    """None where the earlier report does not say."""
    after: str | None
    text: str
    """Both in a few words: `transformers 5.20.0 -> 5.21.0`."""


class HistoryRun(Record):
    """A run, as the histories of all figures share it."""

    run_id: str
    at: datetime
    """The time that it was for; where somebody asked, when it started."""
    trigger: Trigger
    verdict: RunVerdict
    reasons: tuple[str, ...]
    """Sentences: why this verdict."""
    report_id: str | None
    baseline_report_id: str | None
    changes: tuple[StateChange, ...] | None
    """Since the measured run before it. None where nothing was measured, at the first, and where a report is gone."""


class HeldTo(Record):
    """One limit at one run, as it was then."""

    limit: str
    bound: float | str | None
    """In the figure's own unit, or a level; None for sets, and where there was no baseline."""
    verdict: FindingVerdict


class Point(Record):
    """A figure at one run."""

    run_id: str
    at: datetime
    status: Literal["measured", "unchanged", "gap"]
    """`unchanged`: nothing was measured, and the last value is repeated. `gap`: no value; `reason` says why."""
    value: float | str | tuple[int, ...] | None = None
    """A number in the figure's own unit, a level, or the dimensions gained since the baseline."""
    interval: tuple[float, float] | None = None
    """95% interval of the value over calibration texts; None where it has none."""
    baseline: float | str | None = None
    limits: tuple[HeldTo, ...] = ()
    reason: str | None = None


class StepLevel(Record):
    """Where a figure lies between two steps."""

    value: float
    """Mean over the measured runs; the geometric one where the noise is relative."""
    interval: tuple[float, float] | None
    """95% interval of the mean by the series' noise; None for a figure that has no noise."""
    first: datetime
    last: datetime
    runs: int
    """Runs at this level, unchanged ones included."""


class Step(Record):
    """A run from which on a figure lies at another level, beyond its noise."""

    run_id: str
    at: datetime
    before: StepLevel
    after: StepLevel
    changes: tuple[StateChange, ...] | None
    """What changed at that run; empty: nothing that the reports state. None where a report is gone."""

    @property
    def what_changed(self) -> str:
        """The changes as a part of a sentence."""
        if self.changes is None:
            return "a report is gone, so that what changed is not known"
        return ", ".join(change.text for change in self.changes) or "no recorded setting, library or model changed"


class SeriesNoise(Record):
    """How far a figure varies from measurement to measurement without a step."""

    standard_deviation: float
    """Of the logarithm where `relative`, else in the figure's own unit; 0 for a figure of the model alone."""
    relative: bool
    """The noise is taken as a share of the value: of figures that were over 0 at every run."""
    source: Literal["series", "intervals", "exact"]
    """`series`: from the differences of neighboring values. `intervals`: from those of the reports, which hold for
    other text and are an upper bound on the same one; used while the series is short. `exact`: it has none."""
    measurements: int
    """Values that count: runs that repeat a value of the same weights, text, software and settings count once."""


class FigureHistory(Record):
    """One limited figure over all runs."""

    figure: str
    """Its whole path in report.json, or the name of one that is worked out."""
    kind: Literal["number", "level", "dimensions"]
    limits: tuple[str, ...]
    """The limits of today on it."""
    points: tuple[Point, ...]
    """One for every run, in time."""
    levels: tuple[StepLevel, ...]
    """Between the steps, in time; empty where steps cannot be detected."""
    steps: tuple[Step, ...]
    noise: SeriesNoise | None
    no_steps: str | None
    """Why steps cannot be detected, as a sentence; None where they can."""


class AuditHistory(Record):
    """The runs of an audit that have ended, the oldest first, and every figure that has a limit today."""

    audit: str
    """Its name."""
    runs: tuple[HistoryRun, ...]
    figures: tuple[FigureHistory, ...]
