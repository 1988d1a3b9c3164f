"""Writes the outcome of a gate as Markdown, for a comment on a pull request."""

import re
from collections.abc import Iterator

from service.cli.gating import figures
from service.cli.gating.outcome import Gated, states

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>()#+!|~&])")
_COLUMNS = ("", "limit", "value (95% interval)", "baseline", "bound")


def markdown(gated: Gated) -> str:
    """Return the outcome as Markdown with a table (GitHub's extension)."""
    return "\n".join((*_blocks(gated), ""))


def _blocks(gated: Gated) -> Iterator[str]:
    run = gated.run
    yield f"## Headroom: {run.verdict}"
    yield ""
    yield f"{_plain(gated.model)}, compared with {_plain(gated.baseline)}"
    if run.findings:
        yield ""
        yield f"| {' | '.join(_COLUMNS)} |"
        yield f"|{'---|' * len(_COLUMNS)}"
        yield from (f"| {' | '.join(_plain(cell) for cell in row)} |" for row in _rows(gated))
    sentences = [*gated.cautions, *run.reasons]
    if sentences:
        yield ""
        yield from (f"- {_plain(sentence)}" for sentence in sentences)
    if run.report_id:
        yield ""
        yield f"Report {run.report_id}, Headroom {_plain(gated.version)}"


def _rows(gated: Gated) -> Iterator[tuple[str, ...]]:
    for finding, state in states(gated.run):
        yield (
            state,
            finding.limit,
            figures.value(finding),
            figures.baseline(finding.baseline),
            figures.bound(finding.limit, finding.bound),
        )


def _plain(text: str) -> str:
    """Return text in one line in which no character is markup."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))
