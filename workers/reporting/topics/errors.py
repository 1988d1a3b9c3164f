"""The errors: where each arises, with the reference's own input, and how it grows in the scheme's own stream."""

import numpy as np
from numpy.typing import NDArray

from service.contracts.report import WorstSite
from workers.reporting.loading import Columns, Source, select
from workers.reporting.massive import massive_dimensions
from workers.reporting.text import ABSENT, listing, number, percent
from workers.reporting.topics.records import Grid, Topic, marked

COMPONENTS = ("attn.q", "attn.k", "attn.v", "attn.o", "mlp.up", "mlp.down", "mlp.gate")
"""Components with a column of their own, in the order of the maps."""
SIDE_BY_SIDE = 4
"""Schemes whose tables of worst sites stand open; those of more schemes are folded."""
_EXACT = "exact"


def topic(source: Source) -> Topic:
    """Return the section on errors."""
    title = "Errors: where they arise, how they grow"
    schemes = source.report.schemes
    worst = {name: facts.worst_sites[0] for name, facts in schemes.items() if facts.worst_sites}
    if not worst:
        lead = "No scheme was measured." if not schemes else "No quantized module has an error to show."
        return Topic("errors", title, lead)
    grown = {name: _grown(source, name) for name in schemes}
    notes = (
        "Isolated: each quantized module alone, fed with the reference's input; the worst are the first candidates to "
        "leave in 16 bits. Accumulated: the residual stream after each layer, in the scheme's own run.",
        *_typical(source),
    )
    return Topic(
        "errors",
        title,
        _lead(worst, grown),
        notes,
        grids=(by_scheme(source), *_worst_sites(source), *_all(source, grown)),
    )


def _lead(worst: dict[str, WorstSite], grown: dict[str, list[str]]) -> str:
    name = max(worst, key=lambda one: worst[one].relative_l2)
    site = worst[name]
    where = f"The largest error of a single module is {percent(site.relative_l2)}, at {_site(site)} under {name}"
    first, last = grown[name][0], grown[name][-1]
    if ABSENT in (first, last) or len(grown[name]) == 1:
        return f"{where}."
    start = "an exact stream" if first == _EXACT else f"{first} dB"
    end = "an exact stream" if last == _EXACT else f"{last} dB"
    return f"{where}; from the first layer to the last its stream goes from {start} to {end} of signal over noise."


def _typical(source: Source) -> tuple[str, ...]:
    """Say what the streams' errors are without the massive dimensions, where there are any."""
    massive, schemes = massive_dimensions(source.report), source.report.schemes
    last = {name: _grown(source, name, "sqnr_db_typical")[-1] for name in schemes}
    if not massive or set(last.values()) <= {ABSENT}:
        return ()
    told = "; ".join(f"{marked(name, schemes[name])} {of} dB" for name, of in last.items())
    return (
        f"Massive dimensions ({listing([str(dimension) for dimension in sorted(massive)], 10)}) are most of the "
        f"stream's signal and hide the error of the others. Without them the SQNR after the last layer is: {told}.",
    )


def by_scheme(source: Source) -> Grid:
    """Return each scheme's worst module, and its stream's error after the first and the last layer."""
    rows = []
    for name, facts in source.report.schemes.items():
        grown = _grown(source, name)
        worst = facts.worst_sites[0] if facts.worst_sites else None
        told = (_site(worst), percent(worst.relative_l2), number(worst.sqnr_db)) if worst else (ABSENT,) * 3
        rows.append((marked(name, facts), *told, grown[0], grown[-1]))
    return Grid(
        "The worst module of each scheme, and its stream's SQNR after the first and the last layer",
        ("Scheme", "Worst module", "Relative error", "SQNR, dB", "First layer, dB", "Last layer, dB"),
        tuple(rows),
    )


def named(site: WorstSite) -> str:
    """Return a site with its error: `layer 3 attn.v (14.4 %)`."""
    return f"{_site(site)} ({percent(site.relative_l2)})"


def _site(site: WorstSite) -> str:
    return f"layer {site.layer} {site.component}"


def _grown(source: Source, scheme: str, column: str = "sqnr_db") -> list[str]:
    """Return the stream's accumulated SQNR in dB after every layer; of the column that is named."""
    if "errors" not in source.tables:
        return [ABSENT] * source.report.model.layers
    rows = select(source.tables["errors"], scheme=scheme, mode="accumulated", component="block", port="output")
    layers = source.layers_of("errors", rows)
    told = [ABSENT] * source.report.model.layers
    for layer, sqnr, exact in zip(layers, rows[column], rows["exact"], strict=True):
        told[layer] = _EXACT if exact else number(float(sqnr))
    return told


def _growth(source: Source, grown: dict[str, list[str]]) -> Grid:
    return Grid(
        "Accumulated SQNR of the stream after each layer, dB",
        ("Layer", *(marked(name, source.report.schemes[name]) for name in grown)),
        tuple((str(layer), *told) for layer, told in enumerate(zip(*grown.values(), strict=True))),
        folded=True,
    )


def _all(source: Source, grown: dict[str, list[str]]) -> tuple[Grid, ...]:
    """Return the values behind the figures."""
    if "errors" not in source.tables:
        return ()
    isolated = (_isolated(source, name) for name in source.report.schemes)
    return _growth(source, grown), *isolated


def _worst_sites(source: Source) -> tuple[Grid, ...]:
    """Return one table of the largest isolated errors for each scheme that has any."""
    return tuple(
        Grid(
            f"Largest isolated errors of {marked(name, scheme)}",
            ("Site", "relative_l2", "SQNR, dB"),
            tuple((_site(site), number(site.relative_l2), number(site.sqnr_db)) for site in scheme.worst_sites),
            folded=len(source.report.schemes) > SIDE_BY_SIDE,
        )
        for name, scheme in source.report.schemes.items()
        if scheme.worst_sites
    )


def _isolated(source: Source, scheme: str) -> Grid:
    """Return every isolated error and weight error, layers by components."""
    rows = select(source.tables["errors"], scheme=scheme, mode="isolated", port="output")
    layers = source.layers_of("errors", rows)
    depth = source.report.model.layers
    cells = [_column(rows, layers, component, depth) for component in COMPONENTS]
    return Grid(
        f"Isolated relative_l2 / weight_error of {marked(scheme, source.report.schemes[scheme])}, layers by components",
        ("Layer", *COMPONENTS),
        tuple((str(layer), *(column[layer] for column in cells)) for layer in range(depth)),
        folded=True,
    )


def _column(rows: Columns, layers: NDArray[np.int64], component: str, depth: int) -> list[str]:
    told = [ABSENT] * depth
    for row in np.flatnonzero(rows["component"] == component):
        error, weight = float(rows["relative_l2"][row]), float(rows["weight_error"][row])
        told[layers[row]] = f"{number(error)} / {number(weight)}"
    return told
