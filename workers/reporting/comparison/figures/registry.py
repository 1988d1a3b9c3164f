"""Every figure of a comparison, with its section of the page. Adding a figure adds a line here."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from service.contracts.report import LeftOut
from workers.reporting.comparison.figures import difference_maps, divergence, growth, labelled, ranges
from workers.reporting.comparison.gathering import Gathered
from workers.reporting.drawing import style
from workers.reporting.drawing.figure import Drawing, Saved, measured
from workers.reporting.figures.gallery import Gallery
from workers.reporting.loading import TableAbsent
from workers.reporting.text import visible

FIGURES: tuple[tuple[str, Callable[[Gathered], Iterator[Drawing]]], ...] = (
    ("divergence", divergence.draw),
    ("errors", growth.draw),
    ("errors", difference_maps.draw_errors),
    ("range", ranges.draw),
    ("range", difference_maps.draw_ranges),
    ("labelled", labelled.draw),
)


def draw_all(gathered: Gathered, directory: Path) -> dict[str, Gallery]:
    """Draw every figure for which the reports have something to show, save them in `directory`, and sort by section.

    Raises:
        ReportUnreadable: a table is damaged.
    """
    galleries: dict[str, Gallery] = {}
    for section, draw in FIGURES:
        before = galleries.get(section, Gallery((), ()))
        figures, left_out = _draw(gathered, draw, directory)
        galleries[section] = Gallery(before.figures + figures, before.left_out + left_out)
    return galleries


def _draw(
    gathered: Gathered, draw: Callable[[Gathered], Iterator[Drawing]], directory: Path
) -> tuple[tuple[Saved, ...], tuple[LeftOut, ...]]:
    try:
        with style.applied():
            drawings = tuple(draw(gathered))
    except TableAbsent as absent:
        return (), (LeftOut(name=f"comparison_{draw.__module__.rpartition('.')[2]}", reason=str(absent)),)
    sides = " ".join(
        f"{visible(label)}: model {measured(source.report)}."
        for label, source in zip(gathered.labels, gathered.sources, strict=True)
    )
    return tuple(replace(one, parts=one.parts._replace(basis=sides)).save(directory) for one in drawings), ()
