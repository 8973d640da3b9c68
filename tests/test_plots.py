"""Figures: what is drawn, what it is called, and that nothing else is touched."""

import io
import itertools
import math

import matplotlib as mpl
import numpy as np
import pandas as pd
import pyro.distributions as dist
import pytest
import torch
import xarray
from helpers.checks import refusals
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from scipy import stats

import probssl as ps
from probssl import plots
from probssl.calibration import Ranks
from probssl.plots.maps import latent_maps
from probssl.plots.style import ORANGE
from probssl.train import History

EPOCHS = pd.DataFrame(
    {
        "epoch": [1, 2, 3],
        "value": [-9.0, -6.0, -5.0],
        "reconstruction": [-8.0, -6.5, -6.0],
        "entropy": [1.0, 1.5, 1.2],
        "alignment": [-2.0, -1.0, -0.2],
        "hyper": 0.0,
        "penalty": 0.0,
        "valid_value": [-9.5, np.nan, -5.5],
        "lr": 1e-3,
        "seconds": 0.1,
    }
)
SCORES = pd.DataFrame(
    {
        "linear_probe": [0.93, 0.97, 0.95],
        "few_label_probe": [0.6, 0.8, np.nan],
        "few_label_probe_se": [0.01, 0.02, np.nan],
        "effective_rank": [20.5, 8.0, 9.0],
        "ari": [np.nan, np.nan, np.nan],
        "reconstruction": [np.nan, -230.1, -250.6],
        "entropy": [np.nan, 11.2, -14.0],
    },
    index=["raw pixels", "SimVAE", "VAE"],
)


@pytest.fixture(autouse=True)
def untouched():
    """No figure stays open, and no setting is changed."""
    pyplot.close("all")
    before = dict(mpl.rcParams)
    yield
    assert pyplot.get_fignums() == []
    assert dict(mpl.rcParams) == before


def rendered(figure: Figure) -> Figure:
    """The figure once it is drawn, which is where most mistakes come out."""
    figure.savefig(io.BytesIO(), format="png", dpi=50)
    assert figure.get_layout_engine() is not None
    return figure


def titles(figure: Figure) -> list[str]:
    return [axes.get_title() for axes in figure.axes]


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


class TestLearningCurves:
    def test_each_term_that_is_not_zero_has_a_panel(self):
        figure = rendered(plots.learning_curves(EPOCHS))
        assert titles(figure) == ["value", "reconstruction", "entropy", "alignment"]
        assert figure.get_supylabel() == "nats per item"
        assert figure.get_supxlabel() == "epoch"

    def test_lines_are_the_columns_and_validation_skips_what_is_missing(self):
        value, reconstruction, *_ = plots.learning_curves(EPOCHS).axes
        training, validation = value.get_lines()
        assert training.get_xydata().tolist() == [[1, -9], [2, -6], [3, -5]]
        assert validation.get_xydata().tolist() == [[1, -9.5], [3, -5.5]]
        assert len(reconstruction.get_lines()) == 1

    def test_a_history_is_drawn_like_its_table(self):
        history = History(EPOCHS.drop(columns="valid_value").to_dict("records"))
        figure = rendered(history.plot())
        assert titles(figure) == titles(plots.learning_curves(EPOCHS))
        assert figure.legends == []

    def test_penalties_are_not_called_nats(self):
        table = EPOCHS.assign(penalty=-1.0)
        found = titles(rendered(plots.learning_curves(table)))
        assert found[0] == "value (not nats)" and found[-1] == "penalty (not nats)"
        assert "entropy" in found

    def test_histories_by_name_have_panels_on_one_scale(self):
        lower = EPOCHS.assign(value=EPOCHS["value"] - 100)
        whole = {
            "high": EPOCHS,
            "low": lower,
            "a $b$": History(EPOCHS.to_dict("records")),
        }
        figure = rendered(plots.learning_curves(whole))
        assert titles(figure) == ["high", "low", r"a \$b\$"]
        low, high = figure.axes[0].get_ylim()
        assert low < -109 and -5 < high
        assert {axes.get_ylim() for axes in figure.axes} == {(low, high)}
        assert len(figure.legends) == 1

    def test_one_epoch_is_enough(self):
        axes = rendered(plots.learning_curves(EPOCHS[:1])).axes[0]
        assert 1 in axes.get_xticks()


class TestLatentMap:
    def test_points_are_the_projection_on_the_principal_axes(self):
        z = torch.randn(50, 5) * torch.tensor([1.0, 3.0, 0.1, 2.0, 0.5])
        figure = rendered(plots.latent_map(z))
        points = figure.axes[0].collections[0].get_offsets()
        centred = z.double().numpy() - z.double().numpy().mean(0)
        variance = np.linalg.eigvalsh(np.cov(centred.T))[::-1]
        np.testing.assert_allclose(np.cov(points.T), np.diag(variance[:2]), atol=1e-6)
        share = f"({variance[0] / variance.sum():.0%})"
        assert figure.axes[0].get_xlabel() == f"principal axis 1 {share}"

    def test_two_dimensions_are_drawn_as_they_are(self):
        z = np.random.default_rng(0).normal(size=(9, 2))
        figure = rendered(plots.latent_map(z))
        np.testing.assert_allclose(figure.axes[0].collections[0].get_offsets(), z)
        assert figure.axes[0].get_ylabel() == "z, dimension 1"

    @pytest.mark.parametrize("classes", [3, 12, 30])
    def test_classes_have_a_legend(self, classes):
        labels = torch.arange(90) % classes
        figure = rendered(plots.latent_map(torch.randn(90, 4), labels))
        (legend,) = figure.legends
        assert [t.get_text() for t in legend.get_texts()] == [*map(str, range(classes))]
        assert len(figure.axes[0].texts) == (classes if classes <= 10 else 0)

    def test_names_may_be_strings_and_many_numbers_get_a_colour_bar(self):
        z = torch.randn(40, 3)
        figure = rendered(plots.latent_map(z, ["cat", "dog"] * 20))
        assert figure.legends[0].get_texts()[0].get_text() == "cat"
        assert len(rendered(plots.latent_map(z, torch.randn(40))).axes) == 2

    def test_ellipses_have_the_area_and_the_tilt_of_the_projected_covariance(self):
        rng = np.random.default_rng(0)
        z, std = rng.normal(size=(30, 4)), rng.uniform(0.1, 1.0, size=(30, 4))
        figure = rendered(plots.latent_map(z, std=std, ellipses=7))
        points, ellipses = figure.axes[0].collections
        assert len(ellipses.get_offsets()) == 7
        axes = np.linalg.svd(z - z.mean(0))[2][:2]
        covariance = axes @ np.diag(std[0] ** 2) @ axes.T
        wide, high = ellipses.get_widths()[0] / 2, ellipses.get_heights()[0] / 2
        angle = np.radians(ellipses.get_angles()[0])
        turn = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        radii = turn @ np.diag([wide**2, high**2]) @ np.transpose(turn)
        expected = -2 * np.log(0.1) * covariance
        np.testing.assert_allclose(np.linalg.det(radii), np.linalg.det(expected))
        np.testing.assert_allclose(np.abs(radii), np.abs(expected))
        assert "90 %" in figure.axes[0].get_title(loc="right")

    def test_maps_stand_side_by_side_under_their_names(self):
        one, two = np.random.default_rng(0).normal(size=(2, 30, 2))
        labels = np.arange(30) % 3
        figure = rendered(latent_maps({"one": one, "two": torch.tensor(two)}, labels))
        assert [panel.get_title() for panel in figure.axes] == ["one", "two"]
        for panel, z in zip(figure.axes, (one, two), strict=True):
            np.testing.assert_allclose(panel.collections[0].get_offsets(), z)
            assert [t.get_text() for t in panel.texts] == ["0", "1", "2"]
            assert not len(panel.get_xticks())

    def test_maps_share_a_legend_where_names_are_not_written(self):
        z, short = np.random.default_rng(0).normal(size=(30, 2)), np.arange(30) % 3
        maps = {"one": z, "two": z}
        (legend,) = rendered(latent_maps(maps, np.array(["cat", "dog"] * 15))).legends
        assert [t.get_text() for t in legend.get_texts()] == ["cat", "dog"]
        assert not rendered(latent_maps(maps, short)).legends
        assert not rendered(latent_maps(maps)).legends


def canvas(figure: Figure) -> np.ndarray:
    return np.asarray(figure.axes[0].images[0].get_array())


class TestGrid:
    def test_images_stand_in_rows_and_columns_beside_what_they_are_made_of(self):
        x, left, above = (torch.rand(*n, 1, 8, 8) for n in ((2, 3), (2,), (3,)))
        options = {"left": left, "above": above}
        figure = rendered(plots.grid(x, "ab", [0.5, 1.25, 2], **options))
        drawn = canvas(figure)
        corners = {  # each image has 8 pixels, and a gap of 1
            (0, 9): above[0],
            (0, 27): above[2],
            (9, 0): left[0],
            (18, 0): left[1],
            (9, 9): x[0, 0],
            (18, 9): x[1, 0],
            (9, 27): x[0, 2],
        }
        for (i, j), image in corners.items():
            np.testing.assert_allclose(drawn[i : i + 8, j : j + 8, 0], image[0])
        assert (drawn[:8, :8] == 1).all()
        panel = figure.axes[0]
        names = [t.get_text() for t in panel.get_xticklabels()]
        assert names == ["", "0.5", "1.25", "2"]
        assert [t.get_text() for t in panel.get_yticklabels()] == ["", "a", "b"]
        assert len(panel.get_lines()) == 2

    @pytest.mark.parametrize("shape", [(1, 3), (3, 1), (1, 1)])
    def test_one_row_and_one_column_are_enough(self, shape):
        x, rows, columns = torch.rand(*shape, 3, 8, 8), range(shape[0]), range(shape[1])
        figure = rendered(plots.grid(x, rows, columns))
        assert canvas(figure)[:8, :8].shape == (8, 8, 3)
        assert len(figure.axes[0].get_yticklabels()) == shape[0]

    @pytest.mark.parametrize("event", [(9,), (2, 9)])
    def test_series_are_lines_a_line_for_each_channel(self, event):
        x, left = (
            np.random.default_rng(0).normal(size=(2, 3, *event)),
            np.ones((2, *event)),
        )
        figure = rendered(plots.grid(x, ["first", "second"], range(3), left=left))
        panels = np.reshape(figure.axes, (2, 4))
        lines = panels[1, 3].get_lines()
        np.testing.assert_allclose(
            [line.get_ydata() for line in lines], x[1, 2].reshape(-1, 9)
        )
        assert {line.get_color() for line in panels[0, 0].get_lines()} == {"#333333"}
        assert [axes.get_ylabel() for axes in panels[:, 0]] == ["first", "second"]
        assert [axes.get_title() for axes in panels[0]] == ["", "0", "1", "2"]


test_what_is_no_grid_is_refused = refusals(
    (lambda: plots.grid(torch.rand(3, 4)), ValueError, "images .channel"),
    (lambda: plots.grid(torch.rand(3, 4, 2, 8, 8)), ValueError, "1 or 3 channels"),
    (lambda: plots.grid(torch.rand(2, 3, 5), "abc"), ValueError, "the 2 rows"),
    (
        lambda: plots.grid(torch.rand(2, 3, 5), left=torch.rand(3, 5)),
        ValueError,
        "items left of shape",
    ),
    (lambda: plots.grid(np.full((2, 3, 5), np.nan)), ValueError, "finite"),
    (lambda: plots.grid(np.ones((20, 9, 5))), ValueError, "panels"),
)


class TestImages:
    def test_every_pixel_is_on_the_canvas(self):
        x = torch.rand(7, 1, 8, 8)
        drawn = canvas(rendered(plots.images(x, rows=2)))
        assert drawn.shape == (2 * 8 + 1, 4 * 8 + 3, 3)
        np.testing.assert_allclose(drawn[:8, :8, 0], x[0, 0])
        np.testing.assert_allclose(drawn[9:17, 18:26, 2], x[6, 0])
        assert (drawn[9:17, 27:] == 1).all()

    def test_bytes_and_colours_are_drawn_as_well(self):
        x = torch.randint(0, 256, (3, 3, 8, 8), dtype=torch.uint8)
        drawn = canvas(rendered(plots.images(x)))
        expected = x[0].permute(1, 2, 0) / 255
        np.testing.assert_allclose(drawn[:8, :8], expected, rtol=1e-6)

    def test_absent_views_are_grey(self):
        x = np.zeros((2, 2, 1, 8, 8))
        x[1, 1] = np.nan
        drawn = canvas(rendered(plots.views(x)))
        assert set(np.unique(drawn)) == {0.0, 0.85, 1.0}

    def test_titles_stand_above_images_or_views(self):
        x = torch.rand(4, 1, 8, 8)
        figure = rendered(plots.images(x, titles=torch.tensor([3, 1, 4, 1])))
        assert texts(figure) == ["3", "1", "4", "1"]
        pairs = torch.rand(4, 2, 1, 8, 8)
        figure = rendered(plots.images(pairs, rows=2, titles=["a", "b"]))
        names = [t.get_text() for t in figure.axes[0].get_xticklabels()]
        assert names == ["a", "b", "a", "b"]
        # An item is two images of 8 with a gap of 1, and 3 before the next item.
        np.testing.assert_allclose(canvas(figure)[9:17, 29:37, 0], pairs[3, 1, 0])

    def test_reconstructions_stand_below_their_images(self):
        x, r = torch.rand(13, 1, 8, 8), torch.rand(13, 1, 8, 8)
        figure = rendered(plots.reconstructions(x, r))
        names = [t.get_text() for t in figure.axes[0].get_yticklabels()]
        assert names == ["x", "E[x | z]"] * 2
        np.testing.assert_allclose(canvas(figure)[9:17, :8, 0], r[0, 0])

    def test_views_stand_below_one_another(self):
        x = torch.rand(3, 4, 3, 8, 8)
        figure = rendered(plots.views(x))
        names = [t.get_text() for t in figure.axes[0].get_yticklabels()]
        assert names == ["view 1", "view 2", "view 3", "view 4"]
        drawn = canvas(figure)
        np.testing.assert_allclose(drawn[27:35, 18:26], x[2, 3].permute(1, 2, 0))


class TestTables:
    def test_each_score_has_a_panel_and_the_best_is_filled(self):
        figure = rendered(plots.comparison(SCORES))
        assert titles(figure) == ["linear probe", "few-label probe"]
        names = [t.get_text() for t in figure.axes[0].get_yticklabels()]
        assert names == ["raw pixels", "SimVAE", "VAE"]
        assert texts(figure) == [".930", ".970", ".950"]
        dots = figure.axes[0].collections[-1]
        assert dots.get_offsets().data[:, 0].tolist() == [0.93, 0.97, 0.95]
        white = (dots.get_facecolors() == 1.0).all(1)
        assert white.tolist() == [True, False, True]

    def test_other_columns_are_drawn_on_request(self):
        figure = rendered(plots.comparison(SCORES, ["effective_rank"]))
        assert titles(figure) == ["effective rank"]
        assert texts(figure)[0] == "20.500"

    def test_of_distances_and_times_the_least_is_filled(self):
        for name in ("view_distance", "uniformity", "seconds"):
            table = pd.DataFrame({name: [2.0, 1.0, np.nan]}, list("abc"))
            figure = rendered(plots.comparison(table, [name]))
            faces = figure.axes[0].collections[-1].get_facecolors()
            assert (faces == 1.0).all(1).tolist()[:2] == [True, False]

    def test_terms_are_written_in_nats(self):
        figure = rendered(plots.terms(SCORES))
        assert texts(figure) == ["–", "–", "−230.10", "11.20", "−250.60", "−14.00"]
        assert "nats per item" in figure.get_supxlabel()
        shades = np.asarray(figure.axes[0].images[0].get_array())
        assert shades[1, 0].sum() < shades[2, 0].sum()  # the higher, the darker

    def test_the_matrix_has_values_over_errors_and_the_better_is_darker(self):
        table = pd.DataFrame(
            {
                "log_det": [-0.7123, 3.861, np.nan],
                "log_det_se": [0.213, 0.0317, np.nan],
                "uniformity": [-0.4, -2.9, -1.0],
                "effective_rank": [9.0, 9.5, 0.0],
                "effective_rank_se": [0.1, 12.0, 0.0],
            },
            index=["SimVAE", "PCA-10", "raw pixels"],
        )
        figure = rendered(plots.matrix(table))
        assert texts(figure) == [
            *["−0.7\n± 0.2", "9.0\n± 0.1", "−0.40"],
            *["3.86\n± 0.03", "10\n± 12", "−2.90"],
            *["–", "0.00", "−1.00"],
        ]
        shades = np.asarray(figure.axes[0].images[0].get_array()).sum(-1)
        assert shades[1, 0] < shades[0, 0]
        assert shades[1, 2] < shades[2, 2] < shades[0, 2]  # less is better
        assert "standard error" in figure.get_supxlabel().replace("\n", " ")
        assert len(texts(rendered(plots.matrix(table, ["uniformity"])))) == 3

    def test_a_comparison_is_drawn_as_its_tables(self):
        row = {"terms": {"entropy": 2.0}, "scores": {"knn": 0.9}, "matrix": {}}
        row["matrix"]["log_det"] = 1.0
        found = ps.Comparison("digits", 0, {"VAE": row, "SimVAE": row})
        for draw, name in (("comparison", "table"), ("matrix", "matrix")):
            figures = [
                rendered(getattr(plots, draw)(part))
                for part in (found, getattr(found, name))
            ]
            assert texts(figures[0]) == texts(figures[1]) != []
        assert texts(rendered(plots.terms(found))) == ["2.00"] * 2

    def test_one_method_is_enough(self):
        rendered(plots.matrix(SCORES[1:2].rename(columns={"entropy": "log_det"})))
        rendered(plots.terms(SCORES[1:2]))
        rendered(plots.comparison(SCORES[1:2]))


def steps(panel: Axes) -> list[np.ndarray]:
    """The values of what is drawn in steps: band, mean and counts."""
    return [patch.get_data().values for patch in panel.patches]


def binomial_band(panel: Axes, level: float) -> tuple[float, float]:
    points = panel.collections[0].get_paths()[0].vertices
    at = points[np.isclose(points[:, 0], level), 1]
    return at.min(), at.max()


class TestRanks:
    def test_steps_are_the_counts_over_the_band_of_a_uniform(self):
        ranks = Ranks(np.repeat([0, 7, 99], [10, 20, 70]), 99)
        figure = rendered(plots.ranks(ranks, bins=5))
        high, mean, counts = steps(figure.axes[0])
        assert counts.tolist() == [30, 0, 0, 0, 70]
        np.testing.assert_allclose(mean, 20.0)
        low = figure.axes[0].patches[0].get_data().baseline
        inside = stats.binom(100, 0.2)
        assert (inside.cdf(high) - inside.cdf(low - 1) >= 0.99).all()
        assert (inside.cdf(high - 1) - inside.cdf(low) < 0.99).all()
        assert figure.axes[0].get_ylim()[1] > 70
        assert figure.get_supxlabel().startswith("rank among 99 draws")

    def test_bins_that_do_not_divide_expect_what_they_hold(self):
        _, mean, counts = steps(plots.ranks(Ranks(np.arange(100), 99), bins=7).axes[0])
        np.testing.assert_allclose(mean, counts)

    def test_views_and_dimensions_have_a_panel_each_on_one_scale(self):
        values = np.random.default_rng(0).integers(0, 10, (50, 2, 3))
        values[:, 1, 0] = 4
        figure = rendered(plots.ranks(Ranks(values, 9)))
        assert titles(figure) == ["0, 0", "0, 1", "0, 2", "1, 0", "1, 1", "1, 2"]
        tops = [axes.get_ylim()[1] for axes in figure.axes]
        np.testing.assert_allclose(tops, 55.0)

    def test_expected_coverage_is_the_share_of_ranks_below_each_level(self):
        ranks = Ranks(np.repeat([0, 7, 9], [10, 20, 70]), 9)
        figure = rendered(plots.expected_coverage({"z": ranks}))
        curve = figure.axes[0].lines[1]
        np.testing.assert_allclose(curve.get_xdata(), np.arange(11) / 10)
        expected = [0] + 7 * [0.1] + 2 * [0.3] + [1]
        np.testing.assert_allclose(curve.get_ydata(), expected)
        low, high = binomial_band(figure.axes[0], level=0.5)
        inside = stats.binom(100, 0.5)
        assert inside.cdf(round(100 * high)) - inside.cdf(round(100 * low) - 1) >= 0.99

    def test_axes_at_hand_are_drawn_into(self):
        figure = Figure(layout="constrained")
        left, right = figure.subplots(1, 2)
        assert plots.ranks(Ranks(np.arange(100), 99), ax=right) is figure
        rendered(figure)
        assert not left.patches and right.get_ylabel() == "count"


def test_closing_frees_what_figures_hold():
    figures = [plots.terms(SCORES), plots.comparison(SCORES)]
    plots.close(figures)
    assert [figure.axes for figure in figures] == [[], []]


def series(
    views: int = 2, items: int = 3, draws: int = 400
) -> dict[str, xarray.Dataset]:
    """Numbers of a standard normal, of which the model draws as many of its own."""
    random = np.random.default_rng(0)
    dims = "item", "view", "time"
    seen = random.normal(size=(3, views, 50))
    seen[0, 0] = np.nan  # an absent view
    seen[1, 0, :10] = 9.0
    new = random.normal(size=(1, draws, 3, views, 50))
    place = {"item": [4, 7, 9]}
    return {
        "observed_data": xarray.Dataset({"x": (dims, seen)}, place),
        "posterior_predictive": xarray.Dataset(
            {"x": (("chain", "draw", *dims), new)}, place
        ),
    }


@pytest.mark.parametrize("turned", [False, True])
def test_channels_of_a_series_are_lines_and_panels_of_their_own(turned):
    """Whether it is (time, channel) or (channel, time)."""
    t = np.linspace(0, 6, 30)
    x = np.stack([np.sin(t), 3 + np.cos(t)], 1)
    shown = x.T if turned else x
    figure = rendered(plots.grid(np.broadcast_to(shown, (2, 3, *shown.shape))))
    drawn = [line.get_ydata() for line in figure.axes[0].lines]
    np.testing.assert_allclose(drawn, x.T)
    dims = ("item", "channel", "time") if turned else ("item", "time", "channel")
    draws = np.random.default_rng(0).normal(shown, 0.1, (1, 50, 1, *shown.shape))
    found = {
        "observed_data": xarray.Dataset({"x": (dims, shown[None])}, {"item": [3]}),
        "posterior_predictive": xarray.Dataset(
            {"x": (("chain", "draw", *dims), draws)}
        ),
    }
    figure = rendered(plots.predictive_intervals(found))
    titles = [panel.get_title() for panel in figure.axes]
    assert titles == ["item 3, channel 0: 1.00", "item 3, channel 1: 1.00"]
    dots = [panel.lines[0].get_ydata() for panel in figure.axes]
    np.testing.assert_allclose(dots, x.T)


def test_of_several_modalities_each_view_has_a_panel_and_each_channel():
    joint = ps.Joint(
        ps.priors.Gaussian(2, scale=0.4),
        (ps.likelihoods.Gaussian(0.3), ps.likelihoods.Gaussian(0.3)),
        ps.nn.PerModality([ps.nn.MLPEncoder(event, 2) for event in ((3,), (6, 2))]),
        ps.nn.PerModality([ps.nn.MLPDecoder(2, event) for event in ((3,), (6, 2))]),
    )
    x = torch.randn(3, 4, 3)
    found = ps.to_arviz(joint, ps.data.Groups((x, torch.randn(3, 1, 6, 2))), draws=40)
    panels = plots.predictive_intervals(found, items=1, variable="x_0").axes
    assert [panel.get_title()[:14] for panel in panels] == [
        f"item 0, view {i}" for i in range(4)
    ]
    for view, panel in zip(x[0], panels, strict=True):
        dots = np.concatenate([line.get_ydata() for line in panel.lines])
        np.testing.assert_allclose(np.sort(dots), np.sort(view))
    panels = plots.predictive_intervals(found, items=1, variable="x_1").axes
    assert [panel.get_title()[:17] for panel in panels] == [
        f"item 0, channel {i}" for i in range(2)
    ]


def test_predictive_intervals_hold_their_share_of_the_numbers():
    found = series()
    figure = plots.predictive_intervals(found)
    titles = [panel.get_title() for panel in figure.axes]
    assert titles[0] == "item 4, view 0: absent" and len(titles) == 6 + 2
    seen, new = (
        found[k]["x"].values for k in ("observed_data", "posterior_predictive")
    )
    low, high = np.quantile(new[0, :, 1, 0], (0.05, 0.95), axis=0)
    inside = ((low <= seen[1, 0]) & (seen[1, 0] <= high)).mean()
    assert titles[2] == f"item 7, view 0: {inside:.2f}" and inside < 0.8
    orange = [line for line in figure.axes[2].lines if line.get_color() == ORANGE]
    assert len(orange[0].get_ydata()) == round(50 * (1 - inside))
    others = [
        float(title.split(": ")[1])
        for title in titles[1:6]
        if "item 7, view 0" not in title
    ]
    assert abs(np.mean(others) - 0.9) < 5 * (0.09 / 200) ** 0.5
    one = series(views=1)
    assert len(plots.predictive_intervals(one, items=2).axes) == 2
    for wrong in ({"observed_data": one["observed_data"]}, series(draws=19)):
        with pytest.raises(ValueError, match="to_arviz"):
            plots.predictive_intervals(wrong)


def test_hyper_parameters_show_prior_and_posterior_by_name():
    prior = dist.LogNormal(-1.0, 1.0)
    objective = ps.limits.SimCLR(torch.nn.Identity(), temperature=prior)
    idata = ps.to_arviz(objective, torch.zeros(3, 2), draws=500)
    (panel,) = plots.hyper_parameters(idata).axes
    median = float(np.median(idata.posterior["temperature"]))
    assert panel.get_title().startswith(f"temperature = {median:.3g}")
    assert panel.get_xscale() == "log"
    assert [patch.get_label() for patch in panel.patches] == ["prior", "posterior"]


@pytest.mark.parametrize("sigma", [0.02, 0.2, 0.5, 0.8, 1.5])
def test_hyper_parameters_have_at_least_two_numbers_on_their_axis(sigma):
    prior = np.exp(-2.0 + sigma * np.random.default_rng(0).normal(size=(1, 500)))
    data = xarray.Dataset({"scale": (("chain", "draw"), prior)})
    figure = plots.hyper_parameters({"posterior": data, "prior": data})
    figure.canvas.draw()
    (panel,) = figure.axes
    (low, high), axis = panel.get_xlim(), panel.xaxis
    pairs = zip(axis.get_majorticklocs(), axis.get_majorticklabels(), strict=True)
    shown = [label for at, label in pairs if low <= at <= high and label.get_text()]
    assert 2 <= len(shown) <= 7


def drawn(*dims: str, size: tuple[int, ...] = ()) -> dict[str, xarray.Dataset]:
    """Draws of a scale whose numbers, e^(0.1 n), are all others."""
    centres = np.exp(0.1 * np.arange(math.prod(size))).reshape(size)
    noise = np.random.default_rng(0).normal(size=(1, 500, *size))
    values = centres * np.exp(1e-3 * noise)
    labels = {dim: np.arange(n) for dim, n in zip(dims, size, strict=True)}
    group = xarray.Dataset({"scale": (("chain", "draw", *dims), values)}, labels)
    return {"posterior": group, "prior": group, "medians": np.median(values[0], 0)}


@pytest.mark.parametrize(
    ("dims", "size"), [(["dim"], (3,)), (["scale_dim"], (2,)), (["a", "b"], (2, 3))]
)
def test_each_number_of_a_hyper_parameter_has_a_panel(dims, size):
    """They are not pooled: each title has the median of its own draws."""
    found = drawn(*dims, size=size)
    titles = [p.get_title() for p in plots.hyper_parameters(found).axes]
    places = [", ".join(map(str, place)) for place in np.ndindex(*size)]
    for title, place, median in zip(titles, places, found["medians"].flat, strict=True):
        assert title.startswith(f"scale[{place}] = {median:.3g}  [")
    part = {name: found[name].isel({dims[-1]: [1]}) for name in ("posterior", "prior")}
    last = [p.get_title() for p in plots.hyper_parameters(part).axes]
    assert last == titles[1 :: size[-1]]  # under the same names


def test_names_that_are_cut_alike_keep_their_panels():
    found = {name: drawn()[name] for name in ("posterior", "prior")}
    names = {"scale": "a_long_name_of_one_scale", "again": "a_long_name_of_the_scale"}
    found = {k: x.assign(again=x["scale"]).rename(names) for k, x in found.items()}
    assert len(plots.hyper_parameters(found).axes) == 2


DOLLARS = ["$10k-$20k", "a$$b", "$x_1$"]


@pytest.mark.parametrize(
    "draw",
    [
        lambda: plots.latent_map(np.eye(3, 2), DOLLARS),
        lambda: latent_maps(dict.fromkeys(DOLLARS, np.eye(3, 2))),
        lambda: plots.comparison(pd.DataFrame({"knn": [0.1, 0.2, 0.3]}, DOLLARS)),
        lambda: plots.comparison(pd.DataFrame(np.eye(3), columns=DOLLARS), DOLLARS),
        lambda: plots.terms(pd.DataFrame({"value": [0.1, 0.2, 0.3]}, DOLLARS)),
        lambda: plots.matrix(pd.DataFrame(np.eye(3), columns=DOLLARS), DOLLARS),
        lambda: plots.images(torch.zeros(3, 1, 64, 64), titles=DOLLARS),
    ],
    ids=["classes", "maps", "methods", "scores", "rows", "columns", "titles"],
)
def test_names_with_dollars_are_no_formulae(draw):
    """Matplotlib writes a text without an unescaped dollar as it is."""
    figure = draw()
    figure.savefig(io.BytesIO())
    texts = [text.get_text() for text in figure.findobj(Text)]
    for name in DOLLARS:
        assert name.replace("$", r"\$").replace("_", " ") in [
            text.replace("_", " ") for text in texts
        ]


RNG = np.random.default_rng(0)
CLASSES = [f"a class with a long name, number {i}" for i in range(25)]
METHODS = [f"a method with a long name {i}" for i in range(30)]
WIDE = pd.DataFrame(
    {"knn": RNG.random(30), "knn_se": 0.3, "entropy": RNG.normal(size=30) * 1e9},
    index=METHODS,
)
WIDE.iloc[:3] = [[math.inf, 0.1, -math.inf], [math.nan] * 3, [0.5, math.inf, 1e15]]
LONG = pd.DataFrame({"epoch": range(2000), "value": np.arange(2000.0)})
LONG.loc[7, "value"] = math.inf
EDGES = {
    "one dimension": lambda: plots.latent_map(
        RNG.random((50, 1)), np.arange(50) % 3, np.full((50, 1), 0.1)
    ),
    "one item": lambda: plots.latent_map(RNG.random((1, 5))),
    "equal items": lambda: plots.latent_map(np.ones((9, 3)), np.arange(9) % 3),
    "25 long names": lambda: plots.latent_map(RNG.random((50, 2)), CLASSES * 2),
    "25 long names, maps": lambda: latent_maps(
        dict.fromkeys(METHODS[:6], RNG.random((50, 2))), CLASSES * 2
    ),
    "30 methods": lambda: plots.comparison(WIDE, ["knn"]),
    "30 methods, terms": lambda: plots.terms(WIDE, ["entropy", "knn"]),
    "30 methods, matrix": lambda: plots.matrix(WIDE, ["entropy", "knn"]),
    "one method": lambda: plots.comparison(WIDE.iloc[3:4], ["knn"]),
    "2,000 epochs": lambda: plots.learning_curves(LONG),
    "one epoch": lambda: plots.learning_curves(LONG[1:2]),
    "long titles": lambda: plots.images(np.zeros((2, 1, 8, 8)), titles=CLASSES[:2]),
    "series": lambda: plots.grid(
        np.full((4, 6, 24), 1.8) * np.linspace(-2.1, 1, 24),
        rows=[f"class {k}" for k in range(4)],
    ),
    "TARP": lambda: plots.expected_coverage({"z": Ranks(np.arange(100), 99)}),
    "25 dimensions": lambda: plots.ranks(Ranks(np.arange(100).reshape(4, 1, 25), 99)),
}


@pytest.mark.parametrize("name", EDGES)
def test_nothing_is_clipped_at_the_edges(name):
    """Every text is inside the figure, and no tick label touches the next."""
    figure = EDGES[name]()
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    width, height = figure.get_size_inches() * figure.dpi
    texts = [*figure.texts, *(t for x in figure.legends for t in x.get_texts())]
    for panel in figure.axes:
        texts += [*panel.texts, panel.title, panel.xaxis.label, panel.yaxis.label]
    for text in texts:
        box = text.get_window_extent(renderer)
        inside = (box.x0, box.y0, width - box.x1, height - box.y1)
        assert not box.width or min(inside) > -1, (text.get_text(), inside)
    for panel in figure.axes:
        ticks = [t.get_window_extent(renderer) for t in panel.get_yticklabels()]
        ticks = sorted((t.y0, t.y1) for t in ticks if 0 < t.y0 and t.y1 < height)
        assert all(a[1] <= b[0] + 1 for a, b in itertools.pairwise(ticks))
    for legend in figure.legends:
        boxes = [panel.get_window_extent(renderer) for panel in figure.axes]
        assert not any(legend.get_window_extent(renderer).overlaps(b) for b in boxes)


def test_items_without_a_label_are_grey_and_said():
    xy, labels = np.arange(8.0).reshape(4, 2), ["a", None, "b", math.nan]
    figure = rendered(plots.latent_map(xy, labels))
    (legend,) = figure.legends
    assert [t.get_text() for t in legend.get_texts()] == ["a", "b", "no label"]
    grey, *_ = figure.axes[0].collections
    np.testing.assert_array_equal(grey.get_offsets(), xy[[1, 3]])


def test_no_class_among_named_ones_is_grey():
    labels = torch.tensor([0, -1, 1, -1])
    xy = np.arange(8.0).reshape(4, 2)
    split = ps.data.Split(torch.zeros(4, 2), labels, classes=("cat", "dog"))
    figure = rendered(plots.latent_map(xy, split.labels))
    (legend,) = figure.legends
    assert [t.get_text() for t in legend.get_texts()] == ["0", "1", "no label"]
    grey, *_ = figure.axes[0].collections
    np.testing.assert_array_equal(grey.get_offsets(), xy[[1, 3]])
    unnamed = rendered(plots.latent_map(xy, labels)).legends[0]
    assert [t.get_text() for t in unnamed.get_texts()] == ["-1", "0", "1"]


def test_errors_of_any_size_are_written_to_their_first_digit():
    random = np.random.default_rng(0)
    errors = 10 ** random.uniform(-8, 6, 60)
    values = errors * np.where(np.arange(60) % 9, 10 ** random.uniform(-2, 6, 60), 0)
    table = pd.DataFrame({"log_det": values, "log_det_se": errors})
    for text, value, error in zip(
        texts(plots.matrix(table)), values, errors, strict=True
    ):
        shown, said = (
            float(part.replace(",", "").replace("−", "-"))
            for part in text.split("\n± ")
        )
        unit = 10.0 ** math.floor(math.log10(float(f"{error:.0e}")) + 1e-9)
        assert said > 0 and abs(said - error) <= 0.501 * unit
        assert abs(shown - value) <= 0.501 * unit


def test_numbers_that_cannot_be_placed_are_written():
    panel = rendered(plots.comparison(WIDE.iloc[:4], ["knn"])).axes[0]
    written = [text.get_text() for text in panel.texts]
    assert written[:3] == ["∞", "–", ".500"]
    low, high = panel.get_xlim()
    value = WIDE["knn"].iloc[3]
    assert low < value - 0.3 and value + 0.3 < high


def test_pixels_beyond_black_and_white_are_said():
    (panel,) = rendered(plots.images(2 * X + 3)).axes
    assert panel.get_xlabel() == "from 3 to 3, drawn from 0 to 1"
    assert not rendered(plots.images(X + 1.01)).axes[0].get_xlabel()


Z, X = torch.arange(120.0).view(40, 3), torch.zeros(4, 1, 8, 8)
XY, AXES = np.zeros((9, 2)), ("chain", "draw", "item")
GROUP = xarray.Dataset({"z": (AXES, np.zeros((1, 4, 2)))})
NOT_RANDOM = {"posterior": GROUP, "prior": GROUP}
NANS = [{"epoch": i, "step": i, "value": math.nan, "entropy": math.nan} for i in (1, 2)]
ZEROS = [{"epoch": 3, "step": 3, "value": 0.0, "entropy": math.nan}]
MANY, TEN = Ranks(np.zeros((9, 60), int), 9), Ranks(np.arange(10), 9)
MIXED = {"a": TEN, "b": Ranks(np.arange(9), 9)}
test_what_cannot_be_drawn_is_refused = refusals(
    *(
        (call, ValueError, message)
        for call, message in (
            (lambda: plots.learning_curves(EPOCHS[:0]), "ps.fit"),
            (lambda: plots.learning_curves({}), "got none without"),
            (lambda: plots.learning_curves({"a": EPOCHS[:0]}), "got a without"),
            (lambda: History().plot(), "0 epochs"),
            (lambda: History([{"epoch": 1, "step": 2}]).plot(), "1 epoch and step"),
            (lambda: History(NANS).plot(), "NaN in value, entropy, got only NaN in 2"),
            (lambda: History(NANS + ZEROS).plot(), "got only 0 or NaN in 3 epochs"),
            (lambda: plots.latent_map(Z[:, 0]), "n, dim"),
            (lambda: plots.latent_map(Z, std=-Z), "none negative"),
            (lambda: plots.latent_map(Z, std=Z * math.nan), "finite"),
            (lambda: plots.latent_map(Z, [math.inf, *range(39)]), "finite"),
            (lambda: plots.images(X + math.inf), "infinity in 256"),
            (lambda: plots.ranks(Ranks(np.arange(10), 8), bins=3), "from 0 to 9"),
            (lambda: plots.latent_map(Z * math.nan), "finite"),
            (lambda: plots.latent_map(Z, torch.arange(39)), "one label for each"),
            (lambda: plots.latent_map(Z, list(map(str, range(40)))), "at most 30"),
            (lambda: plots.latent_map(Z, std=Z[:, :2]), "return_std"),
            (lambda: plots.images(X[0, 0]), "channel, height, width"),
            (lambda: plots.images(X[:0]), "channel, height, width"),
            (lambda: plots.images(torch.zeros(4, 2, 8, 8)), "channel, height, width"),
            (lambda: plots.images(torch.zeros(4, 64)), "channel, height, width"),
            (lambda: plots.images(torch.zeros(1001, 1, 2, 2)), r"x\[:100\]"),
            (lambda: plots.images(X, titles="abc"), "4 images, got 3"),
            (lambda: plots.images(X, rows=0), "rows"),
            (lambda: plots.views(X, columns=0), "columns"),
            (lambda: plots.reconstructions(X, X[:3]), "one shape"),
            (lambda: plots.comparison(SCORES, ["linear_probe", "knn"]), "knn"),
            (lambda: plots.terms(SCORES[["linear_probe"]]), "reconstruction"),
            (lambda: plots.matrix(SCORES[["linear_probe"]]), "log_det"),
            (lambda: plots.hyper_parameters(NOT_RANDOM), "Pyro distribution"),
            (lambda: latent_maps({}), "got none"),
            (lambda: latent_maps({"a": XY, "b": XY[:8]}), r"a \(9, 2\), b \(8, 2\)"),
            (lambda: latent_maps({"a": np.zeros((9, 3))}), r"a \(9, 3\)"),
            (lambda: latent_maps({"a": XY * np.nan}), "finite"),
            (lambda: plots.ranks(MANY), "1 to 50 quantities"),
            (lambda: plots.ranks(MANY, ax=Figure().subplots()), "1 to 1 quantities"),
            (lambda: plots.ranks(TEN, bins=11), "1 to 10 bins"),
            (lambda: plots.expected_coverage(MANY), r"ranks \(item,\)"),
            (lambda: plots.expected_coverage(MIXED), r"got shapes.*10.*9"),
        )
    )
)
