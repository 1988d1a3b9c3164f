"""The house style of every figure: sizes, type, and colors that survive color blindness.

Five neutral colors carry everything that is not data. They are used for nothing else, so that the page can
exchange them for its own in dark mode.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from math import log10
from types import MappingProxyType
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from service.contracts.report import SchemeFacts
from service.contracts.schemes import LONGEST_TITLE, SCHEMES

DPI = 144
"""Pixels per inch of the PNG; also the resolution for which a line is thinned."""
WIDE = (8.6, 4.4)
"""Inches: a figure as wide as the page."""
NARROW = 6.0
"""Inches: width of a figure of which two stand side by side."""

INK = "#1c2127"
MUTED = "#58626e"
GRID = "#dfe3e8"
SHADE = "#eceff2"
PAPER = "#fefefe"
NEUTRALS = MappingProxyType({"ink": INK, "muted": MUTED, "grid": GRID, "shade": SHADE, "paper": PAPER})
"""The neutral colors by the name of their variable on the page."""

CYAN = "#009fbd"
BLUE = "#3f7fbd"
PALE_BLUE = "#e4eef7"
ORANGE = "#d9591c"
TRUE = "#2a78c8"
FALSE = "#d9382e"
"""Records labelled true and false."""
SEVERITY = ("#32a66c", "#fae57a", "#e5761c", "#9c1219")
"""Green, yellow, orange, red: from hardly any damage to the worst."""
AGREEMENT = ("#156b56", "#bde645", "#f0604a", "#6c0f1a")
"""Dark green, lime, red, dark red: two that agree, two that do not."""
UNKNOWN = "#8f9cae"
"""A share without a figure."""
DIVERGING = LinearSegmentedColormap.from_list(
    "blue-white-orange", ["#1d4f91", "#5b92cc", "#b3cfe8", "#f7f7f7", "#fdc794", "#ee8a2f", "#b35306"], N=101
)
"""Low values blue, the middle white, high values orange; distinguishable with all common color blindness."""
SEQUENTIAL = LinearSegmentedColormap.from_list(
    "white-blue", ["#f4f7fa", "#cfe0ef", "#92bbdd", "#4f8fc4", "#1f619f", "#0b3d75"], N=101
)
"""Larger values darker."""


class Mark(NamedTuple):
    """The look of one scheme's line; marker and dashes distinguish it without color."""

    color: str
    marker: str
    line: str


_MARKS = (
    Mark("#1a78b8", "o", "-"),
    Mark("#d55e00", "s", "--"),
    Mark("#0b9b72", "^", "-."),
    Mark("#c2649a", "D", ":"),
    Mark("#b58900", "v", "-"),
    Mark("#6f62c4", "P", "--"),
    Mark("#8c5a2b", "X", "-."),
    Mark("#2f3e9e", "<", ":"),
    Mark("#a3123f", ">", "-"),
    Mark("#4d7c0f", "h", "--"),
    Mark("#0f766e", "*", "-."),
)

_RC: dict[str, Any] = {
    "axes.edgecolor": MUTED,
    "axes.facecolor": PAPER,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.labelcolor": INK,
    "axes.labelsize": 9.5,
    "axes.linewidth": 0.7,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlelocation": "center",
    "axes.titlepad": 10,
    "axes.titlesize": 11.5,
    "axes.unicode_minus": False,  # a minus that can be typed can be searched for
    "figure.constrained_layout.use": True,
    "figure.dpi": DPI,
    "figure.facecolor": PAPER,
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "hatch.color": MUTED,
    "hatch.linewidth": 0.5,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "lines.markersize": 3.6,
    "path.simplify": False,  # thinning is ours, and keeps every extreme
    "svg.fonttype": "none",
    "text.color": INK,
    "text.parse_math": False,  # a dollar sign in a module's name is a dollar sign
    "xtick.color": MUTED,
    "xtick.labelcolor": INK,
    "xtick.labelsize": 8.5,
    "ytick.color": MUTED,
    "ytick.labelcolor": INK,
    "ytick.labelsize": 8.5,
}


@contextmanager
def applied(salt: str = "headroom") -> Iterator[None]:
    """Draw and save in the house style, whatever the user's matplotlibrc says; `salt` keeps SVG ids stable."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_RC | {"svg.hashsalt": salt})
        yield


@contextmanager
def laid_out(figure: Figure) -> Iterator[None]:
    """Place everything in `figure` once: what is saved inside has one layout, and saving need not compute it again."""
    figure.draw_without_rendering()
    with mpl.rc_context({"figure.constrained_layout.use": False}):
        # "none" would keep an engine in place, for which saving draws twice.
        figure.set_layout_engine(None)
        yield


def mark(position: int) -> Mark:
    """Return the look of the scheme at `position` in the report; those past the eleventh have a color of an earlier
    one with another marker and dashes.
    """
    again, place = divmod(position, len(_MARKS))
    other = _MARKS[(place + again) % len(_MARKS)]
    return Mark(_MARKS[place].color, other.marker, other.line)


def scheme_title(name: str, facts: SchemeFacts) -> str:
    """Return what a figure calls the variant `name` of a scheme, in 40 characters: the scheme's title under its own
    name, as much of it as there is room for; the name alone where the contracts do not know the scheme.
    """
    scheme = SCHEMES.get(facts.scheme)
    if scheme is None or name == scheme.name:
        return scheme.title if scheme else name
    meaning = scheme.title.removeprefix(f"{scheme.name} ")
    forms = (f"{name} {meaning}", f"{name} (simulated)" if facts.simulated else name)
    return next((form for form in forms if len(form) <= LONGEST_TITLE), scheme_label(name, facts))


def text_on(color: str) -> str:
    """Return black or white, whichever reads better on `color`; neither is a neutral, for the page keeps both."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(color)]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "#ffffff" if luminance < 0.18 else "#101010"


def scheme_label(name: str, facts: SchemeFacts) -> str:
    """Return the name of a scheme where a figure has little room; a simulated one is marked `(sim.)`."""
    return f"{name} (sim.)" if facts.simulated else name


_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def power_of_ten(value: float) -> str:
    """Return a whole power of ten as `10⁻⁵`, in letters that an SVG keeps as text."""
    return f"10{str(round(log10(value))).translate(_RAISED)}"


def layer_axis(axis: Axes, layers: int, ticks: int = 16) -> None:
    """Make `axis` an axis of layers: whole numbers, `ticks` of them at most, with room at both ends."""
    axis.set_xlim(-0.5, layers - 0.5)
    axis.xaxis.set_major_locator(MaxNLocator(nbins=ticks, integer=True, min_n_ticks=1))
    axis.set_xlabel("Layer")


def log_axis(axis: Axes, low: float, high: float) -> None:
    """Make the y axis of `axis` logarithmic from `low` to `high`, ticks 1-2-5 in plain digits."""
    axis.set_yscale("log")
    axis.set_ylim(low, high)
    steps = (1, 2, 5) if high / low < 300 else (1,)
    axis.yaxis.set_major_locator(LogLocator(base=10, subs=steps, numticks=12))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())
