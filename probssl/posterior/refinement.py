r"""A proposal of each item's own for importance sampling, in place of the encoder's.

An encoder is trained for all items at once, and one with a diagonal covariance knows no
correlations of z. Here each item gets a normal with a full covariance, fitted to its
posterior by gradient steps on the ELBO,

.. math:: \max_{m, L} \; E_{u \sim N(m, L L^\top)} [\log p(x, u)] + \log |L|,

from the mean and the standard deviations of q. u are coordinates of z, and of an
explicit content, in R^n (`posterior.coordinates`).

The noise of these steps grows with n. Rounds of score matching then remove it: the
score of a normal is a line, and in units of the normal so far, u = m + F e, least
squares over draws of e give the line of the posterior's,

.. math:: F^\top \nabla \log p(x, u) \approx a - A e, \qquad
    m \leftarrow m + F A^{-1} a, \quad F F^\top \leftarrow F A^{-1} F^\top.

For a normal posterior n + 1 draws give it exactly. For others the rounds are averaged,
by rates 1, 1, 2/3, 1/2, 2/5, …; draws are those of a wider normal, since there the
weights are large.

The proposal is wider, and its tails are heavier, those of a Student-t, so that weights
have no large tail. A normal wider by a factor s has log-weights with standard deviation
:math:`(s^2 - 1) \sqrt{n / 2}`: s is such that this is 1. With 4 n degrees of freedom
the radius of a draw varies an eighth more than that of a normal, whatever n.

On spheres posteriors in stereographic coordinates have tails far from a normal's. There
rounds of importance sampling move the normal to the weighted mean and covariance
(adaptive importance sampling), the Student-t has 5 degrees of freedom, and one draw in
twenty is uniform, so that weights are bounded (a defensive mixture).

A normal settles on one mode, and draws that never meet another say nothing of it:
neither k̂ nor the effective sample size sees what is missing. So some draws are q's, a
tenth at least and nine tenths at most, and weights are those of the mixture: a mode
that q has counts; one that neither has stays unseen. The share of each item is the one,
of a few, with the least variance among draws made beforehand. The draws of an estimate
are new ones, so that it stays unbiased.

References:
    Inference Suboptimality in Variational Autoencoders (Cremer et al., 2018)
    https://arxiv.org/abs/1801.03558
    Batch and match: black-box variational inference with a score-based divergence (Cai
    et al., 2024) https://arxiv.org/abs/2402.14758
    Adaptive Importance Sampling: The past, the present, and the future (Bugallo et al.,
    2017)
    Weighted Average Importance Sampling and Defensive Mixture Distributions
    (Hesterberg, 1995)
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property

import torch
from jaxtyping import Bool, Float
from pyro.distributions import MultivariateStudentT
from torch import Tensor, nn
from torch.optim import Adam
from torch.optim.lr_scheduler import OneCycleLR

from .coordinates import Latents, Proposal, Values, Vectors
from .items import chunks

__all__ = ["SAMPLES", "LocalNormal", "Refined", "climb", "frozen", "mixed"]

SAMPLES, RATE = 8, 0.1  # draws of a gradient step, and its rate in their spread
ROUNDS, DRAWS, EACH = 8, 200, 8  # of score matching; draws at least, and per number
MOST, SURE = 4.0, 3.0  # factor of a variance in a round; standard errors
WIDER, TAIL = 1.0, 4.0  # of log-weights, in sd; degrees of freedom per number
# On spheres: rounds of importance sampling, with how many draws; the Student-t; the
# share of uniform draws; of the variances of q, what is added to those of a round.
ADAPTED, MOMENTS, SPHERE_WIDE, SPHERE_TAIL = 2, 1_000, 1.1, 5.0
UNIFORM, TINY = 0.05, 1e-6
SHARES, PILOTS = (0.1, 0.3, 0.5, 0.7, 0.9), 200  # of draws of q; draws to choose

ByItem = Float[Tensor, "item draw number"]


class LocalNormal:
    r"""The normal of each item that maximises the ELBO, :math:`N(m, F F^\top)`.

    Arguments:
        latents: The items, with their latent variables.
        steps: The number of gradient steps, from q.
        free: Which elements of F beside its diagonal are free, (number, number), or
            for each item: those of a triangular matrix in some order of the numbers.
            None means all below the diagonal, hence all covariances.
    """

    def __init__(
        self, latents: Latents, steps: int, free: Bool[Tensor, "..."] | None = None
    ) -> None:
        self.latents, self.loc = latents, latents.loc
        self.factor = torch.diag_embed(latents.spread)
        if free is None:
            free = torch.ones_like(self.factor[0]).tril(-1).bool()
        with frozen(latents.joint), torch.enable_grad():
            self._climb(steps, free)

    def log_weights(self, draws: int) -> Values:
        r"""Draws of :math:`\log p(x, u) - \log r(u)`, whose mean is the ELBO."""
        log_det = self.factor.diagonal(0, -2, -1).log().sum(-1)
        parts = []
        for n in chunks(draws, self.latents.batch):
            noise = torch.randn(n, *self.loc.shape).to(self.loc)
            u = self.loc + (self.factor @ noise.unsqueeze(-1)).squeeze(-1)
            log_r = -0.5 * (noise.square() + math.log(2 * math.pi)).sum(-1) - log_det
            parts.append(self.latents.log_joint(u) - log_r)
        return torch.cat(parts)

    def _climb(self, steps: int, free: Bool[Tensor, "..."]) -> None:
        """Gradient steps in units of the standard deviations of q."""
        spread = self.latents.spread
        shift = torch.zeros_like(self.loc, requires_grad=True)
        log_scale = torch.zeros_like(self.loc, requires_grad=True)
        beside = torch.zeros_like(self.factor, requires_grad=True)

        def factor() -> Tensor:
            return beside * free + torch.diag_embed(log_scale.exp())

        def elbo() -> Tensor:
            noise = torch.randn(SAMPLES, *shift.shape).to(shift)
            unit = shift + (factor() @ noise.unsqueeze(-1)).squeeze(-1)
            height = self.latents.log_joint(self.loc + spread * unit).mean(0)
            return height + log_scale.sum(-1)

        climb(elbo, [shift, log_scale, beside], steps)
        with torch.no_grad():
            self.factor = spread.unsqueeze(-1) * factor()
            self.loc = self.loc + spread * shift


class Refined:
    r"""A Student-t proposal r(u) for each item of a batch, fitted to its posterior.

    Arguments:
        fitted: The normal of each item, all covariances free.
    """

    def __init__(self, fitted: LocalNormal) -> None:
        self.latents, self.loc, self.tril = fitted.latents, fitted.loc, fitted.factor
        size = self.loc.shape[-1]
        if self.latents.round:
            self.wide, self.tail = SPHERE_WIDE, SPHERE_TAIL
            for _ in range(ADAPTED):
                self._adapt()
        else:
            self.wide = math.sqrt(1 + WIDER * math.sqrt(2 / size))
            self.tail = TAIL * size
            self._match(max(DRAWS, EACH * size))

    def log_weights(self, draws: int) -> Float[Tensor, "draw item"]:
        """Draw u from `proposal`, and return log p(x, u) less its log-density."""
        parts = []
        for n in chunks(draws, self.latents.batch):
            hypers = self.latents.hypers(n)
            u, log_r = self.proposal(n, hypers)
            parts.append(self.latents.log_joint(u, hypers) - log_r(u))
        return torch.cat(parts)

    def proposal(self, draws: int, hypers: dict[str, Tensor]) -> Proposal:
        """Draws of q and of r, and the log-density of the mixture.

        Of r alone where q lacks some of the support.
        """
        own = self.sample(draws), self.log_prob
        if self.guided is None:
            return own
        return mixed([self.latents.guide(draws, hypers), own], self.guided[None])

    @cached_property
    def guided(self) -> Float[Tensor, " item"] | None:
        """The share of draws of q whose mixture has the least variance."""
        if self.latents.narrow:
            return None
        shares = self.loc.new_tensor(SHARES)
        half = self.loc.new_full((1, len(self.loc)), 0.5)
        parts = []
        for n in chunks(PILOTS, self.latents.batch):
            hypers = self.latents.hypers(n)
            both = self.latents.guide(n, hypers), (self.sample(n), self.log_prob)
            u, log_half = mixed(both, half)
            log_p, log_each = self.latents.log_joint(u, hypers), [f(u) for _, f in both]
            each = [mixture(log_each, share.expand_as(half)) for share in shares]
            parts.append(2 * log_p - log_half(u) - torch.stack(each))
        return shares[torch.cat(parts, 1).logsumexp(1).argmin(0)]

    def sample(self, draws: int) -> Vectors:
        """Draws of the proposal."""
        u = self._student.sample((draws,))
        if not self.latents.round:
            return u
        chosen = torch.rand(u.shape[:2]).to(u) < UNIFORM
        return self.latents.uniform(draws).where(chosen.unsqueeze(-1), u)

    def log_prob(self, u: Vectors) -> Values:
        """The log-density of the proposal."""
        log_r: Tensor = self._student.log_prob(u)
        if not self.latents.round:
            return log_r
        uniform = self.latents.log_uniform(u) + math.log(UNIFORM)
        return torch.logaddexp(log_r + math.log1p(-UNIFORM), uniform)

    @property
    def _student(self) -> MultivariateStudentT:
        tail, tril = self.loc.new_tensor(self.tail), self.wide * self.tril
        return MultivariateStudentT(tail, self.loc, tril, validate_args=False)

    def _weighted(self, draws: int) -> tuple[Vectors, Values]:
        parts = []
        for n in chunks(draws, self.latents.batch):
            u = self.sample(n)
            parts.append((u, self.latents.log_joint(u) - self.log_prob(u)))
        u, log_weight = (torch.cat(part) for part in zip(*parts, strict=True))
        return u, log_weight

    def _adapt(self) -> None:
        """Move to the weighted moments, by as much as the weights can say."""
        u, log_weight = self._weighted(MOMENTS)
        weight = log_weight.softmax(0).unsqueeze(-1)
        count, size = weight.square().sum(0).reciprocal(), u.shape[-1]
        share = (count / (count + 2 * size)).unsqueeze(-1)
        mean = (weight * u).sum(0)
        away = (weight.sqrt() * (u - mean)).movedim(0, 1)
        covariance = share * (away.mT @ away) + (1 - share) * (self.tril @ self.tril.mT)
        jitter = torch.diag_embed(TINY * self.latents.spread.square())
        self.tril = torch.linalg.cholesky(covariance + jitter)
        self.loc = share[..., 0] * mean + (1 - share[..., 0]) * self.loc

    def _match(self, draws: int) -> None:
        """Rounds of score matching, undone for items whose ELBO they lower for sure."""
        loc, tril = self.loc, self.tril
        elbos, errors = [], []
        for step in range(ROUNDS + 1):
            half = torch.randn(*loc.shape[:1], draws // 2, loc.shape[-1]).to(loc)
            noise = self.wide * torch.cat([half, -half], 1)
            height, score = self._scores(self.loc.unsqueeze(1) + noise @ self.tril.mT)
            height = height + noise.square().sum(-1) / 2
            log_det = self.tril.diagonal(0, -2, -1).log().sum(-1)
            elbos.append(height.mean(1) + log_det)
            errors.append(height.std(1) / math.sqrt(draws))
            if step < ROUNDS:
                self._move(noise, score @ self.tril, min(1.0, 2 / (1 + step)))
        least = elbos[0] - SURE * torch.hypot(errors[0], errors[-1])
        kept = (elbos[-1] >= least).unsqueeze(-1)  # not where it is NaN
        self.loc = self.loc.where(kept, loc)
        self.tril = self.tril.where(kept.unsqueeze(-1), tril)

    def _scores(self, u: ByItem) -> tuple[Float[Tensor, "item draw"], ByItem]:
        """log p(x, u) and its gradients; where they are not finite, 0."""
        heights, scores = [], []
        parts = u.transpose(0, 1).split(chunks(u.shape[1], self.latents.batch))
        with frozen(self.latents.joint), torch.enable_grad():
            for part in parts:
                leaf = part.detach().requires_grad_()
                height = self.latents.log_joint(leaf)
                scores += torch.autograd.grad(height.sum(), leaf)
                heights.append(height.detach())
        score = torch.cat(scores).nan_to_num(0.0, 0.0, 0.0)
        return torch.cat(heights).T, score.transpose(0, 1)

    def _move(self, noise: ByItem, score: ByItem, rate: float) -> None:
        """Move towards the normal whose score is the line fitted to these.

        Arguments:
            rate: How far to go; 1 is all of the way.
        """
        middle = score.mean(1, keepdim=True)  # that of the noise is 0
        precision = torch.linalg.solve(noise.mT @ noise, noise.mT @ (middle - score))
        values, axes = torch.linalg.eigh((precision + precision.mT) / 2)
        values = 1 + rate * (values.clamp(1 / MOST, MOST) - 1)
        covariance = axes @ (axes.mT / values.unsqueeze(-1))
        step = rate * middle @ covariance
        length = step.norm(dim=-1, keepdim=True)
        most = math.sqrt(step.shape[-1])  # as far as a draw
        step = step * (most / length).clamp(max=1)
        self.loc = self.loc + (step @ self.tril.mT).squeeze(1)
        self.tril = self.tril @ torch.linalg.cholesky(covariance)


def mixed(parts: Sequence[Proposal], shares: Float[Tensor, "part item"]) -> Proposal:
    """Draws of a mixture, and its log-density.

    As many rows are of each part as its share says, up to a rounding by chance.

    Arguments:
        parts: As many draws of each as of the mixture, whose row i is a row i of one.
        shares: Those of all parts but the last.
    """
    total = len(parts[0][0])
    ends = (shares.cumsum(0) * total + torch.rand(()).to(shares)).floor()
    row = torch.arange(total).to(ends)[:, None]
    u = parts[-1][0]
    for (drawn, _), end in reversed(list(zip(parts, ends, strict=False))):
        u = drawn.where((row < end).unsqueeze(-1), u)
    return u, lambda u: mixture([log_r(u) for _, log_r in parts], shares)


def mixture(log_each: Sequence[Values], shares: Float[Tensor, "part item"]) -> Values:
    """The log-density of a mixture, with the shares of all parts but the last."""
    every = torch.cat([shares, 1 - shares.sum(0, keepdim=True)])
    return (torch.stack(list(log_each)) + every.log().unsqueeze(1)).logsumexp(0)


def climb(
    elbo: Callable[[], Float[Tensor, " item"]],
    moved: list[Tensor],
    steps: int,
    rate: float = RATE,
) -> None:
    """Maximise ELBOs of items by Adam, with a rate that rises and falls to zero."""
    optimizer = Adam(moved, rate)
    rates = OneCycleLR(optimizer, rate, total_steps=max(2, steps))
    for _ in range(steps):
        gradients = torch.autograd.grad(-elbo().sum(), moved)
        for part, gradient in zip(moved, gradients, strict=True):
            part.grad = gradient
        optimizer.step()
        rates.step()


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """No gradients of parameters."""
    free = [p for p in module.parameters() if p.requires_grad]
    for parameter in free:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in free:
            parameter.requires_grad_(True)
