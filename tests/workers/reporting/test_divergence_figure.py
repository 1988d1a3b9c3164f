"""Every scored position is in the figure once, in a bin that holds its divergence or in the bar at zero."""

from functools import partial
from itertools import pairwise

import numpy as np
import pytest

from service.contracts.schemes import SCHEMES
from workers.reporting.figures import divergence


@pytest.fixture
def draw(draw_with):
    return partial(draw_with, divergence)


def parts(drawing):
    axes = drawing.figure.axes[0]
    return {artist.get_gid(): artist for artist in (*axes.patches, *axes.lines) if artist.get_gid()}


def scored(rows, scheme):
    return np.array([r["kl_divergence"] for r in rows if r["scheme"] == scheme and r["kl_divergence"] is not None])


def heights(patch):
    values, edges, baseline = patch.get_data()
    return baseline - values, edges


def legend(drawing):
    return [text.get_text() for text in drawing.figure.legends[0].get_texts()]


@pytest.mark.parametrize("schemes", [("nf4",), ("int8", "nf4"), tuple(SCHEMES)])
def test_the_bars_are_the_tables_positions(make_report, draw, rows_of, schemes):
    report = make_report(schemes=schemes, labelled=0)
    drawing = draw(report)["divergence"]
    drawn, rows = parts(drawing), rows_of(report, "tokens")
    units = []
    for scheme in schemes:
        kl = scored(rows, scheme)
        shares, edges = heights(drawn[f"kl_{scheme}"])
        assert edges[0] <= kl.min()
        assert kl.max() <= edges[-1]
        counts = [((kl >= low) & (kl < high)).sum() for low, high in pairwise(edges[:-1])]
        counts.append((kl >= edges[-2]).sum())
        assert sum(counts) == kl.size
        units.append(shares.sum())
        np.testing.assert_allclose(shares, np.array(counts) / kl.size * shares.sum(), atol=1e-9)
    np.testing.assert_allclose(units, units[0])  # one scale for all rows
    left, right = drawing.figure.axes[0].get_xlim()
    everything = np.concatenate([scored(rows, scheme) for scheme in schemes])
    assert left < everything.min() <= everything.max() < right


def test_every_bar_says_on_hover_how_many_positions_it_has(make_report, draw, rows_of, edit_table):
    report = make_report()

    def silence(rows):
        for row in rows[:8]:
            row["kl_divergence"] = 0.0 if row["kl_divergence"] is not None else None

    edit_table(report, "tokens", silence)
    drawing = draw(report)["divergence"]
    for scheme in ("int8", "nf4"):
        kl = scored(rows_of(report, "tokens"), scheme)
        texts = drawing.hover[f"bins_{scheme}"]
        assert all(text.startswith(f"{scheme}, ") for text in texts)
        counts = [int(text.split(": ")[1].split()[0].replace(",", "")) for text in texts]
        shares, _ = heights(parts(drawing)[f"kl_{scheme}"])
        np.testing.assert_allclose(np.array(counts) / sum(counts), shares / shares.sum(), atol=1e-9)
        assert sum(counts) == (kl > 0).sum()
    exact = (scored(rows_of(report, "tokens"), "int8") == 0).sum()
    assert drawing.hover["zero_int8"] == (f"int8, 0 nats: {exact} positions",)


@pytest.mark.parametrize(("least", "expected"), [(1e-6, {"10⁻⁵", "10⁻³", "10⁻¹"}), (0.002, {"0.01", "0.1"})])
def test_ticks_are_all_powers_or_all_numbers(make_report, draw, edit_table, least, expected):
    report = make_report(labelled=0)
    spread_out = np.geomspace(least, 0.5, 30)

    def change(rows):
        for row, kl in zip(rows, np.resize(spread_out, len(rows)), strict=True):
            row["kl_divergence"] = None if row["kl_divergence"] is None else float(kl)

    edit_table(report, "tokens", change)
    axes = draw(report)["divergence"].figure.axes[0]
    axes.figure.draw_without_rendering()
    found = {label.get_text() for label in axes.get_xticklabels()} - {"0"}
    assert expected <= found
    assert len({label.startswith("10\u207b") for label in found}) == 1


def test_mean_p99_and_same_top_are_drawn_and_in_the_legend(make_report, draw, rows_of):
    report = make_report()
    drawing = draw(report)["divergence"]
    for scheme, text in zip(("int8", "nf4"), legend(drawing), strict=True):
        rows = [r for r in rows_of(report, "tokens") if r["scheme"] == scheme and r["kl_divergence"] is not None]
        kl, ordered = scored(rows, scheme), np.sort(scored(rows, scheme))
        rank = 0.99 * (kl.size - 1)
        below = int(rank)
        p99 = ordered[below] + (rank - below) * (ordered[below + 1] - ordered[below])
        same = 100 * np.mean([r["same_top"] for r in rows])
        assert text.startswith(f"{scheme}: mean {kl.mean():.3g}")
        assert f"p99 {p99:.3g}" in text
        assert f"same top token {same:.2f}%" in text
        drawn = parts(drawing)
        assert drawn[f"mean_{scheme}"].get_xdata()[0] == pytest.approx(kl.mean())
        assert drawn[f"p99_{scheme}"].get_xdata() == pytest.approx([p99, p99])


def test_zero_and_rounding_have_a_bar_of_their_own(make_report, draw, edit_table):
    report = make_report(schemes=("int8", "nf4"))

    def round_some(rows):
        for row, value in zip([r for r in rows if r["scheme"] == "int8"], (0.0, -3e-17, 2e-16, 1e-13), strict=False):
            row["kl_divergence"] = value

    edit_table(report, "tokens", round_some)
    drawing = draw(report)["divergence"]
    drawn, axes = parts(drawing), drawing.figure.axes[0]
    shares, (left, right) = heights(drawn["zero_int8"])
    others, edges = heights(drawn["kl_int8"])
    assert shares[0] / others.sum() == pytest.approx(4 / 27)
    assert axes.get_xlim()[0] < left < right < edges[0]
    assert "zero_nf4" not in drawn
    assert "int8 4 positions" in drawing.caption
    labels = [text.get_text() for text in axes.get_xticklabels()]
    assert labels.count("0") == 1


def test_a_scheme_without_any_divergence_is_all_zero(make_report, draw, edit_table):
    report = make_report(schemes=("int8",))
    edit_table(report, "tokens", lambda rows: [r.update(kl_divergence=0.0, same_top=True) for r in rows[:-1]])
    drawing = draw(report)["divergence"]
    assert legend(drawing) == ["int8: mean 0, p99 0, same top token 100.00%"]
    assert parts(drawing)["mean_int8"].get_xdata()[0] < heights(parts(drawing)["kl_int8"])[1][0]
    assert "p99_int8" not in parts(drawing)


def test_a_scheme_without_a_scored_position_says_so(make_report, draw, edit_table):
    report = make_report(schemes=("int8", "nf4"))

    def unscored(rows):
        for row in rows:
            if row["scheme"] == "int8":
                row.update(kl_divergence=None, same_top=None)

    edit_table(report, "tokens", unscored)
    drawing = draw(report)["divergence"]
    assert legend(drawing)[0] == "int8: no scored position"
    assert "no scored position" in [text.get_text() for text in drawing.figure.axes[0].texts]
    assert "kl_nf4" in parts(drawing)


def test_without_schemes_there_is_no_figure(make_report, draw):
    assert not draw(make_report(schemes=()))


def test_simulated_schemes_are_marked(make_report, draw):
    drawing = draw(make_report(schemes=("int8", "mxfp4"), labelled=0))["divergence"]
    names = [text.get_text() for text in drawing.figure.axes[0].get_yticklabels()]
    assert names == ["int8", "mxfp4 (sim.)"]


def test_the_caption_says_what_it_is(make_report, draw):
    caption = draw(make_report())["divergence"].caption
    for part in (
        "KL(reference || scheme)",
        "Scored positions: 31.",
        "example/llama-small",
        "calibration.txt",
        "threshold 6.0",
    ):
        assert part in caption


def test_other_numbers_of_scored_positions_are_stated_by_scheme(make_report, draw, edit_table):
    report = make_report()

    def unscore(rows):
        next(row for row in rows if row["scheme"] == "nf4" and row["kl_divergence"] is not None).update(
            kl_divergence=None, same_top=None
        )

    edit_table(report, "tokens", unscore)
    assert "Scored positions: int8 31, nf4 30." in draw(report)["divergence"].caption
