"""The package's own parts obey the laws, and what is broken is found by name."""

import copy
import importlib.util
import math
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from helpers import catalogue
from helpers.catalogue import GUIDES, LIKELIHOODS, PRIORS, RANDOM
from helpers.checks import refusals
from torch import Tensor, nn

import probssl as ps
from probssl.distributions.gaussian import OneFactorNormal
from probssl.guides import Coupled, DiagonalGaussian, Point
from probssl.likelihoods import Binomial, Likelihood
from probssl.priors import TSNE, Gaussian, Prior, Spherical, StudentT
from probssl.terms import Batch, Terms
from probssl.testing import (
    LawError,
    check_guide,
    check_likelihood,
    check_objective,
    check_prior,
    modules,
)
from probssl.testing.laws import examine

DRAWS, X = 500, torch.linspace(-1, 1, 18).view(3, 2, 3).sin()


def batch(items: int = 6) -> Batch:
    return Batch(torch.randn(items, 2, 3))


def encoder(dim: int = 2) -> nn.Module:
    return catalogue.encoder(dim, event=3)


def joint(prior: Prior, **options: object) -> ps.Joint:
    return catalogue.joint(prior, event=3, **options)


def test_the_catalogue_has_every_part_of_the_package():
    def exported(room, base):
        parts = (getattr(room, name) for name in room.__all__)
        kinds = {part for part in parts if isinstance(part, type)}
        return {kind for kind in kinds if issubclass(kind, base)} - {base}

    def listed(table):
        return {type(make()) for make in table.values()}

    assert exported(ps.priors, Prior) == listed(PRIORS)
    assert exported(ps.likelihoods, Likelihood) == listed(LIKELIHOODS)
    guides = {make()[0] for make in GUIDES.values()}
    parts = {"Content", "Factors", "GaussianFactors", "Guide", "SphericalContent"}
    names = {kind.__name__ for kind in guides | {ps.guides.Flow}}
    assert set(ps.guides.__all__) == names | parts
    methods = {k for k in exported(ps.limits, nn.Module) if hasattr(k, "represent")}
    assert methods - {ps.limits.JointEmbedding} == listed(catalogue.OBJECTIVES)


@pytest.mark.parametrize("name", PRIORS)
def test_priors_obey_the_laws(name):
    # Custom priors integrate y by sampling, which takes longer.
    check_prior(PRIORS[name](), draws=200 if "conditional" in name else DRAWS)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_likelihoods_obey_the_laws(name):
    check_likelihood(LIKELIHOODS[name](), event_shape=(4,), draws=DRAWS)


@pytest.mark.parametrize("name", GUIDES)
def test_guides_obey_the_laws(name):
    build, prior = GUIDES[name]()
    guide = build(encoder(prior.known_dim()))
    check_guide(guide, prior, X, draws=200 if "custom" in name else DRAWS)


def own(prior: Prior, **options: bool) -> nn.Module:
    return ps.limits.Embedding(
        encoder(), prior, ps.entropies.KernelDensity(), **options
    )


# The limits themselves are tried in test_limits.py.
OBJECTIVES = {
    "random scale": lambda: ps.limits.SimVAE(joint(Gaussian(2, RANDOM))),
    "IWAE": lambda: ps.limits.SimVAE(
        joint(Gaussian(2, 0.5), guide=Coupled), ps.bounds.IWAE(2)
    ),
    "random temperature": lambda: ps.limits.SimCLR(encoder(), temperature=RANDOM),
    "own": lambda: own(StudentT(2, 0.5, 3.0)),
    "own, y plugged in": lambda: own(TSNE(2, 0.5, 3.0), plug_in=True),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_objectives_obey_the_laws(name):
    check_objective(OBJECTIVES[name](), batch(), repeats=20)


def test_an_objective_obeys_the_laws_with_absent_views():
    present = torch.ones(6, 2).bool()
    present[-1, 1] = False
    objective = ps.limits.SimVAE(joint(Gaussian(2, 0.5)))
    check_objective(objective, batch()._replace(present=present), repeats=20)


def own_density(change: Callable[..., torch.Tensor]) -> dict[str, Callable]:
    """A `log_prob` that is a function of the right one and of z."""

    def log_prob(self, z, present=None):
        return change(lambda z: Gaussian.log_prob(self, z, present), z)

    return {"log_prob": log_prob}


def first_view_weighs(log_prob, z):
    factor = torch.ones_like(z[..., :1])
    factor[..., 0, :] = 1.3
    return log_prob(factor * z) + z.shape[-1] * math.log(1.3)


def one_view_is_standard_normal(log_prob, z):
    if z.shape[-2] == 1:
        return dist.Normal(torch.zeros_like(z), 1.0).log_prob(z).sum((-2, -1))
    return log_prob(z)


def synchronises(log_prob, z):
    return log_prob(z / 1 if z.abs().max().item() > 1e3 else z)


def detached_mean(log_prob, z):
    mean = z.mean(-2, keepdim=True)
    return log_prob(z - mean + mean.detach())


def double_constant(log_prob, z):
    return log_prob(z + torch.zeros(z.shape[-1], dtype=torch.float64, device=z.device))


class NarrowViews(OneFactorNormal):
    def rsample(self, sample_shape=()):
        return 0.7 * super().rsample(sample_shape)


def narrow_samples(self, views, **options):
    views = Gaussian.forward(self, views, **options)
    views.__class__ = NarrowViews
    return views


class Repeats(OneFactorNormal):
    """Its samples after `expand` are one draw."""

    def rsample(self, sample_shape=()):
        z = super().rsample(sample_shape)
        batch = z.shape[len(sample_shape) : -2]
        first = z[(slice(None),) * len(sample_shape) + (slice(1),) * len(batch)]
        return first.expand_as(z)


class Shifted(OneFactorNormal):
    """Its `rsample` is shifted, its `sample` is right."""

    def rsample(self, sample_shape=()):
        return super().rsample(sample_shape) + 0.5

    def sample(self, sample_shape=()):
        return super().rsample(sample_shape).detach()


def distributed(kind: type) -> dict[str, Callable]:
    def forward(self, views, **options):
        views = Gaussian.forward(self, views, **options)
        views.__class__ = kind
        return views

    return {"forward": forward}


def kernel_in_the_other_argument(self, a, b, plug_in=False):
    pair = (a, b) if plug_in else (b, a)
    value = Gaussian.log_kernel(self, *pair, plug_in)
    return value if plug_in else value.mT


def plug_in_without_its_constant(self, a, b, plug_in=False):
    value = Gaussian.log_kernel(self, a, b, plug_in)
    return value + self.scale().log() * a.shape[-1] if plug_in else value


def wide_posterior(self, z, present=None):
    q = Gaussian.posterior_y(self, z, present).base_dist
    return dist.Normal(q.loc, 1.1 * q.scale).to_event(1)


def forgets_presence(self, views, *, present=None, **options):
    return Gaussian.forward(self, views, **options)


class Counting(Gaussian):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.register_buffer("count", torch.zeros(()))

    def log_prob(self, z, present=None):
        self.count += 1
        return super().log_prob(z, present)


class LooseTensor(Gaussian):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.shift = torch.tensor([0.5, -0.5])

    def log_prob(self, z, present=None):
        return super().log_prob(z - self.shift, present)


# Methods, or a class, with the broken law and a part of the message. "alone" marks
# faults that break one law only.
BROKEN_PRIORS = {
    "constant": (
        own_density(lambda f, z: f(z) + 0.48),
        "normalisation",
        "too large by 0.",
    ),
    "samples, alone": ({"forward": narrow_samples}, "sampling", "times as wide"),
    "repeats, alone": (distributed(Repeats), "sampling", "after expand"),
    "rsample, alone": (distributed(Shifted), "sampling", "rsample of"),
    "order": (own_density(first_view_weighs), "exchangeability", "treat views alike"),
    "kernel": ({"log_kernel": kernel_in_the_other_argument}, "kernel", "in b"),
    "plug in": (
        {"log_kernel": plug_in_without_its_constant},
        "plug in",
        "too small by 1.8",
    ),
    "posterior, alone": ({"posterior_y": wide_posterior}, "bayes", "posterior_y"),
    "marginal": (own_density(one_view_is_standard_normal), "marginals", "fewer views"),
    "presence": ({"forward": forgets_presence}, "presence", "absent views"),
    "state, alone": (Counting, "state", "count"),
    "dtype, alone": (own_density(double_constant), "single precision", "float64"),
    "host": (own_density(synchronises), "tracing", ".item()"),
    "detached, alone": (own_density(detached_mean), "gradients", ".detach()"),
    # saving says so; a tensor that stays behind needs no GPU to be seen
    "tensor": (LooseTensor, "device", "- saving: "),
    "overflow": (own_density(lambda f, z: f(z.sinh().asinh())), "extremes", "NaN"),
    "shape": (own_density(lambda f, z: f(z).unsqueeze(-1)), "shapes", "log_prob(z)"),
}


def broken(check: Callable[..., None], *arguments: object, **options: object):
    with pytest.raises(LawError) as caught:
        check(*arguments, **options)
    return caught.value


@pytest.mark.parametrize("name", BROKEN_PRIORS)
def test_a_broken_prior_is_found_by_name(name):
    kind, law, detail = BROKEN_PRIORS[name]
    kind = type("Broken", (Gaussian,), kind) if isinstance(kind, dict) else kind
    error = broken(check_prior, kind(2, 0.4), draws=300)
    assert law in error.laws and f"- {law}: " in str(error) and detail in str(error)
    if "alone" in name:
        assert error.laws == (law,)


class OfOneTier(ps.priors.TwoTier):
    """A p(y) that is the same whatever the component."""

    def content(self, *, component=None, **drawn):
        return super().content(**drawn)


class SharpMixture(ps.priors.Mixture):
    """A p(y|z) that is too sure."""

    def posterior_y(self, z, present=None, **given):
        share = self.responsibilities(z, present, **given)
        return dist.Categorical(logits=2 * share.logits)


OVERRIDDEN = {
    "mutual_information": ({"mutual_information": lambda self: 3.0}, "pairs"),
    "pmi": ({"pmi": lambda self, a, b: 2 * Gaussian.pmi(self, a, b)}, "pairs"),
    "balanced": (
        {"balanced": lambda self, z: Gaussian.balanced(self, z) / 2},
        "balance",
    ),
    "gauge": ({"gauge": lambda self, views: views - 1}, "balance"),
    "centre": ({"centre": lambda self, mean: 2 * mean}, "support"),
    "on_support": ({"on_support": lambda self, z: 2 * z}, "support"),
    "content": (OfOneTier, "contents"),
    "posterior_y": (SharpMixture, "components"),
}


@pytest.mark.parametrize("method", OVERRIDDEN)
def test_an_overridden_method_that_is_wrong_is_found(method):
    kind, law = OVERRIDDEN[method]
    if isinstance(kind, dict):
        prior = type("Wrong", (Gaussian,), kind)(2, 0.5)
    else:
        prior = kind(2, components=2)
    error = broken(check_prior, prior, draws=500)
    assert error.laws == (law,)


@pytest.mark.parametrize(("wide", "shift"), [(1.0, 0.1), (1.05, 0.0)])
def test_small_faults_of_samples_are_found_at_the_default_draws(wide, shift):
    class Off(OneFactorNormal):
        def rsample(self, sample_shape=()):
            return wide * super().rsample(sample_shape) + shift  # of deviation 1

    kind = type("Broken", (Gaussian,), distributed(Off))
    error = broken(check_prior, kind(2, 0.3))
    assert error.laws == ("sampling",)


class Clustered(Prior):
    """A prior of one's own around `TwoTier`, of which one method may be wrong."""

    def __init__(self, wrong: str | None = None) -> None:
        super().__init__()
        self.inner = ps.priors.TwoTier(2, 3, 0.4, 0.8)
        self.dim, self.wrong = 2, wrong
        with torch.no_grad():
            self.inner.logits.copy_(torch.tensor([0.0, 1.0, -1.0]))
        for method in ("component", "content", "given", "responsibilities"):
            if wrong is not None and wrong.startswith(method):
                setattr(self, method, getattr(self, f"_wrong_{method}"))

    def forward(self, views, *, present=None, component=None):
        if self.wrong == "forward" and component is not None:
            component = (component + 1) % 3
        found = self.inner(views, present=present, component=component)
        if self.wrong == "complete":
            found.complete = lambda z, seen: torch.where(
                seen.unsqueeze(-1), z, self.inner(views).sample(z.shape[:-2])
            )
        if self.wrong == "complete_mean":
            found.complete_mean = lambda z, seen: torch.where(
                seen.unsqueeze(-1), z, torch.zeros_like(z)
            )
        return found

    def component(self):
        return self.inner.component()

    def content(self, **known):
        return self.inner.content(**known)

    def given(self, y, **drawn):
        return self.inner.given(y, **drawn)

    def responsibilities(self, z, present=None):
        return self.inner.responsibilities(z, present)

    def _wrong_component(self):
        return dist.Categorical(logits=torch.zeros(3, dtype=torch.float64))

    def _wrong_content(self, **known):
        return dist.Normal(torch.zeros(2).double(), 2.0).to_event(1)

    def _wrong_given(self, y, **drawn):
        return dist.Normal(y, 0.8).to_event(1)

    def _wrong_responsibilities(self, z, present=None):
        share = self.inner.responsibilities(z, present).probs
        return dist.Categorical(probs=share.flip(-1))


@pytest.mark.parametrize(
    ("wrong", "law"),
    [
        ("component", "components"),
        ("content", "contents"),
        ("given", "contents"),
        ("responsibilities", "components"),
        ("forward", "components"),
        ("complete", "completion"),
        ("complete_mean", "completion"),
    ],
)
def test_a_wrong_method_beside_a_right_density_is_found(wrong, law):
    assert broken(check_prior, Clustered(wrong), draws=2000).laws == (law,)


def test_a_prior_of_ones_own_with_all_methods_obeys_the_laws():
    check_prior(Clustered(), draws=2000)


def test_a_prior_that_forgets_drawn_values_is_found():
    class Forgets(Gaussian):
        def forward(self, views, *, present=None, dim=None, **drawn):
            return super().forward(views, present=present)

    error = broken(check_prior, Forgets(2, RANDOM), draws=300)
    assert error.laws == ("drawn hyper parameters",)


def own_distribution(likelihood: Likelihood, **methods: object) -> Likelihood:
    """The likelihood, whose distributions have other methods."""

    class Broken(type(likelihood)):
        def forward(self, output):
            distribution = super().forward(output)
            distribution.__class__ = type("Broken", (type(distribution),), methods)
            return distribution

    likelihood.__class__ = Broken
    return likelihood


def standardised(self, x):
    return -0.5 * ((x - self.loc) / self.scale).square()


def wide_noise(self, sample_shape=()):
    return 2 * dist.Normal.rsample(self, sample_shape) - self.loc


def uneven(self, sample_shape=()):
    return OneHot(2 * self.logits).sample(sample_shape)


def alike(self, sample_shape=()):
    """Samples with the right density for each element, but one noise for all."""
    x = super(type(self), self).sample(sample_shape)
    return x.sort(0).values[torch.randperm(len(x))] if sample_shape else x


def alike_items(self, sample_shape=()):
    x = super(type(self), self).sample(sample_shape)
    if not sample_shape:
        return x
    order = torch.rand(len(x), 1, *x.shape[2:]).argsort(0).expand_as(x)
    return x.sort(0).values.gather(0, order)


ELEMENTWISE = ("Gaussian", "Laplace", "StudentT", "Binomial(16)", "Poisson")


@pytest.mark.parametrize("sample", [alike, alike_items])
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_noise_that_elements_or_items_share_is_found(name, sample):
    likelihood = own_distribution(LIKELIHOODS[name](), sample=sample)
    error = broken(check_likelihood, likelihood, event_shape=(4,), draws=DRAWS)
    assert error.laws == ("independence",)


def late(method: str, change: Callable) -> Callable:
    """A method of a distribution that is wrong in the elements 6 and 7."""

    def changed(self, *arguments):
        x = getattr(super(type(self), self), method)(*arguments)
        return torch.cat([x[..., :6], change(self, x)[..., 6:]], -1)

    return changed


def off_by_a_nat(p, log_prob):
    return log_prob + 1


def thrice_as_wide(p, x):
    return p.mean + 3 * (x - p.mean)


@pytest.mark.parametrize(
    "law, name, method, change",
    [
        ("normalisation", "Gaussian", "log_prob", off_by_a_nat),
        ("normalisation", "Poisson", "log_prob", off_by_a_nat),
        ("sampling", "Laplace", "sample", thrice_as_wide),
    ],
)
def test_a_fault_of_late_elements_is_found(law, name, method, change):
    likelihood = LIKELIHOODS[name]()
    likelihood = own_distribution(likelihood, **{method: late(method, change)})
    output = torch.randn(3, 8).clamp(-1, 1)
    with pytest.raises(LawError) as caught:
        check_likelihood(likelihood, output, draws=DRAWS)
    assert law in caught.value.laws


class RefusesItself(Binomial):
    def check(self, x):
        super().check(x)
        if (x == 1).any():
            raise ValueError("expected no white pixel, got one; darken the image")


class AcceptsNaN(Binomial):
    def check(self, x):
        pass


GAUSSIAN, CLASSES = ps.likelihoods.Gaussian, ps.likelihoods.Categorical
GreyLevels, OneHot = ps.likelihoods.GreyLevels, ps.likelihoods.OneHot
# The broken law, and the likelihood or its class, size and methods of distributions.
BROKEN_LIKELIHOODS = [
    ("normalisation", GAUSSIAN, 0.3, {"log_prob": standardised}),
    (
        "normalisation",
        Binomial,
        4,
        {"log_prob": lambda self, x: 2 * GreyLevels.log_prob(self, x)},
    ),
    ("normalisation", CLASSES, 4, {"log_prob": lambda self, x: x * self.logits}),
    ("sampling", GAUSSIAN, 0.3, {"rsample": wide_noise, "sample": wide_noise}),
    ("sampling", CLASSES, 4, {"sample": uneven}),
    ("mean", Binomial, 4, {"mean": property(lambda p: 0.5 * GreyLevels.mean.fget(p))}),
    ("own samples", RefusesItself, 4, {}),
    ("own samples", AcceptsNaN, 4, {}),
]


@pytest.mark.parametrize("law, kind, size, methods", BROKEN_LIKELIHOODS)
def test_a_broken_likelihood_is_found_by_name(law, kind, size, methods):
    likelihood = own_distribution(kind(size), **methods)
    error = broken(check_likelihood, likelihood, torch.randn(3, 4), draws=DRAWS)
    assert law in error.laws and f"- {law}: " in str(error)


class Own(Likelihood):
    """A likelihood that is a function of the decoder's output."""

    def __init__(self, function: Callable, measure: str = "Lebesgue") -> None:
        super().__init__()
        self.function, self.measure = function, measure

    def forward(self, output):
        return self.function(output)


def width(x):
    return nn.functional.softplus(x) + 0.1


def multivariate(output):
    loc, tril = output[..., 0, :], output[..., 1:, :]
    scale = tril.tril(-1) + width(tril.diagonal(dim1=-2, dim2=-1)).diag_embed()
    return dist.MultivariateNormal(loc, scale_tril=scale, validate_args=False)


def mixture(output):
    weight, loc, scale = output.unbind(-2)
    parts = dist.Normal(loc, width(scale), validate_args=False)
    weight = dist.Categorical(logits=weight, validate_args=False)
    return dist.MixtureSameFamily(weight, parts, validate_args=False)


def zero_inflated(output):
    a, r, gate = output.unbind(-1)
    return dist.ZeroInflatedNegativeBinomial(
        width(r), logits=a, gate_logits=gate, validate_args=False
    )


def made(kind, *bounds: bool, **options: object) -> Callable:
    """A function from output to a distribution; of bounds, which are positive."""

    def function(output):
        parts = output.unbind(-1) if len(bounds) > 1 else [output]
        pairs = zip(parts, bounds, strict=True)
        return kind(*(width(x) if b else x for x, b in pairs), **QUIET, **options)

    return function


QUIET, COUNTS = {"validate_args": False}, "counting, 0, 1, …"
STRANGERS = {  # with the shape of the decoder's output for one x
    "zero-inflated": (Own(zero_inflated, COUNTS), (2, 3)),
    "multivariate": (Own(multivariate), (4, 3)),
    "mixture": (Own(mixture), (2, 3, 4)),
    "angles": (Own(made(dist.VonMises, False, True)), (3, 2)),
    "shares": (Own(made(dist.Beta, True, True)), (3, 2)),
    "compositions": (Own(made(dist.Dirichlet, True)), (4,)),
    "maxima": (Own(made(dist.Gumbel, False, True)), (3, 2)),
    "grey": (Own(lambda x: dist.ContinuousBernoulli(logits=x, **QUIET)), (3,)),
    "image": (Own(lambda x: dist.Normal(x, 0.3, **QUIET).to_event(3)), (1, 2, 2)),
    # Their densities round where no data are: at ±1, beyond 1e200, below 1e-200.
    "between -1 and 1": (Own(lambda x: bounded(dist.Normal(x, 1.0, **QUIET))), (3,)),
    "lifetimes": (Own(lambda x: dist.Weibull(width(x), 1.5, **QUIET)), (3,)),
    "reciprocals": (Own(lambda x: dist.InverseGamma(width(x) + 2, 1.0, **QUIET)), (3,)),
    "corners": (Own(lambda x: dist.Dirichlet(0.2 * x.exp(), **QUIET)), (3,)),
    "directions": (Own(lambda x: dist.ProjectedNormal(x, **QUIET)), (3,)),
}


def bounded(normal):
    tanh = dist.transforms.TanhTransform()
    return dist.TransformedDistribution(normal, tanh, **QUIET)


@pytest.mark.filterwarnings("ignore:.*(no mean|rounds? to|device cannot)")
@pytest.mark.parametrize("name", STRANGERS)
def test_distributions_of_pyro_obey_the_laws(name):
    likelihood, shape = STRANGERS[name]
    check_likelihood(likelihood, torch.randn(3, *shape), draws=DRAWS)


def undefined(low, high):
    """A density that is NaN between two numbers."""

    def log_prob(self, x):
        right = super(type(self), self).log_prob(x)
        return torch.where((x > low) & (x < high), torch.nan, right)

    return log_prob


def larger(self, x):
    return dist.Dirichlet.log_prob(self, x) + 0.3


# NaN where the distribution has mass, or beyond its samples where data may be.
LOST = {
    "maxima": (dist.Gumbel, (False, True), undefined(0.0, 0.2)),
    "tails": (dist.Gumbel, (False, True), undefined(1e2, 1e9)),
    "lifetimes": (dist.Weibull, (True, True), undefined(1.0, 1.5)),
    "shares": (dist.Beta, (True, True), undefined(0.7, 0.9)),
}


@pytest.mark.parametrize("name", LOST)
def test_a_density_that_is_nan_within_the_support_is_found(name):
    kind, bounds, log_prob = LOST[name]
    likelihood = Own(made(altered(kind, log_prob=log_prob), *bounds))
    error = broken(check_likelihood, likelihood, torch.randn(3, 3, 2), draws=DRAWS)
    assert "normalisation" in error.laws


def test_a_constant_is_found_where_samples_are_at_the_ends_of_the_support():
    kind = altered(dist.Dirichlet, log_prob=larger)
    likelihood = Own(lambda x: kind(0.2 * x.exp(), **QUIET))
    error = broken(check_likelihood, likelihood, torch.randn(3, 3), draws=4 * DRAWS)
    assert "normalisation" in error.laws


def test_constants_on_the_cpu_are_numbers_only_before_they_are_expanded():
    number = torch.tensor(0.3, dtype=torch.float64)
    check_likelihood(
        Own(lambda x: dist.Normal(number * x, 0.3, **QUIET)),
        torch.randn(3, 4),
        draws=DRAWS,
    )
    expands = Own(lambda x: dist.Logistic(x, number, **QUIET))
    error = broken(check_likelihood, expands, torch.randn(3, 4), draws=DRAWS)
    assert "device" in error.laws and "0.3, not torch.tensor(0.3)" in str(error)


class Bare(dist.TorchDistribution):
    """A normal distribution that declares neither support nor mean."""

    arg_constraints = {}

    def __init__(self, loc):
        super().__init__(loc.shape, validate_args=False)
        self.normal = dist.Normal(loc, 0.3, **QUIET)

    def expand(self, batch_shape, _instance=None):
        return Bare(self.normal.loc.expand(batch_shape))

    def sample(self, sample_shape=()):
        return self.normal.sample(sample_shape)

    def log_prob(self, value):
        return self.normal.log_prob(value)


class Branches(dist.Normal):
    def log_prob(self, value):
        return super().log_prob(value) if value.sum() > -1e9 else value


class Validates(ps.likelihoods.Gaussian):
    def forward(self, output):
        return dist.Normal(output, 0.3 * torch.ones_like(output))


REMARKS = {
    "Own: it has no mean": Own(Bare),
    "it has no mean": Own(lambda x: dist.Categorical(logits=x, **QUIET), COUNTS),
    "its distribution validates its arguments": Validates(0.3),
    "a part of its distribution validates its arguments": Own(
        lambda x: dist.OneHotCategorical(logits=x, **QUIET), COUNTS
    ),
    "support that depends on the output": Own(
        lambda x: dist.Uniform(x - 1, x + 1, **QUIET)
    ),
}


@pytest.mark.parametrize("remark", REMARKS)
def test_what_breaks_no_law_is_a_warning(remark, monkeypatch):
    # Any torch.compile switches it off for the whole process.
    monkeypatch.setattr(torch.distributions.Distribution, "_validate_args", True)
    with pytest.warns(UserWarning, match=remark):
        check_likelihood(REMARKS[remark], torch.randn(3, 2, 4), draws=DRAWS)


def test_a_distribution_that_cannot_be_traced_is_a_warning(monkeypatch):
    library = (*modules.LIBRARIES, str(Path(__file__).parent))
    monkeypatch.setattr(modules, "LIBRARIES", library)
    likelihood = Own(lambda x: Branches(x, 0.3, **QUIET))
    with (
        pytest.warns(UserWarning, match="cannot be compiled"),
        pytest.warns(UserWarning, match="device cannot be checked"),
    ):
        check_likelihood(likelihood, event_shape=(4,), draws=DRAWS)


def altered(kind, **methods: Callable) -> type:
    return type("Altered", (kind,), methods)


def constant(self, x):
    return dist.MultivariateNormal.log_prob(self, x) + 0.3


def summed(self, x):
    return dist.Beta.log_prob(self, x).sum(0)


def outside(self, sample_shape=()):
    return 2 * dist.Beta.sample(self, sample_shape)


def below(self, sample_shape=()):
    return dist.Poisson.sample(self, sample_shape) - 1


def unit(kind):
    return lambda x: kind(x, scale_tril=torch.eye(3).to(x), **QUIET)


WRONG = {
    "constant": (
        "normalisation",
        unit(altered(dist.MultivariateNormal, log_prob=constant)),
    ),
    "summed": ("shapes", made(altered(dist.Beta, log_prob=summed), True, True)),
    "outside": ("own samples", made(altered(dist.Beta, sample=outside), True, True)),
    "below": ("own samples", made(altered(dist.Poisson, sample=below), True)),
    "counts": ("measure", made(dist.Poisson, True)),
    "over items": ("shapes", lambda x: dist.Normal(x.sum(0), 1.0, **QUIET)),
    "over elements": ("shapes", lambda x: dist.Normal(x.sum((-2, -1)), 1.0, **QUIET)),
    "from the front": ("shapes", lambda x: dist.Normal(x[:, 0], 1.0, **QUIET)),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_in_a_likelihood_of_pyro_is_found(name):
    law, function = WRONG[name]
    size = 2 if name in ("summed", "outside") else 3
    shape = {"event_shape": (3,)} if name != "constant" else {}
    output = torch.randn(3, 3, size)
    error = broken(check_likelihood, Own(function), output, draws=DRAWS, **shape)
    assert law in error.laws


MANY = "its values are too many to be drawn"


def multinomial(kind=dist.Multinomial):
    return lambda x: kind(60, logits=0.3 * x, **QUIET)


def dirichlet(kind=dist.DirichletMultinomial):
    return lambda x: kind(width(x), total_count=torch.tensor(60.0), **QUIET)


class Depth(dist.TorchDistribution):
    """Poisson counts of a vector, given the last element: the logarithm of a depth."""

    arg_constraints, support = {}, dist.constraints.real_vector

    def __init__(self, rates):
        self.share = rates / rates.shape[-1]
        shape = rates.shape[:-1], torch.Size([rates.shape[-1] + 1])
        super().__init__(*shape, validate_args=False)

    def counts(self, depth):
        return dist.Poisson(self.share * depth.exp(), **QUIET)

    def log_prob(self, x):
        return self.counts(x[..., -1:]).log_prob(x[..., :-1]).sum(-1)

    @property
    def mean(self):
        depth = torch.full_like(self.share[..., :1], 4.0)
        return torch.cat([self.counts(depth).mean, depth], -1)

    def sample(self, sample_shape=()):
        mean = self.mean.expand(*sample_shape, *self.shape())
        return torch.cat([torch.poisson(mean[..., :-1]), mean[..., -1:]], -1)


def depth(kind=Depth):
    return lambda x: kind(width(x))


VECTORS = {"multinomial": multinomial(), "dirichlet": dirichlet(), "depth": depth()}


@pytest.mark.parametrize("name", VECTORS)
@pytest.mark.parametrize("seed", [0, 1])
def test_vectors_of_many_counts_obey_the_laws(name, seed):
    output = torch.randn(3, 20)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        check_likelihood(Own(VECTORS[name], COUNTS), output, draws=DRAWS, seed=seed)
    assert any(MANY in str(each.message) for each in said)


def coefficient(self, x):
    return (x * self.logits).sum(-1)


def spread_alike(self, sample_shape=()):
    share = self.concentration / self.concentration.sum(-1, keepdim=True)
    return dist.Multinomial(60, share, **QUIET).sample(sample_shape)


def without_factorial(self, x):
    return Depth.log_prob(self, x) + (x[..., :-1] + 1).lgamma().sum(-1)


def in_a_row(self, sample_shape=()):  # of the right mean, but wider
    x = Depth.sample(self, sample_shape)
    wide = dist.Gamma(20.0, 20.0).sample(x.shape)
    return torch.cat([torch.poisson(x * wide)[..., :-1], x[..., -1:]], -1)


@pytest.mark.parametrize(
    "wrong",
    [
        multinomial(altered(dist.Multinomial, log_prob=coefficient)),
        dirichlet(altered(dist.DirichletMultinomial, sample=spread_alike)),
        depth(altered(Depth, sample=in_a_row)),
        depth(altered(Depth, log_prob=without_factorial)),
    ],
)
@pytest.mark.parametrize("size", [3, 20])
def test_wrong_vectors_of_many_counts_are_found(wrong, size):
    output = torch.randn(3, size)
    error = broken(check_likelihood, Own(wrong, COUNTS), output, draws=DRAWS)
    assert "sampling" in error.laws


class LeftOnTheCPU(ps.likelihoods.Gaussian):
    def forward(self, output):
        return super().forward(output * torch.ones(4))


class NegativeScale(ps.likelihoods.Gaussian):
    def forward(self, output):
        return dist.Normal(output, output, validate_args=True)


def test_messages_have_a_line_for_each_law_and_the_way_out():
    error = broken(check_likelihood, LeftOnTheCPU(0.3), torch.randn(3, 4), draws=DRAWS)
    assert "- device: " in str(error) and "write device=z.device" in str(error)
    error = broken(check_likelihood, NegativeScale(0.3), torch.randn(3, 4), draws=DRAWS)
    assert "GreaterThan(lower_bound=0.0), but found invalid values\n" in str(error)
    assert "tensor(" not in str(error)
    assert len(str(error).splitlines()) == 1 + len(error.laws)


class NarrowNormal(dist.Normal):
    def rsample(self, sample_shape=()):
        return self.loc + 0.7 * (super().rsample(sample_shape) - self.loc)

    sample = rsample


class DetachedNormal(dist.Normal):
    def rsample(self, sample_shape=()):
        noise = torch.randn(self._extended_shape(sample_shape), dtype=self.loc.dtype)
        return self.loc + self.scale.detach() * noise


class OneNoise(dist.Normal):
    def rsample(self, sample_shape=()):
        noise = super().rsample(sample_shape) - self.loc
        first = noise.narrow(len(sample_shape), 0, 1) / self.scale[:1]
        return self.loc + self.scale * first

    sample = rsample


class OneNoiseOfRsample(OneNoise):
    sample = dist.Normal.sample


class WideStddev(dist.Normal):
    stddev = property(lambda self: 3 * self.scale)
    variance = property(lambda self: 9 * self.scale**2)


class WithoutMean(dist.Normal):
    @property
    def mean(self):
        raise NotImplementedError


class BrokenGuide(DiagonalGaussian):
    """Normals of some kind, whose encoder sees a function of the views."""

    def __init__(self, kind=dist.Normal, seen=lambda x: x, views=2) -> None:
        super().__init__(encoder())
        self.kind, self.seen, self.views = kind, seen, views

    def forward(self, x, prior, present=None):
        q = self.kind(*self.factors(self.seen(x)), validate_args=False)
        return q.to_event(self.views)


BROKEN_GUIDES = {
    "sampling": lambda: BrokenGuide(NarrowNormal),
    "reparameterised gradient": lambda: BrokenGuide(DetachedNormal),
    "independent items": lambda: BrokenGuide(seen=lambda x: x - x.mean(0)),
    "shapes": lambda: BrokenGuide(views=0),
    "absent views": lambda: BrokenGuide(seen=lambda x: x.flip(1) + x),
}


@pytest.mark.parametrize(
    ("kind", "law", "detail"),
    [
        (OneNoise, "sampling", "independent items in sample"),
        (OneNoiseOfRsample, "sampling", "independent items in rsample"),
        (WideStddev, "spread", "stddev and variance"),
        (WithoutMean, "mean", "embed and reconstruct need"),
    ],
)
def test_a_guide_with_a_wrong_distribution_is_found(kind, law, detail):
    guide = BrokenGuide(kind)
    error = broken(check_guide, guide, Gaussian(2, 0.5), X, draws=DRAWS)
    assert law in error.laws and detail in str(error)


@pytest.mark.parametrize("law", BROKEN_GUIDES)
def test_a_broken_guide_is_found_by_name(law):
    guide = BROKEN_GUIDES[law]()
    error = broken(check_guide, guide, Gaussian(2, 0.5), X, draws=2 * DRAWS)
    assert law in error.laws and f"- {law}: " in str(error)


def test_a_guide_off_the_support_of_its_prior_is_found():
    guide = DiagonalGaussian(encoder(3))
    error = broken(check_guide, guide, Spherical(3), X, draws=DRAWS)
    assert "support" in error.laws


class Changed(ps.limits.LogDet):
    """LogDet whose alignment is a function of the right one, of itself and of z."""

    def __init__(self, change=lambda value, self, z: value) -> None:
        super().__init__(encoder())
        self.change = change

    def alignment(self, z):
        return self.change(super().alignment(z), self, z)


class LeavesParametersAndMovesBuffers(Changed):
    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(2))
        self.register_buffer("centre", torch.zeros(2))

    def prepared(self, z):
        z = super().prepared(z)
        self.centre += z.detach().mean((0, 1))
        return z


class ReturnsNumbers(Changed):
    def forward(self, batch):
        return super().forward(batch)._asdict()


class NoRepresentation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = ps.limits.LogDet(encoder())

    def forward(self, batch):
        return self.inner(batch)


BROKEN_OBJECTIVES = {
    "anchor": (
        lambda value, self, z: value - z[:, 0].square().mean(),
        "order of views",
    ),
    "weights": (lambda value, self, z: value + z[0].square().mean(), "order of items"),
    "no mean": (lambda value, self, z: self.prior.log_prob(z), "terms"),
    "infinite": (lambda value, self, z: value + z.var(0).log().mean(), "corner cases"),
    "host": (
        lambda value, self, z: value if value.item() > -1e9 else 0 * value,
        "tracing",
    ),
    "dtype": (
        lambda value, self, z: value + z.double().square().mean(),
        "single precision",
    ),
    "no terms": (ReturnsNumbers, "terms"),
    "no representation": (NoRepresentation, "representation"),
}


@pytest.mark.parametrize("random", [False, True])
def test_a_sum_over_items_is_found(random):
    class Summed(ps.limits.SimVAE):
        def forward(self, batch: Batch) -> Terms:
            terms = super().forward(batch)
            return Terms(*(len(batch.views) * term for term in terms))

    guide = DiagonalGaussian if random else Point
    summed = Summed(joint(Gaussian(2), guide=guide))
    error = broken(check_objective, summed, batch(), repeats=100)
    assert error.laws == ("mean over items",) and "take its .mean()" in str(error)


@pytest.mark.parametrize("name", BROKEN_OBJECTIVES)
def test_a_broken_objective_is_found_by_name(name):
    change, law = BROKEN_OBJECTIVES[name]
    objective = change() if isinstance(change, type) else Changed(change)
    error = broken(check_objective, objective, batch(), repeats=10)
    assert law in error.laws and f"- {law}: " in str(error)


def test_unused_parameters_and_moving_buffers_are_named():
    objective = LeavesParametersAndMovesBuffers()
    error = broken(check_objective, objective, batch(), repeats=10)
    assert error.laws == ("gradients", "state")
    assert "for unused" in str(error) and "centre to stay" in str(error)


def test_an_order_that_matters_is_found_among_random_terms():
    class Anchored(ps.limits.SimVAE):
        def forward(self, batch: Batch) -> Terms:
            terms = super().forward(batch)
            return terms._replace(alignment=terms.alignment + batch.views[:, 0].sum())

    error = broken(check_objective, Anchored(joint(Gaussian(2))), batch(), repeats=20)
    assert error.laws == ("order of views",)


def test_a_check_changes_nothing():
    prior, state = Counting(2, ps.learned(0.4)), torch.random.get_rng_state()
    before = copy.deepcopy(prior.state_dict())
    broken(check_prior, prior, draws=100)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.get_default_dtype() == torch.float32
    assert prior.training and all(p.grad is None for p in prior.parameters())
    for name, now in prior.state_dict().items():
        assert now.dtype == torch.float32 and torch.equal(now, before[name])


def test_every_broken_law_is_listed():
    class Both(Counting):
        def log_prob(self, z, present=None):
            return super().log_prob(z, present) + 0.48

    error = broken(check_prior, Both(2, 0.4), draws=300)
    assert {"normalisation", "state"} <= set(error.laws)
    assert str(error).startswith(f"Both breaks {len(error.laws)} laws:\n- ")
    assert isinstance(error, AssertionError)


def test_an_error_in_the_middle_is_a_broken_law_with_its_cause():
    class Raises(Gaussian):
        def posterior_y(self, z, present=None):
            return None + z

    error = broken(check_prior, Raises(2, 0.4), draws=200)
    assert error.laws == ("bayes",) and isinstance(error.__cause__, TypeError)


def test_too_few_draws_are_called_undecided():
    """Many narrow peaks that no reference can find."""

    class Peaks(Gaussian):
        def log_prob(self, z, present=None):
            return super().log_prob(z, present) + 400 * (z * 40).sin().sum((-2, -1))

    error = broken(check_prior, Peaks(1, 0.4), draws=100)
    assert "undecided" in str(error)


test_misuse_is_refused_with_a_way_out = refusals(
    (lambda: check_prior(nn.Identity()), TypeError, "ps.priors.Prior.*inherit"),
    (lambda: check_prior(Gaussian(None)), ValueError, "known dimension"),
    (
        lambda: check_likelihood(nn.Identity(), torch.ones(1)),
        TypeError,
        "likelihood as a Likelihood, got Identity",
    ),
    (
        lambda: check_guide(Point(encoder()), Gaussian(2), torch.randn(1, 2, 3)),
        ValueError,
        "at least 2 items",
    ),
    # None of these is a fault of the part.
    (lambda: check_prior(Gaussian(2), views=0), ValueError, "views .* at least 1"),
    (
        lambda: check_prior(Gaussian(2, y_scale=math.inf), views=1),
        ValueError,
        "views .* at least 2",
    ),
    (lambda: check_prior(Gaussian(2), seed=-1), ValueError, "seed .* from 0"),
    (lambda: check_prior(Gaussian(2), draws=1e3), TypeError, "draws as a whole"),
    (lambda: check_prior(Gaussian(2), draws=9), ValueError, "draws .* at least 100"),
    (
        lambda: check_guide(Point(encoder()), Gaussian(2), X, draws=9),
        ValueError,
        "draws .* at least 100",
    ),
    (
        lambda: check_guide(Point(encoder()), Gaussian(2), X * torch.nan),
        ValueError,
        "finite numbers in x",
    ),
    (
        lambda: check_likelihood(ps.likelihoods.Poisson(), event_shape=(4,), draws=9),
        ValueError,
        "draws .* at least 100",
    ),
    (
        lambda: check_likelihood(ps.likelihoods.Poisson(), event_shape=(0,)),
        ValueError,
        "event_shape as a tuple of positive",
    ),
    (
        lambda: check_likelihood(ps.likelihoods.Poisson(), torch.randn(0, 4)),
        ValueError,
        "finite numbers in output",
    ),
    (
        lambda: check_objective(ps.limits.SimCLR(encoder()), ps.Batch(X[:1])),
        ValueError,
        "items of batch .* at least 2",
    ),
    (
        lambda: check_objective(ps.limits.SimCLR(encoder()), ps.Batch(X * torch.nan)),
        ValueError,
        "finite numbers in present views",
    ),
    (
        lambda: check_objective(ps.limits.SimCLR(encoder()), ps.Batch(X), repeats=1),
        ValueError,
        "repeats .* at least 5",
    ),
)


def test_arrays_of_numpy_are_taken_as_examples():
    check_likelihood(ps.likelihoods.Poisson(), np.zeros((3, 4), np.float32), draws=500)
    check_guide(Point(encoder()), Gaussian(2, 0.5), X.numpy(), draws=100)


@pytest.mark.skipif(not importlib.util.find_spec("zuko"), reason="zuko is an extra")
def test_a_flow_obeys_the_laws():
    guide = ps.guides.Flow(encoder(), transforms=1, hidden=(4,))
    check_guide(guide, Gaussian(2, 0.5), X, draws=200)


class OfExponentials(Likelihood):
    """A distribution whose parameter is the exponential of the output."""

    def __init__(self, family: Callable[..., dist.TorchDistribution]) -> None:
        super().__init__()
        self.family = family

    def forward(self, output: Tensor) -> dist.TorchDistribution:
        return self.family(output.exp(), 1.5 + 0 * output, validate_args=False)


@pytest.mark.parametrize(
    ("family", "name"), [(dist.Gamma, "concentration"), (dist.Beta, "concentration")]
)
def test_a_parameter_that_overflows_is_no_broken_law(family, name):
    with pytest.warns(UserWarning, match=f"its {name} rounds to 0 or infinity"):
        check_likelihood(OfExponentials(family), event_shape=(4,), draws=500)


def test_a_guide_without_gradient_is_said_to_be_refused_by_fit():
    class Plain(dist.Normal):
        has_rsample = False

    class Guide(DiagonalGaussian):
        def each(self, x, present=None):
            return Plain(*self.factors(x, present), validate_args=False).to_event(1)

    with pytest.warns(UserWarning, match="carry no gradient .* fit refuses"):
        check_guide(Guide(encoder()), Gaussian(2, 0.5), X, draws=DRAWS)


@pytest.mark.parametrize("many", [2, 3])
def test_a_few_laws_that_importance_sampling_refuses_are_undecided(many):
    def refused(case: object) -> list[str]:
        if case is None:
            raise ValueError("expected an effective sample size of at least 20, got 3")
        return []

    trials = [(refused, lambda: None)] * many + [(refused, lambda: 1)] * 5
    if many > 2:
        with pytest.raises(LawError, match="effective sample size"):
            examine("Own", trials, 0)
    else:
        with pytest.warns(UserWarning, match="Own: refused is undecided"):
            examine("Own", trials, 0)


def test_what_a_copy_would_run_in_the_original_is_refused():
    """The checks look at copies: batch statistics of the original would move."""

    class Around(nn.Module):
        def forward(self, y):
            return dist.Laplace(y, 0.3).to_event(1)

    def closed(net: nn.Module) -> nn.Module:
        inner = net.forward
        net.forward = lambda x: inner(x)
        return net

    net = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    for check in (
        lambda: check_objective(
            ps.limits.SimCLR(closed(net)), Batch(torch.randn(6, 2, 4))
        ),
        lambda: check_prior(ps.priors.Custom(closed(Around()), 2)),
    ):
        with pytest.raises(ValueError, match="a copy would run the original"):
            check()
    assert net[1].num_batches_tracked == 0
