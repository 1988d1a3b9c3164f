"""Reports whose predictions are made up or drawn from a measured table, as sides of a comparison.

`stored/tokens.parquet` is what `headroom analyze` measured of SmolLM2-135M-Instruct (float32, CPU) on the calibration
text bundled with the sample model: int8 and nf4, 16 sequences, the first 128 positions of each, rounded to float32.
"""

import hashlib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq

from service.comparison.comparable_report import ComparableReport
from service.contracts.report import Report
from service.evaluation.scored import COLUMNS
from service.evaluation.uncertainty import mean, mean_exp
from service.evaluation.verdict import verdict_of

HERE = Path(__file__).parent
TEMPLATE = HERE.parents[1] / "workers" / "reporting" / "stored" / "schema_1_0"


class Scored(NamedTuple):
    """One sequence under one scheme; arrays over its positions, NaN where one is not scored."""

    token_ids: np.ndarray
    nll_reference: np.ndarray
    nll: np.ndarray
    kl: np.ndarray
    same_top: np.ndarray


Text = dict[str, list[Scored]]
"""The sequences by scheme."""


@cache
def measured() -> Text:
    columns = {
        name: np.array(values) for name, values in pq.read_table(HERE / "stored" / "tokens.parquet").to_pydict().items()
    }
    text: Text = {}
    for scheme in ("int8", "nf4"):
        text[scheme] = []
        for sequence in range(16):
            chosen = (columns["scheme"] == scheme) & (columns["sequence"] == sequence)
            names = ("token_id", "nll_reference", "nll_scheme", "kl_divergence", "same_top")
            text[scheme].append(Scored(*(columns[name][chosen].astype(float) for name in names)))
    return text


def made_up(seed: int, *, sequences: int = 16, positions: int = 40) -> Text:
    """Return a text with made-up predictions: sequences differ, and positions of one depend on one another."""
    random = np.random.default_rng(seed)
    text: Text = {}
    ids = random.integers(0, 50_000, (sequences, positions))
    reference = random.gamma(4.0, 0.7, (sequences, positions))
    for scheme, size in (("int8", 0.004), ("nf4", 0.05)):
        kl = random.gamma(1.0, size, (sequences, positions)) * random.lognormal(0, 0.3, (sequences, 1))
        nll = reference + random.normal(0.2 * size, np.sqrt(size), (sequences, positions))
        same = random.random((sequences, positions)) > 2 * np.sqrt(kl) / 3
        text[scheme] = [Scored(*one) for one in zip(ids, reference, nll, kl, same.astype(float), strict=True)]
    return text


@cache
def template() -> Report:
    return Report.model_validate_json((TEMPLATE / "report.json").read_bytes())


def report(
    text: Text, name: str = "report", *, weights: str = "a", sites: Any = None, **changes: Any
) -> ComparableReport:
    """Return a report of schema 1.2 on a text; `weights` is a digit of the model's fingerprint."""
    ids = b"".join(one.token_ids.astype(np.int64).tobytes() for one in next(iter(text.values())))
    base = template()
    calibration = base.calibration.model_copy(update={"fingerprint": f"sha256:{hashlib.sha256(ids).hexdigest()}"})
    changed = {
        "schema_version": "1.2",
        "definitions_version": "1.1",
        "model": base.model.model_copy(update={"fingerprint": f"sha256:{weights * 64}"}),
        "calibration": calibration,
        "schemes": {scheme: facts(scheme, sequences) for scheme, sequences in text.items()},
    }
    changed["reference"] = base.reference.model_copy(
        update={"perplexity": perplexity(next(iter(text.values())), "nll_reference")}
    )
    whole = base.model_copy(update=changed | changes)
    judged = {
        scheme: one.model_copy(update={"verdict": verdict_of(whole, one)}) for scheme, one in whole.schemes.items()
    }
    tables = {"tokens": rows(text), "sites": sites or {"component": ["block"], "port": ["output"], "abs_max": [10.0]}}

    def read(table: str, columns: tuple[str, ...]) -> Mapping[str, Sequence[Any]] | None:
        return {column: tables[table][column] for column in columns} if table in tables else None

    return ComparableReport(name, whole.model_copy(update={"schemes": judged}), read)


def perplexity(sequences: Sequence[Scored], column: str) -> Any:
    before = template().reference.perplexity
    lists = [getattr(one, column)[np.isfinite(getattr(one, column))].tolist() for one in sequences]
    return before.model_copy(update=mean_exp(lists).model_dump() | {"scored_tokens": sum(map(len, lists))})


def facts(scheme: str, sequences: Sequence[Scored]) -> Any:
    base = template().schemes[scheme]
    finite = [np.isfinite(one.kl) & np.isfinite(one.nll) for one in sequences]
    of = {name: [getattr(one, name)[keep].tolist() for one, keep in zip(sequences, finite, strict=True)]
          for name in ("kl", "same_top")}  # fmt: skip
    ratios = [(one.nll - one.nll_reference)[keep].tolist() for one, keep in zip(sequences, finite, strict=True)]
    kl = mean(of["kl"]).model_dump()
    moves = np.concatenate(
        [(np.exp(-one.nll) - np.exp(-one.nll_reference))[keep] for one, keep in zip(sequences, finite, strict=True)]
    )
    changed = {
        "perplexity": perplexity(sequences, "nll"),
        "perplexity_ratio": mean_exp(ratios),
        "kl_divergence": base.kl_divergence.model_copy(update={"mean": kl.pop("value")} | kl),
        "same_top_token": mean(of["same_top"]),
        "delta_p": base.delta_p.model_copy(update={"mean": moves.mean(), "rms": np.sqrt((moves**2).mean())}),
        "quantised_share": 1.0,
    }
    return base.model_copy(update=changed)


def rows(text: Text) -> dict[str, list[Any]]:
    """Return the `tokens` table."""
    table: dict[str, list[Any]] = {name: [] for name in COLUMNS}
    for scheme, sequences in text.items():
        for number, one in enumerate(sequences):
            count = len(one.token_ids)
            table["scheme"] += [scheme] * count
            table["sequence"] += [number] * count
            table["position"] += range(count)
            for name, values in zip(
                COLUMNS[3:], (one.token_ids, one.nll_reference, one.nll, one.kl, one.same_top), strict=True
            ):
                table[name] += values.tolist()
    return table


def changed(text: Text, scheme: str, **columns: Any) -> Text:
    """Return a text in which the columns of a scheme are what functions make of its sequences."""
    sequences = [one._replace(**{name: change(one) for name, change in columns.items()}) for one in text[scheme]]
    return {**text, scheme: sequences}
