"""Embeds a figure's SVG in the page: with theme colors, a name for screen readers, and unique ids.

The neutral colors of the house style become variables of the page, which differ between light and dark. Colors
that carry data stay as they are.
"""

import re
from pathlib import Path
from xml.etree import ElementTree

from markupsafe import Markup

from workers.reporting.drawing.style import NEUTRALS

_SVG = "http://www.w3.org/2000/svg"
_XLINK = "http://www.w3.org/1999/xlink"
_REFERENCE = re.compile(r"url\(#([^)]+)\)")
_FILE_ONLY = frozenset(f"{{{_SVG}}}{tag}" for tag in ("style", "metadata", "desc"))
"""Elements that a file needs; the page has its own style, and the caption beneath the figure."""
_ROOT_ONLY_FOR_FILES = ("width", "height", "version")


def inline(path: Path, name: str, alt: str) -> Markup:
    """Return the SVG file at `path` as an element of a page; `name` prefixes its ids, `alt` describes it."""
    root = ElementTree.parse(path).getroot()
    for parent in root.iter():
        for child in list(parent):
            if child.tag in _FILE_ONLY:
                parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.removeprefix(f"{{{_SVG}}}")
        element.attrib = {
            key.replace(f"{{{_XLINK}}}", ""): _value(key, value, name) for key, value in element.attrib.items()
        }
    for key in _ROOT_ONLY_FOR_FILES:
        root.attrib.pop(key, None)
    root.attrib |= {"role": "img", "aria-label": alt, "stroke-linejoin": "round", "stroke-linecap": "butt"}
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _value(key: str, value: str, name: str) -> str:
    if key == "id":
        return f"{name}-{value}"
    if key.endswith("href"):
        return value.replace("#", f"#{name}-", 1)
    for neutral, color in NEUTRALS.items():
        value = value.replace(color, f"var(--{neutral})")
    return _REFERENCE.sub(rf"url(#{name}-\1)", value)
