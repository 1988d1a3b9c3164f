"""Computes a scheme's effect on the model's predictions: perplexity, KL divergence, agreement.

Two models are compared position by position on the same text: P is the reference's distribution over the next
token, Q the scheme's. What is done for each position over the whole vocabulary is `comparison`'s and the kernels' work.
Errors are by sequence, as `service.evaluation.uncertainty` says.

    n scored positions
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from service.contracts.report import DeltaP, Estimate, KlDivergence, Perplexity, Uncertain
from service.evaluation.uncertainty import mean, mean_exp

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Comparison:
    """Two models' predictions of the true next token, and of all others, position by position; [n] each."""

    sequence: I64
    """Which sequence the position is of; ascending."""
    nll_reference: F64
    nll_scheme: F64
    kl_divergence: F64
    same_top: npt.NDArray[np.bool_]

    @property
    def finite(self) -> npt.NDArray[np.bool_]:
        """[n]: where both models predict finite probabilities."""
        return np.isfinite(self.nll_reference) & np.isfinite(self.nll_scheme) & np.isfinite(self.kl_divergence)

    def where_finite(self) -> "Comparison":
        """Return the comparison at the positions where both models predict finite probabilities."""
        finite = self.finite
        return Comparison(*(values[finite] for values in vars(self).values()))


def perplexity(nll: F64, sequence: I64) -> Perplexity:
    """Return exp(mean nll); nll, sequence: [n]."""
    estimate = mean_exp(by_sequence(nll, sequence))
    return Perplexity(**estimate.model_dump(), scored_tokens=len(nll))


def perplexity_ratio(comparison: Comparison) -> Estimate:
    """Perplexity of the scheme over the reference's, from the differences position by position."""
    return mean_exp(by_sequence(comparison.nll_scheme - comparison.nll_reference, comparison.sequence))


def kl_divergence(comparison: Comparison) -> KlDivergence:
    """Summarize KL(P || Q) per position; quantiles interpolate linearly at f * (n - 1)."""
    kl = comparison.kl_divergence
    estimate = mean(by_sequence(kl, comparison.sequence))
    median, p90, p95, p99, p99_9 = np.quantile(kl, (0.5, 0.9, 0.95, 0.99, 0.999)).tolist()
    return KlDivergence(
        mean=estimate.value,
        median=median,
        p90=p90,
        p95=p95,
        p99=p99,
        p99_9=p99_9,
        max=float(kl.max()),
        **estimate.model_dump(include=set(Uncertain.model_fields)),
    )


def same_top_token(comparison: Comparison) -> Estimate:
    """Share of positions with equal argmax."""
    return mean(by_sequence(comparison.same_top.astype(np.float64), comparison.sequence))


def delta_p(comparison: Comparison) -> DeltaP:
    """Change of the true token's probability, Q - P: mean and root mean square."""
    change = np.exp(-comparison.nll_scheme) - np.exp(-comparison.nll_reference)
    return DeltaP(mean=float(change.mean()), rms=float(np.sqrt((change**2).mean())))


def by_sequence(values: F64, sequence: I64) -> list[list[float]]:
    """Return the values of each sequence that has any; values, sequence: [n], the sequences ascending."""
    starts = np.flatnonzero(np.diff(sequence)) + 1
    return [part.tolist() for part in np.split(values, starts)]
