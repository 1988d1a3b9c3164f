"""`comparison_labelled_activations`: the labeled prompts of several reports, one row of histograms for each."""

from collections.abc import Iterator

from workers.reporting.comparison.gathering import Gathered
from workers.reporting.drawing.figure import Caption, Drawing, scheme_settings
from workers.reporting.drawing.separation_grid import PANELS_PER_LINE, Row, grid
from workers.reporting.figures.labelled_activations import model_row
from workers.reporting.text import counted, plain, visible


def draw(gathered: Gathered) -> Iterator[Drawing]:
    """Yield the grid, unless no report has labeled prompts."""
    rows = tuple(_rows(gathered))
    if not any(row.panels for row in rows):
        return
    figure, hover = grid(rows)
    yield Drawing(
        name="comparison_labelled_activations",
        title="Activations of true and false answers",
        parts=Caption(
            f"The {counted(PANELS_PER_LINE, 'hidden dimension')} that separate true from false answers best, one row "
            "for each report with labeled prompts.",
            (
                "Filled: the reference; outlines: the schemes that move AUROC most. AUROC: probability that a true "
                "prompt has the larger value, ties counted half.",
            ),
            "AUROC 0.5 is no separation, 0 or 1 is complete; a scheme that moves it toward 0.5 destroys the signal.",
            tuple(_settings(gathered)),
        ),
        alt=" ".join(_alt(row) for row in rows),
        table="",
        figure=figure,
        hover=hover,
    )


def _settings(gathered: Gathered) -> Iterator[str]:
    """Yield a sentence about the prompts of every report that has some, with the settings of its schemes."""
    for label, source in zip(gathered.labels, gathered.sources, strict=True):
        report, labelled = source.report, source.report.labelled
        if labelled is not None:
            prompts = (
                f"{counted(labelled.records, 'prompt')} of {visible(labelled.source)}, {labelled.true_records:,} true"
            )
            schemes = "; ".join(scheme_settings(report, scheme) for scheme in report.schemes) or "no scheme"
            yield f"{visible(label)}: {prompts}; {schemes}."


def _rows(gathered: Gathered) -> Iterator[Row]:
    for label, source in zip(gathered.labels, gathered.sources, strict=True):
        if source.report.labelled is not None:
            row = model_row(source, source.report.labelled)
            yield row._replace(model=plain(label, 40), panels=row.panels[:PANELS_PER_LINE])


def _alt(row: Row) -> str:
    return f"{row.model}: histograms of dimensions {', '.join(str(panel.dimension) for panel in row.panels) or 'none'}."
