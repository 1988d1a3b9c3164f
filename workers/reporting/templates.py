"""What every page has in common: the template engine, the style sheet, and figures that fit into a page.

Whatever came with the job (model names, tokens, warnings, module names) is foreign text: the templates escape all of
it, and unprintable characters are shown as escapes. A content security policy in the page forbids scripts and
requests, should anything slip through.
"""

from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from workers.reporting.figures.drawing import Saved
from workers.reporting.inline_svg import inline
from workers.reporting.text import counted, visible

_HERE = Path(__file__).parent


class Placed(NamedTuple):
    """A figure as a template takes it."""

    saved: Saved
    svg: Markup


def environment() -> Environment:
    """Return the engine that fills the templates beside this file."""
    engine = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    engine.filters.update(counted=counted)
    return engine


def style_sheet() -> Markup:
    """Return the style that every page carries inside."""
    return Markup((_HERE / "report.css").read_text(encoding="utf-8"))


def placed_figure(saved: Saved, directory: Path) -> Placed:
    """Return a figure for a page; its files lie below `directory`."""
    return Placed(saved, inline(directory / saved.files[0], saved.name, visible(saved.alt)))


def _finalize(value: object) -> object:
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value
