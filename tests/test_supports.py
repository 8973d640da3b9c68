"""Supports of transformed distributions, as parts of a prior that a user brings."""

import math

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import transforms as T
from scipy import integrate, stats
from torch.distributions import constraints

import probssl as ps
from probssl.distributions.supports import from_real, is_real, support_of, within

SCALE = 0.4
ones = torch.ones(1)


def moved(base, *transforms):
    return dist.TransformedDistribution(base, list(transforms))


ABOVE_ONE = moved(dist.Exponential(ones), T.AffineTransform(1.0, 1))
CASES = {  # a distribution, and the ends of its support
    "shifted": (moved(dist.Exponential(ones), T.AffineTransform(1.0, 2.0)), 1, None),
    "reversed": (moved(dist.Exponential(ones), T.AffineTransform(1.0, -2.0)), None, 1),
    "stretched": (
        moved(dist.Beta(ones, ones), T.AffineTransform(torch.tensor([-3.0]), 6.0)),
        -3,
        3,
    ),
    "twice": (
        moved(dist.Gamma(ones, ones), T.PowerTransform(0.5), T.AffineTransform(1.0, 1)),
        1,
        None,
    ),
    "logs": (moved(dist.Beta(ones, ones), T.ExpTransform().inv), None, 0),
    "squashed": (
        moved(dist.Exponential(ones), T.SigmoidTransform(), T.AffineTransform(0.0, 4)),
        2,
        4,
    ),
    "of a normal": (
        moved(dist.Normal(0 * ones, ones), T.ExpTransform(), T.AffineTransform(1.0, 1)),
        1,
        None,
    ),
    "nested": (
        moved(
            moved(dist.Exponential(ones), T.AffineTransform(1.0, 1)), T.ExpTransform()
        ),
        math.e,
        None,
    ),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("wrap", ("to_event", "mask", "expand"))
def test_support_is_the_image_of_that_of_the_base(name, wrap):
    made, low, high = CASES[name]
    made = {
        "to_event": lambda: made.to_event(1),
        "mask": lambda: made.mask(True).to_event(1),
        "expand": lambda: made.expand([3]).to_event(1),
    }[wrap]()
    support = support_of(made).base_constraint
    for found, end in (("lower_bound", low), ("upper_bound", high)):
        if end is None:
            assert not hasattr(support, found)
        else:
            assert float(getattr(support, found).flatten()[0]) == pytest.approx(end)
    draws = made.sample((1000,))
    assert support_of(made).check(draws).all() and within(made, draws).all()
    to_support = from_real(made)
    torch.testing.assert_close(to_support(to_support.inv(draws)), draws)
    outside = torch.full_like(draws, low - 1.0 if low is not None else high + 1.0)
    assert not within(made, outside).any()


def test_transforms_of_all_numbers_are_taken_at_their_word():
    flow = moved(
        dist.Normal(torch.zeros(2), 1.0).to_event(1), T.AffineTransform(0.0, 2.0)
    )
    assert is_real(support_of(flow))
    logistic = moved(dist.Uniform(0 * ones, ones), T.SigmoidTransform().inv)
    assert is_real(support_of(logistic))
    simplex = moved(dist.Normal(torch.zeros(2), 1.0), T.StickBreakingTransform())
    assert support_of(simplex) is constraints.simplex


def test_events_of_several_numbers_are_within_as_a_whole():
    base = dist.Exponential(torch.ones(3)).to_event(1)
    shifted_ = moved(base, T.AffineTransform(1.0, 1.0))
    value = torch.tensor([[1.5, 2.0, 3.0], [0.5, 2.0, 3.0]])
    assert within(shifted_, value).tolist() == [True, False]
    simplex = moved(dist.Normal(torch.zeros(2), 1.0), T.StickBreakingTransform())
    value = torch.tensor([[0.2, 0.3, 0.5], [0.2, 0.3, 0.9]])
    assert within(simplex, value).tolist() == [True, False]


def test_values_are_within_a_mixture_if_within_a_component():
    shares = dist.Categorical(torch.ones(2))
    low = torch.tensor([0.0, 5.0])
    boxes = dist.MixtureSameFamily(shares, dist.Uniform(low, low + 1))
    assert within(boxes, torch.tensor([0.5, 3.0, 5.5])).tolist() == [True, False, True]
    angles = dist.MixtureSameFamily(shares, dist.VonMises(low, 1.0))
    assert within(angles, torch.tensor([-6.0, 6.0])).all()  # a period is not the data's


def test_unknown_supports_are_refused():
    twice = T.AffineTransform(0.0, 2.0, event_dim=1)
    halves = moved(dist.Dirichlet(torch.ones(3)), twice)
    with pytest.raises(ValueError, match="TransformedDistribution.*support = "):
        support_of(halves)


def integral(logs, low, high, points):
    value, _ = integrate.quad(
        lambda y: math.exp(logs(y)), low, high, points=points, limit=200
    )
    return math.log(value)


def test_data_off_the_support_of_an_own_likelihood_are_refused():
    class Waiting(ps.likelihoods.Likelihood):
        def forward(self, output):
            rate = output.exp()
            made = moved(dist.Exponential(rate), T.AffineTransform(1.0, 1.0))
            return made.to_event(1)

    joint = ps.Joint(
        ps.priors.Gaussian(2, 0.3),
        Waiting(),
        ps.nn.MLPEncoder((3,), 2, (4,)),
        ps.nn.MLPDecoder(2, (3,), (4,)),
    )
    objective = ps.limits.SimVAE(joint)
    assert sum(objective(ps.Batch(1.5 + torch.rand(4, 2, 3)))).isfinite()
    with pytest.raises(ValueError, match="numbers of at least 1"):
        objective.check(ps.Batch(torch.rand(4, 2, 3)))


PAIRS = ((1.1, 0.9), (2.0, 2.2), (0.6, 0.5))


def test_content_off_zero():
    """p(y) = 1 + Exponential(1): no mass below one."""
    made = moved(dist.Exponential(ones), T.AffineTransform(1.0, 1.0)).to_event(1)
    prior = ps.priors.Custom(
        lambda y: dist.Normal(y, SCALE).to_event(1), dim=1, y_prior=made
    )
    for a, b in PAIRS:
        views = stats.norm(scale=SCALE)
        expected = integral(
            lambda y, a=a, b=b, views=views: (
                1 - y + views.logpdf(a - y) + views.logpdf(b - y)
            ),
            *(1, 20, [1.5, 2.5]),
        )
        found = prior(2).log_prob(torch.tensor([[[a], [b]]])).item()
        assert found == pytest.approx(expected, abs=2e-3)


def shifted(y):
    return moved(dist.Exponential(torch.ones_like(y)), T.AffineTransform(y, 1.0))


def pareto(y):
    return dist.Pareto(y.exp(), 3.0)


def below(y, a, b):
    """The log-density of the pair given y, by plain formulas."""
    if y > min(a, b):
        return -math.inf
    return 2 * y - a - b


def below_scale(y, a, b):
    if np.exp(y) > min(a, b):
        return -math.inf
    return 2 * math.log(3) + 6 * y - 4 * math.log(a * b)


JUMPS = "ignore:p.z.y. jumps at an end:UserWarning"


@pytest.mark.filterwarnings(JUMPS)
@pytest.mark.parametrize("family, plain", [(shifted, below), (pareto, below_scale)])
def test_views_whose_support_moves_with_the_content(family, plain):
    prior = ps.priors.Custom(lambda y: family(y).to_event(1), dim=1)
    prior.integral = ps.priors.ImportanceSampling(20_000)
    for a, b in PAIRS:
        end = min(a, b) if family is shifted else math.log(min(a, b))
        expected = integral(
            lambda y, a=a, b=b: stats.norm.logpdf(y) + plain(y, a, b),
            *(-12, end, [end - 1]),
        )
        torch.manual_seed(0)
        found = prior(2).log_prob(torch.tensor([[[a], [b]]])).item()
        assert found == pytest.approx(expected, abs=0.05)


@pytest.mark.parametrize("low", [torch.zeros(2), torch.tensor([0.0, -1.0])])
def test_bounds_that_are_tensors_and_the_same_for_every_y_stay_a_box(low):
    prior = ps.priors.Custom(
        lambda y: dist.Uniform(low.expand_as(y), 0.0 * y + 2.0).to_event(1), dim=2
    )
    z = prior.on_support(torch.randn(5, 3, 2))
    assert ((z > low) & (z < 2)).all() and (prior(3).log_prob(z) > -math.inf).all()
    assert prior(3).log_prob(z - 4).eq(-math.inf).all()


@pytest.mark.filterwarnings(JUMPS)
def test_views_whose_support_moves_are_points_of_all_numbers():
    prior = ps.priors.Custom(lambda y: shifted(y).to_event(1), dim=1)
    z = torch.randn(64, 2, 1)
    assert torch.equal(prior.on_support(z), z) and prior.space == "vectors"
    joint = ps.Joint(
        *(prior, ps.likelihoods.Gaussian(0.5)),
        *(ps.nn.MLPEncoder((3,), 1, (4,)), ps.nn.MLPDecoder(1, (3,), (4,))),
    )
    objective = ps.limits.SimVAE(joint)
    for items in (1, 3, 64):
        x = torch.randn(items, 2, 3)
        objective.check(ps.Batch(x))
        assert sum(objective(ps.Batch(x))).isfinite()


def smooth(y):
    waits = dist.Gamma(torch.full_like(y, 3.0), 3.0)
    return moved(waits, T.AffineTransform(y, 1.0))


@pytest.mark.parametrize("family, jumps", [(shifted, True), (smooth, False)])
def test_a_density_that_jumps_at_a_moving_end_is_warned_of(family, jumps):
    """The gradient with respect to z, against central differences."""

    def build():
        return ps.priors.Custom(lambda y: family(y).to_event(1), dim=1)

    if jumps:
        with pytest.warns(UserWarning, match="its gradient lacks the term"):
            build()
        return
    prior = build().double()
    with pytest.raises(ValueError, match="one support for every y.*whose ends move"):
        ps.testing.check_prior(prior)
    z = torch.tensor([[[1.1], [0.9]], [[-0.5], [0.2]]]).double().requires_grad_()
    (gradient,) = torch.autograd.grad(prior(2).log_prob(z).sum(), z)
    step = 1e-4 * torch.eye(4, dtype=torch.double).view(4, 2, 2, 1)
    with torch.no_grad():
        ends = [prior(2).log_prob(z + s * step).sum(-1) for s in (1, -1)]
    found = (ends[0] - ends[1]).view(2, 2, 1) / 2e-4
    torch.testing.assert_close(gradient, found, atol=1e-3, rtol=1e-3)


@pytest.mark.filterwarnings(JUMPS)
def test_a_view_in_place_of_y_has_no_mass_off_its_support():
    prior = ps.priors.Custom(lambda y: shifted(y).to_event(1), dim=1)
    a, b = torch.zeros(1, 1), torch.tensor([[-2.0], [1.0]])
    found = prior.log_kernel(a, b, plug_in=True)
    torch.testing.assert_close(found, torch.tensor([[-math.inf, -1.0]]))


class Widened(torch.nn.Module):
    """p(z|y) = w · Beta(2, 2), whatever y, with a learned w."""

    def __init__(self):
        super().__init__()
        self.w = ps.hyper.Positive(ps.learned(1.3), "w")

    def forward(self, y):
        two = torch.full_like(y, 2.0)
        return moved(dist.Beta(two, two), T.AffineTransform(0.0, self.w())).to_event(1)


def test_a_learned_end_is_the_present_one():
    prior = ps.priors.Custom(Widened(), dim=1)
    with torch.no_grad():
        prior.conditional.w.log.fill_(math.log(3.0))
    z = torch.tensor([[[2.0]], [[3.5]]])
    exact = torch.from_numpy(stats.beta(2, 2, scale=3).logpdf(z.flatten()))
    found = prior(1).log_prob(z).double()
    torch.testing.assert_close(found[:1], exact[:1], atol=1e-4, rtol=0)
    assert not found[1] > -30


@pytest.mark.parametrize("seed", range(5))
def test_classes_have_supports_of_their_own(seed):
    torch.manual_seed(seed)
    shares, low = torch.tensor([0.95, 0.05]), torch.tensor([0.0, 5.0])

    def given(k):
        start = low[k].unsqueeze(-1)
        return dist.Uniform(start, start + 1).to_event(1)

    prior = ps.priors.Custom(given, dim=1, y_prior=dist.Categorical(shares))
    found = prior(1).log_prob(torch.tensor([[[0.5]], [[5.5]], [[3.0]]]))
    expected = torch.cat([shares.log(), torch.tensor([-math.inf])])
    torch.testing.assert_close(found, expected)


class Elu(torch.distributions.Transform):
    """A transform whose codomain is said to be wrong: it reaches −1."""

    domain, codomain, bijective = constraints.real, constraints.positive, True

    def _call(self, x):
        return torch.nn.functional.elu(x)

    def _inverse(self, y):
        return torch.where(y > 0, y, torch.log1p(y))

    def log_abs_det_jacobian(self, x, y):
        return x.clamp(max=0)


def test_a_content_whose_draws_are_off_its_support_is_refused():
    made = moved(dist.Normal(0 * ones, ones), Elu()).to_event(1)
    with pytest.raises(ValueError, match="draws on its support, numbers above 0"):
        ps.priors.Custom(lambda y: dist.Normal(y, 1.0).to_event(1), dim=1, y_prior=made)


def test_bounds_on_either_side_are_refused():
    signs = T.AffineTransform(0.0, torch.tensor([1.0, -1.0]))
    made = moved(dist.Exponential(torch.ones(2)), signs).to_event(1)
    with pytest.raises(ValueError, match="bounded on the same sides"):
        support_of(made)


class Width(torch.nn.Module):
    """p(y) = U(0, w) with a random w."""

    def __init__(self):
        super().__init__()
        self.w = ps.hyper.Positive(dist.LogNormal(0.7, 0.2), "w")

    def forward(self):
        w = self.w()
        w = w if w.ndim else w.unsqueeze(0)
        return dist.Uniform(torch.zeros_like(w), w).to_event(1)


def test_a_content_between_random_ends():
    prior = ps.priors.Custom(
        lambda y: dist.Normal(y, SCALE).to_event(1), dim=1, y_prior=Width()
    )
    z, ends = torch.tensor([[[0.5], [0.9]], [[1.4], [2.2]]]), torch.tensor([1.5, 3.0])
    found = prior(2, w=ends).log_prob(z)
    views = stats.norm(scale=SCALE)
    for i, (a, b) in enumerate(z.flatten(1).tolist()):
        expected = integral(
            lambda y, a=a, b=b: views.logpdf(a - y) + views.logpdf(b - y),
            *(0, ends[i].item(), None),
        )
        log_width = math.log(ends[i].item())
        assert found[i].item() == pytest.approx(expected - log_width, abs=2e-3)


def near(y):
    """A density on y ± 1, which is 0 at its ends."""
    two = torch.full_like(y, 2.0)
    return moved(dist.Beta(two, two), T.AffineTransform(y - 1, 2.0))


class Around(ps.guides.Guide):
    """q(z|x) about one point for each view."""

    support = constraints.real_vector

    def __init__(self, encoder, points):
        super().__init__()
        self.encoder, self.points = encoder, points

    def each(self, x, present=None):
        loc = 0 * self.encoder(x.flatten(0, 1)).view(*x.shape[:2], 1)
        return dist.Normal(self.points + loc, 0.01).to_event(1)


@pytest.mark.parametrize("reach", ["apart", "near"])
def test_views_that_no_content_can_give(reach):
    """Their density is 0, no content is drawn for them, and a fit does not start."""
    unit = ps.priors.Custom(
        lambda y: near(y).to_event(1),
        dim=1,
        y_prior=dist.Uniform(torch.zeros(1), torch.ones(1)).to_event(1),
    )
    apart = torch.tensor([[[0.4], [0.6]], [[5.0], [5.1]]])
    assert (unit.log_prob(apart) > -math.inf).tolist() == [True, False]
    content = unit.posterior_y(apart)
    assert content.mean.isnan().squeeze(-1).tolist() == [False, True]
    assert content.sample((50,)).isnan().any(0).squeeze(-1).tolist() == [False, True]
    # Each view alone is possible; the two together are, or are not.
    points = torch.tensor([[-0.9], [1.9]] if reach == "apart" else [[0.4], [0.6]])
    joint = ps.Joint(
        *(unit, ps.likelihoods.Gaussian(0.5)),
        *(ps.nn.MLPEncoder((3,), 1, (4,)), ps.nn.MLPDecoder(1, (3,), (4,))),
        guide=lambda encoder: Around(encoder, points),
    )
    objective = ps.limits.SimVAE(joint)
    for present in (None, torch.arange(40).view(20, 2) % 4 != 1):
        batch = ps.Batch(torch.randn(20, 2, 3), present=present)
        if reach == "apart":
            with pytest.raises(ValueError, match="where it is 0 or NaN"):
                objective.check(batch)
        else:
            objective.check(batch)
            assert sum(objective(batch)).isfinite()
