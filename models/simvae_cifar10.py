"""SimVAE beside a VAE on CIFAR-10, with SimVAE's published settings and three changes.

Published are z of 64 dimensions, Var(z|y) = 0.15, a Gaussian likelihood of standard
deviation 0.1, ResNet-18 as encoder and decoder, strong crops and jitter, Adam of rate
8e-5 without a schedule, 128 views per step, and 400 epochs of two views; the VAE sees
as many views, one at a time. The changes: the guide `Coupled`; 54 content and 10 style
dimensions (`priors.ContentStyle`), as many as the views have degrees of freedom or so;
and a discretised logistic likelihood of bytes with a scale that is learned, whose bound
is one of log-probabilities. Networks, split, scores and folders: `cifar10.py`.

Scored is the mean of q(z|x), by the probes, and the bound of pairs of views, in nats
per pair of images. Bounds of the two likelihoods do not compare: one is of densities.

The settings are published, or were set before there was any figure; nothing was chosen
on test images.

At this size the script has not been run yet: there are no figures. What is tested is a
short form on a CPU.

Writes benchmarks/results/simvae_cifar10.json. Needs CIFAR-10 in the folder named by the
environment variable PROBSSL_DATA, and a GPU.

References:
    A Probabilistic Model behind Self-Supervised Learning (Bizeul et al., 2024)
    https://arxiv.org/abs/2402.01399
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import cifar10
import torch
from torch import nn
from torch.optim import Adam

import probssl as ps
from probssl.priors import ContentStyle, Gaussian, Independent, Prior

CHOSEN_ON = "published"
DIM, STYLE, SCALE, NOISE = 64, 10, math.sqrt(0.15), 0.1
EPOCHS, BATCH, PAIRS, PARTICLES = 400, 64, 1_000, 5
# The authors' epsilon is 1e-4, of gradients that are summed over the batch.
ADAM = partial(Adam, lr=8e-5, eps=1e-4 / BATCH)
LIKELIHOODS: dict[str, Callable[[], nn.Module]] = {
    "Gaussian": lambda: ps.likelihoods.Gaussian(NOISE),
    "discretised logistic": lambda: ps.likelihoods.DiscretisedLogistic(255),
}
PRIORS: dict[str, tuple[Callable[[], Prior], Any]] = {  # and guides
    "VAE": (lambda: Independent(DIM), ps.guides.DiagonalGaussian),
    "SimVAE": (lambda: Gaussian(DIM, SCALE), ps.guides.DiagonalGaussian),
    "SimVAE, Coupled": (lambda: Gaussian(DIM, SCALE), ps.guides.Coupled),
    "SimVAE, content and style, Coupled": (
        lambda: ContentStyle(DIM - STYLE, STYLE, SCALE),
        ps.guides.Coupled,
    ),
}


def method(name: str, likelihood: str) -> cifar10.Method:
    prior, guide = PRIORS[name]
    limit = ps.limits.VAE if name == "VAE" else ps.limits.SimVAE

    def build(shape: tuple[int, ...], images: int) -> nn.Module:
        networks = cifar10.encoder(shape, DIM), cifar10.decoder(DIM, shape)
        made = LIKELIHOODS[likelihood]()
        return limit(ps.Joint(prior(), made, *networks, guide=guide))

    base = None if name == "VAE" else f"VAE, {likelihood}"
    return cifar10.Method(build, ADAM, base, views=1 if name == "VAE" else 2)


METHODS = {
    f"{name}, {likelihood}": method(name, likelihood)
    for likelihood in LIKELIHOODS
    for name in PRIORS
}


@torch.no_grad()
def scores(objective: nn.Module, found: cifar10.Parts) -> dict[str, float]:
    """The probes, and the bound of pairs of views."""
    figures = cifar10.probed(objective, found)
    place = next(objective.parameters()).device
    for name in ("validation", "test"):
        torch.manual_seed(0)
        x = torch.as_tensor(found[name].images[:PAIRS]).to(place).float() / 255
        pairs = ps.Batch(ps.views.simvae_cifar10()(x))
        terms = ps.bounds.ELBO(PARTICLES)(objective.joint, pairs)
        figures[f"{name}: bound of pairs"] = float(sum(terms))
    return figures


EXPERIMENT = cifar10.Experiment(
    name="simvae_cifar10",
    methods=METHODS,
    epochs=EPOCHS,
    batch=BATCH,
    views=lambda views: ps.views.simvae_cifar10(views=views),
    schedule=None,
    scores=scores,
    columns=cifar10.columns({"bound of pairs": 1}),
)


def main(**options: Any) -> list[dict[str, Any]]:
    """Return the scores of every method and seed, with the options of `cifar10.run`."""
    return cifar10.run(EXPERIMENT, **options)


if __name__ == "__main__":
    cifar10.command(EXPERIMENT, __doc__)
