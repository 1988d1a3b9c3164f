"""Refuses, before the sweep, what the shapes of the modules show cannot be measured or recommended."""

from collections.abc import Mapping, Sequence

from service.contracts.harm.recommendation import RecommendSettings
from service.contracts.request import Analysis
from workers.measurement.errors import BadRequest
from workers.measurement.harm.expected import Expected
from workers.measurement.harm.selection import of_component

Sizes = tuple[int, int]
"""Bytes of the model under a scheme, and as it came."""


def check_harm(analysis: Analysis, expected: Sequence[Expected]) -> None:
    """Refuse settings of harm and of mixes that fit no part of the model.

    Raises:
        BadRequest: a scheme replaces no module of the layers; no module has the component that was asked for; or no
            mix of any scheme has so few bytes, or so many, as the target.
    """
    if not analysis.harm.measures:
        return
    for one in expected:
        if not one.components:
            raise BadRequest(
                f"schemes: {one.scheme.name} replaces no module of the layers, so that it has no harm; keep fewer "
                "modules, or leave the scheme out of this job"
            )
        if analysis.harm.component is not None:
            of_component(analysis.harm.component, one.components)
    check_sizes(analysis.recommend, {one.scheme.name: (one.uniform_bytes, one.reference_bytes) for one in expected})


def check_sizes(settings: RecommendSettings, sizes: Mapping[str, Sizes]) -> None:
    """Refuse a target in bytes that no mix of any scheme has.

    Args:
        settings: the target.
        sizes: by scheme.

    Raises:
        BadRequest: says which bytes the smallest scheme has.
    """
    if sizes and not any(fits(settings, *of) for of in sizes.values()):
        smallest = min(sizes, key=lambda name: sizes[name])
        check_target(settings, smallest, *sizes[smallest])


def check_target(settings: RecommendSettings, scheme: str, uniform_bytes: int, reference_bytes: int) -> None:
    """Refuse a target in bytes that no mix of a scheme has, and say which ones do."""
    if settings.max_bytes is not None and not fits(settings, uniform_bytes, reference_bytes):
        raise BadRequest(
            f"recommend.max_bytes: {int(settings.max_bytes):,} is not allowed; the smallest mix of {scheme} takes "
            f"{uniform_bytes:,} bytes, and the model in 16 bits {reference_bytes:,}"
        )


def fits(settings: RecommendSettings, uniform_bytes: int, reference_bytes: int) -> bool:
    """Whether a scheme of these bytes has mixes of the bytes that were asked for."""
    return settings.max_bytes is None or uniform_bytes <= settings.max_bytes < reference_bytes
