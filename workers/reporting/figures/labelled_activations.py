"""`labelled_activations`: does one number tell true answers from false ones, and does it still after quantization?

The hidden dimensions that separate the labeled prompts best, under the reference and under every scheme.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from service.contracts.labelled import REFERENCE, Labelled, column_name
from workers.reporting.figures import style
from workers.reporting.figures.drawing import Drawing, model_title, provenance, scheme_settings
from workers.reporting.figures.separation_grid import Panel, Row, grid, outlined
from workers.reporting.loading import ReportUnreadable, Source
from workers.reporting.text import counted, number, visible

MOST_PANELS = 16
"""Dimensions that are drawn; the table may have more."""


def draw(source: Source) -> Iterator[Drawing]:
    """Yield the figure, unless no labeled prompts were given; `source.density` asks for densities, see `grid`."""
    labelled = source.report.labelled
    if labelled is None:
        return
    row = model_row(source, labelled)
    figure, hover = grid([row], density=source.density)
    yield Drawing(
        name="labelled_activations",
        title="Activations of true and false answers",
        caption=_caption(source, labelled, row),
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
    found = (len(labels), int(labels.sum()))
    stated = (labelled.records, labelled.true_records)
    if found != stated:
        raise ReportUnreadable(
            f"tables/labelled.parquet: column 'label' has {found[1]} true of {found[0]} records; "
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
    """Say why a report on labeled prompts has no dimensions."""
    if labelled.true_records in (0, labelled.records) and labelled.given == "label":
        side = "true" if labelled.true_records else "false"
        return f"All {counted(labelled.records, 'labeled prompt')} are {side}: there is nothing to tell apart."
    return f"None of the model's hidden dimensions varies with the {labelled.given}s of the prompts."


def _caption(source: Source, labelled: Labelled, row: Row) -> str:
    vector = "after the final norm" if labelled.depth is None else f"after layer {labelled.depth}"
    true, false = labelled.true_records, labelled.records - labelled.true_records
    parts = [
        f"The last token's hidden state {vector}, for {counted(labelled.records, 'labeled prompt')} of "
        f"{visible(labelled.source)}: {true:,} true, {false:,} false{_threshold(labelled)}."
    ]
    if row.panels:
        parts += _reading(labelled, source.density)
        parts += _tested(labelled)
        parts += _schemes(source, row)
        parts += _lost(row)
    else:
        parts.append(row.nothing)
    if len(labelled.dimensions) > len(row.panels):
        parts.append(f"The best {len(row.panels)} of {len(labelled.dimensions)}; the table has all.")
    if true in (0, labelled.records):
        parts.append("All labels are equal, so AUROC is not defined.")
    return " ".join([*parts, provenance(source.report, "labelled")])


def _threshold(labelled: Labelled) -> str:
    return "" if labelled.threshold is None else f" (true: score over {labelled.threshold:g})"


def _reading(labelled: Labelled, density: bool) -> list[str]:
    by = "abs(AUROC - 0.5)" if labelled.ranked_by == "auroc" else "abs(rho)"
    followed = "the label as 0 and 1" if labelled.given == "label" else "the score"
    height = "density, each histogram's area 1" if density else "number of prompts"
    return [
        f"The hidden dimensions (“neurons”) with the largest {by} under the reference, best first. Filled: the "
        f"reference; height: {height}; bin edges are shared inside a panel. rho is Spearman's, with {followed}. AUROC "
        "is the chance that a true prompt has the larger value, a tie counted half: 0.5 tells nothing, 0 and 1 "
        "separate fully."
    ]


def _tested(labelled: Labelled) -> list[str]:
    """Say whether the best dimension separates beyond chance; nothing where a report does not tell."""
    if labelled.permutation_probability is None:
        return []
    told = (
        f"Permutation test of the best dimension under the reference: p = {number(labelled.permutation_probability)} "
        f"({labelled.permutations:,} permutations, largest over all dimensions)"
    )
    return [f"{told}: no dimension separates beyond chance." if labelled.by_chance else f"{told}."]


def _schemes(source: Source, row: Row) -> list[str]:
    schemes, drawn = tuple(source.report.schemes), outlined(row.panels)
    if not schemes:
        return []
    parts = [f"AUROC also under {'; '.join(scheme_settings(source.report, scheme) for scheme in schemes)}."]
    which = "every scheme" if drawn == schemes else f"{', '.join(drawn)}, the schemes that move it most"
    return [*parts, f"Outlines: the same prompts under {which}."]


def _lost(row: Row) -> list[str]:
    """Say how many records a variant leaves out, for their values are not finite."""
    return [
        f"{counted(lost, 'value')} of dimension {panel.dimension} under {visible(variant)} not finite and not drawn."
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
