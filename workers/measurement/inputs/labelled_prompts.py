"""Reads labeled prompts: JSON Lines, {"prompt", "label"} or {"prompt", "score"}, one kind in a file.

R records
"""

import hashlib
import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.contracts.request import LabelledFile
from workers.measurement.errors import BadLabelled, BadRequest, shown
from workers.measurement.inputs.input_files import Refuse, read_json_lines, refuser

MIN_RECORDS = 2
"""Records below which there are no two groups to separate."""


@dataclass(frozen=True)
class LabelledRecords:
    """The records of a file, in its order."""

    prompts: tuple[str, ...]
    labels: NDArray[np.bool_]
    """[R]: those of the file, or by the threshold."""
    scores: NDArray[np.float64] | None
    """[R]; None where the file has labels."""
    lines: tuple[int, ...]
    """Line of every record in the file, from 1."""
    fingerprint: str
    """`sha256:...` over the file's content."""


class _Record(NamedTuple):
    line: int
    prompt: str
    kind: Literal["label", "score"]
    value: float
    """The score, or the label as 0 and 1."""


def read_labelled(file: LabelledFile, threshold: float | None) -> LabelledRecords:
    """Read labeled prompts.

    Args:
        file: says where they lie.
        threshold: a record with a score is true when its score is larger; required for scores, and for them alone.

    Raises:
        BadLabelled: naming the line and the field, or there are fewer than two records.
        BadRequest: the threshold is missing, or there is no score for it.
    """
    refuse = refuser(BadLabelled, "labelled", file)
    records: list[_Record] = []
    for line, fields in read_json_lines(file.path, refuse):
        record = _record(fields, line, refuse)
        if records and record.kind != records[0].kind:
            first = f"line {records[0].line} has a {records[0].kind!r}"
            raise refuse(f"line {line}: it has a {record.kind!r}, but {first}; a file must have one kind only")
        records.append(record)
    if len(records) < MIN_RECORDS:
        raise refuse(f"holds {len(records)} records; at least {MIN_RECORDS} are needed")
    values = np.asarray([record.value for record in records])
    has_scores = records[0].kind == "score"
    return LabelledRecords(
        prompts=tuple(record.prompt for record in records),
        labels=values > _threshold(threshold, has_scores=has_scores),
        scores=values if has_scores else None,
        lines=tuple(record.line for record in records),
        fingerprint=f"sha256:{hashlib.sha256(file.path.read_bytes()).hexdigest()}",
    )


def _record(fields: dict[str, Any], line: int, refuse: Refuse) -> _Record:
    prompt = fields.get("prompt")
    if not isinstance(prompt, str) or not prompt:
        raise refuse(f"line {line}: 'prompt' is {shown(prompt)}; text is needed")
    if any("\ud800" <= character <= "\udfff" for character in prompt):
        raise refuse(f"line {line}: 'prompt' has half of a surrogate pair, which is not valid text")
    kinds = [kind for kind in ("label", "score") if kind in fields]
    if kinds == ["label"]:
        return _Record(line, prompt, "label", _truth(fields["label"], line, refuse))
    if kinds == ["score"]:
        return _Record(line, prompt, "score", _number(fields["score"], line, refuse))
    has = "both 'label' and 'score'" if kinds else "neither 'label' nor 'score'"
    raise refuse(f"line {line}: it has {has}; one of them is needed")


def _truth(value: object, line: int, refuse: Refuse) -> float:
    if not isinstance(value, bool):
        raise refuse(f"line {line}: 'label' is {shown(value)}; true or false is needed")
    return float(value)


def _number(value: object, line: int, refuse: Refuse) -> float:
    try:
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(number := float(value)):
            return number
    except OverflowError:  # an integer beyond float64
        pass
    raise refuse(f"line {line}: 'score' is {shown(value)}; a finite number is needed")


def _threshold(threshold: float | None, *, has_scores: bool) -> float:
    """Return the number above which a record's value makes it true."""
    if has_scores and threshold is None:
        raise BadRequest(
            "label_threshold: it is missing; the labeled prompts have scores, and a prompt is true when its score is "
            "larger than the threshold"
        )
    if not has_scores and threshold is not None:
        raise BadRequest(f"label_threshold: {threshold} is not allowed; the labeled prompts have labels, not scores")
    return 0.5 if threshold is None else threshold
