"""Keeps the weights of a 16-bit model in float32 that its architecture names.

Some architectures name weights for which 16 bits are too few: `_keep_in_fp32_modules_strict` in any 16-bit model,
`_keep_in_fp32_modules` where it is float16. transformers converts them as it reads them, but not those that it leaves
on disk. Its output then differs from that of the same model in memory, which is the one to measure.
"""

import re
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel


def keep_in_float32(model: PreTrainedModel, prefix: str, index: dict[str, dict[str, Any]]) -> None:
    """Convert the layers' weights that the model names to float32, and have them read as float32.

    Args:
        model: with its decoder layers on the meta device.
        prefix: name of the list of layers inside the model, with a dot at the end.
        index: accelerate's account of the weights on disk, by full name; changed in place.
    """
    names = [*(model._keep_in_fp32_modules_strict or ())] if model.dtype in (torch.float16, torch.bfloat16) else []
    if model.dtype == torch.float16:
        names += model._keep_in_fp32_modules or ()
    if not names:
        return
    kept = re.compile("|".join(name.replace("*", ".*") for name in names))
    for full, weight in list(model.get_submodule(prefix[:-1]).named_parameters(prefix=prefix[:-1])):
        if kept.search(full) and weight.dtype != torch.float32:
            module, _, name = full.rpartition(".")
            setattr(model.get_submodule(module), name, nn.Parameter(weight.float(), weight.requires_grad))
            index[full]["dtype"] = "float32"
