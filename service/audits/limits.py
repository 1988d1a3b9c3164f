"""The language of limits: `FIGURE <= BOUND`, `FIGURE no worse than LEVEL`, `outliers.DEFINITION none gained`.

    int8.perplexity_ratio <= 1.01                    an absolute bound; `>=` likewise
    nf4.kl_divergence.mean <= baseline * 1.2         a bound from the baseline; the factor may be left out
    int8.verdict no worse than baseline              or than negligible, noticeable, severe
    outliers.llm_int8_relative none gained           no outlier dimension that the baseline has not

Everything is checked when the audit is made, except that a report may lack a figure which others have.
"""

import math
import re
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple, get_args

from service.audits.figures import Figure, NotALimit, figure
from service.errors import InvalidRequest
from service.evaluation.verdict import Level

Relation = Literal["<=", ">=", "no worse than", "none gained"]
"""How a figure is held to its bound."""
LEVELS = tuple(level.name for level in Level if level is not Level.unjudged)
"""The levels of a verdict, from the mildest."""
POSITIVE = ("perplexity.value", "perplexity_ratio.value", "delta_p.rms")
"""Figures of a scheme that are tested by their logarithms or squares; a bound of 0 or less tells nothing."""
_BASELINE = "baseline"
_WORDS: dict[str, Relation] = {"number": "<=", "level": "no worse than", "dimensions": "none gained"}
_FORMS = {
    "number": "FIGURE <= NUMBER, FIGURE >= NUMBER, FIGURE <= baseline * NUMBER, such as int8.perplexity_ratio <= 1.01",
    "level": f"S.verdict no worse than baseline, or than one of {', '.join(LEVELS)}",
    "dimensions": "outliers.DEFINITION none gained, such as outliers.llm_int8 none gained",
}
_FIGURE = re.compile(r"\s*([A-Za-z0-9_.-]+)\s*(.*)", re.DOTALL)
_OPERATOR = re.compile(r"([^\s\w.+-]+)\s*(.*)", re.DOTALL)
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_AGAINST = re.compile(rf"[<>]=\s*{_BASELINE}\b")
_FACTOR = re.compile(rf"{_BASELINE}(\s*\*\s*(?P<factor>\S+))?")


class Limit(NamedTuple):
    """One limit that a report is held to; `parse` makes it."""

    text: str
    """As it was written, with single spaces."""
    figure: Figure
    relation: Relation
    against_baseline: bool
    """Whether the baseline gives the bound."""
    bound: float
    """The number, the factor of the baseline's figure, or the rank of the level; 1 where the limit has none."""

    @property
    def sign(self) -> int:
        """1 where a larger figure breaks the limit, -1 where a smaller one does."""
        return -1 if self.relation == ">=" else 1


def parse(text: str, schemes: Sequence[str]) -> Limit:
    """Return the limit that a text says, for a job that runs these schemes.

    Raises InvalidRequest for a text that says none, a figure that no report has, or a relation that does not fit it.
    """
    try:
        return _parsed(" ".join(text.split()), schemes)
    except NotALimit as error:
        raise InvalidRequest("limits", text, error.allowed, problem=f"is not a limit: {error.problem}") from error


def parse_all(texts: Iterable[str], schemes: Sequence[str]) -> tuple[Limit, ...]:
    """Return the limits of an audit. Raises InvalidRequest, also where two say the same."""
    limits: dict[tuple[Figure, Relation, bool, float], Limit] = {}
    for text in texts:
        limit = parse(text, schemes)
        if other := limits.get(limit[1:]):
            raise InvalidRequest("limits", text, "each limit once", problem=f"says the same as {other.text!r}")
        limits[limit[1:]] = limit
    return tuple(limits.values())


def compared_figures(limits: Iterable[Limit]) -> list[str]:
    """Return the paths of the numbers that limits hold against a baseline, by which a median is chosen."""
    return [one.figure.path for one in limits if one.against_baseline and one.figure.kind == "number"]


def is_against_baseline(text: str) -> bool:
    """Return whether the baseline gives the bound of a number's limit, by its text."""
    return _AGAINST.search(text) is not None


def holds(limit: Limit, value: float, bound: float) -> bool:
    """Return whether a number, or the rank of a level, is within its bound."""
    return limit.sign * value <= limit.sign * bound


def _parsed(text: str, schemes: Sequence[str]) -> Limit:
    parts = _FIGURE.fullmatch(text)
    if parts is None or not parts[2]:
        raise NotALimit("it has no figure, or nothing after it", "; ".join(_FORMS.values()))
    about = figure(parts[1], schemes)
    relation, rest = _relation(parts[2], about)
    if relation == "none gained":
        if rest:
            raise NotALimit(f"{rest!r} does not belong there", _FORMS["dimensions"])
        return Limit(text, about, relation, True, 1.0)
    if relation == "no worse than":
        if rest not in (_BASELINE, *LEVELS):
            raise NotALimit(f"{rest!r} is not a level", _FORMS["level"])
        against = rest == _BASELINE
        return Limit(text, about, relation, against, 1.0 if against else float(LEVELS.index(rest)))
    return Limit(text, about, relation, *_bound(rest, about))


def _relation(text: str, about: Figure) -> tuple[Relation, str]:
    """Return the relation that a text begins with, and the rest. Raises NotALimit for one that does not fit."""
    kind = "set of dimensions" if about.kind == "dimensions" else about.kind
    for words in ("no worse than", "none gained"):
        if text == words or text.startswith(f"{words} "):
            if _WORDS[about.kind] != words:
                raise NotALimit(f"{words!r} does not fit {about.path}, a {kind}", _FORMS[about.kind])
            return _WORDS[about.kind], text.removeprefix(words).strip()
    operator = _OPERATOR.fullmatch(text)
    written = operator[1] if operator else text
    for one in ("<=", ">="):
        if written == one and operator and about.kind == "number":
            return _as_relation(one), operator[2]
    raise NotALimit(f"{written!r} does not fit {about.path}, a {kind}", _FORMS[about.kind])


def _as_relation(text: str) -> Relation:
    return next(one for one in get_args(Relation) if one == text)


def _bound(text: str, about: Figure) -> tuple[bool, float]:
    """Return whether the baseline gives the bound, and the number or the factor."""
    against = _FACTOR.fullmatch(text)
    number = "1" if against and not against["factor"] else against["factor"] if against else text
    if not _NUMBER.fullmatch(number) or not math.isfinite(value := float(number)):
        raise NotALimit(f"{number!r} is not a finite number", _FORMS["number"])
    if against and value <= 0:
        raise NotALimit(f"a factor of {number} is not over 0", _FORMS["number"])
    of_predictions = about.of_scheme or about.path.removeprefix("reference.")
    if not against and value <= 0 and of_predictions in POSITIVE:
        raise NotALimit(f"{about.path} is never negative, so a bound of {number} has no effect", "a number over 0")
    return bool(against), value
