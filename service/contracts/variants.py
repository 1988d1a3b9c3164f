"""Variants of a scheme: what a job asks for when it names a scheme, with settings of its own if it likes.

A variant is written `[LABEL=]SCHEME[:KEY=VALUE,...]`: `int8`, `nf4:compute_dtype=float32`, `lossless=int8:threshold=4`.
KEY is a setting of the scheme, or `keep`, which may be repeated: a pattern of modules that stay in 16 bits. In JSON it
may be an object instead: `{"name": ..., "scheme": ..., "settings": {...}, "keep": [...]}`. Its name stands for it in
every table, figure, file and address, so no two variants of a job have the same.
"""

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PlainSerializer, ValidationInfo, field_validator

from service.contracts.record import Frozen
from service.contracts.scheme_settings import Settings, Value, written
from service.contracts.schemes import SCHEMES

LONGEST_NAME = 32
NAME = re.compile(rf"[a-z0-9-]{{1,{LONGEST_NAME}}}")
RESERVED = "reference"
"""The stream that the schemes are held against."""
_SHOWN = 120
_KEEP = "keep"
_FORM = "[LABEL=]SCHEME[:KEY=VALUE,...]"

Pattern = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,255}$")]


class Variant(Frozen):
    """A scheme with the settings that a job gives it, and the modules that it leaves in 16 bits."""

    scheme: str
    """A name from `SCHEMES`."""
    settings: Settings = Field(default_factory=dict)
    """Those that differ from the scheme's own, in the order in which they were given."""
    keep: Annotated[tuple[Pattern, ...], Field(max_length=1000)] = ()
    """Modules that stay as they are: a full name (`model.layers.11.mlp.down_proj`), a component of a layer
    (`layers.11.mlp.down`), or a component of every layer (`mlp.down`)."""
    name: Annotated[str, Field(validate_default=True)] = ""
    """What everything calls it: `[a-z0-9-]{1,32}`; by default made of the scheme and the settings."""

    @field_validator("scheme")
    @classmethod
    def _known(cls, scheme: str) -> str:
        if scheme not in SCHEMES:
            raise ValueError(
                f"Unknown scheme {_shown(scheme)}. Available: {', '.join(SCHEMES)}{_nearest(scheme, SCHEMES)}"
            )
        return scheme

    @field_validator("settings", mode="before")
    @classmethod
    def _allowed(cls, given: Any, info: ValidationInfo) -> Any:
        scheme = info.data.get("scheme")
        if scheme is None or not isinstance(given, Mapping):
            return given
        return {key: _value(scheme, key, value) for key, value in given.items()}

    @field_validator("name")
    @classmethod
    def _named(cls, name: str, info: ValidationInfo) -> str:
        if not {"scheme", "settings", "keep"} <= info.data.keys():
            return name  # what it would be made of is refused
        own, scheme = slug(info.data), info.data["scheme"]
        if not name and len(own) > LONGEST_NAME:
            long = f"its name would be {_shown(own)}, of {len(own)} characters; at most {LONGEST_NAME} are allowed"
            raise ValueError(f"{long}; give a label: LABEL={described(info.data)}")
        name = name or own
        if not NAME.fullmatch(name):
            raise ValueError(f"{_shown(name)} is no label; allowed: 1 to {LONGEST_NAME} of a-z, 0-9 and -")
        if name == RESERVED or (name in SCHEMES and name != scheme):
            whose = "the model as it came" if name == RESERVED else "another scheme"
            raise ValueError(f"{name!r} is no label for {scheme}; it stands for {whose}")
        return name

    @property
    def plain(self) -> bool:
        """Whether the scheme's name says all of it."""
        return self.name == self.scheme and not self.settings and not self.keep

    def __str__(self) -> str:
        """Return the variant as it is typed; the label is left out where it is the one that it has by itself."""
        own, text = slug(vars(self)), described(vars(self))
        return text if self.name == own else f"{self.name}={text}"


def described(fields: Mapping[str, Any]) -> str:
    """Return the variant of these fields as it is typed, without a label."""
    pairs = [f"{key}={written(value)}" for key, value in fields["settings"].items()]
    pairs += [f"{_KEEP}={pattern}" for pattern in fields["keep"]]
    return f"{fields['scheme']}:{','.join(pairs)}" if pairs else str(fields["scheme"])


def slug(fields: Mapping[str, Any]) -> str:
    """Return the name that the variant of these fields has by itself: `nf4-compute-dtype-float32`."""
    return re.sub("[^a-z0-9]+", "-", described(fields).lower())


def parse(text: str) -> dict[str, Any]:
    """Return what a text says, as the fields of a `Variant`. Raises ValueError for what has not the form."""
    head, colon, tail = text.partition(":")
    label, equals, scheme = head.rpartition("=")
    if equals and not label:
        raise ValueError(f"{_shown(text)} has no label before '='; the form is {_FORM}")
    fields: dict[str, Any] = {"scheme": scheme} | ({"name": label} if equals else {})
    settings: dict[str, str] = {}
    keep: list[str] = []
    for pair in tail.split(",") if colon else ():
        key, assigned, value = pair.partition("=")
        if not key or not assigned or not value:
            raise ValueError(f"{_shown(text)} has {_shown(pair)} in the place of KEY=VALUE; the form is {_FORM}")
        if key == _KEEP:
            keep.append(value)
        elif key in settings:
            raise ValueError(f"{_shown(text)} gives {_shown(key)} twice; allowed: once")
        else:
            settings[key] = value
    return fields | {"settings": settings, "keep": keep}


def check_names(variants: Iterable[Variant]) -> None:
    """Raise ValueError where two variants have one name."""
    seen: dict[str, Variant] = {}
    for variant in variants:
        if other := seen.get(variant.name):
            raise ValueError(
                f"{other} and {variant} are both called {variant.name!r}; give one a label: LABEL={variant}"
            )
        seen[variant.name] = variant


def _value(scheme: str, key: str, value: Any) -> Value:
    """Return the value of a scheme's setting. Raises ValueError."""
    taken = {setting.name: setting for setting in SCHEMES[scheme].takes}
    if key not in taken:
        names = [*taken, _KEEP]
        raise ValueError(f"{scheme} has no setting {_shown(key)}. Available: {', '.join(names)}{_nearest(key, names)}")
    try:
        return taken[key].parse(value)
    except ValueError as error:
        near = _nearest(str(value), [written(one) for one in taken[key].values])
        raise ValueError(f"{scheme} takes no {key} of {_shown(value)}; {error}{near}") from error


def _shown(value: Any) -> str:
    """Return what was given as an error shows it, cut when long."""
    text = repr(value) if isinstance(value, str) else written(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _nearest(given: str, names: Iterable[str]) -> str:
    """Return a sentence that asks for the nearest name, if one is near."""
    near = difflib.get_close_matches(given, list(names), n=1)
    return f". Did you mean {near[0]!r}?" if near else ""


def _of_text(given: Any) -> Any:
    return parse(given) if isinstance(given, str) else given


def _short(variant: Variant) -> str | Variant:
    return variant.scheme if variant.plain else variant


Asked = Annotated[
    Variant,
    BeforeValidator(_of_text, json_schema_input_type=str | Variant),
    PlainSerializer(_short, return_type=str | Variant),
]
"""A variant as a request holds it: a text or an object; one that its scheme's name says all of is kept as that name."""
