"""The command line against a real API on loopback, with the test in the worker's place."""

import contextlib
import json
import os
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from pydantic import SecretStr

from service import settings as settings_module
from service.api.app import make_app
from service.cli.main import app
from service.cli.running import run
from service.settings import Settings
from service.startup import stores_on
from service.store.alerts import AlertStore
from service.store.artifacts import ArtifactStore
from service.store.audits import AuditStore
from service.store.database import make_engine
from service.store.job_records import Artifact, Claim
from service.store.jobs import JobStore

KEY = "key-of-the-command-line"
STORED = Path(__file__).parents[2] / "workers/reporting/stored/schema_1_0"


@dataclass(frozen=True)
class Remote:
    """A service that `HEADROOM_URL` names, and the parts behind it."""

    url: str
    store: JobStore
    artifacts: ArtifactStore
    audits: AuditStore
    alerts: AlertStore

    def claim(self, job_id: str) -> Claim:
        """Begin a job, as a worker does."""
        claim = self.store.claim(job_id, self.store.get(job_id).dispatch, "worker", 60)
        assert claim is not None
        return claim

    def succeed(self, claim: Claim, files: dict[str, bytes]) -> None:
        """End a job with a report of these files."""
        rows = []
        for name, content in files.items():
            sha256, size = self.artifacts.put(content)
            rows.append(Artifact(claim.job_id, name, sha256, size, "application/octet-stream"))
        self.store.succeed(claim, rows)


@dataclass(frozen=True)
class Ran:
    """What a command left."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """The one JSON document on standard output."""
        return json.loads(self.out)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No setting of the person who runs the tests, and a home of the test's own."""
    for name in [name for name in os.environ if name.startswith("HEADROOM_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HEADROOM_HOME", str(tmp_path / "home"))
    settings_module.settings.cache_clear()
    yield
    settings_module.settings.cache_clear()


@pytest.fixture
def remote(tmp_path: Path, migrated: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Remote]:
    """A running service, which the command line is told of."""
    settings = Settings(home=tmp_path / "remote", api_key=SecretStr(KEY))
    settings.artifacts.mkdir(parents=True)
    engine = make_engine(settings.database)
    shutil.copy(migrated, str(engine.url.database))
    stores = stores_on(engine, settings)
    with served(make_app(settings, stores)) as url:
        monkeypatch.setenv("HEADROOM_URL", url)
        monkeypatch.setenv("HEADROOM_API_KEY", KEY)
        yield Remote(url, stores.jobs, stores.artifacts, stores.audits, stores.alerts)
    engine.dispose()


@contextlib.contextmanager
def served(application: Any) -> Iterator[str]:
    """Serve an ASGI application on loopback, and yield its address."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(application, log_config=None, lifespan="off", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join()
    listener.close()


@pytest.fixture
def headroom(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """Run one command."""

    def run_it(*arguments: str) -> Ran:
        settings_module.settings.cache_clear()
        code = run(app, list(arguments))
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err)

    return run_it


@pytest.fixture
def report() -> dict[str, Any]:
    """A report.json of a later version, with keys that this one does not know and one scheme."""
    content: dict[str, Any] = json.loads((STORED / "report.json").read_text())
    estimate = {"value": 1.0004, "standard_error": 0.0001, "interval": [1.0002, 1.0006]}
    content["schemes"] = {"int8": content["schemes"]["int8"] | {
        "settings": {},
        "perplexity": {"value": 20.01, "standard_error": 0.5, "scored_tokens": 100},
        "perplexity_ratio": estimate,
        "kl_divergence": content["schemes"]["int8"]["kl_divergence"] | {
            "mean": 0.00123, "standard_error": 1e-5, "interval": [0.00121, 0.00125], "median": 0.0, "p99": 0.0456,
            "max": 1.0,
        },
        "same_top_token": {"value": 0.9876, "standard_error": 0.001},
        "model_bytes": 6_200_000,
        "compression": 1.64,
        "not_quantised": ["lm_head"],
        "worst_sites": [
            {"layer": 3, "component": "mlp.up", "relative_l2": 0.0114, "sqnr_db": 39.0},
            {"layer": 1, "component": "attn.q", "relative_l2": 0.01, "sqnr_db": 40.0},
        ],
    }}  # fmt: skip
    for definition in content["outliers"].values():
        definition["dimensions"] = []
    content["outliers"]["llm_int8"]["dimensions"] = [
        {"dimension": 46, "layers_fraction": 0.75, "positions_fraction": 0.881, "abs_max": 46.25, "one_sided": True,
         "quartiles": [7.0, 8.0, 9.0]},
    ]  # fmt: skip
    content["model"] |= {"source": "sample", "layers": 8, "hidden_size": 192, "parameters": 5_100_000,
                         "vocabulary": 4096}  # fmt: skip
    content["reference"]["perplexity"] = {
        "value": 20.0, "standard_error": 0.4, "interval": [19.2, 20.8], "scored_tokens": 100,
    }  # fmt: skip
    return content | {
        "schema_version": "1.9",
        "of_a_later_version": True,
        "labelled": None,
        "warnings": [{"code": "nonfinite", "message": "NaN in [bold]weights[/bold]", "where": "layer 3"}],
    }
