"""Figures: titles, seeds as a band, error bars only of measured spreads, and axes that fit."""

import math

import numpy as np
import pytest

from fastadaad.config import ThreatModel
from fastadaad.evaluation import plots
from fastadaad.evaluation.plots import Series, figure_title, plot_against_epsilon, plot_curves, plot_methods


@pytest.fixture
def figures(monkeypatch) -> list:
    """Figures in the order in which they were made."""
    made: list = []
    original = plots.new_figure

    def new_figure(*size: float):
        made.append(original(*size))
        return made[-1]

    monkeypatch.setattr(plots, "new_figure", new_figure)
    return made


def rows(*accuracies: float) -> list[dict[str, float]]:
    return [
        {"epoch": 2.0 * number, "natural_accuracy": accuracy, "robust_accuracy": accuracy / 2}
        for number, accuracy in enumerate(accuracies, start=1)
    ]


def test_a_title_names_data_norm_radius_and_attack():
    assert figure_title("demo", "digits", ThreatModel(epsilon=0.1)) == r"demo: digits, $\ell_\infty$, $\epsilon$ = 0.1"
    title = figure_title("a", "cifar10", ThreatModel(norm="l2", epsilon=0.5), "pgd10")
    assert title == r"a: cifar10, $\ell_2$, $\epsilon$ = 0.5, robust: pgd10"
    assert "8/255" in figure_title("a", "cifar10", ThreatModel(epsilon=8 / 255))


def test_seeds_are_their_mean_and_a_band_over_the_epochs_that_all_have(figures, tmp_path):
    plot_curves(tmp_path / "curves.png", {"adaad": [rows(0.4, 0.6), rows(0.5, 0.7, 0.9)], "pgd-at": [rows(0.3, 0.4)]})
    natural = figures[0].axes[0]
    mean, alone = natural.lines
    np.testing.assert_allclose(mean.get_xydata(), [[2, 45], [4, 65]])
    np.testing.assert_allclose(alone.get_xydata(), [[2, 30], [4, 40]])
    (band,) = natural.collections
    corners = band.get_paths()[0].vertices
    assert [corners[corners[:, 0] == 4, 1].min(), corners[corners[:, 0] == 4, 1].max()] == pytest.approx([60, 70])
    assert [text.get_text() for text in figures[0].legends[0].get_texts()] == ["adaad, 2 seeds", "pgd-at"]


def test_the_axes_have_whole_epochs_and_do_not_magnify_noise(figures, tmp_path):
    plot_curves(tmp_path / "curves.png", {"adaad": [rows(0.99, 0.991)]})
    natural = figures[0].axes[0]
    low, high = natural.get_ylim()
    assert high <= 100
    assert high - low >= plots.MIN_SPAN / 2  # cut at 100 %
    assert all(tick == round(tick) for tick in natural.get_xticks())


@pytest.mark.parametrize(("spreads", "num_bars"), [([None, None], 0), ([0.01, None], 1)])
def test_an_error_bar_is_drawn_of_a_measured_spread_only(figures, tmp_path, spreads, num_bars):
    series = [Series(label="pgd20", accuracies=[0.5, 0.6], spreads=spreads)]
    plot_methods(tmp_path / "methods.png", {"cnn": (["a", "b"], series)}, {"pgd20": 0.7})
    (axes,) = figures[0].axes
    segments = [segment for lines in axes.collections for segment in lines.get_segments()]
    drawn = [segment for segment in segments if len(segment) and not np.isnan(segment).any()]
    assert len(drawn) == num_bars
    assert "teacher" in [text.get_text() for text in figures[0].legends[0].get_texts()]


def test_the_radii_of_a_sweep_are_the_ticks(figures, tmp_path):
    series = [Series(label="pgd20", accuracies=[0.5, 0.6], spreads=[None, None])]
    plot_against_epsilon(tmp_path / "epsilon.png", [4 / 255, 8 / 255], series, 8 / 255)
    (axes,) = figures[0].axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["4/255", "8/255"]
    assert math.isclose(axes.get_xticks()[0], 4 / 255)
