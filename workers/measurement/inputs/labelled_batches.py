"""Puts labeled prompts into batches of token ids without padding: prompts of equal length go together.

R records; B prompts of S tokens in a batch
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from service.contracts.request import LabelledFile
from workers.measurement.errors import BadLabelled
from workers.measurement.inputs.input_files import refuser
from workers.measurement.inputs.labelled_prompts import LabelledRecords
from workers.measurement.inputs.tokenizer import Tokenizer, encode


@dataclass(frozen=True)
class LabelledBatch:
    """Prompts of one length."""

    token_ids: torch.Tensor
    """[B, S], int64."""
    record_indices: NDArray[np.int64]
    """[B], which records these are, from 0."""


def labelled_batches(
    records: LabelledRecords,
    file: LabelledFile,
    tokenizer: Tokenizer,
    *,
    bos: int | None,
    vocabulary: int,
    longest: int | None,
    batch_tokens: int,
) -> list[LabelledBatch]:
    """Tokenize the prompts, and put those of equal length together, the shortest first.

    Args:
        records: the prompts.
        file: which they came from, for errors.
        tokenizer: of the model.
        bos: token id that every prompt begins with, from `bos_token`; None for none.
        vocabulary: rows of the model's embedding; every token id must be below.
        longest: most tokens that the model takes; None for any number.
        batch_tokens: most tokens in a batch; a prompt that is longer is a batch of its own.

    Raises:
        BadLabelled: a prompt has no tokens, or more than the model takes; names its line.
        BadModel: the tokenizer gives ids that the model's embedding lacks.
    """
    refuse = refuser(BadLabelled, "labelled", file)
    by_length: dict[int, list[tuple[int, NDArray[np.int64]]]] = defaultdict(list)
    for index, (prompt, line) in enumerate(zip(records.prompts, records.lines, strict=True)):
        ids = encode(tokenizer, prompt, vocabulary)
        if not ids.size:
            raise refuse(f"line {line}: 'prompt' has no tokens")
        if bos is not None:
            ids = np.concatenate([[bos], ids])
        if longest is not None and ids.size > longest:
            raise refuse(f"line {line}: 'prompt' has {ids.size} tokens; the model takes at most {longest}")
        by_length[ids.size].append((index, ids))
    return [batch for length, prompts in sorted(by_length.items()) for batch in _split(prompts, batch_tokens // length)]


def _split(prompts: Sequence[tuple[int, NDArray[np.int64]]], most: int) -> Iterator[LabelledBatch]:
    """Yield batches of at most `most` prompts, or 1, of equal length; prompts: record index and token ids [S]."""
    size = max(1, most)
    for start in range(0, len(prompts), size):
        indices, ids = zip(*prompts[start : start + size], strict=True)
        yield LabelledBatch(torch.from_numpy(np.stack(ids)), np.asarray(indices))
