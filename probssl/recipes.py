"""Working defaults: each method and a data augmentation for any data set."""

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from . import guides, likelihoods, limits, priors
from .bounds import IWAE
from .data import Dataset
from .hyper import learned
from .joint import Joint
from .nn import (
    ConvDecoder,
    ConvEncoder,
    MLPDecoder,
    MLPEncoder,
    Projector,
)
from .posterior import embed
from .train import History, fit_phases, fit_rounds
from .train import fit as fit_once
from .views import Augment, Noise, digits, simclr

__all__ = ["METHODS", "decoder", "encoder", "fit", "joint", "likelihood", "name"]
__all__ += ["objective", "views"]

DIM = 10
SCALE = 0.15  # standard deviation of z given y, where Var(z) is about 1
CONCENTRATION = 50.0  # of z around y on the sphere
TEMPERATURE = 1.0  # twice the usual: points lie close on a sphere of few dimensions
PROTOTYPES = 100  # of SwAV and DINO
CLUSTERS, CLUSTERS_CONCENTRATION = 200, 2.0  # of deep clustering, on the sphere
NEIGHBOURS = 20  # of DSA
CLUSTERING_ROUNDS = 10  # of deep clustering
PID_COMPONENTS = 20  # of PID; with many it separates items of one class
PIXELS_OF_AN_MLP = 1024  # above, and for colour, a convolutional network


def objective(method: str, data: Dataset, dim: int = DIM) -> nn.Module:
    """Build a method for a data set.

    Arguments:
        method: A name in `METHODS`, in upper or lower case.
        dim: The dimension of z.

    Raises:
        ValueError: If there is no such method.
    """
    return METHODS[name(method)](data, dim)


def fit(objective: Any, data: Dataset, *, epochs: int, **options: Any) -> History:
    """Fit on the training set, in rounds where clusters are assigned in between.

    PID assigns them after three tenths of the epochs, and again after each fifth.

    Arguments:
        options: Keyword arguments of `train.fit`. Rounds write no checkpoints.

    Raises:
        ValueError: If rounds are to be resumed.
    """
    if not hasattr(objective, "assign"):
        return fit_once(objective, data.train, epochs=epochs, **options)
    if isinstance(objective, limits.PID):
        return fit_phases(
            objective,
            data.train,
            lambda: _assign(objective, data, objective.layer),
            first=3 * epochs // 10,
            epochs=epochs,
            refresh=max(1, epochs // 5),
            **options,
        )
    if options.pop("resume", False):
        raise ValueError(
            f"expected no resume for {type(objective).__name__}, which is fitted in "
            "rounds that write no checkpoints; fit it again from the start"
        )
    for name in ("checkpoint", "checkpoint_every"):
        options.pop(name, None)
    layer = "backbone" if objective.projector is None else "projector"
    rounds = min(CLUSTERING_ROUNDS, epochs)

    return fit_rounds(
        objective,
        data.train,
        lambda: _assign(objective, data, layer),
        rounds=rounds,
        epochs=epochs // rounds,
        **options,
    )


def name(method: str) -> str:
    """Return the name of a method with its capitals, given in any case.

    Raises:
        ValueError: If there is no such method.
    """
    known = {name.lower(): name for name in METHODS}
    if method.lower() not in known:
        raise ValueError(
            f"expected one of the methods {', '.join(METHODS)}, got {method!r}; give "
            "several separated by commas"
        )
    return known[method.lower()]


def encoder(data: Dataset, dim: int = DIM) -> nn.Module:
    """An encoder for the shape of the items: an MLP, or for colour a small convnet."""
    shape = tuple(data.train.images.shape[1:])
    return ConvEncoder(shape, dim) if _is_colour(shape) else MLPEncoder(shape, dim)


def decoder(data: Dataset, dim: int = DIM) -> nn.Module:
    """A decoder for the shape of the items, the mirror of `encoder`."""
    shape = tuple(data.train.images.shape[1:])
    return ConvDecoder(dim, shape) if _is_colour(shape) else MLPDecoder(dim, shape)


def joint(
    data: Dataset,
    prior: priors.Prior,
    guide: Callable[[nn.Module], nn.Module] = guides.DiagonalGaussian,
) -> Joint:
    """A `Joint` with this prior and guide, and the likelihood for the data."""
    dim = prior.known_dim()
    return Joint(
        prior,
        likelihood(data),
        encoder(data, dim),
        decoder(data, dim),
        guide=guide,
    )


def likelihood(data: Dataset) -> likelihoods.Likelihood:
    """Bernoulli for binary pixels, Binomial for few grey levels, Gaussian otherwise."""
    if data.levels == 1:
        return likelihoods.Bernoulli()
    if data.levels is not None and data.levels < 255:
        return likelihoods.Binomial(data.levels)
    return likelihoods.Gaussian(learned(0.2), floor=0.01)


def views(data: Dataset) -> Callable[[Tensor], Tensor]:
    """A data augmentation with two views that keeps the class.

    Small rotations, scalings and shifts; for colour images SimCLR's augmentation; for
    other items Gaussian noise of a tenth of their standard deviation.
    """
    shape = tuple(data.train.images.shape[1:])
    if len(shape) != 3:
        spread = float(data.train.images.float().std())
        return Augment(Noise(0.1 * spread), levels=data.levels)
    if shape == (1, 8, 8):
        return digits()
    return simclr(levels=data.levels) if shape[0] == 3 else Augment(levels=data.levels)


def _assign(objective: Any, data: Dataset, layer: str) -> None:
    objective.assign(embed(objective, data.train, layer=layer))


def _is_colour(shape: tuple[int, ...]) -> bool:
    return len(shape) == 3 and (shape[0] > 1 or math.prod(shape) > PIXELS_OF_AN_MLP)


def _projector(dim: int) -> Projector:
    return Projector(dim, width=256, out=64)


def _patch(shape: tuple[int, ...]) -> int:
    """The side of masked patches: 4 pixels, or what divides the image; 1 if small."""
    sides = shape[1:] or (1,)
    if min(sides) < 16:
        return 1
    return next(p for p in (4, 2, 1) if not any(side % p for side in sides))


# One line for each method: what builds it for a data set and a dimension of z.
METHODS: dict[str, Callable[[Dataset, int], nn.Module]] = {
    "VAE": lambda data, dim: limits.VAE(joint(data, priors.Independent(dim))),
    "BetaVAE": lambda data, dim: limits.VAE(
        joint(data, priors.Independent(dim)), beta=4.0
    ),
    "IWAE": lambda data, dim: limits.VAE(
        joint(data, priors.Independent(dim)), bound=IWAE(5)
    ),
    "SimVAE": lambda data, dim: limits.SimVAE(joint(data, priors.Gaussian(dim, SCALE))),
    "SphericalSimVAE": lambda data, dim: limits.SimVAE(
        joint(data, priors.Spherical(dim, CONCENTRATION), guides.PowerSpherical)
    ),
    "SimCLR": lambda data, dim: limits.SimCLR(
        encoder(data, dim), temperature=TEMPERATURE
    ),
    "InfoNCE": lambda data, dim: limits.CLIP(
        encoder(data, dim), temperature=TEMPERATURE
    ),
    "MoCo": lambda data, dim: limits.MoCo(
        encoder(data, dim), temperature=TEMPERATURE, queue=1024
    ),
    "InstanceDiscrimination": lambda data, dim: limits.InstanceDiscrimination(
        encoder(data, dim), len(data.train), temperature=TEMPERATURE
    ),
    "TSimCLR": lambda data, dim: limits.TSimCLR(
        encoder(data, dim), _projector(dim), temperature=1.0
    ),
    "TSNE": lambda data, dim: limits.TSNE(encoder(data, dim)),
    "LogDet": lambda data, dim: limits.LogDet(encoder(data, dim)),
    # These decorrelate single axes: of a projection, not of the representation.
    "VICReg": lambda data, dim: limits.VICReg(encoder(data, dim), _projector(dim)),
    "BarlowTwins": lambda data, dim: limits.BarlowTwins(
        encoder(data, dim), _projector(dim)
    ),
    "WMSE": lambda data, dim: limits.WMSE(encoder(data, dim)),
    "BYOL": lambda data, dim: limits.BYOL(encoder(data, dim), _projector(dim)),
    "SimSiam": lambda data, dim: limits.SimSiam(encoder(data, dim), _projector(dim)),
    "SwAV": lambda data, dim: limits.SwAV(encoder(data, dim), components=PROTOTYPES),
    "DeepClustering": lambda data, dim: limits.DeepClustering(
        encoder(data, dim),
        min(CLUSTERS, len(data.train)),
        len(data.train),
        prior=priors.Spherical(None, CLUSTERS_CONCENTRATION),
    ),
    "DINO": lambda data, dim: limits.DINO(
        encoder(data, dim), _projector(dim), components=PROTOTYPES
    ),
    "DenoisingAutoencoder": lambda data, dim: limits.DenoisingAutoencoder(
        encoder(data, dim), decoder(data, dim), likelihood(data)
    ),
    "MaskedAutoencoder": lambda data, dim: limits.MaskedAutoencoder(
        encoder(data, dim),
        decoder(data, dim),
        likelihood(data),
        share=0.5,
        patch=_patch(tuple(data.train.images.shape[1:])),
    ),
    "DSA": lambda data, dim: limits.DSA(
        METHODS["SimCLR"](data, dim), neighbours=min(NEIGHBOURS, len(data.train) - 1)
    ),
    "PID": lambda data, dim: limits.PID(
        METHODS["SimCLR"](data, dim),
        min(PID_COMPONENTS, len(data.train)),
        len(data.train),
    ),
}
