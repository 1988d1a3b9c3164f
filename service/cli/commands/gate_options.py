"""The options of `headroom gate`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from service.cli.options import Calibration, Device, Memory, Model, whole_option


@dataclass(frozen=True, kw_only=True)
class GateOptions:
    """What was typed."""

    model: Model
    baseline: Annotated[
        str,
        typer.Option(
            "--baseline",
            metavar="REPORT|AUDIT",
            help="The id or the directory of a report, or the name of an audit, whose baseline it is. The model is "
            "measured with its settings and text.",
        ),
    ]
    limits: Annotated[
        Path,
        typer.Option(
            "--limits", metavar="FILE", help="One limit in a line, or YAML with a list of limits. `#` begins a comment."
        ),
    ]
    calibration: Calibration = None
    reruns: Annotated[
        int | None,
        whole_option(
            "--reruns",
            "N",
            "Other calibration seeds on which a broken figure is measured again. Default: the audit's, else 1.",
            least=0,
            most=16,
        ),
    ] = None
    """None leaves it to the baseline."""
    force: Annotated[
        bool, typer.Option("--force", help="Judge although definitions, text or schemes of the baseline are others.")
    ] = False
    markdown: Annotated[
        Path | None, typer.Option("--markdown", metavar="FILE", help="Write the outcome as Markdown.")
    ] = None
    junit: Annotated[Path | None, typer.Option("--junit", metavar="FILE", help="Write the outcome as JUnit XML.")] = (
        None
    )
    sarif: Annotated[Path | None, typer.Option("--sarif", metavar="FILE", help="Write the outcome as SARIF 2.1.0.")] = (
        None
    )
    memory: Memory = None
    device: Device = None

    @property
    def outcomes(self) -> dict[str, Path]:
        """The files to write, by format."""
        paths = {"markdown": self.markdown, "junit": self.junit, "sarif": self.sarif}
        return {name: path for name, path in paths.items() if path is not None}
