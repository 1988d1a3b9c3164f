"""`headroom analyze --fail-on`: which levels make it exit with 4."""

import made_reports
import pytest

from service.cli.analysis import checked_level, reaching
from service.errors import InvalidRequest


def leveled(**levels):
    """Return a report in which the schemes have these verdicts."""
    report = made_reports.template()
    facts = report.schemes["nf4"]
    verdict = made_reports.report(made_reports.made_up(1)).report.schemes["nf4"].verdict
    judged = {name: facts.model_copy(update={"verdict": verdict.model_copy(update={"level": level})})
              for name, level in levels.items()}  # fmt: skip
    return report.model_copy(update={"schemes": judged})


@pytest.mark.parametrize(("level", "expected"), [("noticeable", (["b", "c"], ["d"])), ("severe", (["c"], ["d"]))])
def test_a_level_is_reached_by_itself_and_by_worse_ones(level, expected):
    assert reaching(leveled(a="negligible", b="noticeable", c="severe", d="unjudged"), level) == expected


@pytest.mark.parametrize("level", ["negligible", "unjudged", "sever", ""])
def test_other_words_are_refused(level):
    with pytest.raises(InvalidRequest, match=f"--fail-on: '{level}' is not allowed; allowed: noticeable or severe"):
        checked_level(level)
