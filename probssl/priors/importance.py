"""How a content is integrated out in all dimensions at once: importance sampling."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from pyro.distributions import MultivariateNormal, Normal, TorchDistribution
from torch import Tensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from ..distributions.content import SharedContent

__all__ = ["ImportanceSampling", "effective_sample_size"]

STEPS = 12  # towards a content, each as long as the views are away from their mean
ROUNDS = 3  # of fitting the proposal
HALVINGS = 16  # of the power of weights, in each
WIDER = 1.25  # than what it was fitted to, for tails heavier than its own


class ImportanceSampling:
    r"""Samples of a proposal q(y), weighted, for all dimensions of z at once.

    .. math:: \hat p(z_1, \dots, z_V) = \frac1K \sum_k w_k, \qquad
        w_k = \frac{p(y_k) \prod_v p(z_v \mid y_k)}{q(y_k)}

    The estimate of p is unbiased, so that of log p is too low in the mean: a bound
    stays a bound. Each call draws anew. Where no gradient is wanted, an effective
    sample size :math:`(\sum w)^2 / \sum w^2` below `least` is refused.

    Arguments:
        samples: The number K of samples.
        proposal: A function of z and of the mask of present views (or None) that
            returns q(y), event shape (dim,), with reparameterised samples. By default a
            Gaussian that starts at the first two moments of p(y) and p(z|y), and is
            fitted to weighted samples thrice, apart from those that count; a little
            wider than these, and for the gradient a constant.
        least: The smallest effective sample size that is accepted.
    """

    each = False

    def __init__(
        self,
        samples: int = 512,
        proposal: Callable[[Tensor, Tensor | None], TorchDistribution] | None = None,
        least: float = 20.0,
    ) -> None:
        if not 1 <= least <= samples:
            raise ValueError(
                f"expected samples of at least {least:g}, the effective sample size "
                f"that is required, got {samples}; 512 is the default"
            )
        self.samples, self.proposal, self.least = samples, proposal, least

    def __call__(
        self, views: SharedContent, value: Float[Tensor, "*batch view dim"]
    ) -> tuple[Float[Tensor, "node *batch dim"], Float[Tensor, "node *batch"]]:
        y, log_weight = self.draw(views, value)
        # A training step must not wait for the host, nor can a trace.
        if not log_weight.requires_grad and get_proxy_mode() is None:
            size = float(effective_sample_size(log_weight).min())
            if not size >= self.least:
                raise ValueError(
                    f"expected an effective sample size of at least {self.least:g}, "
                    f"got {size:.3g} of {self.samples}; raise samples, give "
                    "ImportanceSampling a proposal nearer to p(y|z), or make y a "
                    "variable of the model: Joint(…, content=ps.guides.Content(dim))"
                )
        return y, log_weight

    def draw(
        self, views: SharedContent, value: Float[Tensor, "*batch view dim"]
    ) -> tuple[Float[Tensor, "node *batch dim"], Float[Tensor, "node *batch"]]:
        """Samples of the proposal and their log-weights over K, however uneven."""
        if self.proposal is None:
            proposal = self._fitted(views, value)
        else:
            proposal = self.proposal(value, views.present)
        y = proposal.rsample((self.samples,))
        log_weight = views.log_joint(y, value) - proposal.log_prob(y)
        return y, log_weight - math.log(self.samples)

    @torch.no_grad()
    def _fitted(
        self, views: SharedContent, value: Float[Tensor, "*batch view dim"]
    ) -> TorchDistribution:
        proposal = _around_mean(views, value)
        for _ in range(ROUNDS):
            y = proposal.sample((self.samples,))
            log_weight = views.log_joint(y, value) - proposal.log_prob(y)
            proposal = _moved(y, log_weight)
        return proposal


def effective_sample_size(
    log_weight: Float[Tensor, "node *batch"],
) -> Float[Tensor, "*batch"]:
    r"""Return :math:`(\sum w)^2 / \sum w^2`."""
    return (2 * log_weight.logsumexp(0) - (2 * log_weight).logsumexp(0)).exp()


def _around_mean(
    views: SharedContent, value: Float[Tensor, "*batch view dim"]
) -> TorchDistribution:
    r"""The Gaussian posterior for the first two moments of p(y) and of p(z|y).

    A quarter wider, for tails heavier than its own, around the y whose views are meant
    to be where they are, as if they followed y one to one.
    """
    ones = torch.ones_like(value)
    if views.present is not None:
        ones = ones * views.present.unsqueeze(-1)
    count = ones.sum(-2)
    mean = (ones * value).sum(-2) / count.clamp(min=1)
    try:
        y = _content_of(views, mean)
        prior, noise = views.content, views.conditional(y).variance
        precision, pull = prior.variance.reciprocal(), count / noise
        loc = (precision * prior.mean + pull * y) / (precision + pull)
    except NotImplementedError as error:
        raise ValueError(
            "expected p(y) and p(z|y) with a mean and a variance for the default "
            "proposal, got ones without; give ImportanceSampling(proposal=…), a "
            "function of z and the mask of present views that returns q(y)"
        ) from error
    scale = WIDER * (precision + pull).rsqrt()
    return Normal(loc, scale.expand_as(loc)).to_event(1)


def _content_of(
    views: SharedContent, mean: Float[Tensor, "*batch dim"]
) -> Float[Tensor, "*batch dim"]:
    """The y for which the mean of p(z|y) is that of the views, or near it."""

    def shift(y: Tensor) -> Tensor:
        return mean - views.conditional(y).mean

    y, step = mean, shift(mean)
    for _ in range(STEPS):
        further = shift(y + step)
        nearer = further.norm(dim=-1, keepdim=True) < step.norm(dim=-1, keepdim=True)
        y = torch.where(nearer, y + step, y)
        step = torch.where(nearer, further, step / 2)
    return y


def _tempered(
    log_weight: Float[Tensor, "node *batch"], least: float
) -> Float[Tensor, "node *batch"]:
    """Weights to a power of at most one that leaves an effective sample size."""
    # What is no number, or of no weight at all, comes last; infinite weights would win.
    top = torch.finfo(log_weight.dtype).max / 4
    log_weight = log_weight.nan_to_num(-top, top, -top).clamp(-top, top)
    log_weight = log_weight - log_weight.amax(0)
    power = torch.ones_like(log_weight[0])
    for _ in range(HALVINGS):
        few = effective_sample_size(power * log_weight) < least
        power = torch.where(few, power / 2, power)
    return (power * log_weight).softmax(0)


def _moved(
    y: Float[Tensor, "node *batch dim"], log_weight: Float[Tensor, "node *batch"]
) -> TorchDistribution:
    """The Gaussian of the moments of weighted samples, a little wider.

    Weights are taken to a power at which enough samples count; correlations are shrunk
    by how few they are.
    """
    dim = y.shape[-1]
    share = _tempered(log_weight, 4.0 * dim).unsqueeze(-1)
    loc = (share * y).sum(0)
    away = (y - loc).movedim(0, -2)
    weighted = share.movedim(0, -2) * away
    covariance = weighted.mT @ away
    variance = (weighted * away).sum(-2)
    size = share.square().sum(0).reciprocal().unsqueeze(-1)
    covariance = size / (size + 2 * dim) * covariance
    rest = 2 * dim / (size.squeeze(-1) + 2 * dim) * variance
    covariance = covariance + (rest + torch.finfo(y.dtype).tiny).diag_embed()
    # cholesky itself would ask the host whether it went well
    tril, _ = torch.linalg.cholesky_ex(WIDER**2 * covariance)
    return MultivariateNormal(loc, scale_tril=tril, validate_args=False)
