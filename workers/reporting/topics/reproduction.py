"""Calibration and reproduction: model, text, environment and cost of the measurement, and the command for it.

Nothing is escaped here; the template escapes everything.
"""

import shlex

from service.contracts.harm.recommendation import RecommendSettings
from service.contracts.harm.settings import HarmSettings
from service.contracts.record import Frozen
from service.contracts.report import Report
from service.contracts.request import SAMPLE, Analysis
from workers.reporting.text import counted, data_size, duration
from workers.reporting.topics.records import Fact


def calibrated(report: Report) -> str:
    """Return the text, the device and the time of the measurement, in a sentence."""
    calibration = report.calibration
    return (
        f"Measured on {counted(calibration.tokens, 'token')} of {calibration.source} "
        f"({counted(calibration.sequences, 'sequence')} of {calibration.sequence_length:,}, seed {calibration.seed}) "
        f"in {duration(report.timing.wall_seconds)} on {report.environment.device}{_since(report)}."
    )


def _since(report: Report) -> str:
    """Return what the times leave out if the measurement was interrupted."""
    layer = report.timing.resumed_at_layer
    return "" if layer is None else f", not counting {counted(layer, 'layer')} before an interruption"


def provenance(report: Report) -> tuple[tuple[str, tuple[Fact, ...]], ...]:
    """Return model, calibration, environment and cost: blocks of facts under their headings."""
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
        ("Tokens", f"{calibration.tokens:,}, {reference.scored_tokens if reference else 0:,} of them scored"),
        ("BOS", "added" if calibration.adds_bos else "not added"),
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
        ("Wall time", duration(timing.wall_seconds) + _since(report)),
        *((stage.capitalize(), duration(spent)) for stage, spent in timing.stage_seconds.items()),
        ("Peak memory", data_size(peak.resident)),
        *((("Peak device memory", data_size(peak.device)),) if peak.device is not None else ()),
    )


def identity(report: Report) -> tuple[Fact, ...]:
    """Return what determines the report's numbers, apart from the machine."""
    return (
        ("Model", report.model.fingerprint),
        ("Calibration tokens", report.calibration.fingerprint),
        *((("Labeled prompts", report.labelled.fingerprint),) if report.labelled else ()),
        ("Job", report.job_id),
        ("Headroom", f"{report.headroom_version}, definitions {report.definitions_version}"),
    )


_OPTIONS = ("batch_sequences", "score", "bos", "text_field", "label_threshold", "label_depth", "label_dimensions")
"""Settings that the command line takes under their own names; the command states those that are not the defaults."""

_OF_OPTIONS = {("harm", name) for name in ("estimate", "exact", "dimensions")} | {
    ("recommend", name) for name in ("enabled", "max_bytes", "max_kl", "whole_groups")
}
"""Settings that `--harm` and options of `headroom recommend` set."""


def command(report: Report) -> str:
    """Return the command that repeats the measurement."""
    model, calibration = report.model, report.calibration
    recommend = report.analysis.recommend
    words = ["headroom", "recommend" if recommend.enabled else "analyze"]
    words += [f"{model.source}@{model.revision}" if model.revision else model.source]
    words += ["--out", "report", *_schemes(report)]
    words += [word for pattern in report.analysis.keep for word in ("--keep", pattern)]
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
    if report.labelled is not None and report.labelled.source != SAMPLE:  # the sample brings its own
        words += ["--labelled", report.labelled.source]
    for setting in _OPTIONS:
        value = getattr(report.analysis, setting)
        if value != type(report.analysis).model_fields[setting].default:
            words += [f"--{setting.replace('_', '-')}", str(value)]
    settings = (
        *_harm(report.analysis.harm, recommends=recommend.enabled),
        *_recommend(recommend),
        *_thresholds(report.analysis),
    )
    return shlex.join([*words, *settings])


def _schemes(report: Report) -> list[str]:
    """Return the options for the schemes, and for the threshold of the int8 variants without one of their own."""
    variants = {variant.name: variant for variant in report.analysis.schemes}
    words = []
    for name in report.schemes:
        words += ["--scheme", str(variants.get(name, name))]
    own = {name for name, variant in variants.items() if "threshold" in variant.settings}
    if any(facts.scheme == "int8" for name, facts in report.schemes.items() if name not in own):
        words += ["--int8-threshold", str(report.analysis.int8_threshold)]
    return words


def _harm(harm: HarmSettings, *, recommends: bool) -> list[str]:
    """Return the options for the harm that was asked for; a recommendation measures modules unless told not to."""
    asked = {"estimate": harm.estimate, harm.exact: harm.exact != "none", "dimensions": harm.dimensions}
    words = [word for name, wanted in asked.items() if wanted for word in ("--harm", name)]
    return [*words, "--set", "harm.exact=none"] if recommends and harm.exact == "none" else words


def _recommend(settings: RecommendSettings) -> list[str]:
    """Return the options for the target of a recommendation."""
    targets = {"--max-bytes": settings.max_bytes and int(settings.max_bytes), "--max-kl": settings.max_kl}
    words = [word for option, value in targets.items() if value is not None for word in (option, str(value))]
    return words if settings.whole_groups else [*words, "--split-groups"]


def names_files(report: Report) -> bool:
    """Whether the command names a text or labeled prompts, which it does without their paths."""
    labelled = report.labelled
    return report.calibration.source != SAMPLE or (labelled is not None and labelled.source != SAMPLE)


def _thresholds(analysis: Analysis) -> list[str]:
    """Return the options for thresholds that are not the defaults."""
    words = []
    for group, field in type(analysis).model_fields.items():
        if isinstance(field.default, Frozen):
            for name, usual in field.default:  # a newer report may have more
                value = getattr(getattr(analysis, group), name)
                if value != usual and (group, name) not in _OF_OPTIONS:
                    words += ["--set", f"{group}.{name}={value}"]
    return words
