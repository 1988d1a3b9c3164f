"""Audits that were there before their feeds had tokens of their own."""

from datetime import UTC, datetime

from alembic import command
from sqlalchemy import Connection, Engine, MetaData, Table, insert, select, text

from service.store.database import migrations, upgrade, writer

AT = datetime(2026, 5, 4, tzinfo=UTC)
AUDITS = ("a" * 32, "b" * 32)


def put_in(connection: Connection) -> None:
    """Insert two audits with a run each, with the columns that the tables have at present."""
    tables = MetaData()
    audits, runs = (Table(name, tables, autoload_with=connection) for name in ("audits", "audit_runs"))
    audit = {
        "definition": {},
        "baseline": "",
        "baseline_cautions": [],
        "created_at": AT,
        "updated_at": AT,
        "paused": False,
        "errors": 0,
        "runs": 1,
        "handled_at": AT,
    }
    run = {"number": 1, "trigger": "request", "state": "ended", "created_at": AT, "fence": 0, "judgments": 0}
    run |= {"reasons": [], "findings": [], "reruns": [], "figures": {}}
    for audit_id in AUDITS:
        connection.execute(insert(audits).values(id=audit_id, name=audit_id, badge_token=audit_id, **audit))
        connection.execute(insert(runs).values(id=audit_id[::-1], audit_id=audit_id, **run))


def test_every_audit_gets_a_feed_token_and_keeps_its_runs(empty_engine: Engine) -> None:
    """Also when the column is dropped again."""
    with writer(empty_engine).begin() as connection:
        command.upgrade(migrations(connection), "0004")
        put_in(connection)
    upgrade(empty_engine)
    with empty_engine.connect() as connection:
        tokens = connection.scalars(text("SELECT feed_token FROM audits")).all()
        assert connection.scalar(text("SELECT count(*) FROM audit_runs")) == len(AUDITS)
    assert len(set(tokens)) == len(AUDITS)
    assert not set(tokens) & set(AUDITS)
    assert all(len(token) == 32 for token in tokens)
    with writer(empty_engine).begin() as connection:
        command.downgrade(migrations(connection), "0004")
        audits = Table("audits", MetaData(), autoload_with=connection)
        assert "feed_token" not in audits.columns
        assert set(connection.scalars(select(audits.c.badge_token))) == set(AUDITS)
        assert connection.scalar(text("SELECT count(*) FROM audit_runs")) == len(AUDITS)
