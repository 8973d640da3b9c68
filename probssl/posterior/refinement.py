r"""A proposal of each item's own for importance sampling, in place of the encoder's.

An encoder is trained for all items at once, and one with a diagonal covariance knows no
correlations of z. Here each item gets a normal with a full covariance, fitted to its
posterior by gradient steps on the ELBO,

.. math:: \max_{m, L} \; E_{z \sim N(m, L L^\top)} [\log p(x, z)] + \log |L|,

from the mean and the standard deviations of q(z|x). Rounds of importance sampling then
move it to the weighted mean and covariance (adaptive importance sampling), and its
tails become those of a Student-t, heavier than those of a normal. The draws of an
estimate are new ones, so that it stays unbiased.

References:
    Inference Suboptimality in Variational Autoencoders (Cremer et al., 2018)
    https://arxiv.org/abs/1801.03558
    Adaptive Importance Sampling: The past, the present, and the future (Bugallo et al.,
    2017)
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from jaxtyping import Float
from pyro import poutine
from pyro.distributions import MultivariateStudentT
from torch import Tensor, nn
from torch.optim import Adam
from torch.optim.lr_scheduler import OneCycleLR

from ..bounds import local_log_prob
from ..joint import Joint
from ..terms import Batch
from .items import chunks

__all__ = ["Refined", "check_refinable"]

START, SAMPLES, RATE = 64, 8, 0.1  # draws of q, those of a step, rate in their spread
ROUNDS, DRAWS, TAIL, WIDER = 2, 1_000, 5.0, 1.1  # of the rounds, and of the Student-t
TINY = 1e-6  # of the variances of q, added to those of a round


def check_refinable(joint: Joint) -> None:
    """Raise a ValueError where z is no vector of numbers with a closed density."""
    if joint.prior.space != "vectors" or joint.content is not None:
        what = joint.prior.space if joint.content is None else "an explicit content"
        raise ValueError(
            "expected vectors z with y integrated out for refine=…, got "
            f"{what}; leave refine out and fit the guide to these items, see the page "
            "on the evidence"
        )


class Refined:
    r"""A Student-t proposal r(z) for each item of a batch.

    Arguments:
        joint: The model, in evaluation mode.
        batch: The items.
        steps: The number of gradient steps.
    """

    def __init__(self, joint: Joint, batch: Batch, steps: int) -> None:
        self.joint, self.batch = joint, batch
        with pyro.plate("particles", START, dim=-2):
            guide: Any = poutine.trace(joint.guide).get_trace(batch).nodes
        drawn = guide["z"]["value"]
        self.event = drawn.shape[-2:]
        drawn = drawn.flatten(-2)  # all views of an item, (draw, item, number)
        self.centre, self.spread = drawn.mean(0), drawn.std(0)
        self.tril = torch.diag_embed(self.spread)
        with _frozen(joint), torch.enable_grad():
            self._climb(steps)
        for _ in range(ROUNDS):
            self._adapt()

    def log_weights(self, draws: int) -> Float[Tensor, "draw item"]:
        """Draw z, and return log p(x, z) − log r(z)."""
        parts = []
        for n in chunks(draws, self.batch):
            z = self.proposal.sample((n,))
            parts.append(self._log_joint(z) - self.proposal.log_prob(z))
        return torch.cat(parts)

    @property
    def proposal(self) -> MultivariateStudentT:
        tail = self.centre.new_tensor(TAIL)
        tril = WIDER * self.tril
        return MultivariateStudentT(tail, self.centre, tril, validate_args=False)

    def _log_joint(self, z: Float[Tensor, "draw item number"]) -> Tensor:
        """log p(x, z | h) for h from its guide, shape (draw, item)."""
        joint = self.joint
        with pyro.plate("particles", len(z), dim=-2):
            hypers = {h.name: h.sample_guide() for h in joint.prior.random()}
            given = hypers | {"z": z.unflatten(-1, self.event)}
            model = poutine.trace(poutine.condition(joint.model, given))
            return local_log_prob(model.get_trace(self.batch))

    def _climb(self, steps: int) -> None:
        """Gradient steps in units of the standard deviations of q."""
        shift = torch.zeros_like(self.centre, requires_grad=True)
        log_scale = torch.zeros_like(self.centre, requires_grad=True)
        below = torch.zeros_like(self.tril, requires_grad=True)
        free = [shift, log_scale, below]
        optimizer = Adam(free, RATE)
        rates = OneCycleLR(optimizer, RATE, total_steps=max(2, steps))
        for _ in range(steps):
            tril = below.tril(-1) + torch.diag_embed(log_scale.exp())
            noise = torch.randn(SAMPLES, *shift.shape).to(shift)
            unit = shift + (tril @ noise.unsqueeze(-1)).squeeze(-1)
            height = self._log_joint(self.centre + self.spread * unit).mean(0)
            loss = -(height + log_scale.sum(-1)).sum()
            for part, gradient in zip(
                free, torch.autograd.grad(loss, free), strict=True
            ):
                part.grad = gradient
            optimizer.step()
            rates.step()
        with torch.no_grad():
            tril = below.tril(-1) + torch.diag_embed(log_scale.exp())
            self.centre = self.centre + self.spread * shift
            self.tril = self.spread.unsqueeze(-1) * tril

    def _adapt(self) -> None:
        """Move to the weighted moments, by as much as the weights can say."""
        parts = []
        for n in chunks(DRAWS, self.batch):
            z = self.proposal.sample((n,))
            parts.append((z, self._log_joint(z) - self.proposal.log_prob(z)))
        z, log_weight = (torch.cat(part) for part in zip(*parts, strict=True))
        weight = log_weight.softmax(0).unsqueeze(-1)
        count, size = weight.square().sum(0).reciprocal(), z.shape[-1]
        share = (count / (count + 2 * size)).unsqueeze(-1)
        mean = (weight * z).sum(0)
        away = (weight.sqrt() * (z - mean)).movedim(0, 1)
        covariance = share * (away.mT @ away) + (1 - share) * (self.tril @ self.tril.mT)
        covariance = covariance + torch.diag_embed(TINY * self.spread.square())
        self.tril = torch.linalg.cholesky(covariance)
        self.centre = share[..., 0] * mean + (1 - share[..., 0]) * self.centre


@contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    """No gradients of parameters."""
    free = [p for p in module.parameters() if p.requires_grad]
    for parameter in free:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in free:
            parameter.requires_grad_(True)
