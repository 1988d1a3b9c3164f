"""The part of a report on labeled prompts: the dimensions that separate true from false, under every variant."""

from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import Field

from service.contracts.record import Record
from service.contracts.tables import Column, Table

REFERENCE = "reference"
"""The variant that the schemes are compared with."""


MAX_CHANCE_PROBABILITY = 0.05
"""Largest permutation probability at which a best dimension counts as more than chance."""


class Separation(Record):
    """How well one dimension separates the labels under one variant."""

    spearman_rho: float | None
    """With the score, or with the label as 0 and 1; None where either is constant."""
    auroc: float | None
    """Chance that a true record has the larger value, a tie counted half; None if there is but one label."""


class LabelledDimension(Record):
    """One of the dimensions that separate best under the reference."""

    dimension: int
    reference: Separation
    schemes: dict[str, Separation]


class Labelled(Record):
    """The labeled prompts of a report; the `labelled` table has every record's values."""

    source: str
    fingerprint: Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
    """Over the file's content."""
    records: int
    true_records: int
    given: Literal["label", "score"]
    """What a record came with."""
    threshold: float | None
    """A record is true when its score is larger; None for labels."""
    depth: int | None
    """Layer whose output gave the vectors; None: after the final norm."""
    adds_bos: bool
    """Every prompt begins with the tokenizer's BOS token."""
    ranked_by: Literal["spearman_rho", "auroc"] | None
    """The figure that chose the dimensions: the largest abs(rho), or abs(AUROC - 0.5); None if neither is defined."""
    dimensions: tuple[LabelledDimension, ...]
    """Best first."""
    permutation_probability: float | None = None
    """Probability that the best of all dimensions is at least so good by chance: the share of permutations of the
    labels or scores, the given order among them, whose best dimension is as good as the reference's. None where no
    dimension is ranked, and in earlier reports."""
    permutations: int = 0
    """Random permutations behind it."""

    @property
    def by_chance(self) -> bool:
        """Whether a best dimension as good as this comes by chance more often than MAX_CHANCE_PROBABILITY."""
        return self.permutation_probability is not None and self.permutation_probability > MAX_CHANCE_PROBABILITY


def column_name(variant: str, dimension: int) -> str:
    """Return the name of a column of table `labelled`: `reference_2021`, `int8_2021`."""
    return f"{variant}_{dimension}"


def labelled_table(dimensions: Iterable[int], schemes: Iterable[str]) -> Table:
    """Return the table of every record's label and values: one column for each dimension and variant."""
    variants = (REFERENCE, *schemes)
    return Table(
        "labelled",
        "Labeled prompts: the dimensions that separate best",
        (
            Column("record", "int32", "record, from 0 in the order of the file"),
            Column("label", "bool", "true or false, given or by the score's threshold"),
            Column("score", "float64", "score; null where labels were given"),
            *(
                Column(column_name(v, d), "float32", f"last token's value of dimension {d}: {v}")
                for d in dimensions
                for v in variants
            ),
        ),
    )
