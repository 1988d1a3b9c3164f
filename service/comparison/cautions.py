"""Warnings about what differs between two reports besides the numbers.

With another calibration, definitions or settings most values stay comparable, but their difference has another
meaning: that is a warning. A value whose difference has no meaning is not compared.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from service.contracts.report import LeftOut, Report
from service.contracts.sections.outliers import DEFINITIONS
from service.contracts.thresholds import Thresholds
from service.contracts.warnings import Warning
from service.errors import NotComparable
from service.evaluation.numbers import megabytes

_OF_WHOLE_BATCHES = {
    "int8": "the columns of inputs that stay in 16 bits are chosen for a whole batch",
    "w8a8-tensor": "inputs have one scale for a whole batch",
}
"""Schemes whose figures depend on the batch by more than last digits, and how."""
Caution = tuple[str, str, str]
"""Code, message and advice of a warning."""


def check_definitions(name: str, baseline: Report, other: Report) -> None:
    """Raise NotComparable where the reports' definitions have another major version."""
    versions = baseline.definitions_version, other.definitions_version
    if versions[0].partition(".")[0] != versions[1].partition(".")[0]:
        raise NotComparable(
            f"{name}: compare needs definitions_version {versions[0].partition('.')[0]}.x, as in the baseline; got "
            f"{versions[1]!r}, whose values are defined differently"
        )


def warnings(label: str, baseline: Report, other: Report, shared: int) -> Iterator[Warning]:
    """Yield what differs between the reports and changes the meaning of the differences.

    Args:
        label: The other report's.
        baseline: The report that it is compared with.
        other: The other report.
        shared: Sequences that both scored.
    """
    for code, message, advice in (
        *_definitions(baseline, other),
        *_calibration(baseline, other, shared),
        *_model(baseline, other),
        *_thresholds(baseline, other),
        *_schemes(baseline, other),
        *_machine(baseline, other),
    ):
        yield Warning(code=code, message=message, where=label, advice=advice)


def uncomparable_outliers(baseline: Report, other: Report) -> Iterator[LeftOut]:
    """Yield the definitions of outlier dimensions whose sets cannot be compared."""
    widths = baseline.model.hidden_size, other.model.hidden_size
    before, after = (report.outliers.present() for report in (baseline, other))
    for definition in [name for name in DEFINITIONS if name in before or name in after]:
        if definition not in before or definition not in after:
            yield LeftOut(name=f"outliers.{definition}", reason="one of the reports is older than this definition")
            continue
        limits = [definitions[definition].thresholds.model_dump() for definitions in (before, after)]
        reason = ""
        if widths[0] != widths[1]:
            reason = f"different hidden sizes, {widths[0]:,} and {widths[1]:,}"
        elif limits[0] != limits[1]:
            reason = f"different thresholds: {_changed(*limits)}"
        if reason:
            yield LeftOut(name=f"outliers.{definition}", reason=reason)


def uncomparable_layers(baseline: Report, other: Report) -> str | None:
    """Return why a layer of one model is not the same layer of the other; None where it is."""
    depths = baseline.model.layers, other.model.layers
    return None if depths[0] == depths[1] else f"different numbers of layers, {depths[0]} and {depths[1]}"


def _definitions(baseline: Report, other: Report) -> Iterator[Caution]:
    if baseline.definitions_version != other.definitions_version:
        yield (
            "definitions-differ",
            f"The reports use definitions {baseline.definitions_version} and {other.definitions_version}, so some "
            "figures may be defined differently.",
            "Measure both models with one version of Headroom.",
        )


def _calibration(baseline: Report, other: Report, shared: int) -> Iterator[Caution]:
    if baseline.calibration.fingerprint != other.calibration.fingerprint:
        texts = f"The calibration tokens differ: {_described(baseline)}, and {_described(other)}."
        if shared:
            count = "1 sequence" if shared == 1 else f"{shared} sequences"
            yield (
                "calibration-differs",
                f"{texts} Differences of the predictions are over the {count} that both scored.",
                "Measure both models on one text to compare them on all of it.",
            )
        else:
            yield (
                "calibration-differs",
                f"{texts} They share no sequence, so no difference of the predictions is called better or worse.",
                "Measure both models on one text to compare them.",
            )
    elif baseline.analysis.score != other.analysis.score:
        yield (
            "scoring-differs",
            f"The scored positions differ: {baseline.analysis.score} and {other.analysis.score}. Paired differences "
            "are over the positions that both scored.",
            "Measure both models with the same --score to compare them on all positions.",
        )


def _described(report: Report) -> str:
    text = report.calibration
    return (
        f"{text.source}, {text.sequences} x {text.sequence_length} tokens, seed {text.seed}, "
        f"{'with' if text.adds_bos else 'without'} BOS"
    )


def _model(baseline: Report, other: Report) -> Iterator[Caution]:
    if baseline.model.fingerprint != other.model.fingerprint:
        yield (
            "models-differ",
            "The weights differ.",
            "Compare single layers, heads and dimensions only if one model was made from the other.",
        )


def _thresholds(baseline: Report, other: Report) -> Iterator[Caution]:
    limits: dict[str, tuple[Thresholds, Thresholds]] = {
        "massive": (baseline.outliers.massive_tensor.thresholds, other.outliers.massive_tensor.thresholds),
        "heads": (baseline.heads.thresholds, other.heads.thresholds),
    }
    for definition in ("llm_int8", "llm_int8_relative", "median_quantile", "variance"):
        facts = [report.outliers.present().get(definition) for report in (baseline, other)]
        if facts[0] is not None and facts[1] is not None:
            limits[definition] = facts[0].thresholds, facts[1].thresholds
    for name, (before, after) in limits.items():
        if before != after:
            yield (
                "thresholds-differ",
                f"The thresholds of {name} differ: {_changed(before.model_dump(), after.model_dump())}.",
                "Measure both models with the same thresholds (--set) to compare what they flag.",
            )


def _schemes(baseline: Report, other: Report) -> Iterator[Caution]:
    for name in [name for name in baseline.schemes if name in other.schemes]:
        before, after = baseline.schemes[name], other.schemes[name]
        settings = [
            {"scheme": one.scheme, **one.settings, "keep": _kept(report, name)}
            for report, one in ((baseline, before), (other, after))
        ]
        if settings[0] != settings[1]:
            yield (
                "scheme-settings-differ",
                f"The settings of {name} differ: {_changed(*settings)}.",
                f"Measure both models with the same settings of {name}, unless these are what you compare.",
            )
        batches = baseline.calibration.batch_sequences, other.calibration.batch_sequences
        if before.scheme in _OF_WHOLE_BATCHES and batches[0] != batches[1]:
            yield (
                "batches-differ",
                f"{name} was measured in batches of {batches[0]} and {batches[1]} sequences, and its figures depend on "
                f"that: {_OF_WHOLE_BATCHES[before.scheme]}.",
                "Measure both models with the same --batch-sequences.",
            )
        shares = [None if one.quantised_share is None else f"{one.quantised_share:.0%}" for one in (before, after)]
        if None not in shares and shares[0] != shares[1]:
            yield (
                "quantized-shares-differ",
                f"{name} replaces {shares[0]} and {shares[1]} of the layers' weights.",
                f"Compare the sizes too ({megabytes(before.model_bytes)}, {megabytes(after.model_bytes)}): what is not "
                "replaced adds no error.",
            )


def _kept(report: Report, name: str) -> str:
    """Return the modules that a variant was asked to leave as they are."""
    return ", ".join(next((variant.keep for variant in report.analysis.schemes if variant.name == name), ())) or "none"


def _machine(baseline: Report, other: Report) -> Iterator[Caution]:
    names = {"device", "torch", "transformers", "bitsandbytes"}
    before, after = (report.environment.model_dump(include=names) for report in (baseline, other))
    paths = baseline.environment.kernels, other.environment.kernels
    for scheme in [scheme for scheme in paths[0] if scheme in paths[1]]:
        before[f"kernel of {scheme}"], after[f"kernel of {scheme}"] = paths[0][scheme], paths[1][scheme]
    if before != after:
        yield (
            "environment-differs",
            f"The environments differ, so the last digits may too: {_changed(before, after)}.",
            "Measure both models in one environment if the last digits matter.",
        )


def _changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """Return which values differ: `threshold 6.0 and 0.0`."""
    names = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    return ", ".join(f"{name} {before.get(name, 'absent')} and {after.get(name, 'absent')}" for name in names)
