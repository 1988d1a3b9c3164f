"""`fp16_columns`: the share of input columns that int8 computes in 16 bits, layers by components.

LLM.int8() computes every input column that has an outlier in the call in 16 bits. A cell is the share of such columns
when a call is one sequence, as in prefill: where it is large, int8 saves memory but little time.
"""

from collections.abc import Iterator
from functools import partial

import numpy as np
from numpy.typing import NDArray

from service.contracts.report import FP16_COLUMNS_WARNING_SHARE
from service.contracts.schemes import BITSANDBYTES_INT8, SCHEMES
from service.evaluation.numbers import short_percent
from workers.reporting.drawing import style
from workers.reporting.drawing.color_scales import share_norm
from workers.reporting.drawing.component_map import COMPONENTS, cells_of, draw_map, largest_cell
from workers.reporting.drawing.figure import Caption, Drawing, provenance
from workers.reporting.loading import Columns, Source, select
from workers.reporting.text import listing, number, percent, visible

_TABLE = "fp16_columns"
_scale = partial(share_norm, least=FP16_COLUMNS_WARNING_SHARE)
"""So that a pale map is one without a problem, whatever its largest share is."""


def draw(source: Source) -> Iterator[Drawing]:
    """Yield a map for every variant of int8."""
    for scheme, facts in source.report.schemes.items():
        known = SCHEMES.get(facts.scheme)
        if known is None or known.kernel != BITSANDBYTES_INT8:
            continue
        rows = select(source.tables[_TABLE], scheme=scheme)
        cells = cells_of(source, _TABLE, rows, "prefill")
        title = f"Input columns in 16 bits: {style.scheme_title(scheme, facts)}"
        bar = "share of the input's columns (prefill)"
        figure, hover = draw_map(cells, title, bar, COMPONENTS, _scale, style.SEQUENTIAL)
        yield Drawing(
            name=f"fp16_columns_{scheme}",
            title=title,
            parts=_caption(source, scheme, rows, cells),
            alt=_alt(title, cells),
            table=_TABLE,
            figure=figure,
            hover=hover,
        )


def _caption(source: Source, scheme: str, rows: Columns, cells: NDArray[np.float64]) -> Caption:
    facts = source.report.schemes[scheme]
    limit = facts.settings.get("threshold")
    notes = [f"Threshold {visible(str(limit))}." if limit is not None else ""]
    if (columns := facts.fp16_columns) is not None:
        most = columns.largest
        notes.append(
            f"Mean {short_percent(columns.prefill)}; largest {short_percent(most.prefill)}, layer {most.layer} "
            f"{visible(most.component)}."
        )
    if np.isnan(cells).any():
        notes.append("Hatched, n/a: the component does not exist or is not quantized.")
    others = sorted({str(name) for name in rows["component"]} - {*COMPONENTS})
    if others:
        shares = (f"{visible(name)} ({percent(rows['prefill'][rows['component'] == name].max())})" for name in others)
        notes.append(f"Other components, with the largest share over layers: {listing(shares)}.")
    return Caption(
        "Share of the input columns that bitsandbytes computes in 16 bits, by layer and component.",
        (
            "A column counts if any abs(x) of the reference's input in fp16 reaches the threshold in a call (one "
            "sequence, prefill); mean over calls.",
        ),
        "Dark components gain little speed from int8.",
        tuple(notes),
        provenance(source.report, _TABLE, (scheme,)),
    )


def _alt(title: str, cells: NDArray[np.float64]) -> str:
    if not np.isfinite(cells).any():
        return f"Heat map, {title}: no share for any of the seven components."
    return (
        f"Heat map, {title}, {cells.shape[0]} layers by {cells.shape[1]} components: shares from "
        f"{number(np.nanmin(cells))} to {number(np.nanmax(cells))}; largest at {largest_cell(cells)}."
    )
