"""The guides of z: what they make of an encoder, and plain densities."""

import copy
import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from helpers.checks import refusals
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, Normal
from torch.testing import assert_close

import probssl as ps
from probssl.distributions.gaussian import OneFactorNormal
from probssl.guides.views import Completed
from probssl.nn import MLPEncoder, PerModality, each_view

pytestmark = pytest.mark.usefixtures("float64")
DIM, TIME, CHANNELS = 3, 7, 2


class Series(nn.Module):
    """An encoder as someone writes it who has never read this package."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(CHANNELS, 5, batch_first=True)
        self.out = nn.Linear(5, DIM)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.gru(x)[0][:, -1])


class WithFeatures(Series):
    width = 5

    def features(self, x: Tensor) -> Tensor:
        return self.gru(x)[0][:, -1].tanh()


def convolutions() -> nn.Module:
    first = nn.Conv2d(1, 4, 3, padding=1)
    return nn.Sequential(first, nn.ReLU(), nn.Flatten(), nn.Linear(56, DIM))


class Counted(WithFeatures):
    width = np.int64(5)


class Maps(nn.Module):
    """A network whose `features` is a submodule, as in torchvision, and z a map."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.width = nn.Conv2d(1, DIM, (TIME, CHANNELS)), 1

    def forward(self, x: Tensor) -> Tensor:
        return self.features(x)


class Normalised(MLPEncoder):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.normalize(super().forward(x), dim=-1)


class Squashed(MLPEncoder):
    def features(self, x: Tensor) -> Tensor:
        return super().features(x).tanh()


def mlp(kind: type[MLPEncoder] = MLPEncoder) -> MLPEncoder:
    return kind((TIME, CHANNELS), DIM, hidden=(8,))


def hooked() -> nn.Module:
    encoder = mlp()
    encoder.register_forward_hook(lambda module, inputs, output: 2 * output)
    return encoder


def replaced() -> nn.Module:
    encoder = mlp()
    encoder.forward = lambda x: encoder.head(encoder.trunk(x).square())
    return encoder


def compiled_in_place() -> nn.Module:
    encoder = mlp()
    encoder.compile(backend="eager")
    return encoder


# An encoder, and the width of what the guide's head is on.
ENCODERS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "ours": (mlp, 8),
    "features overridden": (lambda: mlp(Squashed), 8),
    "forward overridden": (lambda: mlp(Normalised), 8),
    "forward replaced": (replaced, 8),
    "with a hook": (hooked, 8),
    "compiled": (lambda: torch.compile(mlp(), backend="eager"), 8),
    "compiled in place": (compiled_in_place, 8),
    "a recurrent network": (Series, DIM),
    "its features": (WithFeatures, 5),
    "a width of numpy": (Counted, 5),
    "a compiled stranger": (lambda: torch.compile(Series(), backend="eager"), DIM),
    "a sequence": (convolutions, DIM),
    "maps": (Maps, DIM),
}
GUIDES = ("DiagonalGaussian", "FullGaussian", "Coupled", "PowerSpherical", "Flow")


def joint_of(encoder: nn.Module, guide: str = "DiagonalGaussian") -> ps.Joint:
    if guide == "Flow":
        pytest.importorskip("zuko")
    prior = ps.priors.Gaussian(DIM)
    if guide == "PowerSpherical":
        prior = ps.priors.Spherical(DIM, 5.0)
    decoder = ps.nn.MLPDecoder(DIM, (TIME, CHANNELS), hidden=())
    kind = getattr(ps.guides, guide)
    return ps.Joint(prior, ps.likelihoods.Gaussian(0.5), encoder, decoder, guide=kind)


def factors_of(guide: nn.Module) -> ps.guides.Factors:
    return guide.single if isinstance(guide, ps.guides.Coupled) else guide.factors


def heads_of(guide: nn.Module, x: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """Location and raw spread."""
    return ps.guides.Factors.forward(factors_of(guide), x)


def two(encoder: nn.Module) -> ps.Joint:
    """A joint of two modalities."""
    likelihoods = (ps.likelihoods.Gaussian(0.5),) * 2
    decoder = PerModality([nn.Linear(DIM, TIME), nn.Linear(DIM, TIME)])
    return ps.Joint(ps.priors.Gaussian(DIM), likelihoods, encoder, decoder)


def views(encoder: str, items: int = 4) -> Tensor:
    shape = (1,) if encoder in ("a sequence", "maps") else ()
    return torch.randn(items, 2, *shape, TIME, CHANNELS)


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("guide", GUIDES)
def test_the_encoder_called_is_the_location_and_the_guide_has_a_head_of_its_own(
    name: str, guide: str
) -> None:
    make, width = ENCODERS[name]
    encoder, x = make(), views(name)
    joint = joint_of(encoder, guide)
    loc, raw = heads_of(joint.posterior, x)
    assert_close(loc, each_view(encoder, x))  # what SimCLR would compare
    head = factors_of(joint.posterior).spread
    assert head.in_features == width
    flat = x.flatten(0, 1)
    f = encoder(flat).flatten(1) if width == DIM else encoder.features(flat)
    assert_close(raw.flatten(0, 1), f @ head.weight.mT + head.bias)
    joint.encode(ps.Batch(x)).mean.square().sum().backward()
    assert any((p.grad != 0).any() for p in encoder.parameters())


@pytest.mark.parametrize("name", ["a recurrent network", "forward overridden"])
def test_an_encoder_of_ones_own_is_fitted_embedded_and_saved(name, tmp_path):
    def objective() -> ps.limits.SimVAE:
        return ps.limits.SimVAE(joint_of(ENCODERS[name][0]()))

    model, x = objective(), views(name, items=20)
    history = ps.fit(model, ps.data.Groups(x), epochs=2, batch_size=10, progress=False)
    assert all(math.isfinite(value) for value in history["value"])
    z = ps.embed(model, x[:, 0])
    ps.save(model, tmp_path)
    again = ps.load(tmp_path, into=objective())
    assert_close(ps.embed(again, x[:, 0]), z)


def passes(encoder: nn.Module) -> int:
    """How often the trunk runs for q(z|x) of one batch."""
    calls: list[None] = []
    joint = joint_of(encoder)
    encoder.trunk.register_forward_hook(lambda *_: calls.append(None))
    joint.encode(ps.Batch(views("ours")))
    return len(calls)


def test_location_and_spread_share_one_pass_where_that_is_the_same():
    assert passes(mlp()) == passes(mlp(Squashed)) == 1
    assert passes(mlp(Normalised)) == passes(hooked()) == 1
    assert passes(replaced()) == 2


class Trained(ps.nn.Encoder):
    """An encoder whose training draws random numbers and changes buffers."""

    def __init__(self) -> None:
        layers = (nn.Flatten(), nn.Linear(TIME * CHANNELS, 8), nn.BatchNorm1d(8))
        super().__init__(nn.Sequential(*layers, nn.Dropout()), 8, DIM)


class ByHand(Trained):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


class InPlace(Trained):
    def forward(self, x: Tensor) -> Tensor:
        f = self.features(x)
        z = self.head(f.clone())
        f.detach().zero_()
        return z


class Whole(Trained):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.trunk(x))


def observed(encoder: nn.Module) -> nn.Module:
    encoder.register_forward_pre_hook(lambda *_: None)
    encoder.register_forward_hook(lambda *_: None)
    return encoder


def observed_backward(encoder: nn.Module) -> nn.Module:
    encoder.register_full_backward_hook(lambda *_: None)
    encoder.register_full_backward_pre_hook(lambda *_: None)
    return encoder


def in_place(encoder: nn.Module) -> nn.Module:
    encoder.compile(backend="eager")
    return encoder


LIKE_PLAIN: dict[str, Callable[[], nn.Module]] = {
    "forward hooks": lambda: observed(Trained()),
    "backward hooks": lambda: observed_backward(Trained()),
    "compiled in place": lambda: in_place(Trained()),
    "compiled": lambda: torch.compile(Trained(), backend="eager"),
    "forward overridden": ByHand,
    "features changed afterwards": InPlace,
}


def steps(encoder: nn.Module) -> dict[str, Tensor]:
    """All that three steps of training make: state, values and random stream."""
    joint = joint_of(encoder)
    own = (nn.Linear, nn.BatchNorm1d)
    torch.manual_seed(1)
    for module in joint.modules():
        if isinstance(module, own):
            module.reset_parameters()
    made, simvae = {}, ps.limits.SimVAE(joint)
    for step in range(3):
        value = sum(simvae(ps.Batch(views("ours"))))
        value.backward()
        made[f"value {step}"] = value.detach()
        with torch.no_grad():
            for p in joint.parameters():
                p += 1e-3 * p.grad
    states = [p.detach() for p in joint.parameters()] + list(encoder.buffers())
    made |= {f"state {i}": state for i, state in enumerate(states)}
    return made | {"random": torch.rand(3)}


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
@pytest.mark.parametrize("name", LIKE_PLAIN)
def test_training_is_that_of_the_plain_encoder_in_one_pass(name):
    made, plain = steps(LIKE_PLAIN[name]()), steps(Trained())
    assert plain["state 10"].numel() == 8  # running statistics are among them
    assert_close(made, plain, rtol=0, atol=0)


def test_a_second_pass_leaves_buffers_alone():
    again, plain = Whole(), Trained()
    steps(again)
    steps(plain)
    count = "trunk.2.num_batches_tracked"
    assert again.state_dict()[count] == plain.state_dict()[count] == 3
    x, again = views("ours").flatten(0, 1), Whole()
    guide = ps.guides.DiagonalGaussian(again)
    kept = {name: b for name, b in again.named_buffers()}
    guide.factors(x.unsqueeze(1))[1].sum().backward()
    assert all(b is kept[name] for name, b in again.named_buffers())
    mean = 0.1 * again.trunk[:2](x).mean(0)  # a momentum of 0.1, once
    assert_close(again.trunk[2].running_mean, mean)


@pytest.mark.parametrize("make", [lambda: observed(Trained()), Whole])
def test_a_guide_compiled_as_a_whole_trains_as_it_does_plainly(make):
    factors, x = ps.guides.DiagonalGaussian(make()).factors, views("ours")
    factors.encoder.trunk[3] = nn.Identity()  # a second pass draws its own dropout
    compiled = torch.compile(copy.deepcopy(factors), backend="eager", fullgraph=True)
    for _ in range(2):
        assert_close(compiled(x), factors(x))
    assert_close(compiled._orig_mod.state_dict(), factors.state_dict())


def test_hooks_on_the_encoders_of_modalities_together_change_nothing():
    parts, x = [Trained(), Trained()], (views("ours"), views("ours"))
    encoder = PerModality(parts)
    factors = ps.guides.DiagonalGaussian(encoder).factors
    before = copy.deepcopy(factors.state_dict())

    def outcome() -> object:
        factors.load_state_dict(before)
        torch.manual_seed(0)
        return *factors(x), copy.deepcopy(factors.state_dict()), torch.rand(2)

    plain = outcome()
    observed(encoder)
    assert_close(outcome(), plain, rtol=0, atol=0)


class Halved(PerModality):
    def forward(self, parts: list[Tensor]) -> tuple[Tensor, ...]:
        return tuple(z / 2 for z in super().forward(parts))


@pytest.mark.parametrize("kind", [PerModality, Halved])
def test_encoders_of_several_modalities_keep_to_the_same_contract(kind):
    encoder, x = kind([mlp(Normalised), Series()]), (views("ours"), views("ours"))
    guide = two(encoder).posterior
    loc, raw = heads_of(guide, x)
    assert_close(loc, each_view(encoder, x))
    heads = guide.factors.spread
    assert [head.in_features for head in heads] == [8, DIM]
    last = loc[:, 2:] @ heads[1].weight.mT + heads[1].bias
    assert_close(raw[:, 2:], last)


def test_one_encoder_may_see_views_of_several_sizes():
    encoder = nn.Sequential(nn.AdaptiveAvgPool1d(4), nn.Flatten(), nn.Linear(8, DIM))
    x = torch.randn(4, 1, 2, 6), torch.randn(4, 2, 2, 9)
    loc, _ = ps.guides.DiagonalGaussian(encoder).factors(x)
    assert_close(loc, each_view(encoder, x))


test_encoders_that_are_no_map_to_z_are_refused = refusals(
    (lambda: joint_of(nn.Linear(3, 5)), ValueError, "one dimension, got dim=3"),
    (
        lambda: joint_of(nn.Sequential(nn.Flatten(), nn.Linear(14, 2 * DIM))),
        ValueError,
        "build both with the same dim",
    ),
    (
        lambda: two(torch.compile(PerModality([mlp(), mlp()]), backend="eager")),
        ValueError,
        "encoder for each modality",
    ),
    (lambda: ps.guides.Coupled(Series()), ValueError, "give the guide dim="),
    (
        lambda: ps.guides.Coupled(nn.Flatten(), dim=2)(views("ours"), lambda: 0, None),
        ValueError,
        "expected a prior whose product",
    ),
    (
        lambda: ps.guides.DiagonalGaussian(nn.Flatten(), dim=2)(views("ours"), None),
        ValueError,
        r"locations \(n, 2\), got \(8, 14\); let it return z alone",
    ),
)


def test_factor_floor_keeps_log_densities_finite():
    guide = ps.guides.DiagonalGaussian(MLPEncoder((3,), 2, hidden=()))
    nn.init.constant_(guide.factors.spread.bias, -1e4)
    q = guide(torch.randn(5, 2, 3), ps.priors.Gaussian(2))
    assert (q.stddev >= 1e-4).all() and q.log_prob(q.rsample()).isfinite().all()


def test_point_guide_is_the_encoder_with_no_entropy():
    encoder, x = MLPEncoder((3,), 2), torch.randn(5, 2, 3)
    q = ps.guides.Point(encoder)(x, ps.priors.Gaussian(2))
    assert_close(q.rsample(), encoder(x.flatten(0, 1)).view(5, 2, 2))
    assert_close(q.log_prob(q.rsample()), torch.zeros(5))


def test_full_gaussian_is_the_normal_of_its_triangle():
    encoder, x = MLPEncoder((3,), 4, hidden=(8,)), torch.randn(5, 2, 3)
    guide = ps.guides.FullGaussian(encoder)
    q, (loc, raw) = guide(x, None), guide.factors(x)
    tril = torch.diag_embed(nn.functional.softplus(raw[..., :4]) + 1e-4)
    for k, (i, j) in enumerate([(1, 0), (2, 0), (2, 1), (3, 0), (3, 1), (3, 2)]):
        tril[..., i, j] = raw[..., 4 + k]
    z = torch.randn(5, 2, 4)
    plain = MultivariateNormal(loc, tril @ tril.mT).log_prob(z).sum(-1)
    assert_close(q.log_prob(z), plain)
    assert q.event_shape == (2, 4)


def test_full_gaussian_is_the_exact_posterior_of_any_linear_model():
    """Without a common content its optimum has no gap, where the diagonal one has."""
    weight, noise, x = torch.randn(5, 2), 0.5, torch.randn(1, 1, 5)
    precision = torch.eye(2) + weight.T @ weight / noise**2
    mean = torch.linalg.solve(precision, weight.T @ x.flatten() / noise**2)
    exact = MultivariateNormal(mean, precision_matrix=precision)
    guide, tril = ps.guides.FullGaussian(nn.Linear(5, 2)), exact.scale_tril
    raw = (tril.diagonal() - 1e-4).expm1().log()
    for layer, bias in (
        (guide.encoder, mean),
        (guide.factors.spread, torch.cat([raw, tril[1:, 0]])),
    ):
        nn.init.zeros_(layer.weight)
        layer.bias.data = bias
    q, z = guide(x, ps.priors.Independent(2)), torch.randn(100, 1, 1, 2)
    assert_close(q.log_prob(z).squeeze(1), exact.log_prob(z.flatten(1)))


# The product of a Gaussian prior with normal factors, in closed form.


def dense(q: OneFactorNormal) -> MultivariateNormal:
    """The same distribution of the views, one dense normal for each dimension."""
    loading, variance = q.loading.mT, q.scale.square().mT
    outer = loading.unsqueeze(-1) * loading.unsqueeze(-2)
    return MultivariateNormal(q.loc.mT, variance.diag_embed() + outer)


MODES = ps.priors.Components.at(torch.tensor([[-2.0], [2.0]]))


@pytest.mark.parametrize(
    "prior",
    [
        ps.priors.Gaussian(1, 0.5),
        ps.priors.Mixture(1, MODES, scale=0.5),
        ps.priors.TwoTier(1, MODES, 0.3, 0.4),
        ps.priors.StudentT(1, 0.5, 4.0),
        ps.priors.Custom(lambda y: dist.Laplace(y, 0.3).to_event(1), 1),
    ],
)
def test_the_mean_of_an_absent_view_is_that_of_draws(prior):
    each = dist.Normal(torch.tensor([[[0.2], [0.0]]]), 0.5).to_event(1)
    present = torch.tensor([[True, False]])
    q = Completed(each, partial(prior, 2), present)
    assert q.mean[0, 0] == 0.2 and torch.equal(q.mean, q.mean)
    drawn = q.sample((20_000,))[:, 0, 1, 0]
    error = 5 * drawn.std() / (1_000 if not q.prior().linear else 20_000) ** 0.5
    assert abs(q.mean[0, 1, 0] - drawn.mean()) < error


@pytest.mark.parametrize("y_scale", [1.3, math.inf])
@pytest.mark.parametrize("views", [2, 3, 5])
def test_product_with_factors_is_normalised_and_proportional(views, y_scale):
    prior = ps.priors.Gaussian(3, 0.6, y_scale)(views).expand((4,))
    loc, scale = torch.randn(4, views, 3), torch.rand(4, views, 3) + 0.2
    q, z = prior.times(loc, scale), torch.randn(9, 4, views, 3)
    plain = prior.log_prob(z) + Normal(loc, scale).log_prob(z).sum((-2, -1))
    ratio = plain - q.log_prob(z)
    assert_close(ratio, ratio[:1].expand_as(ratio))
    assert_close(q.log_prob(z), dense(q).log_prob(z.mT).sum(-1))
    assert_close(q.entropy(), dense(q).entropy().sum(-1))
    assert_close(q.variance.mT, dense(q).variance)
