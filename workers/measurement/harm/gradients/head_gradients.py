"""Draws next tokens from the reference's own predictions, and takes the gradient of their negative log likelihood.

With y drawn from P = softmax(z) at a position, the gradient of -log P(y) with respect to the logits z is P - e_y. Its
expectation is 0, and that of its outer product is the Fisher information of the prediction: half of its quadratic
form is the KL divergence that a small change of the logits causes, to second order.

Where the logits are the head's product W h with nothing behind it, one product with W serves all draws: with k the most
likely token,

    W^T (P - e_y) = W^T (P - e_k) + W_k - W_y

The most likely token is taken so that little cancels: where y is another one, its probability is 1/2 at most.

    n positions, V vocabulary, S tokens, d hidden dimensions, e inputs of the head
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from workers.measurement.harm.gradients.cpu_gradients import fast_gradients
from workers.measurement.harm.gradients.loss_scaling import gradient_type, gradients_at
from workers.measurement.models.decoder import Decoder


class _Head(NamedTuple):
    """One pass through the output head."""

    hidden: torch.Tensor
    """After the last layer, [1, n, d]; gradients are taken there."""
    entered: torch.Tensor
    """The head's input, [1, n, e]."""
    left: torch.Tensor
    """The head's output, [1, n, V]."""
    logits: torch.Tensor
    """The model's, [1, n, V]."""
    weight: torch.Tensor | None
    """[V, e], of a head that is a linear module."""


def draw_tokens(probabilities: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Return tokens drawn at each position, [n, draws].

    Args:
        probabilities: of every token, [n, V].
        uniform: [n, draws], from 0 to below 1: where in the cumulative distribution each draw lies.
    """
    cumulative = probabilities.cumsum(dim=-1, dtype=torch.float64)
    # The sum may end a little off 1, and a draw must not fall behind the last token of any probability.
    tokens = torch.searchsorted(cumulative, uniform.to(cumulative) * cumulative[:, -1:], right=True)
    return tokens.clamp(max=probabilities.shape[-1] - 1)


def head_gradients(
    decoder: Decoder, hidden: torch.Tensor, first: int, draws: int, generator: np.random.Generator, step: int
) -> torch.Tensor:
    """Return the gradients of the drawn tokens' summed negative log likelihood, [draws, S, d], of `gradient_type`.

    Args:
        decoder: the model.
        hidden: the reference's hidden states after the last layer, [1, S, d].
        first: first position that is scored; the last position of the sequence is not.
        draws: how many tokens are drawn at each position.
        generator: of the draws.
        step: positions whose logits are held at a time.
    """
    gradients = hidden.new_zeros((draws, *hidden.shape[1:]), dtype=gradient_type(hidden.dtype))
    for chunk in _chunks(first, hidden.shape[1] - 1, step):
        head = _through_head(decoder, hidden[:, chunk].detach().requires_grad_())
        probabilities = torch.softmax(head.logits.detach()[0].float(), dim=-1)
        uniform = torch.from_numpy(generator.random((len(probabilities), draws)))
        tokens = draw_tokens(probabilities, uniform.to(probabilities.device))
        product = head.weight is not None and torch.equal(head.left, head.logits)
        by_draw = _by_one_product(head, probabilities, tokens) if product else _by_draw(head, probabilities, tokens)
        for draw, of_chunk in enumerate(by_draw):
            if of_chunk is not None:
                gradients[draw, chunk] = of_chunk[0]
    return gradients


def _through_head(decoder: Decoder, hidden: torch.Tensor) -> _Head:
    """Take hidden states [1, n, d] that require gradients through the rest of the model."""
    head: nn.Module = decoder.model.get_output_embeddings()  # type: ignore[operator]
    with fast_gradients(hidden.dtype, hidden.device), _recording(head) as calls:
        logits = decoder.logits(hidden)
    weight = head.weight if type(head) is nn.Linear else None
    return _Head(hidden, *calls[-1], logits, weight)


def _by_draw(head: _Head, probabilities: torch.Tensor, tokens: torch.Tensor) -> Iterator[torch.Tensor | None]:
    """Yield every draw's gradient at the hidden states, [1, n, d], each from its own at the logits."""
    for drawn in tokens.T:
        of_logits = _less_one(probabilities, drawn)
        yield gradients_at(head.logits, [head.hidden], of_logits[None], retain_graph=True)[0]


def _by_one_product(head: _Head, probabilities: torch.Tensor, tokens: torch.Tensor) -> Iterator[torch.Tensor | None]:
    """Yield every draw's gradient at the hidden states, [1, n, d], of logits that are the head's product alone."""
    assert head.weight is not None
    likeliest = probabilities.argmax(dim=-1)
    of_logits = _less_one(probabilities, likeliest)
    (of_likeliest,) = gradients_at(head.logits, [head.entered], of_logits[None], retain_graph=True)
    assert of_likeliest is not None
    rows = head.weight.detach()
    for drawn in tokens.T:
        between = rows[likeliest].float() - rows[drawn].float()
        yield gradients_at(head.entered, [head.hidden], of_likeliest.float() + between, retain_graph=True)[0]


def _less_one(probabilities: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Return P - e_y, [n, V], for one token y at each position, [n]."""
    places = tokens[:, None]
    return probabilities.scatter(1, places, probabilities.gather(1, places) - 1)


@contextmanager
def _recording(head: nn.Module) -> Iterator[list[tuple[torch.Tensor, torch.Tensor]]]:
    """Note what enters and leaves the head, for as long as the context lasts."""
    calls: list[tuple[torch.Tensor, torch.Tensor]] = []

    def hook(_: nn.Module, positional: tuple[Any, ...], output: torch.Tensor) -> None:
        calls.append((positional[0], output))

    handle = head.register_forward_hook(hook)
    try:
        yield calls
    finally:
        handle.remove()


def _chunks(first: int, end: int, step: int) -> Iterator[slice]:
    for start in range(first, end, step):
        yield slice(start, min(start + step, end))
