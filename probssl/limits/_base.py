r"""One network for all views of an item: what objectives without a decoder share."""

from collections.abc import Iterator
from contextlib import contextmanager

import pyro
import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..entropies import Entropy
from ..hyper import known_population
from ..nn import Network, PerModality
from ..priors import Prior
from ..runtime.distributed import gather
from ..runtime.precision import in_float32, lowered
from ..terms import Batch, Terms

__all__ = [
    "Embedding",
    "Extension",
    "Siamese",
    "check_no_content",
    "check_not_random",
    "check_present",
    "over_pairs",
]


class Siamese(nn.Module):
    r"""An encoder, and a projector behind it whose output is compared.

    Arguments:
        encoder: A module (n, \*event) -> (n, dim); for views of several kinds
            `nn.PerModality`.
        projector: A module (n, dim) -> (n, dim').
    """

    encoder: nn.Module
    projector: nn.Module | None
    _ear: tuple[int, list[Tensor]] | None = None  # behind which of the parts

    def __init__(self, encoder: nn.Module, projector: nn.Module | None = None) -> None:
        super().__init__()
        self.encoder, self.projector = encoder, projector

    @property
    def network(self) -> nn.Module:
        """Encoder and projector as one."""
        if self._ear is None:
            return Network(self.encoder, self.projector)
        place, ear = self._ear
        parts = [self.encoder] + ([] if self.projector is None else [self.projector])
        each = [Network(part) for part in parts]
        each[place].register_forward_hook(lambda _, __, z: ear.append(z))
        return nn.Sequential(*each)

    @contextmanager
    def overheard(self, layer: str = "projector") -> Iterator[list[Tensor]]:
        """Collect the z, shape (batch, view, dim), of every pass of `network`.

        Arguments:
            layer: ``"backbone"``, or ``"projector"`` for what the objective compares.
        """
        ear: list[Tensor] = []
        self._ear = 0 if layer == "backbone" else -1, ear
        try:
            yield ear
        finally:
            del self._ear

    def represent(
        self, x: Tensor | tuple[Tensor, ...], layer: str = "backbone"
    ) -> Float[Tensor, "n dim"]:
        """The encoder's output for x, or with ``layer="projector"`` the projector's.

        Of items of several modalities, a tuple, the mean of their representations.
        """
        if isinstance(self.encoder, PerModality):
            parts = x if isinstance(x, tuple) else (x,)
            each = lowered(self.encoder, parts)
            z = torch.stack([out.flatten(1) for out in each]).mean(0)
        else:
            z = lowered(self.encoder, x).flatten(1)
        if layer == "projector" and self.projector:
            return lowered(self.projector, z)
        return z

    def check(self, batch: Batch) -> None:
        """Raise an error if there is one view or item, or absent views or contents."""
        items, views = batch.shape
        if views < 2 or items < 2:
            raise ValueError(
                f"expected at least 2 items with at least 2 views each, got {items} "
                f"with {views}; give fit a view sampler, for instance "
                "views=ps.views.Augment(), and a larger batch"
            )
        check_present(self, batch)
        check_no_content(self, batch)


class Extension(nn.Module):
    """An objective on top of another, whose representations it shares.

    Arguments:
        base: The objective below, with an encoder for all views.

    Raises:
        TypeError: If the base is not one without a decoder.
    """

    base: Siamese

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        if not isinstance(base, Siamese):
            raise TypeError(
                "expected a contrastive or joint-embedding objective as base, such as "
                f"SimCLR(encoder), got {type(base).__name__}; what has a decoder is "
                "extended by its prior"
            )
        self.base = base

    @property
    def encoder(self) -> nn.Module:
        """That of the base."""
        return self.base.encoder

    @property
    def projector(self) -> nn.Module | None:
        """That of the base."""
        return self.base.projector

    def represent(
        self, x: Tensor | tuple[Tensor, ...], layer: str = "backbone"
    ) -> Float[Tensor, "n dim"]:
        """What the encoder of the base makes of x, or its projector."""
        return self.base.represent(x, layer)

    def check(self, batch: Batch) -> None:
        """Raise an error if the base cannot take the batch."""
        self.base.check(batch)

    def below(
        self, batch: Batch, layer: str = "projector"
    ) -> tuple[Terms, Float[Tensor, "batch view dim"]]:
        """The terms of the base, and the z it has them from, in one pass.

        Arguments:
            layer: ``"backbone"`` for the z that the encoder gives instead.
        """
        with self.base.overheard(layer) as heard:
            terms = self.base(batch)
        if not heard:
            raise ValueError(
                f"expected {type(self.base).__name__} to call its `network`, got no "
                "representations; let forward take z from self.network(batch.views)"
            )
        return terms, heard[0]


def check_no_content(objective: nn.Module, batch: Batch) -> None:
    """Raise an error if contents are given, which the objective would not look at."""
    if batch.content is not None:
        raise ValueError(
            f"expected no content for {type(objective).__name__}, which has no use for "
            "labels, got some; leave fit's content out, or use SimVAE with "
            "priors.Mixture"
        )


def check_present(objective: nn.Module, batch: Batch) -> None:
    """Raise an error if views are absent, which the objective would take for some."""
    if batch.present is not None:
        raise ValueError(
            f"expected all views to be present for {type(objective).__name__}, got a "
            "mask; drop the incomplete items, or use SimVAE, which integrates out "
            "absent views"
        )


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
