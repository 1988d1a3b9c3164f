"""A report made up from a seed: plausible tables of any size, so that drawing is tested without measuring."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_up import error, head_rows, labelled_rows, labelled_section
from made_up_states import DAMAGE, SHARED_INPUTS, channel_rows, surface_rows, surface_section, token_rows
from scipy import stats

from service.contracts.schemes import SCHEMES
from service.contracts.sections.labelled import labelled_table
from service.contracts.tables import TABLES, Table
from workers.reporting.drawing import style
from workers.reporting.drawing.figure import Drawing
from workers.reporting.figures import activation_profile, gallery
from workers.reporting.loading import load
from workers.reporting.render import render

COMPONENTS = ("attn.q", "attn.k", "attn.v", "attn.o", "mlp.gate", "mlp.up", "mlp.down")


@dataclass(frozen=True)
class Recipe:
    """What the made-up report is about."""

    layers: int = 8
    hidden_size: int = 256
    positions: int = 48
    """Tokens of the sequence in table `surface`."""
    schemes: tuple[str, ...] = ("int8", "nf4")
    absent: Mapping[str, tuple[int, ...] | None] = field(default_factory=dict)
    """Components without rows: in these layers, or in all (None)."""
    extra: tuple[str, ...] = ()
    """Module names measured as components of their own."""
    exact_layers: int = 0
    """First layers after which every scheme's stream equals the reference."""
    outliers: int = 3
    heads: int = 8
    outlier_heads: bool = True
    """About one head in six is an outlier; else none."""
    labelled: int = 160
    """Labeled prompts; 0 for none given."""
    label_dimensions: tuple[int, ...] = (201, 14, 35, 67)
    source: str = "example/llama-small"
    token: str = "the"
    warnings: tuple[tuple[str | None, ...], ...] = ()
    """Code, message and where; and advice, which earlier reports have not."""
    seed: int = 0


Rows = list[dict[str, Any]]


class Maker:
    """Makes the tables and report.json of one recipe."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.random = np.random.default_rng(recipe.seed)
        count = min(recipe.outliers, recipe.hidden_size)
        self.dimensions = np.sort(self.random.choice(recipe.hidden_size, count, replace=False))

    def components(self, layer: int) -> list[str]:
        present = [
            name
            for name in COMPONENTS
            if name not in self.recipe.absent or layer not in (self.recipe.absent[name] or range(self.recipe.layers))
        ]
        return [*present, *self.recipe.extra]

    def site(self, layer: int, component: str, port: str) -> dict[str, Any]:
        scale = float(self.random.lognormal(0, 0.2) * (1 + layer / self.recipe.layers))
        peak = scale * float(self.random.uniform(12, 90))
        median = 0.67 * scale
        return {
            "layer": layer, "component": component, "port": port, "tokens": 4096,
            "channels": self.recipe.hidden_size, "min": -0.7 * peak, "max": peak, "abs_max": peak, "mean": 0.01,
            "std": scale, "rms": scale, "median_abs": median, "p99_abs": 2.6 * scale, "p99_9_abs": 4 * scale,
            "p99_99_abs": 0.8 * peak, "crest_db": 20 * np.log10(peak / scale), "max_to_median": peak / median,
            "range_bits": np.log2(peak / median), "kurtosis": float(self.random.uniform(3, 400)),
            "kurtosis_per_sequence": 20.0, "inf_norm_per_sequence": 0.9 * peak, "token_abs_max_p50": 0.5 * peak,
            "token_abs_max_p99": 0.9 * peak, "over_fp16": 0, "nonfinite": 0,
        }  # fmt: skip

    def sites(self) -> Rows:
        return [
            self.site(layer, component, port)
            for layer in range(self.recipe.layers)
            for component, port in [
                *((name, "input") for name in self.components(layer) if name not in SHARED_INPUTS),
                *((name, "output") for name in self.components(layer)),
                ("block", "output"),
            ]
        ]

    def error(self, scheme: str, layer: int, component: str, mode: str, error: float, exact: bool) -> dict[str, Any]:
        weight = DAMAGE[scheme] * float(self.random.uniform(0.9, 1.15))
        return {
            "scheme": scheme, "layer": layer, "component": component, "port": "output", "mode": mode,
            "sqnr_db": None if exact else -20 * np.log10(error), "relative_l2": 0.0 if exact else error,
            "median_token_error": 0.9 * error, "cosine": 1 - error**2 / 2, "max_abs_error": 4 * error,
            "weight_error": weight if mode == "isolated" and component != "block" else None, "exact": exact,
            "sqnr_db_typical": None if exact or component != "block" else -20 * np.log10(error),
        }  # fmt: skip

    def errors(self) -> Rows:
        rows = []
        for scheme in self.recipe.schemes:
            for layer in range(self.recipe.layers):
                for component in self.components(layer):
                    error = DAMAGE[scheme] * float(self.random.lognormal(0, 0.25))
                    error *= 1 + 2.5 * (component == "mlp.down") * (layer % 7 == 1)
                    rows.append(self.error(scheme, layer, component, "isolated", error, exact=False))
                    rows.append(self.error(scheme, layer, component, "accumulated", 1.3 * error, exact=False))
                grown = DAMAGE[scheme] * float(np.sqrt(1 + layer)) * float(self.random.lognormal(0, 0.05))
                exact = layer < self.recipe.exact_layers
                rows.append(self.error(scheme, layer, "block", "accumulated", grown, exact))
        return rows

    def outlier_dimensions(self) -> Rows:
        return [
            {"definition": "llm_int8", "layer": None, "dimension": int(dimension), **self.figures(), "q25": -21.5,
             "q50": -14.25, "q75": -9.0}
            for dimension in self.dimensions
        ]  # fmt: skip

    def figures(self) -> dict[str, Any]:
        return {"layers_fraction": 0.75, "positions_fraction": 0.4, "abs_max": 61.25, "one_sided": True}

    def profile(self) -> Rows:
        values = self.random.standard_t(4, self.recipe.hidden_size).astype(np.float32)
        values[self.dimensions] = self.random.choice([-1, 1], len(self.dimensions)) * self.random.uniform(
            20, 60, len(self.dimensions)
        )
        return [{"dimension": index, "value": float(value)} for index, value in enumerate(values)]

    def channels(self) -> Rows:
        random = np.random.default_rng([self.recipe.seed, 3])
        return channel_rows(random, self.recipe.layers, range(min(64, self.recipe.hidden_size)))

    def surface(self) -> Rows:
        random = np.random.default_rng([self.recipe.seed, 4])
        return surface_rows(random, self.recipe.positions, self.recipe.hidden_size)

    def histograms(self) -> Rows:
        return [{"layer": 0, "component": "block", "port": "output", "bin_low": 1.0, "bin_high": 1.03, "count": 7}]

    def fp16_columns(self) -> Rows:
        random = np.random.default_rng([self.recipe.seed, 6])
        return [
            {"scheme": "int8", "layer": layer, "component": component, "prefill": share, "decode": share / 10}
            for layer in range(self.recipe.layers if "int8" in self.recipe.schemes else 0)
            for component in self.components(layer)
            for share in [float(random.uniform(0.001, 0.4))]
        ]

    def column_facts(self, name: str) -> dict[str, Any] | None:
        rows = [row for row in self.rows["fp16_columns"] if row["scheme"] == name]
        if not rows:
            return None
        largest = max(rows, key=lambda row: row["prefill"])
        return {
            "prefill": float(np.mean([row["prefill"] for row in rows])),
            "decode": float(np.mean([row["decode"] for row in rows])),
            "components": {
                component: float(np.mean([row["prefill"] for row in rows if row["component"] == component]))
                for component in {row["component"] for row in rows}
            },
            "largest": {key: largest[key] for key in ("layer", "component", "prefill")},
        }

    def massive_activations(self) -> Rows:
        return [
            {"layer": 0, "sequence": 0, "position": 0, "token": "<s>", "token_id": 0, "dimension": 1, "value": -150.5,
             "ratio_tensor": 1500.0, "ratio_token": 400.0}
        ]  # fmt: skip

    def heads(self) -> Rows:
        recipe = self.recipe
        random = np.random.default_rng([recipe.seed, 1])
        return head_rows(random, recipe.layers, recipe.heads, recipe.schemes, recipe.outlier_heads)

    def labelled(self) -> Rows:
        recipe = self.recipe
        random = np.random.default_rng([recipe.seed, 2])
        return labelled_rows(random, recipe.labelled, recipe.label_dimensions, recipe.schemes)

    def tokens(self) -> Rows:
        return token_rows(np.random.default_rng([self.recipe.seed, 5]), self.recipe.schemes)

    def scheme(self, name: str) -> dict[str, Any]:
        damage = DAMAGE[name]
        worst = sorted(
            (row for row in self.rows["errors"] if row["scheme"] == name and row["mode"] == "isolated"),
            key=lambda row: -row["relative_l2"],
        )[:10]
        mean = 4 * damage**2
        return {
            "settings": dict(SCHEMES[name].settings),
            "perplexity": {"value": 12.5 * (1 + 2 * damage**2), **error(12.5 * (1 + 2 * damage**2), 0.31),
                           "scored_tokens": 4080},
            "perplexity_ratio": {"value": 1 + 2 * damage**2, **error(1 + 2 * damage**2, 0.003)},
            "kl_divergence": {"mean": mean, **error(mean, mean / 20), "median": mean / 2, "p90": 2 * mean,
                              "p95": 3 * mean, "p99": 8 * mean, "p99_9": 15 * mean, "max": 30 * mean},
            "same_top_token": {"value": 1 - 0.9 * damage, **error(1 - 0.9 * damage, 0.002)},
            "delta_p": {"mean": -0.001, "rms": 0.02},
            "model_bytes": 3_400_000 if name == "int8" else 1_900_000,
            "compression": 2.0 if name == "int8" else 3.6,
            "not_quantised": ["lm_head"],
            "worst_sites": [
                {key: row[key] for key in ("layer", "component", "relative_l2", "sqnr_db")} for row in worst
            ],
            "fp16_columns": self.column_facts(name),
        }  # fmt: skip

    def facts(self) -> dict[str, Any]:
        """The parts of report.json that the recipe does not change."""
        return {
            "schema_version": "1.2", "definitions_version": "1.1", "headroom_version": "0.1.0",
            "job_id": "0198c0ffee", "created_at": "2026-11-20T12:34:56Z",
            "analysis": {"schemes": ["int8", "nf4"], "sequences": 16, "sequence_length": 256},
            "calibration": {"source": "calibration.txt", "fingerprint": "sha256:" + "b" * 64, "sequences": 16,
                            "sequence_length": 256, "tokens": 4096, "adds_bos": True, "documents": 1,
                            "separator": None, "seed": 0,
                            "batch_sequences": 8},
            "environment": {"device": "cpu", "torch": "2.13.0", "transformers": "5.23.0", "bitsandbytes": "0.50.2",
                            "python": "3.11.2", "kernels": {"int8": "cpu int8", "nf4": "plain"}},
            "timing": {"wall_seconds": 83.4, "stage_seconds": {"load": 1.2, "calibrate": 0.9, "sweep": 75.0,
                       "divergence": 5.0, "write": 0.6},
                       "peak_memory_bytes": {"resident": 913_000_000, "device": None}},
            "reference": {"perplexity": {"value": 12.5, **error(12.5, 0.3), "scored_tokens": 4080}},
        }  # fmt: skip

    def report(self) -> dict[str, Any]:
        recipe = self.recipe
        values = np.array([row["value"] for row in self.rows["profile"]])
        magnitudes = np.abs(values)
        dimensions = [
            {"dimension": int(dimension), **self.figures(), "quartiles": [-21.5, -14.25, -9.0]}
            for dimension in self.dimensions
        ]
        thresholds = {"magnitude": 6.0, "layers_fraction": 0.25, "positions_fraction": 0.06}
        return self.facts() | {
            "model": {"source": recipe.source, "revision": None, "fingerprint": "sha256:" + "a" * 64,
                      "architecture": "LlamaForCausalLM", "layers": recipe.layers,
                      "hidden_size": recipe.hidden_size, "heads": recipe.heads or None,
                      "kv_heads": recipe.heads or None, "head_dim": 32,
                      "vocabulary": 4096, "parameters": 3_400_000, "weight_bytes": 6_800_000, "dtype": "bfloat16"},
            "outliers": {
                "llm_int8": {"thresholds": thresholds, "dimensions": dimensions},
                "llm_int8_relative": {"thresholds": thresholds, "dimensions": []},
                "massive_tensor": {"thresholds": {}, "dimensions": []},
                "massive_token": {"thresholds": {}, "dimensions": []},
                "median_quantile": {"thresholds": {}, "dimensions": []},
                "variance": {"thresholds": {}, "dimensions": []},
            },
            "massive_activations": self.rows["massive_activations"],
            "heads": self.head_counts(),
            "labelled": labelled_section(self.rows["labelled"], recipe.label_dimensions, recipe.schemes),
            "schemes": {name: self.scheme(name) for name in recipe.schemes},
            "profile": {"layer": recipe.layers - 1, "sequence": 3, "position": 17, "token_id": 42,
                        "token": recipe.token, "median_abs": float(np.median(magnitudes)),
                        "p99_abs": float(np.quantile(magnitudes, 0.99)),
                        "max_to_median": float(magnitudes.max() / np.median(magnitudes)),
                        "kurtosis": float(stats.kurtosis(values, fisher=False))},
            "surface": surface_section(self.rows["surface"], recipe.layers // 2, recipe.positions, recipe.hidden_size),
            "warnings": [dict(zip(("code", "message", "where", "advice"), of, strict=False)) for of in recipe.warnings],
            "figures": [],
            "tables": [
                {"name": name, "title": table.title, "caption": table.title + ".", "files": [f"tables/{name}.parquet"]}
                for name, table in self.tables().items()
            ],
        }  # fmt: skip

    def head_counts(self) -> dict[str, Any]:
        rows = self.rows["heads"]
        return {
            "thresholds": {},
            "heads": len(rows),
            "measured_outliers": sum(row["measured_outlier"] for row in rows),
            "schemes": {scheme: self.head_damage(scheme) for scheme in self.recipe.schemes},
        }

    def head_damage(self, scheme: str) -> dict[str, int]:
        damaged = [row for row in self.rows["heads"] if row[f"sqnr_db_{scheme}"] < 20]
        return {"damaged": len(damaged), "damaged_outliers": sum(row["measured_outlier"] for row in damaged)}

    def tables(self) -> dict[str, Table]:
        recipe = self.recipe
        own = {"labelled": labelled_table(recipe.label_dimensions, recipe.schemes)} if recipe.labelled else {}
        return {**TABLES, **own}

    def write(self, directory: Path) -> None:
        self.rows = {name: getattr(self, name)() for name in (*TABLES, "labelled")}
        (directory / "tables").mkdir(parents=True)
        for name, table in self.tables().items():
            columns = table.columns_for(self.recipe.schemes)
            schema = pa.schema([(column.name, pa.type_for_alias(column.type)) for column in columns])
            pq.write_table(pa.Table.from_pylist(self.rows[name], schema), directory / "tables" / f"{name}.parquet")
        (directory / "report.json").write_text(json.dumps(self.report(), indent=2))


Make = Callable[..., Path]


@pytest.fixture
def make_report(tmp_path: Path) -> Make:
    """A function that writes a report by the keys of `Recipe` and returns its directory."""

    def make(name: str = "report", **recipe: Any) -> Path:
        directory = tmp_path / name
        Maker(Recipe(**recipe)).write(directory)
        return directory

    return make


@pytest.fixture
def edit_table() -> Callable[[Path, str, Callable[[Rows], Any]], None]:
    """A function that changes the rows of a table of a report in place."""

    def edit(directory: Path, name: str, change: Callable[[Rows], Any]) -> None:
        path = directory / "tables" / f"{name}.parquet"
        table = pq.read_table(path)
        rows = table.to_pylist()
        change(rows)
        pq.write_table(pa.Table.from_pylist(rows, table.schema), path)

    return edit


@pytest.fixture
def rows_of() -> Callable[[Path, str], Rows]:
    """A function that reads a table of a report without the code under test."""
    return lambda directory, name: pq.read_table(directory / "tables" / f"{name}.parquet").to_pylist()


@pytest.fixture
def draw_with() -> Callable[..., dict[str, Drawing]]:
    """A function that draws one module's figures of a report, by name, their text laid out as it will be saved."""

    def drawings(module: Any, directory: Path, *, density: bool = False) -> dict[str, Drawing]:
        with style.applied():
            found = {drawing.name: drawing for drawing in module.draw(load(directory, density=density))}
            for drawing in found.values():
                drawing.figure.draw_without_rendering()
        return found

    return drawings


@pytest.fixture
def one_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw but one figure, for tests of what becomes of the files, whatever they show."""
    monkeypatch.setattr(gallery, "FIGURES", (activation_profile.draw,))


@pytest.fixture(scope="session")
def drawn_report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a report of the usual size, rendered once; to be read, not written."""
    directory = tmp_path_factory.mktemp("drawn") / "report"
    Maker(Recipe()).write(directory)
    render(directory)
    return directory
