"""Working defaults: an objective of each kind, and views, for any data set."""

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
TEMPERATURE = 1.0  # twice the usual: on a sphere of few dimensions points lie close
PROTOTYPES = 100
CLUSTERS, CLUSTERS_CONCENTRATION = 200, 2.0  # of K-means, on the sphere
NEIGHBOURS = 20  # that tell an outlier
ROUNDS = 10  # of deep clustering
COMPONENTS = 20  # of PID; with many it learns to tell items of one class apart
PIXELS_OF_AN_MLP = 1024  # beyond, and for colour, a convolutional net


def objective(method: str, data: Dataset, dim: int = DIM) -> nn.Module:
    """Build the objective of that name for the data.

    Raises:
        ValueError: If there is no such method.
    """
    return METHODS[name(method)](data, dim)


def fit(objective: Any, data: Dataset, *, epochs: int, **options: Any) -> History:
    """`train.fit` on the training items, in rounds if there are clusters to assign.

    PID's are assigned after three tenths of the epochs, and anew after each fifth.

    Arguments:
        options: For `train.fit`. Rounds keep no checkpoints.

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
            "rounds that keep no checkpoints; fit it anew"
        )
    for name in ("checkpoint", "checkpoint_every"):
        options.pop(name, None)
    layer = "backbone" if objective.projector is None else "projector"
    rounds = min(ROUNDS, epochs)

    return fit_rounds(
        objective,
        data.train,
        lambda: _assign(objective, data, layer),
        rounds=rounds,
        epochs=epochs // rounds,
        **options,
    )


def name(method: str) -> str:
    """Return the name of a method as it is written, whatever the case it came in.

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
    """An encoder for the size of the items: an MLP, or for colour a small convnet."""
    shape = tuple(data.train.images.shape[1:])
    return ConvEncoder(shape, dim) if _is_colour(shape) else MLPEncoder(shape, dim)


def decoder(data: Dataset, dim: int = DIM) -> nn.Module:
    """A decoder for the size of the items, the mirror of `encoder`."""
    shape = tuple(data.train.images.shape[1:])
    return ConvDecoder(dim, shape) if _is_colour(shape) else MLPDecoder(dim, shape)


def joint(
    data: Dataset,
    prior: priors.Prior,
    guide: Callable[[nn.Module], nn.Module] = guides.DiagonalGaussian,
) -> Joint:
    """The distribution with this prior and guide, and a likelihood fit for the data."""
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
    """Two views that keep the class: small turns, sizes and shifts; for colour
    SimCLR's; for items that are no images noise of a tenth of their spread."""
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
    """Four pixels, or what divides the image; single ones of an image of a few."""
    sides = shape[1:] or (1,)
    if min(sides) < 16:
        return 1
    return next(p for p in (4, 2, 1) if not any(side % p for side in sides))


def _vae(data: Dataset, dim: int) -> nn.Module:
    return limits.VAE(joint(data, priors.Independent(dim)))


def _beta_vae(data: Dataset, dim: int) -> nn.Module:
    return limits.VAE(joint(data, priors.Independent(dim)), beta=4.0)


def _iwae(data: Dataset, dim: int) -> nn.Module:
    return limits.VAE(joint(data, priors.Independent(dim)), bound=IWAE(5))


def _simvae(data: Dataset, dim: int) -> nn.Module:
    return limits.SimVAE(joint(data, priors.Gaussian(dim, SCALE)))


def _spherical(data: Dataset, dim: int) -> nn.Module:
    prior = priors.Spherical(dim, CONCENTRATION)
    return limits.SimVAE(joint(data, prior, guides.PowerSpherical))


def _simclr(data: Dataset, dim: int) -> nn.Module:
    return limits.SimCLR(encoder(data, dim), temperature=TEMPERATURE)


def _infonce(data: Dataset, dim: int) -> nn.Module:
    return limits.CLIP(encoder(data, dim), temperature=TEMPERATURE)


def _moco(data: Dataset, dim: int) -> nn.Module:
    return limits.MoCo(encoder(data, dim), temperature=TEMPERATURE, queue=1024)


def _instance(data: Dataset, dim: int) -> nn.Module:
    items = len(data.train.images)
    return limits.InstanceDiscrimination(
        encoder(data, dim), items, temperature=TEMPERATURE
    )


def _tsimclr(data: Dataset, dim: int) -> nn.Module:
    return limits.TSimCLR(encoder(data, dim), _projector(dim), temperature=1.0)


def _tsne(data: Dataset, dim: int) -> nn.Module:
    return limits.TSNE(encoder(data, dim))


def _logdet(data: Dataset, dim: int) -> nn.Module:
    return limits.LogDet(encoder(data, dim))


def _vicreg(data: Dataset, dim: int) -> nn.Module:
    # Its axes are what it decorrelates: that belongs behind the representation.
    return limits.VICReg(encoder(data, dim), _projector(dim))


def _barlow(data: Dataset, dim: int) -> nn.Module:
    return limits.BarlowTwins(encoder(data, dim), _projector(dim))


def _wmse(data: Dataset, dim: int) -> nn.Module:
    return limits.WMSE(encoder(data, dim))


def _byol(data: Dataset, dim: int) -> nn.Module:
    return limits.BYOL(encoder(data, dim), _projector(dim))


def _simsiam(data: Dataset, dim: int) -> nn.Module:
    return limits.SimSiam(encoder(data, dim), _projector(dim))


def _swav(data: Dataset, dim: int) -> nn.Module:
    return limits.SwAV(encoder(data, dim), components=PROTOTYPES)


def _deep_clustering(data: Dataset, dim: int) -> nn.Module:
    items = len(data.train.images)
    return limits.DeepClustering(
        encoder(data, dim),
        min(CLUSTERS, items),
        items,
        prior=priors.Spherical(None, CLUSTERS_CONCENTRATION),
    )


def _dino(data: Dataset, dim: int) -> nn.Module:
    return limits.DINO(encoder(data, dim), _projector(dim), components=PROTOTYPES)


def _denoising(data: Dataset, dim: int) -> nn.Module:
    return limits.DenoisingAutoencoder(
        encoder(data, dim), decoder(data, dim), likelihood(data)
    )


def _masked(data: Dataset, dim: int) -> nn.Module:
    return limits.MaskedAutoencoder(
        encoder(data, dim),
        decoder(data, dim),
        likelihood(data),
        share=0.5,
        patch=_patch(tuple(data.train.images.shape[1:])),
    )


def _dsa(data: Dataset, dim: int) -> nn.Module:
    neighbours = min(NEIGHBOURS, len(data.train.images) - 1)
    return limits.DSA(_simclr(data, dim), neighbours=neighbours)


def _pid(data: Dataset, dim: int) -> nn.Module:
    items = len(data.train.images)
    return limits.PID(_simclr(data, dim), min(COMPONENTS, items), items)


METHODS: dict[str, Callable[[Dataset, int], nn.Module]] = {
    "VAE": _vae,
    "BetaVAE": _beta_vae,
    "IWAE": _iwae,
    "SimVAE": _simvae,
    "SphericalSimVAE": _spherical,
    "SimCLR": _simclr,
    "InfoNCE": _infonce,
    "MoCo": _moco,
    "InstanceDiscrimination": _instance,
    "TSimCLR": _tsimclr,
    "TSNE": _tsne,
    "LogDet": _logdet,
    "VICReg": _vicreg,
    "BarlowTwins": _barlow,
    "WMSE": _wmse,
    "BYOL": _byol,
    "SimSiam": _simsiam,
    "SwAV": _swav,
    "DeepClustering": _deep_clustering,
    "DINO": _dino,
    "DenoisingAutoencoder": _denoising,
    "MaskedAutoencoder": _masked,
    "DSA": _dsa,
    "PID": _pid,
}
