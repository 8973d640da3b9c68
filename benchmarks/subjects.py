"""The subjects of several benchmarks: SimVAE, SimCLR, and the training steps of `fit`.

SimVAE is that of its authors for MNIST: an MLP encoder 784-2000-500-500-10 with heads
for mean and scale, a mirrored decoder, and 64 images of two views per step.

References:
    A Probabilistic Model behind Self-Supervised Learning (Bizeul et al., 2024)
    https://arxiv.org/abs/2402.01399
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Generator, Tensor, nn

import probssl as ps
from probssl.train import Step
from probssl.train.batches import source
from probssl.train.compiled import compiled_step
from probssl.train.prepare import prepared_optimizer, settle, target_of

__all__ = ["Steps", "ink", "simclr", "simclr_resnet", "simvae"]

MNIST, CIFAR, HIDDEN = (1, 28, 28), (3, 32, 32), (2000, 500, 500)


def simvae(dim: int = 10, hidden: tuple[int, ...] = HIDDEN) -> ps.limits.SimVAE:
    """SimVAE for binary images of the size of MNIST."""
    joint = ps.Joint(
        ps.priors.Gaussian(dim, 0.15),
        ps.likelihoods.Bernoulli(),
        ps.nn.MLPEncoder(MNIST, dim, hidden),
        ps.nn.MLPDecoder(dim, MNIST, hidden[::-1]),
    )
    return ps.limits.SimVAE(joint)


def simclr(hidden: tuple[int, ...] = HIDDEN) -> ps.limits.SimCLR:
    """SimCLR with an encoder of the same size."""
    return ps.limits.SimCLR(ps.nn.MLPEncoder(MNIST, 128, hidden))


def simclr_resnet() -> ps.limits.SimCLR:
    """SimCLR for CIFAR-10: ResNet-18 and a projector to 128 dimensions."""
    return ps.limits.SimCLR(ps.nn.ResNet18Encoder(CIFAR, 512), ps.nn.Projector(512))


def ink(items: int, shape: tuple[int, ...] = MNIST) -> Tensor:
    """Binary images as bytes with a fifth of the pixels white, as in MNIST."""
    return 255 * (torch.rand(items, *shape) < 0.2).byte()


class Steps:
    """Each call is a training step of `fit`: batch, views, gradient, and update.

    Arguments:
        compiled: Whether value and gradient are compiled, and steps replayed on a GPU.
    """

    def __init__(
        self,
        objective: nn.Module,
        data: Tensor,
        views: nn.Module,
        batch_size: int,
        compiled: bool,
        device: torch.device | str = "cpu",
    ) -> None:
        target = target_of(objective, device)
        order = Generator().manual_seed(0)
        self.source = source(ps.data.Split(data), views, batch_size, order, target)
        settle(objective.train(), target.device, self.source.count)
        optimizer = prepared_optimizer(None, objective, 1e-3)
        kind = compiled_step if compiled else Step
        self.step = kind(objective, optimizer, make=self.source.batch)
        self.loads = self._loads()

    def __call__(self) -> ps.Terms:
        return self.step([next(self.loads)])

    def _loads(self) -> Iterator[Any]:
        """The batches of epoch after epoch, without end."""
        while True:
            yield from self.source.epoch()
