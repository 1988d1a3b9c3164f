"""Compares the predictions of every scheme with the reference's, from their last hidden states.

N sequences of S tokens; d hidden dimensions; V vocabulary
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import torch

from workers.measurement.divergence import Comparison, Distributions, positions_per_chunk
from workers.measurement.memory import return_pages
from workers.measurement.progress import StageProgress
from workers.measurement.results.tables import TableWriter
from workers.measurement.state import SweepState
from workers.measurement.streams import REFERENCE

F64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Predictions:
    """Every scored position, in the order of the text."""

    reference_nll: F64
    """[n]: the reference's negative log likelihood of the true next token."""
    comparisons: dict[str, Comparison]
    """By scheme."""

    @property
    def not_finite(self) -> dict[str, int]:
        """How many positions have no finite prediction, by scheme and for the `reference`; none that has none."""
        counts = {"reference": int((~np.isfinite(self.reference_nll)).sum())}
        counts |= {name: int((~comparison.finite).sum()) for name, comparison in self.comparisons.items()}
        return {name: count for name, count in counts.items() if count}


def first_scored(score: str, length: int) -> int:
    """First position of a sequence whose next token is scored; the last position has none."""
    return min(length // 2, length - 2) if score == "second_half" else 0


def compare_predictions(
    state: SweepState,
    token_ids: torch.Tensor,
    first: int,
    table: TableWriter,
    progress: StageProgress,
) -> Predictions:
    """Score every position from `first` on, and write the `tokens` table.

    Args:
        state: after the last layer.
        token_ids: [N, S].
        first: first scored position of each sequence.
        table: takes one row per position and scheme.
        progress: is told of every sequence.
    """
    reference_nll: list[F64] = []
    schemes = [scheme.name for scheme in state.schemes]
    found: dict[str, list[Comparison]] = {name: [] for name in schemes}
    number = 0
    for batch, measured in enumerate(state.measured):
        scorers = {name: state.scorer(name, state.streams.get(name, batch)) for name in (REFERENCE, *schemes)}
        for sequence in range(len(measured.token_ids)):
            ids, score = token_ids[number], {name: partial(scorer, sequence) for name, scorer in scorers.items()}
            nll, comparisons = _score_sequence(score, ids, first, positions_per_chunk(state.decoder.config.vocab_size))
            reference_nll.append(nll)
            for name, comparison in comparisons.items():
                found[name].append(comparison)
                table.append(_token_columns(name, number, ids, first, comparison))
            number += 1
            progress.done(number)
            state.pages.check()
    return_pages()
    return Predictions(np.concatenate(reference_nll), {name: _joined(parts) for name, parts in found.items()})


def _score_sequence(
    score: Mapping[str, Callable[[slice], torch.Tensor]], ids: torch.Tensor, first: int, step: int
) -> tuple[F64, dict[str, Comparison]]:
    """Score a sequence [S], `step` positions at a time, with what gives each variant's logits."""
    nll: list[F64] = []
    found: dict[str, list[Comparison]] = {name: [] for name in score if name != REFERENCE}
    for start in range(first, len(ids) - 1, step):
        chunk = slice(start, min(start + step, len(ids) - 1))
        next_ids = ids[chunk.start + 1 : chunk.stop + 1]
        reference = Distributions(score[REFERENCE](chunk), next_ids)
        nll.append(reference.negative_log_likelihood)
        for name, comparisons in found.items():
            comparisons.append(reference.compare(Distributions(score[name](chunk), next_ids)))
    return np.concatenate(nll), {name: _joined(parts) for name, parts in found.items()}


def _joined(parts: list[Comparison]) -> Comparison:
    return Comparison(
        nll_reference=np.concatenate([part.nll_reference for part in parts]),
        nll_scheme=np.concatenate([part.nll_scheme for part in parts]),
        kl_divergence=np.concatenate([part.kl_divergence for part in parts]),
        same_top=np.concatenate([part.same_top for part in parts]),
    )


def _token_columns(
    scheme: str, sequence: int, ids: torch.Tensor, first: int, comparison: Comparison
) -> dict[str, list[object]]:
    length = len(ids)

    same_top = [same if finite else None for same, finite in zip(comparison.same_top, comparison.finite, strict=True)]

    def spread(values: Iterable[object]) -> list[object]:
        """Put the scored positions' values in place; None elsewhere."""
        return [None] * first + list(values) + [None] * (length - first - len(same_top))

    return {
        "scheme": [scheme] * length,
        "sequence": [sequence] * length,
        "position": list(range(length)),
        "token_id": ids.tolist(),
        "nll_reference": spread(comparison.nll_reference.tolist()),
        "nll_scheme": spread(comparison.nll_scheme.tolist()),
        "kl_divergence": spread(comparison.kl_divergence.tolist()),
        "same_top": spread(same_top),
    }
