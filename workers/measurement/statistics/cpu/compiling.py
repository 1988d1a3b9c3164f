"""Compiles kernels with numba, cached where the machine allows it.

numba keeps compiled code beside the module or in the user's cache directory, and refuses to define a function that
is to be cached where it can write to neither (a read-only image with no home). Such a machine compiles at every start.

A cached kernel is compiled again when its own file has changed, but not when only a function that it calls from
another file has. The measurement therefore has a cache for each version of the kernels (`runtime.environment`); whoever
edits them and runs them elsewhere empties `__pycache__`.
"""

from collections.abc import Callable
from typing import Any

import numba

Kernel = Callable[..., Any]


def compiled(**options: Any) -> Callable[[Kernel], Kernel]:
    """Return a decorator: `numba.njit` with these options, without the interpreter's lock, cached if it can be."""

    def decorate(function: Kernel) -> Kernel:
        common = {"nogil": True, "error_model": "numpy"} | options
        try:
            kernel: Kernel = numba.njit(cache=True, **common)(function)
        except RuntimeError as error:
            if "no locator available" not in str(error):
                raise
            kernel = numba.njit(**common)(function)
        return kernel

    return decorate
