"""Says what the machine is, and what its device can do: a matrix product's speed, and the memory's."""

import importlib.metadata
import platform
import shutil

from step_support import Context, median_seconds, run

VERSIONS = ("torch", "triton", "transformers", "accelerate", "bitsandbytes", "numba", "numpy", "pyarrow", "headroom")


def version(name: str) -> str:
    """Return the version of a distribution."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def describe(context: Context) -> None:
    """Tell versions and device, and time a product and a copy."""
    import torch

    context.detail("versions", {"Python": platform.python_version()} | {name: version(name) for name in VERSIONS})
    if context.on_cuda:
        properties = torch.cuda.get_device_properties(context.device)
        context.detail("device", properties.name)
        context.detail("cuda", torch.version.cuda)
        context.detail("devices", torch.cuda.device_count())
        context.figure("device memory", properties.total_memory / 1e9, "GB")
        context.figure("device capability", f"{properties.major}.{properties.minor}")
    else:
        context.detail("device", f"cpu ({platform.machine()})")
        context.detail("devices", 0)
    context.figure("free disk for checkpoints", shutil.disk_usage(context.scratch).free / 1e9, "GB")
    size = 256 if context.dry else 8192
    a, b = (torch.randn(size, size, device=context.device).bfloat16() for _ in range(2))
    taken = median_seconds([lambda: a @ b], context.device, 3 if context.dry else 30)
    context.figure(f"bf16 matrix product of width {size}", 2 * size**3 / taken / 1e12, "TFLOP/s")
    source = torch.empty(2**20 if context.dry else 2**30, dtype=torch.uint8, device=context.device)
    target = torch.empty_like(source)
    taken = median_seconds([lambda: target.copy_(source)], context.device, 3 if context.dry else 30)
    context.figure("memory bandwidth of a copy, read and write", 2 * source.nbytes / taken / 1e9, "GB/s")


if __name__ == "__main__":
    run(describe)
