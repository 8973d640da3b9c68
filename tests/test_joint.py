"""The Pyro model and its guide under Pyro's own tools."""

import copy
import math
from collections.abc import Callable

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers.catalogue import PRIORS
from helpers.checks import refusals, seeded
from helpers.crossings import crossings
from pyro import poutine
from pyro.infer import MCMC, NUTS, Predictive
from pyro.infer.inspect import get_dependencies
from pyro.nn import PyroModule, PyroParam
from torch import Tensor, nn
from torch.testing import assert_close

import probssl as ps
from probssl.consistency import check_hypers
from probssl.joint import Joint
from probssl.likelihoods import Gaussian as Normal
from probssl.priors import Gaussian
from probssl.terms import Batch

pytestmark = pytest.mark.usefixtures("float64")
DIM, EVENT = 2, 3


def joint(views: int = 2, guide=ps.guides.DiagonalGaussian, **prior) -> Joint:
    return Joint(
        ps.priors.Gaussian(DIM, **prior),
        ps.likelihoods.Gaussian(0.5),
        ps.nn.MLPEncoder((EVENT,), DIM, hidden=(8,)),
        ps.nn.MLPDecoder(DIM, (EVENT,), hidden=()),
        guide=guide,
    )


def posterior(model: Joint, x: torch.Tensor) -> dist.MultivariateNormal:
    """The exact posterior of all views of one item, by dense linear algebra."""
    views = x.shape[0]
    weight, bias = (p.detach() for p in model.decoder.parameters())
    share = model.prior.scale().square() * torch.eye(views)
    share = share + model.prior.y_scale().square()
    precision = torch.kron(share.inverse().contiguous(), torch.eye(DIM))
    precision = precision + torch.kron(torch.eye(views), weight.T @ weight) / 0.25
    signal = ((x - bias) @ weight / 0.25).flatten()
    mean = torch.linalg.solve(precision, signal)
    return dist.MultivariateNormal(mean, precision_matrix=precision)


@pytest.mark.parametrize("validate", [True, False])
def test_model_and_guide_touch_neither_the_store_nor_the_settings(validate):
    pyro.clear_param_store()
    with pyro.settings.context(validate_distributions_torch=validate):
        settings = pyro.settings.get()
        model, batch = joint(), Batch(torch.randn(4, 2, EVENT))
        sum(ps.bounds.ELBO()(model, batch)).backward()
        ps.testing.check_likelihood(model.likelihood, event_shape=(4,), draws=100)
        own = ps.priors.Custom(lambda y: dist.Laplace(y, 0.3).to_event(1), dim=1)
        views = own(2)
        views.log_prob(views.rsample((3,)))
        assert pyro.settings.get() == settings
    assert not list(pyro.get_param_store())


def test_latents_and_views_have_one_plate_and_the_stated_shapes():
    model, batch = joint(), Batch(torch.randn(4, 3, EVENT))
    trace = poutine.trace(model.model).get_trace(batch)
    assert [s for s in trace.stochastic_nodes if s != "item"] == ["z"]
    assert trace.nodes["z"]["fn"].batch_shape == (4,)
    assert trace.nodes["z"]["fn"].event_shape == (3, DIM)
    assert trace.nodes["x"]["fn"].event_shape == (3, EVENT)


def test_items_are_independent_and_views_are_not():
    batch = Batch(torch.randn(4, 2, EVENT))
    found = get_dependencies(joint().model, (batch,))
    assert found["posterior_dependencies"]["z"] == {"z": set(), "x": set()}
    assert found["prior_dependencies"]["x"] == {"z": set(), "x": set()}


@pytest.mark.parametrize("parallel", [True, False])
def test_predictive_gives_samples_of_all_sites(parallel):
    model, batch = joint(), Batch(torch.randn(4, 2, EVENT))
    prior = Predictive(
        poutine.uncondition(model.model), num_samples=7, parallel=parallel
    )(batch)
    after = Predictive(
        model.model, guide=model.guide, num_samples=7, parallel=parallel
    )(batch)
    assert prior["x"].shape == (7, 4, 2, EVENT)
    assert after["z"].shape == (7, 4, 2, DIM)
    assert after["z"].std(0).min() > 0


def test_nuts_recovers_the_exact_gaussian_posterior():
    model, x = joint(scale=0.7).requires_grad_(False), torch.randn(1, 2, EVENT)
    pyro.set_rng_seed(0)
    mcmc = MCMC(
        NUTS(model.model), num_samples=200, warmup_steps=60, disable_progbar=True
    )
    mcmc.run(Batch(x))
    z, exact = mcmc.get_samples()["z"].flatten(1), posterior(model, x[0])
    size = mcmc.diagnostics()["z"]["n_eff"].flatten()
    error = 5 * exact.stddev / size.sqrt()
    assert ((z.mean(0) - exact.mean).abs() < error).all()
    spread = 5 * exact.variance * (2 / size).sqrt()
    assert ((z.var(0) - exact.variance).abs() < spread).all()


def log_weight(model: Joint, batch: Batch, z: torch.Tensor) -> torch.Tensor:
    """log p(x, z) - log q(z | x) at a given z, from Pyro's own traces."""
    at_z = [
        poutine.condition(site, data={"z": z}) for site in (model.model, model.guide)
    ]
    p, q = (poutine.trace(site).get_trace(batch) for site in at_z)
    p.compute_log_prob()
    q.compute_log_prob()
    x = p.nodes["x"]["log_prob"]
    return x + p.nodes["z"]["log_prob"] - q.nodes["z"]["log_prob"]


def normalising(inputs: int, outputs: int) -> nn.Sequential:
    """Linear layers with batch norm between them."""
    norm = nn.BatchNorm1d(5)
    return nn.Sequential(nn.Linear(inputs, 5), norm, nn.Tanh(), nn.Linear(5, outputs))


class LogNormal(ps.likelihoods.Likelihood):
    """Positive data, whose density has no gradient at zero."""

    measure = "Lebesgue"

    def forward(self, output: Tensor) -> dist.TorchDistribution:
        return dist.LogNormal(output, 0.5)


# Guide, prior and likelihood of views of which some are absent.
ABSENT: dict[str, Callable] = {
    "mean field": lambda: (ps.guides.DiagonalGaussian, Gaussian(DIM), Normal(0.5)),
    "full": lambda: (ps.guides.FullGaussian, ps.priors.StudentT(DIM), Normal(0.5)),
    "coupled": lambda: (ps.guides.Coupled, Gaussian(DIM), Normal(0.5)),
    "mixture": lambda: (ps.guides.Coupled, ps.priors.Mixture(DIM, 3), Normal(0.5)),
    "sphere": lambda: (
        *(ps.guides.PowerSpherical, ps.priors.Spherical(DIM)),
        Normal(0.5),
    ),
    "positive data": lambda: (ps.guides.DiagonalGaussian, Gaussian(DIM), LogNormal()),
}


@pytest.mark.parametrize("held", [7.0, math.nan])
@pytest.mark.parametrize("norm", ["none", "encoder", "decoder", "both"])
@pytest.mark.parametrize("name", ABSENT)
def test_absent_views_change_no_value_gradient_or_moment(name, norm, held):
    guide, prior, likelihood = ABSENT[name]()
    encoder, decoder = normalising(EVENT, DIM), normalising(DIM, EVENT)
    if norm in ("none", "decoder"):
        encoder[1] = nn.Identity()
    if norm in ("none", "encoder"):
        decoder[1] = nn.Identity()
    whole = Joint(prior, likelihood, encoder, decoder, guide=guide)
    x, z = torch.rand(6, 3, EVENT), prior.on_support(torch.randn(6, 3, DIM))
    present = torch.tensor([[True, True, False]] * 6)
    left = x.where(present.unsqueeze(-1), held)
    found = []
    for batch in (Batch(x[:, :2]), Batch(left, present=present)):
        model = copy.deepcopy(whole)
        value = log_weight(model, batch, z[:, : batch.shape[1]])
        value.sum().backward()
        grads = {name: p.grad for name, p in model.named_parameters()}
        found.append((value.detach(), grads, dict(model.named_buffers())))
    assert_close(found[1], found[0])


def test_a_modality_without_a_single_view_moves_nothing():
    parts = [normalising(EVENT, DIM) for _ in range(2)]
    back = [normalising(DIM, EVENT) for _ in range(2)]
    networks = ps.nn.PerModality(parts), ps.nn.PerModality(back)
    model = Joint(Gaussian(DIM), (Normal(0.5), Normal(0.5)), *networks)
    views = tuple(torch.randn(2, 6, 1, EVENT))
    batch = Batch(views, present=torch.tensor([[True, False]] * 6))
    before = [dict(net[1].named_buffers()) for net in (parts[1], back[1])]
    before = copy.deepcopy(before)
    (-sum(ps.limits.SimVAE(model)(batch))).backward()
    assert_close([dict(net[1].named_buffers()) for net in (parts[1], back[1])], before)
    assert not any(
        p.grad.any() for net in (parts[1], back[1]) for p in net.parameters()
    )
    assert all(p.grad.isfinite().all() for p in model.parameters())


class Centred(nn.Module):
    """Layers that subtract the mean of the batch, of which no list knows."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) - self.linear(x).mean(0)


class Remembering(Centred):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.register_buffer("mean", torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        self.mean.lerp_(self.linear(x).mean(0), 0.1)
        return self.linear(x)


@pytest.mark.parametrize(
    ("encoder", "decoder", "named"),
    [
        (Centred, nn.Linear, "the encoder"),
        (nn.Linear, Centred, "the decoder"),
        (Remembering, nn.Linear, "a buffer"),
        (nn.Linear, nn.Linear, None),
        (normalising, normalising, None),
    ],
)
def test_other_networks_that_mix_items_are_refused_where_views_are_absent(
    encoder, decoder, named
):
    networks = encoder(EVENT, DIM), decoder(DIM, EVENT)
    model = Joint(Gaussian(DIM), Normal(0.5), *networks)
    batch = Batch(torch.randn(6, 3, EVENT), present=torch.rand(6, 3) < 0.7)
    batch.present[:, 0] = True
    state = copy.deepcopy(model.state_dict())
    for each in (batch._replace(present=None), batch):
        found = f"one by one .* got {named}"
        if each.present is None and named == "the decoder":
            found = "mix no rows of a batch"
        elif each.present is None and named == "the encoder":
            found = "changes with the other items of the batch"
        elif each.present is None:
            found = ""
        if named is None or not found:
            model.check(each)
        else:
            with pytest.raises(ValueError, match=found):
                model.check(each)
    assert_close(model.state_dict(), state)


def directions(y: Tensor) -> dist.TorchDistribution:
    loc = nn.functional.normalize(y, dim=-1)
    return ps.distributions.PowerSpherical(loc, torch.tensor(5.0))


def shares(y: Tensor) -> dist.TorchDistribution:
    return dist.Dirichlet(y.exp())


OTHER_PRIORS: dict[str, Callable] = {
    "shares": lambda: ps.priors.Custom(shares, 3),
    "directions": lambda: ps.priors.Custom(directions, 3),
}
ON_THE_SPHERE = ("circle", "random concentration", "directions")
RESTRICTED = ("positive conditional", "shares")


class Shares(ps.guides.Guide):
    """A guide of a user, on the simplex."""

    def __init__(self, encoder: nn.Module, dim: int) -> None:
        super().__init__()
        self.factors = ps.guides.GaussianFactors(encoder, dim=dim)

    def each(self, x: Tensor) -> dist.TorchDistribution:
        return dist.Dirichlet(self.factors(x)[0].exp())


class Positive(ps.guides.DiagonalGaussian):
    def each(self, x: Tensor) -> dist.TorchDistribution:
        return dist.LogNormal(*self.factors(x)).to_event(1)


@pytest.mark.parametrize("prior", PRIORS | OTHER_PRIORS)
@pytest.mark.parametrize(
    "guide", ["DiagonalGaussian", "FullGaussian", "Coupled", "PowerSpherical", "Flow"]
)
def test_guide_and_prior_on_different_spaces_are_refused_when_built(guide, prior):
    if guide == "Flow":
        pytest.importorskip("zuko")
    made = (PRIORS | OTHER_PRIORS)[prior]()
    if guide == "PowerSpherical" and made.dim == 1:
        return
    fits = prior not in RESTRICTED
    fits = fits and (prior in ON_THE_SPHERE) == (guide == "PowerSpherical")
    networks = nn.Linear(EVENT, made.dim), nn.Linear(made.dim, EVENT)
    try:
        Joint(made, Normal(0.5), *networks, guide=getattr(ps.guides, guide))
    except ValueError as error:
        assert not fits and "expected a guide on the space of the prior" in str(error)
    else:
        assert fits


@pytest.mark.parametrize(
    ("guide", "prior", "refused"),
    [
        (Shares, "shares", False),
        (Shares, "narrow", True),
        (Shares, "random concentration", True),
        (Positive, "narrow", False),  # a bound, on a part of the support
        (Positive, "positive conditional", False),
        (ps.guides.Point, "narrow", False),
    ],
)
def test_own_guides_are_compared_with_the_prior_by_what_they_return(
    guide, prior, refused
):
    made = (PRIORS | OTHER_PRIORS)[prior]()
    networks = nn.Linear(EVENT, made.dim), nn.Linear(made.dim, EVENT)
    model = Joint(made, Normal(0.5), *networks, guide=guide)
    try:
        model.check(Batch(torch.randn(4, 2, EVENT)))
    except ValueError as error:
        assert refused and "expected a guide on the space of the prior" in str(error)
    else:
        assert not refused


def test_items_that_are_stacks_of_views_are_these_views():
    plain = nn.Linear(EVENT, DIM)  # says nothing of shapes
    decoder = ps.nn.MLPDecoder(DIM, (EVENT,), hidden=())
    objective = ps.limits.SimVAE(Joint(Gaussian(DIM), Normal(0.5), plain, decoder))
    x = torch.randn(8, 2, EVENT)
    found = seeded(objective, Batch(x.unsqueeze(1)))
    assert_close(found, seeded(objective, Batch(x)), rtol=0, atol=0)
    ps.fit(objective, x, epochs=1, progress=False)
    means = [ps.embed(objective, view) for view in x.unbind(1)]
    pooled = ps.embed(objective, x)
    assert_close(torch.as_tensor(pooled), torch.as_tensor(sum(means) / 2))
    assert ps.reconstruct(objective, x).shape == x.shape


class Repeated(ps.likelihoods.Likelihood):
    """Five measurements of each number that the decoder returns alone."""

    def forward(self, output: Tensor) -> dist.Normal:
        wide = output.unsqueeze(-2).expand(*output.shape[:-1], 5, output.shape[-1])
        return dist.Normal(wide, 0.5)


def test_axes_that_a_likelihood_adds_are_no_stacks_of_views():
    net = ps.nn.MLPEncoder((5, EVENT), DIM, hidden=(8,))
    decoder = ps.nn.MLPDecoder(DIM, (EVENT,), hidden=())
    model = Joint(ps.priors.Gaussian(DIM), Repeated(), net, decoder)
    x = torch.randn(7, 1, 5, EVENT)
    model.check(Batch(x))
    z = model.encode(Batch(x)).mean
    mean = decoder(z[:, 0]).unsqueeze(1)  # of each of the five
    expected = (-0.5 * ((x[:, 0] - mean) / 0.5) ** 2 - math.log(0.5)).sum((1, 2))
    expected = expected - 5 * EVENT * math.log(2 * math.pi) / 2
    assert_close(model.decode(z).log_prob(x)[:, 0], expected)
    # Stacks of such views are still views, with one z each.
    pairs = torch.randn(7, 2, 5, EVENT)
    found, same = (
        seeded(ps.bounds.ELBO(), model, Batch(each))
        for each in (pairs.unsqueeze(1), pairs)
    )
    assert_close(found, same, rtol=0, atol=0)
    assert ps.embed(model, x[:, 0].numpy()).shape == (7, DIM)
    assert ps.reconstruct(model, x[:, 0].numpy()).shape == (7, 5, EVENT)


@pytest.mark.parametrize("views", [1, 2])
def test_stacks_of_views_are_known_by_several_parameters_of_each_number(views):
    likelihood = ps.likelihoods.HeteroscedasticGaussian()
    net = ps.nn.MLPEncoder((EVENT,), DIM, hidden=(8,))
    decoder = ps.nn.MLPDecoder(DIM, likelihood.output_shape((EVENT,)), hidden=())
    model = Joint(ps.priors.Gaussian(DIM), likelihood, net, decoder)
    x = torch.randn(7, views, EVENT)
    found, same = (
        seeded(ps.bounds.ELBO(), model, Batch(each)) for each in (x.unsqueeze(1), x)
    )
    assert_close(found, same, rtol=0, atol=0)


def test_representation_is_that_of_an_item_seen_alone():
    model = joint(guide=ps.guides.CoupledLikelihoods)
    x = torch.randn(4, EVENT)
    loc, scale = model.posterior.factors(x.unsqueeze(1))
    prior = 1 + 1.0  # scale² + y_scale²
    mean = prior / (prior + scale.square()) * loc
    assert_close(model.represent(x), mean.squeeze(1))


def test_a_check_leaves_the_random_numbers_alone():
    model, batch = joint(), Batch(torch.randn(2, 2, EVENT))
    before = torch.get_rng_state()
    model.check(batch)
    assert_close(torch.get_rng_state(), before)


def checked(x: torch.Tensor, **options) -> Callable[[], None]:
    return lambda: joint(**options).check(Batch(x))


def off_the_sphere(guide: Callable) -> None:
    model = joint(guide=guide)
    model.prior = ps.priors.Spherical(DIM)
    model.check(Batch(torch.randn(2, 2, EVENT)))


def masked_point() -> None:
    present = torch.ones(2, 2).bool()
    joint(guide=ps.guides.Point).encode(Batch(torch.ones(2, 2, EVENT), present=present))


def made() -> ps.guides.DiagonalGaussian:
    return ps.guides.DiagonalGaussian(ps.nn.MLPEncoder((EVENT,), DIM))


test_bad_joints_and_batches_are_refused = refusals(
    (
        lambda: Joint(
            ps.priors.Gaussian(DIM),
            ps.likelihoods.Gaussian(),
            ps.nn.MLPEncoder((EVENT,), DIM + 1),
            ps.nn.MLPDecoder(DIM, (EVENT,)),
        ),
        ValueError,
        "one dimension, got dim=2 and dim=3",
    ),
    (checked(torch.full((2, 2, EVENT), math.nan)), ValueError, "NaN"),
    (checked(torch.ones(2, 1, EVENT), y_scale=math.inf), ValueError, "y_scale"),
    (lambda: off_the_sphere(ps.guides.DiagonalGaussian), ValueError, "a sphere, got"),
    (lambda: off_the_sphere(ps.guides.Coupled), ValueError, "use DiagonalGaussian"),
    (masked_point, ValueError, "all views to be present"),
    (lambda: joint(guide=made()), TypeError, "a class, or a function of the encoder"),
    (lambda: joint(guide="Coupled"), TypeError, "guide as a function, got .Coupled"),
    (lambda: joint(guide=lambda _: torch.nn.Identity()), TypeError, "Identity without"),
)


def test_a_step_of_simvae_crosses_files_at_most_42_times():
    """Of which two are those of the lock of threads."""
    objective = ps.limits.SimVAE(joint_of_digits())
    batch = Batch(torch.randint(0, 17, (8, 2, 1, 8, 8)) / 16.0)

    def step() -> None:
        (-sum(objective(batch))).backward()

    found = crossings(step)
    assert found.total() <= 42, found


def joint_of_digits() -> Joint:
    return Joint(
        ps.priors.Gaussian(10, 0.15),
        ps.likelihoods.Binomial(16),
        ps.nn.MLPEncoder((1, 8, 8), 10),
        ps.nn.MLPDecoder(10, (1, 8, 8)),
    )


def test_a_joint_is_shown_in_a_line_or_row_for_each_part():
    model = joint_of_digits()
    lines = repr(model).splitlines()
    assert lines[0] == "Joint(" and len(lines) == 7
    assert (
        lines[1] == "  prior: Gaussian(dim=10, scale=0.15, y_scale=1.0), 0 parameters"
    )
    assert lines[2].startswith("  likelihood: Binomial(levels=16)")
    assert lines[5] == "  guide: DiagonalGaussian(), 2,570 parameters"
    html, total = model._repr_html_(), sum(p.numel() for p in model.parameters())
    assert html.count("<tr>") == 7 and f"<td>{total:,}</td>" in html


@pytest.mark.parametrize("shape", [(2, 8, 8), (1, 8, 1), (1, 1, 1), (8, 8)])
def test_a_decoder_whose_output_would_broadcast_is_refused(shape):
    joint = ps.Joint(
        ps.priors.Gaussian(2),
        ps.likelihoods.Gaussian(0.3),
        ps.nn.MLPEncoder((1, 8, 8), 2),
        ps.nn.MLPDecoder(2, shape),
    )
    batch = ps.Batch(torch.zeros(4, 2, 1, 8, 8))
    for call in (joint.check, ps.limits.SimVAE(joint)):
        with pytest.raises(ValueError, match=r"views of shape \(1, 8, 8\)"):
            call(batch)


class Own(ps.likelihoods.Likelihood):
    """A normal likelihood around a function of the decoder's output."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, output):
        return dist.Normal(self.function(output), 0.3)


class Centred(nn.Module):
    def forward(self, x):
        return x - x.mean(0)


def decoding(*layers: nn.Module, likelihood=None) -> ps.Joint:
    likelihood = likelihood or ps.likelihoods.Gaussian(0.3)
    net = nn.Sequential(nn.Linear(2, 5), *layers)
    return ps.Joint(ps.priors.Gaussian(2), likelihood, encoder(), net)


def encoder() -> nn.Module:
    return ps.nn.MLPEncoder((5,), 2, hidden=(4,))


MIXING = {
    "softmax": (lambda o: o.softmax(1), 1),
    "centred": (lambda o: o - o.mean(1, keepdim=True), 1),
    "first": (lambda o: o[:, :1].expand_as(o), 2),
    "sums": (lambda o: o.cumsum(1), 2),
    "items": (lambda o: o - o.mean(0), 1),
}


@pytest.mark.parametrize("views", [1, 2, 3])
@pytest.mark.parametrize("name", MIXING)
def test_a_likelihood_that_mixes_views_or_items_is_refused(name, views):
    function, least = MIXING[name]
    joint, x = decoding(likelihood=Own(function)), torch.randn(6, views, 5)
    if views < least:
        return joint.check(ps.Batch(x))
    with pytest.raises(ValueError, match="changes with its own z alone"):
        joint.check(ps.Batch(x))
    several = ps.Joint(
        ps.priors.Gaussian(2),
        [ps.likelihoods.Gaussian(0.3), Own(function)],
        ps.nn.PerModality([encoder(), encoder()]),
        ps.nn.PerModality([nn.Linear(2, 5), nn.Linear(2, 5)]),
    )
    with pytest.raises(ValueError, match="changes with its own z alone"):
        several.check(ps.Batch((x, x)))


@pytest.mark.parametrize("views", [1, 2, 3])
def test_a_decoder_that_mixes_the_rows_of_a_batch_is_refused(views):
    x = torch.randn(6, views, 5)
    for layer in (Centred(), nn.BatchNorm1d(5, track_running_stats=False)):
        with pytest.raises(ValueError, match="mix no rows of a batch"):
            decoding(layer).check(ps.Batch(x))
    of_each = Own(lambda o: o * torch.arange(1.0, views + 1).view(views, 1))
    kept = decoding(nn.BatchNorm1d(5), nn.Dropout(0.5), likelihood=of_each)
    before = {name: b.clone() for name, b in kept.named_buffers()}
    kept.check(ps.Batch(x))  # each view may have a likelihood of its own
    assert kept.decoder.training and all(m.training for m in kept.modules())
    assert_close(dict(kept.named_buffers()), before)


# What would be ignored, or is needed by some uses only, is refused in words.


class OfScale(ps.likelihoods.Likelihood):
    """A likelihood with a scale of one's own."""

    def __init__(self, scale: object) -> None:
        super().__init__()
        self.scale = ps.hyper.Positive(scale, "noise")

    def forward(self, output: torch.Tensor) -> dist.TorchDistribution:
        return dist.Normal(output, self.scale())


class OwnPrior(ps.priors.Prior):
    """A standard normal prior with a part."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.dim, self.part = DIM, part

    def forward(self, views: int, *, present=None) -> dist.TorchDistribution:
        return dist.Normal(torch.zeros(views, DIM), 1.0).to_event(2)


class OwnGuide(nn.Module):
    """Logit-normal views, which have no mean in closed form."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x, prior, present=None) -> dist.TorchDistribution:
        loc = self.encoder(x.flatten(0, 1)).view(*x.shape[:2], -1)
        logit = torch.distributions.SigmoidTransform()
        return dist.TransformedDistribution(dist.Normal(loc, 0.3), [logit]).to_event(2)


class OwnScale(ps.priors.Prior):
    """Views around a normal content, with a random scale."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.dim, self.how = DIM, how
        self.sc = ps.hyper.Positive(dist.LogNormal(-1.0, 0.5), "sc")

    def forward(self, views: int, *, present=None, **drawn) -> dist.TorchDistribution:
        scale = {
            "right": lambda: self.sc.over(drawn),
            "median": lambda: self.sc(),
            "not lifted": lambda: self.sc.of(drawn).unsqueeze(-1),
        }[self.how]()
        return dist.Normal(torch.zeros(views, DIM), scale).to_event(2)


@pytest.mark.parametrize("how", ["median", "not lifted"])
def test_a_prior_that_does_not_take_drawn_values_is_refused(how):
    batch = Batch(torch.randn(4, 2, EVENT))
    of_parts(prior=OwnScale("right")).check(batch)
    with pytest.raises(ValueError, match="OwnScale to take values of sc for 3 items"):
        of_parts(prior=OwnScale(how)).check(batch)


class Waiting(ps.priors.Prior):
    """Positive views for three modalities, each with its scale; log p is estimated."""

    def __init__(self, noise: float) -> None:
        super().__init__()
        self.dim, self.noise = DIM, noise
        self.rate = ps.hyper.Positive(dist.LogNormal(0.0, 0.5), "rate")

    def forward(self, views: int, *, present=None, **drawn) -> dist.TorchDistribution:
        each = torch.ones(3, 1).expand(3, DIM) * self.rate.over(drawn)
        p, noise = dist.Gamma(2.0, each).to_event(2), self.noise
        exact = p.log_prob
        p.log_prob = lambda z: exact(z) + noise * torch.randn(exact(z).shape)
        return p


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_a_prior_on_any_support_that_takes_drawn_values_is_taken(noise):
    check_hypers(Waiting(noise), 3)


def of_parts(prior=None, likelihood=None, encoder=None, guide=None) -> Joint:
    return Joint(
        prior or ps.priors.Gaussian(DIM, 0.3),
        likelihood or ps.likelihoods.Gaussian(0.5),
        encoder or ps.nn.MLPEncoder((EVENT,), DIM, hidden=(8,)),
        ps.nn.MLPDecoder(DIM, (EVENT,), hidden=()),
        guide=guide or ps.guides.DiagonalGaussian,
    )


def with_hyper(net: nn.Module) -> nn.Module:
    net.width = OfScale(dist.LogNormal(-1.0, 0.1)).scale
    return net


def absent() -> Batch:
    present = torch.tensor([[True, False], [True, True], [False, True]] * 5)
    return Batch(torch.randn(15, 2, EVENT), present=present)


@pytest.mark.parametrize("kind", ["likelihood", "encoder", "prior", "objective"])
def test_a_random_hyper_parameter_that_is_no_site_is_refused(kind):
    random = OfScale(dist.LogNormal(-1.0, 0.1))
    encoder = with_hyper(ps.nn.MLPEncoder((EVENT,), DIM, hidden=(8,)))
    build, place = {
        "likelihood": (lambda: of_parts(likelihood=random), "likelihood.scale"),
        "encoder": (lambda: of_parts(encoder=encoder), "posterior.factors.encoder"),
        "prior": (lambda: of_parts(prior=OwnPrior(random)), "prior.part.scale"),
        "objective": (
            lambda: ps.limits.SimCLR(encoder).check(Batch(torch.randn(4, 2, EVENT))),
            "encoder.width of SimCLR",
        ),
    }[kind]
    with pytest.raises(ValueError, match=rf"got '\w+' at {place}.*ps.learned"):
        build()


def test_learned_and_declared_hyper_parameters_are_taken():
    of_parts(likelihood=OfScale(ps.learned(0.3)))
    prior = OwnPrior(OfScale(dist.LogNormal(-1.0, 0.1)))
    prior.random = lambda: ps.hyper.random_in(prior)
    of_parts(prior=prior)
    net = ps.nn.MLPEncoder((EVENT,), DIM)
    simclr = ps.limits.SimCLR(net, temperature=dist.LogNormal(0.0, 1.0))
    ps.limits.DSA(simclr, neighbours=2).check(Batch(torch.randn(4, 2, EVENT)))


def test_an_own_prior_without_absent_views_is_refused_where_some_are():
    model = of_parts(prior=OwnPrior(nn.Identity()))
    model.check(Batch(torch.randn(5, 2, EVENT)))
    with pytest.raises(TypeError, match="OwnPrior without complete and complete_mean"):
        model.check(absent())


def test_absent_views_need_no_mean_of_the_prior():
    prior = ps.priors.Custom(lambda y: dist.Cauchy(y, 0.1).to_event(1), DIM)
    model, batch = of_parts(prior=prior), absent()
    simvae = ps.limits.SimVAE(model)
    groups = ps.data.groups(batch.views, present=batch.present)
    ps.fit(simvae, groups, epochs=1)
    assert np.isfinite(ps.evidence(simvae, groups, particles=5).log_evidence).all()
    assert np.isfinite(ps.complete(simvae, groups, draws=3)).all()
    with pytest.raises(ValueError, match=r"no mean; give draws"):
        ps.complete(simvae, groups)
    pooled = model.pooled(batch)
    alone = model.encode(Batch(batch.views)).mean
    assert_close(pooled[:2], torch.stack([alone[0, 0], alone[1].mean(0)]))


def test_a_guide_without_a_mean_is_named_where_the_mean_is_needed():
    prior = ps.priors.Custom(lambda y: dist.Beta(2 + y.exp(), 2.0).to_event(1), DIM)
    simvae = ps.limits.SimVAE(of_parts(prior=prior, guide=OwnGuide))
    x = torch.randn(6, EVENT)
    for use in (ps.embed, ps.reconstruct):
        with pytest.raises(ValueError, match="mean.*TransformedDistribution without"):
            use(simvae, x)


class OfTorch(OwnGuide):
    def forward(self, x, prior, present=None) -> torch.distributions.Distribution:
        q = super().forward(x, prior, present)
        return torch.distributions.Independent(q.base_dist, 2)


def test_distributions_of_torch_are_refused_in_a_joint():
    likelihood = OfScale(0.5)
    likelihood.forward = lambda output: torch.distributions.Normal(output, 1.0)
    for model in (of_parts(likelihood=likelihood), of_parts(guide=OfTorch)):
        with pytest.raises(TypeError, match=r"take pyro\.distributions\.\w+"):
            model.check(Batch(torch.randn(5, 2, EVENT)))


class Outside(ps.likelihoods.Likelihood):
    """A likelihood whose scale only Pyro's parameter store, or a draw, holds."""

    measure = "Lebesgue"

    def __init__(self, scale: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, output: Tensor) -> dist.TorchDistribution:
        return dist.Normal(output, self.scale(output), validate_args=False)


class Drawn(ps.guides.DiagonalGaussian):
    """A guide with an auxiliary variable, which the model lacks."""

    def each(self, x: Tensor, present: Tensor | None = None):
        pyro.sample("aux", dist.Normal(0.0, 1.0))
        return super().each(x, present)


def stored(output: Tensor) -> Tensor:
    return pyro.param("s", torch.tensor(0.5), constraint=dist.constraints.positive)


@pytest.mark.parametrize(
    ("scale", "guide", "message"),
    [
        (stored, ps.guides.DiagonalGaussian, r"no pyro.param .* 's', which fit nei"),
        (
            lambda o: pyro.sample("s", dist.LogNormal(0.0, 1.0)),
            ps.guides.DiagonalGaussian,
            r"no pyro.sample .* 's', which has no guide",
        ),
        (
            lambda o: pyro.sample("w", dist.Gamma(o.new_full(o.shape[:-1], 2.0), 2.0)),
            ps.guides.DiagonalGaussian,
            r"no pyro.sample .* 'w', which has no guide",
        ),
        (lambda o: 0.5, Drawn, r"no pyro.sample .* 'aux', which has no guide"),
    ],
)
def test_parts_with_sites_of_their_own_are_refused(scale, guide, message):
    nets = ps.nn.MLPEncoder((3,), 2), ps.nn.MLPDecoder(2, (3,))
    joint = ps.Joint(Gaussian(2), Outside(scale), *nets, guide=guide)
    x = torch.randn(20, 3)
    for call in (
        lambda: ps.fit(ps.limits.SimVAE(joint), x, epochs=1, progress=False),
        lambda: ps.evidence(joint, x, particles=5),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    pyro.clear_param_store()


def test_pyro_parameters_of_modules_are_parameters():
    class Scaled(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = PyroModule[nn.Linear](2, 3)
            self.scale = PyroParam(torch.tensor(0.5), dist.constraints.positive)

        def forward(self, z: Tensor) -> Tensor:
            return self.scale * self.net(z)

    likelihood = ps.likelihoods.Gaussian(0.5)
    joint = ps.Joint(Gaussian(2), likelihood, ps.nn.MLPEncoder((3,), 2), Scaled())
    before = joint.decoder.scale.detach().clone()
    ps.fit(ps.limits.SimVAE(joint), torch.randn(20, 3), epochs=2, progress=False)
    assert joint.decoder.scale != before
    pyro.clear_param_store()


def test_stacks_of_views_are_told_by_a_decoder_set_afterwards():
    one = ps.nn.MLPDecoder(DIM, (4,), hidden=())
    joint = Joint(Gaussian(DIM), Normal(), nn.Linear(4, DIM), one)
    stacks = Batch(torch.randn(5, 1, 3, 4))
    assert joint.arranged(stacks).views.shape == (5, 3, 4)
    joint.decoder = ps.nn.MLPDecoder(DIM, (3, 4), hidden=())
    assert joint.arranged(stacks).views.shape == (5, 1, 3, 4)


@pytest.mark.parametrize("seed", range(4))
def test_rejected_draws_of_absent_views_are_no_mixing_of_views(seed):
    """The random numbers of a draw depend on the concentrations of all views."""
    torch.manual_seed(seed)
    joint = ps.Joint(
        *(ps.priors.Spherical(3, 4.0), ps.likelihoods.Gaussian(0.5)),
        *(ps.nn.MLPEncoder((3,), 3), ps.nn.MLPDecoder(3, (3,))),
        guide=ps.guides.PowerSpherical,
    )
    present = torch.rand(256, 3) < 0.7
    present[:, 0] |= ~present.any(1)
    ps.limits.SimVAE(joint).check(ps.Batch(torch.randn(256, 3, 3), present=present))
