"""The text of a comparison's page, section by section."""

from collections.abc import Iterable, Iterator, Mapping

from service.comparison.sites import carried
from service.contracts.comparison import (
    Change,
    Difference,
    OutlierDifference,
    RangeChange,
    RangeDifference,
    SchemeDifference,
)
from service.contracts.report import Estimate
from service.contracts.sections.outliers import discriminating
from service.evaluation.uncertainty import MIN_UNITS
from workers.reporting.comparison.gathering import Gathered
from workers.reporting.text import ABSENT, claim, counted, estimate, listing, number, percent_estimate, ranges
from workers.reporting.topics.records import Grid, Topic, marked

_NO_SCHEME = "The reports share no scheme."
SAME = "-"
"""No dimension gained, lost or kept."""


def topics(gathered: Gathered) -> tuple[Topic, ...]:
    """Return the sections, in order."""
    return (_divergence(gathered), _errors(gathered), _range(gathered), _outliers(gathered), _labelled(gathered))


def reports(gathered: Gathered) -> Grid:
    """Return the table of the reports themselves."""
    rows = []
    for report in gathered.comparison.reports:
        calibration, model = report.calibration, report.model
        rows.append(
            (
                report.label,
                f"{model.layers} x {model.hidden_size:,}",
                f"{calibration.source}, {calibration.sequences:,} x {calibration.sequence_length:,}",
                estimate(report.reference.perplexity),
                listing(marked(name, facts) for name, facts in report.schemes.items()) or "none",
                f"{report.created_at:%-d %B %Y, %H:%M}",
                report.job_id,
            )
        )
    head = ("Report", "Layers x width", "Calibration", "Reference perplexity", "Schemes", "Measured", "Job")
    caption = "Compared reports, the baseline first; 95% intervals in parentheses"
    return Grid(caption, head, tuple(rows))


def headlines(gathered: Gathered) -> list[str]:
    """Return one sentence for each report after the baseline: which schemes are clearly better or worse."""
    return [_headline(gathered, one) for one in gathered.comparison.differences]


def _headline(gathered: Gathered, difference: Difference) -> str:
    if not difference.schemes:
        return f"{difference.label}: shares no scheme with the baseline."
    paired: dict[str, SchemeDifference] = {}
    clear, unclear, unpaired = [], [], []
    for scheme, both in difference.schemes.items():
        name, kl = _marked(gathered, scheme), both.kl_divergence
        if not kl.paired:
            unpaired.append(name)
            continue
        paired[scheme] = both
        if kl.clear and kl.difference:
            clear.append(f"{name} is {_clear_change(both, kl.difference)}")
        else:
            unclear.append(name)
    clauses = [
        *clear,
        *([f"no clear difference in mean KL under {', '.join(unclear)}"] if unclear else []),
        *([f"{', '.join(unpaired)} cannot be compared, because no scored sequence is shared"] if unpaired else []),
    ]
    return f"{difference.label}: {'; '.join(clauses)}{_on(paired)}."


def _clear_change(both: SchemeDifference, change: Estimate) -> str:
    worse = change.value > 0
    word = "worse: higher" if worse else "better: lower"
    return f"{word} mean KL by {_size(change, 'nats')}{_opposed(both, worse=worse)}"


def _on(paired: Mapping[str, SchemeDifference]) -> str:
    """Return over how many shared sequences the differences are."""
    counts = sorted({both.kl_divergence.sequences or 0 for both in paired.values()})
    if not counts:
        return ""
    most = counts[-1]
    few = f"; rerun both with --sequences {MIN_UNITS} or more" if most < MIN_UNITS else ""
    return f" (over {'up to ' if len(counts) > 1 else ''}{counted(most, 'shared sequence')}{few})"


def _marked(gathered: Gathered, scheme: str) -> str:
    return marked(scheme, gathered.facts(scheme))


def _opposed(both: SchemeDifference, *, worse: bool) -> str:
    """Return which other measures clearly point the other way."""
    ratio, top = both.perplexity_ratio, both.same_top_token
    measures = []
    if ratio.clear and ratio.difference and (ratio.difference.value < 0) is worse:
        measures.append(f"the perplexity ratio is {'lower' if worse else 'higher'} by {_size(ratio.difference)}")
    if top.clear and top.difference and (top.difference.value > 0) is worse:
        measures.append(f"the share of same top tokens is {'higher' if worse else 'lower'} by {_size(top.difference)}")
    return f", but {' and '.join(measures)}" if measures else ""


def _size(difference: Estimate, unit: str = "") -> str:
    if difference.value >= 0 or difference.interval is None:
        return claim(difference.model_copy(update={"value": abs(difference.value)}), unit)
    low, high = difference.interval
    return claim(difference.model_copy(update={"value": -difference.value, "interval": (-high, -low)}), unit)


def _divergence(gathered: Gathered) -> Topic:
    rows = []
    for difference in gathered.comparison.differences:
        for scheme, both in difference.schemes.items():
            top = both.same_top_token
            cells = [cell for change in (both.kl_divergence, both.perplexity_ratio) for cell in _cells(change)]
            cells += [percent_estimate(top.other), _cells(top)[1]]
            rows.append((f"{_marked(gathered, scheme)}, {difference.label}", *cells, _how(both.kl_divergence)))
    grids = []
    if rows:
        head = ("Scheme, report", "Mean KL", "difference", "Perplexity ratio", "difference", "Same top", "difference",
                "Differences over")  # fmt: skip
        caption = (
            "Values of the compared reports, and differences from the baseline; 95% intervals in parentheses; * marks "
            "a difference whose interval excludes 0"
        )
        grids.append(Grid(caption, head, tuple(rows)))
    lone = [line for difference in gathered.comparison.differences for line in _lone(gathered, difference)]
    lead = "Mean KL, perplexity ratio and same top token of every shared scheme." if rows else _NO_SCHEME
    return Topic("divergence", "Divergence of the predictions", lead, tuple(lone), grids=tuple(grids))


def _lone(gathered: Gathered, difference: Difference) -> Iterator[str]:
    if difference.only_baseline:
        yield f"Only the baseline has {listing(_marked(gathered, one) for one in difference.only_baseline)}."
    if difference.only_other:
        yield f"Only {difference.label} has {listing(_marked(gathered, one) for one in difference.only_other)}."


def _cells(change: Change) -> tuple[str, str]:
    return estimate(change.other), _signed(change.difference) + (" *" if change.clear else "")


def _how(change: Change) -> str:
    if change.difference is None:
        return ABSENT
    if not change.sequences or not change.positions:
        return "no shared sequence"
    return f"{counted(change.sequences, 'shared sequence')}, {counted(change.positions, 'position')}"


def _signed(difference: Estimate | None) -> str:
    text = estimate(difference)
    return f"+{text}" if difference is not None and difference.value > 0 else text


def _errors(gathered: Gathered) -> Topic:
    shared = [
        (difference.label, scheme, both)
        for difference in gathered.comparison.differences
        for scheme, both in difference.schemes.items()
    ]
    ends = tuple((f"{_marked(gathered, scheme)}, {label}", *_ends(both)) for label, scheme, both in shared)
    caption = "SQNR in dB at the last block.output, in each scheme's own stream"
    grids = [Grid(caption, ("Scheme, report", "Baseline", "Compared", "difference"), ends)] if ends else []
    grids += [
        Grid(
            f"Largest increases of isolated error, {_marked(gathered, scheme)}, {label}",
            ("Site", "Baseline", "Compared", "change, dB"),
            tuple(
                (f"layer {c.layer} {c.component}", number(c.relative_l2[0]), number(c.relative_l2[1]),
                 number(c.change_db))
                for c in both.growth
            ),
            folded=True,
        )
        for label, scheme, both in shared
        if both.growth
    ]  # fmt: skip
    lead = "Accumulated and isolated error of every shared scheme." if shared else _NO_SCHEME
    return Topic("errors", "Errors", lead, grids=tuple(grids))


def _ends(both: SchemeDifference) -> tuple[str, str, str]:
    before, after = both.final_sqnr_db
    change = None if before is None or after is None else after - before
    return number(before), number(after), number(change)


def _range(gathered: Gathered) -> Topic:
    grids, leads = [], []
    for difference in gathered.comparison.differences:
        change = difference.range
        if change is None:
            continue
        leads.append(
            f"{difference.label}: median change {number(change.median_change_bits)} bits over "
            f"{counted(change.sites, 'site')}{_only(change)}."
        )
        for kind, sites in (("increases", change.growth), ("decreases", change.shrinkage)):
            if sites:
                head = ("Site", "change, bits", "range_bits, baseline", "compared", "abs_max, baseline", "compared")
                rows = tuple(map(_range_row, carried(sites)))
                grids.append(Grid(f"Largest {kind} of range, {difference.label}", head, rows))
    lead = " ".join(leads) or "The range of these reports cannot be compared; see Not compared."
    return Topic("range", "Dynamic range", lead, grids=tuple(grids))


def _only(change: RangeDifference) -> str:
    if not (change.only_baseline or change.only_other):
        return ""
    return f"; {change.only_baseline} only in the baseline, {change.only_other} only in the compared report"


def _range_row(group: list[RangeChange]) -> tuple[str, ...]:
    first = group[0]
    layers = f"layer{'' if len(group) == 1 else 's'} {ranges([one.layer for one in group])}"
    values = [[one.change_bits, *one.range_bits, *one.abs_max] for one in group]
    return (f"{layers} {first.component}.{first.port}", *(_span(column) for column in zip(*values, strict=True)))


def _span(values: Iterable[float | None]) -> str:
    """Return the smallest and the largest value, as one where they read the same."""
    known = sorted(value for value in values if value is not None)
    if not known:
        return ABSENT
    ends = dict.fromkeys((number(known[0]), number(known[-1])))
    return " to ".join(ends)


def _outliers(gathered: Gathered) -> Topic:
    width = gathered.comparison.reports[0].model.hidden_size
    rows = [
        (f"{definition}, {difference.label}", *_sets(sets, width))
        for difference in gathered.comparison.differences
        for definition, sets in difference.outliers.items()
    ]
    if not rows:
        return Topic("outliers", "Outlier dimensions", "The outlier dimensions of these reports cannot be compared.")
    every = [sets for difference in gathered.comparison.differences for sets in difference.outliers.values()]
    gained, lost = sum(len(sets.gained) for sets in every), sum(len(sets.lost) for sets in every)
    lead = f"{counted(gained, 'outlier dimension')} gained and {lost:,} lost, summed over all definitions."
    head = ("Definition, report", "Gained", "Lost", "Kept")
    grid = Grid("Outlier dimensions by definition, compared with the baseline", head, tuple(rows))
    return Topic("outliers", "Outlier dimensions", lead, grids=(grid,))


def _sets(sets: OutlierDifference, hidden_size: int) -> Iterator[str]:
    """Yield what was gained, lost and kept: by name, unless one of the reports flags more than half of all."""
    before, after = (len(own) + len(sets.kept) for own in (sets.lost, sets.gained))
    named = discriminating(before, hidden_size) and discriminating(after, hidden_size)
    for dimensions in (sets.gained, sets.lost, sets.kept):
        yield _dimensions(dimensions) if named else f"{len(dimensions):,} (does not discriminate)"


def _dimensions(dimensions: tuple[int, ...]) -> str:
    return listing(map(str, dimensions)) or SAME


def _labelled(gathered: Gathered) -> Topic:
    with_prompts = sum(source.report.labelled is not None for source in gathered.sources)
    prints = {s.report.labelled.fingerprint for s in gathered.sources if s.report.labelled is not None}
    lead = f"{with_prompts} of {counted(len(gathered.sources), 'report')} have labeled prompts."
    notes = ("The reports have different prompts.",) if len(prints) > 1 else ()
    return Topic("labelled", "Labeled prompts", lead, notes)
