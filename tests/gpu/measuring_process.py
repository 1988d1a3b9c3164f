"""`python -m workers.measurement` as a process of its own, watched by its progress lines."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from step_support import SCHEMES


def request_fields(path: Path, tokens: Path, shape: tuple[int, int], device: str, **settings: Any) -> dict[str, Any]:
    """Return what a request says of a model on sequences [N, S], all in one batch unless the settings say otherwise."""
    sizes = {"sequences": shape[0], "sequence_length": shape[1], "batch_sequences": shape[0]}
    files = {"model": {"path": str(path)}, "calibration": {"path": str(tokens)}}
    return sizes | files | {"schemes": SCHEMES, "device": device} | settings


def write_token_ids(path: Path, token_ids: Any) -> None:
    """Write sequences [N, S] as a calibration file; of as many sequences as are asked for, all are taken in order."""
    path.write_text("".join(json.dumps({"token_ids": row}) + "\n" for row in token_ids.tolist()))


def start_measuring(request: str, out: Path) -> subprocess.Popen[str]:
    """Start the program on a request, given as JSON."""
    file = out.with_name(f"{out.name}.request.json")
    file.write_text(request)
    command = [sys.executable, "-m", "workers.measurement", str(file), str(out)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def kill_after(process: subprocess.Popen[str], layers: int) -> bool:
    """Kill the program once it is through so many layers; return whether it was still at work."""
    assert process.stdout is not None
    for line in process.stdout:
        progress = json.loads(line)
        if progress.get("stage") == "sweep" and progress["done"] >= layers:
            process.kill()
            break
    process.stdout.close()
    return process.wait() < 0


def read_report(out: Path) -> dict[str, Any]:
    """Return a measurement's report."""
    report: dict[str, Any] = json.loads((out / "report.json").read_text())
    return report


def differing_tables(one: Path, other: Path) -> list[str]:
    """Return the tables of two measurements that are not the same, with the columns that differ."""
    import pyarrow.parquet as pq

    differing = []
    for file in sorted((one / "tables").iterdir()):
        if file.read_bytes() != (other / "tables" / file.name).read_bytes():
            a, b = (pq.read_table(directory / "tables" / file.name) for directory in (one, other))
            columns = [name for name in a.column_names if name not in b.column_names or not a[name].equals(b[name])]
            differing.append(f"{file.stem} ({', '.join(columns) or 'not in its values'})")
    return differing
