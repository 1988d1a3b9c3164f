"""The page stands alone, tells the outcome first, and lets no foreign text become markup."""

import html
import json
import re
import shlex
from html.parser import HTMLParser
from itertools import pairwise
from xml.etree import ElementTree

import pytest

from service.cli.inputs import thresholds
from service.contracts.request import Analysis
from service.evaluation.next_steps import next_steps
from workers.reporting.html import page as page_module
from workers.reporting.loading import load
from workers.reporting.render import render
from workers.reporting.text import short_name
from workers.reporting.topics.reproduction import command

VOID = {"meta", "link", "img", "br", "hr", "input"}
HOSTILE = '"><script>alert(1)</script><img src=http://evil.example/x onerror=alert(2)>{{ 7*7 }}\u202e$x^2$'


class Page(HTMLParser):
    """Elements with their attributes, ids, text, and the text of each element kind."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.elements, self.text, self.stack, self.inside = [], "", [], {}
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        self.text += data
        for tag in set(self.stack):
            self.inside[tag] = self.inside.get(tag, "") + data


def page_of(directory):
    return Page((directory / "report.html").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def page(drawn_report):
    return page_of(drawn_report)


def links(page):
    return [
        value for _, attributes in page.elements for key, value in attributes.items() if key in ("href", "xlink:href")
    ]


def test_the_markup_is_balanced(page):
    assert page.stack == []


def test_nothing_is_loaded_from_anywhere(page, drawn_report):
    text = (drawn_report / "report.html").read_text(encoding="utf-8")
    for tag, attributes in page.elements:
        assert tag not in ("script", "link", "iframe", "object", "embed", "img", "image", "base", "form")
        assert not [
            key for key in attributes if key in ("src", "srcset", "action", "data", "poster") or key[:2] == "on"
        ]
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", text))
    assert "@import" not in text
    assert "data:" not in text
    policy = next(a["content"] for tag, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'")


def test_every_link_leads_to_a_place_on_the_page_or_a_file_beside_it(page, drawn_report):
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for link in links(page):
        assert link[1:] in ids if link.startswith("#") else (drawn_report / link).is_file()
    text = (drawn_report / "report.html").read_text(encoding="utf-8")
    assert set(re.findall(r"url\(#([^)]+)\)", text)) <= set(ids)


def test_every_table_and_figure_file_is_linked(page, drawn_report):
    files = {str(path.relative_to(drawn_report)) for path in drawn_report.glob("*/*") if path.is_file()}
    assert files <= set(links(page))


def test_the_outcome_comes_first_with_its_figures(page, drawn_report):
    report = json.loads((drawn_report / "report.json").read_text())
    sections = [attributes["id"] for tag, attributes in page.elements if tag == "section"]
    assert sections == ["outcome", "schemes", "range", "outliers", "heads", "errors", "divergence", "labelled",
                        "provenance", "tables"]  # fmt: skip
    assert "Negligible effect: int8" in page.text
    assert "Noticeable effect: nf4" in page.text
    for part in (
        "12.50 (95% interval 11.90 to 13.10)",
        "12.70 (12.08 to 13.32)",
        "1.0162 (1.0102 to 1.0222)",
        "0.0324 (0.0292 to 0.0356)",
        "91.90% (91.50% to 92.30%)",
        "3.60 times",
        "Brackets: 95% intervals over 16 independent sequences.",
    ):
        assert part in page.text
    assert "0.01 nats per token or a perplexity ratio of 1.01; severe begins at 0.1 nats or 1.05." in page.text
    for part in (report["model"]["fingerprint"], report["calibration"]["fingerprint"], report["environment"]["torch"]):
        assert part in page.text
    assert "headroom analyze example/llama-small --out report --scheme int8 --scheme nf4" in page.text


@pytest.mark.parametrize(
    ("calibration", "labelled", "named"),
    [("sample", None, False), ("sample", "sample", False), ("own.txt", None, True), ("sample", "own.jsonl", True)],
)
def test_the_page_says_where_to_run_a_command_that_names_files(make_report, calibration, labelled, named):
    directory = make_report()
    path = directory / "report.json"
    content = json.loads(path.read_text())
    content["calibration"]["source"] = calibration
    content["labelled"] = content["labelled"] | {"source": labelled} if labelled else None
    path.write_text(json.dumps(content))
    render(directory)
    text = (directory / "report.html").read_text()
    assert ("The command names your files without their paths. Run it in their directory." in text) is named


def test_the_command_quotes_what_a_shell_would_read(make_report):
    directory = make_report(source="/models/my model; rm", schemes=("nf4",))
    report = load(directory).report
    words = shlex.split(command(report))
    assert words[:3] == ["headroom", "analyze", "/models/my model; rm"]
    assert words[words.index("--calibration") + 1] == "calibration.txt"
    bundled = report.model_copy(update={"calibration": report.calibration.model_copy(update={"source": "sample"})})
    assert "--calibration" not in command(bundled)
    assert "--int8-threshold" not in words


def test_the_command_states_the_threshold_of_int8(make_report):
    report = load(make_report(schemes=("int8",))).report
    analysis = report.analysis.model_copy(update={"int8_threshold": 0.125})
    assert "--scheme int8 --int8-threshold 0.125 " in command(report.model_copy(update={"analysis": analysis}))
    assert "--bos" not in command(report)
    analysis = report.analysis.model_copy(update={"bos": "never", "score": "second_half", "label_depth": 0})
    text = command(report.model_copy(update={"analysis": analysis}))
    assert text.endswith("--score second_half --bos never --label-depth 0")


def test_the_command_states_a_batch_that_was_asked_for(make_report):
    report = load(make_report()).report
    assert "--batch-sequences" not in command(report)
    analysis = report.analysis.model_copy(update={"batch_sequences": 4})
    assert command(report.model_copy(update={"analysis": analysis})).endswith("--batch-sequences 4")


def test_the_command_sets_the_thresholds_that_are_not_the_usual_ones(make_report):
    report = load(make_report()).report
    assert "--set" not in command(report)
    changed = {"llm_int8": {"magnitude": 5.5}, "heads": {"relative_peak": 1e-7}, "verdict": {"kl_severe": 0.5}}
    analysis = Analysis.model_validate({**report.analysis.model_dump(), **changed})
    words = shlex.split(command(report.model_copy(update={"analysis": analysis})))
    given = [value for option, value in pairwise(words) if option == "--set"]
    assert thresholds(given) == changed


def test_what_was_found_is_listed(page, drawn_report):
    report = json.loads((drawn_report / "report.json").read_text())
    for matches in report["outliers"]["llm_int8"]["dimensions"]:
        assert str(matches["dimension"]) in page.inside["th"]
    for scheme in report["schemes"].values():
        for site in scheme["worst_sites"][:5]:
            assert f"layer {site['layer']} {site['component']}" in page.inside["th"]


def test_every_figure_has_an_alternative_text(page, drawn_report):
    report = json.loads((drawn_report / "report.json").read_text())
    images = [attributes for tag, attributes in page.elements if tag == "svg"]
    assert len(images) == len(report["figures"]) > 5
    assert all(image["role"] == "img" and len(image["aria-label"]) > 60 for image in images)


def test_figures_take_the_pages_colors(drawn_report):
    text = (drawn_report / "report.html").read_text(encoding="utf-8")
    drawings = "".join(re.findall(r"<svg.*?</svg>", text, re.DOTALL))
    assert "var(--ink)" in drawings
    assert "#1c2127" not in drawings
    assert "prefers-color-scheme: dark" in text
    assert "@media print" in text


def test_hostile_text_comes_out_as_text(make_report, edit_table):
    directory = make_report(
        source=HOSTILE, token=HOSTILE, warnings=((HOSTILE, HOSTILE, HOSTILE),), extra=(HOSTILE,)
    )  # fmt: skip
    path = directory / "report.json"
    content = json.loads(path.read_text())
    content["calibration"]["source"] = content["environment"]["device"] = HOSTILE
    content["environment"]["kernels"] = {HOSTILE: HOSTILE}
    content["model"]["architecture"] = content["model"]["revision"] = HOSTILE
    content["schemes"]["nf4"]["not_quantised"] = [HOSTILE]
    content["schemes"]["nf4"]["settings"] = {HOSTILE: HOSTILE}
    content["tables"][0]["title"] = HOSTILE
    path.write_text(json.dumps(content))

    def worst(rows):
        for row in rows:
            row["relative_l2"] = 90.0 if row["component"] == HOSTILE else row["relative_l2"]

    edit_table(directory, "errors", worst)
    edit_table(directory, "outlier_dimensions", lambda rows: [row.update(definition=HOSTILE) for row in rows])
    render(directory)
    text, shown = (directory / "report.html").read_text(encoding="utf-8"), page_of(directory)
    assert "<script" not in text
    assert "\u202e" not in text
    assert not [tag for tag, _ in shown.elements if tag in ("script", "img")]
    assert not [attributes for _, attributes in shown.elements if "onerror" in attributes]
    assert HOSTILE.replace("\u202e", "\\u202e") in shown.text
    assert "{{ 7*7 }}" in shown.text
    for svg in directory.glob("figures/*.svg"):
        assert "<script" not in svg.read_text(encoding="utf-8")


@pytest.mark.usefixtures("one_figure")
def test_warnings_stand_before_the_findings(make_report):
    directory = make_report(
        schemes=(), warnings=(("nonfinite", "Three values are not finite", "layer 2 mlp.down.output"),)
    )
    render(directory)
    text = page_of(directory).text
    assert text.index("Three values are not finite") < text.index("Dynamic range")
    assert "1 warning" in text


@pytest.mark.usefixtures("one_figure")
def test_a_warning_s_advice_follows_its_message(make_report):
    advised = ("few-sequences", "The text has 4 sequences.", None, "Rerun with --sequences 8 or more.")
    directory = make_report(schemes=(), warnings=(advised, ("other", "Of an earlier report", "layer 2")))
    render(directory)
    text = " ".join(page_of(directory).text.split())
    assert "The text has 4 sequences. Rerun with --sequences 8 or more. few-sequences" in text
    assert "Of an earlier report (layer 2) other" in text
    summary = (directory / "summary.md").read_text()
    assert "- The text has 4 sequences. Rerun with --sequences 8 or more. " in summary
    assert "- Of an earlier report (layer 2) " in summary


@pytest.mark.usefixtures("one_figure")
def test_of_many_warnings_of_one_code_the_first_stand_for_all(make_report):
    many = tuple(("nonfinite", f"{n} values are NaN", f"layer {n}") for n in range(1, 13))
    directory = make_report(schemes=(), warnings=(*many, ("other", "Something else", None)))
    render(directory)
    page = (directory / "report.html").read_text(encoding="utf-8")
    section = page[page.index('<div id="warnings"') : page.index('id="schemes"')]
    shown, _, folded = section.partition("<details>")
    assert [n for n in range(1, 13) if f"<b>{n} values are NaN</b>" in shown] == [1]
    assert "<b>Something else</b>" in shown
    assert "11 more warnings" in folded
    assert "6 more <code>nonfinite</code>" in folded
    assert [n for n in range(1, 13) if f"<b>{n} values are NaN</b>" in folded] == list(range(2, 13))
    summary = (directory / "summary.md").read_text()
    assert "- 5 values are NaN (layer 5) " in summary
    assert "- 7 more in the report " in summary
    assert "6 values are NaN" not in summary


def test_no_outliers_and_no_schemes_are_said(make_report):
    directory = make_report(outliers=0, schemes=())
    render(directory)
    text = page_of(directory).text
    assert "None of the 256 hidden dimensions is an outlier by any definition." in text
    assert "No scheme was measured." in text


@pytest.mark.usefixtures("one_figure")
def test_values_beyond_fp16_are_counted(make_report, edit_table):
    directory = make_report(schemes=())
    edit_table(directory, "sites", lambda rows: rows[6].update(over_fp16=1234))
    render(directory)
    assert (
        "occur at 1 site, most of them at layer 0 attn.v.output (1,234). Run this model in bfloat16."
        in page_of(directory).text
    )


def test_exact_values_show_on_hover_as_in_the_figures_files(drawn_report):
    page = (drawn_report / "report.html").read_text(encoding="utf-8")
    for path in drawn_report.glob("figures/*.svg"):
        shown = re.search(rf'<figure id="figure-{path.stem}".*?</figure>', page, re.DOTALL)[0]
        text = [matches.text for matches in ElementTree.parse(path).iter("{http://www.w3.org/2000/svg}title")]
        assert re.findall(r"<title>(.*?)</title>", shown) == [html.escape(text, quote=False) for text in text]
    assert page.count("<title>") > 10


def test_many_figures_of_one_kind_are_folded_and_one_of_a_kind_is_not(make_report, monkeypatch):
    monkeypatch.setattr(page_module, "MAX_UNFOLDED_FIGURES", 3)
    directory = make_report(layers=2)
    render(directory)
    text = (directory / "report.html").read_text(encoding="utf-8")
    folded = "".join(re.findall(r'<details class="maps">.*?</details>', text, re.DOTALL))
    inside = set(re.findall(r'<figure id="figure-([^"]+)"', folded))
    everywhere = re.findall(r'<figure id="figure-([^"]+)"', text)
    assert inside == {f"component_heatmap_{s}_{m}" for s in ("int8", "nf4") for m in ("weight_error", "relative_l2")}
    assert len(everywhere) == len(set(everywhere)) > len(inside) + 4
    assert "4 figures, &ldquo;" in folded


WORDS = 3500
"""Of a page outside its drawings, closed tables included."""


def test_the_page_of_a_deep_model_stays_short(make_report):
    directory = make_report(layers=30, hidden_size=576, outliers=30)
    render(directory)
    text = (directory / "report.html").read_text(encoding="utf-8")
    shown = Page(re.sub(r"<(style|svg|title)\b.*?</\1>", "", text, flags=re.DOTALL)).text
    assert 1000 < len(shown.split()) <= WORDS


@pytest.mark.parametrize(
    ("source", "name"),
    [("/root/models/SmolLM2-135M", "SmolLM2-135M"), ("/models/m/", "m"), ("./m", "m"), ("models/a/b", "b"),
     ("C:\\models\\m", "m"), ("org/name", "org/name"), ("sample", "sample"), ("/", "/")],
)  # fmt: skip
def test_the_short_name_of_a_directory_is_its_last_component(source, name):
    assert short_name(source) == name


@pytest.mark.usefixtures("one_figure")
def test_the_path_of_a_model_stands_in_the_reproduction_alone(make_report):
    directory = make_report(source="/secret/place/my-model")
    render(directory)
    page = (directory / "report.html").read_text(encoding="utf-8")
    assert "<h1>my-model</h1>" in page
    assert "/secret/place" not in page[: page.index('<section id="provenance">')]
    assert "/secret/place/my-model" in page[page.index('<section id="provenance">') :]
    summary = (directory / "summary.md").read_text()
    assert summary.startswith("# Headroom: my-model\n")
    assert "/secret/place" not in summary[: summary.index("## Calibration and reproduction")]


@pytest.mark.usefixtures("one_figure")
def test_the_modules_that_are_not_quantized_are_told_with_their_share(make_report):
    directory = make_report(schemes=("int8",))
    path = directory / "report.json"
    content = json.loads(path.read_text())
    content["schemes"]["int8"] |= {
        "not_quantised": ["model.embed_tokens", "lm_head"], "not_quantised_bytes": 35, "model_bytes": 100
    }  # fmt: skip
    path.write_text(json.dumps(content))
    render(directory)
    sentence = "Not quantized: embeddings and lm_head (35% of the result)."
    assert sentence in page_of(directory).text
    assert sentence in (directory / "summary.md").read_text()


@pytest.mark.usefixtures("one_figure")
def test_the_most_important_warnings_come_first(make_report):
    codes = ["sample-text", "of-a-later-version", "fp16-columns", "nonfinite-predictions", "few-sequences"]
    directory = make_report(schemes=(), warnings=tuple((code, f"About {code}.", None, "Do this.") for code in codes))
    render(directory)
    page = (directory / "report.html").read_text(encoding="utf-8")
    shown = re.findall(r"<b>About (.*?)\.</b> Do this\.", page)
    assert shown == ["nonfinite-predictions", "few-sequences", "fp16-columns", "sample-text", "of-a-later-version"]
    assert page.index("About fp16-columns") < page.index("2 more warnings") < page.index("About sample-text")


@pytest.mark.usefixtures("one_figure")
def test_the_next_steps_are_those_of_the_report(make_report):
    directory = make_report()
    render(directory)
    steps = next_steps(load(directory).report)
    text = " ".join(page_of(directory).text.split())
    assert steps
    assert [step for step in steps if step not in text] == []
    assert all(f"- {step}" in html.unescape((directory / "summary.md").read_text()) for step in steps)
