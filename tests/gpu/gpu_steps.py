"""The steps of a run on a GPU, in their order, with what each may take there: the dearest last."""

from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
TOTAL_SECONDS = 480
"""Everything ends by then, on a GPU and in a dry run alike."""
DRY_SECONDS = 200
"""Limit of one step in a dry run: generous, for the machine may be slow and busy."""


@dataclass(frozen=True)
class Step:
    """One step, a process of its own."""

    name: str
    title: str
    budget_seconds: float
    """On an H100; the step is ended then."""
    file: Path
    arguments: tuple[str, ...] = ()
    interpreted: bool = False
    """Whether a dry run takes the step through Triton's interpreter."""
    until_the_end: bool = False
    """Whether the step may take what the others have left of their time, too."""


STEPS = (
    Step("device", "versions and device", 20, HERE / "step_device.py"),
    Step("kernels", "kernels against plain torch", 75, HERE / "step_kernels.py", interpreted=True),
    Step("correctness", "tables and logits against whole models", 60, HERE / "step_correctness.py"),
    Step("going-on", "the same tables after a kill", 35, HERE / "step_going_on.py"),
    Step("speed", "kernels beside matrix products", 20, HERE / "step_speed.py"),
    Step("costs-1b", "costs, 1.1 B Llama", 45, HERE / "step_costs.py", ("--shape", "1b")),
    Step("pair", "two measurements side by side", 25, HERE / "step_pair.py"),
    Step("costs-8b", "costs, 8 B Llama", 85, HERE / "step_costs.py", ("--shape", "8b")),
    Step(
        "long",
        "8 B Llama, 128 x 2048 tokens",
        110,
        HERE / "step_costs.py",
        ("--shape", "8b", "--long"),
        until_the_end=True,
    ),
)
"""Their budgets add up to less than TOTAL_SECONDS, for preparing takes some seconds too."""
