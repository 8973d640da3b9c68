"""The posterior of y, in `posterior_y` and for ArviZ, against closed forms."""

import math

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from helpers import linear
from helpers.catalogue import joint
from torch import Tensor
from torch.testing import assert_close

import probssl as ps
from probssl.data import groups

pytestmark = pytest.mark.usefixtures("float64")
DIM, EVENT, NOISE, SCALE, Y_SCALE, ITEMS, DRAWS = 2, 5, 0.4, 0.6, 1.3, 4, 4_000


def exact(decoder: Tensor, x: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of p(y | present views), by normal equations.

    x_v = W (y + s ε_v) + noise.
    """
    eye = torch.eye(EVENT, dtype=x.dtype)
    apart = SCALE**2 * decoder @ decoder.T + NOISE**2 * eye
    precision = torch.eye(DIM, dtype=x.dtype) / Y_SCALE**2
    seen = x[present]
    for _ in seen:
        precision = precision + decoder.T @ apart.inverse() @ decoder
    covariance = precision.inverse()
    mean = covariance @ decoder.T @ apart.inverse() @ seen.sum(0)
    return mean, covariance.diagonal().sqrt()


MASKS = {
    1: [[1]] * ITEMS,
    2: [[1, 1], [1, 0], [0, 1], [1, 1]],
    3: [[1, 1, 1], [1, 0, 0], [0, 1, 1], [1, 1, 1]],
}


@pytest.mark.parametrize("views", MASKS)
@pytest.mark.parametrize("guide", ["Coupled", "CoupledLikelihoods"])
def test_y_has_the_posterior_of_the_linear_gaussian_model(views, guide):
    prior = ps.priors.Gaussian(DIM, SCALE, Y_SCALE)
    model = linear.linear_gaussian(prior, EVENT, NOISE, guide=getattr(ps.guides, guide))
    x, present = torch.randn(ITEMS, views, EVENT), torch.tensor(MASKS[views]).bool()
    data = groups(x.numpy(), present=None if views == 1 else present.numpy())
    found = ps.posterior_y(model, data, draws=DRAWS)
    assert found.draws.shape == (DRAWS, ITEMS, DIM) and found.shares is None
    decoder = model.decoder.weight.detach()
    for i in range(ITEMS):
        mean, std = exact(decoder, x[i], present[i])
        error = std / math.sqrt(DRAWS)
        assert ((torch.from_numpy(found.mean[i]) - mean).abs() < 5 * error).all()
        assert ((torch.from_numpy(found.std[i]) - std).abs() < 4 * error).all()


def test_draws_for_arviz_are_those_of_y_given_z_and_the_hyper_parameters():
    prior = ps.priors.Gaussian(DIM, dist.LogNormal(-1.0, 0.5), Y_SCALE)
    model = joint(prior, event=EVENT)
    model.population = torch.tensor(10.0)
    data = groups(torch.randn(3, 2, EVENT).numpy())
    found = ps.to_arviz(model, data, draws=DRAWS, predictive=False)
    y, z, scale = (
        torch.from_numpy(found["posterior"][name].values[0])
        for name in ("y", "z", "scale")
    )
    assert found["posterior"]["y"].dims == ("chain", "draw", "item", "dim")
    precision = 1 / Y_SCALE**2 + 2 / scale[:, None, None] ** 2
    mean = z.sum(-2) / scale[:, None, None] ** 2 / precision
    standard = (y - mean) * precision.sqrt()  # standard normal
    count = standard[..., 0].numel()
    assert (standard.mean((0, 1)).abs() < 5 / math.sqrt(count)).all()
    assert (standard.var((0, 1)) - 1).abs().max() < 5 * math.sqrt(2 / count)
    before = found["prior"]
    gap = before["z"].values[0] - before["y"].values[0][:, None]
    ratio = gap / before["scale"].values[0][:, None, None]
    assert abs(ratio.std() - 1) < 0.05


CLUSTERS = {
    "Mixture": lambda: ps.priors.Mixture(DIM, 3, 0.5),
    "TwoTier": lambda: ps.priors.TwoTier(DIM, 3, 0.5, 0.3),
    "Custom": lambda: ps.priors.Custom(
        lambda k: dist.Normal(k.unsqueeze(-1) - 1.0 + torch.zeros(DIM), 0.5).to_event(
            1
        ),
        DIM,
        y_prior=dist.Categorical(torch.tensor([0.2, 0.3, 0.5]).double()),
    ),
}


@pytest.mark.parametrize("name", CLUSTERS)
@pytest.mark.parametrize("known", [False, True])
def test_components_are_drawn_with_their_shares(name, known):
    model, k = joint(CLUSTERS[name](), event=EVENT), np.array([0, 2, -1])
    x = torch.randn(3, 2, EVENT).numpy()
    data = groups(x, content=k) if known else groups(x)
    found = ps.posterior_y(model, data, draws=DRAWS)
    pairs = [(found.draws, found.shares)] * (name == "Mixture")
    idata = ps.to_arviz(model, data, draws=DRAWS, predictive=False)["posterior"]
    component, shares = idata["component"].values[0], idata["component_probs"].values[0]
    assert idata["component_probs"].dims[2:] == ("item", "k")
    for drawn, mean in (*pairs, (component, shares.mean(0))):
        counts = np.stack([(drawn == j).mean(0) for j in range(3)], -1)
        assert np.abs(counts - mean).max() < 5 * math.sqrt(0.25 / DRAWS)
    if known:
        assert (component[:, :2] == k[:2]).all()
        assert found.shares[[0, 1], [0, 2]] == pytest.approx([1, 1])
    else:
        expected = torch.from_numpy(ps.classify(model, data, draws=DRAWS))
        assert_close(torch.from_numpy(found.shares), expected, atol=0.02, rtol=0)
    if name == "Custom":
        assert (idata["y"].values[0] == component).all()
    elif name == "TwoTier":
        assert idata["y"].dims[2:] == ("item", "dim")
    else:
        assert "y" not in idata and found.mean is None


def test_y_of_two_tiers_lies_around_the_component_that_is_drawn():
    model = joint(ps.priors.TwoTier(DIM, 3, 9.0, 0.01), event=EVENT)
    with torch.no_grad():
        model.prior.components.loc.copy_(torch.tensor([[-9.0, 0], [0, 9], [9, 0]]))
    idata = ps.to_arviz(model, torch.randn(5, EVENT), draws=50, predictive=False)
    loc = model.prior.components.loc.detach().numpy()
    for group in ("posterior", "prior"):
        y, k = (idata[group][name].values[0] for name in ("y", "component"))
        assert np.abs(y - loc[k]).max() < 6 * 0.01  # each y has its own component
        assert k.shape == y.shape[:-1]


def test_an_explicit_content_and_other_spaces_have_y_too():
    sphere = joint(ps.priors.Spherical(3, 5.0), guide=ps.guides.PowerSpherical)
    y = ps.posterior_y(sphere, torch.randn(4, 6), draws=20)
    assert np.allclose(np.linalg.norm(y.draws, axis=-1), 1)
    style = joint(ps.priors.ContentStyle(2, 1))
    found = ps.to_arviz(style, torch.randn(4, 6), draws=5)["posterior"]["y"]
    assert found.dims == ("chain", "draw", "item", "y_dim") and found.shape[-1] == 2
    explicit = joint(ps.priors.Gaussian(3, 0.5), content=ps.guides.Content(3))
    assert ps.posterior_y(explicit, torch.randn(4, 6), draws=7).draws.shape == (7, 4, 3)


def test_items_without_a_label_have_no_name():
    x, labels = torch.randn(6, 6), torch.tensor([1, -1, 0, -1, 1, 0])
    names = ["owl", "", "cat", "", "owl", "cat"]
    split = ps.data.Split(x, labels, classes=("cat", "owl"))
    groups = ps.data.groups([x, x], labels, classes=("cat", "owl"))
    for data in (split, groups):
        idata = ps.to_arviz(joint(ps.priors.Gaussian(3, 0.5)), data, draws=3)
        assert idata["constant_data"]["label_name"].values.tolist() == names
        assert idata["constant_data"]["label"].values.tolist() == labels.tolist()


def test_evidence_and_names_of_classes_are_in_the_file(tmp_path):
    model = joint(ps.priors.Gaussian(3, 0.5))
    x, names = torch.randn(6, 6), ["owl", "cat"] * 3
    data = ps.data.arrays(x, names, test=x, test_labels=names).train
    idata = ps.to_arviz(model, data, draws=30, particles=50)
    torch.manual_seed(0)
    assert idata["constant_data"]["label_name"].values.tolist() == names
    stats = idata["sample_stats"]
    assert stats["log_evidence"].dims == ("item",) and stats["ess"].min() >= 1
    assert (stats["log_evidence"].values > stats["log_p"].values[0].mean(0) - 99).all()
    assert "log_likelihood" not in idata
    idata.to_netcdf(tmp_path / "posterior.nc")


class Bare(ps.priors.Prior):
    """Independent views, without a content."""

    def __init__(self) -> None:
        super().__init__()
        self.dim = 3

    def forward(self, views, *, present=None):
        return dist.Normal(torch.zeros(views, 3), 1.0).to_event(2)


def test_a_prior_without_a_content_has_no_posterior_of_y():
    model = joint(Bare())
    idata = ps.to_arviz(model, torch.randn(2, 6), draws=3)
    assert "y" not in idata["posterior"]
    with pytest.raises(ValueError, match="prior with a content y.*Bare.*posterior_y"):
        ps.posterior_y(model, torch.randn(2, 6))


class TwoClasses(ps.priors.Prior):
    """y around -3 or 3, views wide around it: z says little of the class."""

    dim = 1

    def __init__(self, made: str) -> None:
        super().__init__()
        self.made = made

    def _joint(self, views: int) -> dist.TorchDistribution:
        covariance = 0.25 * torch.ones(views, views) + 16 * torch.eye(views)
        each = dist.MultivariateNormal(
            torch.tensor([[-3.0], [3.0]]).expand(2, views), covariance
        )
        return dist.MixtureSameFamily(self.component(), each)

    def forward(self, views: int, *, present: Tensor | None = None):
        return dist.TransformedDistribution(
            self._joint(views), dist.transforms.ReshapeTransform((views,), (views, 1))
        )

    def component(self) -> dist.Categorical:
        return dist.Categorical(torch.tensor([0.5, 0.5]))

    def responsibilities(
        self, z: Tensor, present: Tensor | None = None, **given: Tensor
    ):
        mixture = self._joint(z.shape[-2])
        each = mixture.component_distribution.log_prob(z[..., 0].unsqueeze(-2))
        return dist.Categorical(logits=self.component().logits + each)

    def posterior_y(self, z: Tensor, present: Tensor | None = None, **given: Tensor):
        precision = 4 + z.shape[-2] / 16
        pull = z[..., 0].sum(-1, keepdim=True) / 16
        loc = ((torch.tensor([-12.0, 12.0]) + pull) / precision).unsqueeze(-1)
        scale = torch.full_like(loc, precision**-0.5)
        shares = self.responsibilities(z).logits
        if self.made == "MixtureOfDiagNormals":
            return dist.MixtureOfDiagNormals(loc, scale, shares)
        make = torch.distributions if self.made == "torch" else dist
        each = make.Independent(make.Normal(loc, scale), 1)
        return make.MixtureSameFamily(make.Categorical(logits=shares), each)


@pytest.mark.parametrize("made", ["torch", "pyro"])
def test_y_is_drawn_with_its_component_for_any_mixture(made):
    idata = ps.to_arviz(joint(TwoClasses(made)), torch.randn(3, 6), draws=200)
    for group in ("posterior", "prior"):
        y, k = (idata[group][name].values.ravel() for name in ("y", "component"))
        assert len({*k}) == 2 and ((y > 0) == (k == 1)).all()


def test_a_posterior_of_y_without_its_component_is_refused():
    model = joint(TwoClasses("MixtureOfDiagNormals"))
    with pytest.raises(TypeError, match="MixtureSameFamily of 2, of which .* got Mixt"):
        ps.posterior_y(model, torch.randn(3, 6))


def test_a_guide_of_y_needs_one_support_of_p_y():
    class Wide(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.width = ps.hyper.Positive(dist.LogNormal(0.0, 1.0), "width")

        def forward(self) -> dist.TorchDistribution:
            width = self.width()
            width = width.expand(*width.shape[:-1], 1)
            return dist.Uniform(torch.zeros_like(width), width).to_event(1)

    prior = ps.priors.Custom(
        lambda y: dist.Normal(y, 0.3).to_event(1), 1, y_prior=Wide()
    )
    data = torch.randn(3, 6)
    unit = dist.constraints.interval(0.0, 1.0)
    guide = ps.guides.Content(1, support=unit)
    with pytest.raises(ValueError, match="on one support .* ends that move with width"):
        ps.evidence(joint(prior, content=guide), data)
