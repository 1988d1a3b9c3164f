"""A finished SVG says exact values on hover and draws the same picture."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.figure import Figure

from workers.reporting.drawing.figure import Caption, Drawing, name_each
from workers.reporting.drawing.svg import finish

NAMESPACE = "{http://www.w3.org/2000/svg}"


def drawing(figure, hover):
    caption = Caption("Shown <&>.", ("Defined.",), "Read.", (), "Measured on x.")
    return Drawing("a_figure", "Title", caption, "Alt.", "errors", figure, hover)


def saved(tmp_path, figure, hover):
    drawing(figure, hover).save(tmp_path)
    return ElementTree.parse(tmp_path / "a_figure.svg").getroot()


def titled(root):
    """The title of every shape that has one, with the shape's own element."""
    return [
        (shape.findtext(f"{NAMESPACE}title"), shape)
        for shape in root.iter()
        if shape.find(f"{NAMESPACE}title") is not None
    ]


def test_every_bar_shows_its_own_text(tmp_path):
    figure = Figure()
    bars = figure.add_subplot().bar([0, 1, 2], [3, 1, 2], color=["#ff0000", "#00ff00", "#0000ff"])
    root = saved(tmp_path, figure, name_each(bars, ["three", "one", "two <&>"], "bar"))
    found = titled(root)
    assert [text for text, _ in found] == ["three", "one", "two <&>"]
    assert [re.search("fill: (#[0-9a-f]{6})", shape.get("style"))[1] for _, shape in found] == [
        "#ff0000", "#00ff00", "#0000ff"
    ]  # fmt: skip


def test_cells_are_named_in_the_order_of_the_array(tmp_path):
    figure = Figure()
    values = np.arange(6.0).reshape(2, 3)
    mesh = figure.add_subplot().pcolormesh(values, gid="cells")
    texts = [f"value {value:g}" for value in values.flat]
    found = titled(saved(tmp_path, figure, {"cells": texts}))
    assert [text for text, _ in found] == texts
    expected = ["#" + "".join(f"{round(255 * part):02x}" for part in mesh.to_rgba(value)[:3]) for value in values.flat]
    assert [re.search("fill: (#[0-9a-f]{6})", shape.get("style"))[1] for _, shape in found] == expected


def test_control_characters_are_shown_and_not_written(tmp_path):
    figure = Figure()
    bars = figure.add_subplot().bar([0], [1])
    assert titled(saved(tmp_path, figure, name_each(bars, ["a\x00b"], "bar")))[0][0] == r"a\x00b"


@pytest.mark.parametrize("texts", [("one",), ("one", "two", "three")])
def test_texts_for_another_number_of_shapes_are_refused(tmp_path, texts):
    figure = Figure()
    figure.add_subplot().pcolormesh(np.zeros((1, 2)), gid="cells")
    with pytest.raises(ValueError, match=f"'cells' has {len(texts)} texts for 2 shapes"):
        saved(tmp_path, figure, {"cells": texts})


def test_a_group_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ValueError, match="'nowhere' has 1 texts for 0 shapes"):
        saved(tmp_path, Figure(), {"nowhere": ("text",)})


def test_coordinates_keep_a_hundredth_of_a_point():
    svg = (
        f'<svg xmlns="{NAMESPACE[1:-1]}"><path d="M 1.23456 -0.0001 \nL 100000.126 2.5 \nz" '
        'style="stroke-width: 0.123456"/><text x="7.005001" transform="rotate(-90 1.23456 2)">1.23456</text></svg>'
    )
    description, path, text = ElementTree.fromstring(finish(svg, {}, "Caption."))
    assert description.text == "Caption."
    assert path.attrib == {"d": "M1.23 0L100000.13 2.5z", "style": "stroke-width: 0.123456"}
    assert text.attrib == {"x": "7.01", "transform": "rotate(-90 1.23456 2)"}
    assert text.text == "1.23456"
