"""Site by site: dynamic range, and the isolated errors of schemes, in two reports of the same depth."""

import math
import statistics
from collections.abc import Iterable, Mapping

from service.comparison.comparable_report import ComparableReport
from service.contracts.comparison import ErrorChange, RangeChange, RangeDifference

LISTED_CHANGES = 10
"""Changes listed at each end."""
SAME_ABS_MAX_TOLERANCE = 0.01
"""Relative difference up to which the abs_max of neighboring layers counts as one value: about a step of bfloat16."""

Site = tuple[int, str, str]
"""Layer, component, port."""


def range_changes(baseline: ComparableReport, other: ComparableReport) -> tuple[list[RangeChange], int, int] | None:
    """Return every site of both reports, and how many only the baseline and only the other has.

    None where a report has no table of sites.
    """
    before, after = _ranges(baseline), _ranges(other)
    if before is None or after is None:
        return None
    changes = [
        RangeChange(
            layer=site[0],
            component=site[1],
            port=site[2],
            range_bits=(before[site][0], after[site][0]),
            abs_max=(before[site][1], after[site][1]),
            change_bits=_difference(before[site][0], after[site][0]),
        )
        for site in before
        if site in after
    ]
    return changes, len(before.keys() - after.keys()), len(after.keys() - before.keys())


def range_difference(baseline: ComparableReport, other: ComparableReport) -> RangeDifference | None:
    """Return the summary of all changes of range; None where a report has no table of sites."""
    compared = range_changes(baseline, other)
    if compared is None:
        return None
    changes, only_baseline, only_other = compared
    known = [(change.change_bits, change) for change in changes if change.change_bits is not None]
    return RangeDifference(
        sites=len(changes),
        only_baseline=only_baseline,
        only_other=only_other,
        median_change_bits=statistics.median(bits for bits, _ in known) if known else None,
        growth=_largest(change for bits, change in known if bits > 0),
        shrinkage=_largest(change for bits, change in known if bits < 0),
    )


def _largest(changes: Iterable[RangeChange]) -> tuple[RangeChange, ...]:
    return tuple(change for group in carried(changes)[:LISTED_CHANGES] for change in group)


def carried(changes: Iterable[RangeChange]) -> list[list[RangeChange]]:
    """Join neighboring layers of the residual stream whose abs_max hardly changes, in both reports.

    A massive activation is carried from the layer that makes it to the one that removes it: its range is one change,
    not one for each layer.

    Returns:
        Every change once, the layers of a group ascending; the group with the largest change of range first.
    """
    groups: list[list[RangeChange]] = []
    stream: list[RangeChange] = []
    for change in sorted(changes, key=lambda one: one.layer):
        if (change.component, change.port) != ("block", "output"):
            groups.append([change])
        elif stream and change.layer == stream[-1].layer + 1 and _alike(change.abs_max, stream[-1].abs_max):
            stream.append(change)
        else:
            stream = [change]
            groups.append(stream)
    return sorted(groups, key=lambda group: max(abs(one.change_bits or 0) for one in group), reverse=True)


def _alike(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return all(math.isclose(a, b, rel_tol=SAME_ABS_MAX_TOLERANCE) for a, b in zip(one, other, strict=True))


def error_growth(baseline: ComparableReport, other: ComparableReport, scheme: str) -> tuple[ErrorChange, ...]:
    """Return the projections whose isolated error under `scheme` grew most."""
    before, after = _errors(baseline, scheme), _errors(other, scheme)
    grown = [
        ErrorChange(
            layer=site[0],
            component=site[1],
            relative_l2=(before[site], after[site]),
            change_db=20 * math.log10(after[site] / before[site]) if before[site] > 0 and after[site] > 0 else None,
        )
        for site in before
        if site in after and after[site] > before[site]
    ]
    return tuple(
        sorted(grown, key=lambda c: math.inf if c.change_db is None else c.change_db, reverse=True)[:LISTED_CHANGES]
    )


def final_sqnr(side: ComparableReport, scheme: str) -> float | None:
    """Return sqnr_db of the scheme's own stream after the last layer; None where it is exact or not known."""
    rows = side.read("errors", ("scheme", "layer", "component", "port", "mode", "sqnr_db"))
    if rows is None:
        return None
    wanted = (scheme, side.report.model.layers - 1, "block", "output", "accumulated")
    names = ("scheme", "layer", "component", "port", "mode")
    keyed = zip(*(rows[name] for name in names), rows["sqnr_db"], strict=True)
    return next((row[-1] for row in keyed if row[:-1] == wanted), None)


def _ranges(side: ComparableReport) -> Mapping[Site, tuple[float | None, float]] | None:
    rows = side.read("sites", ("layer", "component", "port", "range_bits", "abs_max"))
    if rows is None:
        return None
    sites = zip(rows["layer"], rows["component"], rows["port"], strict=True)
    return dict(zip(sites, zip(map(_known, rows["range_bits"]), rows["abs_max"], strict=True), strict=True))


def _errors(side: ComparableReport, scheme: str) -> Mapping[tuple[int, str], float]:
    rows = side.read("errors", ("scheme", "layer", "component", "port", "mode", "relative_l2"))
    if rows is None:
        return {}
    kinds = zip(rows["scheme"], rows["port"], rows["mode"], strict=True)
    sites = zip(rows["layer"], rows["component"], strict=True)
    return {
        site: error
        for kind, site, error in zip(kinds, sites, rows["relative_l2"], strict=True)
        if kind == (scheme, "output", "isolated") and _known(error) is not None
    }


def _known(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _difference(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else after - before
