"""Finishes an SVG that matplotlib wrote: adds exact values on hover, and rounds coordinates to what can be seen.

A browser shows the `<title>` inside a shape while the pointer rests on it, without any script. Coordinates are in
points; a hundredth of one is a fiftieth of a pixel of the PNG.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from xml.etree import ElementTree

from workers.reporting.text import visible

Hover = Mapping[str, Sequence[str]]
"""What hovering shows: from the gid of an artist to one text for each shape that it draws, in order."""

_SVG = "http://www.w3.org/2000/svg"
_NAMESPACES = {"": _SVG, "xlink": "http://www.w3.org/1999/xlink"}
_SHAPES = frozenset(f"{{{_SVG}}}{shape}" for shape in ("path", "use", "rect", "circle"))
_DEFINITIONS = f"{{{_SVG}}}defs"
_COORDINATES = ("d", "x", "y")
_LONG_NUMBER = re.compile(r"-?\d+\.\d{3,}")
_AROUND_COMMANDS = re.compile(r"\s*([MLCQz])\s*")


def finish(svg: str, hover: Hover, caption: str) -> str:
    """Return the SVG with its caption as description, a title in every shape that `hover` names, and coordinates to a
    hundredth of a point.

    Raises:
        ValueError: `hover` names a group that is not there, or has another number of texts than it has shapes.
    """
    for prefix, uri in _NAMESPACES.items():
        ElementTree.register_namespace(prefix, uri)
    root = ElementTree.fromstring(svg)
    description = ElementTree.Element(f"{{{_SVG}}}desc")
    description.text = visible(caption)
    root.insert(0, description)
    groups = {element.get("id", ""): element for element in root.iter()}
    for gid, texts in hover.items():
        shapes = list(_shapes(groups[gid])) if gid in groups else []
        if len(shapes) != len(texts):
            raise ValueError(f"hover: {gid!r} has {len(texts)} texts for {len(shapes)} shapes; one for each is needed")
        for shape, text in zip(shapes, texts, strict=True):
            ElementTree.SubElement(shape, f"{{{_SVG}}}title").text = visible(text)
    for element in root.iter():
        for name in _COORDINATES:
            if name in element.attrib:
                element.attrib[name] = _short(element.attrib[name])
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def _shapes(element: ElementTree.Element) -> Iterator[ElementTree.Element]:
    """Yield what an element draws, in the order in which it is drawn."""
    for child in element:
        if child.tag in _SHAPES:
            yield child
        elif child.tag != _DEFINITIONS:
            yield from _shapes(child)


def _short(coordinates: str) -> str:
    rounded = _LONG_NUMBER.sub(
        lambda number: f"{round(float(number[0]), 2) + 0:.2f}".rstrip("0").rstrip("."), coordinates
    )
    return _AROUND_COMMANDS.sub(r"\1", rounded).strip()
