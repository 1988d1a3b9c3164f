"""The page in a real browser: nothing asked of anybody, nothing in the way of reading it, on a screen of any kind."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from devtools import Browser
from matplotlib.image import imread

from workers.reporting.comparison.program import compare_reports
from workers.reporting.render import render

pytestmark = pytest.mark.browser

AXE = Path(sys.prefix) / "browser" / "node_modules" / "axe-core" / "axe.min.js"
DESKTOP = {"width": 1280, "height": 900}
LAPTOP = {"width": 1024, "height": 768}
PHONE = {"width": 375, "height": 812}
SCREENS = [
    pytest.param(DESKTOP, False, id="desktop-light"),
    pytest.param(DESKTOP, True, id="desktop-dark"),
    pytest.param(PHONE, False, id="phone-light"),
    pytest.param(PHONE, True, id="phone-dark"),
]
BOX = """(() => {{ const box = document.getElementById("{}").getBoundingClientRect();
    return JSON.stringify([box.top, box.bottom, box.height]) }})()"""
TOO_WIDE = """JSON.stringify([...document.querySelectorAll(".scroll")].filter(
    each => each.clientWidth && each.scrollWidth > each.clientWidth).map(each => each.ariaLabel))"""
SIZES = """JSON.stringify([...document.querySelectorAll(".plot svg text")].map(text => {
    const svg = text.closest("svg");
    return parseFloat(getComputedStyle(text).fontSize) * svg.clientWidth / svg.viewBox.baseVal.width }))"""
BOXES = """JSON.stringify([...document.querySelectorAll(".plot")].map(plot => plot.getBoundingClientRect())
    .filter(box => box.width).map(box => [box.left, box.top, box.right, box.bottom]))"""
PAPER = "getComputedStyle(document.body).backgroundColor"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("browser")) as opened:
        yield opened


@pytest.fixture(scope="module")
def page(drawn_report):
    return drawn_report / "report.html"


def axe(browser, screen):
    """Run axe-core on what is open, and return what it calls serious or critical, by rule and element."""
    if not AXE.is_file():
        pytest.fail(f"{AXE}: the file is missing; run bash deploy/browser.sh")
    browser.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    browser.evaluate(AXE.read_text(encoding="utf-8"))
    found = json.loads(browser.evaluate("axe.run(document).then(found => JSON.stringify(found))"))
    assert len(found["passes"]) > 15, f"axe-core looked at little on {screen}"
    return [
        (rule["id"], node["html"][:200], node["failureSummary"])
        for rule in found["violations"]
        if rule["impact"] in ("serious", "critical")
        for node in rule["nodes"]
    ]


@pytest.mark.parametrize(("screen", "dark"), SCREENS)
def test_nobody_is_kept_from_reading(browser, page, screen, dark):
    browser.show(page, **screen, dark=dark)
    assert axe(browser, screen) == []


def test_nobody_is_kept_from_reading_a_comparison(browser, drawn_report, make_report, tmp_path):
    compare_reports(tmp_path / "comparison", [drawn_report, make_report(seed=5)])
    for screen in (DESKTOP, PHONE):
        browser.show(tmp_path / "comparison" / "comparison.html", **screen, dark=screen is PHONE)
        assert axe(browser, screen) == []
        assert browser.evaluate("document.documentElement.scrollWidth") <= screen["width"]
        outcome = "document.querySelector('.lead li').getBoundingClientRect()"
        lines = browser.evaluate(f"{outcome}.height / parseFloat(getComputedStyle(document.body).lineHeight)")
        assert lines < (3 if screen is DESKTOP else 7), "the outcome has the width of the page"
    browser.show(tmp_path / "comparison" / "comparison.html", **LAPTOP)
    assert json.loads(browser.evaluate(TOO_WIDE)) == []


def test_axe_core_sees_what_is_wrong(browser, tmp_path):
    bad = tmp_path / "bad.html"
    bad.write_text("<!doctype html><html><title>x</title><p style='color:#bbb;background:#fff'>pale<svg role='img'/>")
    browser.show(bad, **DESKTOP)
    browser.evaluate(AXE.read_text(encoding="utf-8"))
    found = json.loads(browser.evaluate("axe.run(document).then(found => JSON.stringify(found.violations))"))
    assert {"color-contrast", "html-has-lang", "svg-img-alt"} <= {rule["id"] for rule in found}


def test_nothing_is_asked_for_but_the_page(browser, page):
    browser.show(page, **DESKTOP)
    asked = [
        event["params"]["request"]["url"] for event in browser.events if event["method"] == "Network.requestWillBeSent"
    ]
    assert asked == [page.as_uri()]
    told = [
        event["params"] for event in browser.events if event["method"] in ("Log.entryAdded", "Runtime.consoleAPICalled")
    ]
    assert told == []


def test_the_policy_of_the_page_stops_a_script(browser, page, tmp_path):
    changed = tmp_path / "report.html"
    text = page.read_text(encoding="utf-8")
    changed.write_text(text.replace("</main>", "<script>document.title = 'run'</script></main>"), encoding="utf-8")
    browser.show(changed, **DESKTOP)
    assert browser.evaluate("document.title") == "example/llama-small: Headroom report"


FIRST_SCREEN = ("verdict", "reasons", "warnings", "next-steps")


def test_the_first_screen_has_verdict_reasons_warnings_and_next_steps(browser, make_report):
    warning = (
        "The figures rest on few sequences, so that their intervals are wide and another level is possible.",
        None,
        "Rerun with --sequences 64 and give a text of your own with --calibration FILE.",
    )
    codes = ("few-sequences", "sample-text", "fp16-columns", "short-calibration", "left-unquantized")
    directory = make_report(layers=2, warnings=tuple((code, *warning) for code in codes))
    render(directory)
    browser.show(directory / "report.html", **DESKTOP)
    for name in FIRST_SCREEN:
        top, bottom, height = json.loads(browser.evaluate(BOX.format(name)))
        assert 0 <= top < bottom <= DESKTOP["height"], name
        assert height > 10, name


def test_a_phone_shows_verdict_and_next_steps_first(browser, page):
    browser.show(page, **PHONE)
    for name in ("verdict", "next-steps"):
        assert json.loads(browser.evaluate(BOX.format(name)))[1] <= PHONE["height"]


@pytest.mark.parametrize("screen", [DESKTOP, PHONE, {"width": 320, "height": 568}], ids=["desktop", "phone", "small"])
def test_the_page_never_scrolls_sideways(browser, page, screen):
    browser.show(page, **screen)
    assert browser.evaluate("document.documentElement.scrollWidth") <= screen["width"]


@pytest.mark.parametrize("screen", [DESKTOP, LAPTOP, PHONE], ids=["desktop", "laptop", "phone"])
def test_the_words_of_a_figure_can_be_read(browser, page, screen):
    browser.show(page, **screen)
    browser.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    sizes = json.loads(browser.evaluate(SIZES))
    assert len(sizes) > 200
    assert min(sizes) > 7


def test_dark_is_dark_and_paper_is_white(browser, page):
    shades = {}
    for name, options in {"light": {}, "dark": {"dark": True}, "paper": {"dark": True, "media": "print"}}.items():
        browser.show(page, **DESKTOP, **options)
        shades[name] = [int(part) for part in browser.evaluate(PAPER).removeprefix("rgb(").rstrip(")").split(",")]
    assert max(shades["dark"]) < 60 < 240 < min(shades["light"])
    assert shades["paper"] == shades["light"]


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_on_a_screenshot_no_figure_is_empty_or_out_of_tone(browser, page, tmp_path, dark):
    browser.show(page, **DESKTOP, dark=dark)
    boxes = json.loads(browser.evaluate(BOXES))
    browser.screenshot(tmp_path / "page.png", whole=True)
    picture = (imread(tmp_path / "page.png")[..., :3] * 255).round().astype(int)
    assert len(boxes) > 8
    assert picture.shape[0] > max(bottom for *_, bottom in boxes)
    paper = picture[5, 5]
    assert paper.max() < 60 if dark else paper.min() > 240
    for left, top, right, bottom in boxes:
        figure = picture[round(top) : round(bottom), round(left) : round(right)]
        painted = (np.abs(figure - paper).max(axis=-1) > 40).mean()
        assert painted > 0.01, "something is drawn"
        corners = figure[[2, 2, -3, -3], [2, -3, 2, -3]]
        assert np.abs(corners - paper).max() < 12, "its ground is the page's"


def test_it_can_be_printed(browser, page, tmp_path):
    browser.show(page, **DESKTOP)
    browser.print_to(tmp_path / "report.pdf")
    printed = (tmp_path / "report.pdf").read_bytes()
    assert printed.startswith(b"%PDF")
    assert printed.count(b"/Type /Page\n") + printed.count(b"/Type /Page ") > 1


def test_a_report_about_the_reference_alone_can_be_read(browser, make_report):
    directory = make_report(schemes=(), outliers=0, labelled=0, warnings=(("code", "Something is amiss", "layer 1"),))
    render(directory)
    browser.show(directory / "report.html", **PHONE)
    assert axe(browser, PHONE) == []
