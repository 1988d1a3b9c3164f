"""Makes the warnings of a report: conditions that limit what its numbers mean, with advice."""

import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from service.contracts.report import FP16_COLUMNS_WARNING_SHARE, Fp16ColumnFacts
from service.contracts.request import SAMPLE, MeasurementRequest
from service.contracts.schemes import BITSANDBYTES_INT8, Scheme
from service.contracts.sections.outliers import Outliers
from service.contracts.warnings import Warning
from service.evaluation.restating import few_sequences
from service.evaluation.uncertainty import mean
from workers.measurement.inputs.calibration import Calibration
from workers.measurement.layers.layer_results import LayerResults
from workers.measurement.layers.sweep_state import SweepState
from workers.measurement.predictions.comparison import Predictions
from workers.measurement.predictions.metrics import by_sequence
from workers.measurement.results.layer_files import LayerFiles
from workers.measurement.results.overflow import Overflow, overflows
from workers.measurement.runtime.progress import ProgressReporter
from workers.measurement.statistics.backends import replaced
from workers.measurement.statistics.reduction import F64

SHORTEST_SEQUENCES = 16
"""Tokens of a sequence under which no shorter one is proposed."""
NAMED_SITES = 3
"""Sites that a warning names; it counts the others."""
CHECK_WEIGHTS = "Check the model's weights and their type, because these values arise without quantization."

_HIGHER = {
    "llm_int8": "Read llm_int8_relative instead, or rerun with a larger --set llm_int8.magnitude=VALUE.",
    "llm_int8_relative": "Rerun with a larger --set llm_int8_relative.magnitude=VALUE.",
    "massive_tensor": "Rerun with a larger --set massive.magnitude=VALUE or massive.ratio=VALUE.",
    "massive_token": "Rerun with a larger --set massive.magnitude=VALUE or massive.ratio=VALUE.",
    "median_quantile": "Rerun with a larger --set median_quantile.quantile=VALUE.",
    "variance": "Rerun with a larger --set variance.ratio=VALUE.",
}
"""What to do about a definition that flags too many dimensions."""


def warn_calibration(request: MeasurementRequest, calibration: Calibration, reporter: ProgressReporter) -> None:
    """Warn of a text that is shorter than was asked for, and of the bundled text for another model."""
    sequences, length = calibration.token_ids.shape
    tokens, asked = sequences * length, request.sequences
    if sequences < asked:
        shorter = tokens // asked
        rerun = f", or rerun with --sequence-length {shorter}" if shorter >= SHORTEST_SEQUENCES else ""
        reporter.warn(
            "short-calibration",
            f"The calibration text has {_counted(sequences, 'sequence')} of {length:,} tokens, and {asked:,} were "
            f"asked for. The figures are over only {tokens:,} tokens, so their 95% intervals are wider.",
            f"Give a text of {asked * length:,} tokens or more with --calibration FILE{rerun}.",
        )
    if request.calibration.source == SAMPLE != request.model.source:
        reporter.warn(
            "sample-text",
            "The calibration text is the bundled sample: documentation of Python modules, not your traffic.",
            "Give a text of your own with --calibration FILE.",
        )


def warn_unknown_architecture(architecture: str, reporter: ProgressReporter) -> None:
    """Warn that the components of a model carry module names."""
    reporter.warn(
        "unknown-architecture",
        f"Headroom has no component names for {architecture}. Components carry their module names, and "
        "llm_int8 and llm_int8_relative look for no outlier dimensions.",
        "Read the outlier dimensions of the other definitions.",
    )


def warn_nonfinite(results: LayerResults, reporter: ProgressReporter) -> list[Warning]:
    """Warn of every site of a layer with values that are NaN or infinite, and return the warnings."""
    return [
        reporter.warn(
            "nonfinite",
            f"{_counted(statistics.nonfinite, 'value is', 'values are')} NaN or infinite. No other figure of this "
            "site includes them.",
            CHECK_WEIGHTS,
            f"layer {results.layer}, {site.component} {site.port}",
        )
        for site, statistics in results.ranges.items()
        if statistics.nonfinite
    ]


def warn_unquantized(state: SweepState, files: LayerFiles, reporter: ProgressReporter) -> None:
    """Warn of schemes that change nothing, and of the modules that a scheme cannot replace."""
    for scheme in state.schemes:
        facts = [files.facts(layer) for layer in range(len(state.decoder.layers))]
        if not any(layer.paths[scheme.name] for layer in facts):
            _warn_unchanged(scheme.name, type(state.decoder.model).__name__, reporter)
        where: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
        for number, layer in enumerate(facts):
            for left in layer.left[scheme.name].items():
                where[left].append(number)
        for (module, reason), layers in where.items():
            place = f" in layer{'s' * (len(layers) > 1)} {_ranges(layers)}"
            _warn_left(scheme.name, f"{module}{place}", reason, reporter)
        for module, reason in state.outside[scheme.name].left.items():
            _warn_left(scheme.name, module, reason, reporter)


def _warn_unchanged(scheme: str, architecture: str, reporter: ProgressReporter) -> None:
    message = f"{architecture} has no Linear module that {scheme} can replace, so it changes nothing."
    advice = f"Leave {scheme} out, because its figures say nothing about quantization."
    reporter.warn("nothing-quantized", message, advice, scheme)


def _warn_left(scheme: str, module: str, reason: str, reporter: ProgressReporter) -> None:
    message = f"{scheme} cannot quantize {module}: {reason}."
    reporter.warn("left-unquantized", message, "Deploy the model with this module in 16 bits, as it was here.", scheme)


def warn_overflow(state: SweepState, files: LayerFiles, reporter: ProgressReporter) -> None:
    """Warn of the schemes that make values infinite by casting them to fp16."""
    for scheme in state.schemes:
        if overflowing := overflows(scheme, state, files):
            _warn_of_overflows(scheme, overflowing, reporter)


def _warn_of_overflows(scheme: Scheme, overflowing: Sequence[Overflow], reporter: ProgressReporter) -> None:
    worst = max(overflowing, key=lambda one: one.abs_max)
    modules = dict.fromkeys(f"layers.{one.layer}.{name}" for one in overflowing for name in one.components)
    if len(modules) > NAMED_SITES:
        modules = dict.fromkeys(name for one in overflowing for name in one.components)
    if scheme.kernel == BITSANDBYTES_INT8:
        casts, gives, other = "inputs", "NaN", "a threshold over 0 (threshold=6)"
    else:
        casts, gives, other = "inputs and outputs", "infinite or NaN", "compute_dtype=bfloat16"
    reporter.warn(
        "over-fp16",
        f"{scheme.name} casts {casts} to fp16, in which values from 65520 on are infinite. "
        f"{_counted(len(overflowing), 'site has', 'sites have')} such values, up to {worst.abs_max:,.0f} at "
        f"{_place(worst)}. There the outputs of the token are {gives}.",
        f"Rerun with {other}, or keep these modules in 16 bits with {','.join(f'keep={name}' for name in modules)}.",
        f"{scheme.name}: {_some([_place(one) for one in overflowing])}",
    )


def _place(overflow: Overflow) -> str:
    return f"layer {overflow.layer} {overflow.site.component} {overflow.site.port}"


def _some(names: Sequence[str]) -> str:
    more = len(names) - NAMED_SITES
    return ", ".join(names[:NAMED_SITES]) + (f" and {more} more" if more > 0 else "")


def warn_predictions(predictions: Predictions, vocabulary: int, reporter: ProgressReporter) -> None:
    """Warn of whatever limits what the predictions show."""
    for variant, count in predictions.not_finite.items():
        reporter.warn(
            "nonfinite-predictions",
            f"{_counted(count, 'position has a prediction that is', 'positions have predictions that are')} NaN or "
            "infinite. Perplexity and divergence leave them out.",
            CHECK_WEIGHTS if variant == "reference" else f"Do not deploy {variant} as it is: it fails at these tokens.",
            variant,
        )
    warn_guessing(predictions.reference_nll, vocabulary, reporter)
    warn_few_sequences(predictions, reporter)


def warn_guessing(reference_nll: F64, vocabulary: int, reporter: ProgressReporter) -> None:
    """Warn if the reference predicts no better than a guess; reference_nll: [n], nats."""
    finite = reference_nll[np.isfinite(reference_nll)]
    if finite.size and finite.mean() >= math.log(vocabulary):
        reporter.warn(
            "reference-guesses",
            f"The reference predicts the text no better than a guess among {vocabulary:,} tokens: its mean loss is "
            f"{finite.mean():.4g} nats, and that of a guess is {math.log(vocabulary):.4g}. No scheme can be judged.",
            "Give a text that the model can predict with --calibration FILE, or check its weights and tokenizer.",
            "reference",
        )


def warn_few_sequences(predictions: Predictions, reporter: ProgressReporter) -> None:
    """Warn if the intervals are not by sequence, because there are too few."""
    finite = np.isfinite(predictions.reference_nll)
    if finite.any():
        sequences = by_sequence(predictions.reference_nll[finite], predictions.sequence[finite])
        reporter.recall(few_sequences(mean(sequences), len(sequences)))


def warn_not_discriminating(outliers: Outliers, hidden_size: int, reporter: ProgressReporter) -> None:
    """Warn of the definitions that flag more than half of the dimensions."""
    for name, flagged in outliers.present().items():
        if not flagged.discriminates:
            reporter.warn(
                "not-discriminating",
                f"{name} flags {len(flagged.dimensions):,} of {hidden_size:,} dimensions, more than half. It does not "
                "tell outlier dimensions from the others of this model.",
                _HIGHER[name],
                name,
            )


def warn_fp16_columns(
    columns: Mapping[str, Fp16ColumnFacts], thresholds: Mapping[str, float], reporter: ProgressReporter
) -> None:
    """Warn if int8 computes so many input columns in 16 bits that it is hardly faster; both by scheme."""
    for scheme, facts in columns.items():
        many = {name: share for name, share in facts.components.items() if share >= FP16_COLUMNS_WARNING_SHARE}
        if many:
            shares = ", ".join(f"{share:.0%} of {name}'s" for name, share in many.items())
            keep = ",".join(f"keep={name}" for name in many)
            reporter.warn(
                "fp16-columns",
                f"{scheme} computes {shares} input columns in 16 bits. int8 is hardly faster than 16 bits there.",
                f"Rerun with a threshold over {thresholds[scheme]:g}, which costs some accuracy, or keep these modules "
                f"in 16 bits with {keep}.",
                scheme,
            )


def warn_replaced(reporter: ProgressReporter) -> None:
    """Warn of the CUDA kernels that did not work, so that plain torch computed their figures."""
    for kernel, why in replaced().items():
        reporter.warn(
            "kernel-replaced",
            f"The CUDA kernel {kernel} does not work on this device ({why}). Plain torch computed its figures, which "
            "takes longer and can change the last digits of sums.",
            "Use the figures as they are, or update the NVIDIA driver for speed.",
            kernel,
        )


def _counted(count: int, singular: str, plural: str | None = None) -> str:
    return f"{count:,} {singular if count == 1 else plural or f'{singular}s'}"


def _ranges(numbers: Iterable[int]) -> str:
    """Write ascending numbers: `0, 4-7`."""
    runs = (list(run) for _, run in itertools.groupby(enumerate(numbers), lambda pair: pair[1] - pair[0]))
    ends = ((run[0][1], run[-1][1]) for run in runs)
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in ends)
