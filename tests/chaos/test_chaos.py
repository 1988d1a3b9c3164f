"""A short run of chaos; `python tests/chaos/chaos_run.py` does a long one."""

from pathlib import Path

from chaos_run import run

SEED = 20


def test_no_job_is_lost_or_doubled_whatever_is_killed_emptied_or_stopped(tmp_path: Path) -> None:
    outcome = run(tmp_path, seed=SEED, jobs=15, faults=14, workers=2)
    assert outcome.is_good, outcome
    assert outcome.accepted == sum(outcome.ended.values()) == 15
    assert sum(outcome.faults.values()) == 14
    assert len(outcome.faults) == (14 if "disk full" in outcome.faults else 13)
