"""Settings of harm: the change of the predictions when one module or one layer alone is replaced."""

from typing import Annotated, Literal

from pydantic import Field

from service.contracts.record import Frozen, NoBoolean


class HarmSettings(Frozen):
    """Which harm of every scheme is measured or estimated; by default none."""

    estimate: bool = False
    """Estimate the harm of every module and of every pair of modules, from gradients. Also done for `modules` and for
    `dimensions`, which need it."""
    exact: Literal["none", "layers", "modules"] = "none"
    """Measure the harm of every layer, or of some modules, by replacing each alone."""
    component: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,255}$")] | None = None
    """With `modules`: measure all modules of this component, such as `mlp.down`, instead of the `top_modules`."""
    top_modules: Annotated[int, Field(ge=0, le=100_000), NoBoolean] = 24
    """With `modules`: the number of modules that are measured for their large estimated harm."""
    random_modules: Annotated[int, Field(ge=0, le=100_000), NoBoolean] = 12
    """With `modules`: the number of others, chosen at random by the job's seed, that are measured as a check, also
    with `component`."""
    draws: Annotated[int, Field(ge=1, le=1024), NoBoolean] = 4
    """Continuations drawn for each sequence. The relative standard error of an estimated harm is about
    sqrt(2 / (sequences x draws))."""
    dimensions: bool = False
    """Divide the harm of weight-only schemes among the dimensions of the residual stream."""

    @property
    def estimates(self) -> bool:
        """Whether harm is estimated."""
        return self.estimate or self.dimensions or self.exact == "modules"

    @property
    def measures(self) -> bool:
        """Whether any harm is measured or estimated."""
        return self.estimates or self.exact != "none"
