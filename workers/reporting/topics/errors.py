"""The errors: of each module with the reference's input, and accumulated in the scheme's own stream."""

from service.contracts.report import WorstSite
from workers.reporting.loading import Source
from workers.reporting.text import ABSENT, listing, number, percent
from workers.reporting.topics.records import Grid, Topic, marked

LISTED_SITES = 5
"""Largest errors listed for each scheme; report.json has ten and tables/errors.parquet has all."""
MAX_UNFOLDED_TABLES = 4
"""With more schemes than this, their tables of worst sites are folded."""
_EXACT = "exact"


def topic(source: Source) -> Topic:
    """Return the section on errors."""
    title = "Errors of modules and of the residual stream"
    schemes = source.report.schemes
    worst = {name: facts.worst_sites[0] for name, facts in schemes.items() if facts.worst_sites}
    if not worst:
        lead = "No scheme was measured." if not schemes else "No module was quantized, so there are no errors."
        return Topic("errors", title, lead)
    grown = {name: _grown(source, name) for name in schemes}
    notes = (
        "Isolated error: one quantized module with the reference's input. Accumulated error: the residual stream after "
        "each layer of the quantized model. A large isolated error may change the predictions little: which "
        "modules to keep in 16 bits does not follow from it. To measure that, run headroom recommend.",
        *_typical(source),
    )
    return Topic(
        "errors",
        title,
        _lead(worst, grown),
        notes,
        grids=(by_scheme(source), *_worst_sites(source)),
    )


def _lead(worst: dict[str, WorstSite], grown: dict[str, list[str]]) -> str:
    name = max(worst, key=lambda one: worst[one].relative_l2)
    site = worst[name]
    where = f"{_site(site)} under {name} has the largest error of a single module: {percent(site.relative_l2)}."
    where = where[0].upper() + where[1:]
    first, last = grown[name][0], grown[name][-1]
    if ABSENT in (first, last) or len(grown[name]) == 1:
        return where
    start = "exact" if first == _EXACT else f"{first} dB"
    end = "exact" if last == _EXACT else f"{last} dB"
    return f"{where} The SQNR of its residual stream is {start} after the first layer and {end} after the last."


def _typical(source: Source) -> tuple[str, ...]:
    """Return which dimensions the typical SQNR leaves out, where the report has it."""
    if not _typical_after_last(source):
        return ()
    massive = _names(source.report.outliers.massive_dimensions())
    return (f"Massive dimensions can dominate the SQNR of the stream. The typical SQNR leaves them out ({massive}).",)


def _typical_after_last(source: Source) -> dict[str, str]:
    """Return by scheme the SQNR after the last layer without the massive dimensions; empty where there are none."""
    last = {name: _grown(source, name, "sqnr_db_typical")[-1] for name in source.report.schemes}
    return last if source.report.outliers.massive_dimensions() and set(last.values()) != {ABSENT} else {}


def _names(dimensions: frozenset[int]) -> str:
    return listing([str(dimension) for dimension in sorted(dimensions)], 10)


def by_scheme(source: Source) -> Grid:
    """Return each scheme's worst module, and its stream's error after the first and the last layer."""
    typical = _typical_after_last(source)
    rows = []
    for name, facts in source.report.schemes.items():
        grown = _grown(source, name)
        worst = facts.worst_sites[0] if facts.worst_sites else None
        cells = (_site(worst), percent(worst.relative_l2), number(worst.sqnr_db)) if worst else (ABSENT,) * 3
        rows.append((marked(name, facts), *cells, grown[0], grown[-1], *([typical[name]] if typical else [])))
    head = ("Scheme", "Module", "Relative error", "SQNR, dB", "Stream after first layer, dB", "After last layer, dB")
    return Grid(
        "Largest isolated error of each scheme, and SQNR of its residual stream"
        f"{'; typical: without the massive dimensions' if typical else ''}",
        (*head, "After last layer, typical, dB") if typical else head,
        tuple(rows),
    )


def named(site: WorstSite) -> str:
    """Return a site with its error: `layer 3 attn.v (14.4%)`."""
    return f"{_site(site)} ({percent(site.relative_l2)})"


def _site(site: WorstSite) -> str:
    return f"layer {site.layer} {site.component}"


def _grown(source: Source, scheme: str, column: str = "sqnr_db") -> list[str]:
    """Return the stream's accumulated SQNR in dB after every layer; of the column that is named."""
    if "errors" not in source.tables:
        return [ABSENT] * source.report.model.layers
    layers, rows = source.stream_errors(scheme)
    cells = [ABSENT] * source.report.model.layers
    for layer, sqnr, exact in zip(layers, rows[column], rows["exact"], strict=True):
        cells[layer] = _EXACT if exact else number(float(sqnr))
    return cells


def _worst_sites(source: Source) -> tuple[Grid, ...]:
    """Return one table of the largest isolated errors for each scheme that has any."""
    return tuple(
        Grid(
            f"Largest isolated errors: {marked(name, scheme)}",
            ("Module", "Relative error", "SQNR, dB"),
            tuple(
                (_site(site), percent(site.relative_l2), number(site.sqnr_db))
                for site in scheme.worst_sites[:LISTED_SITES]
            ),
            folded=len(source.report.schemes) > MAX_UNFOLDED_TABLES,
        )
        for name, scheme in source.report.schemes.items()
        if scheme.worst_sites
    )
