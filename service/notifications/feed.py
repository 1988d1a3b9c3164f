"""The Atom feed of an audit (RFC 4287): one entry for every announcement, the newest first."""

import re
import uuid
from collections.abc import Sequence
from datetime import datetime
from xml.etree import ElementTree

from service.contracts.audits.alert import Announcement
from service.notifications.wording import text, title

MEDIA_TYPE = "application/atom+xml; charset=utf-8"
_ATOM = "http://www.w3.org/2005/Atom"
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML 1.0 cannot hold."""


def feed(
    audit_id: str, name: str, created_at: datetime, announcements: Sequence[Announcement], *, address: str, base: str
) -> bytes:
    """Return the feed in UTF-8.

    Args:
        audit_id: 32 hexadecimal characters; gives the feed's id.
        name: The audit's.
        created_at: When the audit was made: the feed's time as long as there is no entry.
        announcements: Newest first; their ids give those of the entries.
        address: Where the feed is read.
        base: Address of the service, without a slash at the end; the entries link to its reports.
    """
    root = ElementTree.Element("feed", {"xmlns": _ATOM})
    _add(root, "id", _urn(audit_id))
    _add(root, "title", f"Headroom: {name}")
    _add(root, "updated", (announcements[0].at if announcements else created_at).isoformat())
    _add(ElementTree.SubElement(root, "author"), "name", "Headroom")
    ElementTree.SubElement(root, "link", {"rel": "self", "type": "application/atom+xml", "href": address})
    for announcement in announcements:
        _entry(ElementTree.SubElement(root, "entry"), announcement, base)
    written: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return written


def _entry(entry: ElementTree.Element, announcement: Announcement, base: str) -> None:
    _add(entry, "id", _urn(announcement.id))
    _add(entry, "title", title(announcement))
    _add(entry, "updated", announcement.at.isoformat())
    _add(entry, "published", announcement.at.isoformat())
    if announcement.report_id:
        page = f"{base}/v1/reports/{announcement.report_id}/report.html"
        ElementTree.SubElement(entry, "link", {"rel": "alternate", "type": "text/html", "href": page})
    _add(entry, "content", text(announcement)).set("type", "text")


def _add(parent: ElementTree.Element, name: str, content: str) -> ElementTree.Element:
    element = ElementTree.SubElement(parent, name)
    element.text = _NOT_XML.sub("\N{REPLACEMENT CHARACTER}", content)
    return element


def _urn(hexadecimal: str) -> str:
    """Return an id of 32 hexadecimal characters as an IRI that never changes."""
    return uuid.UUID(hex=hexadecimal).urn
