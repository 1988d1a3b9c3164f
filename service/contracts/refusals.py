"""Words the validation errors of pydantic as Headroom does: what is wrong with a value, and what is allowed."""

import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

LONGEST_NAME = 255
"""Nothing is similar to a longer name."""
_ALLOWED: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "boolean": lambda _: "a number, not true or false",
    "bool_parsing": lambda _: "true or false",
    "bool_type": lambda _: "true or false",
    "dict_type": lambda _: "an object",
    "enum": lambda context: str(context["expected"]),
    "finite_number": lambda _: "a finite number",
    "float_parsing": lambda _: "a number",
    "float_type": lambda _: "a number",
    "greater_than": lambda context: f"a number above {_number(context['gt'])}",
    "greater_than_equal": lambda context: f"{_number(context['ge'])} or more",
    "int_from_float": lambda _: "a whole number",
    "int_parsing": lambda _: "a whole number",
    "int_parsing_size": lambda _: "a whole number of fewer digits",
    "int_type": lambda _: "a whole number",
    "less_than": lambda context: f"a number below {_number(context['lt'])}",
    "less_than_equal": lambda context: f"at most {_number(context['le'])}",
    "list_type": lambda _: "a list",
    "literal_error": lambda context: str(context["expected"]),
    "model_attributes_type": lambda _: "an object",
    "model_type": lambda _: "an object",
    "string_pattern_mismatch": lambda context: f"text that matches {context['pattern']}",
    "string_too_long": lambda context: f"text of at most {_number(context['max_length'])} characters",
    "string_too_short": lambda context: f"text of at least {_characters(context['min_length'])}",
    "string_type": lambda _: "text",
    "string_unicode": lambda _: "text that UTF-8 can encode",
    "too_long": lambda context: f"at most {_number(context['max_length'])} items",
    "tuple_type": lambda _: "a list",
}
"""From the type of an error, and its context, to what is allowed."""


def allowed(error: Mapping[str, Any]) -> str:
    """Return what the field of one validation error may hold.

    For a check of our own (`value_error`) this is the whole message, which names value and alternatives itself.
    """
    kind = error["type"]
    if kind == "missing":
        return "it is required"
    if kind == "extra_forbidden":
        return "no field has this name"
    if kind not in _ALLOWED:
        return str(error["msg"]).removeprefix("Value error, ").removeprefix("allowed: ")
    words = _ALLOWED[kind](error.get("ctx") or {})
    if kind in ("literal_error", "enum"):
        words += nearest(str(error["input"]), words.split("'")[1::2])
    return words


def sentence(field: str, shown: str, error: Mapping[str, Any]) -> str:
    """Return the message for one validation error: `sequences: 0 is not allowed; allowed: 1 or more`.

    Args:
        field: The name by which the user knows the field.
        shown: The refused value, as the message shows it.
        error: One of pydantic's `errors()`.
    """
    if error["type"] == "missing":
        return f"{field}: it is required"
    if error["type"] in ("extra_forbidden", "value_error"):
        return f"{field}: {allowed(error)}"
    return f"{field}: {shown} is not allowed; allowed: {allowed(error)}"


def nearest(name: str, names: Iterable[str]) -> str:
    """Return `. Did you mean 'x'?` for a name that begins like this one, or is most similar; nothing where none is."""
    if len(name) > LONGEST_NAME:  # the search takes time that grows with the name
        return ""
    names = list(names)
    similar = [one for one in names if name and one.startswith(name)] or difflib.get_close_matches(name, names, n=1)
    return f". Did you mean {similar[0]!r}?" if similar else ""


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,g}"


def _characters(count: int) -> str:
    return "1 character" if count == 1 else f"{count} characters"
