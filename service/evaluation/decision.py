"""Decides from measured mixes what to ship, in sentences, and states its configuration.

What is shipped is the smallest option of the mildest effect: a scheme as it is, or a mix that beat its controls. Under
a target of the KL divergence it is the smallest one that meets the target; what is larger than a target in bytes is not
shipped.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from service.contracts.harm.recommendation import KeptComponent, MixFacts, Recommendation
from service.contracts.report import Report
from service.evaluation.numbers import megabytes, number
from service.evaluation.verdict import Level, Limit, kl_limit, verdict_of

UNIFORM = "uniform"
"""Name of the control that keeps nothing."""
LISTED_MODULES = 12
"""A mix that keeps more modules is described by their number."""


class Option(NamedTuple):
    """What could be shipped."""

    scheme: str
    mix: MixFacts | None
    """None for the scheme as it is."""
    level: Level
    """The worse one, where a scheme was measured on held-out text too."""
    bytes: int
    kl: float
    """The larger one, likewise."""
    also: tuple[str, ...] = ()
    """Other levels that the 95% intervals allow."""


def decision(report: Report) -> tuple[str, ...]:
    """Return what to ship and what every recommended mix needs and gives; empty without a recommendation."""
    if report.recommendation is None:
        return ()
    shipped = to_ship(report)
    as_it_is = shipped.scheme if shipped is not None and shipped.mix is None else None
    of_schemes = (_of_scheme(*pair, shipped=pair[0] == as_it_is) for pair in report.recommendation.items())
    return (*_shipping(report), *of_schemes)


def to_ship(report: Report) -> Option | None:
    """Return what to ship; None where no option is within the target, judged and, without a target of KL, mild."""
    options = [option for option in _judged(report) if _within(report, option)]
    if report.analysis.recommend.max_kl is not None:
        return min(options, key=lambda option: (option.bytes, option.kl), default=None)
    mild = [option for option in options if option.level is not Level.severe]
    return min(mild, key=lambda option: (option.level, option.bytes, option.kl), default=None)


def _within(report: Report, option: Option) -> bool:
    """Whether an option meets the target that was asked for."""
    target = report.analysis.recommend
    fits = target.max_bytes is None or option.bytes <= target.max_bytes
    return fits and (target.max_kl is None or option.kl <= target.max_kl)


def _judged(report: Report) -> list[Option]:
    return [option for option in _options(report) if option.level is not Level.unjudged]


def _options(report: Report) -> Iterator[Option]:
    """Yield what can be deployed and has finite predictions."""
    for name in _deployable(report):
        facts = report.schemes[name]
        if facts.kl_divergence is None:
            continue
        recommended = (report.recommendation or {}).get(name)
        verdict = facts.verdict or verdict_of(report, facts)
        own = Option(
            name, None, Level[verdict.level], facts.model_bytes, facts.kl_divergence.mean, verdict.not_ruled_out
        )
        yield own if recommended is None else _with_held_out(own, recommended, kl_limit(report.analysis.verdict))
        if recommended is not None and recommended.chosen is not None:
            mix = recommended.mix(recommended.chosen)
            yield Option(name, mix, Level[mix.level], mix.bytes, mix.kl.value)


def _deployable(report: Report) -> list[str]:
    """Return the schemes that BitsAndBytesConfig can express."""
    return [name for name, facts in report.schemes.items() if not (facts.simulated or facts.analysis_only)]


def _with_held_out(own: Option, recommended: Recommendation, limit: Limit) -> Option:
    """Return a scheme as it is, with what the held-out text says of it.

    The worse level and the larger KL divergence of the two count; the interval may allow other levels too.
    """
    measured = next((mix for mix in recommended.mixes if mix.name == UNIFORM), None)
    if measured is None or own.level is Level.unjudged or measured.level == Level.unjudged.name:
        return own
    level = max(own.level, Level[measured.level])
    allowed = {own.level, Level[measured.level], *(Level[name] for name in own.also)}
    allowed |= {limit.level(bound) for bound in measured.kl.interval or ()}
    also = tuple(other.name for other in sorted(allowed - {level}))
    return own._replace(level=level, kl=max(own.kl, measured.kl.value), also=also)


def _shipping(report: Report) -> Iterator[str]:
    """Say what to ship."""
    shipped, judged, deployable = to_ship(report), _judged(report), _deployable(report)
    of = "was measured" if len(deployable) == len(report.schemes) else "BitsAndBytesConfig can express"
    if shipped is not None:
        kept = f" with {in_words(shipped.mix.kept)} in 16 bits" if shipped.mix is not None else ""
        also = f"; the 95% intervals also allow {' and '.join(shipped.also)}" if shipped.also else ""
        yield f"Ship {shipped.scheme}{kept} (KL {shipped.kl:.3g}, {shipped.level.name}{also})."
    elif judged:
        within = [option for option in judged if _within(report, option)]
        which = "every effect" if len(within) == len(judged) else "every effect within the target"
        yield f"Ship none of what {of}: {f'{which} is severe' if within else 'none meets the target'}."
    elif deployable:
        yield f"Ship none of what {of}: no effect could be judged."
    else:
        yield "Ship none of what was measured: BitsAndBytesConfig can express no scheme of this report."


def _of_scheme(scheme: str, recommended: Recommendation, *, shipped: bool) -> str:
    """Say what a scheme's mix needs and gives; `shipped`: the scheme is shipped as it is, so that nothing is needed."""
    if recommended.chosen is None:
        return f"{scheme}: {recommended.reason}"
    mix, uniform = recommended.mix(recommended.chosen), recommended.mix(UNIFORM)
    error = f" ± {mix.kl.interval[1] - mix.kl.value:.2g}" if mix.kl.interval is not None else ""
    larger = megabytes(mix.bytes - uniform.bytes)
    lead = f"{scheme} with {larger} more can keep" if shipped else f"{scheme} needs {larger} more: keep"
    change = "still" if mix.level == uniform.level else "now"
    only = " For analysis only: BitsAndBytesConfig cannot express it." if recommended.analysis_only else ""
    if recommended.selected_by == "measured":
        only += " Estimated harms do not add up, so measured harms of all modules selected it."
    return (
        f"{lead} {in_words(mix.kept)} in 16 bits: KL on held-out text {uniform.kl.value:.3g} -> "
        f"{mix.kl.value:.3g}{error} (95% interval; predicted {mix.predicted_kl:.3g}), "
        f"{change} {mix.level}{_missed(recommended, mix)}.{only}"
    )


def _missed(recommended: Recommendation, mix: MixFacts) -> str:
    """Say that a mix, which is selected by its prediction, has more than the target of the KL divergence."""
    target = recommended.target
    if target is None or target.kind != "max_kl" or target.value is None or mix.kl.value <= target.value:
        return ""
    return f", above the target of {number(target.value)}: set a lower --max-kl"


def in_words(kept: tuple[KeptComponent, ...]) -> str:
    """Return which components of which layers are kept: `mlp.down of layers 2, 11, 28`; a count where they are many."""
    modules = sum(len(one.layers) for one in kept)
    if modules > LISTED_MODULES:
        return f"{modules} modules"
    components: dict[tuple[int, ...], list[str]] = {}
    for one in kept:
        components.setdefault(one.layers, []).append(one.component)
    return "; ".join(
        f"{', '.join(names)} of layer{'s' if len(layers) > 1 else ''} {', '.join(map(str, layers))}"
        for layers, names in components.items()
    )


def configuration(report: Report) -> tuple[str, Mapping[str, Any]] | None:
    """Return the scheme that is shipped and the arguments of its BitsAndBytesConfig.

    None where nothing is, or where its configuration was not verified.
    """
    shipped = to_ship(report)
    if shipped is None:
        return None
    recommended = (report.recommendation or {}).get(shipped.scheme)
    if recommended is None or recommended.config is None or not recommended.config_verified:
        return None
    if shipped.mix is not None or recommended.chosen is None:
        return shipped.scheme, recommended.config
    # A mix was chosen, and the scheme as it is has the same effect: it skips what the mix does not keep.
    kept = set(recommended.mix(recommended.chosen).skip_modules)
    skipped = [name for name in recommended.config["llm_int8_skip_modules"] if name not in kept]
    return shipped.scheme, {**recommended.config, "llm_int8_skip_modules": skipped}


def as_python(config: Mapping[str, Any]) -> str:
    """Return a configuration as Python, one argument a line, and one module a line."""
    return "\n".join(
        ["BitsAndBytesConfig(", *(f"    {name}={_literal(value)}," for name, value in config.items()), ")"]
    )


def _literal(value: object) -> str:
    if not isinstance(value, list) or not value:
        return repr(value)
    return "\n".join(["[", *(f"        {one!r}," for one in value), "    ]"])


def as_json(config: Mapping[str, Any]) -> str:
    """Return a configuration as the fragment of a model's config.json."""
    return json.dumps({"quantization_config": {"quant_method": "bitsandbytes", **config}}, indent=2)
