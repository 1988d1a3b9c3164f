"""The language of limits, and the figures that it speaks of."""

import pytest
from made_reports import made_up, report, template

from service.audits.figures import _figures, read
from service.audits.limits import holds, parse, parse_all
from service.contracts.sections.outliers import DEFINITIONS
from service.errors import InvalidRequest

SCHEMES = ("int8", "nf4")
REMOVED = ("heads.predicted_outliers", "heads.both")
"""Keys of the stored report that today's have not; they are kept, not read."""


@pytest.mark.parametrize(
    ("text", "path", "relation", "against", "bound"),
    [
        ("int8.perplexity_ratio <= 1.01", "schemes.int8.perplexity_ratio.value", "<=", False, 1.01),
        ("schemes.int8.perplexity_ratio.value <= 1.01", "schemes.int8.perplexity_ratio.value", "<=", False, 1.01),
        ("nf4.kl_divergence.mean <= baseline * 1.2", "schemes.nf4.kl_divergence.mean", "<=", True, 1.2),
        ("nf4.kl_divergence<=baseline*1.2", "schemes.nf4.kl_divergence.mean", "<=", True, 1.2),
        ("  int8.same_top_token   >=  .98 ", "schemes.int8.same_top_token.value", ">=", False, 0.98),
        ("nf4.model_bytes <= baseline", "schemes.nf4.model_bytes", "<=", True, 1.0),
        ("nf4.delta_p.mean >= -1e-3", "schemes.nf4.delta_p.mean", ">=", False, -1e-3),
        ("nf4.kl_divergence.p99 <= 2", "schemes.nf4.kl_divergence.p99", "<=", False, 2.0),
        ("block.abs_max <= baseline * 2", "block.abs_max", "<=", True, 2.0),
        ("reference.perplexity <= baseline * 1.01", "reference.perplexity.value", "<=", True, 1.01),
        ("heads.measured_outliers <= 3", "heads.measured_outliers", "<=", False, 3.0),
        ("heads.schemes.nf4.damaged <= 3", "heads.schemes.nf4.damaged", "<=", False, 3.0),
        ("timing.stage_seconds.layers <= 60", "timing.stage_seconds.layers", "<=", False, 60.0),
        ("outliers.llm_int8_relative none gained", "outliers.llm_int8_relative", "none gained", True, 1.0),
        ("int8.verdict no worse than baseline", "schemes.int8.verdict.level", "no worse than", True, 1.0),
        ("int8.verdict no worse than noticeable", "schemes.int8.verdict.level", "no worse than", False, 1.0),
        ("int8.verdict.level no worse than severe", "schemes.int8.verdict.level", "no worse than", False, 2.0),
    ],
)
def test_a_limit_is_read(text, path, relation, against, bound):
    limit = parse(text, SCHEMES)
    assert (limit.figure.path, *limit[2:]) == (path, relation, against, bound)
    assert limit.text == " ".join(text.split())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "int8.kl_divergance <= 1",
            "figures of a report; the nearest are int8.kl_divergence,",
        ),
        (
            "outliers.llm_int9 none gained",
            "figures of a report; the nearest are outliers.llm_int8,",
        ),
        ("blok.abs_max <= 1", "the nearest are block.abs_max"),
        ("fp4.kl_divergence <= 1", "'fp4' is no scheme of the job; allowed: int8, nf4"),
        ("schemes.fp4.foo <= 1", "'fp4' is no scheme of the job; allowed: int8, nf4"),
        ("int8.fp16_columns <= 1", "'int8.fp16_columns' holds several figures; allowed: int8.fp16_columns.prefill,"),
        ("model.source <= 1", "no report has a figure 'model.source'"),
        ("int8.simulated <= 1", "no report has a figure 'int8.simulated'"),
        ("int8.not_quantised <= 1", "no report has a figure 'int8.not_quantised'"),
        ("timing.stage_seconds. <= 1", "no report has a figure 'timing.stage_seconds.'"),
        (
            "int8.perplexity_ratio < 1",
            "'<' does not fit schemes.int8.perplexity_ratio.value, a number; allowed: FIGURE <= NUMBER",
        ),
        ("int8.perplexity_ratio == 1", "'==' does not fit"),
        ("int8.perplexity_ratio =< 1", "'=<' does not fit"),
        ("int8.perplexity_ratio 1.01", "'1.01' does not fit"),
        (
            "int8.verdict <= 1",
            "'<=' does not fit schemes.int8.verdict.level, a level; allowed: S.verdict no worse",
        ),
        ("outliers.llm_int8 <= 1", "'<=' does not fit outliers.llm_int8, a set of dimensions"),
        ("int8.perplexity_ratio none gained", "'none gained' does not fit schemes.int8.perplexity_ratio.value"),
        ("int8.perplexity_ratio no worse than baseline", "'no worse than' does not fit"),
        (
            "int8.verdict no worse than awful",
            "'awful' is not a level; allowed: S.verdict no worse than baseline, or than",
        ),
        ("int8.verdict no worse than unjudged", "'unjudged' is not a level"),
        ("outliers.llm_int8 none gained at all", "'at all' does not belong there"),
        ("int8.perplexity_ratio <= nan", "'nan' is not a finite number"),
        ("int8.perplexity_ratio <= inf", "'inf' is not a finite number"),
        ("int8.perplexity_ratio <= 1e999", "'1e999' is not a finite number"),
        ("int8.perplexity_ratio <= 1,01", "'1,01' is not a finite number"),
        ("int8.perplexity_ratio <= baseline + 10%", "'baseline + 10%' is not a finite number"),
        ("int8.perplexity_ratio <= baseline * nan", "'nan' is not a finite number"),
        ("int8.perplexity_ratio <= baseline * 0", "a factor of 0 is not over 0"),
        ("int8.perplexity_ratio <= baseline * -2", "a factor of -2 is not over 0"),
        (
            "int8.perplexity_ratio <= 0",
            "schemes.int8.perplexity_ratio.value is never negative, so a bound of 0 has no effect",
        ),
        ("reference.perplexity <= -1", "reference.perplexity.value is never negative, so a bound of -1 has no effect"),
        ("int8.perplexity_ratio <=", "'' is not a finite number"),
        ("int8.perplexity_ratio", "it has no figure, or nothing after it; allowed: FIGURE <= NUMBER"),
        ("", "it has no figure, or nothing after it; allowed: FIGURE <= NUMBER"),
        ("<= 1", "it has no figure, or nothing after it; allowed: FIGURE <= NUMBER"),
    ],
)
def test_what_is_no_limit_is_refused(text, said):
    with pytest.raises(InvalidRequest) as refused:
        parse(text, SCHEMES)
    assert str(refused.value).startswith(f"limits: {text!r} is not a limit: ")
    assert said in str(refused.value)


def test_a_job_without_schemes_has_no_limit_on_one():
    with pytest.raises(InvalidRequest, match="'int8' is no scheme of the job; allowed: none"):
        parse("int8.perplexity_ratio <= 1.01", ())
    assert parse("block.abs_max <= 9", ()).bound == 9


def test_two_limits_that_say_the_same_are_refused():
    with pytest.raises(InvalidRequest, match=r"says the same as 'int8.kl_divergence <= 1'; allowed: each limit once"):
        parse_all(["int8.kl_divergence <= 1", "schemes.int8.kl_divergence.mean <= 1.0"], SCHEMES)
    both = parse_all(["int8.kl_divergence <= 1", "int8.kl_divergence <= baseline"], SCHEMES)
    assert [limit.against_baseline for limit in both] == [False, True]


def test_a_variant_may_be_called_like_a_part_of_the_report():
    assert parse("model.layers <= 9", ("model",)).figure.path == "model.layers"
    assert parse("model.perplexity <= 9", ("model",)).figure.path == "schemes.model.perplexity.value"
    assert parse("block.abs_max <= 9", ("block",)).figure.path == "block.abs_max"


def numbers(value, path=""):
    """Yield every number of a report that stands outside of lists, by its path, in the report as JSON."""
    if isinstance(value, dict):
        for key, one in value.items():
            yield from numbers(one, f"{path}.{key}" if path else key)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield path, float(value)


def test_every_number_of_a_report_can_be_limited():
    side = report(made_up(1))
    listed = dict(numbers(side.report.model_dump(mode="json")))
    listed = {path: value for path, value in listed.items() if path not in REMOVED}
    assert len(listed) > 100
    for path, value in listed.items():
        assert read(parse(f"{path} <= 1e300", SCHEMES).figure, side) == value, path


def test_every_figure_that_may_be_limited_is_read_as_its_kind():
    side = report(made_up(1))
    for name, figure in _figures(SCHEMES).items():
        value = read(figure, side)
        allowed = {"number": float, "level": str, "dimensions": frozenset}[figure.kind]
        assert value is None or type(value) is allowed, name
    assert set(DEFINITIONS) <= {name.removeprefix("outliers.") for name in _figures(SCHEMES)}


def test_block_abs_max_is_the_largest_over_layers():
    sites = {
        "component": ["block", "block", "attn.q", "block", "block"],
        "port": ["output", "output", "output", "input", "output"],
        "abs_max": [3.0, 7.5, 90.0, 80.0, float("nan")],
    }
    assert read(parse("block.abs_max <= 9", ()).figure, report(made_up(1), sites=sites)) == 7.5
    no_table = report(made_up(1))._replace(read=lambda *_: None)
    assert read(parse("block.abs_max <= 9", ()).figure, no_table) is None


def test_what_is_not_finite_is_no_figure():
    profile = template().profile.model_copy(update={"kurtosis": float("nan")})
    assert read(parse("profile.kurtosis <= 9", ()).figure, report(made_up(1), profile=profile)) is None


def test_holds_includes_the_bound():
    most, least = parse("int8.compression <= 2", SCHEMES), parse("int8.compression >= 2", SCHEMES)
    assert [holds(most, value, 2.0) for value in (1.9, 2.0, 2.1)] == [True, True, False]
    assert [holds(least, value, 2.0) for value in (1.9, 2.0, 2.1)] == [False, True, True]
