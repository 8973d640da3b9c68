"""Hyper-parameters: one number or one for each dimension; fixed, learned or random."""

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import catalogue
from helpers.checks import refusals
from pyro import poutine
from torch import nn
from torch.distributions import MultivariateNormal
from torch.testing import assert_close

import probssl as ps
from probssl.hyper import Fraction, Positive, Reciprocal, learned
from probssl.priors import ContentStyle, Gaussian, Prior, Spherical, StudentT, TwoTier

pytestmark = pytest.mark.usefixtures("float64")
WIDE, PAIR = dist.LogNormal(-1.0, 0.5), dist.LogNormal(torch.zeros(2), 1.0)
SHARE = dist.Beta(2.0, 5.0)
SCALES = (0.2, 0.5, 2.0)


def test_a_number_is_kept_a_learned_one_is_a_parameter_a_random_one_has_a_guide():
    for value, names in ((0.4, []), (learned(0.4), ["log"])):
        assert_close(Positive(value)(), torch.tensor(0.4))
        assert [name for name, _ in Positive(value).named_parameters()] == names
    random = Positive(WIDE)
    assert [name for name, _ in random.named_parameters()] == ["loc", "log_scale"]
    assert abs(random().detach().log() + 1.0) < 5 * 0.5 * 1.2533 / math.sqrt(1_001)


def test_the_repr_of_a_learned_one_shows_its_present_value():
    prior, scale = Gaussian(2, learned(0.3)), Positive(learned(0.3), floor=0.1)
    with torch.no_grad():
        scale.log.fill_(math.log(0.62))
        prior.scale.log.fill_(math.log(0.72))
    assert repr(scale) == "Positive(scale=0.72 (learned, from 0.3))"
    assert "scale=0.72 (learned, from 0.3)," in repr(prior)
    assert "temperature=0.5 (learned, from 0.5)" in repr(
        Reciprocal(learned(0.5), "temperature")
    )
    assert "(0.2, 0.5, 2) (learned, from (0.2, 0.5, 2))" in repr(
        Gaussian(3, learned(SCALES))
    )
    assert repr(Positive(0.4)) == "Positive(scale=0.4)"
    assert "(0.25, 0.25)" in repr(Positive([0.25] * 2, dim=2))
    assert "scale=(0.5, 0.5, …, 30 numbers) (learned, from (0.5, 0.5, …" in repr(
        Positive(learned([0.5] * 30), dim=30)
    )
    assert "LogNormal" in repr(Positive(WIDE))
    assert "Learned" in repr(Positive(learned(0.3)).to("meta"))


def test_a_floor_is_never_crossed():
    scale = Positive(learned(0.4), floor=0.1)
    with torch.no_grad():
        scale.log.fill_(-100.0)
    assert scale() >= 0.1


def test_the_guide_is_log_normal():
    random = Positive(WIDE)
    drawn = torch.tensor([0.1, 0.7])
    plain = dist.Normal(random.loc, random.log_scale.exp()).log_prob(drawn.log())
    assert_close(random.posterior().log_prob(drawn), plain - drawn.log())


def test_a_fraction_stays_between_its_bounds_with_a_logit_normal_guide():
    for value in (0.4, learned(0.4)):
        assert_close(Fraction(value)(), torch.tensor(0.4))
    scale = Fraction(learned((0.4, 0.9)), dim=2)
    for extreme in (-1e3, 1e3):
        with torch.no_grad():
            scale.log.fill_(extreme)
        assert ((scale() > 0) & (scale() < 1)).all()
    random, theta = Fraction(SHARE), torch.linspace(0, 1, 20_001)[1:-1]
    q = random.posterior()
    plain = dist.Normal(random.loc, random.log_scale.exp()).log_prob(theta.logit())
    assert_close(q.log_prob(theta), plain - (theta * (1 - theta)).log())
    assert_close(q.log_prob(theta).exp().mean(), torch.tensor(1.0), rtol=1e-3, atol=0)
    assert_close(random(), random.loc.sigmoid())
    drawn = random.posterior().rsample((1_000,))
    assert ((drawn > 0) & (drawn < 1)).all() and drawn.requires_grad


def test_building_a_random_one_draws_nothing_from_the_stream():
    torch.manual_seed(3)
    Positive(WIDE)
    found = torch.randn(())
    torch.manual_seed(3)
    assert found == torch.randn(())


def test_prior_of_a_random_one_follows_it_to_another_precision():
    random = Positive(dist.LogNormal(torch.tensor(-1.0), torch.tensor(0.5))).float()
    assert random.value.loc.dtype == random.posterior().sample().dtype == torch.float32
    assert random.double().value.log_prob(random()).dtype == torch.float64


def test_a_reciprocal_is_drawn_learned_and_stored_as_given():
    assert_close(Reciprocal(0.5, "temperature")(), torch.tensor(2.0))
    assert_close(Reciprocal(learned(0.5), "temperature").log.exp(), torch.tensor(0.5))
    random = Reciprocal(WIDE, "temperature")
    with poutine.trace() as trace:
        temperature = random.sample()
    assert list(trace.trace.nodes) == ["temperature"]
    assert_close(random.of({"temperature": temperature}), 1 / temperature)


def test_scales_for_each_dimension_are_those_of_a_diagonal_covariance():
    views, y_scale = 3, (1.0, 0.3, 0.7)
    prior, z = Gaussian(3, SCALES, y_scale), torch.randn(5, views, 3)
    total = torch.zeros(5)
    for i in range(3):
        covariance = SCALES[i] ** 2 * torch.eye(views) + y_scale[i] ** 2
        dense = MultivariateNormal(torch.zeros(views), covariance)
        total = total + dense.log_prob(z[..., i])
    assert_close(prior.log_prob(z), total)
    parts = [Gaussian(1, s, t) for s, t in zip(SCALES, y_scale, strict=True)]
    information = torch.stack([part.mutual_information() for part in parts]).sum()
    assert_close(prior.mutual_information(), information)
    for i, part in enumerate(parts):
        alone = part.posterior_y(z[..., i : i + 1])
        assert_close(prior.posterior_y(z).mean[:, i], alone.mean[:, 0])
        assert_close(prior.posterior_y(z).stddev[:, i], alone.stddev[:, 0])


@pytest.mark.parametrize("plug_in", [False, True])
@pytest.mark.parametrize("y_scale", [0.7, (0.7, 1.0, 0.2), math.inf])
def test_kernel_of_scales_for_each_dimension_is_a_sum_over_them(plug_in, y_scale):
    a, b = torch.randn(4, 3), torch.randn(5, 3)
    kernel = Gaussian(3, SCALES, y_scale).log_kernel(a, b, plug_in)
    each = torch.tensor(y_scale).expand(3).tolist()
    parts = [
        Gaussian(1, SCALES[i], each[i]).log_kernel(
            a[:, i : i + 1], b[:, i : i + 1], plug_in
        )
        for i in range(3)
    ]
    assert_close(kernel, torch.stack(parts).sum(0))


def test_scales_for_each_dimension_can_be_learned_or_random():
    prior, z = Gaussian(3, learned(SCALES)), torch.randn(5, 2, 3)
    assert_close(prior.scale(), torch.tensor(SCALES))
    prior.log_prob(z).sum().backward()
    assert prior.scale.log.grad.shape == (3,) and (prior.scale.log.grad != 0).all()
    random = Gaussian(3, dist.LogNormal(torch.zeros(3), 1.0).to_event(1))
    drawn = torch.rand(4, 1, 3) + 0.1
    many = random(2, scale=drawn).log_prob(z)
    each = [Gaussian(3, row[0]).log_prob(z) for row in drawn]
    assert_close(many, torch.stack(each))


def random_priors(value: Any = WIDE) -> list[tuple[Prior, str]]:
    torch.manual_seed(0)
    return [
        (Gaussian(2, value), "scale"),
        (Gaussian(2, 0.3, value), "y_scale"),
        (StudentT(2, value), "scale"),
        (StudentT(2, 0.3, value), "dof"),
        (Spherical(2, value), "concentration"),
        (Spherical(2, Reciprocal(value, "temperature")), "temperature"),
        (TwoTier(2, 3, value), "scale"),
        (TwoTier(2, 3, 0.3, value), "y_scale"),
        (ContentStyle(1, 1, SHARE if value is WIDE else value), "scale"),
    ]


@pytest.mark.parametrize("index", range(9))
def test_every_method_takes_the_values_that_a_prior_is_at(index):
    prior, name = random_priors()[index]
    z = prior.on_support(torch.randn(5, 3, 2))
    before = prior.log_prob(z)
    value = torch.tensor(0.7)
    fixed = random_priors(0.7)[index][0]
    with prior.at(**{name: value}):
        assert_close(prior.log_prob(z), prior(3, **{name: value}).log_prob(z))
        assert_close(prior.log_prob(z), fixed.log_prob(z))
        for plug_in in (False, True):
            kernel = fixed.log_kernel(z, z, plug_in)
            assert_close(prior.log_kernel(z, z, plug_in), kernel)
        if not isinstance(prior, StudentT):  # given y alone its views are not apart
            y = fixed.content().sample((5,))
            posterior = fixed.posterior_y(z).log_prob(y)
            assert_close(prior.posterior_y(z).log_prob(y), posterior)
            assert_close(
                prior.given(y).log_prob(z[:, 0]), fixed.given(y).log_prob(z[:, 0])
            )
            assert_close(prior.content().log_prob(y), fixed.content().log_prob(y))
            drawn, plain = {name: value}, fixed.given(y).log_prob(z[:, 0])
            assert_close(fixed.given(y, **drawn).log_prob(z[:, 0]), plain)
            assert_close(prior.given(y, **drawn).log_prob(z[:, 0]), plain)
    if not isinstance(prior, StudentT):  # also where no one has put it at them
        assert_close(prior.given(y, **drawn).log_prob(z[:, 0]), plain)
        content = fixed.content().log_prob(y)
        assert_close(prior.content(**drawn).log_prob(y), content)
    assert_close(prior.log_prob(z), before)  # back to where it was


def test_a_prior_leaves_its_values_also_after_an_error():
    prior = Gaussian(2, WIDE)
    before = prior.scale()
    with pytest.raises(RuntimeError), prior.at(scale=torch.tensor(9.0)):
        raise RuntimeError
    assert_close(prior.scale(), before)


@pytest.mark.parametrize(
    "value",
    [
        dist.LogNormal(-1.0, 0.5),
        dist.LogNormal(torch.tensor([-1.0, 0.5, 0.0]), 0.5).to_event(1),
        dist.Gamma(2.0, 3.0).expand([3]).to_event(1),
    ],
    ids=str,
)
def test_random_hyper_parameters_come_back_from_a_folder(value, tmp_path):
    prior, drawn = Gaussian(3, value), torch.rand(value.event_shape) + 0.1
    again = ps.load(ps.save(prior, tmp_path))
    assert_close(again.scale.value.log_prob(drawn), value.log_prob(drawn))
    assert_close(again.scale.posterior().mean, prior.scale.posterior().mean)


def test_hyper_parameters_of_a_joint_may_be_one_for_each_dimension():
    scale = dist.LogNormal(-torch.ones(2), 0.5).to_event(1)
    joint = catalogue.joint(Gaussian(2, scale), event=5, guide=ps.guides.Coupled)
    joint.population = torch.tensor(50.0)
    terms = ps.limits.SimVAE(joint, ps.bounds.ELBO(4))(ps.Batch(torch.randn(7, 3, 5)))
    sum(terms).backward()
    assert joint.prior.scale.loc.grad.shape == (2,)
    idata = ps.to_arviz(joint, torch.randn(6, 5), draws=11)
    assert idata.posterior["scale"].shape == (1, 11, 2)
    assert idata.prior["scale"].dims == ("chain", "draw", "dim")


def shifted(value: dist.Distribution) -> dist.Distribution:
    """A distribution over numbers above 0.1, which calls its support real."""
    return dist.TransformedDistribution(
        value, dist.transforms.AffineTransform(0.1, 1.0)
    )


@pytest.mark.parametrize(
    "value",
    [
        dist.LogNormal(-1.0, 0.5),
        dist.HalfNormal(0.1),
        dist.HalfCauchy(1.0),
        dist.Gamma(3.0, 2.0),
        dist.InverseGamma(3.0, 2.0),
        dist.Exponential(5.0),
        dist.Weibull(1.0, 5.0),
        dist.Chi2(4.0),
        dist.TransformedDistribution(
            dist.HalfNormal(1.0), dist.transforms.AffineTransform(0.0, 2.0)
        ),
        dist.MixtureSameFamily(
            dist.Categorical(torch.ones(2)), dist.LogNormal(torch.zeros(2), 1.0)
        ),
        dist.TransformedDistribution(
            dist.MultivariateNormal(torch.zeros(2), torch.eye(2)),
            dist.transforms.ExpTransform(),
        ),
        dist.Gamma(torch.ones(2), 1.0).to_event(1),
        dist.LogNormal(-1.0, 0.5).mask(True),
        dist.LogNormal(-1.0, 0.5).expand((2,)).to_event(1),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_distribution_over_all_positive_numbers_is_taken(value):
    assert (Positive(value, dim=2).posterior().sample() > 0).all()


test_what_is_no_positive_number_is_refused = refusals(
    (lambda: Positive(-1.0), ValueError, "expected scale to be a positive finite"),
    (lambda: Positive(math.inf), ValueError, "positive finite number"),
    (lambda: Positive("wide"), ValueError, "ps.learned"),
    (lambda: Positive((0.1, 0.2)), ValueError, "scale to be one number, got 2"),
    (lambda: Gaussian(3, (0.1, 0.2)), ValueError, "one number, or 3 of them, got 2"),
    (lambda: Gaussian(None, (0.1, 0.2)), ValueError, "know their dim"),
    (lambda: Gaussian(2, (0.1, -0.2)), ValueError, "positive finite number"),
    (lambda: Gaussian(2, 1.0, (0.1, math.inf)), ValueError, "y_scale to be a pos"),
    (lambda: StudentT(2, (0.1, 0.2)), ValueError, "expected scale to be one number"),
    (
        lambda: Positive(dist.Normal(0.0, 1.0)),
        ValueError,
        "over one positive finite number",
    ),
    (lambda: Positive(PAIR), ValueError, "over one positive finite number"),
    (lambda: Gaussian(3, PAIR.to_event(1)), ValueError, "3 of them, got 2"),
    *(
        (lambda value=value: Fraction(value), ValueError, "between 0 and 1, ")
        for value in (0.0, 1.0, 1.5, learned(1.5), math.nan, WIDE, dist.HalfNormal(1.0))
    ),
    *(
        (lambda value=value: Gaussian(2, value), ValueError, "any of them and no other")
        for value in (
            dist.Pareto(0.5, 2.0),
            dist.Uniform(0.1, 0.5),
            dist.Normal(3.0, 0.1),
            shifted(dist.HalfNormal(1.0)),
            shifted(dist.Exponential(1.0)),
            shifted(dist.Exponential(torch.ones(2))).to_event(1),
            dist.Dirichlet(torch.ones(2)),
            dist.Poisson(100.0),
        )
    ),
    (lambda: Fraction(dist.Uniform(-0.5, 1.0)), ValueError, "between 0 and 1, any"),
    (lambda: Fraction(dist.Uniform(0.1, 1.0)), ValueError, "one number between 0 and"),
    (lambda: Fraction(dist.Bernoulli(0.5)), ValueError, "one number between 0 and 1"),
    (lambda: Spherical(3, 0.0), ValueError, "expected concentration to be a positive"),
    (lambda: ps.limits.SimCLR(torch.nn.Identity(), None, 0.0), ValueError, "temper"),
)


TAKEN = ["chain", "draw", "dim", "view", "item", "x", "y", "z", "x_1", "log_p", "log_x"]
TAKEN += ["log_q_hyper", "scale_dim", "a/b", "component", "particles"]
test_names_that_draws_have_themselves_are_refused = refusals(
    *(
        (lambda name=name: Positive(WIDE, name), ValueError, f"got '{name}', which")
        for name in TAKEN
    )
)


@pytest.mark.parametrize("name", ["precision", "log_precision", "drawn", "y_scale"])
def test_other_names_of_hyper_parameters_are_taken(name):
    assert Positive(WIDE, name).name == name


@pytest.mark.parametrize("value", [0.3, (0.3, 0.3)], ids=["one", "two"])
def test_a_fixed_number_that_is_set_anew_is_shown(value):
    scale = Gaussian(2, value).scale
    scale.fixed.fill_(0.145)
    now = scale.fixed.new_tensor(0.145).expand_as(scale.fixed)
    assert torch.equal(scale(), now)
    shown = "0.145" if value == 0.3 else "(0.145, 0.145)"
    assert repr(scale) == f"Positive(scale={shown} (set, from {value}))"
    assert "set" not in repr(Gaussian(2, value).double())


def test_pyro_sees_one_site_for_each_random_hyper_parameter():
    prior = Gaussian(2, WIDE)
    trace = poutine.trace(lambda: [h.sample() for h in prior.random()]).get_trace()
    assert list(trace.stochastic_nodes) == ["scale"]
    pyro.clear_param_store()


@pytest.mark.parametrize("part", ["likelihood", "decoder"])
def test_a_random_number_of_the_prior_is_refused_elsewhere(part):
    prior = ps.priors.Gaussian(2, dist.LogNormal(-0.5, 0.8))

    class Decoder(nn.Linear):
        def __init__(self) -> None:
            super().__init__(2, 3)
            self.spread = prior.scale if part == "decoder" else None

    class Likelihood(ps.likelihoods.Gaussian):
        def __init__(self) -> None:
            super().__init__(0.5)
            self.spread = prior.scale if part == "likelihood" else None

    with pytest.raises(ValueError, match=f"in the prior alone, .* in the {part}"):
        ps.Joint(prior, Likelihood(), ps.nn.MLPEncoder((3,), 2), Decoder())
