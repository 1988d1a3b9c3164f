"""The bytes of a quantized weight follow from its shape, and are those that the kernels store."""

import pytest
import torch
from torch import nn

from service.contracts.schemes import SCHEMES
from workers.measurement.layers.copies.quantize_projection import quantize_projection
from workers.measurement.quantization.resolving import resolved
from workers.measurement.quantization.stored_bytes import stored_bytes


@pytest.mark.parametrize("shape", [(32, 64), (7, 33), (130, 320)])
@pytest.mark.parametrize("name", sorted(SCHEMES))
def test_they_are_those_that_the_kernel_stores(name: str, shape: tuple[int, int]) -> None:
    scheme = resolved(SCHEMES[name], torch.bfloat16)
    rows, columns = shape
    projection = nn.Linear(columns, rows, bias=True, dtype=torch.bfloat16)
    kernel = quantize_projection(projection, scheme).nbytes
    assert stored_bytes(scheme, projection.weight.to("meta")) == kernel
