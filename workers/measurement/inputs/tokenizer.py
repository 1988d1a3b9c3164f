"""Loads the tokenizer of a checkpoint when it is first needed: a file of token ids needs none."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from workers.measurement.errors import BadModel, BadRequest
from workers.measurement.inputs.tokenizer_process import TokenizerProcess


class Tokenizer(Protocol):
    """The interface of a tokenizer that a measurement uses; those of transformers have it."""

    @property
    def bos_token_id(self) -> int | None:
        """Id of the token that begins a text."""

    @property
    def eos_token_id(self) -> int | None:
        """Id of the token that ends a text."""

    def __call__(self, text: str, **options: Any) -> Any:
        """Return an object whose `input_ids` are the text's."""


class Encoded(NamedTuple):
    """A text as tokens."""

    input_ids: NDArray[np.int64]


class LazyTokenizer:
    """The tokenizer in a directory, which a process of its own loads when it is first needed.

    Whatever asks it for something raises BadModel if there is none, or if it fails or takes too much memory or time.
    """

    def __init__(self, path: Path) -> None:
        self._process = TokenizerProcess(path)

    @cached_property
    def _facts(self) -> dict[str, int | None]:
        return self._process.facts()

    @property
    def bos_token_id(self) -> int | None:
        """Id of the token that begins a text."""
        return self._facts["bos"]

    @property
    def eos_token_id(self) -> int | None:
        """Id of the token that ends a text."""
        return self._facts["eos"]

    def __call__(self, text: str, **options: Any) -> Encoded:
        """Return an object whose `input_ids` are the text's."""
        return Encoded(self._process.encode(text, options))

    def decode(self, ids: Sequence[int]) -> str | None:
        """Return the text of some token ids; None where the directory has no tokenizer that can be loaded."""
        try:
            return self._process.decode(ids)
        except BadModel:
            return None

    def close(self) -> None:
        """End the process."""
        self._process.close()


def load_tokenizer(path: Path) -> LazyTokenizer:
    """Return the tokenizer of a checkpoint directory; nothing is read before it is needed.

    A process is forked at once, so call it before the device is in use.
    """
    return LazyTokenizer(path)


def bos_token(tokenizer: Tokenizer, bos: str, vocabulary: int) -> int | None:
    """Return the token id that a text must begin with, or None, for the job's setting `bos`.

    `auto` is what the tokenizer does with a text of its own accord. Raises BadRequest for `always` where the
    tokenizer has no BOS token, and BadModel if its id is not below `vocabulary`.
    """
    token = tokenizer.bos_token_id
    if bos == "always" and token is None:
        raise BadRequest(
            "bos: 'always' is not allowed, because the model's tokenizer has no BOS token; use 'auto' or 'never'"
        )
    if bos == "never" or (bos == "auto" and list(tokenizer("a").input_ids[:1]) != [token]):
        return None
    return _in_embedding(token, vocabulary)


def eos_token(tokenizer: Tokenizer, vocabulary: int) -> int | None:
    """Return the token id that ends a text, or None. Raises BadModel if it is not below `vocabulary`."""
    return _in_embedding(tokenizer.eos_token_id, vocabulary)


def encode(tokenizer: Tokenizer, text: str, vocabulary: int) -> NDArray[np.int64]:
    """Return the token ids of a text, without special tokens.

    Raises BadModel if one is not below `vocabulary`, the rows of the model's embedding.
    """
    ids = np.asarray(tokenizer(text, add_special_tokens=False, verbose=False).input_ids, dtype=np.int64)
    if ids.size:
        _in_embedding(int(ids.max()), vocabulary)
    return ids


def _in_embedding(token: int | None, vocabulary: int) -> int | None:
    if token is not None and token >= vocabulary:
        raise BadModel(f"model: the tokenizer gives the token id {token}, but the embedding has {vocabulary} rows")
    return token
