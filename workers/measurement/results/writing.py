"""Writes the output of a measurement: the tables that are known only at its end, and report.json."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from service.contracts.harm.recommendation import Recommendation
from workers.measurement.layers.streams import REFERENCE
from workers.measurement.results.assembly import assemble
from workers.measurement.results.harm_section import write_harm
from workers.measurement.results.layer_files import LayerFiles
from workers.measurement.results.mixes_section import write_mixes
from workers.measurement.results.profile import pick_profile
from workers.measurement.results.report import MeasurementResults, build_report
from workers.measurement.results.report_warnings import warn_fp16_columns, warn_not_discriminating
from workers.measurement.runtime.progress import ProgressReporter
from workers.measurement.runtime.table_writer import TableWriter


def write_report(
    results: MeasurementResults,
    files: LayerFiles,
    tables: Mapping[str, TableWriter],
    recommended: dict[str, Recommendation] | None,
    report_file: Path,
    reporter: ProgressReporter,
) -> None:
    """Write the tables' remaining rows, and report.json.

    Args:
        results: of the measurement.
        files: of the layers.
        tables: writers by name.
        recommended: by scheme; None where it was not asked for.
        report_file: the file to be made.
        reporter: gets warnings.
    """
    state = results.state
    hidden_size = state.decoder.config.hidden_size
    assembled = assemble(
        files,
        len(state.decoder.layers),
        state.positions,
        hidden_size,
        results.request,
        tables,
        results.describe_token,
    )
    warn_not_discriminating(assembled.outliers, hidden_size, reporter)
    thresholds = {one.name: float(one.settings["threshold"]) for one in state.schemes if "threshold" in one.settings}
    warn_fp16_columns(assembled.fp16_columns, thresholds, reporter)
    profile = pick_profile(state.streams.sequence(REFERENCE, number) for number in range(state.sequences))
    tables["profile"].append({"dimension": np.arange(len(profile.vector)), "value": profile.vector})
    harm = write_harm(results, assembled.outliers, tables, reporter)
    if recommended is not None:
        write_mixes(recommended, tables["mixes"])
    report = build_report(results, assembled, profile, harm, reporter)
    report = report.model_copy(update={"recommendation": recommended})
    report_file.write_text(report.model_dump_json(indent=1) + "\n", encoding="utf-8")
