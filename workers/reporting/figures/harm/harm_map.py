"""`harm_map`: layers by components, the harm of replacing each module alone, one map for each scheme.

A cell is what one module does to the predictions when everything else stays as it is. Where only some modules were
measured the map shows the estimates, which are of all.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from workers.reporting.drawing import style
from workers.reporting.drawing.color_scales import rising_norm
from workers.reporting.drawing.component_map import COMPONENTS, cells_of, draw_map, largest_cell
from workers.reporting.drawing.figure import Caption, Drawing, provenance
from workers.reporting.loading import Columns, Source, select
from workers.reporting.text import listing, number, visible

_TABLE = "harm"
FUSED = {
    "attn.qkv": ("attn.q", "attn.k", "attn.v"),
    "mlp.gate_up": ("mlp.gate", "mlp.up"),
    "attn.kv": ("attn.k", "attn.v"),
}
"""Components of a module that computes several."""


def draw(source: Source) -> Iterator[Drawing]:
    """Yield a map for every scheme of which the harm of modules is known."""
    for scheme in source.report.harm or {}:
        rows = select(source.tables[_TABLE], scheme=scheme)
        modules = {name: values[rows["component"] != "block"] for name, values in rows.items()}
        column = shown_column(modules)
        if column is None:
            continue
        cells = _cells(source, modules, column)
        what = "Estimated harm" if column == "estimated_harm" else "Harm"
        title = f"{what} of single modules: {style.scheme_title(scheme, source.report.schemes[scheme])}"
        bar = f"{what.lower()}, nats"
        figure, hover = draw_map(cells, title, bar, COMPONENTS, rising_norm, style.SEQUENTIAL)
        yield Drawing(
            name=f"harm_map_{scheme}",
            title=title,
            parts=_caption(source, scheme, modules, column, cells),
            alt=_alt(title, cells),
            table=_TABLE,
            figure=figure,
            hover=hover,
        )


def shown_column(modules: Columns) -> str | None:
    """Return the column that has a figure of every module: the measured harm, else the estimate; None if neither."""
    for column in ("harm", "estimated_harm"):
        if len(modules[column]) and np.isfinite(modules[column]).all():
            return column
    return "estimated_harm" if np.isfinite(modules["estimated_harm"]).any() else None


def _cells(source: Source, modules: Columns, column: str) -> NDArray[np.float64]:
    """Return the map, [layers, components]; a module that computes several components stands in the cell of each."""
    cells = cells_of(source, _TABLE, modules, column)
    layers = source.layers_of(_TABLE, modules)
    for fused, components in FUSED.items():
        here = modules["component"] == fused
        for component in components:
            cells[layers[here], COMPONENTS.index(component)] = modules[column][here]
    # Rounding can leave an estimate of nothing at 0, which has no logarithm.
    return np.where(cells > 0, cells, np.where(np.isnan(cells), np.nan, 0.0))


def _caption(source: Source, scheme: str, modules: Columns, column: str, cells: NDArray[np.float64]) -> Caption:
    notes = []
    if fused := [name for name in FUSED if (modules["component"] == name).any()]:
        notes.append(f"{listing(fused)}: one module, shown in the cell of each of its components.")
    others = sorted({str(name) for name in modules["component"]} - {*COMPONENTS, *FUSED})
    if others:
        worst = (f"{visible(name)} ({number(modules[column][modules['component'] == name].max())})" for name in others)
        notes.append(f"Other components, with the largest harm over layers: {listing(worst)}.")
    if np.isnan(cells).any():
        notes.append("Hatched, n/a: the component does not exist or is not quantized.")
    definition = "Harm: mean KL(reference || swap) over scored positions, where the swap replaces this module alone."
    if column == "estimated_harm":
        definition += " Estimated from gradients, to second order."
    return Caption(
        "Harm of replacing each module alone, by layer and component; log colors.",
        (definition,),
        "Keep dark modules in 16 bits first.",
        tuple(notes),
        provenance(source.report, _TABLE, (scheme,)),
    )


def _alt(title: str, cells: NDArray[np.float64]) -> str:
    if not np.isfinite(cells).any():
        return f"Heat map, {title}: no value for any of the seven components."
    return (
        f"Heat map, {title}, {cells.shape[0]} layers by {cells.shape[1]} components: harms from "
        f"{number(np.nanmin(cells))} to {number(np.nanmax(cells))} nats; largest at {largest_cell(cells)}."
    )
