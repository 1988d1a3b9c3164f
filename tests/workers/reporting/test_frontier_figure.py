"""The frontier and every measured mix are in the figure, and the page says first what to ship."""

import html
import json
import re
import shlex

import pytest

from service.contracts.harm.recommendation import RecommendSettings
from service.contracts.harm.settings import HarmSettings
from workers.reporting.figures import frontier
from workers.reporting.loading import load
from workers.reporting.render import render
from workers.reporting.summary import summary
from workers.reporting.topics import mixes
from workers.reporting.topics.reproduction import command

CONFIG = {
    "load_in_4bit": True,
    "bnb_4bit_quant_type": "nf4",
    "llm_int8_skip_modules": ["lm_head", "model.layers.3.mlp"],
}


def measured(name, size, kl, *, control=False, kept=()):
    figure = {"value": kl, "standard_error": 0.01, "interval": [kl - 0.02, kl + 0.02]}
    return {
        "name": name, "control": control, "bytes": size, "predicted_kl": 0.9 * kl, "kl": figure, "level": "severe",
        "kept": kept, "skip_modules": [],
    }  # fmt: skip


MIXES = [
    measured("mix-1", 1_900_000, 0.15, kept=[{"component": "mlp.down", "layers": [3]}]),
    measured("mix-2", 1_800_000, 0.17, kept=[{"component": "attn.v", "layers": [1, 2]}]),
    measured("uniform", 1_500_000, 0.3, control=True),
    measured("random", 1_900_000, 0.28, control=True, kept=[{"component": "mlp.up", "layers": [0]}]),
]


@pytest.fixture
def recommended(make_report):
    """A report that recommends a mix."""
    directory = make_report(schemes=("int8", "nf4"), labelled=0)
    content = json.loads((directory / "report.json").read_text())
    content["recommendation"] = {
        "nf4": {
            "target": {"kind": "max_bytes", "value": 2e6, "bytes": 2_000_000},
            "held_out_sequences": 16,
            "frontier": [{"bytes": 1_500_000, "predicted_kl": 0.3}, {"bytes": 2_500_000, "predicted_kl": 0.05}],
            "mixes": MIXES,
            "chosen": "mix-1",
            "reason": "mix-1 (0.15 nats) beats the best control, random (0.28 nats).",
            "config": CONFIG,
            "config_verified": True,
        }
    }
    (directory / "report.json").write_text(json.dumps(content))
    return directory


def test_frontier_mixes_controls_and_target_are_drawn(recommended, draw_with):
    drawing = draw_with(frontier, recommended)["frontier_nf4"]
    (axes,) = drawing.figure.axes
    lines = {line.get_gid(): line for line in axes.lines}
    assert lines["frontier"].get_xydata().tolist() == [[1.5, 0.3], [2.5, 0.05]]
    assert lines["chosen"].get_xydata().tolist() == [[1.9, 0.15]]
    assert lines["target"].get_xdata()[0] == 2.0
    points = [container.lines[0].get_xydata().tolist() for container in axes.containers]
    assert points == [[[1.9, 0.15], [1.8, 0.17]], [[1.5, 0.3], [1.9, 0.28]]]
    for container, kind in zip(axes.containers, ([0.15, 0.17], [0.3, 0.28]), strict=True):
        spans = [segment[:, 1].tolist() for segment in container.lines[2][0].get_segments()]
        assert spans == [[pytest.approx(kl - 0.02), pytest.approx(kl + 0.02)] for kl in kind]
    names = {text.get_text(): text.xy[0] for text in axes.texts}
    assert names == {"mix-1": 1.9, "mix-2": 1.8, "uniform": 1.5, "random": 1.9}
    assert "16 held-out sequences" in drawing.caption
    low, high = axes.get_ylim()
    assert low == 0
    assert high > 0.32


def test_reports_without_a_recommendation_have_no_frontier(make_report, draw_with):
    directory = make_report(labelled=0)
    assert draw_with(frontier, directory) == {}
    assert mixes.topics(load(directory).report) == ()


def test_the_section_lists_what_was_measured_and_the_configuration(recommended):
    (topic,) = mixes.topics(load(recommended).report)
    assert topic.lead == "nf4: mix-1 (0.15 nats) beats the best control, random (0.28 nats)."
    (grid,) = topic.grids
    assert [row[0] for row in grid.rows] == ["mix-1 (chosen)", "mix-2", "uniform (control)", "random (control)"]
    assert grid.rows[0][1:] == ("1.90 MB", "0.135", "0.150 ± 0.010", "mlp.down of layer 3")
    assert grid.rows[2][-1] == "nothing"
    ((_, target),) = topic.terms
    assert target.endswith("; mixes of at most 2.00 MB, measured on 16 held-out sequences")
    ((title, code),) = topic.codes
    assert title == "Configuration of nf4, mix-1"
    assert code.startswith("BitsAndBytesConfig(\n    load_in_4bit=True,")
    assert '"quant_method": "bitsandbytes"' in code


def test_the_summary_says_first_what_to_ship(recommended):
    text = summary(load(recommended), ())
    assert text.index("## Decision") < text.index("## Verdict")
    assert "nf4 needs 0.4 MB more: keep mlp.down of layer 3 in 16 bits" in text


@pytest.mark.usefixtures("one_figure")
def test_the_configuration_can_be_copied_from_summary_and_page(recommended):
    content = json.loads((recommended / "report.json").read_text())
    content["recommendation"]["nf4"]["mixes"][0]["level"] = "negligible"  # so that it is shipped
    (recommended / "report.json").write_text(json.dumps(content))
    render(recommended)
    page = (recommended / "report.html").read_text(encoding="utf-8")
    blocks = [html.unescape(block) for block in re.findall(r"<pre><code>(.*?)</code></pre>", page, re.DOTALL)]
    blocks += re.findall(r"```\n(.*?)```", (recommended / "summary.md").read_text(encoding="utf-8"), re.DOTALL)
    python = [block.partition("\n\n")[0] for block in blocks if block.startswith("BitsAndBytesConfig(")]
    assert len(python) == 3  # first on the page, with the mixes, in the summary
    assert [eval(block, {"BitsAndBytesConfig": dict}) for block in python] == [CONFIG] * 3
    (fragment,) = [block for block in blocks if block.startswith("{")]
    assert json.loads(fragment)["quantization_config"].items() >= CONFIG.items()


def test_the_command_that_repeats_it_recommends_under_the_same_target(recommended):
    report = load(recommended).report
    settings = {"enabled": True, "max_bytes": 2_000_000, "whole_groups": False}
    asked = report.analysis.model_copy(
        update={
            "recommend": RecommendSettings.model_validate(settings),
            "harm": HarmSettings(estimate=True, exact="modules"),
            "keep": ("a.b",),
        }
    )
    words = shlex.split(command(report.model_copy(update={"analysis": asked})))
    assert words[1] == "recommend"
    assert words[words.index("--keep") + 1] == "a.b"
    assert words[words.index("--max-bytes") + 1] == "2000000"
    assert "--split-groups" in words
    assert "--set" not in words
    again = {
        "recommend": RecommendSettings(enabled=True, rounds=2),
        "harm": HarmSettings(estimate=True),
        "keep": (),
    }
    words = shlex.split(command(report.model_copy(update={"analysis": report.analysis.model_copy(update=again)})))
    assert {words[place + 1] for place, word in enumerate(words) if word == "--set"} == {
        "recommend.rounds=2",
        "harm.exact=none",
    }
