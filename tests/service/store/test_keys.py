"""API keys: what is kept, what is accepted, and until when."""

from datetime import timedelta

import pytest
from sqlalchemy import Engine, text

from service.contracts.key_limits import KeyLimits
from service.errors import Conflict, InvalidRequest, NotFound
from service.store.owners import key_records
from service.store.owners.access import EVERYTHING, Access
from service.store.owners.key_records import KEPT_SECONDS, VerifiedKeys
from service.store.owners.keys import PREFIX, KeyStore

BOOTSTRAP = "b" * 32


@pytest.fixture
def keys(engine: Engine, clock) -> KeyStore:
    """A key store without keys."""
    return KeyStore(engine, clock)


def test_a_key_is_known_with_its_owner_and_scopes(keys: KeyStore, clock) -> None:
    (ann, plain), (_, other) = keys.create("ann", ["read", "submit"]), keys.create("ben", ["admin"], owner="ops")
    known = keys.verify(plain)
    assert known is not None
    assert (known.id, known.name, known.owner, known.scopes) == (ann.id, "ann", "ann", ("submit", "read"))
    assert (known.created_at, known.expires_at, known.revoked_at) == (clock.now, None, None)
    assert plain.startswith(PREFIX)
    assert plain.startswith(known.prefix)
    assert len(plain) == len(PREFIX) + 43  # 256 bits in base64
    assert known.access == Access("ann")
    assert keys.verify(other).access == Access("ops", everything=True)


@pytest.mark.parametrize("wrong", ["", "hr_", "ann", "hr_\x00", "\ud800"])
def test_other_keys_are_unknown(keys: KeyStore, wrong: str) -> None:
    _, right = keys.create("ann", ["read"])
    assert keys.verify(wrong) is None
    assert keys.verify(right[:-1]) is None
    assert (keys.verify(right + wrong) is None) == bool(wrong)


def test_the_key_itself_is_not_kept(keys: KeyStore, engine: Engine) -> None:
    key, plain = keys.create("ann", ["read"])
    with engine.connect() as connection:
        kept = str(connection.execute(text("SELECT * FROM keys")).all())
    assert plain not in kept
    assert plain[len(key.prefix) :] not in kept


def test_the_name_of_a_key_is_free_again_when_it_is_revoked(keys: KeyStore, clock) -> None:
    first, plain = keys.create("ann", ["read"])
    with pytest.raises(Conflict, match="'ann'"):
        keys.create("ann", ["read"])
    assert keys.revoke("ann").revoked_at == clock.now
    assert keys.verify(plain) is None
    second, again = keys.create("ann", ["read"])
    assert keys.verify(again).id == second.id
    assert [key.id for key in keys.list()] == sorted((first.id, second.id), reverse=True)


def test_keys_of_one_owner_are_revoked_one_by_one(keys: KeyStore) -> None:
    old, before = keys.create("ann", ["read"])
    _, after = keys.create("ann-2", ["read"], owner="ann")
    assert keys.revoke(old.id).name == "ann"
    assert keys.verify(before) is None
    assert keys.verify(after).owner == "ann"
    for unknown in ("ann", old.id, "nobody"):
        with pytest.raises(NotFound, match=unknown):
            keys.revoke(unknown)


def test_a_key_is_accepted_until_it_expires(keys: KeyStore, clock) -> None:
    _, plain = keys.create("ann", ["read"], expires_at=clock.now + timedelta(seconds=10))
    clock.move(9.9)
    assert keys.verify(plain) is not None
    clock.move(0.1)
    assert keys.verify(plain) is None
    with pytest.raises(InvalidRequest, match="expires_at"):
        keys.create("late", ["read"], expires_at=clock.now)


def test_the_last_use_is_written_once_a_minute(keys: KeyStore, clock) -> None:
    _, plain = keys.create("ann", ["read"])
    first = clock.now
    seen = []
    for _ in range(4):
        keys.verify(plain)
        seen.append((keys.list()[0].last_used_at - first).total_seconds())
        clock.move(25)
    assert seen == [0, 0, 0, 75]


@pytest.mark.parametrize(
    ("parameter", "changes"),
    [("name", {"name": "a b"}), ("name", {"name": ""}), ("owner", {"owner": "-"}), ("scopes", {"scopes": ["all"]}),
     ("scopes", {"scopes": []}), ("name", {"name": "x" * 65})],
)  # fmt: skip
def test_what_a_key_cannot_be_is_refused_by_name(keys: KeyStore, parameter: str, changes) -> None:
    with pytest.raises(InvalidRequest, match=f"^{parameter}: "):
        keys.create(**{"name": "ann", "scopes": ["read"]} | changes)
    assert keys.list() == []


def test_the_bootstrap_key_is_the_administrators_and_revokes_nobody(engine: Engine) -> None:
    keys = KeyStore(engine, bootstrap=BOOTSTRAP)
    _, plain = keys.create("ann", ["read"])
    other = KeyStore(engine, bootstrap="c" * 32)
    assert keys.verify(BOOTSTRAP).access == EVERYTHING
    assert other.verify("c" * 32).access == EVERYTHING
    assert other.verify(BOOTSTRAP) is None
    assert keys.verify(plain).id == other.verify(plain).id
    assert [key.name for key in other.list()] == ["ann"]


def test_a_service_needs_a_key(engine: Engine, keys: KeyStore, clock) -> None:
    KeyStore(engine, bootstrap=BOOTSTRAP).check()
    with pytest.raises(InvalidRequest, match=r"^HEADROOM_API_KEY: the key has 31 characters; allowed: 32 characters"):
        KeyStore(engine, bootstrap="b" * 31).check()
    missing = "^HEADROOM_API_KEY is not set, and the database has no valid key; set it to a key of 32 characters"
    with pytest.raises(InvalidRequest, match=missing):
        keys.check()
    keys.create("ann", ["read"], expires_at=clock.now + timedelta(seconds=1))
    keys.check()
    clock.move(1)
    with pytest.raises(InvalidRequest, match=missing):
        keys.check()


def test_a_key_that_was_verified_is_known_without_the_database_for_a_while(keys: KeyStore, engine: Engine) -> None:
    seconds = 0.0
    keys._verified = VerifiedKeys(now=lambda: seconds)
    key, plain = keys.create("ann", ["read"])
    assert keys.verified(plain) is None
    keys.verify(plain)
    assert keys.verified(plain).id == key.id
    KeyStore(engine, keys._clock).revoke("ann")  # another process
    seconds = KEPT_SECONDS - 0.1
    assert keys.verified(plain) is not None
    seconds = KEPT_SECONDS
    assert keys.verified(plain) is None
    assert keys.verify(plain) is None
    assert keys.verified(plain) is None


def test_a_key_that_this_process_revokes_is_refused_at_once(keys: KeyStore) -> None:
    _, plain = keys.create("ann", ["read"])
    keys.verify(plain)
    keys.revoke("ann")
    assert keys.verified(plain) is None


def test_a_key_that_is_revoked_while_it_is_looked_up_is_not_kept(keys: KeyStore, monkeypatch) -> None:
    _, plain = keys.create("ann", ["read"])
    look_up = keys._look_up

    def slow(sha256):
        key = look_up(sha256)
        keys.revoke("ann")
        return key

    monkeypatch.setattr(keys, "_look_up", slow)
    assert keys.verify(plain) is not None
    assert keys.verified(plain) is None


def test_a_verified_key_is_kept_no_longer_than_it_is_valid(keys: KeyStore, clock) -> None:
    seconds = 0.0
    keys._verified = VerifiedKeys(now=lambda: seconds)
    _, plain = keys.create("ann", ["read"], expires_at=clock.now + timedelta(seconds=2))
    keys.verify(plain)
    seconds = 1.9
    assert keys.verified(plain) is not None
    seconds = 2.0
    assert keys.verified(plain) is None


def test_so_many_verified_keys_are_kept(keys: KeyStore, monkeypatch) -> None:
    monkeypatch.setattr(key_records, "MOST_KEPT", 2)
    plains = [keys.create(name, ["read"])[1] for name in ("ann", "ben", "cleo")]
    for plain in plains:
        keys.verify(plain)
    assert [keys.verified(plain) is not None for plain in plains] == [False, True, True]


def test_limits_of_a_key_are_kept_and_administrators_have_none(keys: KeyStore) -> None:
    limits = KeyLimits(queued_jobs=3, upload_bytes_per_day="5GiB", requests_per_second=0.5)
    _, plain = keys.create("ann", ["read"], limits=limits)
    assert keys.verify(plain).limits == limits
    assert keys.list()[0].limits.upload_bytes_per_day == 5 * 2**30
    with pytest.raises(InvalidRequest, match=r"^limits\.queued_jobs: 3 "):
        keys.create("ops", ["admin"], limits=limits)
