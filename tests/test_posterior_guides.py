"""Guides without a density, or without some of the prior's support, have no weights."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import biject_to

import probssl as ps
from probssl.bounds import log_weights
from probssl.distributions.supports import narrower
from probssl.terms import Batch
from probssl.testing import LawError, check_guide

pytestmark = pytest.mark.usefixtures("float64")
SCALE, NOISE, ITEMS = 0.6, 0.5, 4
MEANS = torch.tensor([-1.0, 1.0])


class Same(nn.Module):
    """A decoder to the numbers that it is given."""

    def forward(self, z: Tensor) -> Tensor:
        return z


class Own(nn.Module):
    """A guide that makes q of the encoder's output, (item, view, 1)."""

    def __init__(self, encoder: nn.Module, make: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.encoder, self.make = encoder, make

    def forward(self, x: Tensor, prior: Any, present: Tensor | None = None) -> Any:
        return self.make(self.encoder(x.flatten(0, 1)).unflatten(0, x.shape[:2]))


class OwnViews(ps.guides.Guide):
    """A guide of independent views, which follows the prior where one is absent."""

    def __init__(self, encoder: nn.Module, make: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.factors, self.make = ps.guides.Factors(encoder, lambda d: d, 1), make

    def each(self, x: Tensor, present: Tensor | None = None) -> Any:
        return self.make(self.factors(x)[0])


class OwnContent(nn.Module):
    """A guide of y at the mean of z."""

    def __init__(self, make: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.make = make

    def forward(self, z: Tensor) -> Any:
        return self.make(z.mean(-2))


class Constant(dist.TorchDistribution):
    """A point mass that is made of no Delta."""

    arg_constraints, support = {}, dist.constraints.real_vector

    def __init__(self, point: Tensor) -> None:
        self.point = point
        shape = point.shape[:-2], point.shape[-2:]
        super().__init__(*shape, validate_args=False)

    @property
    def mean(self) -> Tensor:
        return self.point

    def sample(self, sample_shape: Any = ()) -> Tensor:
        return self.point.expand(*sample_shape, *self.point.shape)

    def log_prob(self, z: Tensor) -> Tensor:
        return z.new_zeros(z.shape[:-2])

    def expand(self, batch_shape: Any, _instance: Any = None) -> "Constant":
        return Constant(self.point.expand(*batch_shape, *self.event_shape))


def normal(m: Tensor, events: int = 2) -> Any:
    return dist.Normal(m, 0.5, validate_args=False).to_event(events)


def joint(make: Callable[[Tensor], Any], kind: str = "gaussian", **options) -> ps.Joint:
    """z of one dimension, and x = z with noise."""
    prior: Any = ps.priors.Gaussian(1, scale=SCALE)
    if kind == "classes":
        prior = ps.priors.Custom(
            lambda y: dist.Normal(MEANS[y.long()].unsqueeze(-1), 1.0).to_event(1),
            dim=1,
            y_prior=dist.Categorical(torch.ones(2)),
        )
    likelihood = ps.likelihoods.Gaussian(NOISE)
    guide = options.pop("guide", Own)
    return ps.Joint(
        prior,
        likelihood,
        nn.Linear(1, 1),
        Same(),
        guide=lambda encoder: guide(encoder, make),
        **options,
    )


def pairs(n: int = ITEMS, views: int = 1) -> ps.data.Groups:
    return ps.data.groups(torch.randn(n, views, 1))


POINTS = {
    "delta": lambda m: dist.Delta(m, event_dim=2, validate_args=False),
    "independent": lambda m: dist.Delta(m).to_event(2),
    "masked": lambda m: dist.Delta(m).to_event(2).mask(True),
    "mixture": lambda m: dist.MixtureSameFamily(
        dist.Categorical(torch.ones(2).expand(len(m), 2)),
        dist.Delta(torch.stack([m, m + 1], 1), event_dim=2),
    ),
    "own": Constant,
}
DENSITIES = {
    "evidence": lambda o: ps.evidence(o, pairs()),
    "refined": lambda o: ps.evidence(o, pairs(), refine=2),
    "compare_evidence": lambda o: ps.compare_evidence({"a": o, "b": o}, pairs()),
    "to_arviz": lambda o: ps.to_arviz(o, pairs(), draws=3),
    "posterior_y": lambda o: ps.posterior_y(o, pairs()),
    "annealed": lambda o: ps.evidence(o, pairs(), anneal=2),
    "swap": lambda o: ps.swap(o, pairs(), pairs(), draws=2),
    "latent_ranks": lambda o: ps.calibration.latent_ranks(o, 3, draws=5),
    "classify": lambda o: ps.classify(o, pairs(), weighted=True),
}


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("name", DENSITIES)
def test_a_point_mass_of_an_own_guide_is_no_density(name, point):
    model = joint(POINTS[point], "classes" if name == "classify" else "gaussian")
    with pytest.raises(ValueError, match="density for .*got Own, which returns a po"):
        DENSITIES[name](model)


@pytest.mark.parametrize("name", ["evidence", "to_arviz", "posterior_y"])
def test_a_point_mass_of_a_guide_of_the_content_is_no_density(name):
    content = OwnContent(lambda m: dist.Delta(m, event_dim=1))
    model = joint(normal, content=content)
    with pytest.raises(ValueError, match="got OwnContent, which returns a point mass"):
        DENSITIES[name](model)


def test_a_point_mass_is_found_beside_absent_views():
    model = joint(lambda m: dist.Delta(m, event_dim=1), guide=OwnViews)
    present = torch.tensor([[True, False]] * ITEMS)
    data = ps.data.groups(torch.randn(ITEMS, 2, 1), present=present)
    with pytest.raises(ValueError, match="got OwnViews, which returns a point mass"):
        ps.evidence(model, data)


def test_what_needs_no_density_takes_a_point_mass():
    model = joint(POINTS["independent"])
    assert ps.embed(model, torch.randn(3, 1)).shape == (3, 1)
    assert ps.reconstruct(model, torch.randn(3, 1)).shape == (3, 1)
    ps.fit(ps.limits.SimVAE(model), pairs(), epochs=1, batch_size=ITEMS)


class Half(dist.constraints.Constraint):
    """Numbers above -0.1, as a constraint without ends."""

    is_discrete, event_dim = False, 0

    def check(self, value: Tensor) -> Tensor:
        return value > -0.1


class Above(dist.LogNormal):
    support = Half()


NARROW = {
    "log-normal": lambda m: dist.LogNormal(m, 0.5, validate_args=False),
    "gamma": lambda m: dist.Gamma(m.exp(), 1.0, validate_args=False),
    "uniform": lambda m: dist.Uniform(m - 3, m + 3, validate_args=False),
    "shifted": lambda m: dist.TransformedDistribution(
        dist.Exponential(torch.ones_like(m)), [dist.transforms.AffineTransform(-2, 3)]
    ),
    "no ends": lambda m: Above(m, 0.5, validate_args=False),
}
WEIGHTS = {
    "evidence": DENSITIES["evidence"],
    "annealed": DENSITIES["annealed"],
    "compare_evidence": DENSITIES["compare_evidence"],
    "to_arviz": lambda o: ps.to_arviz(o, pairs(), draws=3, particles=9),
    "classify": DENSITIES["classify"],
}


@pytest.mark.parametrize("narrow", NARROW)
@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_need_all_of_the_support(name, narrow):
    kind = "classes" if name == "classify" else "gaussian"
    model = joint(lambda m: NARROW[narrow](m).to_event(2), kind)
    message = "all of the support .* on all numbers: importance weights lack .* bound"
    with pytest.raises(ValueError, match=message):
        WEIGHTS[name](model)


def test_weights_need_all_of_the_support_of_y_and_beside_absent_views():
    content = OwnContent(lambda m: dist.LogNormal(m, 0.5).to_event(1))
    with pytest.raises(ValueError, match="got OwnContent on numbers above 0"):
        ps.evidence(joint(normal, content=content), pairs())
    model = joint(lambda m: NARROW["shifted"](m).to_event(1), guide=OwnViews)
    data = ps.data.groups(
        torch.randn(ITEMS, 2, 1), present=torch.tensor([[True, False]] * ITEMS)
    )
    with pytest.raises(ValueError, match="got OwnViews on numbers of at least -2"):
        ps.evidence(model, data)


def test_draws_without_weights_take_a_narrower_guide():
    model = joint(lambda m: NARROW["log-normal"](m).to_event(2))
    assert ps.to_arviz(model, pairs(), draws=3).posterior["z"].min() > 0
    assert ps.posterior_y(model, pairs(), draws=3).draws.shape == (3, ITEMS, 1)


def exact(x: Tensor) -> Tensor:
    """log p(x) of a view of `joint`, z and noise being normal."""
    deviation = math.sqrt(1 + SCALE**2 + NOISE**2)
    return torch.distributions.Normal(0.0, deviation).log_prob(x).sum((-2, -1))


def test_a_refined_proposal_has_all_of_the_support():
    torch.manual_seed(0)
    data = pairs()
    model = joint(lambda m: NARROW["log-normal"](m).to_event(2))
    found = ps.evidence(model, data, particles=5_000, refine=100)
    error = np.sqrt(1 / found.ess - 1 / 5_000)
    apart = found.log_evidence - exact(data.views).numpy()
    assert (np.abs(apart) < 5 * error).all() and error.max() < 0.03
    assert found.before.mean < found.mean


def test_supports_are_compared_by_their_ends():
    one, real = dist.LogNormal(0.0, 1.0), dist.Normal(0.0, 1.0)
    assert narrower(one, real) == ("numbers above 0", "all numbers")
    assert narrower(real, one) is None and narrower(one, dist.Gamma(1.0, 1.0)) is None
    assert narrower(dist.Beta(2.0, 2.0), one) is not None
    unit, ends = dist.Uniform(0.0, 1.0), torch.tensor([1e-9, 0.5])
    rounded = dist.Uniform(torch.tensor(1e-7), torch.tensor(1.0 + 1e-7))
    assert narrower(rounded, unit) is None and narrower(unit, rounded) is None
    assert narrower(dist.Uniform(ends, 1.0), dist.Uniform(torch.zeros(2), 1.0))
    assert narrower(dist.Uniform(ends - 1, 2.0), unit) is None
    logit = dist.TransformedDistribution(real, [biject_to(unit.support)])
    assert narrower(logit, unit) is None and narrower(logit, real) is not None
    sphere = ps.priors.Spherical(3)(1)
    assert narrower(sphere, sphere) is None


@pytest.mark.parametrize("narrow", ["log-normal", "uniform"])
def test_the_laws_of_a_guide_name_its_support(narrow):
    guide = Own(nn.Linear(1, 1), lambda m: NARROW[narrow](m).to_event(2))
    message = "support: expected the support of Gaussian, all numbers, got numbers"
    with pytest.raises(LawError, match=message):
        check_guide(guide, ps.priors.Gaussian(1), torch.randn(3, 1, 1), draws=400)


class Scaled(Own):
    """A guide with one parameter without axes."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__(nn.Linear(1, 1), partial(normal))
        self.log_scale = nn.Parameter(torch.full(shape, -1.0))

    def forward(self, x: Tensor, prior: Any, present: Tensor | None = None) -> Any:
        if present is not None:
            raise ValueError("expected all views to be present, got a mask; drop them")
        mean = super().forward(x, prior).mean
        return dist.Normal(mean, self.log_scale.exp(), validate_args=False).to_event(2)


@pytest.mark.parametrize("shape", [(), (1,)])
def test_a_parameter_without_axes_has_a_gradient_of_samples(shape):
    check_guide(Scaled(shape), ps.priors.Gaussian(1), torch.randn(3, 2, 1), draws=1_000)


def test_draws_of_a_narrower_guide_tend_to_the_integral_over_its_support():
    torch.manual_seed(0)
    model = joint(lambda m: dist.Exponential(torch.ones_like(m)).to_event(2))
    x = torch.tensor([-0.3, 0.0, 0.2, 0.4])[:, None, None]
    with torch.no_grad():
        log_weight = log_weights(model, Batch(x), 40_000).local()
    weight = log_weight.exp()
    found, error = weight.mean(0), 5 * weight.std(0) / math.sqrt(len(weight))
    variance = 1 + SCALE**2
    z = np.linspace(1e-6, 15, 200_001)
    prior = np.exp(-(z**2) / 2 / variance) / math.sqrt(2 * math.pi * variance)
    for i, one in enumerate(x.flatten()):
        noise = np.exp(-((float(one) - z) ** 2) / 2 / NOISE**2)
        part = np.trapezoid(prior * noise, z) / math.sqrt(2 * math.pi) / NOISE
        assert abs(found[i] - part) < error[i] < exact(x)[i].exp() - part
