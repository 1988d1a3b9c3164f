"""What a report says of labelled prompts: which hidden dimensions tell true from false, and what schemes do to that."""

from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import Field

from service.contracts.record import Record
from service.contracts.tables import Column, Table

REFERENCE = "reference"
"""The variant that the schemes are held against."""


class Separation(Record):
    """How one dimension goes with the labels under one variant."""

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
    """The labelled prompts of a report; the `labelled` table has every record's values."""

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


def column_name(variant: str, dimension: int) -> str:
    """Return the name of a column of table `labelled`: `reference_2021`, `int8_2021`."""
    return f"{variant}_{dimension}"


def labelled_table(dimensions: Iterable[int], schemes: Iterable[str]) -> Table:
    """Return the table of every record's label and values: one column for each dimension and variant."""
    variants = (REFERENCE, *schemes)
    return Table(
        "labelled",
        "Labelled prompts: the dimensions that separate best",
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
