"""Alerts, deliveries, webhooks, feeds and badges over HTTP: every call, and every refusal."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from xml.etree import ElementTree

import feedparser
import pytest
from judged import FIGURES, HOOK, KL, NOTIFY, TOP, definition, end_run, finding
from sqlalchemy import update

from service.contracts.audits.alert import Alert
from service.store.audit_tables import AuditRunRow
from service.store.database import make_engine, writer
from service.store.hosts.clock import utcnow
from service.store.notifications.attempts import Attempted
from service.store.statuses import RunState

UNKNOWN = "0" * 32


class Present:
    """The present time, as a clock."""

    @property
    def now(self) -> datetime:
        return utcnow()


@pytest.fixture
def end(world) -> Iterator[Callable[..., None]]:
    """Ends a run of the audit `shipping`, which has a webhook."""
    world.stores.audits.create(definition(notify=NOTIFY[:1]))
    engine = make_engine(world.settings.database)
    yield lambda *first, **facts: end_run(engine, Present(), *first, **facts)
    engine.dispose()


@pytest.fixture
def alert_id(client, end) -> str:
    """The id of an open alert."""
    end("broken")
    (alert,) = client.get("/v1/alerts").json()["alerts"]
    return alert["id"]


def test_alerts_are_listed_and_shown(client, end):
    end(verdict="fail", findings=(finding(KL, "broken"), finding(TOP, "broken")))
    page = client.get("/v1/alerts", params={"audit": "shipping"}).json()
    assert {alert["figure"] for alert in page["alerts"]} == set(FIGURES.values())
    assert page["next_page_token"] is None
    first = client.get("/v1/alerts?page_size=1").json()
    rest = client.get("/v1/alerts", params={"page_size": 1, "page_token": first["next_page_token"]}).json()
    assert first["alerts"] + rest["alerts"] == page["alerts"]
    for alert in page["alerts"]:
        assert client.get(f"/v1/alerts/{alert['id']}").json() == alert
        assert Alert.model_validate(alert).status == "open"
    end(findings=(finding(KL, "pass"), finding(TOP, "pass")))
    assert client.get("/v1/alerts").json()["alerts"] == []
    closed = client.get("/v1/alerts?closed=true").json()["alerts"]
    assert [alert["status"] for alert in closed] == ["closed", "closed"]


def test_an_alert_is_acknowledged_and_dismissed(client, alert_id):
    answer = client.post(f"/v1/alerts/{alert_id}/acknowledge", json={"author": "Ada", "note": "größer"})
    assert (answer.status_code, answer.json()["status"]) == (200, "acknowledged")
    assert answer.json()["acknowledgement"]["note"] == "größer"
    until = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    said = {"author": "Ada", "reason": "Known.", "until": until}
    dismissed = client.post(f"/v1/alerts/{alert_id}/dismiss", json=said).json()
    assert dismissed["status"] == "dismissed"
    assert datetime.fromisoformat(dismissed["dismissal"]["until"]) == datetime.fromisoformat(until)
    assert client.get(f"/v1/alerts/{alert_id}").json() == dismissed


@pytest.mark.parametrize(
    ("call", "body", "field"),
    [
        ("acknowledge", {}, "author"),
        ("acknowledge", {"author": ""}, "author"),
        ("acknowledge", {"author": "a\nb"}, "author"),
        ("acknowledge", {"author": "Ada", "note": "a\x00"}, "note"),
        ("acknowledge", {"author": "Ada", "notes": ""}, "notes"),
        ("dismiss", {"author": "Ada", "reason": "Known."}, "until"),
        ("dismiss", {"author": "Ada", "reason": "", "until": "2100-01-01T00:00:00Z"}, "reason"),
        ("dismiss", {"author": "Ada", "reason": "Known.", "until": "2100-01-01T00:00:00"}, "until"),
        ("dismiss", {"author": "Ada", "reason": "Known.", "until": "2020-01-01T00:00:00Z"}, "until"),
        ("dismiss", {"author": "Ada", "reason": "Known.", "until": "soon"}, "until"),
    ],
)
def test_what_is_not_allowed_is_named(client, problem, alert_id, call, body, field):
    document = problem(client.post(f"/v1/alerts/{alert_id}/{call}", json=body), 422, "invalid-request")
    assert [error["field"] for error in document["errors"]] == [field]


def test_a_closed_alert_cannot_be_acknowledged(client, problem, alert_id, end):
    end("pass")
    problem(client.post(f"/v1/alerts/{alert_id}/acknowledge", json={"author": "Ada"}), 409, "conflict")


def test_what_there_is_not(client, problem):
    for path in (
        "/v1/alerts?audit=none",
        *(f"/v1/alerts/{one}" for one in (UNKNOWN, "x", "%00")),
        "/v1/audits/none/deliveries",
        f"/v1/deliveries/{UNKNOWN}",
        "/v1/audits/none/webhooks",
        f"/v1/webhooks/{UNKNOWN}/secret",
        "/v1/audits/none/feed.atom",
        "/v1/feeds/x.atom",
        "/v1/badges/x.svg",
        "/v1/badges/%00.svg",
    ):
        problem(client.get(path), 404, "not-found")
    for path in (f"/v1/deliveries/{UNKNOWN}/replay", f"/v1/webhooks/{UNKNOWN}/rotate", "/v1/webhooks/x/enable"):
        problem(client.post(path), 404, "not-found")
    problem(client.post(f"/v1/alerts/{UNKNOWN}/acknowledge", json={"author": "Ada"}), 404, "not-found")
    problem(client.get("/v1/alerts?audit=%2E%2E"), 422, "invalid-request")


def test_private_receivers_are_refused(client, problem):
    """When the audit is made, with the setting that would allow them."""
    for notify in ({"webhook": "http://169.254.169.254/"}, {"email": "team@example.org"}):
        body = {"name": "a", "model": "sample", "notify": [notify]}
        document = problem(client.post("/v1/audits", json=body), 422, "invalid-request")
        assert document["errors"][0]["field"] == "notify"
        assert "HEADROOM_" in document["detail"]


def test_deliveries_are_listed_and_replayed(client, problem, world, alert_id, end):
    assert alert_id
    outbox = world.stores.alerts
    (owed,) = outbox.claim(1, timedelta(minutes=1))
    outbox.record(owed, Attempted("gone", "The receiver answered 410.", 410), utcnow())
    (delivery,) = client.get("/v1/audits/shipping/deliveries").json()["deliveries"]
    assert (delivery["channel"], delivery["address"], delivery["state"]) == ("webhook", HOOK, "failed")
    assert delivery["webhook_id"] == f"msg_{owed.id}"
    assert [(one["number"], one["status"], one["result"]) for one in delivery["attempts"]] == [(1, 410, "gone")]
    assert client.get(f"/v1/deliveries/{owed.id}").json() == delivery
    refused = problem(client.post(f"/v1/deliveries/{owed.id}/replay"), 409, "conflict")
    (webhook,) = client.get("/v1/audits/shipping/webhooks").json()["webhooks"]
    assert webhook["disabled_reason"] == "The receiver answered 410."
    assert webhook["id"] in refused["detail"]
    assert client.post(f"/v1/webhooks/{webhook['id']}/enable").json()["disabled_at"] is None
    answer = client.post(f"/v1/deliveries/{owed.id}/replay")
    assert (answer.status_code, answer.json()["state"]) == (202, "owed")
    end("pass")
    first = client.get("/v1/audits/shipping/deliveries?page_size=1").json()
    second = client.get(
        "/v1/audits/shipping/deliveries", params={"page_size": 1, "page_token": first["next_page_token"]}
    ).json()
    assert second["deliveries"] == [answer.json()]


def test_the_secret_of_a_webhook(client, problem, world, end):
    """It is in no list, and no cache keeps it."""
    assert end
    listed = client.get("/v1/audits/shipping/webhooks")
    (webhook,) = listed.json()["webhooks"]
    path = f"/v1/webhooks/{webhook['id']}"
    shown = client.get(f"{path}/secret")
    assert shown.headers["cache-control"] == "no-store"
    secret = shown.json()["secret"]
    assert secret == world.stores.alerts.secret(webhook["id"])
    assert secret not in listed.text
    assert secret not in client.get("/v1/audits/shipping").text
    rotated = client.post(f"{path}/rotate").json()["secret"]
    assert client.get(f"{path}/secret").json()["secret"] == rotated != secret
    again = client.post(f"{path}/rotate", json={"overlap_seconds": 0})
    assert again.headers["cache-control"] == "no-store"
    for overlap in (-1, True, 10**9, "x"):
        problem(client.post(f"{path}/rotate", json={"overlap_seconds": overlap}), 422, "invalid-request")


def test_the_feed_is_read_with_a_key_and_by_its_address(client, stranger, problem, end):
    run = end("broken")
    end(verdict="error", reasons=("No such model.",))
    audit = client.get("/v1/audits/shipping").json()
    keyed = client.get("/v1/audits/shipping/feed.atom")
    problem(stranger.get("/v1/audits/shipping/feed.atom"), 401, "unauthorized")
    openly = stranger.get(audit["feed"])
    for answer in (keyed, openly):
        assert answer.headers["content-type"] == "application/atom+xml; charset=utf-8"
        parsed = feedparser.parse(answer.content)
        assert not parsed.bozo
        assert [entry.title for entry in parsed.entries] == [
            "shipping: the run ended in an error",
            "shipping: 1 alert opened",
        ]
        assert run.id in parsed.entries[1].content[0].value
    assert feedparser.parse(openly.content).feed.links[0].href == f"http://testserver{audit['feed']}"
    unchanged = stranger.get(audit["feed"], headers={"If-None-Match": openly.headers["etag"]})
    assert unchanged.status_code == 304
    end("pass")
    changed = stranger.get(audit["feed"], headers={"If-None-Match": openly.headers["etag"]})
    assert len(feedparser.parse(changed.content).entries) == 3


def verdict_shown(stranger, address: str) -> str:
    image = stranger.get(address)
    assert image.status_code == 200
    assert image.headers["content-type"] == "image/svg+xml"
    assert "no-cache" in image.headers["cache-control"]
    return ElementTree.fromstring(image.content).get("aria-label", "")


def test_the_badge_shows_the_last_verdict(client, stranger, world, end):
    """That of the last run that says something: an unchanged model is as it was."""
    assert end
    address = client.get("/v1/audits/shipping").json()["badge"]
    assert verdict_shown(stranger, address) == "shipping: no run"
    engine = make_engine(world.settings.database)
    for verdict, trigger, shown in (
        (None, "schedule", "no run"),
        ("pass", "schedule", "pass"),
        ("fail", "request", "fail"),
        ("unchanged", "schedule", "fail"),
        ("skipped", "schedule", "fail"),
        ("pass", "gate", "fail"),
        ("error", "schedule", "error"),
    ):
        run = world.stores.audits.request_run("shipping")
        values = {"verdict": verdict, "trigger": trigger, "state": RunState.ended}
        with writer(engine).begin() as connection:
            connection.execute(update(AuditRunRow).where(AuditRunRow.id == run.id).values(**values))
        assert verdict_shown(stranger, f"{address}?shown={verdict}") == f"shipping: {shown}"
    engine.dispose()


def test_addresses_of_different_audits_differ(client, world, end):
    assert end
    world.stores.audits.create(definition(name="other", notify=()))
    first, second = (client.get(f"/v1/audits/{name}").json() for name in ("shipping", "other"))
    assert first["badge"] != second["badge"]
    assert len(first["badge"].removeprefix("/v1/badges/").removesuffix(".svg")) >= 32


def test_the_address_of_the_badge_does_not_give_away_that_of_the_feed(client, stranger, problem, end):
    assert end
    audit = client.get("/v1/audits/shipping").json()
    badge = audit["badge"].removeprefix("/v1/badges/").removesuffix(".svg")
    feed = audit["feed"].removeprefix("/v1/feeds/").removesuffix(".atom")
    assert len(feed) >= 32
    problem(stranger.get(f"/v1/feeds/{badge}.atom"), 404, "not-found")
    problem(stranger.get(f"/v1/badges/{feed}.svg"), 404, "not-found")


def test_calls_are_described(client):
    paths = client.get("/openapi.json").json()["paths"]
    described = {path: sorted(calls) for path, calls in paths.items()}
    assert (
        described.items()
        >= {
            "/v1/alerts": ["get"],
            "/v1/alerts/{alert_id}": ["get"],
            "/v1/alerts/{alert_id}/acknowledge": ["post"],
            "/v1/alerts/{alert_id}/dismiss": ["post"],
            "/v1/audits/{audit}/deliveries": ["get"],
            "/v1/deliveries/{delivery_id}": ["get"],
            "/v1/deliveries/{delivery_id}/replay": ["post"],
            "/v1/audits/{audit}/webhooks": ["get"],
            "/v1/webhooks/{webhook_id}/secret": ["get"],
            "/v1/webhooks/{webhook_id}/rotate": ["post"],
            "/v1/webhooks/{webhook_id}/enable": ["post"],
            "/v1/audits/{audit}/feed.atom": ["get"],
            "/v1/feeds/{token}.atom": ["get"],
            "/v1/badges/{token}.svg": ["get"],
        }.items()
    )
