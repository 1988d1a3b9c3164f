"""Compares the predictions of every scheme with the reference's, from their last hidden states.

N sequences of S tokens; d hidden dimensions; V vocabulary
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from workers.measurement.layers.streams import REFERENCE
from workers.measurement.layers.sweep_state import SweepState
from workers.measurement.models.decoder import Decoder
from workers.measurement.predictions.metrics import Comparison
from workers.measurement.runtime.memory import return_pages
from workers.measurement.runtime.progress import StageProgress
from workers.measurement.runtime.table_writer import Repeated, TableWriter
from workers.measurement.statistics.backends import compare_logits, replaced, score_logits
from workers.measurement.statistics.transfers import HostCopies

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

LOGIT_BYTES = {"cpu": 1 << 26, "cuda": 1 << 29}
"""Size of one variant's logits at a time: enough positions for the head's matrix product to run at full speed."""


@dataclass(frozen=True)
class Predictions:
    """Every scored position, in the order of the text."""

    reference_nll: F64
    """[n]: the reference's negative log likelihood of the true next token."""
    sequence: I64
    """[n]: which sequence each position is of; ascending."""
    comparisons: dict[str, Comparison]
    """By scheme."""

    @property
    def not_finite(self) -> dict[str, int]:
        """The number of positions without a finite prediction, where there are any: by scheme and for `reference`."""
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
    table: TableWriter | None = None,
    progress: StageProgress | None = None,
) -> Predictions:
    """Score every position from `first` on, and write the `tokens` table if there is one.

    Args:
        state: after the last layer.
        token_ids: [N, S].
        first: first scored position of each sequence.
        table: takes one row per position and scheme.
        progress: gets the number of sequences done, after each.
    """
    schemes = [scheme.name for scheme in state.schemes]
    collected = _Collected(schemes, table, first)
    copies = HostCopies(state.decoder.device)
    step = positions_per_chunk(state.decoder)
    number = 0
    for batch, measured in enumerate(state.measured):
        scorers = {name: state.scorer(name, state.streams.get(name, batch)) for name in (REFERENCE, *schemes)}
        for sequence in range(len(measured.token_ids)):
            ids, logits = token_ids[number], {name: partial(scorer, sequence) for name, scorer in scorers.items()}
            figures = _score_sequence(logits, ids, first, step)
            copies.add(figures, partial(collected.take, number, ids))
            copies.next_batch()
            number += 1
            if progress is not None:
                progress.done(number)
            state.pages.check()
    copies.finish()
    return_pages()
    return collected.predictions()


def positions_per_chunk(decoder: Decoder) -> int:
    """Positions whose logits are held at a time: two variants' are."""
    of_position: int = decoder.config.vocab_size * decoder.dtype.itemsize
    room = LOGIT_BYTES[decoder.device.type]
    if "compare_logits" in replaced():  # plain torch holds several float64 tensors of them
        room //= 16
    return max(1, room // of_position)


def _score_sequence(
    logits_of: Mapping[str, Callable[[slice], torch.Tensor]], ids: torch.Tensor, first: int, step: int
) -> list[torch.Tensor]:
    """Score a sequence [S], `step` positions at a time, with what gives each variant's logits.

    Returns the reference's negative log likelihood, [n], and for every scheme its own, its KL divergence and whether
    the most likely token is the same, [3, n]; float64, on the device.
    """
    parts: list[list[torch.Tensor]] = [[] for _ in logits_of]
    for start in range(first, len(ids) - 1, step):
        chunk = slice(start, min(start + step, len(ids) - 1))
        reference = logits_of[REFERENCE](chunk)
        next_ids = ids[chunk.start + 1 : chunk.stop + 1].to(reference.device, non_blocking=True)
        log_sum_exp, top, own = score_logits(reference, next_ids)
        parts[0].append(log_sum_exp - own)
        for name, of_scheme in zip([name for name in logits_of if name != REFERENCE], parts[1:], strict=True):
            figures = compare_logits(reference, log_sum_exp, logits_of[name](chunk), next_ids)
            # Rounding can leave a divergence of nothing a little below 0.
            of_scheme.append(
                torch.stack([figures[0] - figures[2], figures[3].clamp(min=0), (figures[1] == top).double()])
            )
    return [torch.cat(part, dim=-1) for part in parts]


class _Collected:
    """The figures of the sequences so far."""

    def __init__(self, schemes: Sequence[str], table: TableWriter | None, first: int) -> None:
        self._table = table
        self._first = first
        self._reference_nll: list[F64] = []
        self._sequence: list[I64] = []
        self._comparisons: dict[str, list[Comparison]] = {name: [] for name in schemes}

    def take(self, number: int, ids: torch.Tensor, reference_nll: F64, *of_schemes: F64) -> None:
        """Keep a sequence's figures, [n] and [3, n] each, and write its rows of the table."""
        reference_nll, sequence = reference_nll.copy(), np.full(len(reference_nll), number)
        self._reference_nll.append(reference_nll)
        self._sequence.append(sequence)
        for (name, comparisons), (nll, kl, same) in zip(self._comparisons.items(), of_schemes, strict=True):
            comparison = Comparison(sequence, reference_nll, nll.copy(), kl.copy(), same > 0)
            comparisons.append(comparison)
            if self._table is not None:
                self._table.append(_token_columns(name, number, ids, self._first, comparison))

    def predictions(self) -> Predictions:
        """Return the figures of all sequences."""
        joined = {name: _joined(parts) for name, parts in self._comparisons.items()}
        return Predictions(np.concatenate(self._reference_nll), np.concatenate(self._sequence), joined)


def _joined(parts: list[Comparison]) -> Comparison:
    fields = zip(*(vars(part).values() for part in parts), strict=True)
    return Comparison(*(np.concatenate(field) for field in fields))


def _token_columns(scheme: str, sequence: int, ids: torch.Tensor, first: int, comparison: Comparison) -> dict[str, Any]:
    length, finite = len(ids), comparison.finite
    scored = slice(first, first + len(finite))

    def spread(values: F64) -> F64:
        """Put the scored positions' values in place; NaN, which is written as null, elsewhere."""
        column = np.full(length, np.nan)
        column[scored] = values
        return column

    same_top = np.full(length, None)
    same_top[scored][finite] = comparison.same_top[finite]
    return {
        "scheme": Repeated(scheme, length),
        "sequence": Repeated(sequence, length),
        "position": np.arange(length),
        "token_id": ids.numpy(),
        "nll_reference": spread(comparison.nll_reference),
        "nll_scheme": spread(comparison.nll_scheme),
        "kl_divergence": spread(np.where(finite, comparison.kl_divergence, np.nan)),
        "same_top": same_top,
    }
