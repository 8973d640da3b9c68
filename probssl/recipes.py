"""Working defaults: each method and a data augmentation for any data set."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from . import guides, likelihoods, limits, priors
from .arguments import typed
from .arrays import span
from .bounds import IWAE
from .data import Dataset
from .data.memory import as_float
from .hyper import learned
from .joint import Joint
from .nn import ConvDecoder, ConvEncoder, MLPDecoder, MLPEncoder, Projector
from .posterior import embed
from .train import History, fit_phases, fit_rounds
from .train import fit as fit_once
from .views import Augment, Noise, digits, simclr

__all__ = ["METHODS", "decoder", "encoder", "fit", "joint", "likelihood", "name"]
__all__ += ["objective", "views"]

Build = Callable[[Dataset, int], nn.Module]  # of a method, for a dimension of z

DIM = 10
SCALE = 0.15  # standard deviation of z given y, where Var(z) is about 1
CONCENTRATION = 50.0  # of z around y on the sphere
TEMPERATURE = 1.0  # twice the usual: points lie close on a sphere of few dimensions
PROTOTYPES = 100  # of SwAV and DINO
CLUSTERS, CLUSTERS_CONCENTRATION = 200, 2.0  # of deep clustering, on the sphere
ITEMS_PER_CLUSTER = 5  # of deep clustering, at least
CLASSES = 20  # of categorical matching and RPM
SLICES = 256  # of LeJEPA and VISReg
NEIGHBOURS = 20  # of DSA
CLUSTERING_ROUNDS = 10  # of deep clustering
PID_COMPONENTS = 20  # of PID; with many it separates items of one class
PIXELS_OF_AN_MLP = 1024  # above, and for colour, a convolutional network


@typed
def objective(method: str, data: Dataset, dim: int = DIM) -> nn.Module:
    """Build a method for a data set.

    Arguments:
        method: A name in `METHODS`, in upper or lower case.
        dim: The dimension of z.
    """
    return METHODS[name(method)](data, dim)


@typed
def fit(objective: Any, data: Dataset, *, epochs: int, **options: Any) -> History:
    """Fit on the training set, in rounds where clusters are assigned in between.

    PID assigns them after three tenths of the epochs, and again after each fifth.
    Options are those of `train.fit`; rounds write no checkpoints.
    """
    if not hasattr(objective, "assign"):
        return fit_once(objective, data.train, epochs=epochs, **options)
    layer = "backbone" if objective.projector is None else "projector"
    layer = getattr(objective, "layer", layer)

    def assign() -> None:
        objective.assign(embed(objective, data.train, layer=layer))

    if isinstance(objective, limits.PID):
        return fit_phases(
            objective,
            data.train,
            assign,
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
    options = {k: v for k, v in options.items() if not k.startswith("checkpoint")}
    rounds = min(CLUSTERING_ROUNDS, epochs)
    return fit_rounds(
        objective,
        data.train,
        assign,
        rounds=rounds,
        epochs=[len(range(r, epochs, rounds)) for r in range(rounds)],
        **options,
    )


@typed
def name(method: str) -> str:
    """Return the name of a method with its capitals, given in any case."""
    known = {name.lower(): name for name in METHODS}
    if method.lower() not in known:
        raise ValueError(
            f"expected one of the methods {', '.join(METHODS)}, got {method!r}; give "
            "several separated by commas"
        )
    return known[method.lower()]


@typed
def encoder(data: Dataset, dim: int = DIM) -> nn.Module:
    """An encoder for the shape of the items: an MLP, or for colour a small convnet."""
    shape = tuple(data.train.images.shape[1:])
    return ConvEncoder(shape, dim) if _is_colour(shape) else MLPEncoder(shape, dim)


@typed
def decoder(data: Dataset, dim: int = DIM) -> nn.Module:
    """A decoder for the shape of the items, the mirror of `encoder`."""
    shape = tuple(data.train.images.shape[1:])
    return ConvDecoder(dim, shape) if _is_colour(shape) else MLPDecoder(dim, shape)


@typed
def joint(
    data: Dataset,
    prior: priors.Prior,
    guide: Callable[[nn.Module], nn.Module] = guides.DiagonalGaussian,
) -> Joint:
    """A `Joint` with this prior and guide, and the likelihood for the data."""
    networks = encoder(data, prior.known_dim()), decoder(data, prior.known_dim())
    return Joint(prior, likelihood(data), *networks, guide=guide)


@typed
def likelihood(data: Dataset) -> likelihoods.Likelihood:
    """Bernoulli for binary pixels, Binomial for few grey levels, Gaussian otherwise.

    Negative binomial for counts: rows of whole numbers from 0, some above 1.
    """
    if data.levels == 1:
        return likelihoods.Bernoulli()
    if data.levels is not None and data.levels < 255:
        return likelihoods.Binomial(data.levels)
    if _are_counts(data):
        return likelihoods.NegativeBinomial()
    return likelihoods.Gaussian(learned(0.2), floor=0.01)


@typed
def views(data: Dataset) -> Callable[[Tensor], Tensor]:
    """A data augmentation with two views that keeps the class.

    Small rotations, scalings and shifts; for colour images SimCLR's augmentation; for
    other items Gaussian noise of a tenth of their standard deviation.

    Raises:
        ValueError: For counts, which noise makes no counts.
    """
    shape = tuple(data.train.images.shape[1:])
    if _are_counts(data):
        raise ValueError(
            f"expected views of the counts of {data.name}, got none, and Gaussian "
            "noise leaves no counts; give views that keep counts, such as two random "
            "halves: first = torch.binomial(x, torch.full_like(x, 0.5)), then "
            "torch.stack([first, x - first], 1)"
        )
    augment = partial(Augment, levels=data.levels, rounding=data.rounding)
    if len(shape) != 3:
        spread = float(as_float(data.train).std())
        return augment(Noise(0.1 * spread))
    if shape == (1, 8, 8):
        return digits(levels=data.levels, rounding=data.rounding)
    return simclr(levels=data.levels) if shape[0] == 3 else augment()


def _are_counts(data: Dataset) -> bool:
    """Whether items, no images, are whole numbers from 0, not all of them 0 or 1."""
    if data.levels is not None or data.train.images.ndim == 4:
        return False
    parts = [torch.as_tensor(split.images) for split in (data.train, data.test)]
    low, high = zip(*map(span, parts), strict=True)
    whole = all(bool((x == x.round()).all()) for x in parts)
    return whole and min(low) >= 0 and max(high) > 1


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


def _vae(**options: Any) -> Build:
    return lambda data, dim: limits.VAE(joint(data, priors.Independent(dim)), **options)


def _encoded(limit: Callable[..., nn.Module], **options: Any) -> Build:
    return lambda data, dim: limit(encoder(data, dim), **options)


def _projected(limit: Callable[..., nn.Module], **options: Any) -> Build:
    return lambda data, dim: limit(encoder(data, dim), _projector(dim), **options)


def _classes(limit: Callable[..., nn.Module]) -> Build:
    """z of a linear head are the logits of `CLASSES` classes."""
    return lambda data, dim: limit(
        encoder(data, dim), Projector(dim, out=CLASSES, layers=1)
    )


_BASES = {"DSA": "SimCLR", "PID": "SimCLR"}  # methods that extend another one


def _extended(name: str, data: Dataset, dim: int) -> nn.Module:
    """The base objective of a method, as `METHODS` builds it now."""
    return METHODS[_BASES[name]](data, dim)


METHODS: dict[str, Build] = {
    "VAE": _vae(),
    "BetaVAE": _vae(beta=2.0),
    "CRVAE": lambda data, dim: limits.CRVAE(joint(data, priors.Independent(dim))),
    "IWAE": _vae(bound=IWAE(5)),
    "SimVAE": lambda data, dim: limits.SimVAE(joint(data, priors.Gaussian(dim, SCALE))),
    "SphericalSimVAE": lambda data, dim: limits.SimVAE(
        joint(data, priors.Spherical(dim, CONCENTRATION), guides.PowerSpherical)
    ),
    "SimCLR": _encoded(limits.SimCLR, temperature=TEMPERATURE),
    "DCLW": _encoded(limits.DCLW, temperature=TEMPERATURE),
    "InfoNCE": _encoded(limits.CLIP, temperature=TEMPERATURE),
    "MoCo": _encoded(limits.MoCo, temperature=TEMPERATURE, queue=1024),
    "NNCLR": _projected(limits.NNCLR, temperature=TEMPERATURE, queue=1024),
    "SigLIP": _encoded(limits.SigLIP),
    "InstanceDiscrimination": lambda data, dim: limits.InstanceDiscrimination(
        encoder(data, dim), len(data.train), _projector(dim), temperature=TEMPERATURE
    ),
    "TSimCLR": _projected(limits.TSimCLR, temperature=1.0),
    "TSNE": lambda data, dim: limits.TSNE(
        encoder(data, dim), projector=_projector(dim)
    ),
    "AlignmentUniformity": _encoded(limits.AlignmentUniformity),
    "LogDet": _encoded(limits.LogDet),
    # These decorrelate single axes: of a projection, not of the representation.
    "VICReg": _projected(limits.VICReg),
    "LeJEPA": _projected(limits.LeJEPA, slices=SLICES),
    "VISReg": _projected(limits.VISReg, weight=0.6, slices=SLICES),
    "BarlowTwins": _projected(limits.BarlowTwins),
    "FroSSL": _projected(limits.FroSSL),
    "WMSE": _encoded(limits.WMSE),
    "MMCR": _projected(limits.MMCR),
    "TiCo": _projected(limits.TiCo),
    "BYOL": _projected(limits.BYOL),
    "SimSiam": _projected(limits.SimSiam),
    "SwAV": _encoded(limits.SwAV, components=PROTOTYPES),
    "DeepClustering": lambda data, dim: limits.DeepClustering(
        encoder(data, dim),
        min(CLUSTERS, max(2, len(data.train) // ITEMS_PER_CLUSTER)),
        len(data.train),
        prior=priors.Spherical(None, CLUSTERS_CONCENTRATION),
    ),
    "DINO": _projected(limits.DINO, components=PROTOTYPES),
    "CategoricalMatching": _classes(limits.CategoricalMatching),
    "RPM": _classes(limits.RPM),
    "DenoisingAutoencoder": lambda data, dim: limits.DenoisingAutoencoder(
        encoder(data, dim), decoder(data, dim), likelihood(data)
    ),
    "MaskedAutoencoder": lambda data, dim: limits.MaskedAutoencoder(
        encoder(data, dim),
        decoder(data, dim),
        likelihood(data),
        share=0.25,
        patch=_patch(tuple(data.train.images.shape[1:])),
    ),
    "DSA": lambda data, dim: limits.DSA(
        _extended("DSA", data, dim), neighbours=min(NEIGHBOURS, len(data.train) - 1)
    ),
    "PID": lambda data, dim: limits.PID(
        _extended("PID", data, dim),
        min(PID_COMPONENTS, len(data.train)),
        len(data.train),
    ),
}
_BUILT_IN = dict(METHODS)


def is_own(method: str) -> bool:
    """Whether a method was added to `METHODS` or replaced there, or its base was."""
    method = name(method)
    replaced = METHODS[method] is not _BUILT_IN.get(method)
    return replaced or (method in _BASES and is_own(_BASES[method]))
