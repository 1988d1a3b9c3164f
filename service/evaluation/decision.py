"""Decides from measured mixes what to ship, in sentences, and states its configuration.

What is shipped is the smallest option of the mildest effect: a scheme as it is, or a mix that beat its controls.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from service.contracts.harm.recommendation import KeptComponent, MixFacts, Recommendation
from service.contracts.report import Report
from service.evaluation.verdict import Level, verdict_of

UNIFORM = "uniform"
"""Name of the control that keeps nothing."""
LISTED_MODULES = 12
"""A mix that keeps more modules is not told module by module."""
_MEGABYTE = 1e6


class Option(NamedTuple):
    """What could be shipped."""

    scheme: str
    mix: MixFacts | None
    """None for the scheme as it is."""
    level: Level
    bytes: int
    kl: float


def decision(report: Report) -> tuple[str, ...]:
    """Return what to ship and what every recommended mix needs and gives; empty without a recommendation."""
    if report.recommendation is None:
        return ()
    shipped = to_ship(report)
    sentences = [] if shipped is None else [_shipping(shipped)]
    return (*sentences, *(_of_scheme(*pair) for pair in report.recommendation.items()))


def to_ship(report: Report) -> Option | None:
    """Return the smallest deployable option of the mildest effect; None where no effect could be judged."""
    judged = [option for option in _options(report) if option.level is not Level.unjudged]
    return min(judged, key=lambda option: (option.level, option.bytes, option.kl), default=None)


def _options(report: Report) -> Iterator[Option]:
    for name, facts in report.schemes.items():
        if facts.simulated or facts.analysis_only or facts.kl_divergence is None:
            continue
        level = Level[(facts.verdict or verdict_of(report, facts)).level]
        yield Option(name, None, level, facts.model_bytes, facts.kl_divergence.mean)
        recommended = (report.recommendation or {}).get(name)
        if recommended is not None and recommended.chosen is not None:
            mix = recommended.mix(recommended.chosen)
            yield Option(name, mix, Level[mix.level], mix.bytes, mix.kl.value)


def _shipping(shipped: Option) -> str:
    if shipped.level is Level.severe:
        return "Ship none of what was measured: every effect is severe."
    kept = f" with {in_words(shipped.mix.kept)} in 16 bits" if shipped.mix is not None else ""
    return f"Ship {shipped.scheme}{kept} (KL {shipped.kl:.3g}, {shipped.level.name})."


def _of_scheme(scheme: str, recommended: Recommendation) -> str:
    if recommended.chosen is None:
        return f"{scheme}: {recommended.reason}"
    mix, uniform = recommended.mix(recommended.chosen), recommended.mix(UNIFORM)
    error = f" ± {mix.kl.standard_error:.2g}" if mix.kl.standard_error is not None else ""
    change = "still" if mix.level == uniform.level else "now"
    only = " For analysis only: BitsAndBytesConfig cannot express it." if recommended.analysis_only else ""
    return (
        f"{scheme} needs {(mix.bytes - uniform.bytes) / _MEGABYTE:.3g} MB more: keep {in_words(mix.kept)} in 16 bits: "
        f"KL {uniform.kl.value:.3g} -> {mix.kl.value:.3g}{error} (predicted {mix.predicted_kl:.3g}), "
        f"{change} {mix.level}.{only}"
    )


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
    if shipped is None or shipped.level is Level.severe:
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
    """Return a configuration as Python, one argument a line."""
    return "\n".join(["BitsAndBytesConfig(", *(f"    {name}={value!r}," for name, value in config.items()), ")"])


def as_json(config: Mapping[str, Any]) -> str:
    """Return a configuration as the fragment of a model's config.json."""
    return json.dumps({"quantization_config": {"quant_method": "bitsandbytes", **config}}, indent=2)
