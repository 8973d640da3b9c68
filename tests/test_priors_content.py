"""Custom priors with a p(y) of any kind: against enumeration and plain quadrature."""

import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers.catalogue import joint
from helpers.checks import assert_mean, refusals, seeded
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, biject_to
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing import assert_close

import probssl as ps
from probssl.priors import Custom, Enumeration, ImportanceSampling, Quadrature
from probssl.priors._proposal import _Stereographic

pytestmark = pytest.mark.usefixtures("float64")
PLACES = torch.tensor([[-3.0, 0.0], [0.0, 3.0], [1.0, 1.0], [2.0, -1.0]]).double()
SHARES = torch.tensor([0.1, 0.2, 0.3, 0.4]).double()


def normal(scale: float):
    return lambda y: dist.Normal(y, scale).to_event(1)


class Linear(nn.Module):
    """p(z|y) = N(A y, s²), with another dimension of y than of z."""

    def __init__(self, y_dim: int, dim: int, scale: float = 0.3) -> None:
        super().__init__()
        weight = torch.linspace(-1, 1.3, y_dim * dim).view(dim, y_dim)
        self.weight, self.scale = nn.Parameter(weight), scale

    def forward(self, y: Tensor) -> dist.TorchDistribution:
        return dist.Normal(y @ self.weight.T, self.scale).to_event(1)


class Classes(nn.Module):
    """A place for each class, learned, and the weights of the classes."""

    def __init__(self) -> None:
        super().__init__()
        self.places = nn.Parameter(PLACES.clone())

    def forward(self, y: Tensor) -> dist.TorchDistribution:
        return dist.Normal(self.places[y], 0.3).to_event(1)


class Weights(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(SHARES.log())

    def forward(self) -> dist.TorchDistribution:
        return dist.Categorical(logits=self.logits)


# p(z|y), p(y), and all values of y.
BITS = [torch.tensor(bits).double() for bits in itertools.product([0.0, 1.0], repeat=3)]
DISCRETE = {
    "categorical": lambda: (
        Classes(),
        dist.Categorical(SHARES),
        list(torch.arange(4)),
    ),
    "learned weights": lambda: (Classes(), Weights(), list(torch.arange(4))),
    "one-hot": lambda: (
        lambda y: dist.Normal(y @ PLACES, 0.3).to_event(1),
        dist.OneHotCategorical(SHARES),
        list(torch.eye(4)),
    ),
    "three bits": lambda: (
        Linear(3, 2),
        dist.Bernoulli(torch.tensor([0.2, 0.5, 0.7])).to_event(1),
        BITS,
    ),
    "a bit": lambda: (
        lambda y: dist.Normal(y[..., None] * PLACES[1], 0.5).to_event(1),
        dist.Bernoulli(0.3),
        [torch.tensor(0.0), torch.tensor(1.0)],
    ),
    "a product": lambda: (
        normal(0.3),
        dist.Bernoulli(torch.tensor([0.2, 0.5])).to_event(1),
        [bits[:2] for bits in BITS[::2]],
    ),
}


@pytest.mark.parametrize("kind", DISCRETE)
@pytest.mark.parametrize("views", [1, 2, 4])
def test_a_discrete_content_is_summed_out_and_shared_by_the_views(kind, views):
    conditional, content, values = DISCRETE[kind]()
    prior = Custom(conditional, 2, y_prior=content)
    p = prior.content()
    z = torch.cat([prior(views).sample((5,)), torch.randn(3, views, 2)]).detach()
    z.requires_grad_()
    present = torch.rand(8, views) < 0.6
    for mask in (None, present):
        seen = torch.ones(8, views) if mask is None else mask
        each = [
            p.log_prob(y)
            + (conditional(y.expand(8, views, *y.shape)).log_prob(z) * seen).sum(-1)
            for y in values
        ]
        plain, found = torch.stack(each).logsumexp(0), prior.log_prob(z, mask)
        assert_close(found, plain)
        leaves = [z, *prior.parameters()]
        assert_close(
            torch.autograd.grad(found.sum(), leaves, retain_graph=True),
            torch.autograd.grad(plain.sum(), leaves, retain_graph=True),
        )
    assert isinstance(prior.integral, Enumeration)
    assert prior.integral.each == (kind == "a product")
    assert_close(prior.log_prob(z[2:3]), prior.log_prob(z)[2:3])


def test_a_discrete_content_has_classes_and_a_posterior():
    prior = Custom(Classes(), 2, y_prior=dist.Categorical(SHARES))
    z = prior(2).sample((6,)).detach()
    log_joint = SHARES.log() + torch.stack(
        [dist.Normal(place, 0.3).log_prob(z).sum((-2, -1)) for place in PLACES], -1
    )
    found = prior.responsibilities(z)
    assert_close(found.probs.detach(), log_joint.softmax(-1))
    posterior = prior.posterior_y(z)
    assert_close(
        posterior.log_prob(torch.arange(4).view(4, 1)).detach(),
        found.logits.mT.detach(),
    )
    drawn = posterior.sample((2_000,))
    assert drawn.shape == (2_000, 6) and not drawn.is_floating_point()
    assert_mean((drawn == 1).double(), found.probs[:, 1].detach())
    known = torch.tensor([0, 1, 2, 3, -1, 1])
    given = prior(2, component=known).log_prob(z)
    expected = (log_joint - SHARES.log())[torch.arange(6), known.clamp(min=0)]
    expected[4] = prior.log_prob(z)[4]
    assert_close(given.detach(), expected.detach())
    near = prior(2, component=torch.tensor([1, 1])).sample((500,))
    assert_mean(near.flatten(0, 2), PLACES[1])


def test_samples_of_a_discrete_content_share_it():
    prior = Custom(Classes(), 2, y_prior=dist.Categorical(SHARES))
    z = prior(3).sample((4_000,)).detach()
    nearest = torch.cdist(z, PLACES).argmin(-1)
    assert (nearest == nearest[:, :1]).double().mean() > 0.99
    assert_mean((nearest[:, 0] == 3).double(), SHARES[3])


def scales(*numbers: float, dim: int = 2) -> dist.TorchDistribution:
    """A scale mixture of normals in each dimension, as a stranger would write it."""
    weight = torch.ones(dim, len(numbers))
    parts = dist.Normal(torch.zeros(()), torch.tensor(numbers).expand(dim, -1))
    return dist.MixtureSameFamily(dist.Categorical(weight), parts).to_event(1)


def box(low: float, high: float) -> dist.TorchDistribution:
    return dist.Uniform(torch.full((2,), low), high).to_event(1)


def two_lumps() -> dist.TorchDistribution:
    """A mixture of two correlated normals, one of them narrow."""
    loc = torch.tensor([[-2.0, 0.0], [2.0, 1.0]])
    covariance = torch.stack([0.05 * torch.eye(2), torch.eye(2) + 0.5])
    parts = dist.MultivariateNormal(loc, covariance)
    return dist.MixtureSameFamily(dist.Categorical(torch.tensor([0.3, 0.7])), parts)


class Bent(nn.Module):
    """A network of y in front of a normal p(z|y), of another dimension."""

    def __init__(self, dim: int = 3) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, dim))

    def forward(self, y: Tensor) -> dist.TorchDistribution:
        return dist.Normal(self.net(y), 0.2).to_event(1)


CONTINUOUS = {
    "network": lambda: (Bent(), 3, dist.Normal(torch.zeros(2), 1.0).to_event(1)),
    "network of a scale mixture": lambda: (Bent(), 3, scales(0.3, 3.0)),
    "two lumps": lambda: (normal(0.2), 2, two_lumps()),
    "Student-t": lambda: (
        Linear(2, 3),
        3,
        dist.StudentT(3.0, torch.zeros(2), 1.0).to_event(1),
    ),
    "simplex": lambda: (Linear(3, 2), 2, dist.Dirichlet(torch.tensor([0.7, 1.0, 2.0]))),
    "box": lambda: (Linear(2, 3, 0.1), 3, box(-1.0, 1.0)),
    "beta": lambda: (
        Linear(2, 3, 0.1),
        3,
        dist.Beta(torch.tensor([0.5, 2.0]), 3.0).to_event(1),
    ),
    "log-normal": lambda: (
        Linear(2, 3),
        3,
        dist.LogNormal(torch.zeros(2), 1.0).to_event(1),
    ),
}


def by_grid(conditional, content, z: Tensor) -> Tensor:
    """The trapezoidal rule on a plane, in the coordinates that `biject_to` gives."""
    support = biject_to(ps.distributions.supports.support_of(content))
    place = torch.linspace(-8.0, 8.0, 401)
    place, width = 0.03 * place.sinh().clamp(-400, 400), 0.03 * place.cosh() * 0.04
    u = torch.cartesian_prod(place, place)
    y = support(u)
    log_weight = width.log()[:, None] + width.log()
    log_joint = log_weight.flatten() + support.log_abs_det_jacobian(u, y)
    log_joint = log_joint + content.log_prob(y)
    views = conditional(y)
    each = [log_joint + sum(views.log_prob(v) for v in item) for item in z]
    return torch.stack([e.nan_to_num(-math.inf).logsumexp(0) for e in each])


@pytest.mark.parametrize("kind", CONTINUOUS)
def test_any_continuous_content_is_integrated_out(kind):
    conditional, dim, content = CONTINUOUS[kind]()
    prior = Custom(conditional, dim, y_prior=content)
    assert isinstance(prior.integral, ImportanceSampling)
    with torch.no_grad(), pyro.validation_enabled(False):
        for views in (1, 3):
            z = prior(views).sample((4,))
            found, plain = prior.log_prob(z), by_grid(conditional, content, z)
            # The error of an estimate from 512 samples or more is below 1 / sqrt(20).
            bar = 5 / prior.effective_sample_size(z).clamp(min=20).sqrt()
            assert ((found - plain).abs() < bar).all(), (found - plain, bar)
            assert (found - plain).abs().median() < 0.2
        masked = torch.cat([z[:, :1], torch.full_like(z, 1e3)], 1)
        seen = torch.tensor([True, False, False, False]).expand(4, -1)
        off = prior.log_prob(masked, seen) - by_grid(conditional, content, z[:, :1])
        assert off.abs().median() < 0.1


def test_a_scale_mixture_is_a_sum_of_gaussians():
    prior, z = (
        Custom(normal(0.3), 2, y_prior=scales(0.01, 0.3, 3.0)),
        torch.randn(6, 3, 2),
    )
    assert isinstance(prior.integral, Quadrature)
    each = []
    for scale in (0.01, 0.3, 3.0):
        covariance = 0.09 * torch.eye(3) + scale**2
        dense = MultivariateNormal(torch.zeros(3), covariance)
        each.append(dense.log_prob(z.mT) - math.log(3))
    assert_close(
        prior.log_prob(z), torch.stack(each).logsumexp(0).sum(-1), rtol=0, atol=1e-6
    )


def test_a_narrow_component_away_from_the_views_is_found():
    parts = dist.Normal(torch.tensor([[0.0, 5.0]]), torch.tensor([[1.0, 1e-3]]))
    content = dist.MixtureSameFamily(dist.Categorical(torch.ones(1, 2)), parts)
    prior = Custom(normal(1.0), 1, y_prior=content.to_event(1))
    z = torch.tensor([4.0, 7.0]).view(2, 1, 1)
    lumps = [
        dist.Normal(loc, math.hypot(1, s)).log_prob(z)
        for loc, s in ((0.0, 1.0), (5.0, 1e-3))
    ]
    plain = torch.stack(lumps).logsumexp(0) - math.log(2)
    assert_close(prior.log_prob(z), plain.flatten(), rtol=0, atol=1e-6)


def test_a_content_on_a_sphere_is_integrated_out():
    content = ps.distributions.VonMisesFisher(
        torch.tensor([0.0, 0.6, 0.8]), torch.tensor(2.0)
    )
    prior = Custom(normal(0.2), 3, y_prior=content)
    z = prior(2).sample((5,))
    cosine, angle = torch.linspace(-1, 1, 401), torch.linspace(0, 2 * math.pi, 401)[1:]
    cosine, angle = torch.meshgrid((cosine[1:] + cosine[:-1]) / 2, angle, indexing="ij")
    flat = (1 - cosine.square()).sqrt()
    y = torch.stack([flat * angle.cos(), flat * angle.sin(), cosine], -1).flatten(0, 1)
    log_joint = content.log_prob(y) + math.log(4 * math.pi / len(y))
    views = prior.given(y)
    plain = [(log_joint + sum(map(views.log_prob, item))).logsumexp(0) for item in z]
    assert_close(prior.log_prob(z), torch.stack(plain), rtol=0, atol=0.2)


def test_the_stereographic_map_is_a_bijection_with_its_volume():
    centre = torch.nn.functional.normalize(torch.randn(4, 3), dim=-1)
    map_, u = _Stereographic(centre), torch.randn(4, 2)
    y = map_(u)
    assert_close(map_(torch.zeros(4, 2)), centre)
    assert_close(map_.inv(y), u)
    jacobian = torch.func.jacrev(lambda u: map_(u))(u).diagonal(dim1=0, dim2=2)
    volume = (jacobian.movedim(-1, 0).mT @ jacobian.movedim(-1, 0)).det().log() / 2
    assert_close(map_.log_abs_det_jacobian(u, y), volume)


def test_two_scales_that_are_random_are_two_sites():
    prior = Custom(Noise(), 2, y_prior=Wide())
    assert sorted(h.name for h in prior.random()) == ["scale", "y_scale"]
    z = torch.randn(5, 3, 2)
    drawn = {"scale": torch.rand(4, 1) + 0.1, "y_scale": torch.rand(4, 1) + 0.1}
    together = prior(3, **drawn).log_prob(z)
    rows = zip(drawn["scale"], drawn["y_scale"], strict=True)
    each = [ps.priors.Gaussian(2, float(s), float(t)).log_prob(z) for s, t in rows]
    assert_close(together, torch.stack(each), rtol=0, atol=1e-6)
    assert prior(3, **drawn).sample((2,)).shape == (2, 4, 1, 3, 2)
    model = joint(prior, event=5)
    ps.fit(ps.limits.SimVAE(model), torch.rand(16, 5), epochs=1, progress=False)
    idata = ps.to_arviz(model, torch.rand(4, 5), draws=7)
    assert idata.posterior["y_scale"].shape == idata.posterior["scale"].shape == (1, 7)


class Noise(nn.Module):
    """Its hyper-parameter is called, without an argument of its name."""

    def __init__(self, name: str = "scale") -> None:
        super().__init__()
        self.scale = ps.hyper.Positive(dist.LogNormal(-1.0, 0.5), name)

    def forward(self, y: Tensor) -> dist.TorchDistribution:
        return dist.Normal(y, self.scale()).to_event(1)


class Required(Noise):
    """Its hyper-parameter is an argument without a default."""

    def forward(self, y: Tensor, scale: Tensor) -> dist.TorchDistribution:
        return dist.Normal(y, scale).to_event(1)


class Wide(nn.Module):
    def __init__(self, name: str = "y_scale") -> None:
        super().__init__()
        self.scale = ps.hyper.Positive(dist.LogNormal(0.0, 0.5), name)

    def forward(self) -> dist.TorchDistribution:
        return dist.Normal(torch.zeros(2), self.scale() * torch.ones(2)).to_event(1)


def test_a_hyper_parameter_may_be_an_argument_without_a_default():
    z, value = torch.randn(5, 2, 2), torch.tensor(0.7)
    found = Custom(Required(), 2)(2, scale=value).log_prob(z)
    assert_close(found, ps.priors.Gaussian(2, 0.7).log_prob(z), rtol=0, atol=1e-8)


class PerDimension(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        value = dist.LogNormal(torch.zeros(2), 0.5).to_event(1)
        self.scale = ps.hyper.Positive(value, "scale", dim=2)

    def forward(self, y: Tensor) -> dist.TorchDistribution:
        return dist.Normal(y, self.scale()).to_event(1)


def test_a_hyper_parameter_may_have_a_value_for_each_dimension():
    z, drawn = torch.randn(5, 3, 2), torch.rand(4, 1, 2) + 0.1
    found = Custom(PerDimension(), 2)(3, scale=drawn).log_prob(z)
    each = [ps.priors.Gaussian(2, row[0]).log_prob(z) for row in drawn]
    assert_close(found, torch.stack(each), rtol=0, atol=1e-6)


class Places(nn.Module):
    """Components with a random spread."""

    components = 3

    def __init__(self) -> None:
        super().__init__()
        self.spread = ps.hyper.Positive(dist.LogNormal(0.0, 0.5), "spread")

    def forward(self) -> tuple[Tensor, Tensor]:
        return self.spread() * torch.ones(3, 2), torch.ones(1, 1)


class Unused(Noise):
    def forward(self, y: Tensor) -> dist.TorchDistribution:
        return dist.Normal(y, 0.3).to_event(1)


class Matrix(Noise):
    """A matrix of the value that forgets its batch axes."""

    def forward(self, y: Tensor) -> dist.TorchDistribution:
        return dist.MultivariateNormal(y, scale_tril=self.scale() * torch.eye(2))


class Sampling(nn.Module):
    def forward(self, y: Tensor) -> dist.TorchDistribution:
        scale = pyro.sample("s", dist.LogNormal(0.0, 1.0))
        return dist.Normal(y, scale).to_event(1)


class Mixed(nn.Module):
    """Batch normalisation mixes items."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(2)

    def forward(self, y: Tensor) -> dist.TorchDistribution:
        loc = self.norm(y.reshape(-1, 2)).view_as(y)
        return dist.Normal(loc, 0.3).to_event(1)


def content(y_prior: dist.TorchDistribution):
    return lambda: Custom(normal(0.3), 2, y_prior=y_prior)


test_what_is_no_prior_is_refused = refusals(
    *(
        (lambda kind=kind: kind(2, Places()), ValueError, "no random hyper-parameter")
        for kind in (ps.priors.Mixture, ps.priors.TwoTier)
    ),
    (lambda: Custom(Noise("y"), 2), ValueError, "a name of its own"),
    (lambda: Custom(Noise(), 2, y_prior=Wide("scale")), ValueError, "taken or twice"),
    (lambda: Custom(Unused(), 2), ValueError, "expected 'scale' to change"),
    (lambda: Custom(Matrix(), 2), ValueError, r"forward\(self, y, scale\)"),
    (
        lambda: Custom(Sampling(), 2),
        ValueError,
        "without pyro.sample, got the site 's'",
    ),
    (lambda: Custom(Mixed(), 2), ValueError, "batch normalisation"),
    (
        lambda: joint(Custom(lambda y: dist.VonMises(y, 4.0).to_event(1), 2)),
        ValueError,
        "a guide on the space of the prior",
    ),
    (content(dist.Poisson(2.0)), ValueError, "finitely many values"),
    (content(dist.Normal(0.0, 1.0)), ValueError, r"event shape \(k,\)"),
    (
        lambda: Custom(
            Linear(13, 2), 2, y_prior=dist.Bernoulli(torch.ones(13) / 2).to_event(1)
        )(2).log_prob(torch.randn(1, 2, 2)),
        ValueError,
        "at most 4,096 values, got 2.13",
    ),
    (
        lambda: Custom(lambda y: dist.Bernoulli(logits=y).to_event(1), 2),
        ValueError,
        "expected a density p",
    ),
    (
        lambda: Custom(Classes(), 2, y_prior=Weights()).log_kernel(
            PLACES, PLACES, True
        ),
        TypeError,
        "plug_in=True",
    ),
    (
        lambda: joint(
            Custom(Classes(), 2, y_prior=Weights()), content=ps.guides.Content(2)
        ),
        ValueError,
        "sums out exactly",
    ),
    (
        lambda: Custom(normal(0.3), 2).responsibilities(torch.randn(3, 2, 2)),
        ValueError,
        "for classes",
    ),
)


@pytest.mark.parametrize("kind", ["categorical", "three bits", "network", "simplex"])
def test_every_use_of_a_prior_takes_its_content(kind):
    if kind in DISCRETE:
        conditional, y_prior, _ = DISCRETE[kind]()
        dim = 2
    else:
        conditional, dim, y_prior = CONTINUOUS[kind]()
    prior = Custom(conditional, dim, y_prior=y_prior)
    model = joint(prior, event=5)
    objective = ps.limits.SimVAE(model)
    before = [p.clone() for p in prior.parameters()]
    data = ps.data.groups(torch.rand(16, 2, 5))
    ps.fit(objective, data, epochs=1, batch_size=8, progress=False)
    assert all((p != b).any() for p, b in zip(prior.parameters(), before, strict=True))
    ps.to_arviz(model, torch.rand(4, 5), draws=5)
    assert math.isfinite(ps.evidence(model, torch.rand(4, 5), particles=5).mean)
    z = torch.randn(4, 2, dim)
    parts = ps.limits.Embedding(nn.Identity(), prior, ps.entropies.LogDeterminant())
    assert torch.isfinite(sum(parts(ps.Batch(z))))
    assert prior.pmi(z[:, 0], z[:, 1]).isfinite().all()
    if kind == "categorical":
        assert ps.classify(model, torch.rand(6, 5)).shape == (6, 4)


def test_tracing_draws_the_same_values():
    prior = Custom(Linear(3, 2), 2, y_prior=dist.Dirichlet(torch.ones(3)))
    z = torch.randn(3, 2, 2)

    traced = make_fx(lambda z: prior.log_prob(z))(z)
    assert_close(seeded(traced, z), seeded(prior.log_prob, z))


def test_fit_warns_once_of_a_small_effective_sample_size(caplog):
    def far_off(z: Tensor, present: Tensor | None) -> dist.TorchDistribution:
        return dist.Normal(z.mean(-2) + 1, 0.1).to_event(1)

    for proposal, warnings in ((far_off, 1), (None, 0)):
        rule = ImportanceSampling(100, proposal)
        model = joint(Custom(normal(0.3), 2, integral=rule), event=5)
        with caplog.at_level("WARNING"):
            ps.fit(ps.limits.SimVAE(model), torch.rand(16, 5), epochs=3, progress=False)
        said = [r.message for r in caplog.records if "effective sample" in r.message]
        assert len(said) == warnings and all("guides.Content" in text for text in said)
        caplog.clear()


def test_one_item_with_a_small_effective_sample_size_is_not_passed_over():
    def near_zero(z: Tensor, present: Tensor | None) -> dist.TorchDistribution:
        return dist.Normal(torch.zeros_like(z[..., 0, :]), 0.35).to_event(1)

    rule = ImportanceSampling(200, near_zero)
    prior = Custom(normal(0.3), 2, integral=rule).eval()
    z = torch.zeros(50, 1, 2)
    assert prior.effective_sample_size(z).amin() > 20
    z[7] = 3.0
    for place in (z, z.clone().requires_grad_()):
        with pytest.warns(RuntimeWarning, match=r"below 20 for 2 % of the items.*Cont"):
            prior.log_prob(place)
    prior.train().log_prob(place)  # place carries a gradient
    assert "below 20 for 2 %" in prior.remark()
    assert prior.remark() is None


class Unbroadcast(dist.TorchDistribution):
    """A density of one's own that takes values of its own shape only."""

    arg_constraints, support = {}, dist.constraints.real_vector

    def __init__(self, loc: Tensor) -> None:
        self.loc = loc
        super().__init__(loc.shape[:-1], loc.shape[-1:], validate_args=False)

    def sample(self, sample_shape=()) -> Tensor:
        return dist.Normal(self.loc, 0.3).sample(sample_shape)

    def log_prob(self, z: Tensor) -> Tensor:
        bent = z[..., 1] - (z - self.loc)[..., 0].square()
        z = torch.stack([z[..., 0], bent], -1)
        return dist.Normal(self.loc, 0.3).log_prob(z).sum(-1)


def test_a_density_that_does_not_broadcast_is_integrated():
    prior, z = Custom(Unbroadcast, 2), torch.randn(4, 3, 2)
    content = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    place = torch.cartesian_prod(*[torch.linspace(-6, 6, 301)] * 2)
    p = Unbroadcast(place)
    log_joint = content.log_prob(place) + math.log(0.04**2)
    each = [log_joint + sum(p.log_prob(v.expand_as(place)) for v in item) for item in z]
    plain = torch.stack(each).logsumexp(1)
    bar = 5 / prior.effective_sample_size(z).sqrt()
    assert ((prior.log_prob(z) - plain).abs() < bar).all()
    kernel = prior.log_kernel(z[:, 0], z[:, 1], True)
    assert_close(kernel.diagonal(), Unbroadcast(z[:, 0]).log_prob(z[:, 1]))


@pytest.mark.parametrize(
    ("y_prior", "options"),
    [
        (dist.Dirichlet, {"support": dist.constraints.simplex}),
        (dist.Exponential, {"support": dist.constraints.positive}),
        (lambda scale: dist.Normal(torch.zeros(3), scale), {}),
    ],
    ids=["simplex", "positive", "real"],
)
def test_a_guide_of_the_content_has_its_dimension_and_support(y_prior, options):
    guide, y_prior = ps.guides.Content(2, y_dim=3, **options), y_prior(torch.ones(3))
    y_prior = y_prior.to_event(1 - len(y_prior.event_shape))
    prior = Custom(Linear(3, 2), 2, y_prior=y_prior)
    model = joint(prior, event=5, content=guide)
    objective = ps.limits.SimVAE(model)
    ps.fit(objective, ps.data.groups(torch.rand(16, 2, 5)), epochs=1, progress=False)
    idata = ps.to_arviz(model, torch.rand(4, 5), draws=5)
    y = torch.as_tensor(idata.posterior["y"].values)
    assert y.shape == (1, 5, 4, 3)
    assert ps.distributions.supports.support_of(y_prior).check(y).all()


class Spread(nn.Module):
    """p(z|y) of three classes with one random scale."""

    def __init__(self) -> None:
        super().__init__()
        self.loc = nn.Parameter(3 * torch.eye(3))
        self.scale = ps.hyper.Positive(dist.LogNormal(0.0, 1.0), "spread")

    def forward(self, y: Tensor) -> dist.TorchDistribution:
        return dist.Normal(self.loc[y.long()], self.scale()).to_event(1)


def test_classes_are_found_under_each_drawn_hyper_parameter():
    """Draws of the guide have an axis in front of that of the items."""
    prior = Custom(Spread(), 3, y_prior=dist.Categorical(torch.ones(3)))
    spread, z = torch.tensor([[0.3], [2.0]]), torch.randn(2, 5, 2, 3)
    with prior.at(spread=spread):
        found = prior.responsibilities(z).probs
    density = dist.Normal(prior.conditional.loc, spread.view(2, 1, 1, 1, 1))
    right = density.log_prob(z.unsqueeze(-2)).sum((-1, -3)).softmax(-1)
    assert_close(found, right)
    net, out = ps.nn.MLPEncoder((4,), 3), ps.nn.MLPDecoder(3, (4,))
    joint = ps.Joint(prior, ps.likelihoods.Gaussian(0.5), net, out)
    x, labels = torch.randn(30, 4), torch.arange(30) % 3
    simvae = ps.limits.SimVAE(joint, bound=ps.bounds.ELBO(4))
    ps.fit(simvae, x, content=labels, epochs=1, progress=False)
    with pytest.warns(UserWarning, match="Pareto"):
        shares = ps.classify(simvae, x[:10], weighted=True, draws=40)
    assert shares.shape == (10, 3)


def test_absent_views_are_completed_for_several_draws():
    both = torch.tensor([[1.0, 0.8], [0.8, 1.0]]).double()
    content = dist.MultivariateNormal(torch.zeros(2).double(), both)
    prior = Custom(normal(0.5), 2, y_prior=content)
    present = torch.tensor([[True, False]]).expand(6, 2)
    z = torch.randn(4, 6, 2, 2, dtype=torch.double)
    p = prior(2, present=present)
    first = MultivariateNormal(torch.zeros(2).double(), both + 0.25 * torch.eye(2))
    exact = first.log_prob(z[..., 0, :])
    assert_close(seeded(p.log_prob, z), exact, atol=0.15, rtol=0)
    completed = p.complete(z, present)
    assert_close(completed[..., 0, :], z[..., 0, :])


class Tempered(ps.priors.Prior):
    """p(k) = softmax(a_k / t) with a random t; z_v | k ~ N(m_k, s²)."""

    def __init__(self) -> None:
        super().__init__()
        self.dim = 2
        self.t = ps.hyper.Positive(dist.LogNormal(0.0, 1.0), "t")
        self.register_buffer("places", PLACES[:3])
        self.register_buffer("logits", torch.tensor([2.0, 0.0, -1.0]))

    def shares(self, **drawn: Tensor) -> Tensor:
        return (self.logits / self.t.of(drawn).unsqueeze(-1)).log_softmax(-1)

    def component(self) -> dist.Categorical:
        return dist.Categorical(logits=self.shares())

    def forward(self, views, *, present=None, component=None, **drawn):
        shares = self.shares(**drawn)
        if component is not None:
            other = torch.arange(3) != component.unsqueeze(-1)
            other = other & (component >= 0).unsqueeze(-1)
            shares = torch.where(other, -math.inf, shares)
        one = self.places.new_ones(1, 1)
        return ps.distributions.SharedComponent(
            shares, self.places, one, 0 * one, views, present=present
        )


def test_known_classes_have_the_weights_of_drawn_hyper_parameters():
    model, k = joint(Tempered()), torch.tensor([0, 1, 2, 0])
    batch = ps.Batch(torch.rand(4, 2, 6).double(), content=k)
    model.population = torch.tensor(4.0)
    guide = pyro.poutine.trace(model.guide).get_trace(batch)
    trace = pyro.poutine.trace(pyro.poutine.replay(model.model, guide))
    site, t = trace.get_trace(batch).nodes["component"], guide.nodes["t"]["value"]
    expected = (model.prior.logits / t).log_softmax(-1)[k]
    assert_close(site["fn"].log_prob(site["value"]), expected)
