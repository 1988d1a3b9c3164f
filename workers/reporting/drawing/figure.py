"""A figure with its caption and description, and its saving as SVG and PNG."""

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from numpy.typing import NDArray

from service.contracts.report import Entry, Report
from service.errors import HeadroomError
from workers.reporting.drawing import style
from workers.reporting.drawing.svg import Hover, finish
from workers.reporting.text import counted, plain, visible

_SVG_METADATA = {"Creator": None, "Date": None, "Format": None, "Type": None}


class NothingToDraw(HeadroomError):
    """The report holds nothing that a figure could show; the message, a part of a sentence, says what is missing."""

    code = "nothing-to-draw"


class Caption(NamedTuple):
    """A caption in its parts, which are read in this order.

    Figures of one kind share the first three parts or most of them; where several stand side by side, a page prints
    each shared sentence once, above them.
    """

    shown: str
    """What the figure shows: one sentence, the same for all figures of one kind."""
    definition: tuple[str, ...]
    """How the values are defined, with the settings: sentences."""
    reading: str
    """How to read it: what is good and what is bad."""
    notes: tuple[str, ...] = ()
    """Sentences about this figure alone: its values and exceptions."""
    basis: str = ""
    """Schemes with their settings, model, calibration and table: what a page says once for all its figures."""

    @property
    def whole(self) -> str:
        """All that is needed to read the figure away from its page."""
        return joined(self.shown, *self.definition, self.reading, *self.notes, self.basis)

    @property
    def without_shown(self) -> str:
        """What a page that states the basis prints after the first sentence."""
        return joined(*self.definition, self.reading, *self.notes)


def joined(*sentences: str) -> str:
    """Return the sentences that are not empty as one paragraph."""
    return " ".join(filter(None, sentences))


class Saved(NamedTuple):
    """A figure that has become files, and its description."""

    name: str
    title: str
    caption: Caption
    alt: str
    table: str
    narrow: bool
    """Two such figures stand side by side on a wide page."""
    files: tuple[str, ...]
    """Relative to the report; SVG first."""

    @property
    def entry(self) -> Entry:
        """The figure's entry in report.json."""
        return Entry(name=self.name, title=self.title, caption=self.caption.whole, files=self.files)


@dataclass(frozen=True)
class Drawing:
    """One figure, drawn and described."""

    name: str
    """File name without its ending."""
    title: str
    parts: Caption
    alt: str
    """What the figure shows, for someone who cannot see it."""
    table: str
    """The table that it is drawn from."""
    figure: Figure
    """The matplotlib Figure."""
    hover: Hover = field(default_factory=dict)
    """Exact values that the SVG shows on hover."""

    @property
    def caption(self) -> str:
        """The whole caption, for the figure by itself: what is shown, definition, settings, model and calibration."""
        return self.parts.whole

    def save(self, directory: Path) -> Saved:
        """Write NAME.svg and NAME.png into `directory`, each with the whole caption inside; the same drawing gives the
        same bytes.
        """
        with style.applied(f"headroom {self.name}"), style.laid_out(self.figure):
            written = io.StringIO()
            self.figure.savefig(written, format="svg", metadata=_SVG_METADATA)
            svg = finish(written.getvalue(), self.hover, self.caption)
            (directory / f"{self.name}.svg").write_text(svg, encoding="utf-8")
            described = {"Software": None, "Title": self.title, "Description": self.caption}
            self.figure.savefig(directory / f"{self.name}.png", dpi=style.DPI, metadata=described)
        files = tuple(f"figures/{self.name}.{kind}" for kind in ("svg", "png"))
        narrow = bool(self.figure.get_figwidth() < style.WIDE[0])
        return Saved(self.name, self.title, self.parts, self.alt, self.table, narrow, files)


def name_each(artists: Iterable[Any], texts: Iterable[str], gid: str) -> dict[str, tuple[str]]:
    """Give bars (or other artists of one shape each) the ids `gid`-0, `gid`-1, ... and return their `Drawing.hover`."""
    hover = {}
    for position, (artist, text) in enumerate(zip(artists, texts, strict=True)):
        artist.set_gid(f"{gid}-{position}")
        hover[artist.get_gid()] = (text,)
    return hover


def name_bins(
    axes: Axes, edges: NDArray[np.float64], texts: Sequence[str], gid: str, rows: tuple[float, float] | None = None
) -> dict[str, Sequence[str]]:
    """Lay an unseen rectangle over every bin of a histogram, and return their `Drawing.hover`.

    edges: [B + 1]; texts: B; rows: the y data that the rectangles span, else all of the axes.
    """
    low, high = rows or (0.0, 1.0)
    corners = [[(a, low), (b, low), (b, high), (a, high)] for a, b in pairwise(edges.tolist())]
    where = axes.transData if rows else axes.get_xaxis_transform()
    # An area without any paint would not notice the pointer.
    unseen = PolyCollection(corners, facecolors=[(1, 1, 1, 0)], edgecolors="none", transform=where, gid=gid, zorder=9)
    axes.add_collection(unseen, autolim=False)
    return {gid: texts}


def model_title(report: Report) -> str:
    """Return the model's name as a figure's title has it: without the owner or the directories before it."""
    source = report.model.source.rstrip("/")
    return plain(source.rpartition("/")[2] or source, 40)


def provenance(report: Report, table: str, schemes: Iterable[str] = ()) -> str:
    """Return the sentences that end every caption: schemes with their settings, model, calibration, table."""
    settings = [scheme_settings(report, scheme) for scheme in schemes]
    named = f"Scheme{'' if len(settings) == 1 else 's'}: {'; '.join(settings)}." if settings else ""
    return joined(named, f"Model {measured(report)}. Drawn from tables/{table}.parquet.")


def measured(report: Report) -> str:
    """Return the model, and the calibration that it was measured on."""
    return f"{visible(report.model.source)}, {calibrated(report)}"


def calibrated(report: Report) -> str:
    """Return the number of layers and the calibration."""
    model, calibration = report.model, report.calibration
    return (
        f"{counted(model.layers, 'layer')}; calibration {visible(calibration.source)}, "
        f"{counted(calibration.sequences, 'sequence')} of {calibration.sequence_length:,} tokens, "
        f"seed {calibration.seed}"
    )


def scheme_settings(report: Report, name: str) -> str:
    """Return a scheme's title and settings: `int8 (LLM.int8()), threshold 6.0`."""
    facts = report.schemes[name]
    settings = [visible(f"{key} {value}") for key, value in facts.settings.items()]
    remark = ["analysis only"] if facts.analysis_only else []
    return ", ".join([style.scheme_title(name, facts), *settings, *remark])
