"""The CUDA sources compiled for the host, with a stand-in for `nvrtc.launch` that runs them there on host tensors."""

import ctypes
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import torch

from workers.measurement.statistics.cpu.bit_patterns import KINDS
from workers.measurement.statistics.cuda import nvrtc

SOURCES = Path(__file__).parent / "cuda_emulation"
COMPILER = shutil.which("g++") or shutil.which("clang++") or shutil.which("c++")


def build(directory: Path) -> dict[torch.dtype, ctypes.CDLL]:
    """Compile the kernels for every element type."""
    libraries = {}
    for dtype, kind in KINDS.items():
        file, library = directory / f"kernels-{kind}.cpp", directory / f"kernels-{kind}.so"
        parts = (SOURCES / "emulation.h").read_text(), nvrtc.source(), (SOURCES / "launch.cpp").read_text()
        file.write_text("\n".join(parts))
        command = [str(COMPILER), "-std=c++17", "-O1", "-fno-strict-aliasing", "-shared", "-fPIC", f"-DKIND={kind}"]
        subprocess.run([*command, str(file), "-o", str(library)], check=True)
        libraries[dtype] = ctypes.CDLL(str(library))
    return libraries


def launcher(libraries: dict[torch.dtype, ctypes.CDLL]) -> Callable[..., None]:
    """Return what takes the place of `nvrtc.launch`."""

    def launch(name: str, dtype: torch.dtype, grid: tuple[int, int], *arguments: torch.Tensor | int | float) -> None:
        values = [nvrtc.c_value(argument) for argument in arguments]
        addresses = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
        status = libraries[dtype].emulate(name.encode(), addresses, *grid, nvrtc.THREADS)
        assert status == 0, {1: "threads of a block wait for each other", 2: f"no kernel is called {name}"}[status]

    return launch
