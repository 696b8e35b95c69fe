"""Figures: curves that are steps, averages that do not pool, images that open."""

from __future__ import annotations

import io
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from PIL import Image

from audit import plots
from audit.results import TargetResult
from tests.audit.fixtures import ATTACKS, attack_result, audit_result


def one_attack(*scores: np.ndarray, member: np.ndarray) -> list[TargetResult]:
    return [TargetResult(t, member, (attack_result("A", s, member),)) for t, s in enumerate(scores)]


def test_a_curve_is_the_step_function_and_never_a_line_between_its_points() -> None:
    member = np.array([True, False, True, False])
    (curve,) = plots.curves(one_attack(np.array([4.0, 3.0, 2.0, 1.0]), member=member), log=False)
    np.testing.assert_array_equal(curve.tpr, np.where(curve.fpr < 0.5, 0.5, 1.0))


def test_the_average_is_vertical_and_does_not_pool_scores() -> None:
    """Two perfect attacks whose scores lie apart: pooled, half of the members rank below all of target 1."""
    member = np.arange(200) % 2 == 0
    perfect = member.astype(float)
    (curve,) = plots.curves(one_attack(perfect, perfect + 100, member=member), log=True)
    assert (curve.tpr == 1).all()
    assert (curve.low == 1).all()
    assert (curve.high == 1).all()


def test_the_band_of_several_targets_is_one_standard_deviation_over_models() -> None:
    result = audit_result(targets=3, attacks=ATTACKS[:1])
    (average,) = plots.curves(result.targets, log=False)
    each = np.stack([plots.curves([target], log=False)[0].tpr for target in result.targets])
    np.testing.assert_allclose(average.tpr, each.mean(axis=0))
    np.testing.assert_allclose(average.high, np.minimum(each.mean(axis=0) + each.std(axis=0, ddof=1), 1))


@pytest.mark.parametrize("log", [False, True])
def test_what_a_trained_epsilon_allows_is_drawn_in_both_directions(log) -> None:
    axes = plots.roc_figure(audit_result().targets, log=log, promises=[(1.0, 0.01)]).axes[0]
    (line,) = [line for line in axes.lines if "ε = 1" in str(line.get_label())]
    fpr, tpr = line.get_data()
    np.testing.assert_allclose(tpr, np.minimum(np.e * fpr + 0.01, 1 - (1 - 0.01 - fpr) / np.e).clip(0, 1))
    assert (fpr > 0.9).any() and (tpr[fpr > 0.5] < np.e * fpr[fpr > 0.5]).all()


def test_the_band_of_one_target_contains_its_curve() -> None:
    (curve,) = plots.curves(audit_result(attacks=ATTACKS[:1]).targets, log=True)
    assert (curve.low <= curve.tpr).all()
    assert (curve.tpr <= curve.high).all()
    assert (curve.high - curve.low).max() > 0.05


def test_with_many_attacks_only_the_strongest_has_a_band() -> None:
    curves = plots.curves(audit_result(attacks=ATTACKS).targets, log=False)
    assert [not np.isnan(curve.low).all() for curve in curves] == [True] + [False] * 8


def test_log_axes_start_at_one_false_positive_and_mark_what_cannot_be_resolved() -> None:
    axes = plots.roc_figure(audit_result(points=1800).targets, log=True).axes[0]
    assert axes.get_xlim() == pytest.approx((1 / 900, 1))
    (region,) = [patch for patch in axes.patches if patch.get_width() < 1]
    assert (region.get_x(), region.get_x() + region.get_width()) == pytest.approx((1 / 900, 10 / 900))
    assert any("not resolvable" in text.get_text() for text in axes.texts)


@pytest.mark.parametrize("log", [False, True])
def test_the_chance_line_has_equal_rates(log: bool) -> None:
    axes = plots.roc_figure(audit_result().targets, log=log).axes[0]
    (chance,) = [line for line in axes.lines if line.get_label() == "chance"]
    np.testing.assert_array_equal(chance.get_xdata(), chance.get_ydata())


def test_an_attack_keeps_its_colour_whatever_its_rank() -> None:
    def colours(result) -> dict[str, str]:
        lines = plots.roc_figure(result.targets, log=False).axes[0].lines
        return {line.get_label().split()[0]: line.get_color() for line in lines}

    assert colours(audit_result(shift=2.0)) == colours(audit_result(shift=-2.0))


def test_attacks_are_told_apart_by_colour_and_dash() -> None:
    assert len({plots.style(order) for order in range(28)}) == 28


@pytest.mark.parametrize("log", [False, True])
def test_a_png_opens_and_is_small(log: bool) -> None:
    data = plots.png(plots.roc_figure(audit_result(points=6000, attacks=ATTACKS).targets, log=log, title="x"))
    assert len(data) < 200_000
    image = Image.open(io.BytesIO(data))
    image.load()
    assert len(np.unique(np.asarray(image).reshape(-1, len(image.getbands())), axis=0)) > 20


@pytest.mark.parametrize("points", [4, 12])
def test_tiny_audits_still_have_figures(points: int) -> None:
    result = audit_result(points=points)
    for log in (False, True):
        assert plots.png(plots.roc_figure(result.targets, log=log))


def test_an_svg_is_well_formed_and_loads_nothing() -> None:
    text = plots.svg(plots.roc_figure(audit_result().targets, log=True, legend=False), "a", 'say "<hi>"')
    root = ET.fromstring(text.replace("<svg ", '<svg xmlns:xlink="http://www.w3.org/1999/xlink" ', 1))
    assert root.get("aria-label") == 'say "<hi>"'
    assert "://" not in text
    assert plots.INK not in text


def test_ids_of_two_svgs_do_not_meet() -> None:
    import re

    figure = plots.roc_figure(audit_result().targets, log=False)
    first, second = (set(re.findall(r'\bid="([^"]+)"', plots.svg(figure, name, ""))) for name in "ab")
    assert first
    assert first.isdisjoint(second)


@pytest.mark.parametrize(
    "scores",
    [
        np.zeros(50, dtype=np.float32),
        np.where(np.arange(50) % 3 == 0, np.inf, np.arange(50.0)),
        np.full(50, -np.inf),
        np.full(50, 1e30),
    ],
    ids=["constant", "some infinite", "all infinite", "huge"],
)
def test_every_score_is_in_the_histogram(scores: np.ndarray) -> None:
    member = np.arange(50) % 2 == 0
    axes = plots.score_figure(attack_result("A", scores, member), member).axes[0]
    outlines = [patch for patch in axes.patches if not patch.get_fill()]
    assert [outline.get_data().values.sum() for outline in outlines] == pytest.approx([100, 100])


def test_a_name_is_never_read_as_mathematics() -> None:
    figure = plots.roc_figure([TargetResult(0, *_hostile())], log=False)
    assert plots.png(figure)


def _hostile() -> tuple:
    member = np.arange(20) % 2 == 0
    return member, (attack_result(r"$\frac{$ <b>&", np.arange(20.0), member),)


@pytest.mark.parametrize("log", [False, True])
def test_what_is_drawn_holds_its_height_until_the_next_achieved_point(log: bool) -> None:
    lines = plots.roc_figure(audit_result().targets, log=log).axes[0].lines
    assert {line.get_drawstyle() for line in lines if line.get_label() != "chance"} == {"steps-post"}
