"""`headroom keys`: make, list, revoke."""

from datetime import UTC, datetime, timedelta

import pytest

from service.cli.api_keys import expiry
from service.errors import InvalidRequest

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)


@pytest.mark.usefixtures("remote")
def test_a_key_is_made_used_listed_and_revoked(headroom, monkeypatch):
    made = headroom("keys", "create", "ann", "--scope", "read", "--scope", "submit", "--expires", "90d", "--json")
    assert made.code == 0
    assert set(made.document) == {"name", "key", "scopes"}
    assert (made.document["name"], made.document["scopes"]) == ("ann", ["submit", "read"])
    plain = headroom("keys", "create", "ann-2", "--scope", "read", "--owner", "ann")
    listed = headroom("keys", "list", "--json").document["keys"]
    assert {(key["name"], key["owner"]) for key in listed} == {("ann", "ann"), ("ann-2", "ann")}
    assert headroom("keys", "revoke", "ann").out.startswith("ann (hr_")
    assert "revoked at" in headroom("keys", "list").out
    monkeypatch.setenv("HEADROOM_API_KEY", plain.out.strip())
    assert headroom("jobs", "list").code == 0
    refused = headroom("keys", "list", "--json")
    assert (refused.code, refused.document["error"]["code"]) == (2, "scope-missing")
    monkeypatch.setenv("HEADROOM_API_KEY", made.document["key"])
    assert headroom("jobs", "list", "--json").document["error"]["code"] == "unauthorized"


@pytest.mark.usefixtures("remote")
def test_a_scope_that_is_none_is_refused(headroom):
    refused = headroom("keys", "create", "ann", "--scope", "all")
    assert refused.code == 2
    assert refused.err == "headroom: --scope: 'all' is not allowed; allowed: 'submit', 'read' or 'admin'\n"


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("12h", NOW + timedelta(hours=12)),
        ("90d", NOW + timedelta(days=90)),
        ("2027-01-31", datetime(2027, 1, 31, tzinfo=UTC)),
        ("2027-01-31T00:00+02:00", datetime(2027, 1, 30, 22, tzinfo=UTC)),
    ],
)
def test_expiry_is_a_duration_or_a_time(text, at):
    assert expiry(text, NOW) == at


@pytest.mark.parametrize("text", ["", "90", "soon", "-1d", "999999d", "2027-13-01"])
def test_an_expiry_that_is_none_is_refused(text):
    with pytest.raises(InvalidRequest, match=r"^--expires: "):
        expiry(text, NOW)


@pytest.mark.usefixtures("remote")
def test_a_key_has_limits_of_its_own(headroom):
    options = "--queued-jobs 5 --running-jobs 2 --upload-bytes-per-day 2GiB --requests-per-second 0.5"
    assert headroom("keys", "create", "ann", "--scope", "submit", *options.split()).code == 0
    (key,) = headroom("keys", "list", "--json").document["keys"]
    assert key["limits"] == {
        "queued_jobs": 5, "running_jobs": 2, "upload_bytes_per_day": 2 * 2**30, "requests_per_second": 0.5
    }  # fmt: skip
    refused = headroom("keys", "create", "ben", "--scope", "submit", "--queued-jobs", "0")
    assert refused.code == 2
    assert "--queued-jobs: 0" in refused.err
