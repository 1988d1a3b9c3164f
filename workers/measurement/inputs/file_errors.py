"""Makes the errors about an input file: each names the file and, where there is one, the place in it."""

from collections.abc import Callable

from service.contracts.request import CalibrationFile, LabelledFile
from workers.measurement.errors import MeasurementError

Refuse = Callable[[str], MeasurementError]
"""Makes the error out of what is wrong: `line 3: ...`, `row 3: ...`, or a sentence about the file, `is empty`."""


def refuser(kind: type[MeasurementError], parameter: str, file: CalibrationFile | LabelledFile) -> Refuse:
    """Return what makes the errors about a file that came as `parameter`."""
    # The path of an upload says nothing to the one who sent it.
    name = str(file.path) if file.source == file.path.name else file.source

    def refuse(problem: str) -> MeasurementError:
        between = ", " if problem.startswith(("line ", "row ")) else " "
        return kind(f"{parameter}: {name!r}{between}{problem}")

    return refuse
