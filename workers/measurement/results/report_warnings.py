"""What the reader of a report must know of the layers beside their numbers."""

import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping

import numpy as np

from service.contracts.outliers import Outliers
from service.contracts.progress import Warned
from service.contracts.report import MANY_FP16_COLUMNS, Fp16ColumnFacts
from service.contracts.restating import few_sequences
from service.contracts.uncertainty import mean
from workers.measurement.layers.layer_results import LayerFindings
from workers.measurement.layers.sweep_state import SweepState
from workers.measurement.predictions.comparison import Predictions
from workers.measurement.predictions.metrics import by_sequence
from workers.measurement.results.layer_files import LayerFiles
from workers.measurement.runtime.progress import Narrator
from workers.measurement.statistics.backends import replaced
from workers.measurement.statistics.reduction import F64

_LEFT = "left-unquantized"
_HIGHER = "Measure again with higher thresholds of {}"
_INSTEAD = {
    "llm_int8": "Read llm_int8_relative instead, or measure again with a larger {}.magnitude",
    "llm_int8_relative": "Measure again with a larger {}.magnitude",
}
"""What to do about a definition that flags too many dimensions."""


def warn_nonfinite(found: LayerFindings, narrator: Narrator) -> list[Warned]:
    """Say at which sites of a layer values are NaN or infinite, and return what was said."""
    return [
        narrator.warn(
            "nonfinite",
            f"{statistics.nonfinite} values are NaN or infinite and left out of every other figure",
            f"layer {found.layer}, {site.component} {site.port}",
        )
        for site, statistics in found.ranges.items()
        if statistics.nonfinite
    ]


def warn_unquantized(state: SweepState, files: LayerFiles, narrator: Narrator) -> None:
    """Say which schemes change nothing, and what a scheme had to leave as it is."""
    for scheme in state.schemes:
        facts = [files.facts(layer) for layer in range(len(state.decoder.layers))]
        if not any(layer.paths[scheme.name] for layer in facts):
            which = "is not told to keep" if scheme.name in state.kept else "replaces"
            narrator.warn(
                "nothing-quantized",
                f"{type(state.decoder.model).__name__} has no Linear that {scheme.name} {which}, so nothing changes",
                scheme.name,
            )
        where: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
        for number, layer in enumerate(facts):
            for left in layer.left[scheme.name].items():
                where[left].append(number)
        for (module, reason), layers in where.items():
            place = f" in layer{'s' * (len(layers) > 1)} {_ranges(layers)}"
            narrator.warn(_LEFT, f"{module} stays as it is{place}: {reason}", scheme.name)
        for module, reason in state.outside[scheme.name].left.items():
            narrator.warn(_LEFT, f"{module} stays as it is: {reason}", scheme.name)


def warn_guessing(reference_nll: F64, vocabulary: int, narrator: Narrator) -> None:
    """Say so where the reference predicts no better than a guess; reference_nll: [n], nats."""
    finite = reference_nll[np.isfinite(reference_nll)]
    if finite.size and finite.mean() >= math.log(vocabulary):
        narrator.warn(
            "reference-guesses",
            f"the reference predicts the text no better than a guess among {vocabulary} tokens (mean loss "
            f"{finite.mean():.4g} nats, a guess {math.log(vocabulary):.4g}): what a scheme changes in its predictions "
            "does not show what it does to a model that knows the text",
            "reference",
        )


def warn_few_sequences(predictions: Predictions, narrator: Narrator) -> None:
    """Say so where the intervals are not by sequence, because these are too few."""
    finite = np.isfinite(predictions.reference_nll)
    if finite.any():
        found = mean(by_sequence(predictions.reference_nll[finite], predictions.sequence[finite]))
        for warning in few_sequences(found):
            narrator.warn(warning.code, warning.message)


def warn_not_discriminating(outliers: Outliers, hidden_size: int, narrator: Narrator) -> None:
    """Say which definitions flag more than half of the dimensions, and what to read or set instead."""
    for name, found in outliers.present().items():
        if not found.discriminates:
            narrator.warn(
                "not-discriminating",
                f"{name} flags {len(found.dimensions):,} of {hidden_size:,} dimensions, more than half: it does not "
                f"tell outlier dimensions from the others of this model. {_INSTEAD.get(name, _HIGHER).format(name)}",
                name,
            )


def warn_fp16_columns(columns: Mapping[str, Fp16ColumnFacts], narrator: Narrator) -> None:
    """Say where int8 computes so many input columns in 16 bits that it wins little speed."""
    for scheme, facts in columns.items():
        many = {name: share for name, share in facts.components.items() if share >= MANY_FP16_COLUMNS}
        if many:
            shares = ", ".join(f"{share:.0%} of {name}'s" for name, share in many.items())
            keep = ",".join(f"keep={name}" for name in many)
            narrator.warn(
                "fp16-columns",
                f"{scheme} computes {shares} input columns in 16 bits: little of its speed is won here. Give int8 a "
                f"larger threshold (int8:threshold=8), at some cost in accuracy, or leave these modules in 16 bits "
                f"(int8:{keep})",
                scheme,
            )


def warn_replaced(narrator: Narrator) -> None:
    """Say which CUDA kernels did not work, so that plain torch computed their figures."""
    for kernel, why in replaced().items():
        narrator.warn(
            "kernel-replaced",
            f"the CUDA kernel {kernel} does not work on this device, so plain torch computed its figures, which takes "
            f"longer and may change the last digits of sums: {why}",
            kernel,
        )


def _ranges(numbers: Iterable[int]) -> str:
    """Write ascending numbers: `0, 4-7`."""
    runs = (list(run) for _, run in itertools.groupby(enumerate(numbers), lambda pair: pair[1] - pair[0]))
    ends = ((run[0][1], run[-1][1]) for run in runs)
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in ends)
