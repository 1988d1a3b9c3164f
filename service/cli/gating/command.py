"""`headroom gate`: one audit of a model in a pipeline.

The model is measured by the service, as `headroom analyze` does it; what its report says of the limits is judged here.
"""

import hashlib
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console

from service.cli import output
from service.cli.commands.gate_options import GateOptions
from service.cli.connection import Service, WorkerOptions, connect, with_options
from service.cli.gating import baseline as baselines
from service.cli.gating import measuring, written
from service.cli.gating.baseline import Chosen, Source
from service.cli.gating.limits_file import LimitsFile, read_limits
from service.cli.gating.outcome import Gated, exit_code, run_document
from service.cli.gating.table import show
from service.cli.inputs import model_name
from service.cli.output import Display
from service.cli.running import DONE, JOB_FAILED, interruptible
from service.cli.uploads import upload
from service.contracts.request import SAMPLE
from service.errors import InvalidRequest
from service.settings import settings


def gate(options: GateOptions, *, as_json: bool) -> int:
    """Measure a model, judge the limits, print and write the outcome; return the exit status.

    A file that cannot be written is named on standard error, and makes a gate that passes exit with 1. Raises
    InvalidRequest before anything is measured, and JobCancelled after Ctrl-C; then nothing is written.
    """
    present, worker = settings(), WorkerOptions(options.memory, options.device)
    limits = read_limits(options.limits, present.max_upload_bytes)
    written.check(options.outcomes)
    with_options(present, worker)  # checks them before a stack is started
    model = model_name(options.model, on_this_machine=not present.url)
    with (
        interruptible(),
        connect(workers=True, options=worker) as service,
        tempfile.TemporaryDirectory(prefix="headroom-gate-") as directory,
        output.display(Console(stderr=True)) as shown,
    ):
        gated = _gated(options, model, limits, service, shown, Path(directory))
    _print(options.model, gated, as_json=as_json)
    failures = written.write(options.outcomes, gated)
    for failure in failures:
        print(f"headroom: {failure}", file=sys.stderr)
    return exit_code(gated.run.verdict) or (JOB_FAILED if failures else DONE)


def _print(model: str, gated: Gated, *, as_json: bool) -> None:
    if as_json:
        run = gated.run.model_dump(mode="json")
        output.document({**run_document(run), "baseline": gated.baseline, "cautions": list(gated.cautions)})
    else:
        console = output.results()
        for caution in gated.cautions:
            output.line(console, f"Caution: {caution}")
        output.line(console, f"Compared with {gated.baseline}")
        show(console, model, gated.run)


def _gated(
    options: GateOptions, model: str, file: LimitsFile, service: Service, shown: Display, directory: Path
) -> Gated:
    source = baselines.find(service.client, options.baseline)
    limits = file.parsed(source.scheme_names)
    baseline = baselines.chosen(service.client, source, limits, directory)
    files, cautions = _files(options.calibration, source, service, directory)
    cautions = (*baselines.cautions(source, baseline), *cautions)
    if cautions and not options.force:
        problem = f"does not fit: {' '.join(cautions).rstrip('.')}"
        raise InvalidRequest("--baseline", options.baseline, "one that fits, or any with --force", problem=problem)
    gauge = measuring.Gauge(service, shown, {**source.settings, **files}, directory)
    reruns = source.reruns if options.reruns is None else options.reruns
    run = measuring.gate(gauge, model, limits, baseline.report, reruns=reruns, force=options.force)
    if source.audit is not None:
        run = run.model_copy(update={"audit_id": source.audit["id"]})
    return Gated(
        model=options.model,
        baseline=_words(source, baseline),
        run=run,
        limits_file=file.path,
        lines=file.by_text(limits),
        version=version("headroom"),
        cautions=cautions,
    )


def _files(
    calibration: Path | None, source: Source, service: Service, directory: Path
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the files of the job: those of the baseline's, and `--calibration` in place of its text.

    Besides, in a sentence, how that differs from the baseline's text where it does.
    """
    largest = settings().max_upload_bytes
    files: dict[str, Any] = {}
    for key, file in source.files.items():
        into = directory / key
        into.mkdir()
        path = into / (Path(file.name).name or key)
        service.client.download(file.path, path)
        files[key] = upload(f"--baseline: {key}", path, largest, name=file.name)
    if calibration is None:
        if source.text not in (None, SAMPLE):
            message = (
                f"--calibration: it is required, since {source.words} was measured on the text {source.text!r}; "
                "allowed: that file"
            )
            raise InvalidRequest("--calibration", None, "the file of the baseline", message=message)
        return files, ()
    files["calibration"] = upload("--calibration", calibration, largest)
    return files, _other_file(calibration, source)


def _other_file(path: Path, source: Source) -> tuple[str, ...]:
    """Say how a calibration file differs from the baseline's; of a report on this machine only the name is known."""
    if source.directory is not None:
        same, name = path.name == source.text, source.text
    else:
        file = source.files.get("calibration")
        same = file is not None and hashlib.sha256(path.read_bytes()).hexdigest() == file.sha256
        name = file.name if file else SAMPLE
    return () if same else (f"Its calibration text is {name!r}, and --calibration is another.",)


def _words(source: Source, baseline: Chosen) -> str:
    if source.audit is None:
        return source.words
    if baseline.report is not None:
        return f"{source.words} (report {baseline.report.name})"
    return f"{source.words} (which has no {'comparable baseline' if baseline.outdated else 'baseline yet'})"
