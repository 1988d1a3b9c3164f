"""`labelled_activations`: does one dimension separate true answers from false ones, and still after quantization?

The hidden dimensions that separate the labeled prompts best, under the reference and under every scheme.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from service.contracts.sections.labelled import REFERENCE, Labelled, column_name
from service.errors import ReportUnreadable
from workers.reporting.drawing import style
from workers.reporting.drawing.figure import Caption, Drawing, model_title, provenance
from workers.reporting.drawing.separation_grid import Panel, Row, grid, outlined
from workers.reporting.loading import Source
from workers.reporting.text import counted, number, visible

MOST_PANELS = 16
"""Dimensions that are drawn; the table may have more."""


def draw(source: Source) -> Iterator[Drawing]:
    """Yield the figure, unless the report has no labeled prompts; `source.density` asks for densities, see `grid`."""
    labelled = source.report.labelled
    if labelled is None:
        return
    row = model_row(source, labelled)
    figure, hover = grid([row], density=source.density)
    yield Drawing(
        name="labelled_activations",
        title="Activations of true and false answers",
        parts=_caption(source, labelled, row),
        alt=_alt(row),
        table="labelled",
        figure=figure,
        hover=hover,
    )


def model_row(source: Source, labelled: Labelled) -> Row:
    """Return the row of one report, with every scheme that the report has.

    Raises:
        ReportUnreadable: the `labelled` table and report.json do not fit each other.
    """
    labels = source.truths("labelled", "label")
    counts = (len(labels), int(labels.sum()))
    stated = (labelled.records, labelled.true_records)
    if counts != stated:
        raise ReportUnreadable(
            f"tables/labelled.parquet: column 'label' has {counts[1]} true of {counts[0]} records; "
            f"report.json gives {stated[1]} of {stated[0]}"
        )
    panels = tuple(_panel(source, labelled, place, labels) for place in range(len(labelled.dimensions))[:MOST_PANELS])
    return Row(model_title(source.report), panels, _unranked(labelled))


def _panel(source: Source, labelled: Labelled, place: int, labels: NDArray[np.bool_]) -> Panel:
    chosen, schemes = labelled.dimensions[place], tuple(source.report.schemes)
    for scheme in schemes:
        if scheme not in chosen.schemes:
            raise ReportUnreadable(
                f"report.json: labelled.dimensions.{place}.schemes: {scheme!r} is missing; "
                f"found {', '.join(chosen.schemes) or 'none'}"
            )
    table = source.tables["labelled"]
    return Panel(
        chosen.dimension,
        labels,
        {variant: table[column_name(variant, chosen.dimension)] for variant in (REFERENCE, *schemes)},
        {REFERENCE: chosen.reference} | {scheme: chosen.schemes[scheme] for scheme in schemes},
        {name: style.scheme_label(name, facts) for name, facts in source.report.schemes.items()},
    )


def _unranked(labelled: Labelled) -> str:
    """Return why a report on labeled prompts has no dimensions."""
    if labelled.true_records in (0, labelled.records) and labelled.given == "label":
        side = "true" if labelled.true_records else "false"
        return f"All {counted(labelled.records, 'labeled prompt')} are {side}: there is nothing to separate."
    return f"None of the model's hidden dimensions varies with the {labelled.given}s of the prompts."


def _caption(source: Source, labelled: Labelled, row: Row) -> Caption:
    vector = "after the final norm" if labelled.depth is None else f"after layer {labelled.depth}"
    true, false = labelled.true_records, labelled.records - labelled.true_records
    notes = []
    if row.panels:
        notes += [*_tested(labelled), *_schemes(source, row), *_lost(row)]
    if len(labelled.dimensions) > len(row.panels):
        notes.append(f"The best {len(row.panels)} of {len(labelled.dimensions)}; the table has all.")
    if true in (0, labelled.records):
        notes.append("All labels are equal, so AUROC is not defined.")
    return Caption(
        f"Hidden state of the last token {vector}, for {counted(labelled.records, 'labeled prompt')} of "
        f"{visible(labelled.source)}: {true:,} true, {false:,} false{_threshold(labelled)}.",
        (_definition(labelled, source.density),) if row.panels else (row.nothing,),
        "AUROC 0.5 is no separation, 0 or 1 is complete; a scheme that moves it toward 0.5 destroys the signal."
        if row.panels
        else "",
        tuple(notes),
        provenance(source.report, "labelled", source.report.schemes),
    )


def _threshold(labelled: Labelled) -> str:
    return "" if labelled.threshold is None else f" (true: score over {labelled.threshold:g})"


def _definition(labelled: Labelled, density: bool) -> str:
    by = "abs(AUROC - 0.5)" if labelled.ranked_by == "auroc" else "abs(rho)"
    score = "the label as 0 and 1" if labelled.given == "label" else "the score"
    height = "density, each histogram's area 1" if density else "number of prompts"
    return (
        f"Dimensions with the largest {by} under the reference, best first. Filled: the reference; height: {height}. "
        f"rho: Spearman's with {score}. AUROC: probability that a true prompt has the larger value, ties counted half."
    )


def _tested(labelled: Labelled) -> list[str]:
    """Return whether the best dimension separates beyond chance; nothing where a report has no test."""
    if labelled.permutation_probability is None:
        return []
    result = (
        f"Permutation test of the best dimension: p = {number(labelled.permutation_probability)} "
        f"({labelled.permutations:,} permutations, largest over all dimensions)"
    )
    return [f"{result}: no dimension separates beyond chance." if labelled.by_chance else f"{result}."]


def _schemes(source: Source, row: Row) -> list[str]:
    schemes, drawn = tuple(source.report.schemes), outlined(row.panels)
    if not schemes:
        return []
    which = "every scheme" if drawn == schemes else f"the schemes that move AUROC most, {', '.join(drawn)}"
    return [f"Outlines: {which}."]


def _lost(row: Row) -> list[str]:
    """Return how many records a variant leaves out because their values are not finite."""
    return [
        f"Not drawn: {counted(lost, 'value')} of dimension {panel.dimension} under {visible(variant)}, not finite."
        for panel in row.panels
        for variant, values in panel.values.items()
        if (lost := int((~np.isfinite(values)).sum()))
    ]


def _alt(row: Row) -> str:
    if not row.panels:
        return f"No histograms. {row.nothing}"
    true = int(row.panels[0].labels.sum())
    named = "; ".join(
        f"dimension {panel.dimension}: "
        + ", ".join(f"{visible(variant)} {number(figure.auroc)}" for variant, figure in panel.figures.items())
        for panel in row.panels
    )
    return (
        f"Histograms of {counted(len(row.panels), 'hidden dimension')} over {true} true and "
        f"{len(row.panels[0].labels) - true} false answers. AUROC of {named}."
    )
