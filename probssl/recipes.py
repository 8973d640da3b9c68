"""Working defaults: an objective of each kind, and views, for any data set."""

import math
from collections.abc import Callable

from torch import Tensor, nn

from . import guides, likelihoods, limits, priors
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
from .views import Augment, Noise, digits, simclr

__all__ = ["METHODS", "encoder", "joint", "likelihood", "name", "objective"]
__all__ += ["views"]

DIM = 10
SCALE = 0.15  # standard deviation of z given y, where Var(z) is about 1
CONCENTRATION = 50.0  # of z around y on the sphere
TEMPERATURE = 1.0  # twice the usual: on a sphere of few dimensions points lie close
PIXELS_OF_AN_MLP = 1024  # beyond, and for colour, a convolutional net


def objective(method: str, data: Dataset, dim: int = DIM) -> nn.Module:
    """Build the objective of that name for the data.

    Raises:
        ValueError: If there is no such method.
    """
    return METHODS[name(method)](data, dim)


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


def joint(
    data: Dataset,
    prior: priors.Prior,
    guide: Callable[[nn.Module], nn.Module] = guides.DiagonalGaussian,
) -> Joint:
    """The distribution with this prior and guide, and a likelihood fit for the data."""
    dim = prior.known_dim()
    shape = tuple(data.train.images.shape[1:])
    decoder = ConvDecoder if _is_colour(shape) else MLPDecoder
    return Joint(
        prior,
        likelihood(data),
        encoder(data, dim),
        decoder(dim, shape),
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


def _is_colour(shape: tuple[int, ...]) -> bool:
    return len(shape) == 3 and (shape[0] > 1 or math.prod(shape) > PIXELS_OF_AN_MLP)


def _vae(data: Dataset, dim: int) -> nn.Module:
    return limits.VAE(joint(data, priors.Independent(dim)))


def _simvae(data: Dataset, dim: int) -> nn.Module:
    return limits.SimVAE(joint(data, priors.Gaussian(dim, SCALE)))


def _spherical(data: Dataset, dim: int) -> nn.Module:
    prior = priors.Spherical(dim, CONCENTRATION)
    return limits.SimVAE(joint(data, prior, guides.PowerSpherical))


def _simclr(data: Dataset, dim: int) -> nn.Module:
    return limits.SimCLR(encoder(data, dim), temperature=TEMPERATURE)


def _logdet(data: Dataset, dim: int) -> nn.Module:
    return limits.LogDet(encoder(data, dim))


def _vicreg(data: Dataset, dim: int) -> nn.Module:
    # Its axes are what it decorrelates: that belongs behind the representation.
    return limits.VICReg(encoder(data, dim), Projector(dim, width=256, out=64))


METHODS: dict[str, Callable[[Dataset, int], nn.Module]] = {
    "VAE": _vae,
    "SimVAE": _simvae,
    "SphericalSimVAE": _spherical,
    "SimCLR": _simclr,
    "VICReg": _vicreg,
    "LogDet": _logdet,
}
