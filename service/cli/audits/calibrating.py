"""`headroom audits calibrate`, and `create --calibrate`: the noise of an audit's limits, measured and shown."""

import sys
from typing import ClassVar

from rich.console import Console

from service.cli import output
from service.cli.analysis import Watch
from service.cli.audits.audit_path import path_of
from service.cli.client import Document
from service.cli.connection import Service, connect
from service.cli.running import interruptible
from service.contracts.audits.audit import Calibration, LimitNoise
from service.errors import HeadroomError
from service.evaluation.numbers import number

_TITLES = ("limit", "mean", "standard deviation", "breaks by text alone", "false alarms per year")
_MOVED = "the audit's baseline changed while its model was measured; calibrate again"


class CalibrationFailed(HeadroomError):
    """The jobs left no reports from which the noise can be estimated."""

    code: ClassVar[str] = "calibration-failed"


def calibrate(name: str, seeds: int, *, as_json: bool) -> None:
    """Measure the model of an audit's baseline on further seeds, and print the noise of every limit."""
    path = path_of(name)
    with interruptible(), connect(workers=True) as service:
        calibration = measure(service, path, seeds)
    if as_json:
        output.document(calibration.model_dump(mode="json"))
        return
    show(calibration)


def measure(service: Service, path: str, seeds: int) -> Calibration:
    """Return the calibration of the audit at a path of the API, once its jobs have ended. Raises CalibrationFailed."""
    view = service.client.post(f"{path}/calibration", {"seeds": seeds})
    try:
        with output.display(Console(stderr=True)) as shown:
            for job in view["jobs"]:
                Watch(service.client, shown, service.check).follow(job["job"])
    except KeyboardInterrupt:
        name = path.rpartition("/")[2]
        print(f"the jobs go on; `headroom audits calibrate {name}` shows what they find", file=sys.stderr)
        raise
    ended: Document = service.client.get(f"{path}/calibration")
    if ended["result"] is None:
        raise CalibrationFailed(f"calibrate: {ended['problem'] or _MOVED}")
    return Calibration.model_validate(ended["result"])


def show(calibration: Calibration) -> None:
    """Print the spread of every limited figure, the false alarms to expect, and which limits are too tight."""
    console = output.results()
    output.line(console, f"Noise of the limits over calibration seeds {', '.join(map(str, calibration.seeds))}")
    output.table(_TITLES, [_row(noise) for noise in calibration.limits])
    output.line(
        console,
        f"False alarms to expect of {number(calibration.runs_per_year)} runs a year on other text: "
        f"{number(calibration.alarms_per_year, 2)}",
    )
    for noise in calibration.limits:
        if noise.tight:
            instead = f"; {noise.suggestion} is outside of it" if noise.suggestion else ""
            output.line(console, f"Too tight: {noise.limit} lies inside the figure's noise{instead}")


def _row(noise: LimitNoise) -> tuple[str | None, ...]:
    chance = None if noise.chance is None else f"{100 * noise.chance:.2g}%"
    alarms = None if noise.alarms_per_year is None else number(noise.alarms_per_year, 2)
    mean, deviation = (None if one is None else number(one, 4) for one in (noise.mean, noise.standard_deviation))
    return noise.limit, mean, deviation, chance, alarms
