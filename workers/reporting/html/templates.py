"""The template engine, the style sheet and the embedding of figures that all pages share.

Text from the job (model names, tokens, warnings, module names) is not trusted: the templates escape all of it, and
unprintable characters are shown as escapes. A content security policy in the page forbids scripts and requests too.
"""

import itertools
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from workers.reporting.drawing.figure import Saved, joined
from workers.reporting.html.inline_svg import inline
from workers.reporting.text import counted, visible, visible_lines

_HERE = Path(__file__).parent
_OPTION = re.compile(r"(?<![\w-])(--[a-z][a-z0-9-]*)")


class Placed(NamedTuple):
    """A figure as a template takes it."""

    saved: Saved
    svg: Markup


class Family(NamedTuple):
    """Figures of one kind that stand side by side."""

    shared: str
    """What their captions have in common, printed once; empty for a figure by itself."""
    figures: tuple[tuple[Placed, str, str], ...]
    """Each with the first sentence of the caption beneath it, and the rest."""


def families(figures: Iterable[Placed]) -> list[Family]:
    """Join neighboring figures that show the same thing, and split their captions into the shared and the own part.

    A figure by itself needs no title above its caption, for the plot has one.
    """
    joint = []
    for _, members in itertools.groupby(figures, key=lambda placed: placed.saved.caption.shown):
        family = tuple(members)
        captions = [placed.saved.caption for placed in family]
        first, *others = captions
        if not others:
            joint.append(Family("", ((family[0], first.shown, first.without_shown),)))
            continue
        definitions = itertools.zip_longest(*(each.definition for each in captions), fillvalue="")
        sentences = [first.shown, *itertools.chain(*definitions), *(each.reading for each in captions)]
        own = [(placed, f"{placed.saved.title}.", joined(*placed.saved.caption.notes)) for placed in family]
        joint.append(Family(joined(*dict.fromkeys(sentences)), tuple(own)))
    return joint


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
    engine.filters.update(counted=counted, families=families, options=_options, code=_code)
    return engine


def style_sheet() -> Markup:
    """Return the style that every page carries inside."""
    return Markup((_HERE / "report.css").read_text(encoding="utf-8"))


def placed_figure(saved: Saved, directory: Path) -> Placed:
    """Return a figure for a page; its files lie below `directory`."""
    return Placed(saved, inline(directory / saved.files[0], saved.name, visible(saved.alt)))


def _options(text: str) -> Markup:
    """Return `text` with its command line options marked, so that none is broken across lines."""
    return Markup(_OPTION.sub(r'<span class="option">\1</span>', str(escape(visible(text)))))


def _code(text: str) -> Markup:
    """Return `text` for a block of code, with its lines."""
    return escape(visible_lines(text))


def _finalize(value: object) -> object:
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value
