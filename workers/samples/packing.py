"""Training sequences: pieces of text and statements in random order, laid end to end and cut to one length.

Every sequence begins with the beginning-of-sequence token, as every text does that the tokenizer encodes. A piece
of text is at most one sequence long, so that statements, which are short, stand among text and often right after
such a token, where a labeled prompt has them.
"""

import random
from collections.abc import Iterator, Sequence
from itertools import chain, count, islice

import torch
from transformers import PreTrainedTokenizerFast

from workers.samples.statements import training_statements

STATEMENTS_TOGETHER = 4
"""Statements in one piece at most."""
STATEMENT_TOKENS = 10
"""Tokens of a usual statement with its share of the special tokens; only sets how many statements are drawn."""


def training_sequences(
    tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], *, length: int, statement_share: float, seed: int
) -> Iterator[torch.Tensor]:
    """Sequences [length] of int64 token ids without end; each round over the texts has an order of its own.

    Args:
        tokenizer: gives the ids of the texts and of the special tokens.
        texts: documents.
        length: tokens in a sequence.
        statement_share: about this share of all tokens comes from generated statements.
        seed: fixes the order and the statements.
    """
    begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    text_pieces = [piece for ids in encode(tokenizer, texts) for piece in cut([*ids, end], length - 1)]
    statements = training_statements(seed)
    text_tokens = sum(map(len, text_pieces))
    drawn = round(text_tokens * statement_share / (1 - statement_share) / STATEMENT_TOKENS)
    for epoch in count():
        rng = random.Random(f"{seed} {epoch}")
        sentences = iter([statement.text for statement in islice(statements, drawn)])
        groups = []
        while group := list(islice(sentences, rng.randint(1, STATEMENTS_TOGETHER))):
            groups.append("\n".join(group))
        pieces = text_pieces + [[*ids, end] for ids in encode(tokenizer, groups)]
        rng.shuffle(pieces)
        stream = chain.from_iterable([begin, *piece] for piece in pieces)
        # The last sequence of a round may be short; it is left out.
        while len(rest := list(islice(stream, length - 1))) == length - 1:
            yield torch.tensor([begin, *rest])


def encode(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text, without special tokens."""
    return [encoding.ids for encoding in tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False)]


def cut(ids: Sequence[int], length: int) -> list[Sequence[int]]:
    """The ids in pieces of `length`; the last may be shorter."""
    return [ids[start : start + length] for start in range(0, len(ids), length)]


def evaluation_sequences(tokenizer: PreTrainedTokenizerFast, text: str, length: int) -> torch.Tensor:
    """The text as sequences [N, length], each with the beginning-of-sequence token first; an incomplete one is dropped.

    Raises:
        ValueError: the text does not fill one sequence.
    """
    (ids,) = encode(tokenizer, [text])
    pieces = [[tokenizer.bos_token_id, *piece] for piece in cut(ids, length - 1) if len(piece) == length - 1]
    if not pieces:
        raise ValueError(f"text: {len(ids)} tokens; allowed are {length - 1} or more, to fill one sequence")
    return torch.tensor(pieces)
