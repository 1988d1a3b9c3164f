"""Variants of a scheme: a scheme, and the settings that a job gives it.

The text form of a variant is `[LABEL=]SCHEME[:KEY=VALUE,...]`: `int8`, `nf4:compute_dtype=float32`,
`lossless=int8:threshold=4`. KEY is a setting of the scheme, or `keep`: a pattern of modules that stay in 16 bits;
`keep` may be repeated. The JSON form is an object: `{"name": ..., "scheme": ..., "settings": {...}, "keep": [...]}`.
Tables, figures, files and addresses use the variant's name, so the names of a job's variants differ.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from pydantic import (
    BeforeValidator,
    Field,
    PlainSerializer,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from service.contracts.record import Frozen, at_most
from service.contracts.refusals import nearest
from service.contracts.scheme_settings import Settings, Value, written
from service.contracts.schemes import SCHEMES

LONGEST_NAME = 32
NAME = re.compile(rf"[a-z0-9-]{{1,{LONGEST_NAME}}}")
LONGEST_NAME_TYPED = 255
"""Longer names are refused without naming a similar one."""
LONGEST_TEXT = 1 << 16
"""Characters of the text form."""
MOST_PATTERNS = 1000
"""Patterns of kept modules in one variant."""
MOST_VARIANTS = 64
"""Variants in one request."""
RESERVED = "reference"
"""Name of the unquantized stream, with which the schemes are compared."""
_SHOWN = 120
_KEEP = "keep"
_FORM = "[LABEL=]SCHEME[:KEY=VALUE,...]"

Pattern = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,255}$")]
Kept = Annotated[tuple[Pattern, ...], Field(max_length=MOST_PATTERNS), at_most(MOST_PATTERNS)]
"""Modules that are not quantized: a full name (`model.layers.11.mlp.down_proj`), a component of a layer
(`layers.11.mlp.down`), or a component of every layer (`mlp.down`)."""


class Variant(Frozen):
    """A scheme, the settings that a job gives it, and the modules that stay in 16 bits."""

    scheme: Annotated[str, Field(max_length=LONGEST_NAME_TYPED)]
    """A name from `SCHEMES`."""
    settings: Annotated[Settings, Field(max_length=16)] = Field(default_factory=dict)
    """Settings that differ from the scheme's own, in the order of the request."""
    keep: Kept = ()
    name: Annotated[str, Field(validate_default=True, max_length=LONGEST_NAME_TYPED)] = ""
    """Name of the variant: `[a-z0-9-]{1,32}`; default: the scheme and its settings."""

    @field_validator("scheme")
    @classmethod
    def _known(cls, scheme: str) -> str:
        if scheme not in SCHEMES:
            raise ValueError(
                f"Unknown scheme {_shown(scheme)}. Available: {', '.join(SCHEMES)}{nearest(scheme, SCHEMES)}"
            )
        return scheme

    @field_validator("settings", mode="before")
    @classmethod
    def _allowed(cls, settings: Any, info: ValidationInfo) -> Any:
        scheme = info.data.get("scheme")
        if scheme is None or not isinstance(settings, Mapping):
            return settings
        return {key: _value(scheme, key, value) for key, value in settings.items()}

    @field_validator("name")
    @classmethod
    def _named(cls, name: str, info: ValidationInfo) -> str:
        if not {"scheme", "settings", "keep"} <= info.data.keys():
            return name  # a field that the default name needs is invalid
        own, scheme = slug(info.data), info.data["scheme"]
        if not name and len(own) > LONGEST_NAME:
            long = f"the default name {_shown(own)} has {len(own)} characters; allowed: at most {LONGEST_NAME}"
            raise ValueError(f"{long}. Give a label: LABEL={described(info.data)}")
        name = name or own
        if not NAME.fullmatch(name):
            raise ValueError(f"{_shown(name)} is not a label; allowed: 1 to {LONGEST_NAME} of a-z, 0-9 and -")
        if name == RESERVED or (name in SCHEMES and name != scheme):
            whose = "the unquantized model" if name == RESERVED else "another scheme"
            raise ValueError(f"{name!r} cannot be the label of {scheme}: it is the name of {whose}. Give another label")
        return name

    @property
    def plain(self) -> bool:
        """Whether it has no label, settings or kept modules of its own."""
        return self.name == self.scheme and not self.settings and not self.keep

    def __str__(self) -> str:
        """Return the text form, without the label if that is the default name."""
        own, text = slug(vars(self)), described(vars(self))
        return text if self.name == own else f"{self.name}={text}"


def described(fields: Mapping[str, Any]) -> str:
    """Return the text form of the variant with these fields, without a label."""
    pairs = [f"{key}={written(value)}" for key, value in fields["settings"].items()]
    pairs += [f"{_KEEP}={pattern}" for pattern in fields["keep"]]
    return f"{fields['scheme']}:{','.join(pairs)}" if pairs else str(fields["scheme"])


def slug(fields: Mapping[str, Any]) -> str:
    """Return the default name of the variant with these fields: `nf4-compute-dtype-float32`."""
    return re.sub("[^a-z0-9]+", "-", described(fields).lower())


def parse(text: str) -> dict[str, Any]:
    """Return the fields of the `Variant` with this text form. Raises ValueError for a malformed text."""
    head, colon, tail = text.partition(":")
    label, equals, scheme = head.rpartition("=")
    if equals and not label:
        raise ValueError(f"{_shown(text)} has no label before '='; allowed: {_FORM}")
    fields: dict[str, Any] = {"scheme": scheme} | ({"name": label} if equals else {})
    settings: dict[str, str] = {}
    keep: list[str] = []
    for pair in tail.split(",") if colon else ():
        key, assigned, value = pair.partition("=")
        if not key or not assigned or not value:
            raise ValueError(f"{_shown(text)}: {_shown(pair)} is not KEY=VALUE; allowed: {_FORM}")
        if key == _KEEP:
            keep.append(value)
        elif key in settings:
            raise ValueError(f"{_shown(text)} sets {_shown(key)} twice; allowed: once")
        else:
            settings[key] = value
    return fields | {"settings": settings, "keep": keep}


def check_names(variants: Iterable[Variant]) -> None:
    """Raise ValueError if two variants have the same name."""
    seen: dict[str, Variant] = {}
    for variant in variants:
        if other := seen.get(variant.name):
            label = f"LABEL={described(vars(variant))}"
            raise ValueError(
                f"{other} and {variant} have the same name {variant.name!r}. Give one of them another label: {label}"
            )
        seen[variant.name] = variant


def _value(scheme: str, key: str, value: Any) -> Value:
    """Return the value of a scheme's setting. Raises ValueError."""
    taken = {setting.name: setting for setting in SCHEMES[scheme].takes}
    if key not in taken:
        names = [*taken, _KEEP]
        raise ValueError(f"{scheme} has no setting {_shown(key)}. Available: {', '.join(names)}{nearest(key, names)}")
    try:
        return taken[key].parse(value)
    except ValueError as error:
        near = nearest(str(value), [written(one) for one in taken[key].values])
        raise ValueError(f"{scheme}: {key}={_shown(value)} is not allowed; {error}{near}") from error


def _shown(value: Any) -> str:
    """Return a value as a message shows it, cut when long."""
    text = repr(value) if isinstance(value, str) else written(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _of_text(variant: Any) -> Any:
    if not isinstance(variant, str):
        return variant
    if len(variant) > LONGEST_TEXT:
        raise ValueError(f"{_shown(variant)} has {len(variant)} characters; allowed: at most {LONGEST_TEXT}")
    return parse(variant)


def _short(variant: Variant) -> str | Variant:
    return variant.scheme if variant.plain else variant


Asked = Annotated[
    Variant,
    BeforeValidator(_of_text, json_schema_input_type=str | Variant),
    PlainSerializer(_short, return_type=str | Variant),
]
"""A variant in a request: text or object. A variant without label, settings and kept modules is stored as text."""

_ASKED: TypeAdapter[Variant] = TypeAdapter(Asked)


def is_variant(value: Any) -> bool:
    """Whether this version accepts a variant, or its text or JSON form, in a request."""
    try:
        _ASKED.validate_python(value)
    except ValidationError:
        return False
    return True
