"""What a scheme does to the model's predictions: perplexity, KL divergence, agreement.

Two models are compared position by position on the same text: P is the reference's distribution over the next
token, Q the scheme's. Log-softmax is float64 over the model's logits; work of the vocabulary's size is done for
a few positions at a time, so memory does not grow with the text.

    n scored positions, V vocabulary
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch

from service.contracts.report import DeltaP, Estimate, KlDivergence, Perplexity

F64 = npt.NDArray[np.float64]

CHUNK_BYTES = 1 << 26
"""Size of one float64 tensor [positions, V]; four or so exist at a time."""


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


def positions_per_chunk(vocabulary: int) -> int:
    """Positions whose logits are held at a time."""
    return max(1, CHUNK_BYTES // (8 * vocabulary))


class Distributions:
    """A model's distributions over the next token, at n positions."""

    def __init__(self, logits: torch.Tensor, next_ids: torch.Tensor) -> None:
        """Form them from logits [n, V], given the true next tokens [n]."""
        self._log_p = torch.log_softmax(logits.double(), dim=-1)
        self._top = logits.max(dim=-1).indices  # the first, where several are; much faster than argmax in bf16
        column = next_ids.to(logits.device).unsqueeze(-1)
        self.negative_log_likelihood: F64 = -self._log_p.gather(-1, column).squeeze(-1).cpu().numpy()
        """[n]: -log P(next token)."""

    def compare(self, scheme: "Distributions") -> Comparison:
        """Hold a scheme's distributions at the same positions against these, the reference's."""
        kl = torch.linalg.vecdot(self._p, self._log_p - scheme._log_p)
        return Comparison(
            nll_reference=self.negative_log_likelihood,
            nll_scheme=scheme.negative_log_likelihood,
            kl_divergence=kl.clamp(min=0).cpu().numpy(),
            same_top=(self._top == scheme._top).cpu().numpy(),
        )

    @cached_property
    def _p(self) -> torch.Tensor:
        return self._log_p.exp()


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
