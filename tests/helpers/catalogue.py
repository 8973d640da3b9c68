"""Every prior, likelihood, guide and objective, small, for tests of all of them.

Objectives take items of six numbers and guides items of three.
"""

import math
from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch
from torch import nn

import probssl as ps
from probssl import limits
from probssl.entropies import Queue
from probssl.hyper import Positive
from probssl.limits._ema import Teacher
from probssl.priors import (
    TSNE,
    Components,
    ContentStyle,
    Contraction,
    Custom,
    Gaussian,
    Grouped,
    Independent,
    Mixture,
    Predictive,
    Prior,
    Sequence,
    Spherical,
    StudentT,
    TwoTier,
    VampComponents,
)

ITEMS, VIEWS, EVENT, DIM = 8, 2, 6, 3


def encoder(dim: int = DIM, event: int = EVENT) -> nn.Module:
    return ps.nn.MLPEncoder((event,), dim, hidden=(8,))


def projector() -> nn.Module:
    return ps.nn.Projector(DIM, width=5, out=4)


def decoder(dim: int = DIM, event: int = EVENT) -> nn.Module:
    return ps.nn.MLPDecoder(dim, (event,), hidden=(8,))


def predictor(dim: int = DIM) -> nn.Module:
    return ps.nn.MLPEncoder((dim,), dim, hidden=(8,))


def joint(
    prior: Prior,
    likelihood: ps.likelihoods.Likelihood | None = None,
    event: int = EVENT,
    **options: Any,
) -> ps.Joint:
    """One with small networks; the likelihood is Gaussian(0.5) unless given."""
    dim, likelihood = prior.known_dim(), likelihood or ps.likelihoods.Gaussian(0.5)
    networks = encoder(dim, event), decoder(dim, event)
    return ps.Joint(prior, likelihood, *networks, **options)


def spherical_joint() -> ps.Joint:
    prior = Spherical(DIM, 5.0)
    return joint(prior, guide=ps.guides.PowerSpherical)


def pid() -> limits.PID:
    """PID with clusters assigned to its items, and a classifier of the clusters."""
    objective = limits.PID(limits.SimCLR(encoder(), projector()), 4, ITEMS)
    objective.assign(torch.randn(ITEMS, objective.classifier.in_features))
    return objective


class Everything(nn.Module):
    """Batch norm, dropout, a teacher, a queue, noise, a number that is scheduled."""

    def __init__(self) -> None:
        super().__init__()
        body = [nn.Linear(EVENT, 8), nn.BatchNorm1d(8), nn.Dropout(0.3)]
        self.network = nn.Sequential(*body, nn.Tanh(), nn.Linear(8, DIM))
        self.scale = Positive(dist.LogNormal(0.0, 0.5))
        self.teacher, self.queue = Teacher(self.network, 0.9), Queue(12, DIM)
        self.register_buffer("weight", torch.tensor(0.5))

    def forward(self, batch: ps.Batch) -> ps.Terms:
        self.teacher.follow(self.network)
        views = batch.stacked.flatten(0, 1)
        z, target = self.network(views), self.teacher(views)
        z = z + 0.1 * torch.randn_like(z)
        scale = self.scale.posterior().rsample()
        prior = Gaussian(DIM)
        crowd = self.queue.log_sums(prior, z).clamp(min=-10).mean()
        self.queue.push(target)
        near = (z - target).square().mean() / scale
        return ps.Terms(entropy=-self.weight * crowd, alignment=-near - scale.log())


def factors(dim: int) -> nn.Module:
    """q(z|x) of an encoder, for components at pseudo-inputs, with unequal scales."""
    made = ps.guides.DiagonalGaussian(ps.nn.MLPEncoder((3,), dim, hidden=(8,))).factors
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.4)
    return made


def uneven(
    family: type[Mixture] | type[TwoTier], kind: str, dim: int = 2, **scales: Any
) -> Mixture | TwoTier:
    """A mixture prior whose weights and scales all differ, the same at each call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        if kind == "vamp":
            inputs = torch.randn(4, 3)
            learn = family is Mixture
            components: nn.Module = VampComponents.at(factors(dim), inputs, learn)
        else:
            components = Components(dim, 4, own_scales=True)
            nn.init.normal_(components.log_scale, std=0.4)
        prior = family(dim, components, **scales)
        nn.init.normal_(prior.logits)
    return prior


RANDOM, FRACTION = dist.LogNormal(-1.0, 0.5), dist.Beta(2.0, 5.0)


def _laplace(y: torch.Tensor) -> dist.TorchDistribution:
    return dist.Laplace(y, 0.4).to_event(1)


def _positive(y: torch.Tensor) -> dist.TorchDistribution:
    return dist.LogNormal(y, 0.4).to_event(1)


def flow(y: torch.Tensor) -> dist.TorchDistribution:
    """A logistic distribution around y, as an inverse sigmoid of uniform noise."""
    base = dist.Uniform(torch.zeros_like(y), 1.0)
    affine = dist.transforms.AffineTransform(y, 0.2)
    to_real = [dist.transforms.SigmoidTransform().inv, affine]
    return dist.TransformedDistribution(base, to_real).to_event(1)


PRIORS: dict[str, Callable[[], Prior]] = {
    "narrow": lambda: Gaussian(3, ps.learned(0.15)),
    "flat": lambda: Gaussian(2, 0.3, math.inf),
    "random scale": lambda: Gaussian(2, RANDOM),
    "a scale for each dimension": lambda: Gaussian(2, [0.2, 0.9]),
    "groups": lambda: Grouped(Gaussian(2, 0.5), "writer", 3, ps.learned(0.7)),
    "groups of random scales": lambda: Grouped(
        Gaussian(1, RANDOM), "writer", 3, RANDOM
    ),
    "independent": lambda: Independent(2),
    "content and style": lambda: ContentStyle(1, 2, ps.learned(0.3)),
    "random content and style": lambda: ContentStyle(2, 1, FRACTION),
    "circle": lambda: Spherical(2, ps.learned(20.0)),
    "random concentration": lambda: Spherical(3, dist.LogNormal(2.0, 0.5)),
    "student": lambda: StudentT(2, 0.5, ps.learned(4.0)),
    "heavy student": lambda: StudentT(1, ps.learned(0.5), 2.0),
    "flat student": lambda: StudentT(2, 0.5, 3.0, math.inf),
    "t-SNE": lambda: TSNE(1, 0.7, 1.0),
    "t-SNE in a plane": lambda: TSNE(2, 0.7, 3.0),
    "mixture of random scale": lambda: Mixture(2, 3, RANDOM),
    "two tiers": lambda: TwoTier(2, 3, 0.3, ps.learned(0.5)),
    "own scales": lambda: TwoTier(2, Components(2, 3, own_scales=True), 0.3, 0.5),
    "sequence": lambda: Sequence(2, ps.learned(0.8)),
    "random sequence": lambda: Sequence(2, FRACTION),
    "random walk": lambda: Sequence(1, 1.0, RANDOM, 1.0, drift=0.2),
    "sequence of a matrix": lambda: Sequence(2, [[0.5, 0.4], [-0.4, 0.6]], [0.3, 0.7]),
    "contraction": lambda: Sequence(2, Contraction(2, 0.7)),
    "predictive": lambda: Predictive(2, predictor(2), 0.5),
    "proper predictive": lambda: Predictive(2, predictor(2), RANDOM, 1.0),
    "Laplace conditional": lambda: Custom(_laplace, 1),
    "positive conditional": lambda: Custom(_positive, 1),
}

# Each for x of four numbers.
LIKELIHOODS: dict[str, Callable[[], ps.likelihoods.Likelihood]] = {
    "Bernoulli": ps.likelihoods.Bernoulli,
    "grey Bernoulli": lambda: ps.likelihoods.Bernoulli(grey=True),
    "Binomial(16)": lambda: ps.likelihoods.Binomial(16),
    "Binomial(255)": lambda: ps.likelihoods.Binomial(255),
    "Categorical": lambda: ps.likelihoods.Categorical(4),
    "soft Categorical": lambda: ps.likelihoods.Categorical(4, soft=True),
    "Gaussian": lambda: ps.likelihoods.Gaussian(0.3),
    "learned Gaussian": lambda: ps.likelihoods.Gaussian(ps.learned(0.3)),
    "Gaussian of four scales": lambda: ps.likelihoods.Gaussian([0.1, 0.3, 1.0, 3.0]),
    "heteroscedastic": ps.likelihoods.HeteroscedasticGaussian,
    "Laplace": lambda: ps.likelihoods.Laplace(ps.learned(0.3)),
    "predicted Laplace": lambda: ps.likelihoods.Laplace(ps.likelihoods.Predicted()),
    "StudentT": lambda: ps.likelihoods.StudentT(0.3, ps.learned(3.0)),
    "Poisson": ps.likelihoods.Poisson,
    "inflated Poisson": lambda: ps.likelihoods.Poisson(zero_inflated=True),
    "NegativeBinomial": lambda: ps.likelihoods.NegativeBinomial(0.5),
    "inflated NegativeBinomial": lambda: ps.likelihoods.NegativeBinomial(
        ps.likelihoods.Predicted(0.1, 2.0), zero_inflated=True
    ),
    "DiscretisedLogistic": lambda: ps.likelihoods.DiscretisedLogistic(16),
    "predicted DiscretisedLogistic": lambda: ps.likelihoods.DiscretisedLogistic(
        255, ps.likelihoods.Predicted()
    ),
    "Ordinal": lambda: ps.likelihoods.Ordinal(5),
    "Ordinal of four features": lambda: ps.likelihoods.Ordinal(3, features=4),
}

# A guide, made of an encoder, and the prior that it is tried beside.
GUIDES: dict[str, Callable[[], tuple[Callable[[nn.Module], nn.Module], Prior]]] = {
    "diagonal, student": lambda: (ps.guides.DiagonalGaussian, StudentT(2, 0.5, 4.0)),
    "diagonal, mixture": lambda: (ps.guides.DiagonalGaussian, Mixture(2, 3, 0.5)),
    "diagonal, custom": lambda: (ps.guides.DiagonalGaussian, Custom(_laplace, 1)),
    "full": lambda: (ps.guides.FullGaussian, Gaussian(2, 0.5)),
    "coupled": lambda: (ps.guides.Coupled, Gaussian(2, 0.5)),
    "coupled, flat": lambda: (ps.guides.Coupled, Gaussian(2, 0.5, math.inf)),
    "coupled, style": lambda: (ps.guides.Coupled, ContentStyle(1, 1, 0.5)),
    "coupled, sequence": lambda: (ps.guides.Coupled, Sequence(2, 0.7)),
    "coupled, contraction": lambda: (ps.guides.Coupled, Sequence(2, Contraction(2))),
    "coupled, mixture": lambda: (ps.guides.Coupled, Mixture(2, 3, 0.5)),
    "likelihoods": lambda: (ps.guides.CoupledLikelihoods, Gaussian(2, 0.5)),
    "point": lambda: (ps.guides.Point, Gaussian(2, 0.5)),
    "power spherical": lambda: (ps.guides.PowerSpherical, Spherical(3, 5.0)),
}

OBJECTIVES: dict[str, Callable[[], nn.Module]] = {
    "SimVAE": lambda: limits.SimVAE(joint(Gaussian(DIM, 0.5))),
    "SimVAE of content and style": lambda: limits.SimVAE(
        joint(ContentStyle(DIM - 1, 1, ps.learned(0.3)))
    ),
    "SimVAE of a sequence": lambda: limits.SimVAE(
        joint(Sequence(DIM, ps.learned(0.8)), guide=ps.guides.Coupled)
    ),
    "spherical SimVAE": lambda: limits.SimVAE(spherical_joint()),
    "VAE": lambda: limits.VAE(joint(Independent(DIM))),
    "IWAE": lambda: limits.VAE(joint(Independent(DIM)), bound=ps.bounds.IWAE(3)),
    "CR-VAE": lambda: limits.CRVAE(joint(Independent(DIM)), weight=0.1),
    "SimCLR": lambda: limits.SimCLR(encoder(), projector()),
    "SimCLR of the content": lambda: limits.Embedding(
        encoder(),
        ContentStyle(DIM - 1, 1, 0.4),
        ps.entropies.KernelDensity(),
        plug_in=True,
    ),
    "SimCLR, decoupled, with a queue": lambda: limits.SimCLR(
        encoder(), decoupled=True, queue=24
    ),
    "DCLW": lambda: limits.DCLW(encoder(), projector(), 0.5),
    "InfoNCE": lambda: limits.CLIP(encoder()),
    "MoCo": lambda: limits.MoCo(encoder(), projector(), queue=24),
    "NNCLR": lambda: limits.NNCLR(encoder(), projector(), queue=24),
    "SigLIP": lambda: limits.SigLIP(encoder(), projector()),
    "instance discrimination": lambda: limits.InstanceDiscrimination(encoder(), ITEMS),
    "t-SimCLR": lambda: limits.TSimCLR(encoder(), projector()),
    "SNE": lambda: limits.SNE(encoder(), ps.affinities.Perplexity(3)),
    "symmetric SNE": lambda: limits.SymmetricSNE(
        encoder(), ps.affinities.Perplexity(3, symmetric=True)
    ),
    "t-SNE of noise": lambda: limits.TSNE(encoder(), ps.affinities.Noise(1.0)),
    "neighbour embedding with a queue": lambda: limits.NeighbourEmbedding(
        encoder(), joint=False, queue=24
    ),
    "t-MoCo": lambda: limits.MoCo(encoder(), queue=24, prior=TSNE(None, 1.0, 5.0)),
    "VICReg": lambda: limits.VICReg(encoder(), projector()),
    "LeJEPA": lambda: limits.LeJEPA(encoder(), projector(), slices=8),
    "VISReg": lambda: limits.VISReg(encoder(), slices=8),
    "LogDet": lambda: limits.LogDet(encoder()),
    "LDM": lambda: limits.Embedding(
        encoder(),
        Gaussian(None, 0.5, y_scale=math.inf),
        ps.entropies.LogDeterminant(),
        all_views=True,
    ),
    "nearest neighbour": lambda: limits.Embedding(
        encoder(), Gaussian(DIM, 0.5), ps.entropies.NearestNeighbour()
    ),
    "predictive": lambda: limits.Embedding(
        encoder(), Predictive(DIM, predictor(), 0.5), ps.entropies.LogDeterminant()
    ),
    "predictive coding": lambda: limits.Embedding(
        encoder(),
        Sequence(DIM, Contraction(DIM)),
        ps.entropies.KernelDensity(),
        plug_in=True,
    ),
    "alignment and uniformity": lambda: limits.AlignmentUniformity(encoder()),
    "FroSSL": lambda: limits.FroSSL(encoder(), projector()),
    "MMCR": lambda: limits.MMCR(encoder(), projector()),
    "TiCo": lambda: limits.TiCo(encoder(), projector()),
    "Barlow Twins": lambda: limits.BarlowTwins(encoder(), projector()),
    "W-MSE": lambda: limits.WMSE(encoder()),
    "BYOL": lambda: limits.BYOL(encoder(), projector()),
    "SimSiam": lambda: limits.SimSiam(encoder(), projector()),
    "SwAV": lambda: limits.SwAV(encoder(), components=5),
    "deep clustering": lambda: limits.DeepClustering(encoder(), 4, ITEMS),
    "DINO": lambda: limits.DINO(encoder(), components=5),
    "categorical matching": lambda: limits.CategoricalMatching(encoder()),
    "RPM": lambda: limits.RPM(encoder(), projector()),
    "DSA": lambda: limits.DSA(
        limits.SimCLR(encoder(), projector()), neighbours=ITEMS // 2
    ),
    "PID": pid,
    "masked autoencoder": lambda: limits.MaskedAutoencoder(
        encoder(), decoder(), ps.likelihoods.Gaussian(0.5)
    ),
    "denoising autoencoder": lambda: limits.DenoisingAutoencoder(
        encoder(), decoder(), ps.likelihoods.Gaussian(0.5)
    ),
}


def batch(seed: int = 0, items: int = ITEMS, views: int = VIEWS) -> ps.Batch:
    """Views of items, the items themselves, and their row numbers."""
    generator = torch.Generator().manual_seed(seed)
    dtype = torch.get_default_dtype()
    clean = torch.randn(items, EVENT, generator=generator, dtype=dtype)
    noise = torch.randn(items, views, EVENT, generator=generator, dtype=dtype)
    return ps.Batch(clean[:, None] + 0.3 * noise, clean, torch.arange(items))


def noisy(x: torch.Tensor) -> torch.Tensor:
    """Two views with noise of their own."""
    noise = torch.randn(len(x), 2, *x.shape[1:], dtype=x.dtype, device=x.device)
    return x[:, None] + 0.1 * noise
