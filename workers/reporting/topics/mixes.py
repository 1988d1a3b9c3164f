"""The mixes that were measured for every scheme, their controls, and the configuration of what is recommended."""

from collections.abc import Iterator

from service.contracts.harm.recommendation import MixFacts, Recommendation
from service.contracts.report import Report
from service.evaluation.decision import as_json, as_python, in_words
from workers.reporting.text import counted, data_size, number
from workers.reporting.topics.records import Grid, Topic

_TARGETS = {"max_bytes": "size at most", "max_kl": "KL divergence at most", "knee": "none: the knee of the frontier"}


def topics(report: Report) -> tuple[Topic, ...]:
    """Return the section on mixes; none where no recommendation was asked for."""
    recommendations = report.recommendation
    if recommendations is None:
        return ()
    measured = {name: one for name, one in recommendations.items() if one.mixes}
    asked = report.analysis.recommend
    held_out = "which selected nothing" if asked.rounds == 1 else "on which the first mixes selected later ones"
    smallest = "smaller option meets the target" if asked.max_kl is not None else "smaller option has as mild an effect"
    notes = (
        "A mix keeps some modules of a scheme in 16 bits. Mixes were selected by the predicted KL divergence, which "
        f"counts interactions in part because they are uncertain, and measured on held-out sequences, {held_out}, "
        "beside controls of at most the same bytes. A mix is chosen if its KL divergence, paired by sequence, is below "
        f"the best control's at 5% divided by the mixes tried. It is shipped only where no {smallest}. ± is one "
        "standard error.",
    )
    return (
        Topic(
            "mixes",
            "Mixes",
            " ".join(f"{name}: {one.reason}" for name, one in recommendations.items()),
            notes if measured else (),
            tuple((f"Target of {name}", _target(one)) for name, one in measured.items()),
            tuple(_grid(name, one) for name, one in measured.items()),
            tuple(_codes(recommendations)),
        ),
    )


def _target(recommended: Recommendation) -> str:
    target = recommended.target
    if target is None:
        return "none"
    asked = ""
    if target.value is not None:
        asked = f" {data_size(int(target.value)) if target.kind == 'max_bytes' else number(target.value)}"
    held_out = counted(recommended.held_out_sequences, "held-out sequence")
    return f"{_TARGETS[target.kind]}{asked}; mixes of at most {data_size(target.bytes)}, measured on {held_out}"


def _grid(scheme: str, recommended: Recommendation) -> Grid:
    rows = tuple(_row(mix, recommended.chosen) for mix in recommended.mixes)
    return Grid(f"Mixes of {scheme} and controls", ("Mix", "Size", "Predicted KL", "Measured KL", "Kept"), rows)


def _row(mix: MixFacts, chosen: str | None) -> tuple[str, ...]:
    mark = " (control)" if mix.control else " (chosen)" if mix.name == chosen else ""
    error = f" ± {number(mix.kl.standard_error, 2)}" if mix.kl.standard_error is not None else ""
    return (
        f"{mix.name}{mark}",
        data_size(mix.bytes),
        number(mix.predicted_kl),
        f"{number(mix.kl.value)}{error}",
        in_words(mix.kept) or "nothing",
    )


def _codes(recommendations: dict[str, Recommendation]) -> Iterator[tuple[str, str]]:
    for name, one in recommendations.items():
        if one.config is not None:
            what = f"{name}, {one.chosen}" if one.chosen else name
            checked = "" if one.config_verified else " (not verified: transformers converts other modules)"
            yield f"Configuration of {what}{checked}", f"{as_python(one.config)}\n\n{as_json(one.config)}"
