"""Derives from a report which scheme to deploy, to test first or to leave, and what to measure next.

The sentences follow from the verdicts alone. A scheme whose 95% intervals reach another level is not settled, so it
is neither recommended nor rejected: the text must be longer first. A simulated scheme, and one that no
BitsAndBytesConfig loads, is never recommended, because what was measured is not what would be deployed.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from service.contracts.report import Report
from service.contracts.request import SAMPLE
from service.evaluation.decision import to_ship
from service.evaluation.uncertainty import MIN_UNITS
from service.evaluation.verdict import verdict_of

_MORE_SEQUENCES = 4
"""Times as many sequences make an interval about half as wide."""


class SchemeOutcome(NamedTuple):
    """What a report says of a scheme, as far as the next step depends on it."""

    name: str
    level: str
    """Of its verdict."""
    settled: bool
    """No other level is within the 95% intervals."""
    mean_kl: float
    """Nats; infinite where no position has a finite prediction."""
    model_bytes: int
    compression: float
    """Bytes of the reference over those of the model under the scheme."""
    deployable: bool
    """It is neither simulated nor for analysis only."""
    replaces_nothing: bool
    """It replaces no weight of the decoder layers."""
    variant: str
    """The value of `--scheme`."""
    recommended: bool
    """Mixes of it were measured."""

    @property
    def judged(self) -> bool:
        """Whether the figures determine its effect."""
        return self.level != "unjudged"

    @property
    def ready(self) -> bool:
        """Whether its level is settled, and what was measured is what would be deployed."""
        return self.judged and self.settled and self.deployable


class MeasuredText(NamedTuple):
    """What a report says of the calibration text, as far as the next step depends on it."""

    sequences: int
    exhausted: bool
    """The text has fewer sequences than were asked for."""
    bundled: bool
    """It is the bundled text, and the model is not the bundled sample."""
    predictable: bool
    """The reference has finite predictions of it."""


def next_steps(report: Report) -> tuple[str, ...]:
    """Return what to do after this report, in sentences, the most important first.

    In this order: the scheme to use, those to test, those to leave, those that are not settled, those that are not
    deployable, those that could not be judged. Most reports have one to three sentences.
    """
    if not report.schemes:
        return ("Rerun with --scheme int8 --scheme nf4 to measure what quantization does to this model.",)
    schemes = [_outcome(report, name) for name in report.schemes]
    text = _measured_text(report)
    best, decided = _smallest_negligible(schemes), _decided(report)
    # A worse scheme is worth a sentence only where it makes the model smaller than the best one does.
    smaller = [one for one in schemes if best is None or one.model_bytes < best.model_bytes]
    return (
        *(_use(best, text) if report.recommendation is None or (best and best.name == decided) else ()),
        *_test(smaller),
        *_leave([one for one in smaller if one.name != decided]),
        *_leave_simulated(schemes),
        *_settle(schemes, text),
        *_measure_on_kernel(schemes),
        *_judge(schemes, text),
    )


def _measured_text(report: Report) -> MeasuredText:
    calibration = report.calibration
    return MeasuredText(
        sequences=calibration.sequences,
        exhausted=calibration.sequences < report.analysis.sequences,
        bundled=calibration.source == SAMPLE != report.model.source,
        predictable=report.reference.perplexity is not None,
    )


def _outcome(report: Report, name: str) -> SchemeOutcome:
    facts = report.schemes[name]
    verdict, kl = facts.verdict or verdict_of(report, facts), facts.kl_divergence
    return SchemeOutcome(
        name=name,
        level=verdict.level,
        settled=not verdict.not_ruled_out and (kl is None or kl.interval is not None),
        mean_kl=kl.mean if kl is not None else float("inf"),
        model_bytes=facts.model_bytes,
        compression=facts.compression,
        deployable=not facts.simulated and not facts.analysis_only,
        replaces_nothing=facts.quantised_share == 0,
        variant=next((str(variant) for variant in report.analysis.schemes if variant.name == name), name),
        recommended=name in (report.recommendation or {}),
    )


def _smallest_negligible(schemes: Sequence[SchemeOutcome]) -> SchemeOutcome | None:
    """Return the deployable scheme of settled negligible effect that makes the model smallest; None without any."""
    negligible = [one for one in schemes if one.ready and one.level == "negligible"]
    return min(negligible, key=lambda one: (one.model_bytes, one.mean_kl), default=None)


def _decided(report: Report) -> str | None:
    """Return the scheme that a recommendation ships as it is; None without one, and where it ships something else."""
    shipped = to_ship(report) if report.recommendation is not None else None
    return shipped.scheme if shipped is not None and shipped.mix is None else None


def _use(best: SchemeOutcome | None, text: MeasuredText) -> Iterator[str]:
    if best is None:
        return
    smaller = f", and the model is {best.compression:.2f} times smaller" if best.compression >= 1.005 else ""
    if text.bundled:
        yield (
            f"Measure {best.name} on a text of your own before you deploy it (--calibration FILE): its effect on the "
            f"bundled text is negligible{smaller}."
        )
    else:
        yield f"Use {best.name}: its effect on this text is negligible{smaller}."


def _test(schemes: Sequence[SchemeOutcome]) -> Iterator[str]:
    noticeable = [one for one in schemes if one.ready and one.level == "noticeable"]
    if noticeable:
        them, effect = ("it", "its effect is") if len(noticeable) == 1 else ("them", "their effects are")
        yield f"Test {_names(noticeable)} on your own task before you deploy {them}: {effect} noticeable."


def _leave(schemes: Sequence[SchemeOutcome]) -> Iterator[str]:
    severe = [one for one in schemes if one.ready and one.level == "severe"]
    if not severe:
        return
    reason = "as it is: its effect is severe" if len(severe) == 1 else "as they are: their effects are severe"
    yield f"Do not deploy {_names(severe)} {reason}."
    mildest = min(severe, key=lambda one: one.mean_kl)
    if not mildest.recommended and math.isfinite(mildest.mean_kl):
        yield f"Measure which modules to keep in 16 bits: run headroom recommend with --scheme {mildest.variant}."


def _leave_simulated(schemes: Sequence[SchemeOutcome]) -> Iterator[str]:
    severe = [one for one in schemes if one.settled and not one.deployable and one.level == "severe"]
    if severe:
        reason = "as it is: its effect is" if len(severe) == 1 else "as they are: their effects are"
        yield f"Do not deploy {_names(severe)} {reason} severe (measured as a simulation or for analysis only)."


def _settle(schemes: Sequence[SchemeOutcome], text: MeasuredText) -> Iterator[str]:
    unsettled = [one for one in schemes if one.judged and not one.settled]
    if unsettled:
        levels = "the level of {} is" if len(unsettled) == 1 else "the levels of {} are"
        longer = "a longer text (--calibration FILE) and " if text.exhausted else ""
        sequences = max(MIN_UNITS, _MORE_SEQUENCES * text.sequences)
        yield f"Rerun with {longer}--sequences {sequences}: {levels.format(_names(unsettled))} not settled."


def _measure_on_kernel(schemes: Sequence[SchemeOutcome]) -> Iterator[str]:
    milder = [one for one in schemes if one.judged and one.settled and not one.deployable and one.level != "severe"]
    if milder:
        are = "is" if len(milder) == 1 else "are"
        yield f"Measure again on the kernel that you will deploy: {_names(milder)} {are} simulated or analysis only."


def _judge(schemes: Sequence[SchemeOutcome], text: MeasuredText) -> Iterator[str]:
    unjudged = [one for one in schemes if not one.judged]
    if not text.predictable and unjudged:
        yield "Check the model's weights: no position has a finite prediction even without quantization."
        return
    empty = [one for one in unjudged if one.replaces_nothing]
    if len(empty) < len(unjudged):
        yield "Rerun with a text that the model predicts better than a guess (--calibration FILE)."
    if empty:
        replaces = "it replaces" if len(empty) == 1 else "they replace"
        yield f"Choose another scheme than {_names(empty)}: {replaces} no weight of the decoder layers."


def _names(schemes: Sequence[SchemeOutcome]) -> str:
    *others, last = (one.name for one in schemes)
    return f"{', '.join(others)} and {last}" if others else last
