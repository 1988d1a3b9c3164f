"""The stack that stays: how it stops, how it is killed, and what becomes of the job that was running."""

import json
import signal

import httpx
import psutil

SLOW = {"model": "sample", "sequences": 64, "sequence_length": 256}
QUICK = {"model": "sample", "sequences": 2, "sequence_length": 64, "schemes": ["nf4"]}


def test_ctrl_c_stops_every_child_and_gives_the_job_back(machine):
    with machine.serve() as stack:
        job = stack.call("POST", "/v1/jobs", json=SLOW)
        stack.find("workers.measurement")
        family = stack.family()
        assert len(family) >= 5
        stack.process.send_signal(signal.SIGINT)
        _, said = stack.process.communicate(timeout=240)
        assert stack.process.returncode == 0, said
        assert said.splitlines()[-1] == "stopped"
        assert psutil.wait_procs(family, timeout=120)[1] == []
    shown = machine.run("jobs", "show", job["id"], "--json")
    assert '"status": "queued"' in shown.stdout


def test_kill_9_of_the_stack_leaves_no_process_and_the_job_is_done_by_the_next(machine):
    with machine.serve() as stack:
        job = stack.call("POST", "/v1/jobs", json=QUICK)
        stack.find("workers.measurement")
        family = stack.family()
        stack.process.kill()
        assert psutil.wait_procs(family, timeout=120)[1] == []
    with machine.serve() as stack:
        done = stack.ended(job["id"])
        assert (done["status"], done["attempts"]) == ("succeeded", 2)


def test_kill_9_of_the_worker_starts_another_and_the_job_is_offered_again_for_one_report(machine):
    with machine.serve() as stack:
        job = stack.call("POST", "/v1/jobs", json=QUICK)
        stack.find("workers.measurement")
        stack.find("workers.app").kill()
        done = stack.ended(job["id"])
        assert (done["status"], done["attempts"]) == ("succeeded", 2)
        events = stack.call("GET", f"/v1/jobs/{job['id']}/events")["events"]
        kinds = [event["kind"] for event in events if event["kind"] not in ("progress", "warning")]
        assert kinds == ["queued", "started", "requeued", "started", "succeeded"]
        assert [report["id"] for report in stack.call("GET", "/v1/reports")["reports"]] == [job["id"]]
        streamed = httpx.get(
            f"{stack.url}/v1/jobs/{job['id']}/events",
            headers={"X-API-Key": stack.key, "Accept": "text/event-stream", "Last-Event-ID": str(len(events) - 1)},
            trust_env=False,
        )
        (last,) = [event for event in streamed.text.split("\n\n") if "event: succeeded" in event.splitlines()]
        assert f"id: {len(events)}" in last.splitlines()


def test_other_commands_find_the_running_stack_and_a_second_one_is_refused(machine):
    with machine.serve() as stack:
        before = len(stack.family())
        assert machine.run("jobs", "list").returncode == 0
        refused = machine.run("serve", "--port", "0")
        assert refused.returncode == 2
        assert f"in use by process {stack.process.pid} at {stack.url}" in refused.stderr
        assert len(stack.family()) == before


def test_two_reports_of_the_stack_are_compared(machine):
    with machine.serve() as stack:
        jobs = [stack.call("POST", "/v1/jobs", json=QUICK | {"sequences": sequences}) for sequences in (2, 3)]
        ids = [job["id"] for job in jobs]
        assert [stack.ended(report)["status"] for report in ids] == ["succeeded"] * 2
        ran = machine.run("reports", "compare", *ids, "--out", "compared", "--json")
        assert ran.returncode == 0, ran.stderr
        compared = json.loads(ran.stdout)["comparison"]
        assert compared | {"figures": []} == stack.call("GET", "/v1/comparisons", params={"report": ids})
    assert compared["figures"]
    assert list(compared["differences"][0]["schemes"]) == ["nf4"]
    assert any("calibration" in warning["message"] for warning in compared["warnings"])
    assert "Divergence of the predictions" in (machine.home / "compared" / "comparison.html").read_text()
