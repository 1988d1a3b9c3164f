"""`summary.md` holds what a pull request needs, and no text that came with a model can change its form."""

import json
import re
import string
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from workers.reporting.markdown import bullets, code, escaped, line, table
from workers.reporting.render import render
from workers.reporting.text import visible, visible_lines

HOSTILE = (
    "| x | <img src=http://evil.example onerror=1> [a](javascript:b) `c` **d** _e_ ~~f~~ $g$ @octocat fixes #1 "
    "https://evil.example www.evil.example &lt; \\| \u202e <!-- \n\n# h"
)


class Words(HTMLParser):
    """The elements of some HTML, and its text."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.tags, self.text, self.comments = [], "", []
        self.feed(text)

    def handle_starttag(self, tag, _):
        self.tags.append(tag)

    def handle_data(self, data):
        self.text += data

    def handle_comment(self, data):
        self.comments.append(data)


def shown(markdown):
    """Return what a reader sees of some Markdown, rendered with tables, strikethrough and raw HTML."""
    parser = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    return Words(parser.render(markdown))


@pytest.fixture(scope="module")
def summary(drawn_report):
    return (drawn_report / "summary.md").read_text(encoding="utf-8")


def cells(markdown, row):
    return next(
        [cell.strip() for cell in rendered.strip("|").split("|")]
        for rendered in markdown.splitlines()
        if rendered.startswith(f"| {row} |")
    )


def test_every_scheme_has_a_row_with_its_word_and_figures(summary):
    assert cells(summary, "int8")[1:4] == ["negligible", "0.000400 (0.000360 to 0.000440)", "1.0002 (0.9942 to 1.0062)"]
    assert cells(summary, "nf4")[1:] == ["noticeable", "0.0324 (0.0292 to 0.0356)", "1.0162 (1.0102 to 1.0222)",
                                         "91.90% (91.50% to 92.30%)", "1.90 MB", "3.60 times"]  # fmt: skip
    assert "a perplexity ratio of 1.01; severe begins at 0.1 nats or 1.05." in summary


def test_what_a_reader_must_know_is_there(summary, drawn_report):
    report = json.loads((drawn_report / "report.json").read_text())
    parts = [report["model"]["fingerprint"], report["calibration"]["fingerprint"], report["job_id"], "calibration.txt",
             "headroom analyze example/llama-small", report["environment"]["torch"]]  # fmt: skip
    parts += [f"| {rendered['dimension']} |" for rendered in report["outliers"]["llm_int8"]["dimensions"]]
    parts += [f"layer {one['worst_sites'][0]['layer']} {one['worst_sites'][0]['component']}"
              for one in report["schemes"].values()]  # fmt: skip
    assert [part for part in parts if part not in summary] == []


def test_its_sentences_are_the_pages(summary, drawn_report):
    page = (drawn_report / "report.html").read_text(encoding="utf-8")
    leads = re.findall(r'<p class="found">(.*?)</p>', page)
    text = shown(summary).text
    assert len(leads) > 6
    assert [lead for lead in leads[:6] if Words(lead).text not in text] == []


@pytest.mark.usefixtures("one_figure")
def test_warnings_are_told(make_report):
    directory = make_report(warnings=(("nonfinite", "Three values are NaN", "layer 2"),))
    render(directory)
    assert "- Three values are NaN (layer 2) " in (directory / "summary.md").read_text()


@pytest.mark.usefixtures("one_figure")
def test_a_report_without_schemes_is_told(make_report):
    directory = make_report(schemes=(), outliers=0)
    render(directory)
    text = (directory / "summary.md").read_text()
    assert "This report describes the unquantized model only." in text
    assert "headroom analyze" not in text


@pytest.mark.usefixtures("one_figure")
def test_hostile_text_comes_out_as_text(make_report):
    directory = make_report(source=HOSTILE, warnings=((HOSTILE, HOSTILE, HOSTILE),), extra=(HOSTILE,))
    path = directory / "report.json"
    content = json.loads(path.read_text())
    content["calibration"]["source"] = content["environment"]["torch"] = content["model"]["revision"] = HOSTILE
    content["schemes"]["nf4"]["worst_sites"][0]["component"] = HOSTILE
    path.write_text(json.dumps(content))
    render(directory)
    summary = (directory / "summary.md").read_text()
    rendered = shown(summary)
    assert set(rendered.tags) == {
        "h1",
        "h2",
        "ul",
        "li",
        "p",
        "table",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "pre",
        "code",
    }
    assert rendered.tags.count("h1") == 1
    assert set(rendered.comments) == {" "}
    assert visible(HOSTILE) in rendered.text
    prose = re.sub(r"```.*?```", "", summary, flags=re.DOTALL)
    assert not re.search(r"@\w|(?<!&)#\d|://|www\.", prose)


PUNCTUATION = st.text(st.sampled_from(string.punctuation + "aZ0 \n\t\u202eé"), max_size=40)


@given(PUNCTUATION)
def test_any_text_is_shown_as_it_is(text):
    text = visible(text).strip()
    if not text:
        return
    assert shown(line(text)).text.strip() == text
    assert shown(line(text)).tags == ["p"]
    listed = shown(bullets([text]))
    assert (listed.text.strip(), listed.tags) == (text, ["ul", "li"])
    rows = shown(table(("a", "b"), [(text, text), ("1", "2")]))
    assert rows.tags.count("td") == 4
    assert rows.text.count(text) >= 2
    assert "<" not in escaped(text).replace("<!-- -->", "")


@given(PUNCTUATION)
def test_a_block_of_code_holds_any_text(text):
    rendered = shown(code(text))
    assert rendered.tags == ["pre", "code"]
    assert rendered.text.rstrip("\n") == visible_lines(text).rstrip("\n")
