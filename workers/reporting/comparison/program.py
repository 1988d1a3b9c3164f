"""Reads reports, compares them and writes the comparison with its figures and page, all of it or nothing."""

from collections.abc import Sequence
from pathlib import Path

from service.contracts.comparison import Comparison
from workers.reporting.comparison.figures.registry import draw_all
from workers.reporting.comparison.gathering import gather
from workers.reporting.comparison.page import page, summary
from workers.reporting.comparison.topics import topics
from workers.reporting.publish import check_out, new_directory


def compare_reports(out: Path, directories: Sequence[Path]) -> Comparison:
    """Compare the reports in `directories`, the first of them the baseline, and make `out` of it.

    `out` then holds comparison.json, comparison.html, summary.md and figures/. It is built beside its place and
    renamed: it appears whole or not at all.

    Returns:
        What comparison.json holds.

    Raises:
        OutTaken: `out` is there already, and is not an empty directory.
        ReportUnreadable: a report is missing or damaged.
        NotComparable: the reports cannot be compared.
        OSError: a file could not be written.
    """
    check_out(out)
    gathered = gather(directories)
    with new_directory(out) as made:
        (made / "figures").mkdir()
        galleries = draw_all(gathered, made / "figures")
        comparison = gathered.comparison.model_copy(
            update={
                "figures": tuple(saved.entry for one in galleries.values() for saved in one.figures),
                "figures_left_out": tuple(one for each in galleries.values() for one in each.left_out),
            }
        )
        sections = topics(gathered)
        _write(made / "comparison.html", page(gathered, sections, galleries, made))
        _write(made / "summary.md", summary(gathered, sections))
        _write(made / "comparison.json", comparison.model_dump_json(indent=2) + "\n")
    return comparison


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
