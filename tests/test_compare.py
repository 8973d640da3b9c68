"""The comparison measures alike: with unit weights, and never off a loss."""

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
from copy import deepcopy
from functools import partial
from importlib import import_module
from multiprocessing import active_children
from pathlib import Path

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.special import ive
from scipy.stats import poisson
from torch import nn
from torch.testing import assert_close

import probssl as ps
from probssl import recipes
from probssl.compare import own_terms, representation_terms, sampled
from probssl.compare.checks import check, check_data
from probssl.compare.decoding import decoded
from probssl.compare.densities import directions, gaussian, spherical, student
from probssl.compare.fitting import fit_methods
from probssl.compare.table import COLUMNS, MATRIX_COLUMNS, Comparison
from probssl.estimates import estimate

# Behind the function of the same name.
decoding, run = (
    import_module(f"probssl.compare.{name}") for name in ("decoding", "run")
)
pytestmark = pytest.mark.usefixtures("short_decoders")
CPU = torch.device("cpu")
SUMS = ["log_det", "gaussian_kernel", "gaussian_nearest", "student_nearest"]
SPHERE = ["spherical_kernel", "info_nce", "view_distance", "uniformity"]
INFORMATION = ["gaussian_information", "nearest_information"]


@pytest.fixture(scope="module")
def digits() -> ps.data.Dataset:
    digits = ps.data.digits()
    train, test = digits.train.take(300), digits.test.take(150)
    return digits._replace(train=train, test=test)


def two_views(n: int = 200, dim: int = 4, noise: float = 0.4) -> torch.Tensor:
    return torch.randn(n, 1, dim) + noise * torch.randn(n, 2, dim)


class TestTerms:
    def test_sums_are_near_the_information_of_gaussian_views(self, float64):
        prior = ps.priors.Gaussian(2, 0.5)
        terms, found, left_out = representation_terms(prior(2).rsample((1_000,)))
        information = float(prior.mutual_information())
        # E log N(z'; z, 2 s²) + H[z] in closed form, with Var(z) = 1 + s².
        exact = math.log(1.25) - math.log(2 * 0.25)
        assert not left_out and exact < information
        error = found["log_det"].standard_error
        assert abs(found["log_det"].value - exact) < 5 * error
        for name in ("gaussian_nearest", "gaussian_kernel"):
            assert abs(found[name].value - exact) < 5 * error + 0.05  # and their bias
        assert found["gaussian_kernel"].value > found["log_det"].value  # too wide
        for name in INFORMATION:
            entry = found[name]
            assert abs(entry.value - information) < 5 * entry.standard_error + 0.1

    def test_heavy_tails_are_likelier_under_a_heavy_tailed_prior(self, float64):
        for z, sign in [
            (ps.priors.StudentT(3, 0.3)(2).rsample((5_000,)), 1),
            (ps.priors.Gaussian(3, 0.3)(2).rsample((5_000,)), -1),
        ]:
            apart = estimate(sign * (student(z) - gaussian(z)))
            assert apart.value > 5 * apart.standard_error

    def test_the_matrix_does_not_move_when_z_is_rescaled_rotated_or_shifted(
        self, float64
    ):
        z = two_views()
        rotation = torch.linalg.qr(torch.randn(4, 4)).Q
        once = representation_terms(z)
        turned, shifted = (
            representation_terms(moved) for moved in (70 * z @ rotation, 7 * z + 3)
        )
        assert set(once.matrix) == {*SUMS, *SPHERE, *INFORMATION}
        for name, entry in once.matrix.items():
            assert turned.matrix[name] == pytest.approx(entry, rel=1e-6), name
            if name not in SPHERE:
                assert shifted.matrix[name] == pytest.approx(entry, rel=1e-6), name
        for name in ("gaussian_alignment", "student_alignment"):
            fall = once.terms[name].value - turned.terms[name].value
            assert fall == pytest.approx(4 * math.log(70))
        for name in ("gaussian_entropy", "kernel_entropy", "nearest_entropy"):
            rise = turned.terms[name].value - once.terms[name].value
            assert rise == pytest.approx(4 * math.log(70))

    def test_more_views_are_measured_in_their_gauge(self, float64):
        z = torch.randn(300, 1, 3) + 0.4 * torch.randn(300, 3, 3)
        once, moved = (representation_terms(each).matrix for each in (z, 5 * z))
        for name in SUMS:
            assert moved[name] == pytest.approx(once[name], rel=1e-6)

    def test_order_of_items_and_views_does_not_matter(self, float64):
        z = two_views(100)
        once, again = (representation_terms(each).matrix for each in (z, z.flip(0, 1)))
        for name, (value, error) in once.items():
            assert again[name].value == pytest.approx(value, rel=1e-6), name
            if name != "nearest_information":  # it has an error from other parts
                assert again[name].standard_error == pytest.approx(error), name

    def test_what_has_no_density_is_left_out_with_a_reason(self):
        for z, said in [
            (torch.ones(50, 2, 3), "0 of 3 dimensions"),
            (torch.randn(50, 2, 1).expand(-1, -1, 3), "1 of 3 dimensions"),
            (torch.zeros(50, 2, 3), "0 of 3 dimensions"),
            (torch.randn(10, 2, 20), "9 of 20 dimensions"),
        ]:
            found = representation_terms(z)
            assert not set(found.matrix) & set(SUMS)
            assert all(said in found.left_out[name] for name in SUMS)
            every = [*found.terms.values(), *found.matrix.values()]
            assert all(np.isfinite(entry).all() for entry in every)

    def test_on_the_sphere_only_gaussians_are_seen_from_outside(self):
        z = nn.functional.normalize(two_views(), dim=-1)
        found = representation_terms(z)
        assert {"log_det", "spherical_kernel"} <= set(found.matrix)
        assert "lies on a sphere" in found.left_out["gaussian_nearest"]

    def test_views_that_agree_exactly_have_no_scale(self):
        found = representation_terms(torch.randn(50, 1, 3).expand(-1, 2, -1))
        assert "agree exactly" in found.left_out["log_det"]
        assert "agree exactly" in found.left_out["spherical_kernel"]
        assert "infinite" in found.left_out["gaussian_information"]

    @pytest.mark.parametrize("scale", [1e-12, 1e12])
    def test_huge_and_tiny_z_are_measured(self, scale, float64):
        z = two_views(60)
        once, moved = representation_terms(z), representation_terms(scale * z)
        assert moved.matrix.keys() == once.matrix.keys() and not moved.left_out
        for name in (*SUMS, *INFORMATION):
            assert moved.matrix[name] == pytest.approx(once.matrix[name], rel=1e-5)

    @pytest.mark.parametrize(
        ("density", "prior", "known"),
        [
            (student, lambda s: ps.priors.StudentT(None, s, y_scale=math.inf), 5.0),
            (spherical, lambda k: ps.priors.Spherical(None, k), 12.0),
        ],
    )
    def test_fitted_densities_are_those_of_the_prior_at_its_maximum(
        self, density, prior, known, float64
    ):
        z = directions(two_views()) if density is spherical else two_views()
        grid = [known * math.exp(t) for t in torch.linspace(-4, 4, 400).tolist()]
        values = [float(prior(s).double().balanced(z).mean()) for s in grid]
        found, best = density(z), max(values)
        assert best <= float(found.mean()) < best + 1e-3
        low, high = grid[values.index(best) - 1], grid[values.index(best) + 1]
        scale = minimize_scalar(
            lambda s: -float(prior(s).double().balanced(z).mean()), bounds=(low, high)
        ).x
        assert_close(found, prior(scale).double().balanced(z), rtol=0, atol=1e-3)
        assert abs(found.mean() - prior(scale).double().balanced(z).mean()) < 1e-8

    @pytest.mark.parametrize("dim", [3, 10, 64])
    @pytest.mark.parametrize("kappa", [0.0, 1.0])  # times the dimension
    def test_on_the_sphere_it_is_the_information_of_its_views(
        self, kappa, dim, float64
    ):
        """By quadrature over t = z_1·z_2, whose density is a ratio of normalisers."""
        z = ps.priors.Spherical(dim, max(kappa * dim, 1e-6))(2).sample((1_000,))
        t = torch.linspace(-1, 1, 20_001)[1:-1].numpy()

        def log_c(k):  # of a von Mises-Fisher density, up to a constant
            return (dim / 2 - 1) * np.log(k) - np.log(ive(dim / 2 - 1, k)) - k

        def plain():
            if not kappa:
                return 0.0
            k = np.array(kappa * dim)
            ratio = 2 * log_c(k) - log_c(k * np.sqrt(2 + 2 * t))
            flat = (dim - 3) / 2 * np.log1p(-(t**2))
            ratio -= np.log(np.exp(flat + ratio).sum() / np.exp(flat).sum())
            weight = np.exp(flat + ratio)
            return float((weight * ratio).sum() / weight.sum())

        _, found, _ = representation_terms(z)
        value, error = found["spherical_kernel"]
        assert abs(value - plain()) < 5 * error + 0.02  # the least κ of a fit, and bias


def test_absent_views_of_a_sampler_are_no_data(digits):
    def sampler(x: torch.Tensor) -> ps.Batch:
        present = torch.ones(len(x), 2, dtype=torch.bool)
        present[::2, 1] = present[0, 0] = keep
        return ps.Batch(torch.stack([x, x], 1), present=present)

    keep = True
    assert sampled(sampler, digits.test, seed=0).shape[1] == 2
    keep = False
    with pytest.raises(ValueError, match="a Batch whose present lacks"):
        sampled(sampler, digits.test, seed=0)


class TestBounds:
    def test_terms_of_a_bound_carry_unit_weights(self, digits):
        vae = recipes.objective("vae", digits)
        heavy = ps.limits.VAE(vae.joint, beta=50.0)
        views = sampled(recipes.views(digits), digits.test, seed=0)
        found = []
        for objective in (vae, heavy):
            torch.manual_seed(0)
            found.append(own_terms(objective, views))
        assert found[0] == found[1]
        values = [entry.value for entry in found[0].values()]
        assert values[-1] == pytest.approx(sum(values[:3]))

    def test_errors_of_a_bound_are_those_over_items(self, digits):
        vae = recipes.objective("vae", digits)
        views = sampled(recipes.views(digits), digits.test, seed=0)
        found = own_terms(vae, views, particles=64)["reconstruction"]
        each = [own_terms(vae, v[None], 64)["reconstruction"].value for v in views]
        assert found.value == pytest.approx(np.mean(each), rel=1e-2)
        error = np.std(each, ddof=1) / math.sqrt(len(each))
        # of twenty parts: known to 1 / √38 of itself
        assert abs(found.standard_error / error - 1) < 5 / math.sqrt(38)

    def test_flat_content_has_no_evidence_to_list(self, digits):
        joint = recipes.joint(digits, ps.priors.Gaussian(10, 0.2, math.inf))
        views = sampled(recipes.views(digits), digits.test, seed=0)
        assert own_terms(ps.limits.SimVAE(joint), views) == {}


class TestDecoded:
    def test_it_is_below_the_conditional_entropy_and_near(self, monkeypatch):
        monkeypatch.setattr(decoding, "STEPS", 300)
        n, s = 2_000, 0.5
        z = torch.randn(2 * n, 2)
        x = z @ torch.randn(2, 6) + s * torch.randn(2 * n, 6)
        train, test = ps.data.Split(x[:n]), ps.data.Split(x[n:])
        data = ps.data.Dataset(train, test, levels=None, name="linear")
        z = 1e3 * z.double() + 5
        found = decoded(data, z[:n], z[n:], CPU).values
        exact = -3 * math.log(2 * math.pi * math.e * s**2)
        error = float(found.std()) / math.sqrt(n)
        assert exact - 0.2 < float(found.mean()) < exact + 5 * error

    @pytest.mark.parametrize("n", [20, 60, 160])
    def test_few_rows_of_a_table_are_enough(self, n, monkeypatch):
        monkeypatch.setattr(decoding, "STEPS", 300)
        label = torch.arange(n + 500) % 2
        x = torch.randn(n + 500, 4) + 2.0 * label[:, None]
        data = ps.data.arrays(x[:n], label[:n], test=x[n:], test_labels=label[n:])
        z = x.sum(1, keepdim=True).double()  # E[x | z] is linear but for a small bend
        found = decoded(data, z[:n], z[n:], CPU).values.mean()
        inputs = torch.cat([z, torch.ones_like(z)], 1)
        line = torch.linalg.lstsq(inputs[n:], x[n:].double()).solution
        spread = (x[n:] - inputs[n:] @ line).std(0)
        best = -(2 * math.pi * math.e * spread.square()).log().sum() / 2
        marginal = -(2 * math.pi * math.e * x[n:].std(0).square()).log().sum() / 2
        assert (best + marginal) / 2 < found < best + 0.1

    def test_a_collapsed_encoder_leaves_the_marginal(self, digits, monkeypatch):
        monkeypatch.setattr(decoding, "STEPS", 300)
        shapes = len(digits.train.images), len(digits.test.images)
        constant = (torch.full((n, 3), 0.1).double() for n in shapes)
        found = float(decoded(digits, *constant, CPU).values.mean())
        mean = digits.train.images.float().mean(0).clamp(0.01, 0.99)
        x = digits.test.images.float()
        independent = ps.likelihoods.Binomial(16)(mean.logit()).log_prob(x)
        assert found == pytest.approx(float(independent.sum((1, 2, 3)).mean()), rel=0.1)


class TestComparison:
    def test_table_has_a_row_for_each_method_and_baseline(self, digits, tmp_path):
        methods = {name: recipes.objective(name, digits) for name in ("VAE", "SimCLR")}
        found = ps.compare(methods, digits, seconds={"VAE": 3.0}, progress=False)
        rows = ["VAE", "SimCLR", "raw pixels", "PCA-10", "untrained encoder"]
        assert list(found.table.index) == list(found.matrix.index) == rows
        assert found.table["seconds"]["VAE"] == 3
        assert found.table["seconds"].notna().sum() == 1
        assert math.isnan(found.table["elbo"]["SimCLR"])
        assert found.table["log_det"]["VAE"] == found.matrix["log_det"]["VAE"]
        assert found.matrix["decoded"].notna().sum() == 4
        assert found.methods["raw pixels"]["left_out"]["decoded"]
        found.to_json(tmp_path / "comparison.json")
        again = ps.Comparison.from_json(tmp_path / "comparison.json")
        assert again.methods == found.methods and str(again) == str(found)

    def test_every_encoder_is_measured_on_every_prior(self, digits):
        names = ("SphericalSimVAE", "SimCLR", "LogDet")
        methods = {name: recipes.objective(name, digits) for name in names}
        found = ps.compare(methods, digits, baselines=False, progress=False)
        matrix = found.matrix
        assert matrix.notna().all(axis=None)
        listed = {*SUMS, *SPHERE, *INFORMATION, "decoded", "effective_rank"}
        assert {*matrix.columns[::2]} == listed
        content = json.loads(found.to_json())
        for row in content["methods"].values():
            assert set(row["errors"]) >= {*row["terms"], *row["matrix"]}
            assert set(content["marks"]) <= set(row["terms"])
        assert not set(content["marks"]) & set(matrix.columns)
        figure = ps.plots.matrix(matrix)
        assert len(figure.axes[0].texts) == matrix.size / 2
        ps.plots.close([figure])

    def test_gains_over_pca_are_paired_by_their_labels(self, digits):
        pixels = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        found = ps.compare({"linear": pixels}, digits, progress=False)
        scores = {name: row["scores"] for name, row in found.methods.items()}
        errors = {name: row["errors"] for name, row in found.methods.items()}
        gain = scores["linear"]["few_label_probe"] - scores["PCA-10"]["few_label_probe"]
        assert scores["linear"]["few_label_gain"] == pytest.approx(gain)
        assert errors["PCA-10"]["few_label_gain"] == 0
        # What all draws share drops out: less error than of two that are independent.
        apart = [errors[name]["few_label_probe"] for name in ("raw pixels", "PCA-10")]
        assert 0 < errors["raw pixels"]["few_label_gain"] < math.hypot(*apart)

    def test_names_like_those_of_baselines_change_nothing(self, digits):
        pixels = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        once, again = (
            ps.compare({name: pixels}, digits, progress=False).methods
            for name in ("linear", "PCA-start")
        )
        assert again["PCA-start"] == once["linear"]
        assert again["PCA-10"] == once["PCA-10"]

        named = {"raw pixels": pixels, "PCA-10": deepcopy(pixels)}
        found = ps.compare(named, digits, baselines=False, progress=False)
        for name in named:
            assert "decoded" in found.methods[name]["matrix"]
            assert "few_label_gain" not in found.methods[name]["scores"]

    def test_text_fits_a_line_whatever_is_measured(self):
        numbers = dict.fromkeys((*COLUMNS, *MATRIX_COLUMNS), -1234.567)
        errors = dict.fromkeys(MATRIX_COLUMNS, 0.0123)
        row = {"terms": numbers, "scores": {}, "matrix": numbers, "errors": errors}
        text = str(ps.Comparison("digits", 0, {"a method of some name": row}))
        assert max(map(len, text.splitlines())) <= 120
        assert text.count("a method of some name") >= 2

    def test_a_notebook_shows_the_same_cells_as_the_text(self):
        row = {"terms": {"elbo": -12.3456}, "scores": {"knn": 0.5}, "matrix": {}}
        found = ps.Comparison("digits", 0, {"A<B": row | {"errors": {}}})
        html = found._repr_html_()
        assert html.count("<tr>") == 2 and "A&lt;B" in html
        assert "-12.35" in html and "-12.35" in str(found)

    def test_without_methods_or_numbers_it_is_still_shown(self):
        empty = ps.Comparison("digits", 0, {})
        assert repr(empty) == "no methods compared on digits"
        assert empty._repr_html_() and empty.matrix.empty and empty.table.empty
        bare = ps.Comparison("digits", 0, {"A": {"terms": {}, "scores": {}}})
        assert "A" in bare._repr_html_() and isinstance(repr(bare), str)

    def test_old_files_are_read(self, tmp_path):
        row = {"terms": {"log_det": 1.0}, "scores": {"knn": 0.5}, "seconds": 0.0}
        content = {"data": "digits", "seed": 0, "methods": {"SimVAE": row}}
        (tmp_path / "old.json").write_text(json.dumps(content))
        found = ps.Comparison.from_json(tmp_path / "old.json")
        assert "SimVAE" in str(found) and found.matrix.isna().all(axis=None)

    def test_the_random_state_and_the_objectives_are_left_alone(self, digits):
        objective = recipes.objective("vicreg", digits).train()
        joint = recipes.objective("simvae", digits).train()
        before = {k: v.clone() for k, v in objective.state_dict().items()}
        state = torch.get_rng_state()
        methods = {"VICReg": objective, "SimVAE": joint}
        ps.compare(methods, digits, baselines=False, progress=False)
        assert_close(torch.get_rng_state(), state)
        assert objective.training and joint.training
        for key, value in objective.state_dict().items():
            assert_close(value, before[key], rtol=0, atol=0)

    def test_any_encoder_can_be_compared(self, digits):
        encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        found = ps.compare({"linear": encoder}, digits, baselines=False, progress=False)
        assert found.table["linear_probe"]["linear"] > 0.3

    def test_pairs_are_taken_of_so_many_items_only(self, digits, monkeypatch):
        monkeypatch.setattr(run, "PAIRED", 40)
        encoder = nn.Flatten()
        found = ps.compare({"x": encoder}, digits, baselines=False, progress=False)
        assert found.matrix["info_nce"]["x"] < math.log(40)
        assert "40 items are too few" in found.methods["x"]["left_out"][INFORMATION[0]]


class TestJobs:
    def test_results_do_not_depend_on_the_number_of_workers(self, digits):
        """Those of callbacks included, which are called in workers and stop them."""
        methods, found = ("SimVAE", "DeepClustering", "MoCo"), []
        for jobs in (1, 2):
            fitted = fit_methods(
                methods,
                digits,
                epochs=4,
                jobs=jobs,
                device="cpu",
                progress=False,
                on_epoch=Stopping(),
            )
            states = {
                f"{name}.{key}": value
                for name, fit in fitted.items()
                for key, value in fit.objective.state_dict().items()
            }
            rows = {
                name: [fit.history[column].tolist() for column in ("value", "seen")]
                for name, fit in fitted.items()
            }
            assert rows["SimVAE"][1] == rows["MoCo"][1] == [1.0, 2.0]
            found.append((states, rows))
        assert_close(found[0][0], found[1][0], rtol=0, atol=0)
        assert found[0][1] == found[1][1]

    def test_an_error_in_a_worker_names_the_method_and_its_traceback(self, digits):
        methods, options = ("VAE", "SimCLR"), {"batch_size": 0, "device": "cpu"}
        with pytest.raises(ValueError, match="batch_size") as caught:
            fit_methods(methods, digits, epochs=1, jobs=2, **options)
        said = "".join(traceback.format_exception(caught.value))
        assert re.search(r"in the worker that fitted (VAE|SimCLR)", said)
        assert "in _fit_in_worker" in said
        assert not active_children()

    def test_an_interrupt_ends_all_workers(self, digits):
        # A process that a shell starts in the background ignores the signal.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        timer = threading.Timer(3.0, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            fit_methods(("VAE", "IWAE"), digits, epochs=10**6, jobs=2, device="cpu")
        signal.signal(signal.SIGINT, before)
        for _ in range(300):  # a busy machine takes a moment; a fit would take for ever
            if active_children():
                time.sleep(0.1)
        assert not active_children()

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"on_epoch": lambda epoch, row: None}, "got on_epoch=.*set jobs=1"),
            ({"optimizer": lambda p: None}, "got optimizer=.*set jobs=1"),
            ({"methods": []}, "at least one method, got none"),
            ({"methods": ["VAE", "SimCLR", "vae"]}, "got VAE 2 times"),
        ],
    )
    def test_what_workers_cannot_fit_is_refused(self, digits, options, message):
        given = {"methods": ["VAE", "SimCLR"], "epochs": 1, "jobs": 2, "device": "cpu"}
        with pytest.raises(ValueError, match=message):
            fit_methods(data=digits, **(given | options))

    def test_a_worker_that_is_killed_is_said_in_one_sentence(self, digits):
        with pytest.raises(ChildProcessError, match="memory.*jobs=1"):
            fit_methods(
                ("VAE", "SimCLR"),
                digits,
                epochs=2,
                jobs=2,
                device="cpu",
                on_epoch=killed,
            )
        assert not active_children()

    @pytest.mark.skipif(not Path("/proc").is_dir(), reason="reads /proc")
    def test_the_second_worker_that_is_killed_ends_all_at_once(self, tmp_path):
        command = "-m probssl.cli compare --methods vae,iwae --items 100 --jobs 2"
        command += f" --epochs 1000000 --device cpu --out {tmp_path / 'out'}"
        folder = Path(tempfile.mkdtemp(prefix="ps"))
        with subprocess.Popen(
            [sys.executable, *command.split()],
            env={**os.environ, "TMPDIR": str(folder)},
            stderr=subprocess.PIPE,
            text=True,
        ) as parent:
            wait_until(lambda: len(workers(folder)) == 3)  # and what starts them
            time.sleep(1)
            os.kill(max(workers(folder)), signal.SIGKILL)
            _, said = parent.communicate(timeout=60)
        assert parent.returncode == 2 and "one was killed" in said
        assert "use fewer jobs, such as --jobs 1; what" in said
        wait_until(lambda: not workers(folder))
        shutil.rmtree(folder)

    @pytest.mark.skipif(not Path("/proc").is_dir(), reason="reads /proc")
    @pytest.mark.parametrize(
        "number, long",
        [(signal.SIGTERM, False), (signal.SIGKILL, False), (signal.SIGKILL, True)],
    )
    def test_workers_end_with_their_parent(self, number, long, tmp_path):
        command = (
            "-m probssl.cli compare --methods vae,iwae --items 100 --epochs 1000000"
        )
        command += f" --jobs 2 --device cpu --out {tmp_path / 'out'}"
        folder = Path(tempfile.mkdtemp(prefix="ps"))
        if long:  # too long for the address of what starts workers
            (folder := tmp_path / ("temporary" * 8)).mkdir()
        started = 2 if long or sys.platform != "linux" else 3  # and what starts them
        with subprocess.Popen(
            [sys.executable, *command.split()],
            env={**os.environ, "TMPDIR": str(folder)},
            stderr=subprocess.PIPE,
        ) as parent:
            wait_until(lambda: len(workers(folder)) == started)
            parent.send_signal(number)
            assert parent.wait(60) == (143 if number == signal.SIGTERM else -number)
            wait_until(lambda: not workers(folder))
            assert not [*folder.glob("probssl*")]
        shutil.rmtree(folder)


class Stopping:
    """A callback with state, which adds a column and stops after two epochs."""

    def __init__(self) -> None:
        self.seen = 0.0

    def __call__(self, epoch: int, row: dict[str, float]) -> bool:
        self.seen += 1
        row["seen"] = self.seen
        return self.seen == 2


def killed(epoch: int, row: dict[str, float]) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def workers(folder: Path) -> list[int]:
    """The processes of a pool whose temporary files are in a folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            command = (path / "cmdline").read_bytes()
            of_pool = b"spawn_main" in command or b"forkserver" in command
            if of_pool and str(folder).encode() in (path / "environ").read_bytes():
                found.append(int(path.name))
        except OSError:  # ended meanwhile, or another user's
            continue
    return found


def wait_until(condition, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.2)


def pseudo(digits: ps.data.Dataset) -> ps.limits.VAE:
    prior, likelihood = ps.priors.Independent(10), ps.likelihoods.Bernoulli(grey=True)
    decoder = ps.nn.MLPDecoder(10, (1, 8, 8))
    return ps.limits.VAE(ps.Joint(prior, likelihood, recipes.encoder(digits), decoder))


def several(digits: ps.data.Dataset) -> ps.limits.SimCLR:
    encoders = [recipes.encoder(digits), recipes.encoder(digits)]
    return ps.limits.SimCLR(ps.nn.PerModality(encoders))


def diverged(digits: ps.data.Dataset) -> nn.Module:
    objective = recipes.objective("simclr", digits)
    nn.init.constant_(next(objective.parameters()), math.nan)
    return objective


def grey(digits: ps.data.Dataset, levels: int = 16) -> nn.Module:
    return recipes.objective("vae", digits._replace(levels=levels))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: {"data": d._replace(train=d.train._replace(labels=None))}, "labels"),
        (lambda d: {"data": d._replace(test=d.test.take(19))}, "20 test items"),
        (lambda d: {"views": lambda x: x[:, None]}, "2 views of each item"),
        (lambda d: {"objectives": {}}, "at least one objective"),
        (lambda d: {"objectives": {"raw pixels": nn.Flatten()}}, "baselines"),
        (lambda d: {"objectives": {"PCA-64": nn.Flatten()}}, "baselines"),
        (lambda d: {"objectives": {"x": several(d)}}, "2 modalities"),
        (lambda d: {"objectives": {"x": diverged(d)}}, "for .* items.* by x; its fit"),
        (lambda d: {"seconds": {"y": 1.0}}, "seconds of the objectives x, got some of"),
        (lambda d: {"data": d._replace(train=d.train.rows(rare(d)))}, "got 4 of class"),
    ],
)
def test_what_does_not_compare_is_refused(digits, change, message):
    options = {"objectives": {"x": nn.Flatten()}, "data": digits, "progress": False}
    with pytest.raises(ValueError, match=message):
        ps.compare(**(options | change(digits)))


@pytest.mark.parametrize(
    ("other", "why"),
    [
        (lambda d: grey(d, 255), "several measures of the data (a: "),
        (pseudo, "some are pseudo-likelihoods, which are no densities of x"),
    ],
)
def test_evidences_that_do_not_compare_are_left_out(digits, short_decoders, other, why):
    data = digits._replace(train=digits.train.take(200), test=digits.test.take(40))
    methods = {"a": grey(digits), "b": other(digits), "c": recipes.encoder(digits)}
    found = ps.compare(methods, data, baselines=False, progress=False)
    for name in "ab":
        row = found.methods[name]
        assert why in row["left_out"]["elbo"] and "alignment" in row["terms"]
        assert not {"elbo", "reconstruction"} & {*row["terms"], *row["errors"]}
        assert row["scores"]["active_units"] <= 10
    assert "active_units" not in found.methods["c"]["scores"]
    assert why in str(found) and why.split(" (")[0] in found._repr_html_()
    assert "active" in str(found) and "linear_probe" in found.methods["c"]["scores"]


class Zeros(ps.likelihoods.Likelihood):
    """Counts with more zeros, of Pyro's distribution, without a check of its own."""

    measure, per_element = "counting, {0, 1, …}", 2

    def forward(self, output):
        rate, gate = output.unbind(-1)
        return dist.ZeroInflatedPoisson(
            rate.exp(), gate_logits=gate, validate_args=False
        )


class LogCounts(ps.nn.MLPEncoder):
    def features(self, x):
        return super().features(x.log1p())

    def forward(self, x):
        return super().forward(x.log1p())


def counts(n: int = 160) -> ps.data.Dataset:
    y = torch.arange(n) % 2
    rate = (0.5 + y.unsqueeze(1) + torch.rand(n, 6)).exp()
    return ps.data.arrays(torch.poisson(rate), y)


def of_counts(likelihood: nn.Module, encoder=ps.nn.MLPEncoder) -> nn.Module:
    decoder = ps.nn.MLPDecoder(2, likelihood.output_shape((6,)), hidden=(8,))
    networks = encoder((6,), 2, hidden=(8,)), decoder
    return ps.limits.SimVAE(ps.Joint(ps.priors.Gaussian(2), likelihood, *networks))


def halves(x: torch.Tensor) -> torch.Tensor:
    first = torch.binomial(x, torch.full_like(x, 0.5))
    return torch.stack([first, x - first], 1)


def noisy(x: torch.Tensor) -> torch.Tensor:
    return torch.stack([x + 2 * torch.randn_like(x), x], 1)


@pytest.mark.parametrize("likelihood", [ps.likelihoods.Poisson, Zeros])
@pytest.mark.parametrize("encoder", [ps.nn.MLPEncoder, LogCounts])
def test_views_off_the_support_of_a_joint_are_refused_by_name(likelihood, encoder):
    methods = {"simclr": nn.Flatten(), "own": of_counts(likelihood(), encoder)}
    wanted = "counts 0, 1|whole numbers of at least 0 for Zeros"
    with pytest.raises(ValueError, match=f"({wanted}).*; own came upon this"):
        ps.compare(methods, counts(), views=noisy, progress=False)
    found = ps.compare(methods, counts(), views=halves, progress=False)
    assert found.methods["own"]["terms"]["elbo"] < 0


def test_an_encoder_that_makes_nan_of_views_is_told_from_a_fit_that_diverged():
    encoder = LogCounts((6,), 2, hidden=(8,))
    with pytest.raises(ValueError, match="all items are finite.*views from -.*fault"):
        ps.compare({"e": encoder}, counts(), views=noisy, progress=False)
    joint = of_counts(ps.likelihoods.Gaussian(), LogCounts)
    with pytest.raises(ValueError, match="finite mean of q.*views from -.*LogCounts"):
        ps.evidence(joint, -counts().test.images - 2)


class TestDecoder:
    def test_it_has_the_likelihood_of_the_joints_under_one_measure(self):
        data, zeros = counts(), of_counts(Zeros())
        joints = {"a": of_counts(ps.likelihoods.Poisson()), "b": zeros}
        found = decoding.likelihood_for(joints, data).likelihood
        assert isinstance(found, ps.likelihoods.Poisson)
        assert found is not joints["a"].joint.likelihood
        found = decoding.likelihood_for({"b": zeros}, data)
        assert isinstance(found.likelihood, Zeros)
        real = of_counts(ps.likelihoods.Gaussian())
        for others in ({}, joints | {"c": real}):
            found = decoding.likelihood_for(others, data)
            assert isinstance(found.likelihood, ps.likelihoods.NegativeBinomial)

    def test_a_decoder_whose_copy_would_run_the_original_is_refused(self):
        zeros = of_counts(Zeros())
        net = zeros.joint.decoder
        inner = net.forward
        net.forward = lambda z: inner(z)
        with pytest.raises(ValueError, match="a copy would run the original"):
            decoding.likelihood_for({"b": zeros}, counts())

    def test_images_keep_the_likelihood_of_the_recipes(self, digits):
        found = decoding.likelihood_for({"a": grey(digits, 255)}, digits)
        assert isinstance(found.likelihood, ps.likelihoods.Binomial)

    def test_items_off_its_support_fall_to_the_likelihood_of_the_recipes(self):
        data = counts()
        halved = data._replace(test=data.test._replace(images=data.test.images / 2))
        found = decoding.likelihood_for({"a": of_counts(Zeros())}, halved)
        assert not isinstance(found.likelihood, ps.likelihoods.Poisson | Zeros)

    def test_the_table_names_it_and_says_where_it_did_not_converge(self, monkeypatch):
        monkeypatch.setattr(decoding, "STEPS", 300)
        methods = {"own": of_counts(Zeros()), "flat": nn.Flatten()}
        options = {"views": halves, "baselines": False, "progress": False}
        found = ps.compare(methods, counts(400), **options)
        assert "fitted afterwards with Zeros()" in str(found)
        assert "not converged" not in str(found)
        large = ps.data.arrays(1e3 * torch.randn(400, 6), torch.arange(400) % 2)
        found = ps.compare({"flat": nn.Flatten()}, large, **options | {"views": noisy})
        assert "not converged for flat" in str(found) and "Gaussian(" in str(found)

    def test_its_value_is_the_log_probability_of_the_likelihood(
        self, float64, monkeypatch
    ):
        """Of z without any information: the maximum-likelihood Poisson, in scipy."""
        monkeypatch.setattr(decoding, "STEPS", 300)
        x = torch.poisson(torch.full((4_000, 1), 3.0))
        data = ps.data.arrays(x, torch.arange(4_000) % 2)
        z = [torch.zeros(len(split), 2) for split in (data.train, data.test)]
        form = decoding.Form(ps.likelihoods.Poisson(), (1,))
        found = decoded(data, *z, CPU, form).values
        rate = float(data.train.images.mean())
        expected = torch.as_tensor(poisson.logpmf(data.test.images[:, 0], rate))
        gap = estimate(found - expected)
        assert abs(gap.value) < 5 * gap.standard_error + 0.02


def test_counts_have_recipes_of_their_own():
    data = counts()
    assert isinstance(recipes.likelihood(data), ps.likelihoods.NegativeBinomial)
    with pytest.raises(
        ValueError, match="views of the counts of arrays.*random halves"
    ):
        recipes.views(data)
    binary = ps.data.arrays((data.train.images > 2).float())
    assert isinstance(recipes.likelihood(binary), ps.likelihoods.Gaussian)


def test_objectives_that_share_an_encoder_are_warned_of(digits):
    encoder = recipes.encoder(digits)
    shared = {"a": ps.limits.SimCLR(encoder), "b": ps.limits.LogDet(encoder)}
    with pytest.warns(UserWarning, match="got a and b, which share some"):
        check(shared)


def rare(digits: ps.data.Dataset) -> torch.Tensor:
    """The rows of all classes but one, of which there are four."""
    ones = (digits.train.labels == 1).nonzero().flatten()
    return torch.cat([(digits.train.labels != 1).nonzero().flatten(), ones[:4]])


def test_noise_of_the_recipe_is_that_of_the_values_that_bytes_stand_for():
    values = np.random.default_rng(0).integers(0, 256, (40, 7)).astype("uint8")
    labels = np.arange(40) % 2
    noises = [
        recipes.views(ps.data.arrays(x, labels, levels=levels, seed=0)).parts[0]
        for x, levels in ((values, 255), ((values / 255).astype("float32"), None))
    ]
    assert noises[0].scale == pytest.approx(noises[1].scale, rel=1e-5)
    assert noises[1].scale == pytest.approx(0.1 * 255 / 12**0.5 / 255, rel=0.1)


@pytest.mark.parametrize("levels", [1, 4, 16, 255, None])
@pytest.mark.parametrize("side", [8, 9])
def test_views_of_the_recipe_keep_the_grey_levels_of_the_data(side, levels):
    images = torch.rand(200, 1, side, side)
    images = images if levels is None else (images * levels).round() / levels
    data = ps.data.arrays(images, torch.arange(200) % 2, levels=levels)
    shown = recipes.views(data)(data.train.images).unique()
    if levels is None:
        assert len(shown) > 1000
    else:
        assert_close(shown * levels, (shown * levels).round(), rtol=0, atol=1e-4)
        assert 0.9 * (levels + 1) < len(shown) <= levels + 1


def test_own_recipes_are_fitted_in_this_process(digits, monkeypatch):
    """Workers would import the original ones."""
    cold = partial(ps.limits.SimCLR, temperature=0.05)
    monkeypatch.setitem(recipes.METHODS, "Mine", lambda *a: cold(recipes.encoder(*a)))
    monkeypatch.setitem(recipes.METHODS, "SimCLR", recipes.METHODS["Mine"])
    for name in ("Mine", "SimCLR", "DSA", "PID"):  # two of them extend SimCLR
        with pytest.raises(ValueError, match=f"jobs=1 for {name}"):
            fit_methods([name, "VICReg"], digits, epochs=1, jobs=2, progress=False)
    found = fit_methods(["Mine", "SimCLR"], digits, epochs=1, progress=False)
    values = [[*fitted.history["value"]] for fitted in found.values()]
    assert values[0] == values[1]


class Looked(dict):
    """Recipes that note which of them are looked up."""

    def __init__(self, known):
        super().__init__(known)
        self.names = []

    def __getitem__(self, name):
        self.names.append(name)
        return super().__getitem__(name)


def test_a_recipe_is_own_if_one_that_it_builds_on_is(monkeypatch):
    data = ps.data.arrays(torch.rand(40, 7), torch.arange(40) % 2)
    known = dict(recipes.METHODS)
    for name in known:
        looked = Looked(known)
        monkeypatch.setattr(recipes, "METHODS", looked)
        recipes.objective(name, data, dim=2)
        assert not recipes.is_own(name)
        for base in set(looked.names):
            own = known | {base: lambda data, dim: None}
            monkeypatch.setattr(recipes, "METHODS", own)
            assert recipes.is_own(name), (name, base)


def test_deep_clustering_of_few_items_has_fewer_clusters():
    data = ps.data.arrays(torch.rand(50, 3), torch.arange(50) % 2)
    objective = recipes.objective("DeepClustering", data, dim=2)
    recipes.fit(objective, data, views=recipes.views(data), epochs=2, progress=False)
    assert 2 <= objective.components < len(data.train)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (7,)])
def test_recipes_fit_the_shape_of_the_data(shape):
    images = torch.rand(40, *shape)
    data = ps.data.arrays(images, torch.arange(40) % 2)
    for name in recipes.METHODS:
        objective = recipes.objective(name, data, dim=4)
        views = recipes.views(data)(data.train.images)
        batch = ps.Batch(views, data.train.images, index=torch.arange(len(views)))
        assert sum(objective(batch)).isfinite()


def test_a_bare_joint_is_refused_and_frozen_parameters_may_be_shared():
    joint = ps.Joint(
        ps.priors.Gaussian(2, 0.5),
        ps.likelihoods.Gaussian(0.3),
        ps.nn.MLPEncoder((3,), 2),
        ps.nn.MLPDecoder(2, (3,)),
    )
    pairs = ps.data.groups(torch.rand(40, 2, 3), torch.arange(40) % 2)
    with pytest.raises(TypeError, match="training items of own as a Split, got Groups"):
        check_data(ps.data.Dataset(pairs, pairs, None, "own"))
    parts = [ps.data.Split(torch.rand(40, 3), torch.arange(40) % k) for k in (2, 3)]
    with pytest.raises(ValueError, match=r"got \[2\], of which no training item is"):
        check_data(ps.data.Dataset(*parts, None, "own"))
    with pytest.raises(TypeError, match="a Joint as mine; wrap it in ps.limits.SimVAE"):
        check({"mine": joint})
    one, other = (ps.limits.SimCLR(joint.encoder.requires_grad_(False)) for _ in "ab")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check({"one": one, "other": other})


@pytest.mark.parametrize("magnitude", range(-8, 7))
def test_a_printed_error_is_that_of_the_last_digits(magnitude):
    random = np.random.default_rng(magnitude + 8)
    for error in 10.0**magnitude * random.uniform(1, 10, 5):
        for value in error * np.r_[0, -1, 10.0 ** random.uniform(-2, 6, 3)]:
            row = {"terms": {}, "scores": {}, "matrix": {"info_nce": value}}
            row["errors"] = {"info_nce": error}
            text = str(Comparison("noise", 0, {"one": row})).split()[-1]
            digits, last, power = re.fullmatch(r"(.+)\((\d+)\)(e.+)?", text).groups()
            unit = 10.0 ** (int((power or "e0")[1:]) - len(digits.partition(".")[2]))
            assert int(last) > 0 and abs(int(last) * unit - error) <= 0.501 * unit
            shown = float(digits + (power or ""))
            assert abs(shown - value) <= 0.501 * unit
            assert unit <= 1.01 * 10 ** max(math.ceil(math.log10(error)), 0)


def test_a_small_error_is_printed():
    row = {"terms": {}, "scores": {}, "matrix": {"info_nce": 0.00016}}
    row["errors"] = {"info_nce": 0.00004}
    assert str(Comparison("noise", 0, {"one": row})).endswith(" 0.00016(4)")


def test_views_that_change_their_items_are_refused_and_the_data_stay(digits):
    x = torch.rand(60, 6)
    data = ps.data.arrays(x, torch.arange(60) % 2, test=x.clone(), test_labels=[0] * 60)
    before = data.test.images.clone()

    def views(x: torch.Tensor) -> torch.Tensor:
        x += torch.randn_like(x)
        return torch.stack([x, x], 1)

    with pytest.raises(ValueError, match="views to leave the items as they are"):
        ps.compare(
            {"z": nn.Linear(6, 2)}, data, views=views, baselines=False, progress=False
        )
    assert torch.equal(torch.as_tensor(data.test.images), before)


class Shifted(nn.Module):
    def forward(self, x):
        return x + 1


class Reversed(nn.Module):
    def forward(self, x):
        return x - 1


class TestResume:
    """A comparison that was killed goes on from the rows that it has measured."""

    def pair(self, digits) -> tuple[ps.data.Dataset, dict[str, nn.Module]]:
        data = digits._replace(train=digits.train.take(120), test=digits.test.take(40))
        return data, {name: recipes.encoder(data) for name in ("one", "other")}

    def test_rows_are_kept_when_measured_and_not_measured_again(
        self, digits, tmp_path, monkeypatch
    ):
        data, objectives = self.pair(digits)
        whole = ps.compare(objectives, data, baselines=False, progress=False)
        measured, row = [], run._row

        def killed(*given):
            if len(measured) == 1:
                raise KeyboardInterrupt
            measured.append(given)
            return row(*given)

        options = {"baselines": False, "progress": False, "checkpoint": tmp_path}
        monkeypatch.setattr(run, "_row", killed)
        with pytest.raises(KeyboardInterrupt):
            ps.compare(objectives, data, **options)
        monkeypatch.setattr(
            run, "_row", lambda *given: measured.append(0) or row(*given)
        )
        again = ps.compare(objectives, data, **options, resume=True)
        assert len(measured) == 2 and again.methods == whole.methods
        with torch.no_grad():
            next(objectives["one"].parameters()).add_(0.1)
        other = ps.compare(objectives, data, **options, resume=True)
        assert len(measured) == 3  # the changed one alone
        assert other.methods["other"] == whole.methods["other"] != other.methods["one"]
        ps.compare(objectives, data, seed=1, **options, resume=True)
        assert len(measured) == 5
        with pytest.raises(FileExistsError, match="pass resume=True to go on"):
            ps.compare(objectives, data, **options)
        (tmp_path / "measured.json").write_text("{}")
        with pytest.raises(ValueError, match="got a damaged file"):
            ps.compare(objectives, data, **options, resume=True)

    def test_digests_tell_settings_apart(self):
        def joined(prior):
            torch.manual_seed(0)
            nets = ps.nn.MLPEncoder((6,), 2), ps.nn.MLPDecoder(2, (6,))
            model = ps.Joint(prior, ps.likelihoods.Gaussian(0.5), *nets)
            return run._digest(ps.limits.SimVAE(model), None, "")

        def powered(power):
            net = nn.Identity()
            net.power = power
            return run._digest(net, None, "")

        def custom():
            return ps.priors.Custom(lambda y: dist.Laplace(y, 1.0).to_event(1), 2)

        assert powered(1.0) == powered(1.0) != powered(4.0)

        def method(body):  # the same names and numbers, another body
            kind = {"plus": Shifted, "minus": Reversed}[body]
            return run._digest(type("Own", (kind,), {})(), None, "")

        assert method("plus") == method("plus") != method("minus")
        usual = ps.priors.Gaussian(2, scale=0.5)
        assert joined(usual) == joined(usual)
        assert joined(custom()) != joined(custom())  # measured anew

    def test_a_measure_that_fails_leaves_a_dash_and_a_reason(
        self, digits, monkeypatch, caplog
    ):
        data, objectives = self.pair(digits)
        scores = run.scores_and_draws

        def fails(z, *others):
            if not fails.calls:
                fails.calls = True
                raise np.linalg.LinAlgError("SVD did not converge")
            return scores(z, *others)

        fails.calls = False
        monkeypatch.setattr(run, "scores_and_draws", fails)
        found = ps.compare(objectives, data, progress=False)
        reason = "not measured (LinAlgError: SVD did not converge)"
        assert found.methods["one"]["left_out"]["linear_probe"] == reason
        line = next(ln for ln in str(found).splitlines() if ln.startswith("one:"))
        assert line.startswith("one: linear_probe") and line.endswith(reason)
        assert math.isnan(found.table.loc["one", "linear_probe"])
        assert found.table.loc["other", "linear_probe"] > 0
        assert "few_label_gain" in found.methods["other"]["scores"]
        assert "few_label_gain" not in found.methods["one"]["scores"]
        assert reason in caplog.text
        json.loads(found.to_json())

    def test_each_fit_is_handed_on_before_a_later_one_fails(self, digits, monkeypatch):
        data, _ = self.pair(digits)
        done, failing = {}, recipes.METHODS["SimCLR"]

        def fails(data, dim):
            raise MemoryError

        monkeypatch.setitem(recipes.METHODS, "SimCLR", fails)
        options = {"epochs": 1, "device": "cpu", "progress": False, "jobs": 1}
        with pytest.raises(MemoryError):
            fit_methods(
                ("VICReg", "SimCLR"), data, on_fitted=done.__setitem__, **options
            )
        assert list(done) == ["VICReg"] and len(done["VICReg"].history) == 1
        monkeypatch.setitem(recipes.METHODS, "SimCLR", failing)
        fit_methods(("SimCLR",), data, on_fitted=done.__setitem__, share=2, **options)
        assert list(done) == ["VICReg", "SimCLR"]
