"""API keys: what is kept, and what is accepted."""

import pytest
from sqlalchemy import Engine, text

from service.errors import Conflict
from service.store.keys import PREFIX, KeyStore


@pytest.fixture
def keys(engine: Engine) -> KeyStore:
    """A key store without keys."""
    return KeyStore(engine)


def test_a_key_is_known_by_its_name(keys: KeyStore) -> None:
    ann, ben = keys.add("ann"), keys.add("ben")
    assert (keys.verify(ann), keys.verify(ben)) == ("ann", "ben")
    assert ann != ben
    assert ann.startswith(PREFIX)


@pytest.mark.parametrize("wrong", ["", "hr_", "ann", "hr_\x00", "\ud800"])
def test_other_keys_are_unknown(keys: KeyStore, wrong: str) -> None:
    right = keys.add("ann")
    assert keys.verify(wrong) is None
    assert keys.verify(right[:-1]) is None
    assert keys.verify(right + wrong) == ("ann" if not wrong else None)


def test_the_key_itself_is_not_kept(keys: KeyStore, engine: Engine) -> None:
    plain = keys.add("ann")
    with engine.connect() as connection:
        assert plain not in str(connection.execute(text("SELECT * FROM keys")).all())


def test_a_name_is_taken_once(keys: KeyStore) -> None:
    plain = keys.add("ann")
    with pytest.raises(Conflict, match="'ann'"):
        keys.add("ann")
    assert keys.verify(plain) == "ann"


def test_ensure_sets_the_key_of_a_name(keys: KeyStore) -> None:
    old = keys.add("local")
    for _ in range(2):
        keys.ensure("local", "new")
    assert (keys.verify(old), keys.verify("new")) == (None, "local")
    keys.ensure("renamed", "new")
    assert keys.verify("new") == "renamed"
