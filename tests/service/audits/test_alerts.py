"""Alerts: what a run opens, keeps and closes, from made findings whose outcome is plain."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.audits.alerts import Changes, Identity, OpenAlert, changes, identity
from service.audits.judgment import combine
from service.contracts.audits.audit import AuditRun, Finding, Rerun

NOW = datetime(2026, 5, 4, 3, tzinfo=UTC)
KL = "int8.kl_divergence.mean <= baseline * 1.2"
TOP = "int8.same_top_token >= 0.98"
FIGURES = {KL: "schemes.int8.kl_divergence.mean", TOP: "schemes.int8.same_top_token.value"}
OF_KL = Identity(FIGURES[KL], "model", "above")
OF_TOP = Identity(FIGURES[TOP], "model", "below")


def finding(limit: str, verdict: str) -> Finding:
    return Finding(limit=limit, figure=FIGURES.get(limit, limit.split()[0]), value=1.0, verdict=verdict, reason="Why.")


def run(findings: Sequence[Finding] = (), reruns: Sequence[Rerun] = (), **changed: object) -> AuditRun:
    facts: dict[str, object] = {
        "id": "r" * 32,
        "audit_id": "a" * 32,
        "trigger": "schedule",
        "scheduled_at": NOW,
        "verdict": combine(findings, reruns).verdict,
        "findings": findings,
        "reruns": reruns,
    }
    return AuditRun.model_validate(facts | changed)


def opened(of: Identity = OF_KL, *, broken: bool = True, dismissed_until: datetime | None = None) -> OpenAlert:
    return OpenAlert(of.direction * 3, of, broken, dismissed_until)


@pytest.mark.parametrize(
    ("figure", "limit", "site", "direction"),
    [
        ("schemes.int8.perplexity_ratio.value", "int8.perplexity_ratio <= 1.01", "model", "above"),
        ("schemes.int8.same_top_token.value", "int8.same_top_token >= 0.98", "model", "below"),
        ("schemes.int8.verdict.level", "int8.verdict no worse than baseline", "model", "worse"),
        ("outliers.llm_int8", "outliers.llm_int8 none gained", "model", "gained"),
        ("block.abs_max", "block.abs_max <= baseline * 2", "block.output", "above"),
    ],
)
def test_an_alert_is_known_by_figure_site_and_direction(figure: str, limit: str, site: str, direction: str) -> None:
    """The bound is no part of it, so that another bound on the same figure keeps the alert."""
    assert identity(figure, limit) == (figure, site, direction)


def test_what_a_failed_run_breaks_opens_once() -> None:
    """Two limits on one figure and side are one alert; another figure is another; a figure that passes is none."""
    tight = "int8.kl_divergence.mean <= 0.5"
    broken = [
        finding(KL, "broken"),
        finding(tight, "broken").model_copy(update={"figure": FIGURES[KL]}),
        finding(TOP, "pass"),
    ]
    result = changes(run(broken), [], NOW)
    assert [(key, one.limit) for key, one in result.opened] == [(OF_KL, KL)]
    assert result._replace(opened=()) == Changes()


def test_an_open_alert_is_not_opened_again() -> None:
    """A thing that stays broken is one alert."""
    result = changes(run([finding(KL, "broken")]), [opened()], NOW)
    assert result == Changes(broken=((opened().id, finding(KL, "broken")),))


def test_only_confirmed_figures_open() -> None:
    """Of two broken figures the rerun contradicts one: the run fails on the other, and that alone is alerted."""
    findings = [finding(KL, "broken"), finding(TOP, "broken")]
    rerun = Rerun(seed=1, status="completed", findings=(finding(KL, "pass"), finding(TOP, "broken")))
    failed = run(findings, [rerun])
    assert failed.verdict == "fail"
    assert [key for key, _ in changes(failed, [], NOW).opened] == [OF_TOP]


def test_an_unconfirmed_run_opens_nothing() -> None:
    """Its figure was broken on one text alone."""
    rerun = Rerun(seed=1, status="completed", findings=(finding(KL, "pass"),))
    contradicted = run([finding(KL, "broken")], [rerun])
    assert contradicted.verdict == "unconfirmed"
    assert changes(contradicted, [], NOW) == Changes()
    assert changes(contradicted, [opened()], NOW) == Changes(doubtful=(opened().id,))


def test_a_pass_closes() -> None:
    """The other figure of the run may be whatever it is."""
    result = changes(run([finding(KL, "pass"), finding(TOP, "broken")]), [opened()], NOW)
    assert result.closed == ((opened().id, finding(KL, "pass")),)
    assert [key for key, _ in result.opened] == [OF_TOP]


def test_every_limit_on_the_figure_must_pass() -> None:
    """One of two limits on the figure and side is still within noise of being broken."""
    tight = finding("int8.kl_divergence.mean <= 0.5", "warn").model_copy(update={"figure": FIGURES[KL]})
    assert changes(run([finding(KL, "pass"), tight]), [opened()], NOW) == Changes(doubtful=(opened().id,))


@pytest.mark.parametrize("verdict", ["unchanged", "skipped", "error"])
def test_a_run_without_a_judgment_changes_nothing(verdict: str) -> None:
    """Whatever its findings say."""
    assert changes(run([finding(KL, "pass")], verdict=verdict), [opened()], NOW) == Changes()
    assert changes(run([finding(TOP, "broken")], verdict=verdict), [opened()], NOW) == Changes()


@pytest.mark.parametrize("verdict", ["pass", "broken"])
def test_a_gate_changes_nothing(verdict: str) -> None:
    """It judges a candidate, not the model that is watched."""
    alerts = [] if verdict == "broken" else [opened()]
    assert changes(run([finding(KL, verdict)], trigger="gate"), alerts, NOW) == Changes()


def test_a_limit_that_was_not_judged_neither_opens_nor_closes() -> None:
    """There may be no baseline to compare with."""
    assert changes(run([finding(KL, "not_judged")]), [opened()], NOW) == Changes()


def test_an_expired_dismissal_is_told_of_again() -> None:
    """By a run that fails on it, and by one that finds the model unchanged since."""
    expired = opened(dismissed_until=NOW)
    assert changes(run([finding(KL, "broken")]), [expired], NOW).expired == (expired.id,)
    assert changes(run(verdict="unchanged"), [expired], NOW).expired == (expired.id,)


def test_a_dismissal_holds_until_it_expires() -> None:
    """Not one second less."""
    dismissed = opened(dismissed_until=NOW + timedelta(seconds=1))
    assert changes(run([finding(KL, "broken")]), [dismissed], NOW).expired == ()
    assert changes(run(verdict="unchanged"), [dismissed], NOW).expired == ()


def test_an_unchanged_model_that_was_in_doubt_is_not_told_of_again() -> None:
    """The last judgment of it did not find it broken."""
    doubtful = opened(broken=False, dismissed_until=NOW)
    assert changes(run(verdict="unchanged"), [doubtful], NOW) == Changes()


NIGHTS = st.lists(st.sampled_from(["pass", "warn", "broken", "not_judged", "unchanged", "skipped", "error"]))


@given(NIGHTS)
def test_openings_and_closings_alternate(nights: list[str]) -> None:
    """Over any history of one limit, beginning with an opening, and each at the night that a plain reading gives."""
    alert: OpenAlert | None = None
    is_open = False
    for night in nights:
        measured = night in ("pass", "warn", "broken", "not_judged")
        one = run([finding(KL, night)]) if measured else run(verdict=night)
        result = changes(one, [alert] if alert else [], NOW)
        assert bool(result.opened) == (not is_open and night == "broken")
        assert bool(result.closed) == (is_open and night == "pass")
        is_open = (is_open or night == "broken") and night != "pass"
        alert = opened() if is_open else None
