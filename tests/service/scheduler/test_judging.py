"""From the end of a run's jobs to its verdict: baselines, reruns on other seeds, and what is at fault."""

import pytest
from audited import LEASE, LIMIT, Clock, Model, Service
from sqlalchemy import Engine, select, update

from service.contracts.audits.audit import AuditDefinition
from service.contracts.audits.resolution import Resolution
from service.contracts.progress import Failed
from service.scheduler import judging
from service.store.audit_tables import AuditRunRow
from service.store.database import writer
from service.store.statuses import Status
from service.store.tables import JobRow

GOOD, WORSE = Model("a"), Model("b", shift=1.0)
ABSOLUTE = "nf4.kl_divergence.mean <= 0.08"
"""Beyond noise of the model with a shift, and far from that of the one without."""


def test_without_a_baseline_the_run_passes_and_becomes_it(service: Service) -> None:
    service.audit()
    first = service.run(GOOD)
    assert (first.verdict, first.baseline_report_id, first.report_id) == ("pass", None, first.job_id)
    assert [finding.verdict for finding in first.findings] == ["not_judged"]
    assert "There is no baseline yet." in first.reasons[0]
    second = service.run(Model("c", shift=0.01))
    assert (second.verdict, second.baseline_report_id) == ("pass", first.report_id)
    assert second.finished_at is not None


def test_a_worse_model_fails_once_the_rerun_says_so_too(service: Service) -> None:
    service.audit(limits=(LIMIT, "int8.kl_divergence.mean <= baseline * 1.2"))
    first = service.run(GOOD)
    run = service.run(WORSE, GOOD)
    assert (run.verdict, run.baseline_report_id) == ("fail", first.report_id)
    assert [finding.verdict for finding in run.findings] == ["broken", "pass"]
    assert run.reasons[0].startswith(f"{LIMIT}: ")
    assert run.reasons[0].endswith("Broken again on seed 1.")
    (rerun,) = run.reruns
    assert (rerun.seed, rerun.status) == (1, "completed")
    assert [finding.limit for finding in rerun.findings] == [LIMIT]
    reports = [service.reports(report or "").report for report in (rerun.report_id, rerun.baseline_report_id)]
    assert [report.model.fingerprint[7] for report in reports] == ["b", "a"]
    assert {report.calibration.seed for report in reports} == {1}
    assert len({report.calibration.fingerprint for report in reports}) == 1
    assert service.run(Model("c")).baseline_report_id == first.report_id  # what failed is no baseline


def test_reruns_measure_the_very_models_of_the_reports(service: Service) -> None:
    service.audit(model={"newest_in": "/models"})
    service.run(GOOD)
    service.audits.request_run("shipping")
    service.round()
    job = service.queued()[0]
    claim = service.claim(job)
    service.jobs.resolved(claim, Resolution(model="/models/b", fingerprint=f"sha256:{'b' * 64}", identity="x"))
    made = WORSE.report(0, "/models/b")
    service.jobs.succeed(claim, service.store(job, made))
    service.round()
    claims = [service.claim(queued) for queued in service.queued()]
    asked = [(claim.request.model, claim.request.seed, claim.terms and claim.terms.fingerprint) for claim in claims]
    assert sorted(asked) == [("/models", 1, f"sha256:{'a' * 64}"), ("/models/b", 1, f"sha256:{'b' * 64}")]
    assert not any(claim.terms and (claim.terms.newest_in or claim.terms.unless_identity) for claim in claims)


def test_reruns_of_a_model_on_the_hub_name_its_commit(service: Service) -> None:
    service.audit(model="org/name@main", limits=(ABSOLUTE,))
    service.audits.request_run("shipping")
    service.round()
    claim = service.claim(service.queued()[0])
    service.jobs.resolved(claim, Resolution(model="org/name@main", revision="c" * 40, identity="x"))
    made = WORSE.report(0, "org/name@main")
    model = made.report.model.model_copy(update={"revision": "c" * 40})
    made = made._replace(report=made.report.model_copy(update={"model": model}))
    service.jobs.succeed(claim, service.store(claim.job_id, made))
    service.round()
    (rerun,) = service.queued()  # an absolute limit needs no measurement of the baseline
    assert service.jobs.get(rerun).request.model == f"org/name@{'c' * 40}"


def test_what_the_rerun_contradicts_is_unconfirmed(service: Service) -> None:
    service.audit()
    service.run(GOOD)
    asked = service.audits.request_run("shipping")
    service.round()
    service.work(WORSE)
    service.round()
    for job in service.queued():
        wanted = service.claim_terms(job)
        service.work(GOOD if wanted == f"sha256:{'a' * 64}" else Model("b", shift=0.0), job)
    service.round()
    run = service.audits.run(asked.id)
    assert run.verdict == "unconfirmed"
    assert "Not confirmed on seed 1" in run.reasons[0]


def test_where_the_baselines_model_is_gone_the_run_is_unconfirmed(service: Service) -> None:
    service.audit()
    first = service.run(GOOD)
    run = service.run(WORSE, Model("d"))
    assert (run.verdict, run.reruns[0].status) == ("unconfirmed", "baseline_gone")
    assert run.reruns[0].baseline_report_id is None
    assert "the baseline's model is no longer available" in run.reasons[0]
    assert run.baseline_report_id == first.report_id


def test_with_the_baselines_model_gone_absolute_limits_are_still_judged(service: Service) -> None:
    service.audit(limits=(LIMIT, ABSOLUTE))
    service.run(GOOD)
    run = service.run(WORSE, Model("d"))
    assert run.verdict == "fail"
    assert [finding.verdict for finding in run.reruns[0].findings] == ["not_judged", "broken"]
    assert run.reasons[1].endswith("Broken again on seed 1.")


@pytest.mark.parametrize("how", ["failed", "cancelled", "baseline_failed"])
def test_if_the_rerun_itself_failed_the_first_verdict_stands(service: Service, how: str) -> None:
    service.audit()
    service.run(GOOD)
    asked = service.audits.request_run("shipping")
    service.round()
    service.work(WORSE)
    service.round()
    candidate, baseline = sorted(service.queued(), key=lambda job: service.claim_terms(job) or "", reverse=True)
    broken, whole = (baseline, candidate) if how == "baseline_failed" else (candidate, baseline)
    service.work(WORSE if whole == candidate else GOOD, whole)
    assert service.round().judged == 0
    if how == "cancelled":
        service.jobs.cancel(broken)
    else:
        service.jobs.fail(service.claim(broken), Failed(code="killed", message="killed", bad_input=False))
    service.round()
    run = service.audits.run(asked.id)
    assert (run.verdict, run.reruns[0].status) == ("fail", "failed")
    assert run.reasons[0].endswith("The rerun failed, so the first measurement stands.")


def test_several_reruns_have_seeds_of_their_own(service: Service) -> None:
    service.audit(reruns=3, seed=2**63 - 2)
    service.run(GOOD)
    run = service.run(WORSE, GOOD)
    assert [rerun.seed for rerun in run.reruns] == sorted([2**63 - 1, 0, 1])
    assert run.verdict == "fail"


def test_without_reruns_the_first_measurement_decides(service: Service) -> None:
    service.audit(reruns=0)
    service.run(GOOD)
    run = service.run(WORSE)
    assert (run.verdict, run.reruns) == ("fail", ())


def test_an_upgrade_that_harms_the_same_weights_fails_without_a_rerun(service: Service) -> None:
    """A rerun would measure both sides with the new library, and could only agree with itself."""
    service.audit()
    service.run(GOOD)
    upgraded = Model("a", shift=1.0)
    upgraded.changes = {"headroom_version": "9.9"}
    run = service.run(upgraded)
    assert (run.verdict, run.reruns) == ("fail", ())
    assert "The weights are the baseline's, so a rerun could not tell more" in run.reasons[0]


def test_an_absolute_limit_is_measured_again_though_weights_are_the_baselines(service: Service) -> None:
    service.audit(limits=(LIMIT, ABSOLUTE))
    service.run(GOOD)
    upgraded = Model("a", shift=1.0)
    upgraded.changes = {"headroom_version": "9.9"}
    run = service.run(upgraded)
    assert run.verdict == "fail"
    assert [finding.limit for finding in run.reruns[0].findings] == [ABSOLUTE]
    assert run.reruns[0].baseline_report_id is None
    assert "could not tell more" in run.reasons[0]
    assert run.reasons[1].endswith("Broken again on seed 1.")


def test_what_differs_in_nothing_is_unchanged_and_costs_no_measurement(service: Service) -> None:
    service.audit()
    service.run(GOOD)
    run = service.run(GOOD)
    assert (run.verdict, run.report_id, run.reasons) == ("unchanged", None, (judging.UNCHANGED,))
    assert service.jobs.artifacts(run.job_id or "") == []
    assert service.run(WORSE, GOOD).verdict == "fail"
    assert service.run(WORSE, GOOD).verdict == "unchanged"  # the last completed run failed, and is what it is like


def test_with_the_setting_off_what_is_unchanged_is_measured(service: Service) -> None:
    service.audit(skip_unchanged=False)
    service.run(GOOD)
    run = service.run(GOOD)
    assert run.verdict == "pass"
    assert "the difference is exact" in run.findings[0].reason


@pytest.mark.parametrize("change", [{"limits": ("int8.perplexity <= 9",)}, {"baseline": "median:3"}])
def test_after_an_edit_of_what_a_report_is_held_to_it_is_measured_again(
    service: Service, change: dict[str, object]
) -> None:
    service.audit()
    service.run(GOOD)
    asked = {"name": "shipping", "model": "/models/llama", "limits": (LIMIT,)} | change
    service.audits.update("shipping", AuditDefinition.model_validate(asked))
    assert service.run(GOOD).verdict != "unchanged"
    assert service.run(GOOD).verdict == "unchanged"


def test_a_model_that_was_changed_while_it_was_measured_has_no_identity(service: Service) -> None:
    service.audit()
    service.audits.request_run("shipping")
    service.round()
    claim = service.claim(service.queued()[0])
    service.jobs.resolved(claim, Resolution(model="/m", fingerprint=f"sha256:{'9' * 64}", identity=GOOD.identity(0)))
    service.jobs.succeed(claim, service.store(claim.job_id, GOOD.report(0, "/m")))
    service.round()
    assert service.run(GOOD).verdict == "pass"


def test_a_reference_that_resolves_to_nothing_is_the_runs_error(service: Service) -> None:
    service.audit()
    asked = service.audits.request_run("shipping")
    service.round()
    nothing = Failed(code="bad-model", message="model: '/models/llama' is not a directory", bad_input=True)
    service.jobs.fail(service.claim(service.queued()[0]), nothing)
    service.round()
    run = service.audits.run(asked.id)
    assert (run.verdict, run.report_id) == ("error", None)
    assert run.reasons == ("The measurement failed (bad-model): model: '/models/llama' is not a directory.",)


@pytest.mark.parametrize("fault", ["report.json", "tables/tokens.parquet", "schema", "baseline"])
def test_a_fault_in_a_stored_report_ends_the_run_as_an_error(service: Service, fault: str) -> None:
    service.audit()
    first = service.run(GOOD)
    asked = service.audits.request_run("shipping")
    service.round()
    changed = Model("b", shift=1.0)
    if fault == "schema":
        changed.changes = {"schema_version": "9.0"}
    job = service.work(changed)
    if fault == "baseline":
        service.path(first.report_id or "", "report.json").unlink()
    elif fault != "schema":
        service.path(job, fault).write_bytes(b"spoilt")
    assert service.round().judged == 1
    run = service.audits.run(asked.id)
    assert (run.verdict, run.report_id) == ("error", None)
    assert run.reasons[0].startswith("The reports cannot be judged: ")
    assert service.round().judged == 0


def test_a_fault_in_the_code_ends_the_run_as_an_error(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    service.audit()

    def faulty(*_: object) -> None:
        raise ZeroDivisionError("by nothing")

    monkeypatch.setattr(judging.judgment, "judge", faulty)
    run = service.run(GOOD)
    assert (run.verdict, run.reasons) == ("error", ("The reports cannot be judged: ZeroDivisionError: by nothing.",))


def test_a_spoilt_report_of_a_rerun_is_a_rerun_that_failed(service: Service) -> None:
    service.audit()
    service.run(GOOD)
    asked = service.audits.request_run("shipping")
    service.round()
    service.work(WORSE)
    service.round()
    for job in service.queued():
        service.work(GOOD if service.claim_terms(job) == f"sha256:{'a' * 64}" else WORSE, job)
        service.path(job, "tables/tokens.parquet").write_bytes(b"spoilt")
    service.round()
    run = service.audits.run(asked.id)
    assert (run.verdict, run.reruns[0].status) == ("fail", "failed")


def test_a_pinned_report_is_the_baseline_whatever_passed_since(service: Service) -> None:
    service.audit(name="source", limits=())
    pinned = service.audits.request_run("source")
    service.round()
    service.work(GOOD)
    service.round()
    report = service.audits.run(pinned.id).report_id
    text = {"sequences": 4, "sequence_length": 64}  # as the made-up reports say
    service.audit(baseline=f"report:{report}", **text)
    assert service.audits.get("shipping").baseline_cautions == ()
    for model in (Model("c"), Model("d", shift=0.01)):
        assert service.run(model).baseline_report_id == report
    assert service.run(WORSE, GOOD).verdict == "fail"


def test_the_median_of_passing_runs_is_the_baseline(service: Service, clock: Clock) -> None:
    service.audit(baseline="median:3", limits=("nf4.kl_divergence.mean <= baseline * 3",))
    runs = []
    for weights, shift in (("a", 0.0), ("b", 0.4), ("c", 0.2), ("d", 0.1), ("e", 0.0)):
        runs.append(service.run(Model(weights, shift=shift)))
        clock.move(days=1)
    assert [run.verdict for run in runs] == ["pass"] * 5
    # Of the first three the one with the shift 0.2 is the median; of the next three likewise.
    assert [run.baseline_report_id for run in runs[3:]] == [runs[2].report_id] * 2


def test_a_warning_does_not_become_the_baseline(service: Service) -> None:
    service.audit(limits=(LIMIT, "nf4.kl_divergence.mean <= 0.05"))
    first = service.run(GOOD)  # its mean is 0.055, with an interval from 0.045 to 0.066
    assert (first.verdict, first.reruns) == ("warn", ())
    assert service.run(Model("c")).baseline_report_id is None


def test_editing_an_audit_leaves_the_run_under_way_what_it_began_with(service: Service) -> None:
    service.audit()
    service.run(GOOD)
    asked = service.audits.request_run("shipping")
    service.round()
    service.audits.update("shipping", AuditDefinition(name="shipping", model="/other", limits=()))
    service.work(WORSE)
    service.round()
    assert {service.jobs.get(job).request.model for job in service.queued()} == {"/models/llama"}
    while service.queued():
        job = service.queued()[0]
        service.work(GOOD if service.claim_terms(job) == f"sha256:{'a' * 64}" else WORSE, job)
    service.round()
    assert service.audits.run(asked.id).verdict == "fail"


def test_a_run_is_judged_by_one_scheduler_at_a_time(service: Service, clock: Clock) -> None:
    service.audit()
    asked = service.audits.request_run("shipping")
    service.round()
    service.work(GOOD)
    first = service.runs.take(asked.id, LEASE)
    assert first is not None
    assert service.runs.ready_runs() == []
    assert service.runs.take(asked.id, LEASE) is None
    clock.move(seconds=LEASE + 1)
    assert service.runs.ready_runs() == [asked.id]
    second = service.runs.take(asked.id, LEASE)
    assert second is not None
    assert not service.runs.end(first, judging.Ending("error", ["late"]))  # the one that lost it writes nothing
    assert service.runs.end(second, judging.Ending("pass", []))
    assert not service.runs.end(second, judging.Ending("error", ["again"]))
    assert service.audits.run(asked.id).verdict == "pass"


def test_a_run_that_schedulers_do_not_survive_ends_as_an_error(service: Service, clock: Clock) -> None:
    service.audit()
    asked = service.audits.request_run("shipping")
    service.round()
    service.work(GOOD)
    for _ in range(3):
        assert service.runs.take(asked.id, LEASE) is not None
        clock.move(seconds=LEASE + 1)
    service.round()
    run = service.audits.run(asked.id)
    assert (run.verdict, run.reasons) == (
        "error",
        ("The scheduler process ended 3 times while it judged the reports.",),
    )
    assert service.runs.ready_runs() == []


def test_a_run_whose_definition_cannot_be_read_ends_as_an_error(service: Service, engine: Engine) -> None:
    service.audit()
    asked = service.audits.request_run("shipping")
    service.round()
    service.work(GOOD)
    with writer(engine).begin() as connection:
        connection.execute(update(AuditRunRow).values(definition={"name": "shipping"}))
    service.round()
    run = service.audits.run(asked.id)
    assert run.verdict == "error"
    assert "cannot be read by this version" in run.reasons[0]


def test_a_job_that_is_gone_ends_the_run_as_an_error(service: Service, engine: Engine) -> None:
    service.audit()
    asked = service.audits.request_run("shipping")
    service.round()
    with writer(engine).begin() as connection:
        connection.execute(JobRow.__table__.delete())
    service.round()
    assert service.audits.run(asked.id).reasons == ("The job was deleted.",)


def test_an_audit_that_is_deleted_takes_its_judgment_with_it(service: Service, engine: Engine) -> None:
    service.audit()
    asked = service.audits.request_run("shipping")
    service.round()
    service.work(GOOD)
    case = service.runs.take(asked.id, LEASE)
    assert case is not None
    service.audits.delete("shipping")
    assert not service.runs.end(case, judging.Ending("pass", []))
    with engine.connect() as connection:
        assert connection.scalars(select(AuditRunRow.id)).all() == []
    assert service.jobs.counts()[Status.succeeded] == 1
