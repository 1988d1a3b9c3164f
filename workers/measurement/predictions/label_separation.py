"""Ranks hidden dimensions by how well they separate true prompts from false ones, with and without a scheme.

Dimensions are ranked under the reference: by abs(Spearman's rho) with the score, or by abs(AUROC - 0.5) where plain
labels are known. A record whose vector holds NaN or infinity is left out of that variant's figures.

    R records, d dimensions
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.contracts.request import Analysis, LabelledFile
from service.contracts.sections.labelled import (
    REFERENCE,
    Labelled,
    LabelledDimension,
    Separation,
    column_name,
    labelled_table,
)
from service.contracts.tables import Table
from service.contracts.warnings import Warning
from workers.measurement.inputs.labelled_prompts import LabelledRecords
from workers.measurement.statistics.separation import best_by_chance, separation

PERMUTATIONS = 999
"""Random ones, of the labels or scores."""

F32 = NDArray[np.float32]
Finite = Mapping[str, NDArray[np.bool_]]
"""By variant: which records' vectors are finite, [R]."""


class Ranked(NamedTuple):
    """A dimension and its figures; None where one is not defined."""

    dimension: int
    spearman_rho: float | None
    auroc: float | None


@dataclass(frozen=True)
class LabelSeparation:
    """The section of a report on labeled prompts, with its table and its warnings."""

    section: Labelled
    table: Table
    columns: dict[str, NDArray[Any]]
    """Of the table."""
    warnings: tuple[Warning, ...]


def rank_dimensions(vectors: F32, labels: NDArray[np.bool_], scores: NDArray[np.float64] | None) -> list[Ranked]:
    """Return the dimensions that separate, the best first; equal ones in the order of their numbers.

    Args:
        vectors: [R, d], finite.
        labels: [R].
        scores: [R], or None: the labels, as 0 and 1, are what is followed.

    Dimensions that are constant are left out; all are, if the scores, or else the labels, are equal.
    """
    rho, auroc = separation(vectors, labels, labels.astype(np.float64) if scores is None else scores)
    strength = np.abs(auroc - 0.5) if scores is None else np.abs(rho)
    strength = np.where(np.isnan(rho), np.nan, strength)  # rho is not defined where the dimension is constant
    order = np.argsort(-strength, kind="stable")
    return [Ranked(int(d), _number(rho[d]), _number(auroc[d])) for d in order if not np.isnan(strength[d])]


def separate_labels(
    records: LabelledRecords, vectors: Mapping[str, F32], file: LabelledFile, settings: Analysis, *, adds_bos: bool
) -> LabelSeparation:
    """Return the report's section, table and warnings.

    Args:
        records: the labeled prompts.
        vectors: [R, d] by variant: `reference` and the schemes.
        file: where the prompts came from.
        settings: of the job.
        adds_bos: every prompt began with the BOS token.
    """
    finite: Finite = {variant: np.asarray(np.isfinite(x).all(axis=1)) for variant, x in vectors.items()}
    chosen = _best(records, vectors[REFERENCE], finite[REFERENCE])[: settings.label_dimensions]
    figures = {variant: _figures(x, finite[variant], records, chosen) for variant, x in vectors.items()}
    schemes = [variant for variant in vectors if variant != REFERENCE]
    chance = _chance(records, vectors[REFERENCE], finite[REFERENCE], settings.seed)
    section = Labelled(
        source=file.source,
        fingerprint=records.fingerprint,
        records=len(records.prompts),
        true_records=int(records.labels.sum()),
        given="label" if records.scores is None else "score",
        threshold=settings.label_threshold,
        depth=settings.label_depth,
        adds_bos=adds_bos,
        ranked_by=_ranked_by(records) if chosen else None,
        dimensions=tuple(
            LabelledDimension(
                dimension=dimension,
                reference=figures[REFERENCE][place],
                schemes={scheme: figures[scheme][place] for scheme in schemes},
            )
            for place, dimension in enumerate(chosen)
        ),
        permutation_probability=chance,
        permutations=PERMUTATIONS if chance is not None else 0,
    )
    table = labelled_table(chosen, schemes)
    return LabelSeparation(section, table, _columns(records, vectors, chosen), _warnings(records, finite, chosen))


def _ranked_by(records: LabelledRecords) -> Literal["auroc", "spearman_rho"]:
    return "auroc" if records.scores is None else "spearman_rho"


def _best(records: LabelledRecords, x: F32, kept: NDArray[np.bool_]) -> list[int]:
    scores = None if records.scores is None else records.scores[kept]
    return [ranked.dimension for ranked in rank_dimensions(x[kept], records.labels[kept], scores)]


def _chance(records: LabelledRecords, x: F32, kept: NDArray[np.bool_], seed: int) -> float | None:
    """Return the probability that the best dimension is so good by chance."""
    if not kept.any():
        return None
    scores = None if records.scores is None else records.scores[kept]
    return best_by_chance(x[kept], records.labels[kept], scores, PERMUTATIONS, seed)


def _figures(x: F32, kept: NDArray[np.bool_], records: LabelledRecords, dimensions: list[int]) -> list[Separation]:
    """Return the figures of the chosen dimensions under one variant."""
    followed = records.labels.astype(np.float64) if records.scores is None else records.scores
    rho, auroc = separation(x[:, dimensions][kept], records.labels[kept], followed[kept])
    return [Separation(spearman_rho=_number(r), auroc=_number(a)) for r, a in zip(rho, auroc, strict=True)]


def _columns(records: LabelledRecords, vectors: Mapping[str, F32], dimensions: list[int]) -> dict[str, NDArray[Any]]:
    count = len(records.prompts)
    own = {column_name(v, d): x[:, d] for v, x in vectors.items() for d in dimensions}
    scores = np.full(count, np.nan) if records.scores is None else records.scores
    return {"record": np.arange(count), "label": records.labels, "score": scores, **own}


def _warnings(records: LabelledRecords, finite: Finite, chosen: list[int]) -> tuple[Warning, ...]:
    count, true = len(records.prompts), int(records.labels.sum())
    warnings = []
    if true in (0, count):
        labels = f"{'true' if true else 'false'}, so AUROC is not defined."
        both = "Give prompts with both labels, true and false."
        split = "Rerun with a --label-threshold that lies between the scores."
        advice = both if records.scores is None else split
        warnings.append(
            Warning(code="labels-all-equal", message=f"All {count} labeled prompts are {labels}", advice=advice)
        )
    if records.scores is not None and np.ptp(records.scores) == 0:
        message = f"All {count} labeled prompts have the score {records.scores[0]:g}, so rho is not defined."
        warnings.append(Warning(code="scores-all-equal", message=message, advice="Give prompts with different scores."))
    if not chosen:
        message = "No hidden dimension can be ranked, because none varies with the labels or scores."
        advice = "Give prompts that differ at their last token, with different labels or scores."
        warnings.append(Warning(code="labelled-not-ranked", message=message, advice=advice))
    for variant, kept in finite.items():
        if not kept.all():
            message = f"The vectors of {int((~kept).sum())} labeled prompts have NaN or infinity. They are left out."
            advice = f"Read the figures of {variant} as those of the other {int(kept.sum())} prompts."
            warnings.append(Warning(code="nonfinite-labelled", message=message, advice=advice, where=variant))
    return tuple(warnings)


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
