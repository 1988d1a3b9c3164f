"""Pages, figures and comparisons call a variant by its name, and tell of it by the report's facts."""

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from service.contracts.report import SchemeFacts
from service.contracts.request import Analysis, schemes_for
from service.contracts.schemes import LONGEST_TITLE, SCHEMES
from workers.reporting.comparison.__main__ import main as compare
from workers.reporting.drawing import style
from workers.reporting.loading import load
from workers.reporting.render import render
from workers.reporting.topics.records import marked
from workers.reporting.topics.reproduction import command

STORED = Path(__file__).parent / "stored" / "schema_1_0"


def facts(text: str) -> SchemeFacts:
    """What a report says of a variant, but for its figures."""
    (variant,) = Analysis.model_validate({"schemes": [text]}).schemes
    (scheme,) = schemes_for(Analysis(schemes=(variant,)))
    nothing = dict.fromkeys(("perplexity", "perplexity_ratio", "kl_divergence", "same_top_token", "delta_p"))
    return SchemeFacts.model_validate(
        nothing
        | {"scheme": variant.scheme, "settings": scheme.settings, "simulated": scheme.simulated}
        | {"analysis_only": scheme.analysis_only, "model_bytes": 1, "compression": 1.0}
        | {"not_quantised": [], "worst_sites": []}
    )


def rename(table: pa.Table, names: dict[str, str]) -> pa.Table:
    """Call the schemes of a table otherwise, in its rows and in the names of its columns."""
    if "scheme" in table.column_names:
        place = table.column_names.index("scheme")
        schemes = [names.get(name, name) for name in table["scheme"].to_pylist()]
        table = table.set_column(place, "scheme", pa.array(schemes, pa.string()))
    columns = {f"sqnr_db_{old}": f"sqnr_db_{new}" for old, new in names.items()}
    columns |= {
        column: column.replace(old, new, 1)
        for column in table.column_names
        for old, new in names.items()
        if column.startswith(f"{old}_")
    }
    return table.rename_columns([columns.get(column, column) for column in table.column_names])


def with_variants(directory: Path, texts: dict[str, str]) -> Path:
    """Turn schemes of a made-up report, by their names, into variants, as they are typed."""
    path = directory / "report.json"
    report: dict[str, Any] = json.loads(path.read_text())
    texts = {name: texts.get(name, name) for name in report["schemes"]}
    analysis = Analysis.model_validate({"schemes": list(texts.values())})
    names = dict(zip(texts, analysis.scheme_names, strict=True))
    expected = ("scheme", "settings", "simulated", "analysis_only")
    report["analysis"]["schemes"] = json.loads(analysis.model_dump_json())["schemes"]
    report["schemes"] = {
        names[name]: scheme_facts | facts(texts[name]).model_dump(include=set(expected))
        for name, scheme_facts in report["schemes"].items()
    }
    if labelled := report["labelled"]:
        for dimension in labelled["dimensions"]:
            dimension["schemes"] = {names[name]: figures for name, figures in dimension["schemes"].items()}
    path.write_text(json.dumps(report))
    for file in (directory / "tables").glob("*.parquet"):
        pq.write_table(rename(pq.read_table(file), names), file)
    return directory


VARIANTS = {
    "int8": "lossless=int8:threshold=4",
    "nf4": "nf4:block_size=128",
    "fp4": "a-label-of-thirty-two-characters=nf4:compute_dtype=float32,keep=attn.v,keep=layers.1.mlp.down",
    "w8a8-token": "w8a8-token:weight_group=64",
}
NAMES = ("lossless", "nf4-block-size-128", "a-label-of-thirty-two-characters", "w8a8-token-weight-group-64")


class Text(HTMLParser):
    """What a reader sees of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.text = ""
        self.feed(page)

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def made(make_report) -> Path:
    return with_variants(make_report(schemes=tuple(VARIANTS), layers=3), VARIANTS)


def test_every_figure_and_section_calls_a_variant_by_its_name(made):
    report = render(made)
    assert tuple(report.schemes) == NAMES
    drawn = {figure.name: figure for figure in report.figures}
    for name in NAMES:
        assert {f"component_heatmap_{name}_relative_l2", f"head_severity_{name}"} <= drawn.keys()
        assert (made / f"figures/head_severity_{name}.svg").is_file()
        for figure in ("error_growth", "divergence"):
            assert name in (made / f"figures/{figure}.svg").read_text()
    assert "lossless (LLM.int8()), threshold 4.0" in drawn["error_growth"].caption
    assert "block_size 128" in drawn["divergence"].caption
    assert "compute_dtype auto, analysis only" in drawn["divergence"].caption  # which a measurement would have settled
    page = Text((made / "report.html").read_text()).text
    for said in ("nf4-block-size-128 analysis only", "w8a8-token-weight-group-64 simulated",
                 "Analysis only: BitsAndBytesConfig cannot express",
                 "lossless LLM.int8"):  # fmt: skip
        assert said in page
    assert "lossless analysis only" not in page
    summary = (made / "summary.md").read_text()
    assert "| nf4-block-size-128 (analysis only) |" in summary
    assert "| w8a8-token-weight-group-64 (simulated) |" in summary
    assert "Analysis only: BitsAndBytesConfig cannot express these settings" in summary


def test_a_page_without_such_variants_does_not_speak_of_them(make_report):
    directory = make_report(schemes=("int8",))
    render(directory)
    for file in ("report.html", "summary.md"):
        assert "nalysis only" not in (directory / file).read_text()


def test_the_command_asks_for_the_same_variants(made):
    expected = command(load(made).report)
    for text in VARIANTS.values():
        assert f"--scheme {text} " in expected
    assert "--int8-threshold" not in expected  # the one variant of int8 gives its own


def test_the_command_states_the_threshold_of_variants_that_give_none(make_report):
    directory = with_variants(make_report(schemes=("nf4", "int8")), {"int8": "a=int8", "nf4": "int8:threshold=2"})
    assert "--scheme int8:threshold=2 --scheme a=int8 --int8-threshold 6.0" in command(load(directory).report)


def test_a_report_of_an_earlier_version_names_its_schemes():
    report = load(STORED).report
    assert {name: scheme_facts.scheme for name, scheme_facts in report.schemes.items()} == {
        name: name for name in report.schemes
    }
    assert not any(scheme_facts.analysis_only for scheme_facts in report.schemes.values())
    assert [marked(name, scheme_facts) for name, scheme_facts in report.schemes.items() if scheme_facts.simulated] == [
        "w8a8-tensor (simulated)"
    ]


def test_reports_with_variants_are_compared(make_report, tmp_path):
    other = VARIANTS | {"int8": "lossless=nf4:compute_dtype=float16"}
    first = with_variants(make_report("first", schemes=tuple(VARIANTS)), VARIANTS)
    second = with_variants(make_report("second", schemes=tuple(VARIANTS), seed=1), other)
    compare([str(tmp_path / "out"), str(first), str(second)])
    comparison = json.loads((tmp_path / "out/comparison.json").read_text())
    (difference,) = comparison["differences"]
    assert tuple(difference["schemes"]) == NAMES
    expected = {w["message"] for w in comparison["warnings"] if w["code"] == "scheme-settings-differ"}
    (message,) = expected
    assert message.startswith("The settings of lossless differ: scheme int8 and nf4, threshold 4.0 and absent")
    page = Text((tmp_path / "out/comparison.html").read_text()).text
    assert "nf4-block-size-128 (analysis only)" in page
    assert "w8a8-token-weight-group-64 (simulated)" in page


@pytest.mark.parametrize("name", SCHEMES)
def test_a_scheme_by_itself_keeps_its_title(name):
    scheme_facts = facts(name)
    assert style.scheme_title(name, scheme_facts) == SCHEMES[name].title
    assert style.scheme_label(name, scheme_facts) == (f"{name} (sim.)" if scheme_facts.simulated else name)


@pytest.mark.parametrize(
    ("text", "title", "label", "mark"),
    [
        ("lossless=int8", "lossless (LLM.int8())", "lossless", "lossless"),
        ("nf4:block_size=128", "nf4-block-size-128 (4-bit NormalFloat)", "nf4-block-size-128",
         "nf4-block-size-128 (analysis only)"),
        (f"{'a' * 32}=nf4", "a" * 32, "a" * 32, "a" * 32),
        ("b=int4-group128", "b (simulated, zero points)", "b (sim.)", "b (simulated)"),
        (f"{'a' * 20}=int4-group128", f"{'a' * 20} (simulated)", f"{'a' * 20} (sim.)", f"{'a' * 20} (simulated)"),
        (f"{'a' * 32}=int4-group128", f"{'a' * 32} (sim.)", f"{'a' * 32} (sim.)", f"{'a' * 32} (simulated)"),
    ],
)  # fmt: skip
def test_a_variants_title_is_short_and_says_what_it_is(text, title, label, mark):
    scheme_facts = facts(text)
    (name,) = Analysis.model_validate({"schemes": [text]}).scheme_names
    assert len(title) <= LONGEST_TITLE
    assert style.scheme_title(name, scheme_facts) == title
    assert style.scheme_label(name, scheme_facts) == label
    assert marked(name, scheme_facts) == mark


def test_a_scheme_that_this_version_does_not_know_is_called_by_its_name():
    scheme_facts = facts("nf4").model_copy(update={"scheme": "nf3"})
    assert style.scheme_title("nf3", scheme_facts) == style.scheme_label("nf3", scheme_facts) == "nf3"


def test_many_schemes_all_look_different():
    looks = [style.mark(place) for place in range(121)]
    assert len(set(looks)) == 121
    assert len({look.color for look in looks}) == 11
