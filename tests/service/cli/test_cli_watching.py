"""Watching a job: nothing lost, nothing twice, and what is shown."""

import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from service.cli import analysis
from service.cli.analysis import Watch, run_job
from service.cli.output import RemainingTime, display
from service.errors import ServiceUnreachable


class Service:
    """A service that answers with what it was given, and is away where that is an exception."""

    def __init__(self, pages, job):
        self.pages, self.job, self.asked = list(pages), job, []

    def get(self, path, **parameters):
        """Answer the questions that `follow` asks."""
        if not path.endswith("/events"):
            return self.job
        self.asked.append(parameters["after"])
        page = self.pages.pop(0)
        if isinstance(page, BaseException):
            raise page
        numbers, ended = page
        return {"events": [{"sequence": n, "kind": f"k{n}", "data": {}} for n in numbers], "ended": ended}


class Record:
    """A display that keeps what it was shown."""

    def __init__(self):
        self.shown, self.ahead = [], []

    def show(self, kind, _data):
        """Keep an event."""
        self.shown.append(kind)

    def waiting(self, ahead):
        """Keep a place in the queue."""
        self.ahead.append(ahead)


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    """No pause between two questions."""
    monkeypatch.setattr(analysis, "POLL_SECONDS", 0.0)


def test_events_are_shown_once_each_though_the_service_goes_away():
    away = ServiceUnreachable("away")
    service = Service([([1, 2], False), away, away, ([], False), ([3], True)], {"id": "j", "queue_position": None})
    record, checks = Record(), []
    assert Watch(service, record, lambda: checks.append(1)).follow("j") is service.job
    assert record.shown == ["k1", "k2", "k3"]
    assert service.asked == [0, 2, 2, 2, 2]
    assert len(checks) == 5


def test_a_service_that_stays_away_is_given_up_with_the_job_named(monkeypatch):
    monkeypatch.setattr(analysis, "MAX_OUTAGE_SECONDS", -1.0)
    with pytest.raises(ServiceUnreachable, match="job j may go on: headroom jobs show j"):
        Watch(Service([ServiceUnreachable("away")], {}), Record(), lambda: None).follow("j")


def test_a_stack_that_dies_ends_the_watch():
    def dead():
        raise RuntimeError("the worker ended")

    with pytest.raises(RuntimeError, match="the worker ended"):
        Watch(Service([([1], False)], {}), Record(), dead).follow("j")


def test_the_place_in_the_queue_is_shown():
    service = Service([([1], False), ([2], True)], {"id": "j", "queue_position": 3})
    record = Record()
    Watch(service, record, lambda: None).follow("j")
    assert record.ahead == [3]


def test_stopping_a_queued_job_needs_no_waiting():
    class Cancels(Service):
        def post(self, path):
            self.asked.append(path)
            return {"id": "j", "finished_at": "now"}

    service = Cancels([], {})
    assert Watch(service, Record(), lambda: None).stop("j")["finished_at"] == "now"
    assert service.asked == ["/v1/jobs/j/cancel"]


def test_a_job_whose_submission_is_interrupted_is_found_by_its_key_and_cancelled(capsys):
    class Interrupted(Service):
        def post(self, path, body=None, *, idempotency_key=None):
            self.asked.append((path, body, idempotency_key))
            if len(self.asked) == 1:
                raise KeyboardInterrupt
            return {"id": "j", "finished_at": "now" if path.endswith("/cancel") else None}

    client = Interrupted([], {})
    job = run_job(SimpleNamespace(client=client, check=lambda: None), {"model": "sample"}, Record())
    assert job == {"id": "j", "finished_at": "now"}
    first, again, cancel = client.asked
    assert first == again
    assert first[2]
    assert cancel[0] == "/v1/jobs/j/cancel"
    assert capsys.readouterr().err == "canceling job j\n"


def test_an_interrupted_job_s_events_are_shown_once_each(capsys):
    class InterruptedLater(Service):
        def post(self, path, *_body, **_headers):
            self.asked.append(path)
            return {"id": "j", "finished_at": None}

    pages = [([1, 2], False), KeyboardInterrupt(), ([3], False), ([4], True)]
    client = InterruptedLater(pages, {"id": "j", "queue_position": None, "status": "cancelled"})
    record = Record()
    job = run_job(SimpleNamespace(client=client, check=lambda: None), {"model": "sample"}, record)
    assert job["status"] == "cancelled"
    assert record.shown == ["k1", "k2", "k3", "k4"]
    assert client.asked == ["/v1/jobs", 0, 2, "/v1/jobs/j/cancel", 2, 3]
    assert capsys.readouterr().err == "canceling job j\n"


def test_the_pace_is_reckoned_inside_a_stage():
    remaining = RemainingTime()
    assert remaining.left("sweep", 0, 10, 5.0) is None
    assert remaining.left("sweep", 1, 10, 20.0) is None
    assert remaining.left("sweep", 2, 10, 22.0) == pytest.approx(16.0)
    assert remaining.left("sweep", 5, 10, 24.0) == pytest.approx(5.0)
    assert remaining.left("sweep", 10, 10, 30.0) is None
    assert remaining.left("divergence", 3, 10, 31.0) is None
    assert remaining.left("divergence", 4, 10, 32.0) == pytest.approx(6.0)


def events(layers):
    """Yield what a job of so many layers says."""
    yield "queued", {}
    yield "started", {"attempt": 1}
    yield "progress", {"stage": "load", "done": 0, "total": 1, "elapsed_seconds": 0.0}
    yield "progress", {"stage": "load", "done": 1, "total": 1, "elapsed_seconds": 1.0}
    for done in range(layers + 1):
        yield "progress", {"stage": "sweep", "done": done, "total": layers, "elapsed_seconds": 1.0 + done}
    yield "warning", {"code": "c", "message": "NaN in [red]x[/red]", "where": "layer [0]"}
    yield "a-kind-of-later", {}
    yield "succeeded", {}


def shown_on(console):
    with display(console) as shown:
        for kind, data in events(80):
            shown.show(kind, data)
        shown.waiting(2)
        shown.waiting(2)
        shown.waiting(1)
    return console.file.getvalue()


def test_away_from_a_terminal_progress_is_plain_lines_and_not_too_many():
    lines = shown_on(Console(file=io.StringIO(), width=40)).splitlines()
    assert [line for line in lines if line.startswith("sweep")] == [
        f"sweep over the layers: {done}/80 layers, after {done + 1} s"
        + (f", about {80 - done} s left in this stage" if 0 < done < 80 else "")
        for done in range(0, 81, 8)
    ]
    assert [line for line in lines if line.startswith("load")] == ["load the model, after 0 s"]
    assert "warning: NaN in [red]x[/red] (layer [0])" in lines
    assert "a-kind-of-later" in lines
    assert lines[-2:] == ["queued, 2 jobs ahead of it", "queued, 1 job ahead of it"]


@pytest.mark.parametrize("terminal", [False, True])
def test_what_a_stage_takes_is_said_when_it_begins(terminal):
    console = Console(file=io.StringIO(), force_terminal=terminal, width=100)
    with display(console) as shown:
        first = {"stage": "harm", "done": 0, "total": 90, "elapsed_seconds": 2.0, "cost": "harm takes 9 forward passes"}
        shown.show("progress", first)
        shown.show("progress", {"stage": "harm", "done": 45, "total": 90, "elapsed_seconds": 3.0})
    assert console.file.getvalue().count("harm takes 9 forward passes") == 1


def test_another_attempt_s_warnings_are_shown_again():
    console = Console(file=io.StringIO(), width=100)
    with display(console) as shown:
        for _attempt in range(2):
            shown.show("started", {})
            for n in range(1, 8):
                shown.show("warning", {"code": "nonfinite", "message": f"{n} NaN"})
    assert console.file.getvalue().splitlines().count("warning: 5 NaN") == 2


@pytest.mark.parametrize("terminal", [False, True])
def test_warnings_of_one_code_are_shown_while_they_are_few(terminal):
    console = Console(file=io.StringIO(), force_terminal=terminal, width=100)
    with display(console) as shown:
        for n in range(1, 13):
            shown.show("warning", {"code": "nonfinite", "message": f"{n} NaN", "where": None})
        shown.show("warning", {"code": "other", "message": "another"})
    lines = [line.replace("\x1b[2K", "").strip() for line in console.file.getvalue().splitlines() if "warning" in line]
    more = "warning: more warnings of this kind (nonfinite); the report lists all"
    assert lines == [*(f"warning: {n} NaN" for n in range(1, 6)), more, "warning: another"]


def test_a_second_attempt_begins_at_the_first_stage_again():
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    with display(console) as shown:
        for kind, data in events(8):
            shown.show(kind, data)
        shown.show("requeued", {"reason": "worker-lost"})
        shown.show("started", {})
        shown.show("progress", {"stage": "load", "done": 0, "total": 1, "elapsed_seconds": 0.0})
    text = console.file.getvalue()
    assert "queued again: worker-lost" in text
    assert "8/8" not in text.splitlines()[-1]


def test_on_a_terminal_there_are_bars():
    text = shown_on(Console(file=io.StringIO(), force_terminal=True, width=100))
    assert "80/80" in text
    assert "NaN in [red]x[/red]" in text
    assert "━" in text
