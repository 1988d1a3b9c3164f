"""Reports on standard output how far the measurement has come, one JSON object per line."""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TextIO

from service.contracts.harm.cost import Cost
from service.contracts.progress import Failed, Finished, Progress, ProgressLine, Stage, json_line
from service.contracts.warnings import Warning


@dataclass
class ProgressReporter:
    """Writes progress lines, and keeps what the report needs of them: warnings, and what every stage took."""

    out: TextIO = field(default_factory=lambda: sys.stdout)
    began: float = field(default_factory=time.monotonic)
    warnings: list[Warning] = field(default_factory=list)
    stage_seconds: dict[str, float] = field(default_factory=dict)
    resumed_at_layer: int | None = None

    @property
    def elapsed(self) -> float:
        """Seconds since the measurement began."""
        return time.monotonic() - self.began

    @contextmanager
    def stage(
        self, stage: Stage, total: int = 1, done: int = 0, batch_sequences: int | None = None, cost: str | None = None
    ) -> Iterator["StageProgress"]:
        """Announce a stage of `total` units, `done` of them before, and its end; its seconds go into the report.

        `batch_sequences`: sequences in a batch, where the stage takes batches through the model. `cost`: what it is
        going to take, where that is worth saying.
        """
        started = self.elapsed
        first = Progress(
            stage=stage,
            done=done,
            total=total,
            elapsed_seconds=started,
            batch_sequences=batch_sequences,
            cost=cost,
        )
        self._say(first)
        progress = StageProgress(self, stage, total)
        yield progress
        self.stage_seconds[stage] = self.stage_seconds.get(stage, 0.0) + self.elapsed - started
        self._say(Progress(stage=stage, done=progress.total, total=progress.total, elapsed_seconds=self.elapsed))

    def warn(self, code: str, message: str, advice: str, where: str | None = None) -> Warning:
        """Say something that the reader of the report must know, and what to do next."""
        warning = Warning(code=code, message=message, where=where, advice=advice)
        self.recall([warning])
        return warning

    def recall(self, warnings: Sequence[Warning]) -> None:
        """Report warnings that were made elsewhere: by a statistic, or before this measurement was broken off."""
        self.warnings += warnings
        for warning in warnings:
            self._say(warning)

    def planned(self, cost: Cost) -> None:
        """Print what the measurement would take, a line of kind `plan` that only a plan has."""
        print(cost.model_dump_json(), file=self.out, flush=True)

    def finished(self) -> None:
        """Say that the output is whole."""
        self._say(Finished())

    def failed(self, code: str, message: str, *, bad_input: bool, batch_sequences: int | None = None) -> None:
        """Say that there is no output, and why."""
        self._say(Failed(code=code, message=message, bad_input=bad_input, batch_sequences=batch_sequences))

    def _say(self, line: ProgressLine) -> None:
        print(json_line(line), file=self.out, flush=True)


@dataclass
class StageProgress:
    """A stage under way."""

    reporter: ProgressReporter
    stage: Stage
    total: int
    """May grow, where a stage finds that there is more to do."""

    def done(self, units: int) -> None:
        """Say that `units` of the stage's total are done."""
        reporter = self.reporter
        reporter._say(Progress(stage=self.stage, done=units, total=self.total, elapsed_seconds=reporter.elapsed))
