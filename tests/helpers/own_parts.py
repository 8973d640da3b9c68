"""Priors, likelihoods and encoders as users bring them, each with its plain numbers.

They are written as in the documentation of Pyro, PyTorch and torchvision, without a
look at what probssl expects of them.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints

import probssl as ps

EVENT, DIM, ITEMS = 6, 2, 24

# Priors: p(y), and p(z|y) as a function of y.

PLACES = torch.tensor([[-2.0, 0.0], [0.0, 2.0], [1.0, 1.0]])


def normal(y: Tensor) -> dist.TorchDistribution:
    return dist.Normal(y, 0.3).to_event(1)


class Network(nn.Module):
    """p(z|y) with a network of y for its mean."""

    def __init__(self, content: int = DIM) -> None:
        super().__init__()
        self.mean = nn.Sequential(nn.Linear(content, 8), nn.Tanh(), nn.Linear(8, DIM))
        self.log_std = nn.Parameter(torch.full((DIM,), -0.5))

    def forward(self, y: Tensor) -> dist.TorchDistribution:
        mean = self.mean(y)
        return dist.Normal(mean, self.log_std.exp().expand_as(mean)).to_event(1)


class Codebook(nn.Module):
    """p(z|y) around a vector for each class."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(3, DIM)

    def forward(self, y: Tensor) -> dist.TorchDistribution:
        return dist.Normal(self.table(y.long()), 0.3).to_event(1)


class LearnedContent(nn.Module):
    """p(y) with a learned mean and covariance."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(DIM))
        self.tril = nn.Parameter(torch.tensor([[1.0, 0.0], [0.7, 0.5]]))

    def forward(self) -> dist.TorchDistribution:
        return dist.MultivariateNormal(self.mean, scale_tril=self.tril.tril())


class RandomScale(nn.Module):
    """p(z|y) with a random scale, by the how-to page."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = ps.hyper.Positive(dist.LogNormal(-1.0, 0.3), "scale")

    def forward(self, y: Tensor, scale: Tensor | None = None) -> dist.TorchDistribution:
        scale = self.scale() if scale is None else scale
        return dist.Laplace(y, scale).to_event(1)


class Banana(dist.TorchDistribution):
    """A bent normal: z₂ is moved by the square of z₁ - y₁."""

    arg_constraints: dict[str, Any] = {}
    support = constraints.real_vector

    def __init__(self, y: Tensor) -> None:
        self.y = y
        super().__init__(y.shape[:-1], y.shape[-1:], validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "Banana":
        return Banana(self.y.expand(*batch_shape, DIM))

    def _bend(self, z: Tensor) -> Tensor:
        return 0.5 * (z[..., 0] - self.y[..., 0]).square()

    def sample(self, sample_shape: Any = ()) -> Tensor:
        z = self.y + 0.5 * torch.randn(*sample_shape, *self.y.shape, dtype=self.y.dtype)
        return torch.stack([z[..., 0], z[..., 1] + self._bend(z)], -1)

    def log_prob(self, z: Tensor) -> Tensor:
        first = dist.Normal(self.y[..., 0], 0.5).log_prob(z[..., 0])
        straight = z[..., 1] - self._bend(z)
        return first + dist.Normal(self.y[..., 1], 0.5).log_prob(straight)


class Coupling(nn.Module):
    """p(z|y) by a flow: an affine coupling layer after a shift by y."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 2))

    def _shift_scale(self, a: Tensor) -> tuple[Tensor, Tensor]:
        shift, log_scale = self.net(a).chunk(2, -1)
        return shift, log_scale.tanh()

    def forward(self, y: Tensor) -> dist.TorchDistribution:
        base = dist.Normal(torch.zeros_like(y), 0.4).to_event(1)
        shift = dist.transforms.AffineTransform(y, 1.0, event_dim=1)
        coupling = dist.transforms.AffineCoupling(1, self._shift_scale)
        return dist.TransformedDistribution(base, [coupling, shift])


def vector(distribution: Any, dim: int = DIM) -> dist.TorchDistribution:
    return distribution.expand([dim]).to_event(1)


def _scale_mixture() -> dist.TorchDistribution:
    weights = torch.tensor([0.8, 0.2]).expand(DIM, 2)
    scales = torch.tensor([0.3, 3.0]).expand(DIM, 2)
    parts = dist.Normal(torch.zeros(DIM, 2), scales)
    return dist.MixtureSameFamily(dist.Categorical(weights), parts).to_event(1)


def _clusters() -> dist.TorchDistribution:
    parts = dist.Normal(PLACES, 0.4).to_event(1)
    return dist.MixtureSameFamily(dist.Categorical(torch.ones(3)), parts)


def _gamma(y: Tensor) -> dist.TorchDistribution:
    return dist.Gamma(3.0, y.exp()).to_event(1)


def _two_bumps(y: Tensor) -> dist.TorchDistribution:
    """p(z|y) a mixture itself: to the left or to the right of y."""
    means = torch.stack([y - 1, y + 1], -1)
    weights = dist.Categorical(torch.ones_like(means))
    return dist.MixtureSameFamily(weights, dist.Normal(means, 0.3)).to_event(1)


def _corner(y: Tensor) -> dist.TorchDistribution:
    return dist.Normal(y @ PLACES.to(y), 0.3).to_event(1)


@dataclass
class OwnPrior:
    conditional: Callable[[], Any]
    y_prior: Callable[[], Any] = lambda: None
    refused: str = ""  # words of the error of a Gaussian guide, where it has none


PRIORS: dict[str, OwnPrior] = {
    "Laplace": OwnPrior(lambda: lambda y: dist.Laplace(y, 0.3).to_event(1)),
    "network": OwnPrior(Network),
    "gamma": OwnPrior(lambda: _gamma, refused="numbers of at least 0"),
    "bimodal": OwnPrior(lambda: _two_bumps),
    "banana": OwnPrior(lambda: Banana),
    "flow": OwnPrior(Coupling),
    "random scale": OwnPrior(RandomScale),
    "learned covariance": OwnPrior(lambda: normal, LearnedContent),
    "clusters": OwnPrior(lambda: normal, _clusters),
    "scale mixture": OwnPrior(lambda: normal, _scale_mixture),
    "Student-t content": OwnPrior(
        lambda: normal, lambda: vector(dist.StudentT(3.0, 0.0, 1.0))
    ),
    "Cauchy content": OwnPrior(lambda: normal, lambda: vector(dist.Cauchy(0.0, 0.5))),
    "box content": OwnPrior(lambda: normal, lambda: vector(dist.Uniform(-1.0, 1.0))),
    "positive content": OwnPrior(
        lambda: normal, lambda: vector(dist.LogNormal(0.0, 0.5))
    ),
    "one-hot content": OwnPrior(
        lambda: _corner, lambda: dist.OneHotCategorical(torch.tensor([0.5, 0.3, 0.2]))
    ),
    "category": OwnPrior(
        Codebook, lambda: dist.Categorical(torch.tensor([0.5, 0.3, 0.2]))
    ),
    "attributes": OwnPrior(lambda: _corner, lambda: vector(dist.Bernoulli(0.4), 3)),
    "simplex content": OwnPrior(lambda: _corner, lambda: dist.Dirichlet(torch.ones(3))),
    "wider content": OwnPrior(
        lambda: Network(4), lambda: vector(dist.Normal(0.0, 1.0), 4)
    ),
}


# Likelihoods: a module, the decoder's output for an item, and data.


class ZINB(ps.likelihoods.Likelihood):
    """Zero-inflated negative binomial, as in scvi-tools: two numbers for each gene."""

    measure = "counting, 0, 1, …"

    def __init__(self) -> None:
        super().__init__()
        self.log_r = nn.Parameter(torch.zeros(EVENT))

    def forward(self, output: Tensor) -> dist.TorchDistribution:
        mean, gate = output[..., 0, :], output[..., 1, :]
        return dist.ZeroInflatedNegativeBinomial(
            self.log_r.exp().expand_as(mean),
            logits=mean - self.log_r,
            gate_logits=gate,
            validate_args=False,
        )


class Own(ps.likelihoods.Likelihood):
    """p(x|z) by a function of the decoder's output."""

    def __init__(
        self, of: Callable[[Tensor], dist.TorchDistribution], measure: str = "Lebesgue"
    ) -> None:
        super().__init__()
        self.of, self.measure = of, measure

    def forward(self, output: Tensor) -> dist.TorchDistribution:
        return self.of(output)


def _full_covariance(output: Tensor) -> dist.TorchDistribution:
    noise = 0.3 * torch.eye(EVENT) + 0.1
    return dist.MultivariateNormal(output, scale_tril=noise.tril().to(output))


def _mixture(output: Tensor) -> dist.TorchDistribution:
    weights, means = output.unbind(-2)
    means = torch.stack([means, means + 1], -1)
    weights = torch.stack([weights, torch.zeros_like(weights)], -1)
    parts = dist.Normal(means, 0.3)
    return dist.MixtureSameFamily(dist.Categorical(logits=weights), parts)


def _heteroscedastic(output: Tensor) -> dist.TorchDistribution:
    mean, log_std = output.chunk(2, -1)
    return dist.Normal(mean, log_std.clamp(-3, 3).exp()).to_event(1)


def _counts(output: Tensor) -> dist.TorchDistribution:
    return dist.Poisson(nn.functional.softplus(output))


def _bag(output: Tensor) -> dist.TorchDistribution:
    return dist.Multinomial(20, logits=output)


def _codes(output: Tensor) -> dist.TorchDistribution:
    return dist.Categorical(logits=output)


def _beta(output: Tensor) -> dist.TorchDistribution:
    a, b = nn.functional.softplus(output).add(0.1).unbind(-2)
    return dist.Beta(a, b)


@dataclass
class OwnLikelihood:
    module: Callable[[], Any]
    output: tuple[int, ...]
    data: Callable[[tuple[int, ...]], Tensor]
    breaks: str = ""  # a law that it breaks as its user wrote it


def _simplex(shape: tuple[int, ...]) -> Tensor:
    return dist.Dirichlet(torch.ones(shape)).sample()


def _bags(shape: tuple[int, ...]) -> Tensor:
    return dist.Multinomial(20, logits=torch.zeros(shape)).sample()


def _integers(shape: tuple[int, ...]) -> Tensor:
    return torch.randint(4, shape).float()


def _poisson(shape: tuple[int, ...]) -> Tensor:
    return torch.poisson(torch.full(shape, 3.0))


LIKELIHOODS: dict[str, OwnLikelihood] = {
    "ZINB": OwnLikelihood(ZINB, (2, EVENT), _poisson),
    "Poisson": OwnLikelihood(  # the rate is 0 where the softplus underflows
        lambda: Own(_counts, "counting"), (EVENT,), _poisson, breaks="extremes"
    ),
    "bag of words": OwnLikelihood(lambda: Own(_bag, "counting"), (EVENT,), _bags),
    "codes": OwnLikelihood(lambda: Own(_codes, "counting"), (EVENT, 4), _integers),
    "full covariance": OwnLikelihood(
        lambda: Own(_full_covariance), (EVENT,), torch.randn
    ),
    "mixture": OwnLikelihood(lambda: Own(_mixture), (2, EVENT), torch.randn),
    "heteroscedastic": OwnLikelihood(
        lambda: Own(_heteroscedastic), (2 * EVENT,), torch.randn
    ),
    "angles": OwnLikelihood(
        lambda: Own(lambda output: dist.VonMises(output, 4.0)),
        (EVENT,),
        lambda shape: torch.rand(shape) * 2 - 1,
    ),
    "beta": OwnLikelihood(
        lambda: Own(_beta), (2, EVENT), lambda shape: 0.05 + 0.9 * torch.rand(shape)
    ),
    "shares": OwnLikelihood(
        lambda: Own(lambda output: dist.Dirichlet(output.exp())), (EVENT,), _simplex
    ),
    "Gumbel": OwnLikelihood(
        lambda: Own(lambda output: dist.Gumbel(output, 0.5)), (EVENT,), torch.randn
    ),
    "log-normal": OwnLikelihood(
        lambda: Own(lambda output: dist.LogNormal(output, 0.5)),
        (EVENT,),
        lambda shape: torch.randn(shape).exp(),
    ),
}


# Encoders: a module (n, *event) -> (n, DIM), and the shape of an event.


class BasicBlock(nn.Module):
    """The block of a ResNet-18, as torchvision writes it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(out)) + x)


class ResNet(nn.Module):
    """A small ResNet with torchvision's names of layers."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.layer1 = nn.Sequential(BasicBlock(8), BasicBlock(8))
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(8, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer1(torch.relu(self.bn1(self.conv1(x))))
        return self.fc(torch.flatten(self.avgpool(x), 1))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(1, 8, batch_first=True)
        self.head = nn.Linear(8, DIM)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.gru(x)[1][-1])


class Transformer(nn.Module):
    """Patches, a class token and positions; dropout as PyTorch sets it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(1, 8)
        self.token = nn.Parameter(torch.zeros(1, 1, 8))
        self.positions = nn.Parameter(torch.randn(1, EVENT + 1, 8))
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 1)
        self.head = nn.Linear(8, DIM)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        tokens = torch.cat([self.token.expand(len(x), -1, -1), self.embed(x)], 1)
        hidden = self.layers(tokens + self.positions, src_key_padding_mask=mask)
        return self.head(hidden[:, 0])


class Pretrained(nn.Module):
    """Frozen features with a head."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(EVENT, 16), nn.GELU()).requires_grad_(False)
        self.head = nn.Linear(16, DIM)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            features = self.body(x)
        return self.head(features)


class Output(dict[str, Tensor]):
    """What a model of the transformers library returns: a dict with attributes."""

    def __getattr__(self, name: str) -> Tensor:
        return self[name]


class HuggingFace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(EVENT, DIM)

    def forward(self, x: Tensor) -> Any:
        hidden = self.linear(x)
        return Output(last_hidden_state=hidden.unsqueeze(1), pooler_output=hidden)


class MeanVariance(nn.Module):
    """The encoder of many VAEs: a tuple of mean and log-variance."""

    def __init__(self) -> None:
        super().__init__()
        self.mean, self.log_variance = nn.Linear(EVENT, DIM), nn.Linear(EVENT, DIM)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.mean(x), self.log_variance(x)


def _batch_norm() -> nn.Module:
    layers = [nn.Linear(EVENT, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, DIM)]
    return nn.Sequential(*layers)


def _spectral() -> nn.Module:
    norm = nn.utils.parametrizations.spectral_norm
    return nn.Sequential(norm(nn.Linear(EVENT, 16)), nn.Tanh(), nn.Linear(16, DIM))


@dataclass
class OwnEncoder:
    module: Callable[[], nn.Module]
    event: tuple[int, ...] = (EVENT,)
    refused: str = ""  # words of the error, where it cannot be an encoder


ENCODERS: dict[str, OwnEncoder] = {
    "linear": OwnEncoder(lambda: nn.Linear(EVENT, DIM)),
    "batch norm": OwnEncoder(_batch_norm),
    "ResNet": OwnEncoder(lambda: ResNet(DIM), (1, 8, 8)),
    "GRU": OwnEncoder(Recurrent, (EVENT, 1)),
    "transformer": OwnEncoder(Transformer, (EVENT, 1)),
    "frozen body": OwnEncoder(Pretrained),
    "spectral norm": OwnEncoder(_spectral),
    "lazy": OwnEncoder(lambda: nn.LazyLinear(DIM), refused="initialised"),
    "data parallel": OwnEncoder(lambda: nn.DataParallel(nn.Linear(EVENT, DIM))),
    "model output": OwnEncoder(HuggingFace, refused="pooler_output"),
    "mean and variance": OwnEncoder(MeanVariance, refused="tuple"),
}


def names() -> Iterator[str]:
    yield from (f"prior: {n}" for n, part in PRIORS.items() if not part.refused)
    yield from (f"likelihood: {n}" for n in LIKELIHOODS)
    yield from (f"encoder: {n}" for n, part in ENCODERS.items() if not part.refused)


@dataclass
class Model:
    """SimVAE with one own part, and two views of its data."""

    objective: nn.Module
    views: Tensor  # (item, view, *event)


def model(name: str) -> Model:
    kind, part = name.split(": ")
    event: tuple[int, ...] = (EVENT,)
    prior: Any = ps.priors.Gaussian(DIM, scale=0.3)
    likelihood: Any = ps.likelihoods.Gaussian(0.5)
    output, data = event, torch.randn
    encoder: Any = None
    if kind == "prior":
        own = PRIORS[part]
        prior = ps.priors.Custom(own.conditional(), dim=DIM, y_prior=own.y_prior())
    elif kind == "likelihood":
        like = LIKELIHOODS[part]
        likelihood, output, data = like.module(), like.output, like.data
    else:
        event = output = ENCODERS[part].event
        encoder = ENCODERS[part].module()
    encoder = encoder or ps.nn.MLPEncoder(event, DIM, hidden=(8,))
    decoder = ps.nn.MLPDecoder(DIM, output, hidden=(8,))
    joint = ps.Joint(prior, likelihood, encoder, decoder)
    return Model(ps.limits.SimVAE(joint), data((ITEMS, 2, *event)))
