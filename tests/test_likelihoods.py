"""The likelihoods: normalisation, plain formulas, and what they refuse."""

import math
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from helpers import catalogue
from helpers.checks import assert_mean, assert_same, minimise, refusals
from mpmath import mp
from scipy import stats
from scipy.special import expit
from torch.nn.functional import (
    binary_cross_entropy_with_logits,
    cross_entropy,
    one_hot,
    softplus,
)
from torch.testing import assert_close

import probssl as ps
from probssl.likelihoods import (
    Bernoulli,
    Binomial,
    Categorical,
    DiscretisedLogistic,
    Gaussian,
    HeteroscedasticGaussian,
    Laplace,
    Likelihood,
    NegativeBinomial,
    Ordinal,
    Poisson,
    Predicted,
    StudentT,
)

pytestmark = pytest.mark.usefixtures("float64")


@pytest.mark.parametrize("levels", [1, 4, 16, 255])
def test_binomial_sums_to_one_over_its_grid(levels):
    logits = torch.linspace(-30, 30, 13)
    grid = (torch.arange(levels + 1.0) / levels).unsqueeze(-1)
    total = Binomial(levels)(logits).log_prob(grid).logsumexp(0)
    assert_close(total, torch.zeros(13), rtol=0, atol=1e-10)


def test_binomial_is_pyros_binomial_of_the_count():
    logits, count = torch.randn(7), torch.randint(0, 17, (5, 7)).double()
    plain = torch.distributions.Binomial(16, logits=logits).log_prob(count)
    assert_close(Binomial(16)(logits).log_prob(count / 16), plain)


@pytest.mark.parametrize("levels", [16, 255, 256, 4095, 65_535, 2**17])
def test_binomial_in_float32_is_scipys(levels):
    count = np.unique(np.linspace(0, levels, 999).round())
    for logit in (-3.0, 1e-3, 2.5):
        logits = torch.full((len(count),), logit, dtype=torch.float32)
        logits.requires_grad_()
        x = torch.tensor(count / levels, dtype=torch.float32)
        log_prob = Binomial(levels)(logits).log_prob(x)
        log_prob.sum().backward()
        exact = stats.binom(levels, expit(np.float64(np.float32(logit))))
        # What the rounding of x and of the result changes.
        error = levels * (abs(logit) + 12) * 2**-23 * x.numpy() + 2e-6 * abs(
            exact.logpmf(count)
        )
        assert log_prob.dtype == torch.float32
        assert (
            abs(log_prob.detach().numpy() - exact.logpmf(count)) < error + 1e-5
        ).all()
        slope = count - exact.mean()
        assert_close(logits.grad.double(), torch.tensor(slope), rtol=1e-4, atol=0.02)


def test_binomial_of_16_bit_images_has_no_error_that_adds_up():
    count = torch.randint(0, 65_536, (4096,))
    logits = (count.double() / 65_535).clamp(1e-3, 1 - 1e-3).logit()
    truth = stats.binom(65_535, logits.sigmoid().numpy()).logpmf(count.numpy()).sum()
    x = (count / 65_535).float()
    assert abs(Binomial(65_535)(logits.float()).log_prob(x).sum().item() - truth) < 1


def test_a_level_off_the_grid_has_no_mass():
    p = Binomial(16)(torch.zeros(2))
    assert p.log_prob(torch.tensor([-1.0, 17.0])).tolist() == [-math.inf] * 2


def test_moments_of_many_levels_are_sums_in_parts(monkeypatch):
    location, scale = torch.randn(5, 3), torch.rand(3) + 0.1
    p = DiscretisedLogistic(255, scale)(location)
    levels = torch.arange(256.0) / 255
    mass = torch.stack(
        [p.log_prob(torch.full((5, 3), k)).exp() for k in levels.tolist()]
    )
    mean = (mass * levels.view(-1, 1, 1)).sum(0)
    square = (mass * levels.view(-1, 1, 1).square()).sum(0)
    for chunk in (1, 100, 2**20):
        monkeypatch.setattr(ps.likelihoods.ordered, "CHUNK", chunk)
        assert_close(p.mean, mean)
        assert_close(p.variance, square - mean.square())


@pytest.mark.parametrize("count", [0, 7, 1000])
def test_negative_binomial_of_the_least_dispersion_is_exact(count):
    for a in (0.0, 3.0, 6.9):
        likelihood = NegativeBinomial(1e-8)
        got = likelihood(torch.tensor([a])).log_prob(torch.tensor(float(count)))
        with mp.workdps(50):
            r, mean = mp.mpf(1) / mp.mpf(1e-8), mp.exp(mp.mpf(a))
            exact = mp.loggamma(count + r) - mp.loggamma(r) - mp.loggamma(count + 1)
            exact += r * mp.log(r / (r + mean)) + count * mp.log(mean / (r + mean))
        assert abs(got.item() - float(exact)) < 1e-6


@pytest.mark.parametrize("name", catalogue.LIKELIHOODS)
def test_samples_have_the_mean_and_the_variance(name):
    likelihood = catalogue.LIKELIHOODS[name]()
    shape = likelihood.output_shape((2, 4))
    distribution = likelihood(torch.linspace(-0.8, 0.8, math.prod(shape)).view(shape))
    x = distribution.sample((100_000,))
    if not likelihood.pseudo:
        likelihood.check(x)
    if name == "StudentT":  # its squares have no error bar
        assert_mean(x, distribution.mean)
        return
    assert_mean(x, distribution.mean)
    assert_mean((x - distribution.mean).square(), distribution.variance)


def test_bernoulli_is_minus_the_cross_entropy():
    logits, x = torch.randn(6, 4), torch.randint(0, 2, (6, 4)).double()
    plain = -binary_cross_entropy_with_logits(logits, x, reduction="none")
    assert_close(Bernoulli()(logits).log_prob(x), plain)


def test_categorical_sums_to_one_over_its_classes():
    logits = 10 * torch.randn(7, 5)
    each = [Categorical(5)(logits).to_event(1).log_prob(x) for x in torch.eye(5)]
    assert_close(torch.stack(each).logsumexp(0), torch.zeros(7), rtol=0, atol=1e-12)


def test_categorical_is_minus_the_cross_entropy():
    logits, x = torch.randn(6, 3, 5, requires_grad=True), torch.rand(6, 3, 5)
    labels, soft = torch.randint(5, (6, 3)), x / x.sum(-1, keepdim=True)
    for target, likelihood in (
        (one_hot(labels, 5).double(), Categorical(5)),
        (soft, Categorical(5, soft=True)),
    ):
        likelihood.check(target)
        ours = likelihood(logits).to_event(2).log_prob(target).sum()
        flat = logits.flatten(0, 1), target.flatten(0, 1)
        assert_same(ours, -cross_entropy(*flat, reduction="sum"), logits)


def test_a_joint_of_labels_reconstructs_by_the_cross_entropy():
    prior, guide = ps.priors.Gaussian(2, 0.5), ps.guides.Point
    joint = catalogue.joint(prior, Categorical(4), event=4, guide=guide)
    labels = torch.randint(4, (6, 2))
    batch = ps.Batch(one_hot(labels, 4).double())
    joint.check(batch)
    terms = ps.bounds.ELBO()(joint, batch)
    logits = joint.decoder(joint.encoder(batch.views.flatten(0, 1)))
    plain = -cross_entropy(logits, labels.flatten(), reduction="sum") / 6
    assert_close(terms.reconstruction, plain)


def test_gaussian_is_the_normal_density():
    output, x = torch.randn(6, 4), torch.randn(6, 4)
    plain = torch.distributions.Normal(output, 0.3).log_prob(x)
    assert_close(Gaussian(0.3)(output).log_prob(x), plain)


def test_learned_scale_stays_above_its_floor():
    likelihood, x = Gaussian(ps.learned(0.1), floor=0.05), torch.zeros(64)
    assert_close(likelihood.scale(), torch.tensor(0.1))
    minimise(
        lambda: -likelihood(x).log_prob(x).sum(), likelihood.parameters(), 200, 0.5
    )
    assert 0.05 <= likelihood.scale() < 0.0501


def test_only_real_likelihoods_have_a_measure_to_compare_under():
    assert Bernoulli(grey=True).pseudo and not Bernoulli().pseudo
    assert Categorical(3, soft=True).pseudo and not Categorical(3).pseudo
    assert Binomial(16).measure != Binomial(4).measure != Gaussian().measure


def cells(low: float, high: float, n: int = 4) -> torch.Tensor:
    return torch.linspace(low, high, n, dtype=torch.float64)


# For outputs (a, b, …) of one element: scipy's log-density, and values to compare at.
def of_counts(a, alpha):
    return stats.nbinom(1 / alpha, 1 / (1 + alpha * math.exp(a)))


def of_levels(a, scale, n):
    """Differences of the logistic distribution function, from the nearer tail."""

    def logpmf(x):
        upper = np.where(x < 1, (x + 0.5 / n - a) / scale, np.inf)
        lower = np.where(x > 0, (x - 0.5 / n - a) / scale, -np.inf)
        below = stats.logistic.cdf(upper) - stats.logistic.cdf(lower)
        above = stats.logistic.sf(lower) - stats.logistic.sf(upper)
        return np.log(np.where(lower > 0, above, below))

    return SimpleNamespace(logpmf=logpmf)


def inflated(inner, b):
    def logpmf(x):
        zero = expit(b)
        return np.log(zero * (x == 0) + (1 - zero) * inner.pmf(x))

    return SimpleNamespace(logpmf=logpmf)


COUNTS, GRID = torch.arange(60).double(), torch.arange(17).double() / 16
REFERENCES = {
    "Laplace": (lambda: Laplace(0.3), [0.7], stats.laplace(0.7, 0.3), cells(-9, 9)),
    "StudentT": (lambda: StudentT(0.3, 3.0), [0.7], stats.t(3, 0.7, 0.3), cells(-9, 9)),
    "one of 1e9 degrees": (
        lambda: StudentT(0.3, 1e9),
        [0.7],
        stats.norm(0.7, 0.3),
        cells(-1, 2),
    ),
    "heteroscedastic": (
        lambda: HeteroscedasticGaussian(0.1, 10.0),
        [0.7, 0.5],
        stats.norm(0.7, 0.1 * 100 ** expit(0.5)),
        cells(-9, 9),
    ),
    "Poisson": (Poisson, [1.2], stats.poisson(math.exp(1.2)), COUNTS),
    "rare": (Poisson, [-700.0], stats.poisson(math.exp(-700)), COUNTS),
    "frequent": (
        Poisson,
        [11.0],
        stats.poisson(math.exp(11)),
        59_874 + COUNTS,
    ),
    "inflated": (
        lambda: Poisson(zero_inflated=True),
        [1.2, -0.4],
        inflated(stats.poisson(math.exp(1.2)), -0.4),
        COUNTS,
    ),
    "NegativeBinomial": (
        lambda: NegativeBinomial(0.5),
        [1.2],
        of_counts(1.2, 0.5),
        COUNTS,
    ),
    "nearly Poisson": (
        lambda: NegativeBinomial(1e-7),
        [1.2],
        of_counts(1.2, 1e-7),
        COUNTS[:20],
    ),
    "inflated NegativeBinomial": (
        lambda: NegativeBinomial(Predicted(0.1, 10.0), zero_inflated=True),
        [1.2, -0.4, 0.3],
        inflated(of_counts(1.2, 0.1 * 100 ** expit(0.3)), -0.4),
        COUNTS,
    ),
    "DiscretisedLogistic": (
        lambda: DiscretisedLogistic(16, 0.1),
        [0.7],
        of_levels(0.7, 0.1, 16),
        GRID,
    ),
    "DiscretisedLogistic in its tail": (
        lambda: DiscretisedLogistic(16, 0.01),
        [-2.0],
        of_levels(-2.0, 0.01, 16),
        GRID,
    ),
}


@pytest.mark.parametrize("name", REFERENCES)
def test_densities_are_those_of_scipy(name):
    make, output, reference, x = REFERENCES[name]
    likelihood = make()
    assert likelihood.output_shape((1,)) in {(1,), (1, len(output))}
    likelihood.check(x)
    found = likelihood(torch.tensor(output).expand(len(x), 1, -1).squeeze(-1))
    logs = getattr(reference, "logpmf", None) or reference.logpdf
    plain = torch.as_tensor(logs(x.numpy())).unsqueeze(1)
    rtol = 1e-7 if "nearly" in name or "1e9" in name else 1e-10
    assert_close(found.log_prob(x.unsqueeze(1)), plain, rtol=rtol, atol=1e-9)


def test_ordinal_is_the_difference_of_cumulative_logits():
    likelihood, a = Ordinal(5).double(), torch.linspace(-3, 3, 7)
    with torch.no_grad():
        likelihood.log_gaps += torch.tensor([0.3, -1.0, 0.7])
    below = stats.logistic.cdf(likelihood.cutpoints().detach() - a.unsqueeze(-1))
    plain = np.diff(below, axis=-1, prepend=0.0, append=1.0)
    for k in range(5):
        found = likelihood(a).log_prob(torch.full_like(a, k))
        assert_close(found, torch.as_tensor(plain[:, k]).log())
    start = Ordinal(5)(torch.zeros(1)).log_prob(torch.arange(5.0))
    assert_close(start.exp(), torch.full((5,), 0.2))


@pytest.mark.parametrize(
    "likelihood, most",
    [
        (Poisson(), 120),
        (NegativeBinomial(0.7), 3000),
        (NegativeBinomial(0.7, zero_inflated=True), 3000),
    ],
    ids=str,
)
def test_counts_sum_to_one(likelihood, most):
    shape = likelihood.output_shape((5,))
    output = torch.linspace(-3, 3, math.prod(shape)).view(shape)
    total = likelihood(output).log_prob(torch.arange(most).view(-1, 1)).logsumexp(0)
    assert_close(total, torch.zeros(5), rtol=0, atol=1e-9)


TAILS = [-1e4, -90.0, -20.0, 0.0, 3.0, 20.0, 80.0]
NEW = {
    name: make
    for name, make in catalogue.LIKELIHOODS.items()
    if not isinstance(make(), Bernoulli | Binomial | Categorical)
}


@pytest.mark.parametrize("name", NEW)
def test_float32_follows_float64_far_out(name):
    likelihood = NEW[name]()
    shape = likelihood.output_shape((7, 4))
    output = torch.tensor(TAILS).view(7, *(1 for _ in shape[1:])).expand(shape)
    x = likelihood.double()(torch.zeros(shape)).sample()
    values = []
    for dtype in (torch.float64, torch.float32):
        leaf = output.to(dtype, copy=True).requires_grad_()
        value = likelihood.to(dtype)(leaf).log_prob(x.to(dtype))
        (grad,) = torch.autograd.grad(value.sum(), leaf)
        assert value.dtype == dtype and grad.isfinite().all()
        values.append((value.detach().double(), grad.double()))
    assert_close(*[value for value, _ in values], rtol=1e-5, atol=1e-5)
    assert_close(*[grad for _, grad in values], rtol=1e-4, atol=1e-4)


STRANGERS = {
    "normal": (lambda o: dist.Normal(o, 1.0), (3, 4), (3, 4)),
    "independent": (lambda o: dist.Normal(o, 1.0).to_event(2), (3, 4), (3, 4)),
    "multivariate": (
        lambda o: dist.MultivariateNormal(o, torch.eye(4)),
        (3, 4),
        (3, 4),
    ),
    "low rank": (
        lambda o: dist.LowRankMultivariateNormal(
            o[..., 0], o[..., 1:], torch.ones_like(o[..., 0])
        ),
        (3, 4, 3),
        (3, 4),
    ),
    "mixture": (
        lambda o: dist.MixtureSameFamily(
            dist.Categorical(logits=o[..., 0, :]), dist.Normal(o[..., 1, :], 1.0)
        ),
        (3, 4, 2, 5),
        (3, 4),
    ),
    "zero-inflated": (
        lambda o: dist.ZeroInflatedNegativeBinomial(
            o[..., 0, :].exp(), logits=o[..., 1, :], gate_logits=o[..., 2, :]
        ),
        (3, 4),
        (4,),
    ),
    "classes": (lambda o: dist.Categorical(logits=o), (4, 5), (4,)),
    "chain": (
        lambda o: dist.GaussianHMM(
            dist.Normal(torch.zeros(2), 1.0).to_event(1),
            torch.eye(2),
            dist.Normal(torch.zeros(2), 1.0).to_event(1),
            torch.eye(2),
            dist.Normal(o, 1.0).to_event(1),
        ),
        (3, 2),
        (3, 2),
    ),
}


class Own(Likelihood):
    """A likelihood that is a function of the decoder's output."""

    def __init__(self, function: Callable[[torch.Tensor], object]) -> None:
        super().__init__()
        self.function = function

    def forward(self, output: torch.Tensor) -> dist.TorchDistribution:
        return self.function(output)


def of_shape(likelihood: Likelihood, output: tuple[int, ...], event: tuple[int, ...]):
    encoder, decoder = ps.nn.MLPEncoder(event, 2), ps.nn.MLPDecoder(2, output)
    return ps.Joint(ps.priors.Gaussian(2), likelihood, encoder, decoder)


@pytest.mark.parametrize("name", STRANGERS)
def test_any_distribution_has_the_batch_shape_of_the_views(name):
    function, output, event = STRANGERS[name]
    joint = of_shape(Own(function), output, event)
    p = joint.decode(torch.randn(5, 2, 2))
    assert p.batch_shape == (5, 2) and p.event_shape == event
    x = p.sample()
    assert p.log_prob(x).shape == (5, 2)
    joint.check(ps.Batch(x.double()))
    if name in ("classes", "chain"):
        with pytest.raises(ValueError, match="with a mean"):
            ps.reconstruct(joint, x[:, 0].double())
    else:
        assert ps.reconstruct(joint, x[:, 0].double()).shape == (5, *event)


@pytest.mark.parametrize("name", NEW)
def test_a_likelihood_serves_a_joint_from_fit_to_evidence(name, tmp_path):
    likelihood = NEW[name]()
    joint = of_shape(likelihood, likelihood.output_shape((4,)), (4,))
    x = joint.decode(torch.randn(40, 2, 2)).sample()
    ps.fit(ps.limits.SimVAE(joint), ps.data.groups(x), epochs=1, progress=False)
    ps.save(joint, tmp_path)
    loaded = ps.load(tmp_path)
    assert type(loaded.likelihood) is type(likelihood)
    images = ps.reconstruct(joint, x[:, 0])
    assert (
        np.isfinite(images).all() and (ps.reconstruct(loaded, x[:, 0]) == images).all()
    )
    idata = ps.to_arviz(joint, x[:6, 0], draws=4)
    assert np.isfinite(idata["sample_stats"]["log_p_x_given_z"]).all()
    found = ps.evidence(loaded, x[:6, 0])
    assert found.measure == likelihood.measure and np.isfinite(found.log_evidence).all()


def test_autoencoders_take_several_parameters_of_an_element():
    likelihood, x = HeteroscedasticGaussian(), torch.randn(6, 2, 4)
    parts = ps.nn.MLPEncoder((4,), 2), ps.nn.MLPDecoder(2, (4, 2)), likelihood
    masked = ps.limits.MaskedAutoencoder(*parts).double()
    denoising = ps.limits.DenoisingAutoencoder(*parts).double()
    hidden = torch.zeros(12, 4, dtype=torch.bool)
    hidden[:, 1] = True
    masked.mask = lambda x: hidden
    flat = x.flatten(0, 1)
    for objective, seen, weight in (
        (masked, flat.masked_fill(hidden, 0.0), hidden.double()),
        (denoising, flat, 1.0),
    ):
        mean, scale = parts[1](parts[0](seen)).unbind(-1)
        scale = 1e-2 ** (1 - scale.sigmoid()) * 10 ** scale.sigmoid()
        target = x[:, :1].expand_as(x) if objective is denoising else x
        each = dist.Normal(mean, scale).log_prob(target.flatten(0, 1)) * weight
        terms = objective(ps.Batch(x, clean=x[:, 0]))
        assert_close(terms.reconstruction, each.sum(1).mean())


def decoded(function: Callable[[torch.Tensor], object]) -> Callable[[], object]:
    return lambda: of_shape(Own(function), (2, 4), (4,)).decode(torch.zeros(5, 3, 2))


def fitted(function: Callable, x: torch.Tensor) -> Callable[[], object]:
    batch = ps.Batch(x.expand(5, 2, 4).double())
    return lambda: of_shape(Own(function), (4,), (4,)).double().check(batch)


def beta(output: torch.Tensor) -> dist.TorchDistribution:
    return dist.Beta(output.exp(), output.exp(), validate_args=False)


def without_mean() -> object:
    joint = of_shape(Own(lambda o: dist.Cauchy(o, 1.0)), (4,), (4,))
    return ps.reconstruct(joint, torch.randn(5, 4))


test_an_own_likelihood_that_does_not_fit_is_refused = refusals(
    (decoded(lambda o: o), TypeError, "distribution of Pyro.*Tensor"),
    (
        decoded(lambda o: torch.distributions.Normal(o, 1.0)),
        TypeError,
        "distribution of Pyro.*Normal.*pyro.distributions",
    ),
    (
        decoded(lambda o: dist.Normal(o[0], 1.0)),
        ValueError,
        r"begins with \(5, 3\).*got batch shape \(3, 2, 4\).*shape \(5, 3, 2, 4\)",
    ),
    (
        decoded(lambda o: dist.Normal(o, 1.0).to_event(3)),
        ValueError,
        r"begins with \(5, 3\).*got batch shape \(5,\) and event shape \(3, 2, 4\)",
    ),
    (
        fitted(lambda o: dist.Normal(o.mean(-1), 1.0), torch.zeros(())),
        ValueError,
        r"got \(\) at the site 'x' for views of shape \(4,\).*output_shape",
    ),
    (fitted(beta, torch.tensor(1.5)), ValueError, "support.*got values from 1.5"),
    (fitted(beta, torch.tensor(0.0)), ValueError, "a finite log.*ends of the support"),
    (without_mean, ValueError, "a mean.*decode"),
)


def checked(likelihood: Likelihood, x: list[float]) -> Callable[[], None]:
    return lambda: likelihood.check(torch.tensor(x))


test_what_cannot_be_is_refused = refusals(
    (checked(Bernoulli(), [0.0, 0.5]), ValueError, "binary"),
    (checked(Bernoulli(), [0.0, math.nan]), ValueError, "NaN"),
    (checked(Bernoulli(grey=True), [0.0, 1.5]), ValueError, "0 to 1"),
    (checked(Binomial(16), [0.0, 0.03]), ValueError, "k/16"),
    (checked(Binomial(16), [0.0, 255.0]), ValueError, "255"),
    (checked(Gaussian(), [0.0, math.inf]), ValueError, "infinite"),
    (checked(Binomial(255), [0.0, 7.0]), ValueError, "whole.*Poisson.*Ordinal.8"),
    (checked(Bernoulli(), [0.0, -7.5]), ValueError, "from -7.5 to 0.*StudentT"),
    (checked(Poisson(), [0.0, 0.5]), ValueError, "counts.*between 0 and 1.*Gaussian"),
    (checked(NegativeBinomial(), [-1.0]), ValueError, "counts.*-1 to -1.*Laplace"),
    (checked(Poisson(), [math.nan]), ValueError, "NaN"),
    (checked(DiscretisedLogistic(16), [0.03]), ValueError, "k/16.*Gaussian"),
    (checked(Ordinal(3), [0.0, 3.0]), ValueError, "categories 0, 1, … 2.*0 to 3"),
    (lambda: Ordinal(1), ValueError, "categories as a whole number of at least 2"),
    (lambda: Ordinal(3, features=2)(torch.zeros(3)), ValueError, "of 2 features"),
    (lambda: Gaussian([0.1, 0.2])(torch.zeros(3)), ValueError, "axis of 2 elements"),
    (lambda: StudentT(dof=1.0), ValueError, "dof above 1"),
    (lambda: StudentT(dof=Predicted()), TypeError, "dof as a number"),
    (lambda: Laplace(-1.0), ValueError, "scale"),
    (lambda: Gaussian([]), ValueError, "scale as a positive number, got none"),
    (lambda: Gaussian(ps.learned(())), ValueError, "scale .* got none"),
    (lambda: Gaussian(ps.learned(0.1), floor=-1.0), ValueError, "floor"),
    (lambda: Gaussian().output_shape(8), TypeError, "event_shape.*a tuple"),
    (lambda: NegativeBinomial(0.0), ValueError, "dispersion"),
    (lambda: NegativeBinomial(1e-12), ValueError, "at least 1e-08.*Poisson"),
    (lambda: NegativeBinomial(Predicted(1e-9, 1.0)), ValueError, "Poisson"),
    (lambda: NegativeBinomial(floor=0.0), ValueError, "floor.*Poisson"),
    (lambda: Gaussian(-0.1), ValueError, "got -0.1; .*learned.*list.*Predicted"),
    (lambda: Gaussian("learned"), ValueError, "got 'learned'; give a number"),
    (lambda: Gaussian(None), ValueError, "got None; give a number"),
    (
        lambda: Gaussian(ps.learned(1e-4)),
        ValueError,
        "above 0.001, .*got 0.0001; lower floor=",
    ),
    (lambda: Gaussian(Predicted(0, 1)), ValueError, "got 0; give Predicted.low, high"),
    (lambda: Gaussian(torch.nn.Parameter(torch.ones(3))), ValueError, "ps.learned"),
    (lambda: HeteroscedasticGaussian(0.0), ValueError, "bounds of scale"),
    (lambda: HeteroscedasticGaussian(2.0, 1.0), ValueError, "below the upper"),
    (lambda: HeteroscedasticGaussian()(torch.zeros(3)), ValueError, "2 numbers in a"),
    (
        lambda: Poisson(zero_inflated=True)(torch.zeros(4, 1)),
        ValueError,
        "output_shape",
    ),
    (checked(Categorical(3), [1.0, 0.0]), ValueError, "3 classes"),
    (checked(Categorical(3), [1.0, 1.0, 0.0]), ValueError, "one-hot"),
    (checked(Categorical(3), [0.5, 0.5, 0.0]), ValueError, "one-hot vectors"),
    (checked(Categorical(3), [math.nan, 0.0, 0.0]), ValueError, "NaN"),
    (checked(Categorical(3, soft=True), [0.5, 0.6, 0]), ValueError, "sum to 1"),
    (checked(Categorical(3, soft=True), [1.5, -0.5, 0]), ValueError, "that sum to"),
    (lambda: Binomial(0), ValueError, "levels as a whole number of at least 1"),
    (lambda: Binomial(2.5), TypeError, "levels as a whole number"),
    (lambda: Gaussian(-1.0), ValueError, "scale"),
    (lambda: Categorical(1), ValueError, "classes as a whole number of at least 2"),
    (lambda: Categorical(2.0), TypeError, "classes as a whole number"),
    (lambda: Categorical(3)(torch.zeros(2, 4)), ValueError, "decoder's output"),
    (lambda: Gaussian(ps.learned(1e-4), floor=1e-3), ValueError, "above 0.001"),
    (lambda: Gaussian(dist.LogNormal(-1.0, 1.0)), ValueError, "those of the prior"),
)


class TwoParameters(Likelihood):
    """A normal with mean and standard deviation from the decoder, on any axis."""

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis = axis

    def forward(self, output: torch.Tensor) -> dist.TorchDistribution:
        mean, scale = output.unbind(self.axis)
        return dist.Normal(mean, softplus(scale) + 0.1, validate_args=False)


@pytest.mark.parametrize("axis, shape", [(-1, (3, 4, 2)), (-3, (2, 3, 4))])
def test_an_element_may_have_several_parameters(axis, shape):
    decoder = ps.nn.MLPDecoder(2, shape, hidden=())
    encoder, prior = ps.nn.MLPEncoder((3, 4), 2), ps.priors.Gaussian(2)
    likelihood = TwoParameters(axis)
    joint = ps.Joint(prior, likelihood, encoder, decoder)
    ps.testing.check_likelihood(likelihood, decoder(torch.randn(3, 2)), draws=1000)
    z, x = torch.randn(5, 2, 2), torch.randn(5, 2, 3, 4)
    mean, scale = decoder(z.flatten(0, 1)).unbind(axis)
    each = dist.Normal(mean, softplus(scale) + 0.1).log_prob(x.flatten(0, 1))
    assert_close(joint.decode(z).log_prob(x), each.sum((1, 2)).view(5, 2))


def test_the_offset_of_the_documentation_is_given_not_modelled():
    """log p(x|z) is scipy's of the counts, with density 1 of their size."""
    page = Path(__file__).parent.parent / "docs" / "howto" / "likelihood.md"
    (code,) = re.findall(
        r"^(class Given.*?)^likelihood = ", page.read_text(), re.S | re.M
    )
    space = {"torch": torch, "ps": ps, "dist": dist}
    exec(code, space)
    likelihood = space["Sized"](3, log_size=2.0).double()
    x = space["sized"](torch.poisson(torch.full((4, 2, 3), 5.0))).double()
    output = torch.randn(4, 2, 3, dtype=torch.double)
    found = likelihood(output).log_prob(x)
    r = 1 / likelihood.dispersion().detach()
    mean = output.softmax(-1) * x[..., :-1].sum(-1, keepdim=True)
    expected = stats.nbinom.logpmf(x[..., :-1], r, r / (r + mean)).sum(-1)
    assert_close(found, torch.from_numpy(expected))
    ps.testing.check_likelihood(space["Sized"](3, 2.0), event_shape=(4,))


class Unsafe(ps.likelihoods.Likelihood):
    """A zero-inflated Poisson by formula: 0 times infinity for large outputs."""

    measure, per_element = "counting, {0, 1, …}", 2

    def forward(self, output):
        rate, gate = output.unbind(-1)
        rate = rate.exp()
        return dist.ZeroInflatedPoisson(rate, gate_logits=gate, validate_args=False)


def test_a_parameter_that_rounds_away_at_extremes_is_named():
    with pytest.warns(UserWarning, match="rate rounds to 0 or infinity .*about ±10000"):
        ps.testing.check_likelihood(Unsafe(), event_shape=(5,))


def test_a_vector_in_a_likelihood_needs_its_length():
    with pytest.raises(ValueError, match=r"ps.hyper.Positive\(…, dim=3\)"):
        ps.hyper.Positive(ps.learned([1.0, 2.0, 3.0]), "dispersion")
    number = ps.hyper.Positive(ps.learned([1.0, 2.0, 3.0]), "dispersion", dim=3)
    assert_close(number().detach(), torch.tensor([1.0, 2.0, 3.0]))


NEEDS = {"logits": Bernoulli(), "classes": Categorical(3), "counts": Poisson()}
NEEDS |= {"levels": Binomial(4), "genes": NegativeBinomial(), "ordered": Ordinal(3)}
NEEDS |= {"scale": HeteroscedasticGaussian()}


@pytest.mark.parametrize("name", NEEDS)
@pytest.mark.parametrize("last", [torch.nn.Sigmoid(), torch.nn.ReLU()])
def test_an_activation_before_a_link_is_warned_of(name, last):
    shape = NEEDS[name].output_shape((3,))
    body = torch.nn.Sequential(torch.nn.Linear(2, math.prod(shape)), last)
    net = torch.nn.Sequential(body, torch.nn.Unflatten(1, shape))
    prior, encoder = ps.priors.Gaussian(2, 1.0), torch.nn.Linear(3, 2)
    for decoder in (net, ps.nn.Decoder(body, 2, shape)):
        for build in (
            lambda d: ps.Joint(prior, NEEDS[name], encoder, d),
            lambda d: ps.limits.DenoisingAutoencoder(encoder, d, NEEDS[name]),
        ):
            with pytest.warns(UserWarning, match=f"{type(last).__name__} at its end"):
                build(decoder)


def test_means_of_any_range_end_in_any_activation():
    net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Sigmoid())
    ps.Joint(ps.priors.Gaussian(2, 1.0), Gaussian(), torch.nn.Linear(3, 2), net)
    Bernoulli()(net(torch.zeros(1, 2)))
