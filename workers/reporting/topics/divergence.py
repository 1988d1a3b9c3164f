"""The divergence of the predictions: how far each scheme's next-token distributions lie from the reference's."""

from service.contracts.report import Report, SchemeFacts
from service.evaluation.verdict import mean_kl
from workers.reporting.text import ABSENT, claim, estimate, number, percent, percent_estimate
from workers.reporting.topics.records import Grid, Topic, marked

_TITLE = "Divergence of the predictions"
_QUANTILES = ("median", "p90", "p95", "p99", "p99_9", "max")


def topic(report: Report) -> Topic:
    """Return the section on divergence."""
    judged = {name: facts for name, facts in report.schemes.items() if facts.kl_divergence}
    if not judged:
        lead = "No scheme was measured." if not report.schemes else "No position has finite predictions to compare."
        return Topic("divergence", _TITLE, lead)
    note = (
        "KL compares the next-token distributions of the quantized model and the reference at each scored position. "
        "The change of p is the change in the true token's probability."
    )
    return Topic(
        "divergence", _TITLE, _lead(judged), (note,), grids=(_quantiles(report.schemes), _tokens(report.schemes))
    )


def _lead(judged: dict[str, SchemeFacts]) -> str:
    order = sorted(judged, key=lambda name: judged[name].kl_divergence.mean)  # type: ignore[union-attr]
    first, last = (marked(name, judged[name]) for name in (order[0], order[-1]))
    if len(order) == 1:
        return f"{first}: {_in_words(judged[order[0]])}."
    closest = f"{first} is closest to the reference: {_in_words(judged[order[0]])}."
    return f"{closest} {last} is farthest: {_in_words(judged[order[-1]])}."


def _in_words(facts: SchemeFacts) -> str:
    kl = f"mean KL {claim(mean_kl(facts.kl_divergence), 'nats')}"
    if facts.same_top_token is None:
        return kl
    return f"{kl}, same top token at {percent(facts.same_top_token.value)} of the positions"


def _quantiles(schemes: dict[str, SchemeFacts]) -> Grid:
    rows = []
    for name, facts in schemes.items():
        kl = facts.kl_divergence
        quantiles = [number(getattr(kl, key)) if kl else ABSENT for key in _QUANTILES]
        rows.append((marked(name, facts), estimate(mean_kl(kl)), *quantiles))
    return Grid(
        "KL divergence at the scored positions, nats",
        ("Scheme", "Mean", "Median", "p90", "p95", "p99", "p99.9", "Largest"),
        tuple(rows),
    )


def _tokens(schemes: dict[str, SchemeFacts]) -> Grid:
    rows = []
    for name, facts in schemes.items():
        change = facts.delta_p
        cells = (number(change.mean), number(change.rms)) if change else (ABSENT, ABSENT)
        rows.append((marked(name, facts), percent_estimate(facts.same_top_token), *cells))
    return Grid(
        "Changes of the most likely and of the true token",
        ("Scheme", "Same top token", "Mean change of p", "RMS change of p"),
        tuple(rows),
    )
