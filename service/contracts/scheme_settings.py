"""The settings that a job may give to a scheme, as data: one record a setting. Adding a setting adds a record."""

import math
from typing import Any

from pydantic import BaseModel, ConfigDict

Value = bool | int | float | str
Settings = dict[str, Value]


class Setting(BaseModel):
    """One setting of a scheme, and the values that it takes: those that are listed, and numbers from a minimum on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    meaning: str
    """In one line."""
    values: tuple[bool | int | str, ...] = ()
    """Values that are allowed by themselves."""
    minimum: float | None = None
    """Finite numbers from here on are allowed too; None where no others are."""

    @property
    def allowed(self) -> str:
        """Say which values are allowed."""
        listed = [written(value) for value in self.values]
        if self.minimum is not None:
            listed.append(f"a finite number, {self.minimum:g} or more")
        return " or ".join(listed) if len(listed) < 3 else ", ".join(listed)

    def parse(self, given: Any) -> Value:
        """Return a value as its type has it; texts are read, so that `"0"` is 0.0 where numbers belong.

        Raises:
            ValueError: it is not allowed; says what is.
        """
        for value in self.values:
            if given == written(value) or (given == value and isinstance(given, bool) == isinstance(value, bool)):
                return value
        number = _number(given)
        if self.minimum is None or number is None or number < self.minimum:
            raise ValueError(f"allowed: {self.allowed}")
        return number


def written(value: Value) -> str:
    """Return a value as it is typed: `true`, `0.5`, `6`, `bfloat16`."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(int(value)) if isinstance(value, float) and value.is_integer() and abs(value) < 2**53 else str(value)


def _number(given: Any) -> float | None:
    """Return a finite number; None for what is none, true and false among that."""
    if isinstance(given, bool) or not isinstance(given, int | float | str):
        return None
    try:
        number = float(given)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


THRESHOLD = Setting(
    name="threshold",
    meaning="columns of an input with abs(x) at or above this stay unquantized; 0 keeps none",
    minimum=0.0,
)
COMPUTE_DTYPE = Setting(
    name="compute_dtype",
    meaning="the type of the matrix product (bnb_4bit_compute_dtype); by default the model's own",
    values=("bfloat16", "float16", "float32"),
)
BLOCK_SIZE = Setting(
    name="block_size",
    meaning="neighboring weights that share a scale; BitsAndBytesConfig knows 64 alone",
    values=(32, 64, 128, 256, 512, 1024, 2048, 4096),
)
DOUBLE_QUANTIZATION = Setting(
    name="double_quantisation",
    meaning="whether the scales are themselves quantized to 8 bits (bnb_4bit_use_double_quant)",
    values=(True, False),
)
WEIGHT_GROUP = Setting(
    name="weight_group",
    meaning="weights that share a scale: an output channel's, or those of so many neighboring inputs",
    values=("channel", 16, 32, 64, 128, 256, 512, 1024),
)
