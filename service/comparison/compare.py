"""The whole comparison of reports: checks, then one difference for each report after the first."""

from collections.abc import Iterator, Sequence

from service.comparison import cautions, predictions, sites
from service.comparison.comparable_report import ComparableReport, check_count, check_schema_version, labels
from service.contracts.comparison import (
    COMPARISON_VERSION,
    Compared,
    Comparison,
    Difference,
    OutlierDifference,
    SchemeDifference,
)
from service.contracts.report import LeftOut


def compare(sides: Sequence[ComparableReport], headroom_version: str) -> Comparison:
    """Compare every report after the first with the first, the baseline.

    Raises:
        NotComparable: there are fewer than two reports or more than eight, or one is of another major version of the
            schema or the definitions.
    """
    check_count(len(sides))
    baseline, *others = sides
    for side in sides:
        check_schema_version(side.name, side.report.schema_version)
        cautions.check_definitions(side.name, baseline.report, side.report)
    called = labels(sides)
    differences = [_difference(label, baseline, side) for label, side in zip(called[1:], others, strict=True)]
    return Comparison(
        comparison_version=COMPARISON_VERSION,
        headroom_version=headroom_version,
        reports=tuple(_compared(label, side) for label, side in zip(called, sides, strict=True)),
        warnings=tuple(
            warning
            for difference, other in zip(differences, others, strict=True)
            for warning in cautions.warnings(
                difference.label, baseline.report, other.report, difference.reference_perplexity.sequences or 0
            )
        ),
        differences=tuple(differences),
    )


def _compared(label: str, side: ComparableReport) -> Compared:
    report = side.report
    shared = {name: getattr(report, name) for name in Compared.model_fields if name not in ("label", "name")}
    return Compared(label=label, name=side.name, **shared)


def _difference(label: str, baseline: ComparableReport, other: ComparableReport) -> Difference:
    before, after = baseline.report.schemes, other.report.schemes
    shared = [scheme for scheme in before if scheme in after]
    paired = {scheme: predictions.pairs(baseline, other, scheme, scheme) for scheme in shared}
    first = paired[shared[0]] if shared else ()
    if before and after and not shared:
        first = predictions.pairs(baseline, other, next(iter(before)), next(iter(after)))
    layers = cautions.uncomparable_layers(baseline.report, other.report)
    return Difference(
        label=label,
        reference_perplexity=predictions.reference_change(
            baseline.report.reference.perplexity,
            other.report.reference.perplexity,
            first,
        ),
        range=None if layers else sites.range_difference(baseline, other),
        outliers=_outliers(baseline, other),
        schemes={scheme: _scheme(baseline, other, scheme, paired[scheme], layers is None) for scheme in shared},
        only_baseline=tuple(scheme for scheme in before if scheme not in after),
        only_other=tuple(scheme for scheme in after if scheme not in before),
        not_compared=tuple(_not_compared(baseline, other, layers)),
    )


def _not_compared(baseline: ComparableReport, other: ComparableReport, layers: str | None) -> Iterator[LeftOut]:
    if layers:
        yield LeftOut(name="range", reason=layers)
        yield LeftOut(name="errors by component", reason=layers)
    elif sites.range_changes(baseline, other) is None:
        yield LeftOut(name="range", reason="a report has no table 'sites'")
    yield from cautions.uncomparable_outliers(baseline.report, other.report)


def _outliers(baseline: ComparableReport, other: ComparableReport) -> dict[str, OutlierDifference]:
    refused = {left_out.name for left_out in cautions.uncomparable_outliers(baseline.report, other.report)}
    differences = {}
    definitions = [side.report.outliers.present() for side in (baseline, other)]
    for definition in definitions[0]:
        if f"outliers.{definition}" in refused:
            continue
        before, after = ({outlier.dimension for outlier in of[definition].dimensions} for of in definitions)
        differences[definition] = OutlierDifference(
            gained=tuple(sorted(after - before)),
            lost=tuple(sorted(before - after)),
            kept=tuple(sorted(before & after)),
        )
    return differences


def _scheme(
    baseline: ComparableReport, other: ComparableReport, scheme: str, paired: predictions.Paired, same_layers: bool
) -> SchemeDifference:
    before, after = baseline.report.schemes[scheme], other.report.schemes[scheme]
    return SchemeDifference(
        kl_divergence=predictions.kl_change(before, after, paired),
        perplexity_ratio=predictions.ratio_change(before, after, paired),
        same_top_token=predictions.same_top_change(before, after, paired),
        final_sqnr_db=(sites.final_sqnr(baseline, scheme), sites.final_sqnr(other, scheme)),
        growth=sites.error_growth(baseline, other, scheme) if same_layers else (),
    )
