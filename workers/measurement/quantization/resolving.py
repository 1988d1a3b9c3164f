"""Resolves settings that depend on the model: the dtype that 4-bit schemes compute in."""

import torch

from service.contracts.schemes import AUTO, Scheme


def resolved(scheme: Scheme, dtype: torch.dtype) -> Scheme:
    """Return a scheme whose `compute_dtype`, where it is the model's own, is the name of the model's type."""
    if scheme.settings.get("compute_dtype") != AUTO:
        return scheme
    own = {"compute_dtype": str(dtype).removeprefix("torch.")}
    return scheme.model_copy(update={"settings": scheme.settings | own})
