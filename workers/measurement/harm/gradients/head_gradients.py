"""Draws next tokens from the reference's own predictions, and takes the gradient of their negative log likelihood.

With y drawn from P = softmax(z) at a position, the gradient of -log P(y) with respect to the logits z is P - e_y. Its
expectation is 0, and that of its outer product is the Fisher information of the prediction: half of its quadratic
form is the KL divergence that a small change of the logits causes, to second order.

    n positions, V vocabulary, S tokens, d hidden dimensions
"""

from collections.abc import Iterator

import numpy as np
import torch

from workers.measurement.harm.gradients.cpu_gradients import fast_gradients
from workers.measurement.harm.gradients.loss_scaling import gradient_type, gradients_at
from workers.measurement.models.decoder import Decoder


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
        part = hidden[:, chunk].detach().requires_grad_()
        with fast_gradients(part.dtype, part.device):
            logits = decoder.logits(part)
        probabilities = torch.softmax(logits.detach()[0].float(), dim=-1)
        uniform = torch.from_numpy(generator.random((len(probabilities), draws)))
        tokens = draw_tokens(probabilities, uniform.to(probabilities.device))
        for draw in range(draws):
            drawn = tokens[:, draw, None]
            of_logits = probabilities.scatter(1, drawn, probabilities.gather(1, drawn) - 1)
            (of_part,) = gradients_at(logits, [part], of_logits[None], retain_graph=draw + 1 < draws)
            if of_part is not None:
                gradients[draw, chunk] = of_part[0]
    return gradients


def _chunks(first: int, end: int, step: int) -> Iterator[slice]:
    for start in range(first, end, step):
        yield slice(start, min(start + step, end))
