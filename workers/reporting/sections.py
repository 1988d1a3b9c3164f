"""What the page says, as plain records of finished text: the template only arranges them.

Nothing is escaped here; the template escapes everything.
"""

import shlex
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.contracts.report import Estimate, LlmInt8Dimension, Report, SchemeFacts
from service.contracts.request import SAMPLE
from workers.reporting.figures.style import scheme_title
from workers.reporting.loading import Columns, Source
from workers.reporting.text import ABSENT, counted, data_size, duration, estimate, number, percent
from workers.reporting.verdict import Verdict, interval, judge, mean_kl

Fact = tuple[str, str]
"""A label and its text."""


class Grid(NamedTuple):
    """A table of finished text; the first cell of a row names it."""

    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


class Outcome(NamedTuple):
    """One scheme's card."""

    name: str
    title: str
    verdict: Verdict
    facts: tuple[Fact, ...]
    not_quantised: tuple[str, ...]
    settings: str


def outcomes(report: Report) -> tuple[Outcome, ...]:
    """Return the card of every scheme, in the report's order."""
    return tuple(_outcome(report, name, scheme) for name, scheme in report.schemes.items())


def _outcome(report: Report, name: str, scheme: SchemeFacts) -> Outcome:
    kl = scheme.kl_divergence
    facts = (
        ("Perplexity", estimate(scheme.perplexity)),
        ("Ratio to the reference", estimate(scheme.perplexity_ratio)),
        ("95 % interval of the ratio", _bounds(scheme.perplexity_ratio)),
        ("KL, mean, nats", estimate(mean_kl(scheme))),
        ("KL, 99th percentile, nats", number(kl.p99 if kl else None)),
        ("Same top token", _share(scheme.same_top_token)),
        ("Size", f"{data_size(scheme.model_bytes)}, {number(scheme.compression)} times smaller"),
    )
    settings = ", ".join(f"{key} {value}" for key, value in scheme.settings.items())
    title = scheme_title(name).removeprefix(name).strip(" ()")
    return Outcome(name, title, judge(scheme, report.reference), facts, scheme.not_quantised, settings)


def _bounds(ratio: Estimate | None) -> str:
    if ratio is None or ratio.standard_error is None:
        return ABSENT
    low, high = interval(ratio)
    return f"{number(low, 5)} to {number(high, 5)}"


def _share(top: Estimate | None) -> str:
    if top is None:
        return ABSENT
    if top.standard_error is None:
        return percent(top.value)
    return f"{percent(top.value, 2)} ± {percent(top.standard_error, 2)}"


def outlier_dimensions(report: Report) -> Grid:
    """Return the table of outlier dimensions after LLM.int8(); no rows where none were found."""
    outliers = report.outliers.llm_int8
    limits = outliers.thresholds
    caption = (
        f"llm_int8: a magnitude of at least {limits.magnitude:g} in at least {percent(limits.layers_fraction, 0)} of "
        f"the layers, at {percent(limits.positions_fraction, 0)} of the positions or more. "
        "Quartiles are of the values over the magnitude."
    )
    head = ("Dimension", "Layers", "Positions", "abs max", "Sign", "Quartiles")
    return Grid(caption, head, tuple(map(_dimension, outliers.dimensions)))


def _dimension(found: LlmInt8Dimension) -> tuple[str, ...]:
    return (
        str(found.dimension),
        percent(found.layers_fraction),
        percent(found.positions_fraction),
        number(found.abs_max),
        "one" if found.one_sided else "both",
        " / ".join(number(value) for value in found.quartiles),
    )


def worst_sites(report: Report) -> tuple[Grid, ...]:
    """Return one table of the largest isolated errors for each scheme that has any."""
    head = ("Site", "relative_l2", "SQNR, dB")
    return tuple(
        Grid(
            name,
            head,
            tuple(
                (f"layer {site.layer} {site.component}", number(site.relative_l2), number(site.sqnr_db))
                for site in scheme.worst_sites
            ),
        )
        for name, scheme in report.schemes.items()
        if scheme.worst_sites
    )


_RANGE = ("abs_max", "p99_9_abs", "p99_abs", "median_abs", "max_to_median", "range_bits", "kurtosis")


def range_by_layer(source: Source) -> Grid:
    """Return the dynamic range of the residual stream after every layer, and each layer's widest other site."""
    sites = source.tables["sites"]
    layers = source.layers_of("sites", sites)
    stream = (sites["component"] == "block") & (sites["port"] == "output")
    rows = []
    for layer in range(source.report.model.layers):
        here = np.flatnonzero(stream & (layers == layer))
        figures = [number(float(sites[name][here[0]])) if here.size else ABSENT for name in _RANGE]
        rows.append((str(layer), *figures, _widest(sites, np.flatnonzero(~stream & (layers == layer)))))
    return Grid(
        "The stream after each layer (block.output), and the site with the most range_bits inside the layer.",
        ("Layer", "abs max", "p99.9", "p99", "median", "max / median", "range bits", "kurtosis", "widest site, bits"),
        tuple(rows),
    )


def _widest(sites: Columns, rows: NDArray[np.int64]) -> str:
    bits = np.asarray(sites["range_bits"][rows], dtype=np.float64)
    if not np.isfinite(bits).any():
        return ABSENT
    row = rows[int(np.nanargmax(bits))]
    return f"{sites['component'][row]}.{sites['port'][row]} {number(float(sites['range_bits'][row]))}"


def over_fp16(source: Source) -> str:
    """Say how many values a cast to fp16 would make infinite, and where the most are."""
    sites = source.tables["sites"]
    over = sites["over_fp16"]
    if not over.size or not over.sum() > 0:
        return "No value at any site lies beyond fp16's largest, 65,504."
    most = int(np.argmax(over))
    where = f"layer {sites['layer'][most]} {sites['component'][most]}.{sites['port'][most]}"
    return (
        f"Values beyond fp16's largest, 65,504, occur at {counted(int((over > 0).sum()), 'site')}; "
        f"most at {where}: {int(over[most]):,}."
    )


def provenance(report: Report) -> tuple[tuple[str, tuple[Fact, ...]], ...]:
    """Return what was measured, with what, where, and at what cost: blocks of facts under their headings."""
    return (
        ("Model", _model(report)),
        ("Calibration", _calibration(report)),
        ("Environment", _environment(report)),
        ("Cost", _cost(report)),
    )


def _model(report: Report) -> tuple[Fact, ...]:
    model = report.model
    return (
        ("Source", model.source),
        ("Revision", model.revision or "none"),
        ("Architecture", model.architecture),
        ("Layers", f"{model.layers}"),
        ("Hidden size", f"{model.hidden_size:,}"),
        (
            "Heads",
            f"{model.heads} of {model.head_dim}, {model.kv_heads} for keys and values" if model.heads else "none",
        ),
        ("Vocabulary", f"{model.vocabulary:,}"),
        ("Parameters", f"{model.parameters:,}, {model.dtype}, {data_size(model.weight_bytes)}"),
    )


def _calibration(report: Report) -> tuple[Fact, ...]:
    calibration, reference = report.calibration, report.reference.perplexity
    return (
        ("Text", calibration.source),
        ("Sequences", f"{calibration.sequences:,} of {calibration.sequence_length:,} tokens"),
        ("Tokens", f"{calibration.tokens:,}, {reference.scored_tokens if reference else 0:,} of them scored"),
        ("Begins with BOS", "yes" if calibration.adds_bos else "no"),
        ("Seed", f"{calibration.seed}"),
        ("Batch", counted(calibration.batch_sequences, "sequence")),
    )


def _environment(report: Report) -> tuple[Fact, ...]:
    environment = report.environment
    return (
        ("Device", environment.device),
        ("Python", environment.python),
        ("torch", environment.torch),
        ("transformers", environment.transformers),
        ("bitsandbytes", environment.bitsandbytes),
        *((f"Kernel of {name}", path) for name, path in environment.kernels.items()),
    )


def _cost(report: Report) -> tuple[Fact, ...]:
    timing = report.timing
    peak = timing.peak_memory_bytes
    return (
        ("Wall time", duration(timing.wall_seconds)),
        *((stage.capitalize(), duration(spent)) for stage, spent in timing.stage_seconds.items()),
        ("Peak memory", data_size(peak.resident)),
        *((("Peak device memory", data_size(peak.device)),) if peak.device is not None else ()),
    )


def identity(report: Report) -> tuple[Fact, ...]:
    """Return what fixes the report's numbers, apart from the machine."""
    return (
        ("Model", report.model.fingerprint),
        ("Calibration tokens", report.calibration.fingerprint),
        ("Job", report.job_id),
        ("Headroom", f"{report.headroom_version}, definitions {report.definitions_version}"),
    )


_OPTIONS = ("score", "bos", "text_field", "label_threshold", "label_depth", "label_dimensions")
"""Settings of an analysis that the command line takes under their own names, and needs only where they are unusual."""


def command(report: Report) -> str:
    """Return the command line that asks for the same measurement."""
    model, calibration = report.model, report.calibration
    words = ["headroom", "analyze", f"{model.source}@{model.revision}" if model.revision else model.source]
    words += ["--out", "report"]
    for name in report.schemes:
        words += ["--scheme", name]
    if "int8" in report.schemes:
        words += ["--int8-threshold", str(report.analysis.int8_threshold)]
    if calibration.source != SAMPLE:  # which is what is taken when no text is given
        words += ["--calibration", calibration.source]
    words += [
        "--sequences",
        str(calibration.sequences),
        "--sequence-length",
        str(calibration.sequence_length),
        "--seed",
        str(calibration.seed),
    ]
    if report.labelled is not None:
        words += ["--labelled", report.labelled.source]
    for setting in _OPTIONS:
        value = getattr(report.analysis, setting)
        if value != type(report.analysis).model_fields[setting].default:
            words += [f"--{setting.replace('_', '-')}", str(value)]
    return shlex.join(words)
