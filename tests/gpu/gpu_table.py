"""Turns gpu.jsonl into gpu.md: a table ready for the README, and what failed or was left out, by name."""

import json
from pathlib import Path
from typing import Any

DRY = (
    "**A dry run on a CPU, with small sizes: the figures show that the script works, and nothing of a GPU.** "
    "Triton's kernels run in its interpreter, and the C++ ones on the host.\n"
)


def write_table(lines: Path, table: Path, *, dry: bool) -> None:
    """Write the table of the steps that have ended so far."""
    results = [json.loads(line) for line in lines.read_text(encoding="utf-8").splitlines() if line.strip()]
    table.write_text(as_markdown(results, dry=dry), encoding="utf-8")


def as_markdown(results: list[dict[str, Any]], *, dry: bool) -> str:
    """Return the whole of gpu.md."""
    device = next((r["details"].get("device") for r in results if r["step"] == "device"), None)
    parts = [f"# Headroom on {device or 'an unknown device'}\n"]
    parts += [DRY] if dry else []
    versions = next((r["details"].get("versions") for r in results if r["step"] == "device"), None) or {}
    if versions:
        parts.append(f"{', '.join(f'{name} {version}' for name, version in versions.items())}.\n")
    parts.append("\n".join(["| step | figure | value | goal |", "|---|---|---|---|", *_rows(results)]) + "\n")
    parts += _dearest(results)
    parts += _not_ok(results)
    return "\n".join(parts)


def _rows(results: list[dict[str, Any]]) -> list[str]:
    rows = []
    for result in results:
        took = f"{result['status']} in {result['seconds']:.0f} s of {result['budget_seconds']:.0f}"
        rows.append(_row(result["title"], "", took, ""))
        rows += [_row("", f["figure"], _value(f), _goal(f)) for f in result["figures"]]
    return rows


def _row(*cells: str) -> str:
    return f"| {' | '.join(cell.replace('|', '/').replace(chr(10), ' ') for cell in cells)} |"


def _value(figure: dict[str, Any]) -> str:
    value, unit = figure["value"], figure.get("unit", "")
    if isinstance(value, float):
        value = f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{'-' if value is None else value} {unit}".strip()


def _goal(figure: dict[str, Any]) -> str:
    if "at_most" not in figure:
        return ""
    word = {True: ": met", False: ": missed", None: ""}[figure["met"]]
    return f"at most {figure['at_most']:.4g}{word}"


def _dearest(results: list[dict[str, Any]]) -> list[str]:
    parts = []
    for result in results:
        operations = result["details"].get("dearest_operations")
        if operations:
            parts.append(f"Dearest operations, {result['title']}, milliseconds:\n")
            parts.append("\n".join(f"- {one['milliseconds']:.2f} `{one['name']}`" for one in operations) + "\n")
    return parts


def _not_ok(results: list[dict[str, Any]]) -> list[str]:
    left = [result for result in results if result["status"] != "ok"]
    if not left:
        return ["Every step was ok.\n"]
    lines = []
    for result in left:
        lines.append(f"- {result['title']} ({result['step']}): {result['status']}: {result.get('error')}")
        lines += [f"  - {problem}" for problem in result["problems"]]
    return ["Failed or skipped:\n", "\n".join(lines) + "\n"]
