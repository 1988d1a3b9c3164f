"""What a program that asks the hub sees of the environment, and that it is ended when it takes too long."""

from pathlib import Path

from bench import SLEEP, Bench

from service.contracts.request import JobRequest
from workers.model_files.fetching import hub_environment


def test_a_fetch_sees_the_hubs_token_and_no_other_credential() -> None:
    present = {
        "PATH": "/bin",
        "HOME": "/root",
        "HF_TOKEN": "hub",
        "HF_ENDPOINT": "https://hub",
        "https_proxy": "http://proxy",
        "HEADROOM_API_KEY": "key",
        "HEADROOM_DATABASE_URL": "postgresql://user:password@host/db",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "PGPASSWORD": "password",
        "GITHUB_TOKEN": "token",
        "SOMETHING_ELSE": "secret",
    }
    kept = hub_environment(present)
    assert kept.keys() == {"PATH", "HOME", "HF_TOKEN", "HF_ENDPOINT", "https_proxy"}


def test_a_model_that_takes_too_long_fails_its_job(tmp_path: Path) -> None:
    bench = Bench(tmp_path, JobRequest(model="org/name"))
    bench.settings = bench.settings.model_copy(update={"fetch_seconds": 0.5})
    error = bench.run("raise SystemExit('nothing is to be measured')", hub=SLEEP).error
    assert error is not None
    assert (error.code, error.bad_input) == ("hub-timeout", False)
    assert "'org/name' could not be fetched from the hub within 0.5 s (HEADROOM_FETCH_SECONDS" in error.message
    assert bench.no_work_is_left()
    bench.engine.dispose()
