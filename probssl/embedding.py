r"""The joint without its decoder: what is left of it is an alignment and an entropy.

For any encoder and decoder, with equality iff the decoder is the exact posterior of x
given z,

.. math:: E \log p(x_v \mid z_v) + H[q(z_v \mid x_v)] \le H[z_v] - H[x_v]

so that

.. math:: \text{ELBO} \le E \log p(z_1, \dots, z_V) + \sum_v H[z_v] - \sum_v H[x_v]

A joint-embedding objective drops the decoder, replaces the left-hand side by an
estimate of H[z], and lets q become a point.
"""

import pyro
import torch
from jaxtyping import Float
from torch import Tensor, nn

from .entropies import Entropy
from .hyper import known_population
from .precision import in_float32
from .priors import Prior
from .processes import gather
from .siamese import Siamese
from .terms import Batch, Terms

__all__ = ["Embedding", "check_not_random", "over_pairs"]


class Embedding(Siamese):
    r"""An alignment log-density under a prior, plus an estimate of H[z].

    .. math:: E \log p(z_1, \dots, z_V) + g \hat H[z]

    with the gauge g of the prior, V − 1 for a flat or uniform p(y) and V for a proper
    one. With `all_views` it is the entropy of all views together that counts, less by
    what they share: minus the divergence of the z there are from the prior,

    .. math:: E \log p(z_1, \dots, z_V) + \hat H[z_1, \dots, z_V] - (V - g) \hat H[z]

    For a flat or uniform p(y) what is added is the conditional entropy
    :math:`\hat H[z_2, \dots, z_V \mid z_1]`.

    With `plug_in` one view stands for the content of another,

    .. math:: E_{v \ne w} \log p(z_w \mid y = z_v) + \hat H[z]

    A random hyper-parameter :math:`\theta` of the prior, such as a temperature, is
    drawn from its guide in every step. The value for an item, as a function of
    :math:`\theta`, stands in for a log-likelihood, each item counted once:

    .. math:: \log \tilde p(\theta \mid x) = \log p(\theta)
        + \sum_{i=1}^N \text{value}_i(\theta) + \text{const}

    With `plug_in` and a kernel density that is the instance likelihood: a softmax over
    the views of a batch, of which the other view of the same item is to be told. It is
    conditional on the encoder, which was fitted to the same items, and so a
    pseudo-posterior.

    Arguments:
        encoder: A module (n, \*event) -> (n, dim); for views of several kinds
            `nn.PerModality`.
        prior: p(y) and p(z|y).
        entropy: The estimator of H[z], one of `entropies` or a function of z and prior.
        projector: A module (n, dim) -> (n, dim'), whose output the objective sees;
            `embed` gives the encoder's.
        plug_in: Whether to plug one view in for the content of another.
        all_views: Whether the entropy is that of all views together.

    With several processes (torch.distributed) z is gathered from all of them.

    References:
        Understanding Self-Supervised Learning via Latent Distribution Matching (2026),
        where the two forms are F_MI and, with `all_views`, F_LDM
        https://arxiv.org/abs/2605.03517

    Raises:
        ValueError: If there are fewer than two views or two items, or a random
            hyper-parameter and no population.
    """

    population: Tensor | None
    prior: Prior
    entropy: Entropy

    def __init__(
        self,
        encoder: nn.Module,
        prior: Prior,
        entropy: Entropy,
        *,
        projector: nn.Module | None = None,
        plug_in: bool = False,
        all_views: bool = False,
    ) -> None:
        super().__init__(encoder, projector)
        if all_views and not isinstance(entropy, Entropy):
            raise ValueError(
                "expected an estimator of the entropy of all views together for "
                f"all_views=True, got {type(entropy).__name__}; make it an Entropy "
                "with a method joint(z, prior), or use LogDeterminant, KernelDensity "
                "or NearestNeighbour"
            )
        self.prior, self.entropy = prior, entropy
        self.plug_in, self.all_views = plug_in, all_views
        # The number of items in the data set, by which hyper-parameters are weighted.
        self.register_buffer("population", None)

    @in_float32
    def forward(self, batch: Batch) -> Terms:
        drawn, hyper = self._draw()
        z = self.latents(batch)
        with self.prior.at(**drawn):
            return self._value(z, batch)._replace(hyper=hyper)

    @in_float32
    def model(self, batch: Batch) -> None:
        r"""The pseudo-posterior of the hyper-parameters, for Pyro's tools.

        For the batch as the whole data set: ``MCMC(NUTS(objective.model))``.
        """
        drawn = {h.name: h.sample() for h in self.prior.random()}
        items, _ = batch.shape
        with self.prior.at(**drawn):
            value = torch.as_tensor(sum(self._value(self.latents(batch), batch)))
        pyro.factor("items", items * value)

    def guide(self, batch: Batch) -> None:
        """q of the hyper-parameters, log-normal each."""
        for h in self.prior.random():
            h.sample_guide()

    def _draw(self) -> tuple[dict[str, Tensor], Tensor | float]:
        """Hyper-parameters from their guides, and log p − log q of them for an item."""
        drawn: dict[str, Tensor] = {}
        total: Tensor | float = 0.0
        for h in self.prior.random():
            q = h.posterior()
            drawn[h.name] = value = q.rsample()
            total = total + h.value.log_prob(value) - q.log_prob(value)
        if drawn:
            total = total / known_population(self.population)
        return drawn, total

    def _value(self, z: Float[Tensor, "batch view dim"], batch: Batch) -> Terms:
        views = z.shape[1]
        gauge = 1 if self.plug_in else self.prior.gauge(views)
        if not self.all_views:
            entropy = gauge * self.entropy(z, self.prior)
        elif gauge == views - 1:
            entropy = self.entropy.conditional(z, self.prior)
        else:
            entropy = self.entropy.joint(z, self.prior)
            if gauge < views:
                entropy = entropy - (views - gauge) * self.entropy(z, self.prior)
        return Terms(entropy=entropy, alignment=self.alignment(z))

    def latents(self, batch: Batch) -> Float[Tensor, "batch view dim"]:
        """z of every view of all processes' items, on the support of the prior."""
        self.check(batch)
        return gather(self.prior.on_support(self.network(batch.views)))

    def alignment(self, z: Float[Tensor, "batch view dim"]) -> Float[Tensor, ""]:
        """The mean log-density of views that share their content, in nats."""
        if not self.plug_in:
            return self.prior.log_prob(z).mean()
        return over_pairs(self.prior.log_kernel(z, z, plug_in=True)).mean()


def over_pairs(
    pairs: Float[Tensor, "*batch view view"],
) -> Float[Tensor, "*batch"]:
    """Return the mean over the ordered pairs of different views."""
    views = pairs.shape[-1]
    itself = torch.eye(views, dtype=torch.bool, device=pairs.device)
    total = pairs.masked_fill(itself, 0.0).sum((-2, -1))
    return total / (views * (views - 1))


def check_not_random(prior: Prior) -> None:
    """Raise an error if a hyper-parameter is random, where it has no posterior."""
    for hyper in prior.random():
        raise ValueError(
            f"expected {hyper.name} as a number or ps.learned(number), got "
            f"{hyper.value}; for a posterior of it use SimCLR"
        )
