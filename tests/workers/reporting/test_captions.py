"""Captions: complete where a figure is read by itself, and short on a page, which says what figures share once."""

import json
import re
from xml.etree import ElementTree

import pytest
from PIL import Image

from workers.reporting.comparison.program import compare_reports
from workers.reporting.render import render

MODEL = "example/llama-small"
MOST_WORDS = 900
"""In all captions of a page."""


@pytest.fixture(scope="module")
def figures(drawn_report):
    return json.loads((drawn_report / "report.json").read_text())["figures"]


def captions(page):
    """The text of every figcaption of a page."""
    marked = re.findall(r"<figcaption>(.*?)</figcaption>", page.read_text(encoding="utf-8"), re.DOTALL)
    return ["".join(ElementTree.fromstring(f"<p>{text}</p>").itertext()) for text in marked]


def sentences(caption):
    """The sentences of a caption before those about schemes, model and calibration."""
    own = re.split(r" (?:Schemes?: |Model example/)", caption)[0]
    return re.split(r"(?<=\.) ", own)


def test_every_caption_in_the_report_names_model_calibration_and_settings(figures):
    for figure in figures:
        for part in (f"Model {MODEL}, 8 layers", "calibration calibration.txt, 16 sequences of 256 tokens, seed 0.",
                     "Drawn from tables/"):  # fmt: skip
            assert figure["caption"].count(part) == 1, figure["name"]
        if "nf4" in figure["name"]:
            assert "Scheme: nf4 (4-bit NormalFloat), quant_type nf4" in figure["caption"]
        if "int8" in figure["name"]:
            assert "Scheme: int8 (LLM.int8()), threshold 6.0." in figure["caption"]


def test_the_page_names_model_and_calibration_of_its_figures_once(drawn_report):
    page = drawn_report / "report.html"
    shown = " ".join(captions(page))
    assert shown.count(MODEL) == shown.count("calibration.txt") == 0
    line = f"All figures: {MODEL}, 8 layers; calibration calibration.txt, 16 sequences of 256 tokens, seed 0."
    assert page.read_text(encoding="utf-8").count(line) == 1


def test_the_page_has_everything_else_that_a_caption_says(drawn_report, figures):
    shown = captions(drawn_report / "report.html")
    for figure in figures:
        for sentence in sentences(figure["caption"]):
            assert any(sentence in text for text in shown), (figure["name"], sentence)


def test_what_figures_share_is_on_the_page_once(drawn_report, figures):
    shown = " ".join(captions(drawn_report / "report.html"))
    for definition in ("weight_error = ", "sqnr_db = 10 log10(sum z^2", "Outlier: relative_peak = "):
        assert sum(definition in figure["caption"] for figure in figures) == 2
        assert shown.count(definition) == 1


def test_the_captions_of_a_page_are_short(make_report):
    directory = make_report(layers=30)
    render(directory)
    shown = captions(directory / "report.html")
    assert len(shown) > len(json.loads((directory / "report.json").read_text())["figures"]) > 15
    assert 300 < sum(len(text.split()) for text in shown) <= MOST_WORDS


def test_a_figure_carries_its_caption_in_its_files(drawn_report, figures):
    for figure in figures:
        svg, png = (drawn_report / file for file in figure["files"])
        assert ElementTree.parse(svg).getroot().findtext("{http://www.w3.org/2000/svg}desc") == figure["caption"]
        assert Image.open(png).text["Description"] == figure["caption"]
    assert "<desc" not in (drawn_report / "report.html").read_text(encoding="utf-8")


def test_a_percent_sign_follows_its_number(drawn_report):
    for file in ("report.html", "report.json", "summary.md"):
        text = (drawn_report / file).read_text(encoding="utf-8")
        assert re.search(r"\d%", re.sub(r"<svg.*?</svg>|<style>.*?</style>", "", text, flags=re.DOTALL))
        assert re.findall(r"\d %", text) == []


def test_a_comparison_names_what_was_measured_once(make_report, tmp_path):
    compared = compare_reports(tmp_path / "out", [make_report("a"), make_report("b", seed=1)])
    page = tmp_path / "out" / "comparison.html"
    shown = " ".join(captions(page))
    assert "calibration.txt" not in shown
    line = "8 layers; calibration calibration.txt, 16 sequences of 256 tokens, seed 0"
    assert page.read_text(encoding="utf-8").count(f"All figures: {MODEL} (a): {line}; {MODEL} (b): {line}.") == 1
    for figure in compared.figures:
        assert figure.caption.count(f"model {MODEL}, {line}.") == 2
