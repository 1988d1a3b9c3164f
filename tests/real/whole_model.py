"""The real model run whole by transformers, with plain hooks: what the measurement is compared with.

x [N, S, d] with N sequences, S tokens each, d channels
"""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from oracle import components
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

Site = tuple[int, str, str]
"""Layer, component, port."""


class Whole:
    """One pass of the whole model over batches of sequences, with the tensors at some sites kept.

    Logits are kept of the last batch alone: a vocabulary of them is most of the work.
    """

    def __init__(
        self,
        path: Path,
        batches: Sequence[torch.Tensor],
        sites: Sequence[Site],
        quantization: BitsAndBytesConfig | None = None,
    ) -> None:
        model: Any = AutoModelForCausalLM.from_pretrained(path, quantization_config=quantization).eval()
        self._parts: defaultdict[Site, list[np.ndarray]] = defaultdict(list)
        for site in sites:
            self._watch(model, site)
        with torch.no_grad():
            for batch in batches[:-1]:
                model.model(input_ids=batch, use_cache=False)
            self.logits = model(input_ids=batches[-1], use_cache=False).logits

    def at(self, layer: int, component: str, port: str) -> np.ndarray:
        """Return the tensor at a site, [N, S, d]."""
        return np.concatenate(self._parts[layer, component, port])

    def _watch(self, model: Any, site: Site) -> None:
        layer, component, port = site

        def keep(_: Any, inputs: tuple[Any, ...], output: Any) -> None:
            tensor = inputs[0] if port == "input" else output[0] if isinstance(output, tuple) else output
            self._parts[site].append(tensor.float().numpy().copy())

        name = "" if component == "block" else components("llama", layer, model.config)[component][0]
        module = model.model.layers[layer] if component == "block" else model.get_submodule(name)
        module.register_forward_hook(keep)


def kl_divergence(reference: torch.Tensor, scheme: torch.Tensor) -> np.ndarray:
    """Return KL(reference, scheme) in nats of every position but each sequence's last, from logits [N, S, V]."""
    kl = []
    for p, q in zip(reference[:, :-1], scheme[:, :-1], strict=True):
        log_p, log_q = (torch.log_softmax(logits.double(), dim=-1) for logits in (p, q))
        kl.append((log_p.exp() * (log_p - log_q)).sum(dim=-1))
    return torch.stack(kl).numpy()
