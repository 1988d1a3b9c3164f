"""Classes of jobs by the size of their model, so that small ones need not wait behind large ones."""

from typing import Literal

SizeClass = Literal["small", "large"]
"""`small` until a worker that takes only small ones finds the model to be larger than that."""
SIZE_CLASSES: tuple[SizeClass, ...] = ("small", "large")
