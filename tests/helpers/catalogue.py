"""Every objective, small, on items of six numbers: for the tests that all must pass."""

import math
from collections.abc import Callable

import pyro.distributions as dist
import torch
from torch import nn

import probssl as ps
from probssl import limits
from probssl.entropies.queue import Queue
from probssl.hyper import Positive
from probssl.limits._ema import Teacher

ITEMS, VIEWS, EVENT, DIM = 8, 2, 6, 3


def encoder() -> nn.Module:
    return ps.nn.MLPEncoder((EVENT,), DIM, hidden=(8,))


def projector() -> nn.Module:
    return ps.nn.Projector(DIM, width=5, out=4)


def decoder() -> nn.Module:
    return ps.nn.MLPDecoder(DIM, (EVENT,), hidden=(8,))


def joint(prior: ps.priors.Prior, **options: Callable) -> ps.Joint:
    return ps.Joint(
        prior, ps.likelihoods.Gaussian(0.5), encoder(), decoder(), **options
    )


def spherical_joint() -> ps.Joint:
    prior = ps.priors.Spherical(DIM, 5.0)
    return joint(prior, guide=ps.guides.PowerSpherical)


def pid() -> limits.PID:
    """With clusters for its items, and a classifier that tells them apart."""
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
        prior = ps.priors.Gaussian(DIM)
        crowd = self.queue.log_sums(prior, z).clamp(min=-10).mean()
        self.queue.push(target)
        near = (z - target).square().mean() / scale
        return ps.Terms(entropy=-self.weight * crowd, alignment=-near - scale.log())


OBJECTIVES: dict[str, Callable[[], nn.Module]] = {
    "SimVAE": lambda: limits.SimVAE(joint(ps.priors.Gaussian(DIM, 0.5))),
    "spherical SimVAE": lambda: limits.SimVAE(spherical_joint()),
    "VAE": lambda: limits.VAE(joint(ps.priors.Independent(DIM))),
    "IWAE": lambda: limits.VAE(
        joint(ps.priors.Independent(DIM)), bound=ps.bounds.IWAE(3)
    ),
    "SimCLR": lambda: limits.SimCLR(encoder(), projector()),
    "SimCLR, decoupled, with a queue": lambda: limits.SimCLR(
        encoder(), decoupled=True, queue=24
    ),
    "InfoNCE": lambda: limits.CLIP(encoder()),
    "MoCo": lambda: limits.MoCo(encoder(), projector(), queue=24),
    "instance discrimination": lambda: limits.InstanceDiscrimination(encoder(), ITEMS),
    "t-SimCLR": lambda: limits.TSimCLR(encoder(), projector()),
    "SNE": lambda: limits.SNE(encoder(), ps.affinities.Perplexity(3)),
    "t-SNE of noise": lambda: limits.TSNE(encoder(), ps.affinities.Noise(1.0)),
    "neighbour embedding with a queue": lambda: limits.NeighbourEmbedding(
        encoder(), joint=False, queue=24
    ),
    "t-MoCo": lambda: limits.MoCo(
        encoder(), queue=24, prior=ps.priors.TSNE(None, 1.0, 5.0)
    ),
    "VICReg": lambda: limits.VICReg(encoder(), projector()),
    "LogDet": lambda: limits.LogDet(encoder()),
    "LDM": lambda: limits.Embedding(
        encoder(),
        ps.priors.Gaussian(None, 0.5, y_scale=math.inf),
        ps.entropies.LogDeterminant(),
        all_views=True,
    ),
    "nearest neighbour": lambda: limits.Embedding(
        encoder(), ps.priors.Gaussian(DIM, 0.5), ps.entropies.NearestNeighbour()
    ),
    "Barlow Twins": lambda: limits.BarlowTwins(encoder(), projector()),
    "W-MSE": lambda: limits.WMSE(encoder()),
    "BYOL": lambda: limits.BYOL(encoder(), projector()),
    "SimSiam": lambda: limits.SimSiam(encoder(), projector()),
    "SwAV": lambda: limits.SwAV(encoder(), prototypes=5),
    "deep clustering": lambda: limits.DeepClustering(encoder(), 4, ITEMS),
    "DINO": lambda: limits.DINO(encoder(), prototypes=5),
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
