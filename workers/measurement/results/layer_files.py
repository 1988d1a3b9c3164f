"""Writes and reads the files of each layer: its rows of the tables, and the inputs of definitions over all layers.

A layer's files stand in a directory of their own, which takes its name when they are whole. The report is put
together from them at the end, layer by layer, so a measurement that was broken off and went on again leaves the
same tables as one that was not. Tables are Arrow files here, which are quicker to write than Parquet.
"""

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyarrow import feather

from service.contracts.tables import TABLES
from service.contracts.thresholds import HeadThresholds
from service.contracts.warnings import Warning
from workers.measurement.layers.layer_results import LayerResults
from workers.measurement.layers.sites import BLOCK_OUTPUT
from workers.measurement.results.layer_rows import PER_LAYER, write_layer
from workers.measurement.runtime.table_writer import TableRows
from workers.measurement.statistics.outliers.llm_int8 import Hits
from workers.measurement.statistics.surface import Surface

HITS = ("llm_int8", "llm_int8_relative")
"""The definitions of outlier dimensions for which a layer keeps where a magnitude was reached."""
_UNFINISHED = "unfinished"
_CHANNEL_ERRORS = "channel_errors.npz"


@dataclass(frozen=True)
class LayerFacts:
    """What a layer adds to the summary."""

    warnings: list[Warning]
    saved: dict[str, dict[str, int]]
    """By scheme: the modules that it replaced in the layer, and the bytes by which each is smaller."""
    paths: dict[str, list[str]]
    """By scheme: code paths that computed it."""
    left: dict[str, dict[str, str]]
    """By scheme: projections that it had no way of replacing, and why."""


class LayerFiles:
    """The files of the layers that are done."""

    def __init__(self, directory: Path, schemes: Sequence[str], thresholds: HeadThresholds) -> None:
        self._directory = directory
        self._schemes = schemes
        self._thresholds = thresholds
        self._largest_ratio = -math.inf  # max_to_median at block.output, of the layers that are done

    def keep_first(self, layers: int) -> None:
        """Make the directory if need be, and remove whatever is not of the first `layers` layers."""
        self._directory.mkdir(exist_ok=True)
        kept = {self._of(layer).name for layer in range(layers)}
        for entry in self._directory.iterdir():
            if entry.name not in kept:
                shutil.rmtree(entry)
        self._largest_ratio = max((_ratio(self.block_output(layer)) for layer in range(layers)), default=-math.inf)

    def write(self, results: LayerResults, warnings: list[Warning]) -> None:
        """Keep the results of a layer."""
        fresh = self._directory / _UNFINISHED
        fresh.mkdir()
        tables = {name: TableRows(TABLES[name], self._schemes) for name in PER_LAYER}
        write_layer(tables, results, self._thresholds)
        for name, rows in tables.items():
            feather.write_feather(rows.collected(), fresh / f"{name}.arrow", compression="uncompressed")
        for name in HITS:
            save_hits(fresh / f"{name}.npz", getattr(results, name).hits())
        errors = {name: scheme.channel_errors for name, scheme in results.schemes.items()}
        sums = {name: of_scheme.sums() for name, of_scheme in errors.items() if of_scheme is not None}
        np.savez(fresh / _CHANNEL_ERRORS, **sums)  # type: ignore[arg-type]
        ratio = _ratio(vars(results.ranges[BLOCK_OUTPUT].range()))
        if results.surface is not None and ratio > self._largest_ratio:
            save_surface(fresh / "surface.npz", results.surface())
            self._largest_ratio = ratio
        for name, vectors in results.labelled.items():
            np.savez(fresh / f"labelled-{name}.npz", *vectors)
        (fresh / "facts.json").write_text(json.dumps(_facts(results, warnings)), encoding="utf-8")
        fresh.rename(self._of(results.layer))

    def table(self, layer: int, name: str) -> pa.Table:
        """Return a layer's rows of a table."""
        return feather.read_table(self._of(layer) / f"{name}.arrow")

    def block_output(self, layer: int) -> dict[str, Any]:
        """Return a layer's row of the `sites` table for block.output."""
        here = (pc.field("component") == BLOCK_OUTPUT.component) & (pc.field("port") == BLOCK_OUTPUT.port)
        row: dict[str, Any] = self.table(layer, "sites").filter(here).to_pylist()[0]
        return row

    def standing_out(self, layers: int) -> int:
        """Return the layer, of the first `layers`, whose max_to_median at block.output is the largest.

        Of equals the first; a layer without such a figure ranks last.
        """
        return max(range(layers), key=lambda layer: _ratio(self.block_output(layer)))

    def hits(self, definition: str, layer: int) -> Hits:
        """Return where a layer reached the magnitude of one of the definitions of `HITS`."""
        return load_hits(self._of(layer) / f"{definition}.npz")

    def channel_errors(self, layer: int) -> dict[str, NDArray[np.float64]]:
        """Return by scheme the sums of y^2 and (y - q)^2 of every dimension at block.output, [2, d]."""
        with np.load(self._of(layer) / _CHANNEL_ERRORS) as stored:
            return dict(stored)

    def surface(self, layer: int) -> Surface:
        """Return the hidden state of the sequence with the largest magnitude at the layer that stands out.

        It is kept for every layer that stands out more than all before it.
        """
        return load_surface(self._of(layer) / "surface.npz")

    def labelled(self, layer: int, stream: str) -> list[NDArray[np.float32]]:
        """Return the last tokens of the labeled prompts, [B, d] a batch, at the layer that was asked for."""
        with np.load(self._of(layer) / f"labelled-{stream}.npz") as stored:
            return [stored[name] for name in stored.files]

    def facts(self, layer: int) -> LayerFacts:
        """Return what a layer adds to the summary."""
        stored: dict[str, Any] = json.loads((self._of(layer) / "facts.json").read_text(encoding="utf-8"))
        warnings = [Warning.model_validate(warning) for warning in stored["warnings"]]
        return LayerFacts(warnings, stored["saved"], stored["paths"], stored["left"])

    def _of(self, layer: int) -> Path:
        return self._directory / f"{layer:05d}"


def _facts(results: LayerResults, warnings: list[Warning]) -> dict[str, Any]:
    """Return the fields of a layer's `LayerFacts` as JSON."""
    return {
        "warnings": [warning.model_dump() for warning in warnings],
        "saved": {name: dict(scheme.saved) for name, scheme in results.schemes.items()},
        "paths": {name: sorted(scheme.paths) for name, scheme in results.schemes.items()},
        "left": {name: dict(scheme.left) for name, scheme in results.schemes.items()},
    }


def _ratio(site: Mapping[str, Any]) -> float:
    ratio = site["max_to_median"]
    return -1.0 if ratio is None else float(ratio)


def save_hits(file: Path, hits: Hits) -> None:
    """Write a layer's hits as a NumPy archive."""
    np.savez(file, **vars(hits))


def load_hits(file: Path) -> Hits:
    """Read what `save_hits` wrote."""
    with np.load(file) as stored:
        return Hits(**stored)


def save_surface(file: Path, surface: Surface) -> None:
    """Write a surface as a NumPy archive."""
    np.savez(file, **vars(surface))


def load_surface(file: Path) -> Surface:
    """Read what `save_surface` wrote."""
    with np.load(file) as stored:
        return Surface(
            sequence=int(stored["sequence"]),
            positions=int(stored["positions"]),
            channels=int(stored["channels"]),
            position=stored["position"],
            channel=stored["channel"],
            value=stored["value"],
        )
