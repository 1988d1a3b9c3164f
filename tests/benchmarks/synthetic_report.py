"""A measured report of any size, made up from a seed: the tables a 7B Llama would leave, written as a measurement does.

Magnitudes are bfloat16 values, means and variances are not, as in a report on a bfloat16 model.

    L layers, d hidden size, H heads, N sequences of S tokens
"""

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from service.contracts.report import DEFINITIONS_VERSION, SCHEMA_VERSION, Report
from service.contracts.request import Analysis
from service.contracts.schemes import BITSANDBYTES_INT8, SCHEMES
from service.contracts.sections.labelled import labelled_table
from service.contracts.tables import TABLES
from workers.measurement.results.layer_rows import shortened
from workers.measurement.runtime.table_writer import TableWriter

OUTLIERS = {1415: 1400.0, 2533: 620.0, 2: 90.0, 318: 45.0, 511: 38.0, 950: 30.0, 1076: 28.0, 3431: 22.0, 3857: 17.0}
"""Typical abs_max of outlier dimensions, by dimension; the first two carry the massive activations."""
DAMAGE = {"int8": 0.012, "nf4": 0.09, "w8a8-tensor": 0.2}
RECORDS, LABELLED = 400, (11, 42, 1076, 3001)

Columns = dict[str, Any]


@dataclass(frozen=True)
class Shape:
    """What is made up."""

    layers: int = 32
    hidden: int = 4096
    intermediate: int = 11008
    heads: int = 32
    sequences: int = 16
    length: int = 2048
    schemes: tuple[str, ...] = tuple(DAMAGE)

    @property
    def sites(self) -> dict[tuple[str, str], int]:
        """Channels of every site of a layer."""
        projections = dict.fromkeys(("attn.q", "attn.k", "attn.v", "attn.o", "mlp.down"), self.hidden)
        projections |= dict.fromkeys(("mlp.gate", "mlp.up"), self.intermediate)
        inputs = dict.fromkeys(("attn.q", "attn.o", "mlp.up"), self.hidden) | {"mlp.down": self.intermediate}
        return (
            {(name, "input"): width for name, width in inputs.items()}
            | {(name, "output"): width for name, width in projections.items()}
            | {("block", "output"): self.hidden}
        )


class SyntheticReport:
    """Writes one report."""

    def __init__(self, shape: Shape, directory: Path) -> None:
        self.shape = shape
        self.directory = directory
        self.random = np.random.default_rng(0)

    def write(self) -> None:
        """Write the tables and report.json; the directory must not exist."""
        (self.directory / "tables").mkdir(parents=True)
        for name in TABLES:
            self.write_table(name)
        self.write_labelled()
        (self.directory / "report.json").write_text(json.dumps(self.report()))

    def write_table(self, name: str) -> None:
        writer = TableWriter(TABLES[name], self.shape.schemes, self.directory / "tables" / f"{name}.parquet")
        made = getattr(self, name)()
        for columns in made if isinstance(made, list) else [made]:
            writer.append(columns)
        writer.close()

    def sites(self) -> Columns:
        places = [(layer, *site) for layer in range(self.shape.layers) for site in self.shape.sites]
        count = len(places)
        rms = self.random.lognormal(-1, 0.7, count)
        peak = bfloat16(rms * self.random.lognormal(4, 1, count))
        median = rms * 0.6
        layer, component, port = zip(*places, strict=True)
        tokens = self.shape.sequences * self.shape.length
        return {
            "layer": layer, "component": component, "port": port, "tokens": [tokens] * count,
            "channels": [self.shape.sites[c, p] for _, c, p in places], "min": -peak, "max": peak * 0.8,
            "abs_max": peak, "mean": rms * 0.01, "std": rms, "rms": rms, "median_abs": median, "p99_abs": rms * 3,
            "p99_9_abs": rms * 5, "p99_99_abs": rms * 9, "crest_db": 20 * np.log10(peak / rms),
            "max_to_median": peak / median, "range_bits": np.log2(peak / median),
            "kurtosis": self.random.lognormal(4, 1, count), "kurtosis_per_sequence": rms, "inf_norm_per_sequence": peak,
            "token_abs_max_p50": peak / 4, "token_abs_max_p99": peak / 2,
            "over_fp16": np.zeros(count, int), "nonfinite": np.zeros(count, int),
        }  # fmt: skip

    def channels(self) -> list[Columns]:
        return [
            self.channels_of(layer, component, port, width)
            for layer in range(self.shape.layers)
            for (component, port), width in self.shape.sites.items()
        ]

    def channels_of(self, layer: int, component: str, port: str, width: int) -> Columns:
        largest = 4 * self.random.lognormal(0, 0.5, width)
        if width == self.shape.hidden:
            for dimension, peak in OUTLIERS.items():
                largest[dimension % width] = peak * self.random.lognormal(0, 0.2)
        smallest = -largest * self.random.uniform(0.3, 1, width)
        low, high = bfloat16(smallest), bfloat16(largest)
        return {
            "layer": [layer] * width, "component": [component] * width, "port": [port] * width,
            "channel": np.arange(width), "min": low, "max": high, "abs_max": np.maximum(-low, high),
            "mean": shortened(self.random.normal(0, 0.05, width)),
            "variance": shortened(self.random.lognormal(-1, 1, width)),
            "over_threshold": np.where(largest > 6, self.random.geometric(0.01, width), 0),
        }  # fmt: skip

    def histograms(self) -> list[Columns]:
        edges = np.sort(np.concatenate([sign * np.geomspace(1e-4, 200, 550) for sign in (-1, 1)]))
        count = np.exp(12 - np.log(np.abs(edges)) ** 2)
        return [
            {"layer": [layer] * len(edges), "component": [component] * len(edges), "port": [port] * len(edges),
             "bin_low": edges, "bin_high": edges * 1.01, "count": self.random.poisson(count)}
            for layer in range(self.shape.layers)
            for component, port in self.shape.sites
        ]  # fmt: skip

    def outlier_dimensions(self) -> Columns:
        rows = [("llm_int8", None, d) for d in OUTLIERS]
        for layer in range(self.shape.layers):
            rows += [(name, layer, d) for name in ("massive_tensor", "massive_token") for d in list(OUTLIERS)[:2]]
            rows += [("variance", layer, d) for d in OUTLIERS]
            typical = self.random.choice(self.shape.hidden, 40, replace=False)
            rows += [("median_quantile", layer, int(d)) for d in typical % 60]
        definition, layer, dimension = zip(*rows, strict=True)
        whole = [place is None for place in layer]
        only = {
            name: [value if here else None for here in whole]
            for name, value in (("layers_fraction", 0.9), ("positions_fraction", 0.4), ("one_sided", True),
                                ("q25", -21.0), ("q50", -14.0), ("q75", -9.0))
        }  # fmt: skip
        return {
            "definition": definition, "layer": layer, "dimension": dimension,
            "abs_max": [OUTLIERS.get(d, 7.0) for d in dimension], **only,
        }  # fmt: skip

    def massive_activations(self) -> Columns:
        count = 4000
        value = np.sort(self.random.lognormal(6, 0.5, count))[::-1]
        return {
            "layer": self.random.integers(2, self.shape.layers, count),
            "sequence": self.random.integers(self.shape.sequences, size=count),
            "position": self.random.choice([0, 0, 0, 17, 230], count), "token": ["<s>"] * count,
            "token_id": [1] * count, "dimension": self.random.choice(list(OUTLIERS)[:2], count),
            "value": bfloat16(value), "ratio_tensor": value * 7, "ratio_token": value * 3,
        }  # fmt: skip

    def heads(self) -> Columns:
        count = self.shape.layers * self.shape.heads
        peak = self.random.lognormal(2, 0.7, count)
        noise = {f"sqnr_db_{s}": -20 * np.log10(DAMAGE[s]) + self.random.normal(0, 5, count)
                 for s in self.shape.schemes}  # fmt: skip
        return {
            "layer": np.repeat(np.arange(self.shape.layers), self.shape.heads),
            "head": np.tile(np.arange(self.shape.heads), self.shape.layers), "abs_max": peak, "rms": peak / 5,
            "crest_db": [14.0] * count, "relative_peak": peak, "predicted_peak": [None] * count,
            "measured_outlier": peak >= 20, "predicted_outlier": [None] * count, **noise,
        }  # fmt: skip

    def errors(self) -> Columns:
        outputs = [component for component, port in self.shape.sites if port == "output"]
        places = [
            (scheme, layer, component, mode)
            for mode in ("isolated", "accumulated")
            for scheme in self.shape.schemes
            for layer in range(self.shape.layers)
            for component in outputs
            if (component, mode) != ("block", "isolated")
        ]
        scheme, layer, component, mode = zip(*places, strict=True)
        count = len(places)
        grown = np.where(np.array(mode) == "isolated", 1, np.sqrt(1 + np.array(layer)))
        error = np.array([DAMAGE[s] for s in scheme]) * grown * self.random.lognormal(0, 0.3, count)
        weight = np.where(np.array(mode) == "isolated", error * 0.8, np.nan)
        return {
            "scheme": scheme, "layer": layer, "component": component, "port": ["output"] * count, "mode": mode,
            "sqnr_db": -20 * np.log10(error), "relative_l2": error, "median_token_error": error * 0.9,
            "cosine": 1 - error**2 / 2, "max_abs_error": error * 4, "weight_error": weight, "exact": [False] * count,
            "sqnr_db_typical": np.where(np.array(component) == "block", -20 * np.log10(error * 2), np.nan),
        }  # fmt: skip

    def fp16_columns(self) -> Columns:
        outputs = [c for c, port in self.shape.sites if port == "output" and c != "block"]
        variants = [name for name in self.shape.schemes if SCHEMES[name].kernel == BITSANDBYTES_INT8]
        places = [(s, layer, c) for s in variants for layer in range(self.shape.layers) for c in outputs]
        scheme, layer, component = zip(*places, strict=True) if places else ((), (), ())
        share = self.random.beta(0.5, 5, len(places))
        return {"scheme": scheme, "layer": layer, "component": component, "prefill": share, "decode": share / 20}

    def tokens(self) -> list[Columns]:
        return [self.tokens_of(scheme) for scheme in self.shape.schemes]

    def tokens_of(self, scheme: str) -> Columns:
        shape = self.shape
        position = np.tile(np.arange(shape.length), shape.sequences)
        count, scored = len(position), position < shape.length - 1
        kl = self.random.lognormal(np.log(DAMAGE[scheme] ** 2), 1.2, count)
        reference = self.random.gamma(1.2, 1.8, count)
        return {
            "scheme": [scheme] * count, "sequence": np.repeat(np.arange(shape.sequences), shape.length),
            "position": position, "token_id": self.random.integers(32000, size=count),
            "nll_reference": np.where(scored, reference, np.nan),
            "nll_scheme": np.where(scored, reference + self.random.normal(0, np.sqrt(kl)), np.nan),
            "kl_divergence": np.where(scored, kl, np.nan),
            "same_top": [bool(v < 0.1) if s else None for v, s in zip(kl, scored, strict=True)],
        }  # fmt: skip

    def profile(self) -> Columns:
        value = self.random.standard_t(5, self.shape.hidden)
        for dimension, peak in OUTLIERS.items():
            value[dimension % self.shape.hidden] = -peak
        return {"dimension": np.arange(self.shape.hidden), "value": bfloat16(value)}

    def surface(self) -> Columns:
        positions = np.arange(0, self.shape.length, -(-self.shape.length // 256))
        channels = np.arange(0, self.shape.hidden, -(-self.shape.hidden // 512))
        value = self.random.standard_t(5, (len(positions), len(channels))) * 3
        value[0, next(iter(OUTLIERS)) * len(channels) // self.shape.hidden] = 1400
        position, channel = np.meshgrid(positions, channels, indexing="ij")
        return {"position": position.ravel(), "channel": channel.ravel(), "value": bfloat16(value.ravel())}

    def write_labelled(self) -> None:
        table = labelled_table(LABELLED, self.shape.schemes)
        label = self.random.random(RECORDS) < 0.5
        columns: Columns = {"record": np.arange(RECORDS), "label": label, "score": [None] * RECORDS}
        for column in table.columns[3:]:
            columns[column.name] = self.random.normal(0, 1, RECORDS) + label
        types = {column.name: pa.type_for_alias(column.type) for column in table.columns}
        arrays = {name: pa.array(values, types[name]) for name, values in columns.items()}
        pq.write_table(pa.table(arrays), self.directory / "tables" / "labelled.parquet")

    def report(self) -> dict[str, Any]:
        """Return report.json."""
        shape = self.shape
        content = self.facts() | {
            "model": {
                "source": "example/llama-7b", "revision": "0" * 40, "fingerprint": "sha256:" + "a" * 64,
                "architecture": "LlamaForCausalLM", "layers": shape.layers, "hidden_size": shape.hidden,
                "heads": shape.heads, "kv_heads": shape.heads, "head_dim": shape.hidden // shape.heads,
                "vocabulary": 32000, "parameters": 6_738_415_616, "weight_bytes": 13_476_831_232, "dtype": "bfloat16",
            },
            "analysis": Analysis(
                schemes=shape.schemes, sequences=shape.sequences, sequence_length=shape.length
            ).model_dump(mode="json"),
            "outliers": self.outliers(),
            "massive_activations": self.rows("massive_activations", 100),
            "heads": {"thresholds": {}, "heads": shape.layers * shape.heads, "measured_outliers": 80,
                      "schemes": {name: {"damaged": 90, "damaged_outliers": 30} for name in shape.schemes}},
            "schemes": {name: self.scheme(name) for name in shape.schemes},
            "labelled": self.labelled(),
            "tables": [
                {"name": path.stem, "title": path.stem, "caption": path.stem, "files": [f"tables/{path.name}"]}
                for path in sorted((self.directory / "tables").iterdir())
            ],
        }  # fmt: skip
        return Report.model_validate(content).model_dump(mode="json")

    def facts(self) -> dict[str, Any]:
        shape = self.shape
        tokens = shape.sequences * shape.length
        state = {"layer": shape.layers - 1, "sequence": 0, "max_to_median": 2100.0, "median_abs": 0.66}
        return {
            "schema_version": SCHEMA_VERSION, "definitions_version": DEFINITIONS_VERSION, "headroom_version": "0.1.0",
            "job_id": "0" * 32, "created_at": datetime(2026, 11, 20, tzinfo=UTC),
            "calibration": {
                "source": "wikitext.txt", "fingerprint": "sha256:" + "b" * 64, "sequences": shape.sequences,
                "sequence_length": shape.length, "tokens": tokens, "adds_bos": True, "documents": 60,
                "separator": None, "seed": 0, "batch_sequences": 1,
            },
            "environment": {"device": "cuda", "torch": "2.13.0", "transformers": "5.23.0", "bitsandbytes": "0.50.2",
                            "python": "3.11.2", "kernels": {}},
            "timing": {"wall_seconds": 600.0, "stage_seconds": {"sweep": 500.0},
                       "peak_memory_bytes": {"resident": 3_000_000_000, "device": 9_000_000_000}},
            "reference": {"perplexity": {"value": 5.5, "standard_error": 0.05, "scored_tokens": tokens}},
            "profile": state | {"position": 0, "token_id": 1, "token": "<s>", "p99_abs": 3.4, "kurtosis": 1900.0},
            "surface": state | {"positions": shape.length, "channels": shape.hidden,
                                "positions_per_cell": -(-shape.length // 256),
                                "channels_per_cell": -(-shape.hidden // 512)},
            "warnings": [], "figures": [],
        }  # fmt: skip

    def outliers(self) -> dict[str, Any]:
        found = [{"dimension": d, "layers_fraction": 0.9, "abs_max": peak} for d, peak in OUTLIERS.items()]
        int8 = [one | {"positions_fraction": 0.4, "one_sided": True, "quartiles": [-21, -14, -9]} for one in found]
        layerwise = {
            "massive_tensor": found[:2],
            "massive_token": found[:2],
            "variance": found,
            "median_quantile": [{"dimension": d, "layers_fraction": 0.6, "abs_max": 7} for d in range(60)],
        }
        return {name: {"thresholds": {}, "dimensions": dimensions}
                for name, dimensions in {"llm_int8": int8, **layerwise}.items()}  # fmt: skip

    def scheme(self, name: str) -> dict[str, Any]:
        kl = DAMAGE[name] ** 2 * 2
        worst = [row for row in self.rows("errors") if row["scheme"] == name and row["mode"] == "isolated"]
        worst.sort(key=lambda row: -row["relative_l2"])
        return {
            "settings": dict(SCHEMES[name].settings), "perplexity": {"value": 5.6, "standard_error": 0.05,
                                                                     "scored_tokens": 32752},
            "perplexity_ratio": {"value": 1 + kl, "standard_error": kl / 20},
            "kl_divergence": {"mean": kl, "standard_error": kl / 60, "median": kl / 2, "p90": 2 * kl, "p95": 3 * kl,
                              "p99": 6 * kl, "p99_9": 15 * kl, "max": 40 * kl},
            "same_top_token": {"value": 1 - DAMAGE[name] / 2, "standard_error": 0.001},
            "delta_p": {"mean": -0.001, "rms": 0.02}, "model_bytes": 7_000_000_000, "compression": 1.9,
            "not_quantised": ["lm_head"],
            "worst_sites": [{key: row[key] for key in ("layer", "component", "relative_l2", "sqnr_db")}
                            for row in worst[:10]],
        }  # fmt: skip

    def labelled(self) -> dict[str, Any]:
        figures = {"spearman_rho": 0.4, "auroc": 0.75}
        label = pq.read_table(self.directory / "tables" / "labelled.parquet")["label"].to_numpy()
        return {
            "source": "prompts.jsonl", "fingerprint": "sha256:" + "c" * 64, "records": RECORDS,
            "true_records": int(label.sum()), "given": "label", "threshold": None, "depth": None, "adds_bos": True,
            "ranked_by": "auroc",
            "dimensions": [{"dimension": d, "reference": figures, "schemes": dict.fromkeys(self.shape.schemes, figures)}
                           for d in LABELLED],
        }  # fmt: skip

    def rows(self, table: str, most: int | None = None) -> list[dict[str, Any]]:
        """Return the first rows of a table as written."""
        rows: list[dict[str, Any]] = pq.read_table(self.directory / "tables" / f"{table}.parquet").to_pylist()
        return rows[:most]


def bfloat16(values: NDArray[np.floating]) -> NDArray[np.float32]:
    """Return `values` with as many bits as a bfloat16 has."""
    bits = np.asarray(values, dtype=np.float32).view(np.uint32)
    return (bits & np.uint32(0xFFFF0000)).view(np.float32)
