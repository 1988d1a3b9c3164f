"""`headroom audits alerts` and `headroom audits webhooks` against a running service."""

from datetime import UTC, datetime, timedelta

import pytest
from judged import HOOK, KL, NOTIFY, definition, end_run

from service.cli.running import BAD_INPUT, DONE
from service.store.database import make_engine
from service.store.hosts.clock import utcnow
from service.store.notifications.attempts import Attempted


class Present:
    """The present time, as a clock."""

    @property
    def now(self) -> datetime:
        return utcnow()


@pytest.fixture
def end(remote, tmp_path):
    """Ends a run of the audit `shipping`, which has a webhook."""
    remote.audits.create(definition(notify=NOTIFY[:1]))
    engine = make_engine(f"sqlite:///{tmp_path / 'remote' / 'headroom.db'}")
    yield lambda verdict: end_run(engine, Present(), verdict)
    engine.dispose()


@pytest.fixture
def alert(remote, end):
    """The id of an open alert."""
    end("broken")
    return remote.alerts.alerts().alerts[0].id


def test_alerts_are_listed_and_shown(headroom, alert, end):
    ran = headroom("audits", "alerts", "list", "shipping")
    assert ran.code == DONE, ran.err
    assert (alert in ran.out, KL in ran.out) == (True, True)
    shown = headroom("audits", "alerts", "show", alert)
    assert "It is broken." in shown.out
    assert headroom("audits", "alerts", "show", alert, "--json").document["id"] == alert
    end("pass")
    assert headroom("audits", "alerts", "list", "--json").document["alerts"] == []
    listed = headroom("audits", "alerts", "list", "--all", "--json").document["alerts"]
    assert [one["status"] for one in listed] == ["closed"]


def test_an_alert_is_acknowledged_and_dismissed(headroom, remote, alert):
    ran = headroom("audits", "alerts", "acknowledge", alert, "--author", "Ada", "--note", "Looking.")
    assert "by Ada: Looking." in ran.out
    assert headroom("audits", "alerts", "acknowledge", alert).code == DONE
    assert remote.alerts.alert(alert).acknowledgement.author
    said = ("--reason", "Known.", "--author", "Ada")
    ran = headroom("audits", "alerts", "dismiss", alert, "--until", "2100-01-31", *said)
    assert ran.code == DONE, ran.err
    assert remote.alerts.alert(alert).dismissal.until == datetime(2100, 1, 31, tzinfo=UTC)
    headroom("audits", "alerts", "dismiss", alert, "--until", "2100-01-31T18:00+01:00", *said)
    assert remote.alerts.alert(alert).dismissal.until == datetime(2100, 1, 31, 17, tzinfo=UTC)


def test_what_is_not_allowed_is_named(headroom, alert):
    for until, named in (("soon", "--until: 'soon'"), ("2020-01-01", "until: '2020-01-01T00:00:00+00:00'")):
        ran = headroom("audits", "alerts", "dismiss", alert, "--until", until, "--reason", "Known.")
        assert (ran.code, named in ran.err) == (BAD_INPUT, True), ran.err
    for command in (("show", "../x"), ("show", "0" * 32), ("list", "No name"), ("list", "none")):
        assert headroom("audits", "alerts", *command).code == BAD_INPUT


def test_a_system_that_does_not_know_its_user(headroom, alert, monkeypatch):
    """The name must be given then."""

    def unknown():
        raise KeyError("uid not found")

    monkeypatch.setattr("getpass.getuser", unknown)
    ran = headroom("audits", "alerts", "acknowledge", alert)
    assert (ran.code, "--author" in ran.err) == (BAD_INPUT, True)


def test_secrets_are_shown_and_replaced(headroom, remote, end):
    assert end
    ran = headroom("audits", "webhooks", "list", "shipping")
    (webhook,) = remote.alerts.webhooks("shipping")
    assert all(text in ran.out for text in (webhook.id, HOOK, "gets messages"))
    former = headroom("audits", "webhooks", "secret", webhook.id).out.strip()
    assert former == remote.alerts.secret(webhook.id)
    present = headroom("audits", "webhooks", "rotate", webhook.id, "--overlap", "2", "--json").document["secret"]
    assert present == remote.alerts.secret(webhook.id) != former
    until = remote.alerts.webhooks("shipping")[0].former_secret_until
    assert timedelta(hours=1) < until - utcnow() <= timedelta(hours=2)
    assert headroom("audits", "webhooks", "rotate", webhook.id, "--overlap", "-1").code == BAD_INPUT


def test_deliveries_are_listed_and_replayed(headroom, remote, alert):
    assert alert
    (owed,) = remote.alerts.claim(1, timedelta(minutes=1))
    remote.alerts.record(owed, Attempted("gone", "The receiver answered 410.", 410), utcnow())
    ran = headroom("audits", "webhooks", "deliveries", "shipping", "--json")
    assert [(one["id"], one["state"]) for one in ran.document["deliveries"]] == [(owed.id, "failed")]
    listed = headroom("audits", "webhooks", "deliveries", "shipping")
    assert listed.code == DONE
    assert owed.id[:8] in listed.out
    refused = headroom("audits", "webhooks", "replay", owed.id)
    assert (refused.code, "enable it first" in refused.err) == (BAD_INPUT, True)
    (webhook,) = remote.alerts.webhooks("shipping")
    assert "disabled since" in " ".join(headroom("audits", "webhooks", "list", "shipping").out.split())
    assert "gets messages" in headroom("audits", "webhooks", "enable", webhook.id).out
    assert "owed" in headroom("audits", "webhooks", "replay", owed.id).out


def test_show_prints_the_addresses_of_badge_and_feed(headroom, remote, end):
    assert end
    shown = headroom("audits", "show", "shipping").out
    audit = remote.audits.get("shipping")
    assert f"/v1/badges/{audit.badge_token}.svg" in shown
    assert f"/v1/feeds/{audit.feed_token}.atom" in shown
