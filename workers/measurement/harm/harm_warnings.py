"""Warns of what limits the meaning of measured and estimated harms."""

import numpy as np

from service.evaluation.additivity import ADDITIVE
from service.evaluation.uncertainty import MIN_UNITS
from workers.measurement.harm.measuring import HarmResults
from workers.measurement.runtime.progress import ProgressReporter


def warn_nothing(scheme: str, reporter: ProgressReporter) -> None:
    """Warn that a scheme has no harm, because it replaces nothing."""
    reporter.warn(
        "harm-nothing-replaced",
        f"{scheme} replaces no module of the layers, so it has no harm",
        "Keep fewer modules, or leave the scheme out of this job.",
        where=scheme,
    )


def warn_harm(results: HarmResults, sequences: int, reporter: ProgressReporter) -> None:
    """Warn of what limits the meaning of harms.

    Args:
        results: of all schemes.
        sequences: of the text.
        reporter: gets the warnings.
    """
    for name, harm in results.schemes.items():
        if harm.apart is not None:
            _warn_apart(name, harm.apart, len(harm.components), reporter)
    products = [harm.products for harm in results.schemes.values() if harm.products is not None]
    if products:
        _warn_sequences(products[0].sequences, sequences, reporter)
    if results.no_estimate:
        reporter.warn(
            "harm-no-gradient",
            f"Harm could not be estimated ({results.no_estimate}); that of {_instead(results)} was measured instead",
            "Read the measured harms; there are no estimates, interactions or shares of dimensions.",
        )
    if np.isfinite(results.of_nothing) and results.of_nothing != 0:
        reporter.warn(
            "harm-of-nothing",
            f"The swap of nothing has a harm of {results.of_nothing:.3g} nats instead of 0",
            "Read no harm below this: the device does not give the same numbers twice.",
        )


def _instead(results: HarmResults) -> str:
    """Say what was measured where nothing could be estimated."""
    if not any(harm.modules for harm in results.schemes.values()):
        return "the layers"
    drawn = all(module in harm.at_random for harm in results.schemes.values() for module in harm.modules)
    return "some modules, drawn at random," if drawn else "the chosen component and of some modules, drawn at random,"


def _warn_sequences(used: int, sequences: int, reporter: ProgressReporter) -> None:
    if used < sequences:
        reporter.warn(
            "harm-nonfinite-gradients",
            f"Gradients are not finite in {sequences - used} of {sequences} sequences, which estimated harms leave out",
            "Read the warnings of values that are not finite; bfloat16 holds larger ones than float16.",
        )
    if used < MIN_UNITS:
        reporter.warn(
            "harm-few-sequences",
            f"Standard errors of estimated harms and of shares of dimensions are by sequence, of which there are "
            f"{used}; with fewer than {MIN_UNITS} they say little",
            f"Measure {MIN_UNITS} sequences or more.",
        )


def _warn_apart(scheme: str, additivity: float, modules: int, reporter: ProgressReporter) -> None:
    low, high = ADDITIVE
    reporter.warn(
        "harm-all-measured",
        f"The KL divergence of {scheme} is {additivity:.3g} times the sum of its modules' scaled estimates, outside of "
        f"{low} to {high}; so all its {modules} modules were replaced alone, and these measurements select its mixes",
        "Expect predictions of mixes to be off; what was measured on held-out sequences holds.",
        where=scheme,
    )
