"""The settings that a job may give to a scheme, one record each. A new setting is a new record."""

import math
from typing import Any

from pydantic import BaseModel, ConfigDict

Value = bool | int | float | str
Settings = dict[str, Value]


class Setting(BaseModel):
    """One setting of a scheme, and its allowed values: listed values, and numbers from a minimum."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    meaning: str
    """One line."""
    values: tuple[bool | int | str, ...] = ()
    """Listed values."""
    minimum: float | None = None
    """Finite numbers from this value are also allowed; None: only the listed values."""

    @property
    def allowed(self) -> str:
        """The allowed values, in words."""
        listed = [written(value) for value in self.values]
        if self.minimum is not None:
            listed.append(f"a finite number, {self.minimum:g} or more")
        return " or ".join(listed) if len(listed) < 3 else ", ".join(listed)

    def parse(self, text: Any) -> Value:
        """Return a value in its type; text is parsed, so that `"0"` is 0.0 for a number.

        Raises ValueError, with the allowed values, if the value is not allowed.
        """
        for value in self.values:
            if text == written(value) or (text == value and isinstance(text, bool) == isinstance(value, bool)):
                return value
        number = _number(text)
        if self.minimum is None or number is None or number < self.minimum:
            raise ValueError(f"allowed: {self.allowed}")
        return number


def written(value: Value) -> str:
    """Return the text form of a value: `true`, `0.5`, `6`, `bfloat16`."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(int(value)) if isinstance(value, float) and value.is_integer() and abs(value) < 2**53 else str(value)


def _number(value: Any) -> float | None:
    """Return a finite number; None for any other value, also for true and false."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


THRESHOLD = Setting(
    name="threshold",
    meaning="input columns with abs(x) at or above this stay in 16 bits; 0: none",
    minimum=0.0,
)
COMPUTE_DTYPE = Setting(
    name="compute_dtype",
    meaning="type of the matrix product (bnb_4bit_compute_dtype); default: the model's type",
    values=("bfloat16", "float16", "float32"),
)
BLOCK_SIZE = Setting(
    name="block_size",
    meaning="number of neighboring weights with one scale; BitsAndBytesConfig supports only 64",
    values=(32, 64, 128, 256, 512, 1024, 2048, 4096),
)
DOUBLE_QUANTIZATION = Setting(
    name="double_quantisation",
    meaning="whether the scales are quantized to 8 bits (bnb_4bit_use_double_quant)",
    values=(True, False),
)
WEIGHT_GROUP = Setting(
    name="weight_group",
    meaning="weights with one scale: those of an output channel, or a number of neighboring inputs",
    values=("channel", 16, 32, 64, 128, 256, 512, 1024),
)
