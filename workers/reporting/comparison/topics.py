"""What the page of a comparison says, section by section, as finished text."""

from collections.abc import Iterator, Mapping

from service.contracts.comparison import Change, Difference, OutlierDifference, SchemeDifference
from service.contracts.outliers import discriminating
from service.contracts.report import Estimate
from service.contracts.uncertainty import FEWEST
from workers.reporting.comparison.gathering import Gathered
from workers.reporting.text import ABSENT, claim, counted, estimate, listing, number
from workers.reporting.topics.records import Grid, Topic, marked

SAME = "-"
"""Stands for nothing gained, lost or kept."""


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
    caption = "The reports; the first is the baseline. Brackets hold 95% intervals"
    return Grid(caption, head, tuple(rows))


def headlines(gathered: Gathered) -> list[str]:
    """Return one sentence for each report after the baseline: which schemes became clearly better or worse."""
    return [_headline(gathered, one) for one in gathered.comparison.differences]


def _headline(gathered: Gathered, difference: Difference) -> str:
    if not difference.schemes:
        return f"{difference.label}: shares no scheme with the baseline."
    paired = {name: found for name, found in difference.schemes.items() if found.kl_divergence.paired}
    clear = {
        scheme: found.kl_divergence.difference
        for scheme, found in paired.items()
        if found.kl_divergence.clear and found.kl_divergence.difference
    }
    changed = [
        f"{_marked(gathered, scheme)} {'worse' if by.value > 0 else 'better'} by a mean KL of {_size(by, 'nats')}"
        f"{_against(difference.schemes[scheme], worse=by.value > 0)}"
        for scheme, by in clear.items()
    ]
    rest = [_marked(gathered, scheme) for scheme in paired if scheme not in clear]
    unclear = [f"no clear difference of the mean KL under {', '.join(rest)}"] if rest else []
    alone = [_marked(gathered, scheme) for scheme in difference.schemes if scheme not in paired]
    apart = [f"no comparison of {', '.join(alone)}, because no scored sequence is shared"] if alone else []
    return f"{difference.label}: {'; '.join([*changed, *unclear, *apart])}{_on(paired)}."


def _on(paired: Mapping[str, SchemeDifference]) -> str:
    """Say on how many shared sequences the differences are."""
    counts = sorted({found.kl_divergence.sequences or 0 for found in paired.values()})
    if not counts:
        return ""
    most = counts[-1]
    few = f"; rerun both with --sequences {FEWEST} or more" if most < FEWEST else ""
    return f" (on {'up to ' if len(counts) > 1 else ''}{counted(most, 'shared sequence')}{few})"


def _marked(gathered: Gathered, scheme: str) -> str:
    return marked(scheme, gathered.facts(scheme))


def _against(found: SchemeDifference, *, worse: bool) -> str:
    """Say which other measure clearly points the other way."""
    ratio, top = found.perplexity_ratio, found.same_top_token
    told = []
    if ratio.clear and ratio.difference and (ratio.difference.value < 0) is worse:
        told.append(f"the perplexity ratio {'falls' if worse else 'rises'} by {_size(ratio.difference)}")
    if top.clear and top.difference and (top.difference.value > 0) is worse:
        told.append(f"the same top token is {'more' if worse else 'less'} frequent by {_size(top.difference)}")
    return f", although {' and '.join(told)}" if told else ""


def _size(difference: Estimate, unit: str = "") -> str:
    if difference.value >= 0 or difference.interval is None:
        return claim(difference.model_copy(update={"value": abs(difference.value)}), unit)
    low, high = difference.interval
    return claim(difference.model_copy(update={"value": -difference.value, "interval": (-high, -low)}), unit)


def _divergence(gathered: Gathered) -> Topic:
    rows = []
    for difference in gathered.comparison.differences:
        for scheme, found in difference.schemes.items():
            changes = found.kl_divergence, found.perplexity_ratio, found.same_top_token
            cells = [cell for change in changes for cell in _cells(change)]
            rows.append((f"{_marked(gathered, scheme)}, {difference.label}", *cells, _how(found.kl_divergence)))
    grids = []
    if rows:
        head = ("Scheme, report", "Mean KL", "difference", "Perplexity ratio", "difference", "Same top", "difference",
                "Differences over")  # fmt: skip
        caption = (
            "Values of the compared reports, and their differences from the baseline. Brackets hold 95% intervals; "
            "* marks a difference whose interval does not include 0"
        )
        grids.append(Grid(caption, head, tuple(rows)))
    lone = [line for difference in gathered.comparison.differences for line in _lone(gathered, difference)]
    lead = "Shared schemes are compared by what they do to the predictions." if rows else "No scheme is shared."
    return Topic("divergence", "Divergence of the predictions", lead, tuple(lone), grids=tuple(grids))


def _lone(gathered: Gathered, difference: Difference) -> Iterator[str]:
    if difference.only_baseline:
        yield f"The baseline alone has {listing(_marked(gathered, one) for one in difference.only_baseline)}."
    if difference.only_other:
        yield f"{difference.label} alone has {listing(_marked(gathered, one) for one in difference.only_other)}."


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
        (difference.label, scheme, found)
        for difference in gathered.comparison.differences
        for scheme, found in difference.schemes.items()
    ]
    ends = tuple((f"{_marked(gathered, scheme)}, {label}", *_ends(found)) for label, scheme, found in shared)
    caption = "SQNR at the last block.output, each scheme in its own stream, dB"
    grids = [Grid(caption, ("Scheme, report", "Baseline", "Compared", "difference"), ends)] if ends else []
    grids += [
        Grid(
            f"Isolated errors that grew most, {_marked(gathered, scheme)}, {label}",
            ("Site", "Baseline", "Compared", "dB"),
            tuple(
                (f"layer {c.layer} {c.component}", number(c.relative_l2[0]), number(c.relative_l2[1]),
                 number(c.change_db))
                for c in found.growth
            ),
            folded=True,
        )
        for label, scheme, found in shared
        if found.growth
    ]  # fmt: skip
    lead = "Where each scheme's error arises, and how it grows." if shared else "No scheme is shared."
    return Topic("errors", "Errors", lead, grids=tuple(grids))


def _ends(found: SchemeDifference) -> tuple[str, str, str]:
    before, after = found.final_sqnr_db
    change = None if before is None or after is None else after - before
    return number(before), number(after), number(change)


def _range(gathered: Gathered) -> Topic:
    grids, leads = [], []
    for difference in gathered.comparison.differences:
        found = difference.range
        if found is None:
            continue
        changed = number(found.median_change_bits)
        alone = f"; {found.only_baseline} sites are in the baseline alone, {found.only_other} in the other"
        leads.append(
            f"{difference.label}: the median change over {counted(found.sites, 'site')} is {changed} bits"
            f"{alone if found.only_baseline or found.only_other else ''}."
        )
        for name, changes in (("grew", found.growth), ("shrank", found.shrinkage)):
            if changes:
                rows = tuple(
                    (f"layer {c.layer} {c.component}.{c.port}", number(c.change_bits), *map(number, c.range_bits),
                     *map(number, c.abs_max))
                    for c in changes
                )  # fmt: skip
                head = ("Site", "bits", "range_bits, baseline", "compared", "abs max, baseline", "compared")
                grids.append(Grid(f"Sites whose range {name} most, {difference.label}", head, rows))
    lead = " ".join(leads) or "The sites of these models cannot be held against each other."
    return Topic("range", "Dynamic range", lead, grids=tuple(grids))


def _outliers(gathered: Gathered) -> Topic:
    width = gathered.comparison.reports[0].model.hidden_size
    rows = [
        (f"{definition}, {difference.label}", *_sets(sets, width))
        for difference in gathered.comparison.differences
        for definition, sets in difference.outliers.items()
    ]
    if not rows:
        return Topic("outliers", "Outlier dimensions", "The outlier dimensions of these reports cannot be compared.")
    moved = sum(
        len(sets.gained) + len(sets.lost)
        for difference in gathered.comparison.differences
        for sets in difference.outliers.values()
    )
    lead = f"{counted(moved, 'outlier dimension')} gained or lost, over all definitions."
    head = ("Definition, report", "Gained", "Lost", "Kept")
    grid = Grid("Outlier dimensions by definition, against the baseline", head, tuple(rows))
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
    notes = ("The prompts are not the same in all of them.",) if len(prints) > 1 else ()
    return Topic("labelled", "Labeled prompts", lead, notes)
