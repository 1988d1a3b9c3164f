"""Widens elements to float32 in a Triton kernel."""

import triton
import triton.language as tl


@triton.jit
def float32(v: tl.tensor) -> tl.tensor:  # pragma: no cover - runs on the device
    """Return v as float32, exactly: a bfloat16 by its bit pattern, so that no conversion can flush a subnormal."""
    if v.dtype == tl.bfloat16:
        return (v.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    else:  # noqa: RET505 - Triton wants one branch or the other
        return v.to(tl.float32)
