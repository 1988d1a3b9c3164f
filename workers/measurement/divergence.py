"""What a scheme does to the model's predictions: perplexity, KL divergence, agreement.

Two models are compared position by position on the same text: P is the reference's distribution over the next
token, Q the scheme's. What is done for each position over the whole vocabulary is `predictions`' and the kernels' work.

    n scored positions
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from service.contracts.report import DeltaP, Estimate, KlDivergence, Perplexity

F64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Comparison:
    """Two models' predictions of the true next token, and of all others, position by position; [n] each."""

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


def perplexity(nll: F64) -> Perplexity:
    """Return exp(mean nll), with the standard error that follows from the mean's."""
    value = _exp(nll.mean())
    error = standard_error(nll)
    return Perplexity(value=value, standard_error=None if error is None else value * error, scored_tokens=len(nll))


def perplexity_ratio(comparison: Comparison) -> Estimate:
    """Perplexity of the scheme over the reference's; the standard error takes their covariance into account."""
    difference = comparison.nll_scheme - comparison.nll_reference
    value = _exp(difference.mean())
    error = standard_error(difference)
    return Estimate(value=value, standard_error=None if error is None else value * error)


def kl_divergence(kl: F64) -> KlDivergence:
    """Summarise KL(P || Q) per position; quantiles interpolate linearly at f * (n - 1)."""
    median, p90, p95, p99, p99_9 = np.quantile(kl, (0.5, 0.9, 0.95, 0.99, 0.999)).tolist()
    return KlDivergence(
        mean=float(kl.mean()),
        standard_error=standard_error(kl),
        median=median,
        p90=p90,
        p95=p95,
        p99=p99,
        p99_9=p99_9,
        max=float(kl.max()),
    )


def same_top_token(same: npt.NDArray[np.bool_]) -> Estimate:
    """Share of positions with equal argmax; standard error sqrt(p (1 - p) / (n - 1))."""
    p, n = float(same.mean()), len(same)
    return Estimate(value=p, standard_error=math.sqrt(p * (1 - p) / (n - 1)) if n > 1 else None)


def delta_p(comparison: Comparison) -> DeltaP:
    """Change of the true token's probability, Q - P: mean and root mean square."""
    change = np.exp(-comparison.nll_scheme) - np.exp(-comparison.nll_reference)
    return DeltaP(mean=float(change.mean()), rms=float(np.sqrt((change**2).mean())))


def standard_error(values: F64) -> float | None:
    """Standard error of the mean; None for a single value."""
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None


def _exp(x: float) -> float:
    """Exp that ends in the largest float rather than in an error."""
    return math.exp(min(float(x), 709.0))
