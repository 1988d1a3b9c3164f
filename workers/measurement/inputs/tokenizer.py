"""Loads the tokenizer of a checkpoint when it is first needed: a file of token ids needs none."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from transformers import AutoTokenizer

from workers.measurement.errors import BadModel, BadRequest, first_line


class Tokenizer(Protocol):
    """What a measurement asks of a tokenizer; those of transformers give it."""

    @property
    def bos_token_id(self) -> int | None:
        """Id of the token that begins a text."""

    @property
    def eos_token_id(self) -> int | None:
        """Id of the token that ends a text."""

    def __call__(self, text: str, **options: Any) -> Any:
        """Return an object whose `input_ids` are the text's."""


class LazyTokenizer:
    """The tokenizer in a directory. Whatever asks it for something raises BadModel if there is none."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @cached_property
    def _loaded(self) -> Any:
        try:
            return AutoTokenizer.from_pretrained(self._path, local_files_only=True, trust_remote_code=False)
        except Exception as error:  # tokenizer files fail in as many ways as there are tokenizers
            raise BadModel(f"model: {self._path} has no tokenizer that can be loaded: {first_line(error)}") from error

    @property
    def bos_token_id(self) -> int | None:
        """Id of the token that begins a text."""
        token_id: int | None = self._loaded.bos_token_id
        return token_id

    @property
    def eos_token_id(self) -> int | None:
        """Id of the token that ends a text."""
        token_id: int | None = self._loaded.eos_token_id
        return token_id

    def __call__(self, text: str, **options: Any) -> Any:
        """Return an object whose `input_ids` are the text's."""
        return self._loaded(text, **options)

    def decode(self, ids: Sequence[int]) -> str | None:
        """Return the text of some token ids; None where the directory has no tokenizer that can be loaded."""
        try:
            text: str = self._loaded.decode(ids)
        except BadModel:
            return None
        return text


def load_tokenizer(path: Path) -> LazyTokenizer:
    """Return the tokenizer of a checkpoint directory; nothing is read before it is needed."""
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
