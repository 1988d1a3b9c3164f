"""The figures and the section on harm are the tables and the key `harm`."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from service.contracts.harm.tables import HARM_TABLES
from workers.reporting.drawing.component_map import COMPONENTS
from workers.reporting.figures.harm import estimate_check, harm_map, harm_shares
from workers.reporting.html.page import topic_of, topics
from workers.reporting.loading import load
from workers.reporting.render import render

LAYERS, DIMENSIONS, FLAGGED = 8, 256, (7, 40)
MEASURED = 20
"""Modules of which the harm was measured, seven of them drawn at random."""


def harm_rows(components: tuple[str, ...]) -> list[dict[str, Any]]:
    random = np.random.default_rng(4)
    rows = []
    for layer in range(LAYERS):
        for component in components:
            estimate = float(random.lognormal(-7, 1.2))
            number = len(rows)
            measured = number % 2 == 0 and number < 2 * MEASURED
            rows.append(
                {
                    "scheme": "nf4", "layer": layer, "component": component,
                    "module": f"model.layers.{layer}.{component}",
                    "harm": estimate * float(random.uniform(0.8, 1.2)) + 1e-5 if measured else None,
                    "standard_error": estimate / 10 if measured else None, "estimated_harm": estimate,
                    "estimated_standard_error": estimate / 5, "noise_floor": 1e-5 if measured else None,
                    "bytes_saved": 1000, "at_random": measured and number % 6 == 0,
                }
            )  # fmt: skip
    return rows


def dimension_rows() -> list[dict[str, Any]]:
    shares = np.random.default_rng(5).normal(0.001, 0.002, DIMENSIONS)
    shares[list(FLAGGED)] = 0.2
    rows = [
        {"scheme": "nf4", "inputs": "residual stream", "dimension": j, "share": float(share), "standard_error": 0.01,
         "significant": j in FLAGGED, "definitions": "llm_int8 variance" if j in FLAGGED else ""}
        for j, share in enumerate(shares)
    ]  # fmt: skip
    rest = {"inputs": "other inputs", "dimension": None, "share": 1 - float(shares.sum())}
    return [*rows, {"scheme": "nf4", "standard_error": 0.02, "significant": False, "definitions": ""} | rest]


def harm_section(rows: list[dict[str, Any]], dimensions: list[dict[str, Any]]) -> dict[str, Any]:
    ranked = sorted(rows, key=lambda row: -(row["harm"] or row["estimated_harm"]))[:10]
    names = ("layer", "component", "module", "harm", "standard_error", "estimated_harm", "noise_floor")
    flagged = sum(row["share"] for row in dimensions if row["definitions"])
    other = dimensions[-1]["share"]
    return {
        "whole": {"value": 0.2, "standard_error": 0.01}, "predicted_whole": {"value": 0.25, "standard_error": 0.02},
        "scale_factor": 0.8, "additivity": 0.93, "additivity_of": "estimates", "noise_floor": [1e-5] * LAYERS,
        "check": {"of": "modules", "swaps": MEASURED, "spearman": 0.97, "measured_over_estimated": 1.02},
        "modules": [{name: row[name] for name in names} for row in ranked],
        "dimensions": {
            "flagged": {"value": flagged, "standard_error": 0.02}, "flagged_dimensions": len(FLAGGED),
            "unflagged": {"value": 1 - flagged - other, "standard_error": 0.02},
            "other_inputs": {"value": other, "standard_error": 0.02},
            "dimensions": [{"dimension": j, "share": 0.2, "standard_error": 0.01, "definitions": ["llm_int8"]}
                           for j in FLAGGED],
        },
    }  # fmt: skip


@pytest.fixture
def harmful(make_report):
    """A function that makes a report with harm of nf4, and returns its directory and its rows."""

    def make(components: tuple[str, ...] = COMPONENTS) -> tuple[Path, list[dict[str, Any]]]:
        directory = make_report(hidden_size=DIMENSIONS, layers=LAYERS)
        rows, dimensions = harm_rows(components), dimension_rows()
        content = json.loads((directory / "report.json").read_text())
        content["harm"] = {"nf4": harm_section(rows, dimensions)}
        for name, of_table in (("harm", rows), ("dimension_harm", dimensions)):
            columns = HARM_TABLES[name].columns
            schema = pa.schema([(column.name, pa.type_for_alias(column.type)) for column in columns])
            pq.write_table(pa.Table.from_pylist(of_table, schema), directory / f"tables/{name}.parquet")
            content["tables"].append(
                {"name": name, "title": name, "caption": name, "files": [f"tables/{name}.parquet"]}
            )
        (directory / "report.json").write_text(json.dumps(content))
        return directory, rows

    return make


def test_the_map_is_the_estimates_of_all_modules(harmful, draw_with) -> None:
    components = tuple(name for name in COMPONENTS if name not in ("attn.q", "attn.k", "attn.v"))
    directory, rows = harmful((*components, "attn.qkv"))
    (drawing,) = draw_with(harm_map, directory).values()
    assert (drawing.name, drawing.table, topic_of(drawing.name)) == ("harm_map_nf4", "harm", "harm")
    cells = next(a for a in drawing.figure.axes[0].collections if a.get_gid() == "cells").get_array()
    for row in rows:
        columns = ("attn.q", "attn.k", "attn.v") if row["component"] == "attn.qkv" else (row["component"],)
        for column in columns:
            assert cells[row["layer"], COMPONENTS.index(column)] == row["estimated_harm"]
    assert "attn.qkv: one module, shown in the cell of each of its components." in drawing.caption
    assert "Estimated from gradients" in drawing.caption


def test_the_shares_rise_to_all_of_the_harm(harmful, draw_with) -> None:
    directory, rows = harmful()
    (drawing,) = draw_with(harm_shares, directory).values()
    lines = {line.get_gid(): line for axes in drawing.figure.axes for line in axes.lines if line.get_gid()}
    modules, dimensions = (axes.lines[0] for axes in drawing.figure.axes)
    harms = np.sort([row["estimated_harm"] for row in rows])[::-1]
    assert modules.get_ydata() == pytest.approx(np.cumsum(harms) / harms.sum())
    shares = [row["share"] for row in dimension_rows()]
    assert dimensions.get_ydata()[-1] == pytest.approx(1 - shares[-1])
    assert lines["flagged_nf4"].get_xdata().tolist() == [1, 2]
    assert "2 flagged dimensions 40.0%" in drawing.caption
    half = int(np.argmax(np.cumsum(harms) >= harms.sum() / 2)) + 1
    assert f"half of the harm is that of {half} modules of 56" in drawing.caption


def test_every_swap_is_a_point_of_the_check(harmful, draw_with) -> None:
    directory, rows = harmful()
    (drawing,) = draw_with(estimate_check, directory).values()
    axes = drawing.figure.axes[0]
    assert "Spearman 0.970, additivity 0.930" in axes.get_title()
    points = [np.stack(bars.lines[0].get_data(), axis=1) for bars in axes.containers]
    assert [len(of) for of in points] == [13, 7]
    expected = sorted((row["harm"] - row["noise_floor"], row["estimated_harm"]) for row in rows if row["harm"])
    assert np.array(sorted(np.concatenate(points).tolist())) == pytest.approx(np.array(expected))
    assert "Measured over estimated, of those drawn at random: 1.02." in drawing.caption


def test_the_page_has_a_section_and_a_report_without_harm_has_none(harmful, make_report) -> None:
    directory, rows = harmful()
    report = render(directory)
    assert {"harm_map_nf4", "harm_shares", "estimate_check_nf4"} <= {figure.name for figure in report.figures}
    section = next(topic for topic in topics(load(directory)) if topic.name == "harm")
    worst = max(rows, key=lambda row: row["harm"] or row["estimated_harm"])
    assert section.lead.startswith(f"nf4: layer {worst['layer']} {worst['component']} does the most harm")
    notes = " ".join(section.notes)
    assert "(Spearman) of estimates and 20 measured harms of modules is 0.970" in notes
    assert "2 dimensions that a definition of outliers flags carry 40.0% ± 2.0%" in notes
    assert "significant by Holm's method, the largest first: 7, 40." in notes
    assert "the whole is 0.930 times the sum of the modules' " in notes
    plain = load(make_report("plain"))
    assert "harm" not in [topic.name for topic in topics(plain)]
