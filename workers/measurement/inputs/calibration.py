"""Packs calibration text into full sequences of tokens.

Documents are tokenized one by one and laid end to end, with the tokenizer's EOS token between two of them where it
has one; token ids in the file are laid end to end as they are. The whole is cut into windows of equal length, so
there is no padding anywhere, and a seeded draw chooses windows. Where the job's `bos` setting says so, every
sequence of text begins with the BOS token.

The ids lie in a temporary file, so that memory holds a piece of the text and the sequences drawn, whatever the
text's size. A plain text of more than a piece is tokenized in pieces, cut at the ends of lines.

    N sequences, S tokens each
"""

import hashlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import IO, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from service.contracts.request import MeasurementRequest
from workers.measurement.errors import BadCalibration, BadRequest
from workers.measurement.inputs.documents import Piece, read_documents
from workers.measurement.inputs.input_files import refuser
from workers.measurement.inputs.tokenizer import Tokenizer, bos_token, encode, eos_token

_ID = np.dtype("<i4")
"""How a token id lies in the temporary file."""


@dataclass(frozen=True)
class Calibration:
    """Token ids to run through a model."""

    token_ids: torch.Tensor
    """[N, S], int64."""
    adds_bos: bool
    """Every sequence begins with the tokenizer's BOS token, put there. False for token ids, used unchanged."""
    fingerprint: str
    """`sha256:...` over the token ids as little-endian int64, row by row."""
    documents: int
    """Documents that held a token or more."""
    separator: int | None
    """Token id put between two documents: the tokenizer's EOS; None where nothing was put."""
    held_out: torch.Tensor | None = None
    """As many other sequences of the same text, [N, S], for what a recommendation is measured on; None without one."""


class _Joined(NamedTuple):
    """Documents laid end to end in a file of token ids."""

    tokens: int
    documents: int
    bos: int | None
    separator: int | None


def calibrate(request: MeasurementRequest, tokenizer: Tokenizer, vocabulary: int) -> Calibration:
    """Cut the request's calibration text into sequences.

    Args:
        request: names the file and says how many sequences of what length, the seed, and the BOS setting.
        tokenizer: of the model; asked for nothing if the file holds token ids.
        vocabulary: rows of the model's embedding; every token id must be below.

    Raises:
        BadCalibration: the file cannot be read, is not what its name says, or is shorter than one sequence; or, where
            a mix is to be recommended, than twice the sequences.
        BadRequest: `bos` is `always`, and there is no BOS token, or the file holds token ids.
        BadModel: there is no tokenizer, or it gives ids that the model's embedding lacks.
    """
    pieces = read_documents(request.calibration, request.text_field, vocabulary)
    with tempfile.TemporaryFile() as file:
        joined = _join(pieces, request.bos, tokenizer, vocabulary, file)
        sequences, *others = _draw(file, joined, request)
    digest = hashlib.sha256(np.ascontiguousarray(sequences, dtype="<i8").tobytes()).hexdigest()
    return Calibration(
        token_ids=torch.from_numpy(sequences),
        adds_bos=joined.bos is not None,
        fingerprint=f"sha256:{digest}",
        documents=joined.documents,
        separator=joined.separator,
        held_out=torch.from_numpy(others[0]) if others else None,
    )


def _join(pieces: Iterator[Piece], bos: str, tokenizer: Tokenizer, vocabulary: int, file: IO[bytes]) -> _Joined:
    """Write the documents' token ids to a file, end to end; a document without any is passed over."""
    first = next(pieces)  # there is one: an empty file has been refused
    has_ids = not isinstance(first.content, str)
    if has_ids and bos == "always":
        raise BadRequest(
            "bos: 'always' is not allowed, because the calibration file holds token ids, which are used unchanged"
        )
    begin = end = None
    if not has_ids:
        begin, end = bos_token(tokenizer, bos, vocabulary), eos_token(tokenizer, vocabulary)
    separator = np.asarray([] if end is None else [end], dtype=_ID)
    tokens = documents = latest = 0
    for piece in chain([first], pieces):
        ids = _ids(piece.content, tokenizer, vocabulary)
        if not ids.size:
            continue
        if piece.document != latest:
            if documents:
                ids = np.concatenate([separator, ids])
            documents, latest = documents + 1, piece.document
        file.write(ids.tobytes())
        tokens += ids.size
    file.flush()
    return _Joined(tokens, documents, begin, end if documents > 1 else None)


def _ids(content: str | list[int], tokenizer: Tokenizer, vocabulary: int) -> NDArray[np.int32]:
    """Return a piece's token ids as they lie in the file."""
    return np.asarray(encode(tokenizer, content, vocabulary) if isinstance(content, str) else content, dtype=_ID)


def _draw(file: IO[bytes], joined: _Joined, request: MeasurementRequest) -> list[NDArray[np.int64]]:
    """Return the sequences that the seed chooses, in the order in which they stand in the text, [N, S].

    Where a mix is to be recommended, the next ones that it chooses follow, [N, S].
    """
    length = request.sequence_length - (joined.bos is not None)
    windows = joined.tokens // length
    groups = 2 if request.recommend.enabled else 1
    if windows == 0 or (groups > 1 and windows < groups * request.sequences):
        needed, why = length, "one sequence"
        if groups > 1:
            needed = groups * request.sequences * length
            why = f"the {request.sequences} sequences and {request.sequences} held-out ones that recommend needs"
        raise refuser(BadCalibration, "calibration", request.calibration)(
            f"has {joined.tokens} tokens, fewer than {why}; at least {needed} are needed for "
            f"sequence_length={request.sequence_length}"
        )
    order = np.random.default_rng(request.seed).permutation(windows)
    ids = np.memmap(file, dtype=_ID, mode="r", shape=(windows, length))
    chosen = (np.sort(order[group * request.sequences :][: request.sequences]) for group in range(groups))
    return [_with_bos(np.asarray(ids[places], dtype=np.int64), joined.bos) for places in chosen]


def _with_bos(sequences: NDArray[np.int64], bos: int | None) -> NDArray[np.int64]:
    if bos is None:
        return sequences
    return np.column_stack([np.full(len(sequences), bos), sequences])
