"""The joint of a frozen encoder: canonical coordinates, ELBO and evidence."""

import json
import math
from importlib import import_module

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor, nn
from torch.distributions import MultivariateNormal
from torch.testing import assert_close

import probssl as ps
from probssl import recipes
from probssl.compare import evidence_of, implied_joint, sampled
from probssl.estimates import Undefined, estimate

implied, decoding = (
    import_module(f"probssl.compare.{name}") for name in ("implied", "decoding")
)
pytestmark = pytest.mark.usefixtures("short_decoders")


def correlated(n: int = 400, views: int = 2, dim: int = 3) -> Tensor:
    """Views of items, skewed, with other correlations within and between views."""
    content = torch.randn(n, 1, dim).exp() @ torch.randn(dim, dim)
    return content + torch.randn(n, views, dim) @ torch.randn(dim, dim) + 7


@pytest.mark.usefixtures("float64")
class TestCanonical:
    @pytest.mark.parametrize(("views", "dim"), [(2, 1), (2, 3), (3, 3), (4, 20)])
    def test_moments_within_and_between_views_are_diagonal(self, views, dim):
        z = correlated(views=views, dim=dim)
        mean, weight, correlation = implied.canonical(z)
        u = (z - mean) @ weight
        flat = u.flatten(0, 1)
        assert_close(flat.mean(0), torch.zeros(dim), atol=1e-9, rtol=0)
        assert_close(flat.T @ flat / len(flat), torch.eye(dim), atol=1e-7, rtol=0)
        pairs = [
            u[:, i].T @ u[:, j] / len(u)
            for i in range(views)
            for j in range(views)
            if i != j
        ]
        between = torch.stack(pairs).mean(0)
        assert_close(between, correlation.diag(), atol=1e-7, rtol=0)
        assert (correlation.diff() <= 0).all() and (u.pow(3).mean((0, 1)) > 0).all()

    def test_an_invertible_affine_map_of_z_changes_nothing(self):
        z = correlated(dim=4)
        moved = 1e3 * z @ torch.randn(4, 4) - 50
        (u, r), (v, s) = (
            ((x - found.mean) @ found.weight, found.correlation)
            for x in (z, moved)
            for found in [implied.canonical(x)]
        )
        assert_close(v, u, atol=1e-6, rtol=0)
        assert_close(s, r)

    def test_constant_directions_are_left_out(self):
        z = correlated(dim=3)
        more = torch.cat([z, z[..., :1] + 2 * z[..., 1:2], torch.ones_like(z)], -1)
        found, whole = implied.canonical(more), implied.canonical(z)
        assert_close(found.correlation, whole.correlation)
        with pytest.raises(Undefined, match="same for all views"):
            implied.canonical(torch.full((40, 2, 3), 0.1))


EVENT, NOISE, VIEWS, ITEMS, STEPS = 5, 0.12, 2, 600, 200


class Linear(nn.Module):
    """A linear encoder."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.dim, self.weight = weight.shape[1], nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + 3


class Toy:
    """Normal items of two strong directions, views with normal noise, and encoders."""

    def __init__(self) -> None:
        turn = torch.linalg.qr(torch.randn(EVENT, EVENT)).Q
        self.scales = torch.tensor([0.5, 0.35, 0.1, 0.08, 0.05])
        self.between = turn @ self.scales.square().diag() @ turn.T
        self.within = self.between + NOISE**2 * torch.eye(EVENT)
        x = torch.randn(2 * ITEMS, EVENT) @ (turn * self.scales).T
        self.data = ps.data.Dataset(
            ps.data.Split(x[:ITEMS]), ps.data.Split(x[ITEMS:]), None, "linear"
        )
        exact = turn[:, :2]
        self.encoders = {
            "noisy": exact + 0.9 * turn[:, 2:4],
            "wrong": turn[:, 3:],
            "exact": exact,
        }

    def views(self, x: Tensor) -> Tensor:
        return x.unsqueeze(1) + NOISE * torch.randn(len(x), VIEWS, EVENT)

    def best(self, weight: Tensor) -> tuple[float, float]:
        r"""The largest ELBO of linear decoders, by scipy, and the log p(x) there.

        With :math:`c_i = Cov(x, u_i)` and :math:`a_i^2 = 1 - s_i^2` the best decoder is
        :math:`a_i c_i`, since z has the covariance I, the variance of p(x|z) is
        :math:`v = (tr Cov(x) - \sum_i a_i^2 |c_i|^2) / D`, and the best correlation of
        the prior :math:`a_i^2 \rho_i`.
        """
        w = weight.double()
        values, axes = torch.linalg.eigh(w.T @ self.within @ w)
        white = w @ axes / values.sqrt()
        rho, rotation = torch.linalg.eigh(white.T @ self.between @ white)
        load = (self.within @ white @ rotation).numpy()

        def parts(raw: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
            share = 1 / (1 + np.exp(-raw))  # a²
            total = float(self.within.trace())
            v = (total - share @ np.square(load).sum(0)) / EVENT
            return v, share, share * rho.numpy()

        def loss(raw: np.ndarray) -> float:
            v, share, r = parts(raw)
            fit = -VIEWS * EVENT / 2 * math.log(2 * math.pi * math.e * v)
            log_det = (VIEWS - 1) * np.log1p(-r) + np.log1p((VIEWS - 1) * r)
            return -fit - np.sum(VIEWS / 2 * np.log1p(-share) - log_det / 2)

        found = minimize(loss, np.ones(2))
        v, share, r = parts(found.x)
        decoder = torch.from_numpy(load * np.sqrt(share))
        z = torch.from_numpy(np.stack([np.diag(r), np.diag(1 - r)]))
        same, own = (decoder @ part @ decoder.T for part in z)
        own = own + v * torch.eye(EVENT)
        model = torch.kron(torch.ones(VIEWS, VIEWS), same)
        model = model + torch.kron(torch.eye(VIEWS), own)
        truth = torch.kron(torch.ones(VIEWS, VIEWS), self.between)
        truth = truth + NOISE**2 * torch.eye(VIEWS * EVENT)
        log_det = torch.logdet(2 * math.pi * model)
        evidence = -(log_det + torch.linalg.solve(model, truth).trace()) / 2
        return -float(found.fun), float(evidence)


def zeros(dim: int) -> nn.Linear:
    """A linear decoder that starts at zero."""
    decoder = nn.Linear(dim, EVENT)
    nn.init.zeros_(decoder.weight)
    return decoder


def exact_evidence(joint: ps.Joint, x: Tensor) -> Tensor:
    """log p(x_1, …, x_V) of a joint with a linear decoder and a normal prior."""
    weight, bias = joint.decoder.weight.detach(), joint.decoder.bias.detach()
    content = 1 - joint.prior.scale().detach().square()
    same, own = ((weight * share) @ weight.T for share in (content, 1 - content))
    own = own + joint.likelihood.scale().detach().square() * torch.eye(EVENT)
    views = x.shape[1]
    covariance = torch.kron(torch.ones(views, views), same)
    covariance = covariance + torch.kron(torch.eye(views), own)
    return MultivariateNormal(bias.repeat(views), covariance).log_prob(x.flatten(1))


@pytest.fixture(scope="module")
def measured():
    """The closed forms and the measurements of each encoder."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    toy, found, patch = Toy(), {}, pytest.MonkeyPatch()
    patch.setattr(implied, "LEARNING_RATE", 0.03)  # of a linear decoder
    patch.setattr(implied, "RATE_FACTOR", 3.0)
    x = sampled(toy.views, toy.data.test, 0)
    for name, weight in toy.encoders.items():
        form = decoding.Form(ps.likelihoods.Gaussian(ps.learned(0.3)), (EVENT,))
        torch.manual_seed(1)
        joint, history = implied_joint(
            Linear(weight),
            toy.data,
            views=toy.views,
            steps=STEPS,
            form=form,
            decoder=zeros,
        )
        measure = evidence_of(joint, x[:50], particles=50, refine=20)
        elbo = evidence_of(joint, x, particles=2, refine=0).elbo  # of few draws
        found[name] = toy.best(weight), elbo, measure, exact_evidence(joint, x), history
    torch.set_default_dtype(before)
    patch.undo()
    return found


class TestTheorem:
    """Linear encoders and decoders, for which the largest ELBO has a closed form."""

    def test_elbos_are_the_largest_ones_and_rank_the_encoders(self, measured):
        best = {name: closed[0] for name, (closed, *_) in measured.items()}
        found = {name: float(each[1].mean()) for name, each in measured.items()}
        assert sorted(found, key=found.get) == sorted(best, key=best.get)
        for name, (_, elbo, *_) in measured.items():
            error = estimate(elbo.numpy()).standard_error
            assert abs(found[name] - best[name]) < 5 * error
        gaps = np.diff(sorted(best.values()))
        assert gaps.min() > 0.5  # nats: no ties

    def test_evidences_are_those_at_the_largest_elbo_and_rank_alike(self, measured):
        best = {name: closed[1] for name, (closed, *_) in measured.items()}
        found = {name: float(each[3].mean()) for name, each in measured.items()}
        assert sorted(found, key=found.get) == sorted(best, key=best.get)
        for name, (*_, exact, _) in measured.items():
            error = estimate(exact.numpy()).standard_error
            assert abs(found[name] - best[name]) < 5 * error

    def test_the_refined_evidence_is_that_of_the_joint(self, measured):
        for _, _, (elbo, evidence), exact, _ in measured.values():
            few = exact[: len(elbo)].numpy()
            assert np.abs(evidence.log_evidence - few).mean() < 0.1
            error = np.std(evidence.log_evidence - few) / math.sqrt(len(few))
            assert abs(np.mean(evidence.log_evidence - few)) < 5 * error + 0.01
            assert elbo.mean() < few.mean()

    def test_the_best_epoch_counts(self, measured):
        for *_, history in measured.values():
            assert history["valid_value"][-1] > history["valid_value"][0]


@pytest.fixture(scope="module")
def digits() -> ps.data.Dataset:
    digits = ps.data.digits()
    train, test = digits.train.take(200), digits.test.take(40)
    return digits._replace(train=train, test=test)


class Affine(nn.Module):
    """An encoder with an affine map behind it."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        dim = encoder.dim
        self.encoder, self.dim = encoder, dim
        self.register_buffer("weight", 5 * torch.randn(dim, dim) + torch.eye(dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.encoder(x) @ self.weight - 20


class TestImplied:
    def test_the_column_does_not_see_an_affine_map_of_z(self, digits, float64):
        encoder, views = recipes.encoder(digits, 4), recipes.views(digits)
        x, found = sampled(views, digits.test, 0)[:10], []
        for each in (encoder, Affine(encoder)):
            torch.manual_seed(3)
            joint, _ = implied_joint(each, digits, views=views, steps=6)
            found.append(evidence_of(joint, x, particles=20, refine=5))
        (elbo, evidence), (other, also) = found
        assert_close(other, elbo, rtol=1e-6, atol=0)
        np.testing.assert_allclose(also.log_evidence, evidence.log_evidence, rtol=1e-5)

    def test_the_encoder_stays_as_it_is(self, digits):
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, 3), nn.BatchNorm1d(3))
        before = {name: x.clone() for name, x in net.state_dict().items()}
        joint, _ = implied_joint(net, digits, views=recipes.views(digits), steps=3)
        joint.train()
        joint.encoder(digits.train.images[:50].float())
        for state in (net, joint.encoder.objective):
            for name, x in state.state_dict().items():
                assert torch.equal(x, before[name]), name
        assert net.training and all(p.requires_grad for p in net.parameters())

    def test_its_images_are_images(self, digits):
        simclr = recipes.objective("SimCLR", digits, 3)
        joint, _ = implied_joint(simclr, digits, views=recipes.views(digits), steps=3)
        assert ps.sample(joint, 4).shape == (4, 2, 1, 8, 8)

    def test_curves_are_short_and_end_with_the_fit(self):
        rows = [{"epoch": i, "step": 2 * i, "value": 0.1 * i} for i in range(1, 400)]
        rows = [row | {"valid_value": 1.0} for row in rows]
        found = implied.curve(ps.History(rows))
        assert {len(column) for column in found.values()} == {50}
        assert found["epoch"][0] == 1 and found["step"][-1] == 2 * 399


class Constant(nn.Module):
    dim = 3

    def forward(self, x: Tensor) -> Tensor:
        return x.new_ones(len(x), 3)


class TestColumn:
    def test_every_encoder_has_a_number_or_a_reason(self, digits, tmp_path):
        names = ("SimCLR", "VAE")
        methods = {name: recipes.objective(name, digits, 3) for name in names}
        methods["constant"] = Constant()
        given = {"evidence": 2, "progress": False, "checkpoint": tmp_path}
        found = ps.compare(methods, digits, **given)
        columns = ["frozen_elbo", "frozen_evidence"]
        have = found.matrix[columns].notna().all(axis=1)
        assert [*have.index[have]] == [*names, "PCA-3", "untrained encoder"]
        assert (found.matrix["frozen_elbo_se"][have] > 0).all()
        better = found.matrix["frozen_evidence"] > found.matrix["frozen_elbo"]
        assert better[have].all()
        left_out = {name: row["left_out"] for name, row in found.methods.items()}
        assert left_out["raw pixels"]["frozen_elbo"] == "z is the item itself"
        assert "same for all views" in left_out["constant"]["frozen_evidence"]
        text = str(found)
        assert "frozen ELBO, log p(x) of constant left out" in text
        assert "Binomial(levels=16), fitted in 2 steps; of 40 test items" in text
        assert set(found.curves) == {*have.index[have]}
        found.to_json(tmp_path / "found.json")
        again = ps.Comparison.from_json(tmp_path / "found.json")
        assert str(again) == text
        assert again.curves["VAE"].equals(found.curves["VAE"])
        figure = ps.plots.learning_curves(again.curves)
        assert [a.get_title() for a in figure.axes] == [*have.index[have]]
        ps.plots.close([figure])
        content = json.loads((tmp_path / "found.json").read_text())
        content["methods"]["VAE"]["curve"]["value"].append("much")
        (tmp_path / "found.json").write_text(json.dumps(content))
        with pytest.raises(ValueError, match="curve of VAE"):
            ps.Comparison.from_json(tmp_path / "found.json")

        resumed = ps.compare(methods, digits, **given, resume=True)
        assert resumed.methods == found.methods
        measured = json.loads((tmp_path / "measured.json").read_text())["rows"]
        ps.compare(
            {"SimCLR": methods["SimCLR"]},
            digits,
            **given | {"evidence": 0},
            baselines=False,
            resume=True,
        )
        other = json.loads((tmp_path / "measured.json").read_text())["rows"]
        assert other["SimCLR"]["digest"] != measured["SimCLR"]["digest"]
        assert "implied" not in other["SimCLR"]["row"]

    def test_without_it_there_is_no_column(self, digits):
        methods = {"SimCLR": recipes.objective("SimCLR", digits, 3)}
        found = ps.compare(methods, digits, baselines=False, progress=False)
        assert not found.curves and "frozen_elbo" not in found.matrix

    def test_notes_say_how_far_to_trust_it(self):
        fit = {"likelihood": "Poisson()", "steps": 7, "items": 9}
        fits = {"a": fit | {"unreliable": 0, "rise": 0.0}}
        fits["b"] = fit | {"unreliable": 4, "rise": 0.2}
        rows = {k: {"terms": {}, "scores": {}, "implied": f} for k, f in fits.items()}
        text = str(ps.Comparison("x", 0, rows))
        assert "above 0.7 for some items, b 4" in text
        assert "not converged for b;" in text and text.count("7 steps; of 9") == 1

    def test_views_off_the_support_are_refused_before_any_work(self, digits):
        methods = {"SimCLR": recipes.objective("SimCLR", digits, 3)}
        noisy = ps.views.Augment(ps.views.Noise(0.1), levels=None)
        with pytest.raises(ValueError, match="likelihood of all decoders"):
            ps.compare(methods, digits, views=noisy, evidence=2)
        with pytest.raises(ValueError, match="evidence as a whole number"):
            ps.compare(methods, digits, evidence=-1)
