"""Compiles the CUDA sources of this folder when one of their kernels is first used, and launches them.

NVRTC compiles them for the very device that is at hand; it comes with torch's CUDA build, as do the bindings to it, so
no CUDA toolkit need be installed. Kernels are launched on torch's current stream.
"""

import ctypes
from functools import cache
from importlib.resources import files
from types import ModuleType
from typing import Any

import torch

from workers.measurement.statistics.cpu.bit_patterns import KINDS
from workers.measurement.statistics.reduction import BINS, FP16_MAX, PIVOT_TOKENS, SHIFT

SOURCES = ("patterns", "histogram", "reduction", "hits", "channels")
"""In the order in which they are joined."""
THREADS = 256
"""Threads of a block, in every kernel."""
CHANNELS = 2 * THREADS
"""Channels that a block reads of each token."""
RANGE_TOKENS = 127
"""The most tokens that a block reads: with more, a bin's 16-bit counter could overflow."""
CONSTANTS = {
    "THREADS": THREADS,
    "CHANNELS": CHANNELS,
    "RANGE_TOKENS": RANGE_TOKENS,
    "BINS": BINS,
    "SHIFT": SHIFT,
    "FP16_MAX": f"{FP16_MAX}f",
    "PIVOT_TOKENS": PIVOT_TOKENS,
}
"""Names that the sources use and do not define."""


class KernelFailed(RuntimeError):
    """A CUDA source does not compile, or a kernel cannot be launched; the message is the library's."""


def source() -> str:
    """Return the kernels' source: the constants, then all files."""
    defined = [f"#define {name} {value}" for name, value in CONSTANTS.items()]
    here = files("workers.measurement.statistics.cuda")
    return "\n".join([*defined, *((here / f"{name}.cu").read_text(encoding="utf-8") for name in SOURCES)])


def launch(name: str, dtype: torch.dtype, grid: tuple[int, int], *arguments: torch.Tensor | int | float) -> None:
    """Launch a kernel for elements of a type, on the device of the first tensor.

    Args:
        name: of the kernel.
        dtype: of the elements that it reads.
        grid: blocks along the first and the second axis.
        arguments: in the kernel's order; a tensor is handed on as its address, an integer in 64 bits, a float in 32.

    Raises:
        KernelFailed: the source does not compile for this device, or the driver refuses the launch.
    """
    from cuda.bindings import driver

    device = next(argument.device for argument in arguments if isinstance(argument, torch.Tensor))
    values = [c_value(argument) for argument in arguments]
    addresses = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
    with torch.cuda.device(device):
        function = _functions(dtype, torch.cuda.get_device_capability(device), device.index)[name]
        stream = torch.cuda.current_stream(device).cuda_stream
        _check(
            driver, driver.cuLaunchKernel(function, *grid, 1, THREADS, 1, 1, 0, stream, ctypes.addressof(addresses), 0)
        )


def c_value(argument: torch.Tensor | int | float) -> Any:
    """Return an argument as a kernel takes it."""
    if isinstance(argument, torch.Tensor):
        return ctypes.c_void_p(argument.data_ptr())
    return ctypes.c_float(argument) if isinstance(argument, float) else ctypes.c_longlong(argument)


class _Functions:
    """The kernels of one compiled module, looked up by name."""

    def __init__(self, cubin: bytes) -> None:
        from cuda.bindings import driver

        self._driver = driver
        self._module = _check(driver, driver.cuModuleLoadData(cubin))
        self._kernels: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._kernels:
            self._kernels[name] = _check(self._driver, self._driver.cuModuleGetFunction(self._module, name.encode()))
        return self._kernels[name]


@cache
def _functions(dtype: torch.dtype, capability: tuple[int, int], _device: int | None) -> _Functions:
    return _Functions(compile_source(source(), dtype, capability))


def compile_source(code: str, dtype: torch.dtype, capability: tuple[int, int]) -> bytes:
    """Return the machine code of a source for elements of a type and a compute capability.

    Raises:
        KernelFailed: it does not compile; the compiler's log is in the message.
    """
    from cuda.bindings import nvrtc

    options = [f"--gpu-architecture=sm_{capability[0]}{capability[1]}".encode(), f"-DKIND={KINDS[dtype]}".encode()]
    program = _check(nvrtc, nvrtc.nvrtcCreateProgram(code.encode(), b"statistics.cu", 0, [], []))
    try:
        (status,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
        if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            log = _buffer(_check(nvrtc, nvrtc.nvrtcGetProgramLogSize(program)))
            nvrtc.nvrtcGetProgramLog(program, log)
            raise KernelFailed(log.rstrip(b"\0 \n").decode(errors="replace"))
        cubin = _buffer(_check(nvrtc, nvrtc.nvrtcGetCUBINSize(program)))
        _check(nvrtc, nvrtc.nvrtcGetCUBIN(program, cubin))
    finally:
        nvrtc.nvrtcDestroyProgram(program)
    return bytes(cubin)


def _buffer(size: int) -> bytes:
    """Return bytes for the library to write to; at least two, because Python shares all objects of a single byte."""
    return bytes(max(2, size))


def _check(library: ModuleType, answer: tuple[Any, ...]) -> Any:
    """Return the value of a call of the bindings, which returns its status first. Raises KernelFailed on failure."""
    status, *values = answer
    if int(status) != 0:
        raise KernelFailed(f"{library.__name__}: {status!r}")
    return values[0] if values else None
