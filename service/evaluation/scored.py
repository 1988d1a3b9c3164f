"""Reads the scored positions from the rows of table `tokens`, sequence by sequence."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

Rows = Mapping[str, Sequence[Any]]
"""Columns of a table by name, all of one length; a null is None, or NaN in a column of numbers."""

COLUMNS = ("scheme", "sequence", "position", "token_id", "nll_reference", "nll_scheme", "kl_divergence", "same_top")
"""The columns of the table that are read here."""


class Position(NamedTuple):
    """One scored position under one scheme; every figure is finite."""

    kl: float
    """KL divergence from the reference, nats."""
    log_ratio: float
    """Negative log likelihood of the true next token under the scheme less that under the reference."""
    same_top: float
    """1.0 where both give the same most likely token, else 0.0."""
    nll: float
    """Negative log likelihood under the scheme."""
    nll_reference: float


class ScoredSequence(NamedTuple):
    """One calibration sequence under one scheme."""

    token_ids: tuple[int, ...]
    """Of every input position, in order: what the sequence is known by in another report."""
    positions: dict[int, Position]
    """By their places in the sequence; only those with finite predictions under both, in order."""
    nll_reference: tuple[float, ...]
    """Of the positions where the reference's is finite, whatever the scheme's is."""


def scored_sequences(rows: Rows, scheme: str) -> list[ScoredSequence]:
    """Return the sequences in their order; none where the table has no row of the scheme."""
    by_sequence: dict[int, list[tuple[Any, ...]]] = {}
    for name, sequence, *row in zip(*(rows[column] for column in COLUMNS), strict=True):
        if name == scheme:
            by_sequence.setdefault(sequence, []).append(tuple(row))
    return [_sequence(sorted(by_sequence[number], key=lambda row: row[0])) for number in sorted(by_sequence)]


def _sequence(rows: Iterable[tuple[Any, ...]]) -> ScoredSequence:
    token_ids, positions, references = [], {}, []
    for place, token_id, reference, nll, kl, same in rows:
        token_ids.append(int(token_id))
        if not _finite(reference):
            continue
        references.append(float(reference))
        if _finite(nll) and _finite(kl) and _finite(same):
            positions[int(place)] = Position(kl, nll - reference, float(same), nll, reference)
    return ScoredSequence(tuple(token_ids), positions, tuple(references))


def _finite(value: Any) -> bool:
    return value is not None and math.isfinite(value)
