r"""The generative model that a frozen encoder implies: its ELBO and its evidence.

Objectives without a decoder have no density of the data. To put all of them on one
scale, every encoder is given the rest of the same joint, fitted to views of the
training items while the encoder is frozen:

.. math:: p(y) = N(0, \operatorname{diag}(1 - \sigma^2)), \qquad
    p(z_v \mid y) = N(y, \operatorname{diag} \sigma^2), \qquad
    p(x_v \mid z_v) \text{ by a decoder},

.. math:: q(z_v \mid x_v) = N\big(\sqrt{1 - s^2} \, u(x_v), \; \operatorname{diag} s^2
    \big), \qquad u(x) = A \, (\text{encoder}(x) - b).

Decoder, likelihood, :math:`\sigma` and :math:`s`, one of each for each dimension, are
fitted by the ELBO; A and b are fixed beforehand. So a difference between two rows is
one between their encoders: what z keeps of an image, and how well it predicts the other
view.

**A and b** make the encoder's output canonical. Over the views of the training items u
has mean 0, variance 1, and is uncorrelated both within a view and between two views,

.. math:: E[u_v u_v^\top] = I, \qquad
    E[u_1 u_2^\top] = \operatorname{diag}(\rho), \quad \rho_1 \ge \rho_2 \ge \dots,

the canonical correlations of two views (Hotelling, 1936). Two covariances always have
such axes, so that a normal content with any covariance, and views with any covariance
around it, is this prior: one scale for each dimension loses nothing. And nothing
depends on an invertible affine map of the encoder's output. Directions in which it is
constant are left out.

**No scale is missing.** A stretch of a dimension of z, of q and p alike, is undone by
the decoder. With the mean's share :math:`\sqrt{1 - s^2}` z has variance 1 under the
aggregate of q, which is the prior's; there the best :math:`\sigma^2` is :math:`1 - (1 -
s^2) \rho`, for :math:`\rho \ge 0`, from which the fit starts.

**Limits.** The decoder may be underfitted, and then all rows are too low, those with a
curved z more: the learning curve shows it. q has one spread for all items, so that the
ELBO of a joint's own guide can be higher. `posterior.refinement` frees the estimate of
log p(x) from q; but decoder and prior were fitted under q.

References:
    Relations between two sets of variates (Hotelling, 1936)
"""

import math
from collections.abc import Callable
from functools import partial
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from pyro.distributions import Normal, TorchDistribution
from torch import Tensor, nn
from torch.distributions import constraints
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR

from ..arguments import typed, whole
from ..bounds import log_weights
from ..data import Dataset, Split
from ..distributions._base import Present
from ..estimates import Undefined
from ..guides import Guide
from ..guides.views import Views
from ..hyper import Fraction, learned
from ..joint import Joint
from ..limits import SimVAE
from ..nn import each_view
from ..posterior.evidence import Evidence, Run
from ..posterior.items import evaluating
from ..posterior.representation import embedded, representation_of
from ..priors import ContentStyle
from ..runtime.copies import copied
from ..terms import Batch
from ..train import History, fit
from .decoding import (
    BATCH,
    LEARNING_RATE,
    MAX_FITTED,
    WARM_UP,
    Form,
    decoder_for,
    likelihood_for,
)
from .sampling import Sampler, views_of

__all__ = ["Implied", "Measure", "curve", "evidence_of", "implied_joint"]

AXES_DRAWS = 4  # views of each item, for the canonical axes
RANK_TOLERANCE = 1e-6  # times the root mean square: rounding of float32 encoders
FLOOR = 1e-4  # the least spread of q, in standard deviations of z
SPREAD, LEAST_SCALE = 0.3, 0.1  # of q at the start; of the prior
PARTICLES, REFINE, ELBO_PARTICLES = 500, 200, 20
# Of the rate of the decoder. While that knows nothing, the widest q is the best: where
# the spread is as fast as that of p(x|z), q collapses, and comes back slowly.
RATE_FACTOR = 1.0
KEPT, CURVE = 50, ("epoch", "step", "value", "valid_value")  # of the history
MOST = 64  # items whose evidence is refined together


class Implied(NamedTuple):
    """The joint of a frozen encoder, and the history of its fit.

    Arguments:
        joint: A `Joint` for `sample`, `evidence`, `gaps` and all else.
        history: Of the ELBO, ``value`` of the training items and ``valid_value`` of a
            fifth of them, held out.
    """

    joint: Joint
    history: History


class Measure(NamedTuple):
    """ELBO and evidence of each item, log p(x_1, …, x_V), in nats."""

    elbo: Float[Tensor, " item"]
    evidence: Evidence


@typed
def implied_joint(
    objective: nn.Module,
    data: Dataset,
    *,
    views: Sampler,
    steps: int,
    form: Form | None = None,
    decoder: Callable[[int], nn.Module] | None = None,
    on_epoch: Callable[[int, int], object] | None = None,
    device: str | torch.device = "auto",
) -> Implied:
    """The joint that a frozen encoder implies, fitted to views of the training items.

    A fifth of the training items is held out: the best epoch counts. At most 10,000
    items are used. Randomness follows ``torch.manual_seed``; the objective is copied,
    and stays as it is.

    Arguments:
        objective: A fitted objective, or a bare encoder.
        data: The data set, of which the training items are used.
        views: The sampler of the views.
        steps: The number of steps of Adam, with a one-cycle learning rate.
        form: p(x|z), of which a copy is fitted, and the shape of its parameters; by
            default that of `recipes`.
        decoder: Makes the decoder for a dimension of z; by default that of `recipes`.
        on_epoch: Called with the number of the epoch and of all epochs.
        device: Where to fit, as in `fit`.

    Raises:
        ValueError: If z is constant over the training items, or views are off the
            support of the likelihood.
    """
    whole("steps", steps)
    order = torch.randperm(len(data.train))[:MAX_FITTED]
    fifth = max(1, len(order) // 5)
    train, valid = data.train.rows(order[fifth:]), data.train.rows(order[:fifth])
    form = likelihood_for({}, data) if form is None else form
    frozen = Frozen(objective, train, views)
    make = partial(decoder_for, data, form=form) if decoder is None else decoder
    start = (1 - SPREAD**2) * frozen.correlation
    scale = (1 - start).sqrt().clamp(LEAST_SCALE, 1 - LEAST_SCALE**2)
    prior = ContentStyle(frozen.dim, 0, learned(scale))
    prior.scale.learning_rate_factor = RATE_FACTOR
    parts = copied(form.likelihood), frozen, make(frozen.dim)
    joint = Joint(prior, *parts, guide=_Spread)
    batches = max(1, len(train) // BATCH)
    epochs = math.ceil(steps / batches)

    def told(epoch: int, row: dict[str, float]) -> None:
        if on_epoch is not None:
            on_epoch(epoch, epochs)

    history = fit(
        SimVAE(joint),
        Split(train.images),
        views=views,
        valid=Split(valid.images),
        epochs=epochs,
        batch_size=min(BATCH, len(train)),
        learning_rate=LEARNING_RATE,
        scheduler=partial(_one_cycle, steps=epochs * batches),
        patience=epochs,
        on_epoch=told,
        compile=False,
        device=device,
        progress=False,
    )
    if history.interrupted:
        raise KeyboardInterrupt
    return Implied(joint, history)


@typed
def evidence_of(
    joint: Joint,
    views: Float[Tensor, "n view *event"],
    *,
    particles: int | None = None,
    refine: int | None = None,
) -> Measure:
    """ELBO and evidence of each item, the evidence by a proposal of its own.

    Arguments:
        views: The views of each item, all of which are its data.
        particles: The number of samples for the evidence; by default 500.
        refine: The gradient steps for its proposals, see `ps.evidence`; by default 200.
    """
    particles = PARTICLES if particles is None else particles
    run = Run(joint, particles, REFINE if refine is None else refine, 0)
    elbos = []
    with evaluating(joint) as like:
        for x in views.split(MOST):
            batch = Batch(x if like is None else x.to(like))
            run.add(batch)
            weights = log_weights(joint, batch, ELBO_PARTICLES)
            elbos.append(torch.as_tensor(sum(weights[:3])).mean(0).double().cpu())
    return Measure(torch.cat(elbos), run.evidence())


def curve(history: History) -> dict[str, list[float]]:
    """The learning curve: the columns of some fifty epochs, the last one among them."""
    last = len(history) - 1
    rows = np.unique(np.linspace(0, last, min(KEPT, last + 1)).round().astype(int))
    return {name: history[name][rows].tolist() for name in CURVE}


class Frozen(nn.Module):
    """The encoder of an objective, frozen, with its output in canonical coordinates.

    Arguments:
        objective: An objective, of which a copy is kept, or a bare encoder.
        split: The items over whose views the coordinates are canonical.
        views: The sampler of the views.
    """

    mean: Tensor
    weight: Tensor
    correlation: Tensor

    def __init__(self, objective: nn.Module, split: Split, views: Sampler) -> None:
        super().__init__()
        self.objective = copied(objective).requires_grad_(False).eval()
        draws = [views_of(views, split) for _ in range(AXES_DRAWS)]
        z = [[embedded(objective, Split(x))[0] for x in d.unbind(1)] for d in draws]
        pairs = np.concatenate([np.stack(each, 1) for each in z])
        found = canonical(torch.from_numpy(pairs).double())
        self.dim = len(found.correlation)
        for name, numbers in found._asdict().items():
            self.register_buffer(name, numbers)

    def train(self, mode: bool = True) -> "Frozen":
        return super().train(False)

    @torch.no_grad()
    def forward(self, x: Float[Tensor, "n *event"]) -> Float[Tensor, "n dim"]:
        numbers = chain(self.objective.parameters(), self.objective.buffers())
        like = next((t for t in numbers if t.is_floating_point()), x)
        z = representation_of(self.objective)(x.to(like)).to(self.weight)
        return ((z - self.mean) @ self.weight).to(x)


class Canonical(NamedTuple):
    """The map to canonical coordinates, :math:`(z - b) A`, and the correlations."""

    mean: Float[Tensor, " d"]
    weight: Float[Tensor, "d dim"]
    correlation: Float[Tensor, " dim"]


def canonical(z: Float[Tensor, "n view d"]) -> Canonical:
    """Canonical coordinates of the views of items, the sign of each by its skewness.

    Raises:
        Undefined: If z is constant.
    """
    items, views, _ = z.shape
    mean = z.mean((0, 1))
    centred = z - mean
    flat = centred.flatten(0, 1)
    values, axes = torch.linalg.eigh(flat.T @ flat / len(flat))
    least = RANK_TOLERANCE**2 * z.square().mean((0, 1)).amax()
    kept = values > least
    if not kept.any():
        raise Undefined("z is the same for all views: it says nothing of them")
    white = axes[:, kept] / values[kept].sqrt()
    total = (centred @ white).sum(1)
    # The sum over views has views + views (views - 1) · correlation as its covariance.
    cross = total.T @ total / items / views - torch.eye(white.shape[1]).to(white)
    correlation, rotation = torch.linalg.eigh(cross / (views - 1))
    weight = white @ rotation.flip(1)
    skewness = (centred @ weight).pow(3).mean((0, 1))
    sign = torch.ones_like(skewness).copysign(skewness)
    return Canonical(mean, weight * sign, correlation.flip(0))


class _Spread(Guide):
    r"""Normal views around a frozen encoder, with one spread for each dimension.

    .. math:: q(z_v \mid x_v) = N(\sqrt{1 - s^2} \, u(x_v), \operatorname{diag} s^2)
    """

    support = constraints.real_vector

    def __init__(self, encoder: nn.Module, *, dim: int) -> None:
        super().__init__()
        self.frozen = encoder
        self.spread = Fraction(learned([SPREAD] * dim), "spread", dim=dim)
        self.spread.learning_rate_factor = RATE_FACTOR

    @property
    def encoder(self) -> nn.Module:
        return self.frozen

    def each(  # type: ignore[override]  # it takes no covariates
        self, x: Views, present: Present = None
    ) -> TorchDistribution:
        spread = FLOOR + (1 - FLOOR) * self.spread()
        loc = (1 - spread.square()).sqrt() * each_view(self.frozen, x, present)
        return Normal(loc, spread.expand(loc.shape), validate_args=False).to_event(1)


def _one_cycle(optimizer: Optimizer, steps: int) -> LRScheduler:
    """A learning rate that rises for a tenth of the steps and falls to zero."""
    rates = [group["lr"] for group in optimizer.param_groups]
    return OneCycleLR(
        optimizer,
        rates,
        steps,
        pct_start=WARM_UP,
        cycle_momentum=False,
        anneal_strategy="linear",
    )
