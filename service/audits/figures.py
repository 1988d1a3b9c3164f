"""The figures that limits may name: numbers, levels and sets of a report, by their paths.

A path follows the keys of report.json: `schemes.int8.kl_divergence.mean`. `int8.` stands for `schemes.int8.`. A path
that ends at a record means the record's `value` (of the KL divergence its `mean`, of a verdict its `level`). Which
paths there are follows from the records that a report is made of and from the names of the job's schemes, so that a
limit is checked before anything is measured. `block.abs_max` is not in report.json: it is the largest magnitude at
block.output over all layers.
"""

import difflib
import math
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from types import UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel

from service.comparison.comparable_report import ComparableReport
from service.contracts.report import Report, SchemeFacts, SchemeVerdict
from service.contracts.sections.outliers import DEFINITIONS

Kind = Literal["number", "level", "dimensions"]
"""What a figure is: a number, a scheme's verdict, or a set of outlier dimensions."""
BLOCK_ABS_MAX = "block.abs_max"
ANY_KEY = "NAME"
"""Stands in a path for a key that the report chooses."""
_MEANT = ("value", "mean")
"""The number that a path means which ends at a record: the first of these that it has."""
_SIZES = ("model_bytes", "compression", "quantised_share")
"""Figures of a scheme that follow from the model's files alone."""
_NEAREST, _LISTED = 3, 8
"""Names in a refusal: those spelled most alike, and those below a record."""


class NotALimit(ValueError):
    """A text that is not a limit: what is wrong with it, and what is allowed in its place."""

    def __init__(self, problem: str, allowed: str) -> None:
        super().__init__(f"{problem}; allowed: {allowed}")
        self.problem = problem
        self.allowed = allowed


class Figure(NamedTuple):
    """One figure of a report."""

    path: str
    """Its keys from the root of report.json; `block.abs_max` is no such path."""
    kind: Kind

    @property
    def scheme(self) -> str | None:
        """The scheme whose figure it is; None for any other."""
        first, _, rest = self.path.partition(".")
        return rest.partition(".")[0] if first == "schemes" else None

    @property
    def of_scheme(self) -> str:
        """The path inside the scheme's facts; empty for a figure that is no scheme's."""
        return self.path.split(".", 2)[2] if self.scheme else ""

    @property
    def depends_on_text(self) -> bool:
        """Whether another calibration text gives another value."""
        if self.scheme:
            return self.of_scheme not in _SIZES
        return self.path.partition(".")[0] in (
            "outliers",
            "heads",
            "reference",
            "labelled",
            "profile",
            "surface",
            "block",
        )

    @property
    def exact(self) -> bool:
        """Whether it follows from the model's files alone, so that every difference is one of the model."""
        if self.scheme:
            return self.of_scheme in _SIZES
        return self.path.partition(".")[0] == "model"


def figure(name: str, schemes: Sequence[str]) -> Figure:
    """Return the figure that a name stands for, in reports of a job that runs these schemes.

    Raises NotALimit for a name that is no figure's, with the nearest names, and for a scheme that is not run.
    """
    known = _figures(tuple(schemes))
    paths = [f"schemes.{name}", name] if name.partition(".")[0] in schemes else [name]
    for path in paths:
        if path in known:
            return known[path]
        if (pattern := _with_any_key(path, known)) is not None:
            return Figure(path, known[pattern].kind)
    raise _refusal(name, paths[0], tuple(schemes), known)


def read(of: Figure, side: ComparableReport) -> float | str | frozenset[int] | None:
    """Return the figure's value in a report; None where the report has none, or one that is not finite.

    Of a level it is the word, of a set its dimensions.
    """
    if of.path == BLOCK_ABS_MAX:
        return _block_abs_max(side)
    if of.kind == "dimensions":
        definition = side.report.outliers.present().get(of.path.removeprefix("outliers."))
        return None if definition is None else frozenset(one.dimension for one in definition.dimensions)
    value: Any = side.report
    for key in of.path.split("."):
        value = value.get(key) if isinstance(value, dict) else getattr(value, key, None)
    if of.kind == "level":
        return value if isinstance(value, str) else None
    return float(value) if _is_number(value) and math.isfinite(value) else None


@cache
def _figures(schemes: tuple[str, ...]) -> dict[str, Figure]:
    """Return all figures by their paths; a path that ends at a record is there beside the one that it means."""
    listed = {BLOCK_ABS_MAX: Figure(BLOCK_ABS_MAX, "number")}
    for path, meant, kind in _walk(Report, "", schemes):
        listed[path] = Figure(meant, kind)
    for definition in DEFINITIONS:
        listed[f"outliers.{definition}"] = Figure(f"outliers.{definition}", "dimensions")
    return listed


def _walk(record: type[BaseModel], prefix: str, schemes: tuple[str, ...]) -> Iterator[tuple[str, str, Kind]]:
    """Yield the path, the path meant and the kind of every figure below a record."""
    for key, field in record.model_fields.items():
        path = f"{prefix}{key}"
        if record is Report and key == "schemes":
            for scheme in schemes:
                yield from _walk(SchemeFacts, f"{path}.{scheme}.", schemes)
            continue
        yield from _of_type(field.annotation, path, schemes)


def _of_type(annotation: Any, path: str, schemes: tuple[str, ...]) -> Iterator[tuple[str, str, Kind]]:
    for one in _alternatives(annotation):
        if one in (int, float):
            yield path, path, "number"
        elif get_origin(one) is dict:
            for key in schemes if path == "heads.schemes" else (ANY_KEY,):
                yield from _of_type(get_args(one)[1], f"{path}.{key}", schemes)
        elif isinstance(one, type) and issubclass(one, BaseModel):
            yield from _of_record(one, path, schemes)


def _of_record(record: type[BaseModel], path: str, schemes: tuple[str, ...]) -> Iterator[tuple[str, str, Kind]]:
    if record is SchemeVerdict:
        for name in (path, f"{path}.level"):
            yield name, f"{path}.level", "level"
        return
    if meant := next((key for key in _MEANT if key in record.model_fields), None):
        yield path, f"{path}.{meant}", "number"
    yield from _walk(record, f"{path}.", schemes)


def _alternatives(annotation: Any) -> Iterator[Any]:
    """Yield the types that an annotation allows."""
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) in (Union, UnionType):
        for one in get_args(annotation):
            yield from _alternatives(one)
    else:
        yield annotation


def _with_any_key(path: str, known: Iterable[str]) -> str | None:
    """Return the known path that fits where one of its keys may be any."""
    keys = path.split(".")
    for pattern in known:
        parts = pattern.split(".")
        fits = len(parts) == len(keys) and all(b in (a, ANY_KEY) for a, b in zip(keys, parts, strict=True))
        if ANY_KEY in parts and fits and all(keys):
            return pattern
    return None


def _refusal(name: str, path: str, schemes: tuple[str, ...], known: Iterable[str]) -> NotALimit:
    scheme, _, of_scheme = name.removeprefix("schemes.").partition(".")
    if scheme not in schemes and (name.startswith("schemes.") or of_scheme in _of_any_scheme()):
        return NotALimit(f"{scheme!r} is no scheme of the job", ", ".join(schemes) or "none: the job runs no scheme")
    names = [key.removeprefix("schemes.") for key in known]
    if below := [key.removeprefix("schemes.") for key in known if key.startswith(f"{path}.")]:
        more = f" and {len(below) - _LISTED} more" if len(below) > _LISTED else ""
        return NotALimit(f"{name!r} holds several figures", f"{', '.join(below[:_LISTED])}{more}")
    near = difflib.get_close_matches(name, names, n=_NEAREST, cutoff=0.3)
    allowed = f"figures of a report; the nearest are {', '.join(near or names[:_NEAREST])}"
    return NotALimit(f"no report has a figure {name!r}", allowed)


@cache
def _of_any_scheme() -> frozenset[str]:
    """Return the paths inside a scheme's facts."""
    return frozenset(path for path, _, _ in _walk(SchemeFacts, "", ()))


def _block_abs_max(side: ComparableReport) -> float | None:
    rows = side.read("sites", ("component", "port", "abs_max"))
    if rows is None:
        return None
    of_blocks = [
        float(value)
        for component, port, value in zip(rows["component"], rows["port"], rows["abs_max"], strict=True)
        if (component, port) == ("block", "output") and value is not None and math.isfinite(value)
    ]
    return max(of_blocks, default=None)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
