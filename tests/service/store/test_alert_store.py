"""Alerts in the database: opened and closed by runs, acknowledged and dismissed by people, announced once."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from judged import FIGURES, HOOK, KL, NOTIFY, TOP, definition, end_run, finding
from sqlalchemy import Engine

from service.audits.receivers import Reach
from service.contracts.audits.alert import Alert, Announcement
from service.errors import Conflict, InvalidRequest, NotFound
from service.store.alerts import AlertStore
from service.store.artifacts import ArtifactStore
from service.store.audits import AuditStore

DAY = 86400


@pytest.fixture
def audits(engine: Engine, tmp_path: Path, clock) -> AuditStore:
    """An audit store with one audit."""
    store = AuditStore(engine, ArtifactStore(tmp_path / "artifacts"), clock, Reach(mail=True))
    store.create(definition())
    return store


@pytest.fixture
def alerts(audits: AuditStore, engine: Engine, clock) -> AlertStore:  # noqa: ARG001
    """The alerts of that audit."""
    return AlertStore(engine, clock)


def announced(audits: AuditStore, alerts: AlertStore) -> list[Announcement]:
    return list(alerts.announcements(audits.get("shipping").id, 100))


def messages(alerts: AlertStore) -> list[tuple[str, str]]:
    """Return receivers and states of all messages, the oldest first."""
    return [(one.address, one.state) for one in reversed(alerts.deliveries("shipping").deliveries)]


def only(alerts: AlertStore, *, closed: bool = False) -> Alert:
    (alert,) = alerts.alerts(closed=closed).alerts
    return alert


def test_an_alert_opens_with_one_message_to_every_receiver(
    audits: AuditStore, alerts: AlertStore, engine: Engine, clock
) -> None:
    run = end_run(engine, clock, "broken")
    alert = only(alerts)
    assert (alert.figure, alert.site, alert.direction) == (FIGURES[KL], "model", "above")
    assert (alert.status, alert.opened_at, alert.opened_run_id) == ("open", clock.now, run.id)
    assert alert.finding == finding(KL, "broken")
    (announcement,) = announced(audits, alerts)
    assert (announcement.kind, announcement.run_id, announcement.audit) == ("alerts", run.id, "shipping")
    assert [one.id for one in announcement.opened] == [alert.id]
    assert sorted(messages(alerts)) == [(HOOK, "owed"), ("team@example.org", "owed")]


def test_nothing_more_is_said_until_it_closes(audits: AuditStore, alerts: AlertStore, engine: Engine, clock) -> None:
    """A year of broken nights is one opening and one closing."""
    for _ in range(365):
        last = end_run(engine, clock, "broken")
        clock.move(DAY)
    assert only(alerts).broken_run_id == last.id
    assert len(announced(audits, alerts)) == 1
    passed = end_run(engine, clock, "pass")
    alert = only(alerts, closed=True)
    assert (alert.status, alert.closed_at, alert.closed_run_id) == ("closed", clock.now, passed.id)
    assert alert.finding.verdict == "pass"
    assert alerts.alerts().alerts == []
    closing, opening = announced(audits, alerts)
    assert [one.id for one in closing.closed] == [one.id for one in opening.opened] == [alert.id]
    assert len(messages(alerts)) == 4


def test_a_figure_that_breaks_again_is_a_new_alert(alerts: AlertStore, engine: Engine, clock) -> None:
    for verdict in ("broken", "pass", "broken"):
        end_run(engine, clock, verdict)
        clock.move(DAY)
    assert [one.status for one in alerts.alerts(closed=True).alerts] == ["open", "closed"]


def test_one_run_is_one_message(audits: AuditStore, alerts: AlertStore, engine: Engine, clock) -> None:
    """However many alerts it opens and closes."""
    end_run(engine, clock, "broken")
    clock.move(DAY)
    end_run(engine, clock, verdict="fail", findings=(finding(KL, "pass"), finding(TOP, "broken")))
    newest = announced(audits, alerts)[0]
    assert [one.finding.limit for one in newest.opened] == [TOP]
    assert [one.finding.limit for one in newest.closed] == [KL]
    assert len(messages(alerts)) == 4


def test_other_audits_have_their_own(audits: AuditStore, alerts: AlertStore, engine: Engine, clock) -> None:
    """The same figure of another audit is another alert."""
    audits.create(definition(name="other", notify=()))
    end_run(engine, clock, "broken")
    end_run(engine, clock, "broken", audit="other")
    assert len(alerts.alerts().alerts) == 2
    assert len(alerts.alerts(audit="other").alerts) == 1
    end_run(engine, clock, "pass", audit="other")
    assert len(alerts.alerts(audit="shipping").alerts) == 1


def test_an_error_is_in_the_feed_alone(audits: AuditStore, alerts: AlertStore, engine: Engine, clock) -> None:
    """It says nothing about any figure."""
    run = end_run(engine, clock, verdict="error", reasons=("No such model.",))
    (announcement,) = announced(audits, alerts)
    assert (announcement.kind, announcement.run_id, announcement.reasons) == ("error", run.id, ("No such model.",))
    assert messages(alerts) == []


@pytest.mark.parametrize("verdict", ["pass", "unchanged", "skipped", "warn", "unconfirmed"])
def test_other_runs_announce_nothing(
    audits: AuditStore, alerts: AlertStore, engine: Engine, clock, verdict: str
) -> None:
    end_run(engine, clock, verdict=verdict)
    assert announced(audits, alerts) == []


def test_an_alert_can_be_acknowledged(alerts: AlertStore, engine: Engine, clock) -> None:
    """With an author and a note; it stays open, and its closing is announced."""
    end_run(engine, clock, "broken")
    alert = alerts.acknowledge(only(alerts).id, "ada", "Looking.")
    assert (alert.status, alert.acknowledgement.author, alert.acknowledgement.at) == ("acknowledged", "ada", clock.now)
    assert only(alerts) == alert
    end_run(engine, clock, "pass")
    assert len(messages(alerts)) == 4


def test_a_dismissed_alert_is_told_of_again_after_its_expiry(
    audits: AuditStore, alerts: AlertStore, engine: Engine, clock
) -> None:
    """By the first run that finds it still broken, once."""
    end_run(engine, clock, "broken")
    until = clock.now + timedelta(days=2)
    alert = alerts.dismiss(only(alerts).id, "ada", "Known.", until)
    assert (alert.status, alert.dismissal.reason, alert.dismissal.until) == ("dismissed", "Known.", until)
    for night in range(1, 5):
        clock.move(DAY)
        end_run(engine, clock, "broken")
        assert len(announced(audits, alerts)) == (1 if night < 2 else 2)
    assert [one.id for one in announced(audits, alerts)[0].still_broken] == [alert.id]
    assert only(alerts).status == "open"


def test_a_dismissal_covers_the_figure_when_it_breaks_anew(
    audits: AuditStore, alerts: AlertStore, engine: Engine, clock
) -> None:
    """A figure that comes and goes is silent until the dismissal expires; the opening that was told is closed."""
    end_run(engine, clock, "broken")
    alerts.dismiss(only(alerts).id, "ada", "It flickers.", clock.now + timedelta(days=10))
    for verdict in ("pass", "broken", "pass", "broken"):
        clock.move(DAY)
        end_run(engine, clock, verdict)
    kinds = [(len(one.opened), len(one.closed)) for one in announced(audits, alerts)]
    assert kinds == [(0, 1), (1, 0)]
    assert only(alerts).status == "dismissed"
    clock.move(10 * DAY)
    end_run(engine, clock, verdict="unchanged")
    assert len(announced(audits, alerts)[0].still_broken) == 1
    clock.move(DAY)
    end_run(engine, clock, "pass")
    assert len(announced(audits, alerts)[0].closed) == 1


def test_a_dismissal_must_expire_later(alerts: AlertStore, engine: Engine, clock) -> None:
    end_run(engine, clock, "broken")
    with pytest.raises(InvalidRequest, match="until: '2026-01-01T00:00:00"):
        alerts.dismiss(only(alerts).id, "ada", "Known.", clock.now)


def test_only_open_alerts_can_be_spoken_of(alerts: AlertStore, engine: Engine, clock) -> None:
    """A closed one, and one that there is not."""
    end_run(engine, clock, "broken")
    alert = only(alerts)
    end_run(engine, clock, "pass")
    with pytest.raises(Conflict, match=f"alert {alert.id} closed at"):
        alerts.acknowledge(alert.id, "ada")
    with pytest.raises(Conflict):
        alerts.dismiss(alert.id, "ada", "Known.", datetime(2030, 1, 1, tzinfo=UTC))
    for unknown in ("none", "a\0b"):
        with pytest.raises(NotFound, match="is not the id of an alert"):
            alerts.acknowledge(unknown, "ada")


def test_removing_a_limit_closes_its_alert_without_a_word(
    audits: AuditStore, alerts: AlertStore, engine: Engine, clock
) -> None:
    """Another bound on the same figure and side keeps it."""
    end_run(engine, clock, verdict="fail", findings=(finding(KL, "broken"), finding(TOP, "broken")))
    audits.update("shipping", definition(limits=("int8.kl_divergence.mean <= 0.5",)))
    assert [one.figure for one in alerts.alerts().alerts] == [FIGURES[KL]]
    closed = next(one for one in alerts.alerts(closed=True).alerts if one.status == "closed")
    assert (closed.figure, closed.closed_run_id) == (FIGURES[TOP], None)
    assert len(announced(audits, alerts)) == 1
    audits.update("shipping", definition(limits=()))
    assert alerts.alerts().alerts == []
    assert len(announced(audits, alerts)) == 1


def test_a_run_opens_no_alert_on_a_limit_removed_since_it_began(
    audits: AuditStore, alerts: AlertStore, engine: Engine, clock
) -> None:
    """No later run would judge the figure, so that the alert would never close."""
    audits.update("shipping", definition(limits=("int8.kl_divergence.mean <= 0.5",)))
    end_run(engine, clock, verdict="fail", findings=(finding(KL, "broken"), finding(TOP, "broken")))
    assert only(alerts).figure == FIGURES[KL]
    (announcement,) = announced(audits, alerts)
    assert [one.figure for one in announcement.opened] == [FIGURES[KL]]


def test_alerts_are_listed_newest_first_in_pages(alerts: AlertStore, engine: Engine, clock) -> None:
    for verdict in ("broken", "pass") * 3:
        end_run(engine, clock, verdict)
        clock.move(DAY)
    everything = alerts.alerts(closed=True).alerts
    assert [one.opened_at for one in everything] == sorted((one.opened_at for one in everything), reverse=True)
    first = alerts.alerts(closed=True, page_size=2)
    second = alerts.alerts(closed=True, page_size=2, page_token=first.next_page_token)
    assert first.alerts + second.alerts == everything
    assert second.next_page_token is None
    with pytest.raises(InvalidRequest, match="page_token"):
        alerts.alerts(page_token="x")
    with pytest.raises(NotFound):
        alerts.alerts(audit="none")


def test_deleting_an_audit_leaves_nothing(audits: AuditStore, alerts: AlertStore, engine: Engine, clock) -> None:
    """Neither alerts nor messages nor secrets."""
    end_run(engine, clock, "broken")
    (owed, _) = alerts.claim(2, timedelta(minutes=1))
    audits.delete("shipping")
    assert alerts.alerts(closed=True).alerts == []
    audits.create(definition())
    assert messages(alerts) == []
    with pytest.raises(NotFound):
        alerts.delivery(owed.id)


def test_receivers_are_checked_when_an_audit_is_made_and_edited(audits: AuditStore) -> None:
    private = definition(notify=({"webhook": "http://10.0.0.1/"},))
    with pytest.raises(InvalidRequest, match="private network"):
        audits.update("shipping", private)
    with pytest.raises(InvalidRequest, match="private network"):
        audits.create(private.model_copy(update={"name": "other"}))
    assert audits.get("shipping").definition.notify == NOTIFY
