"""The badge of an audit: its last verdict as a small SVG image, to be shown on other pages."""

from typing import Literal
from xml.sax.saxutils import escape

from service.contracts.audits.audit import RunVerdict

Shown = RunVerdict | Literal["no run"]

_COLORS: dict[str, str] = {
    "pass": "#2e7d32",
    "warn": "#8a5a00",
    "fail": "#b3261e",
    "unconfirmed": "#8a5a00",
    "error": "#5f6368",
}
"""Background of each verdict; white text has a contrast of 4.5 or more on all of them."""
_OTHER = "#5f6368"
_LABEL_COLOR = "#3c4043"
_CHARACTER, _PADDING, _HEIGHT = 7, 6, 20
"""Width of a character, space on both sides of a text, and height, in pixels."""


def badge(audit: str, verdict: Shown) -> str:
    """Return the image: the audit's name, and the verdict in its color."""
    left, right = (_CHARACTER * len(one) + 2 * _PADDING for one in (audit, verdict))
    color = _COLORS.get(verdict, _OTHER)
    name = escape(audit)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + right}" height="{_HEIGHT}" role="img" '
        f'aria-label="{name}: {verdict}"><title>{name}: {verdict}</title>'
        f'<rect width="{left}" height="{_HEIGHT}" fill="{_LABEL_COLOR}"/>'
        f'<rect x="{left}" width="{right}" height="{_HEIGHT}" fill="{color}"/>'
        '<g fill="#fff" font-family="Verdana,DejaVu Sans,sans-serif" font-size="11" text-anchor="middle">'
        f"{_text(name, len(audit), left / 2)}{_text(verdict, len(verdict), left + right / 2)}</g></svg>"
    )


def _text(words: str, characters: int, center: float) -> str:
    return f'<text x="{center:g}" y="14" textLength="{_CHARACTER * characters}">{words}</text>'
