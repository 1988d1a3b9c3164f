"""`comparison.json`: two or more reports side by side. The names are a contract with other programs.

The first report is the baseline. Every difference is the other report's value minus the baseline's: a positive one is
more range, more error, more divergence.
"""

from datetime import datetime

from service.contracts.record import Record
from service.contracts.report import Entry, Estimate, FactsByName, LeftOut, ReferenceFacts
from service.contracts.sections.provenance import CalibrationFacts, ModelFacts
from service.contracts.warnings import Warning

COMPARISON_VERSION = "1.1"


class Compared(Record):
    """One of the reports, with the facts that a comparison repeats."""

    label: str
    """Its name in figures and tables; no two reports have the same."""
    name: str
    """Its id, or the name of its directory."""
    job_id: str
    created_at: datetime
    schema_version: str
    definitions_version: str
    model: ModelFacts
    calibration: CalibrationFacts
    reference: ReferenceFacts
    schemes: FactsByName


class RangeChange(Record):
    """One site's dynamic range in both reports."""

    layer: int
    component: str
    port: str
    range_bits: tuple[float | None, float | None]
    """Baseline's and other's; None where the median magnitude is 0."""
    abs_max: tuple[float, float]
    change_bits: float | None
    """Difference in range_bits; None where one of them is."""


class RangeDifference(Record):
    """Change of the dynamic range."""

    sites: int
    """Sites that both reports have, at the same layer, component and port."""
    only_baseline: int
    only_other: int
    median_change_bits: float | None
    """Over the sites with a range in both."""
    growth: tuple[RangeChange, ...]
    """The ten largest increases of range, the largest first; a massive activation that is carried through layers is one
    of them, with a site for each layer."""
    shrinkage: tuple[RangeChange, ...]
    """The ten largest decreases, likewise."""


class OutlierDifference(Record):
    """Change of one definition's outlier dimensions."""

    gained: tuple[int, ...]
    """Outliers in the other report alone; all three ascend."""
    lost: tuple[int, ...]
    """Outliers in the baseline alone."""
    kept: tuple[int, ...]
    """Outliers in both."""


class Change(Record):
    """One value in both reports."""

    baseline: Estimate | None
    """Over all that the report scored, as `other` is."""
    other: Estimate | None
    difference: Estimate | None
    """Other minus baseline, over the sequences that both scored. Where they share none it is the difference of the two
    values above, without a standard error, and means neither better nor worse. None where one of the values is."""
    paired: bool
    """The difference is of the same positions of the same sequences."""
    positions: int | None
    """Positions that were paired; None where none were."""
    sequences: int | None = None
    """Sequences, with the same token ids, that they are of; None likewise."""
    clear: bool | None
    """The 95% interval of the difference excludes 0; None without an interval."""


class ErrorChange(Record):
    """One projection's isolated error in both reports."""

    layer: int
    component: str
    relative_l2: tuple[float, float]
    change_db: float | None
    """20 log10(other / baseline); None where one of them is 0."""


class SchemeDifference(Record):
    """Change of one scheme that both reports have."""

    kl_divergence: Change
    """The mean, nats per scored position."""
    perplexity_ratio: Change
    same_top_token: Change
    final_sqnr_db: tuple[float | None, float | None]
    """Accumulated, at the last block.output; None where the stream is exact."""
    growth: tuple[ErrorChange, ...]
    """The ten projections whose isolated error grew most, the largest growth first."""


class Difference(Record):
    """One report compared with the baseline."""

    label: str
    reference_perplexity: Change
    range: RangeDifference | None
    outliers: dict[str, OutlierDifference]
    """By definition; one that cannot be compared is in `not_compared`."""
    schemes: dict[str, SchemeDifference]
    """The schemes that both reports have."""
    only_baseline: tuple[str, ...]
    """Schemes of the baseline alone."""
    only_other: tuple[str, ...]
    not_compared: tuple[LeftOut, ...]
    """What cannot be compared, with the reason."""


class Comparison(Record):
    """The whole of `comparison.json`."""

    comparison_version: str
    headroom_version: str
    reports: tuple[Compared, ...]
    """The baseline first, the others in the order given."""
    warnings: tuple[Warning, ...]
    """What else differs between the reports and changes the meaning of a difference."""
    differences: tuple[Difference, ...]
    """One for each report after the baseline."""
    figures: tuple[Entry, ...] = ()
    """Files relative to the comparison; none in the API's answer, which is numbers alone."""
    figures_left_out: tuple[LeftOut, ...] = ()
