"""An audit through every real part: a checkpoint that did not change, one that did, and who is told of it."""

import contextlib
import json
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import feedparser
import httpx
import torch
from aiosmtpd.controller import Controller
from conftest import until
from sqlalchemy import update
from standardwebhooks.webhooks import Webhook
from transformers import LlamaForCausalLM

from service.contracts.audits.history import AuditHistory
from service.store.audit_tables import AuditRow
from service.store.database import make_engine, writer
from workers.samples import MODEL
from workers.samples.planting import Scaling, plant

SETS = "outliers.llm_int8 none gained"
PREDICTIONS = "int8.perplexity_ratio <= 1.5"
RUNS = "/v1/audits/watch/runs"
DIMENSION = 100
"""No outlier of the sample."""
SMALL = ("--scheme", "int8", "--sequences", "2", "--sequence-length", "64")


@contextlib.contextmanager
def webhook_receiver() -> Iterator[tuple[str, list[tuple[dict[str, str], bytes]]]]:
    """Yield the address of a receiver, and the requests that it gets."""
    requests: list[tuple[dict[str, str], bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            requests.append(({name.lower(): value for name, value in self.headers.items()}, body))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Print nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/hook", requests
        finally:
            server.shutdown()
            thread.join()


class Mailbox:
    """Keeps the mail that an SMTP server gets."""

    def __init__(self) -> None:
        self.mails: list[str] = []

    async def handle_DATA(self, _server: object, _session: object, envelope: object) -> str:  # noqa: N802
        self.mails.append(envelope.original_content.decode())
        return "250 OK"


class AnyPort(Controller):
    """An SMTP server on a port that the system chooses."""

    def _trigger_server(self) -> None:
        self.port = self.server.sockets[0].getsockname()[1]
        super()._trigger_server()


@contextlib.contextmanager
def mail_server() -> Iterator[tuple[int, list[str]]]:
    """Yield the port of a mail server, and the mails that it gets."""
    mailbox = Mailbox()
    controller = AnyPort(mailbox, hostname="127.0.0.1", port=0, ready_timeout=30)
    controller.start()
    try:
        yield controller.port, mailbox.mails
    finally:
        controller.stop()


def plant_channel(directory: Path) -> None:
    """Make a copy of the sample in which one more channel is an outlier; its reference predicts the same."""
    model = LlamaForCausalLM.from_pretrained(MODEL, dtype=torch.bfloat16)
    plant(model, (Scaling(DIMENSION, 32.0, tuple(range(model.config.num_hidden_layers))),))
    shutil.copytree(MODEL, directory)
    model.save_pretrained(directory)


def make_due(home: Path, at: datetime) -> None:
    """Put the time from which the scheduler looks for scheduled times back to before `at`: cron has whole minutes."""
    engine = make_engine(f"sqlite:///{home / 'headroom.db'}")
    with writer(engine).begin() as connection:
        connection.execute(update(AuditRow).values(handled_at=at - timedelta(days=1), next_run_at=at))
    engine.dispose()


def test_a_changed_checkpoint_fails_and_everybody_is_told_once(machine, tmp_path):
    scheduled = (datetime.now(UTC) - timedelta(days=1)).replace(second=0, microsecond=0)
    checkpoints = tmp_path / "checkpoints"
    shutil.copytree(MODEL, checkpoints / "first")
    with webhook_receiver() as (url, hooks), mail_server() as (port, mails):
        told = {
            "HEADROOM_WEBHOOK_NETWORKS": "127.0.0.0/8",
            "HEADROOM_SMTP_URL": f"smtp://127.0.0.1:{port}",
            "HEADROOM_MAIL_FROM": "headroom@example.org",
        }
        user = replace(machine, environment=machine.environment | told)

        def run(code: int) -> dict:
            ran = user.run("audits", "run", "watch", "--wait", "--json")
            assert ran.returncode == code, ran.stderr
            return json.loads(ran.stdout)["run"]

        with user.serve() as stack:
            made = user.run(
                "audits", "create", "watch", "--newest-in", str(checkpoints), *SMALL, "--limit", SETS,
                "--limit", PREDICTIONS, "--webhook", url, "--email", "team@example.org",
                "--schedule", f"{scheduled:%M %H %d %m} *", "--set", "catch_up_seconds=2678400",
            )  # fmt: skip
            assert made.returncode == 0, made.stderr
            make_due(user.home, scheduled)
            until(lambda: [one for one in stack.call("GET", RUNS)["runs"] if one["verdict"]])
            [first] = stack.call("GET", RUNS)["runs"]
            assert (first["verdict"], first["trigger"]) == ("pass", "schedule")
            assert datetime.fromisoformat(first["scheduled_at"]) == scheduled
            assert run(0)["verdict"] == "unchanged"

            plant_channel(checkpoints / "second")
            failed = run(4)
            assert failed["verdict"] == "fail"
            findings = {one["limit"]: one for one in failed["findings"]}
            assert findings[SETS]["value"] == [DIMENSION]
            assert findings[SETS]["reason"] == f"1 gained: {DIMENSION}."
            assert {limit: one["verdict"] for limit, one in findings.items()} == {SETS: "broken", PREDICTIONS: "pass"}
            assert run(0)["verdict"] == "unchanged"  # still broken, which is no news

            until(lambda: hooks and mails)
            key = {"Authorization": f"Bearer {stack.key}"}
            feed = feedparser.parse(
                httpx.get(f"{stack.url}/v1/audits/watch/feed.atom", headers=key, trust_env=False).text
            )
            [webhook] = stack.call("GET", "/v1/audits/watch/webhooks")["webhooks"]
            secret = stack.call("GET", f"/v1/webhooks/{webhook['id']}/secret")["secret"]
            history = AuditHistory.model_validate(stack.call("GET", "/v1/audits/watch/history"))
            compared = stack.call("GET", "/v1/audits/watch/comparison", params={"run": [first["id"], failed["id"]]})
            deliveries = stack.call("GET", "/v1/audits/watch/deliveries")["deliveries"]
        [(headers, body)], [mail], [entry] = hooks, mails, feed.entries

    data = Webhook(secret).verify(body.decode(), headers)["data"]
    assert (data["run_id"], data["verdict"]) == (failed["id"], "fail")
    assert [alert["finding"]["reason"] for alert in data["opened"]] == [f"1 gained: {DIMENSION}."]
    assert "watch: 1 alert opened" in mail
    assert entry.title == "watch: 1 alert opened"
    assert len(deliveries) == 2
    ratio = next(figure for figure in history.figures if figure.limits == (PREDICTIONS,))
    assert [point.status for point in ratio.points] == ["measured", "unchanged", "measured", "unchanged"]
    assert {change.name for change in history.runs[2].changes} == {"source", "weights"}
    assert DIMENSION in compared["differences"][0]["outliers"]["llm_int8"]["gained"]
