"""Every figure of a report, in the order in which the page shows them. Adding a figure adds a line here."""

from collections.abc import Callable, Iterator

from workers.reporting.drawing.figure import Drawing
from workers.reporting.figures import (
    activation_profile,
    channel_surface,
    component_heatmap,
    divergence,
    error_growth,
    fp16_columns,
    frontier,
    head_agreement,
    head_severity,
    labelled_activations,
    outlier_dimensions,
    range_by_layer,
)
from workers.reporting.figures.harm import estimate_check, harm_map, harm_shares
from workers.reporting.loading import Source

FIGURES: tuple[Callable[[Source], Iterator[Drawing]], ...] = (
    divergence.draw,
    frontier.draw,
    error_growth.draw,
    component_heatmap.draw,
    outlier_dimensions.draw,
    fp16_columns.draw,
    activation_profile.draw,
    channel_surface.draw,
    range_by_layer.draw,
    head_severity.draw,
    head_agreement.draw,
    labelled_activations.draw,
    harm_map.draw,
    harm_shares.draw,
    estimate_check.draw,
)

SPLITTABLE = frozenset({component_heatmap.draw, head_severity.draw, head_agreement.draw, harm_map.draw})
"""Those that yield a figure for each scheme or metric, so that several processes can share them."""
