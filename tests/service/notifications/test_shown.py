"""What is shown of an audit: the wording of announcements, the feed as a feed reader reads it, and the badge."""

import json
import uuid
from datetime import datetime
from xml.etree import ElementTree

import feedparser
import pytest
from announced import AT, LIMIT, alert, announcement

from service.contracts.audits.alert import Announcement
from service.notifications.badge import Shown, badge
from service.notifications.feed import feed
from service.notifications.wording import body, text, title


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({}, "shipping-llama: 1 alert opened"),
        ({"opened": (alert(1), alert(2))}, "shipping-llama: 2 alerts opened"),
        ({"closed": (alert(3),)}, "shipping-llama: 1 alert opened, 1 alert closed"),
        ({"opened": (), "still_broken": (alert(3),)}, "shipping-llama: 1 alert still open after dismissal"),
        ({"kind": "error", "opened": ()}, "shipping-llama: the run ended in an error"),
        ({"kind": "paused", "opened": ()}, "shipping-llama: paused, since its runs end in errors"),
    ],
)
def test_a_title_is_one_line(changed: dict[str, object], line: str) -> None:
    """It names the audit first, as a mailbox sorts by it."""
    assert title(announcement(**changed)) == line


def test_the_text_names_every_alert() -> None:
    """With its limit, the reason and the ids to ask with."""
    closed = alert(2, "nf4.perplexity_ratio <= 1.05", "1.02 is not over 1.05.")
    lines = text(announcement(closed=(closed,), baseline_report_id="d" * 32)).splitlines()
    assert lines == [
        "shipping-llama: 1 alert opened, 1 alert closed",
        "",
        "Opened:",
        f"- {LIMIT}: 0.03 is over 0.02. (alert {1:032x})",
        "",
        "Closed:",
        f"- nf4.perplexity_ratio <= 1.05: 1.02 is not over 1.05. (alert {2:032x})",
        "",
        f"Run {'b' * 32}: fail",
        f"Report {'c' * 32}",
        f"Baseline {'d' * 32}",
    ]


def test_an_error_says_why() -> None:
    """There are no alerts to list."""
    one = announcement(kind="error", verdict="error", opened=(), report_id=None, reasons=("No such model.",))
    assert text(one).splitlines()[2:] == ["No such model.", "", f"Run {'b' * 32}: error"]


def test_the_body_of_a_webhook() -> None:
    """It is the same at every attempt, and holds the whole announcement."""
    one = announcement()
    content = json.loads(body(one))
    assert set(content) == {"type", "timestamp", "data"}
    assert content["type"] == "audit.alerts.changed"
    assert datetime.fromisoformat(content["timestamp"]) == one.at
    assert Announcement.model_validate(content["data"]).opened == one.opened
    assert body(one) == body(Announcement.model_validate_json(one.model_dump_json()))


def read(entries: list[Announcement]) -> feedparser.FeedParserDict:
    made = feed(
        "a" * 32, "shipping-llama", AT, entries, address="https://h.example/v1/feeds/x.atom", base="https://h.example"
    )
    parsed = feedparser.parse(made)
    assert not parsed.bozo
    assert parsed.version == "atom10"
    return parsed


def test_a_feed_reader_reads_the_feed() -> None:
    """Newest first, with ids that stay, times, links and the text."""
    parsed = read([announcement(2), announcement(1)])
    assert parsed.feed.id == uuid.UUID("a" * 32).urn
    assert parsed.feed.title == "Headroom: shipping-llama"
    assert parsed.feed.author == "Headroom"
    assert [(link.rel, link.href) for link in parsed.feed.links] == [("self", "https://h.example/v1/feeds/x.atom")]
    newest, older = parsed.entries
    assert parsed.feed.updated == newest.updated == announcement(2).at.isoformat()
    assert (newest.id, older.id) == (uuid.UUID(int=2).urn, uuid.UUID(int=1).urn)
    assert newest.title == "shipping-llama: 1 alert opened"
    assert newest.link == f"https://h.example/v1/reports/{'c' * 32}/report.html"
    (content,) = newest.content
    assert content.type == "text/plain"
    assert content.value == text(announcement(2)).strip()


def test_an_entry_does_not_change() -> None:
    """When others come: a reader would show it again."""
    before = read([announcement(1)]).entries[0]
    after = read([announcement(2), announcement(1)]).entries[1]
    assert before == after


def test_a_feed_without_entries() -> None:
    """It has the time at which the audit was made, since Atom asks for one."""
    parsed = read([])
    assert parsed.entries == []
    assert parsed.feed.updated == AT.isoformat()


def test_the_feed_has_what_rfc_4287_asks_for() -> None:
    """The elements that a feed and each entry must have, once."""
    made = feed("a" * 32, "x", AT, [announcement()], address="https://h.example/f", base="https://h.example")
    root = ElementTree.fromstring(made)
    atom = "{http://www.w3.org/2005/Atom}"
    (entry,) = root.findall(f"{atom}entry")
    for element in (root, entry):
        for name in ("id", "title", "updated"):
            assert len(element.findall(f"{atom}{name}")) == 1
    assert root.find(f"{atom}author/{atom}name") is not None


def test_text_that_xml_cannot_hold() -> None:
    """The reason of an error may hold anything."""
    reason = "<b>&amp; \x00\x1b[31m \ud800 \uffff ]]>"
    (entry,) = read([announcement(kind="error", opened=(), reasons=(reason,))]).entries
    assert "<b>&amp; \ufffd\ufffd[31m \ufffd \ufffd ]]>" in entry.content[0].value


@pytest.mark.parametrize("verdict", ["pass", "warn", "fail", "unconfirmed", "error", "no run"])
def test_a_badge(verdict: Shown) -> None:
    """Name and verdict, also for those who cannot see the color."""
    root = ElementTree.fromstring(badge("shipping-llama", verdict))
    svg = "{http://www.w3.org/2000/svg}"
    assert root.tag == f"{svg}svg"
    assert root.get("aria-label") == f"shipping-llama: {verdict}"
    assert [one.text for one in root.iter(f"{svg}text")] == ["shipping-llama", verdict]
    widths = [int(one.get("width")) for one in root.findall(f"{svg}rect")]
    assert sum(widths) == int(root.get("width"))


def _luminance(color: str) -> float:
    """Return the relative luminance of `#rrggbb` (WCAG 2)."""
    channels = [int(color[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4 for one in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("verdict", ["pass", "warn", "fail", "unconfirmed", "error", "no run"])
def test_a_badge_can_be_read(verdict: Shown) -> None:
    """White text has a contrast of 4.5 to 1 on both fields."""
    for field in ElementTree.fromstring(badge("x", verdict)).findall("{http://www.w3.org/2000/svg}rect"):
        assert 1.05 / (_luminance(field.get("fill")) + 0.05) >= 4.5


def test_verdicts_differ_by_color() -> None:
    """What passed, what failed and what is in doubt."""
    colors = {
        ElementTree.fromstring(badge("x", verdict)).findall("{http://www.w3.org/2000/svg}rect")[1].get("fill")
        for verdict in ("pass", "warn", "fail")
    }
    assert len(colors) == 3
