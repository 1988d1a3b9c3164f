"""Hashes everything that measurements of the sample and of a tiny model of every architecture leave.

    PYTHONPATH=. python tests/workers/measurement/result_hashes.py HASHES.json [BEFORE.json]

Run it before and after a change that must not alter a number: the hashes are of the tables' bytes, and of report.json
without what two runs of one program differ in (when it ran, and what it cost). With BEFORE.json, every file whose
hash differs is named, and the exit status is 1.
"""

import hashlib
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import architectures
import tiny_models
import torch

from service.contracts.schemes import SCHEMES
from workers import samples
from workers.measurement.__main__ import main

SHORT: dict[str, Any] = {"sequences": 2, "sequence_length": 16, "batch_sequences": 1, "schemes": ["int8", "nf4"]}
LABELLED = {"labelled": {"path": "labelled.jsonl"}}
SAMPLE: dict[str, dict[str, Any]] = {
    "every scheme": {"schemes": list(SCHEMES)},
    "labelled": LABELLED,
    "labelled at depth": LABELLED
    | {"label_depth": 3, "schemes": ["int8:threshold=2,keep=mlp.down", "nf4:keep=attn.q"]},
    "streams in files": {"memory_bytes": 1, "checkpoint_seconds": 0, "score": "second_half"},
}
"""What the sample is measured with besides SHORT."""


def cases(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield a name and the request of every measurement; its files are written as it is asked for."""
    text = folder / "calibration.txt"
    text.write_text(tiny_models.words(400, seed=1), encoding="utf-8")
    labelled = folder / "labelled.jsonl"
    statements = samples.LABELLED.read_text(encoding="utf-8").splitlines(keepends=True)
    labelled.write_text("".join(statements[:: len(statements) // 24]), encoding="utf-8")
    for name, settings in SAMPLE.items():
        files = {
            "model": {"path": str(samples.MODEL), "source": "sample"},
            "calibration": {"path": str(samples.CALIBRATION)},
        }
        where = {"labelled": {"path": str(labelled)}} if "labelled" in settings else {}
        yield f"sample, {name}", SHORT | settings | files | where
    for module in (tiny_models, architectures):
        for name, config in module.CONFIGS.items():
            model = folder / "model"
            if module is tiny_models:
                tiny_models.save_checkpoint(model, config())
            else:
                architectures.save_random(model, config())
                tiny_models.save_tokenizer(model)
            yield (
                f"{module.__name__}, {name}",
                SHORT
                | {
                    "model": {"path": str(model), "source": name},
                    "calibration": {"path": str(text)},
                },
            )
            shutil.rmtree(model)


def result_hashes(out: Path) -> dict[str, str]:
    """Return the hash of every file of a result by its path in `out`."""
    contents = {str(file.relative_to(out)): file.read_bytes() for file in sorted(out.rglob("*")) if file.is_file()}
    report = json.loads(contents["report.json"])
    for key in ("created_at", "timing"):
        del report[key]
    contents["report.json"] = json.dumps(report).encode()
    return {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}


def measure_all() -> dict[str, dict[str, str]]:
    """Return the hashes by measurement and file."""
    hashes: dict[str, dict[str, str]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for case, request in cases(folder):
            file, out = folder / "request.json", folder / "out"
            file.write_text(json.dumps({"job_id": "equal"} | request))
            torch.manual_seed(0)
            if status := main([str(file), str(out)]):
                raise SystemExit(f"{case}: exit status {status}")
            hashes[case] = result_hashes(out)
            shutil.rmtree(out)
    return hashes


if __name__ == "__main__":
    hashes = measure_all()
    Path(sys.argv[1]).write_text(json.dumps(hashes, indent=1))
    before = json.loads(Path(sys.argv[2]).read_text()) if len(sys.argv) > 2 else hashes
    different = [
        f"{case}: {file}"
        for case in {*before, *hashes}
        for file in {*before.get(case, {}), *hashes.get(case, {})}
        if before.get(case, {}).get(file) != hashes.get(case, {}).get(file)
    ]
    print(*sorted(different), f"{len(hashes)} measurements, {len(different)} files differ", sep="\n", file=sys.stderr)
    sys.exit(bool(different))
