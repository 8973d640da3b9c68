r"""The base classes of objectives without a decoder, and of extensions of them."""

from collections.abc import Callable

import pyro
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from ..arguments import Parted, whole
from ..entropies import Entropy, Statistic
from ..hyper import Positive, check_declared, known_population
from ..joint import register
from ..nn import Network, PerModality, each_view
from ..nn.base import hooked, network, output_of
from ..nn.network import check_items_apart, check_width, nets_of
from ..priors import Grouped, Prior
from ..priors.base import check_space
from ..runtime.buffers import register_unknown
from ..runtime.distributed import gather
from ..runtime.precision import in_float32, lowered
from ..terms import Batch, Terms, check_batch, check_terms

__all__ = ["Embedding", "Extension", "JointEmbedding", "PriorEmbedding"]
__all__ += ["check_not_random", "check_only_views", "over_pairs", "overrides"]
__all__ += ["represented"]


class JointEmbedding(Parted):
    r"""An objective without a decoder: z of every view, then a value of z.

    .. math:: \text{forward}(\text{batch}) = \text{value}(z, \text{batch}), \qquad
        z_v = \text{projector}(\text{encoder}(x_v))

    An objective of your own implements `value` and nothing else:

    Example:
        >>> import torch
        >>> import probssl as ps
        >>> class Alignment(ps.limits.JointEmbedding):
        ...     def value(self, z, batch):
        ...         distance = (z - z.mean(1, keepdim=True)).square().sum((1, 2))
        ...         return ps.Terms(alignment=-distance.mean())
        >>> objective = Alignment(torch.nn.Linear(3, 2))
        >>> terms = objective(ps.Batch(torch.randn(8, 2, 3)))  # 8 items, 2 views each

    State, such as a momentum encoder or a queue, lives in buffers and frozen
    parameters; `value` may write it in training mode, and takes further inputs, such as
    the views for a momentum encoder, from the batch. Set ``least = 1`` to
    accept one view, override `check_shape` to accept absent views or contents, and
    `prepared` to change z before `value`.

    What the package needs of any objective, which may be any ``nn.Module``:

    ==================  ==============================================================
    `fit`               ``forward(batch) -> Terms``; ``check(batch)``, if there is one,
                        is called with the first batch
    `embed`, `compare`  ``represent(x, layer="backbone") -> (n, dim)``
    `save`              nothing; ``load(folder, into=objective)`` restores classes that
                        are not of this package
    `DSA`, `PID`        a `JointEmbedding` without its own `forward` or `latents`, and
                        without forward or backward hooks on it
    ==================  ==============================================================

    Arguments:
        encoder: A module (n, \*event) -> (n, dim); for views of several kinds
            `nn.PerModality`.
        projector: The projection head, a module (n, dim) -> (n, dim'), whose output is
            compared; None compares the encoder's.
    """

    least = 2  # views and items
    encoder: nn.Module
    projector: nn.Module | None

    def __init__(self, encoder: nn.Module, projector: nn.Module | None = None) -> None:
        super().__init__()
        for net in nets_of(encoder):
            network("encoder", net)
        self.encoder = encoder
        if projector is not None:
            network("projector", projector)
            check_width("projector", projector, encoder)
        self.projector = projector

    @in_float32
    def forward(self, batch: Batch) -> Terms:
        self.check_shape(batch)
        return self.value(self.latents(batch), batch)

    def value(self, z: Float[Tensor, "batch view dim"], batch: Batch) -> Terms:
        """Return the terms of the objective.

        Arguments:
            z: The output of `latents`: the network's output for every view of
                the items of all processes.
            batch: The batch of this process; `runtime.distributed.gather` collects its
                rows from all of them.
        """
        raise NotImplementedError(f"{type(self).__name__} has no value(z, batch)")

    @property
    def network(self) -> Network:
        """Encoder and projector as one module.

        Raises:
            TypeError: If `layers` or `latents` are overridden, which the module would
                leave out.
        """
        for name in ("layers", "latents"):
            if overrides(self, name):
                raise TypeError(
                    f"expected encoder and projector alone, got {type(self).__name__}, "
                    f"whose {name} are overridden and do more, which a copy of the "
                    "network, such as a teacher, would leave out; put it into the "
                    "encoder"
                )
        return Network(self.encoder, self.projector)

    def layers(
        self, views: Tensor | tuple[Tensor, ...], present: Tensor | None = None
    ) -> tuple[Float[Tensor, "batch view dim"], Float[Tensor, "batch view out"]]:
        """The outputs of encoder and projector for every view, in one pass."""
        backbone = each_view(self.encoder, views, present)
        if self.projector is None:
            return backbone, backbone
        return backbone, each_view(self.projector, backbone, present)

    def latents(self, batch: Batch) -> Float[Tensor, "batch view dim"]:
        """The z of a batch, as `value` gets it."""
        return self.prepared(layers_of(self, batch)[1])

    def prepared(self, z: Float[Tensor, "batch view dim"]) -> Tensor:
        """The network's output, gathered from all processes."""
        return gather(z)

    def represent(
        self, x: Tensor | tuple[Tensor, ...], layer: str = "backbone"
    ) -> Float[Tensor, "n dim"]:
        """The encoder's output for x, or with ``layer="projector"`` the projector's.

        For items of several modalities, a tuple: the mean of their representations.
        They are what `layers` returns, where that is overridden.

        Raises:
            TypeError: If `latents` is overridden, which takes a batch.
        """
        if overrides(self, "latents"):
            raise TypeError(
                f"expected {type(self).__name__}, which overrides latents(batch), to "
                "have represent(x, layer) of its own, in which x is one item; or "
                "override layers(views) for what comes before the encoder, and "
                "prepared(z) for what comes after it"
            )
        if overrides(self, "layers"):
            views = tree_map_only(Tensor, lambda part: part.unsqueeze(1), x)
            backbone, z = self.layers(views)
            return (z if layer == "projector" else backbone).mean(1)
        z = represented(self.encoder, x)
        if layer == "projector" and self.projector is not None:
            return lowered(output_of, self.projector, z)
        return z

    def check(self, batch: Batch) -> None:
        """Raise an error if the objective cannot take the batch: `fit`'s first one."""
        check_declared(self)
        self.check_shape(batch)
        if not overrides(self, "forward") and not overrides(self, "latents"):
            check_items_apart(self, lambda x: self.layers(x)[1], _views(batch))

    def check_shape(self, batch: Batch) -> None:
        """Raise an error for fewer than `least` views or items, or what is not used.

        It runs in every step, and so reads shapes only, never values.
        """
        check_batch(batch)
        items, views = batch.shape
        if min(batch.shape) < self.least:
            sampler = "give fit a view sampler, such as views=ps.views.Augment(), or "
            sampler += "views (n, view, *event) as ps.data.groups(views)"
            hints = [sampler] * (views < self.least)
            more = "give more items in every batch, drop_last=True for a DataLoader"
            hints += [more] * (items < self.least)
            raise ValueError(
                f"expected at least {self.least} items with at least {self.least} "
                f"views each, got {items} with {views}; {', and '.join(hints)}"
            )
        check_only_views(self, batch)


def layers_of(objective: JointEmbedding, batch: Batch) -> tuple[Tensor, Tensor]:
    """The objective's `layers` for a batch, of which views may be absent."""
    if batch.present is None:
        return objective.layers(batch.views)
    return objective.layers(_views(batch), batch.present)


def _views(batch: Batch) -> Tensor | tuple[Tensor, ...]:
    """The views, of which absent ones are filled."""
    return batch.parts if isinstance(batch.views, tuple) else batch.stacked


def represented(
    encoder: nn.Module, x: Tensor | tuple[Tensor, ...]
) -> Float[Tensor, "n dim"]:
    """The encoder's output for x, for several modalities the mean of its outputs."""
    parts = x if isinstance(x, tuple) else (x,)
    if isinstance(encoder, PerModality):
        each = lowered(encoder, parts)
    else:
        each = [lowered(output_of, encoder, part) for part in parts]
    z = [out.flatten(1) for out in each]
    return z[0] if len(z) == 1 else torch.stack(z).mean(0)


def overrides(objective: JointEmbedding, name: str) -> bool:
    """Whether an objective has another method of this name than `JointEmbedding`."""
    given = getattr(type(objective), name), getattr(JointEmbedding, name)
    return given[0] is not given[1] or name in vars(objective)


class Extension(Parted):
    """An addition to a base objective, from the same pass of its network.

    Arguments:
        base: The base objective.
    """

    base: JointEmbedding

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        if not isinstance(base, JointEmbedding):
            raise TypeError(
                "expected a contrastive or joint-embedding objective as base, such as "
                f"SimCLR(encoder), got {type(base).__name__}; what has a decoder is "
                "extended by its prior"
            )
        _check_as_called(base)
        self.base = base

    @in_float32
    def forward(self, batch: Batch) -> Terms:
        _check_as_called(self.base)
        self.base.check_shape(batch)
        backbone, z = layers_of(self.base, batch)
        terms = self.base.value(self.base.prepared(z), batch)
        return self.extended(check_terms(terms), backbone, z, batch)

    def extended(
        self,
        terms: Terms,
        backbone: Float[Tensor, "batch view dim"],
        z: Float[Tensor, "batch view out"],
        batch: Batch,
    ) -> Terms:
        """Return the terms of the base plus the addition.

        Arguments:
            terms: Those of the base.
            backbone: The encoder's output for this process's items.
            z: The projector's.
        """
        raise NotImplementedError(f"{type(self).__name__} has no extended(…)")

    @property
    def encoder(self) -> nn.Module:
        """That of the base."""
        return self.base.encoder

    @property
    def projector(self) -> nn.Module | None:
        """That of the base."""
        return self.base.projector

    @property
    def least(self) -> int:
        """That of the base."""
        return self.base.least

    def represent(
        self, x: Tensor | tuple[Tensor, ...], layer: str = "backbone"
    ) -> Float[Tensor, "n dim"]:
        """The representation that the base gives x."""
        return self.base.represent(x, layer)

    def check(self, batch: Batch) -> None:
        """Raise an error if the base cannot take the batch."""
        self.base.check(batch)


def _check_as_called(base: JointEmbedding) -> None:
    """Raise a TypeError for what an extension, which never calls its base, leaves out.

    It may have come after the extension was built, and so every call looks for it.
    """
    name = type(base).__name__
    for method in ("__call__", "forward", "latents"):
        if overrides(base, method):
            raise TypeError(
                f"expected a base that implements value(z, batch), got {name}, which "
                f"overrides {method}, and an extension would not call that; override "
                "layers, prepared or value instead"
            )
    if hooked(base):
        raise TypeError(
            f"expected a base without forward or backward hooks, got {name} with some, "
            "which an extension would not call; register them on the extension, or on "
            "the base's encoder or projector"
        )


def check_only_views(objective: nn.Module, batch: Batch) -> None:
    """Raise an error for absent views or contents, which the objective would ignore."""
    check_batch(batch)
    name = type(objective).__name__
    if batch.present is not None:
        raise ValueError(
            f"expected all views to be present for {name}, got a mask; drop the "
            "incomplete items, or use SimVAE, which integrates out absent views"
        )
    if batch.content is not None:
        raise ValueError(
            f"expected no content for {name}, which has no use for labels, got some; "
            "leave fit's content out, or use SimVAE with priors.Mixture"
        )


def _version(z: Tensor) -> int:
    """How often a tensor was changed in place; not counted in inference mode."""
    return 0 if z.is_inference() else z._version


def _named(function: object) -> str:
    return str(getattr(function, "__name__", type(function).__name__))


class PriorEmbedding(JointEmbedding):
    """A `JointEmbedding` whose z are samples of a prior."""

    prior: Prior

    def check(self, batch: Batch) -> None:
        """Raise an error if the objective cannot take the batch, or the prior z."""
        super().check(batch)
        self.prior.check()
        check_space(self.prior)

    @property
    def temperature(self) -> Tensor:
        r"""The present temperature :math:`1 / \kappa` of a von Mises-Fisher kernel.

        A learned one has its present value, a random one the median of its guide.
        Objectives with another kernel have no such attribute.
        """
        kappa: Positive = self.prior.concentration  # type: ignore[assignment]
        return kappa().reciprocal()

    def prepared(self, z: Float[Tensor, "batch view dim"]) -> Tensor:
        """The network's output for all processes' items, on the prior's support."""
        return self.prior.on_support(gather(z))


class Embedding(PriorEmbedding):
    r"""An alignment log-density under a prior, plus an estimate of H[z].

    .. math:: E \log p(z_1, \dots, z_V) + V \hat H[z]

    for a proper p(y). Where one view alone has a constant density, under a flat or
    uniform p(y), it is that of the others, with the gauge g = V − 1 in place of V,

    .. math:: E \log p(z_2, \dots, z_V \mid z_1) + (V - 1) \hat H[z]

    With the true H[z] both are at most the mutual information of the views (total
    correlation). With `all_views` the joint entropy counts instead, which gives minus
    the divergence of the aggregated z from the prior, or of the others given one view:

    .. math:: E \log p(z_1, \dots, z_V) + \hat H[z_1, \dots, z_V] \qquad
        E \log p(z_2, \dots, z_V \mid z_1) + \hat H[z_2, \dots, z_V \mid z_1]

    With `plug_in` one view stands for the content of another,

    .. math:: E_{v \ne w} \log p(z_w \mid y = z_v) + \hat H[z]

    and under a prior of views in order, `priors.Sequence` or `priors.Predictive`, each
    view for that of the next one, w = v + 1, as in contrastive predictive coding. Where
    such a prior says nothing of the first view, the entropies are those of the others.

    A random hyper-parameter :math:`\theta` of the prior, such as a temperature, is
    drawn from its guide in every step. The value for an item, as a function of
    :math:`\theta`, replaces a log-likelihood, each item counted once:

    .. math:: \log \tilde p(\theta \mid x) = \log p(\theta)
        + \sum_{i=1}^N \text{value}_i(\theta) + \text{const}

    With `plug_in` and a kernel density that is the instance likelihood, the softmax
    that identifies the positive among the views of a batch. It is conditional on an
    encoder that was fitted to the same items, and so a pseudo-posterior.

    Arguments:
        encoder, projector: As in `JointEmbedding`.
        prior: p(y) and p(z|y).
        entropy: The estimator of H[z], one of `entropies` or a function of z and prior.
        plug_in: Whether one view stands for the content of another.
        all_views: Whether the entropy is the joint one of all views.

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
    entropy: Entropy | Callable[[Tensor, Prior], Tensor]
    _given: dict[str, Tensor] | None = None  # hyper-parameters, while `model` runs

    def __init__(
        self,
        encoder: nn.Module,
        prior: Prior,
        entropy: Entropy | Callable[[Tensor, Prior], Tensor],
        *,
        projector: nn.Module | None = None,
        plug_in: bool = False,
        all_views: bool = False,
    ) -> None:
        super().__init__(encoder, projector)
        _check_no_groups(prior)
        if isinstance(entropy, Statistic):
            name = type(entropy).__name__
            raise TypeError(
                f"expected an estimator of H[z], got the statistic {name}; give "
                f"entropies.Sketched({name}(), slices=1024)"
            )
        if all_views and not isinstance(entropy, Entropy):
            raise ValueError(
                "expected an estimator of the joint entropy of all views for "
                f"all_views=True, got {type(entropy).__name__}; make it an Entropy "
                "with a method joint(z, prior), or use LogDeterminant, KernelDensity "
                "or NearestNeighbour"
            )
        self.prior, self.entropy = prior, entropy
        self.plug_in, self.all_views = plug_in, all_views
        # The number of items in the data set, which scales log p − log q of θ.
        register_unknown(self, "population")

    def value(self, z: Float[Tensor, "batch view dim"], batch: Batch) -> Terms:
        drawn, hyper = self._draw()
        with self.prior.at(**drawn):
            return self.estimate(z, batch)._replace(hyper=hyper)

    def estimate(self, z: Float[Tensor, "batch view dim"], batch: Batch) -> Terms:
        """Return alignment and entropy, given the hyper-parameters of the prior."""
        version, gauge = _version(z), self.prior.gauge(z.shape[1])
        if self.plug_in and self.prior.ordered:
            pairs = (z[:, t : t + 2] for t in range(z.shape[1] - 1))
            entropy = torch.stack([self._entropy(pair, 1) for pair in pairs]).mean()
        else:
            entropy = self._entropy(z, 1 if self.plug_in else gauge)
        if _version(z) != version:
            raise ValueError(
                f"expected the entropy {_named(self.entropy)} to leave z as it is, got "
                "one that changes z in place, as by z -= m; write z = z - m"
            )
        return Terms(entropy=entropy, alignment=self.alignment(z))

    def _entropy(self, z: Tensor, gauge: int) -> Tensor:
        """The estimate of as many entropies as the gauge says, or of the joint one."""
        views = z.shape[1]
        if not self.all_views or not isinstance(self.entropy, Entropy):
            return torch.as_tensor(gauge * self._marginal(z, gauge < views))
        if gauge == views - 1:
            return self.entropy.conditional(z, self.prior)
        entropy = self.entropy.joint(z, self.prior)
        if gauge < views:
            entropy = entropy - (views - gauge) * self._marginal(z)
        return entropy

    def _marginal(self, z: Tensor, given_first: bool = False) -> Tensor | float:
        """The estimate of H[z] of one view, of a later one if they are in order."""
        if not (given_first and self.prior.ordered):
            found = self.entropy(z, self.prior)
        elif isinstance(self.entropy, Entropy):
            found = self.entropy.following(z, self.prior)
        else:
            found = self.entropy(z[:, 1:], self.prior)
        if not isinstance(found, Tensor | float | int):
            raise TypeError(
                "expected entropy(z, prior) to return a scalar tensor, got "
                f"{type(found).__name__}; return the estimate of H[z]"
            )
        return found

    def alignment(self, z: Float[Tensor, "batch view dim"]) -> Float[Tensor, ""]:
        """The mean log-density of views that share their content, in nats."""
        if not self.plug_in:
            return self.prior.balanced(z).mean()
        pairs = self.prior.log_kernel(z, z, plug_in=True)
        if self.prior.ordered:
            return pairs.diagonal(1, -2, -1).mean()
        return over_pairs(pairs).mean()

    def _draw(self) -> tuple[dict[str, Tensor], Tensor | float]:
        """Hyper-parameters from their guides, and log p − log q of them per item."""
        if self._given is not None:  # by `model`, which has sites for them
            return self._given, 0.0
        drawn: dict[str, Tensor] = {}
        total: Tensor | float = 0.0
        for h in self.prior.random():
            q = h.posterior()
            drawn[h.name] = value = q.rsample()
            total = total + h.value.log_prob(value) - q.log_prob(value)
        if drawn:
            total = total / known_population(self.population)
        return drawn, total

    @in_float32
    def model(self, batch: Batch, size: int | None = None) -> None:
        r"""The pseudo-posterior of the hyper-parameters, for Pyro's tools.

        The value of an item is that of a call of the objective, an overridden `value`
        or `forward` included. ``MCMC(NUTS(objective.model))`` takes the batch as the
        whole data set; or give `size`, the number of items of which it is a part.
        """
        register("objective", self)
        items, _ = batch.shape
        size = items if size is None else whole("size", size, items)
        drawn = self.prior.sample_hyper()
        self._given = drawn
        try:
            with self.prior.at(**drawn):
                value = torch.as_tensor(sum(check_terms(self(batch))))
        finally:
            del self._given
        pyro.factor("items", size * value)

    def guide(self, batch: Batch, size: int | None = None) -> None:
        """q of the hyper-parameters, log-normal or logit-normal each."""
        register("objective", self)
        for h in self.prior.random():
            h.sample_guide()


def over_pairs(pairs: Float[Tensor, "*batch view view"]) -> Float[Tensor, "*batch"]:
    """Return the mean over the ordered pairs of different views."""
    views = pairs.shape[-1]
    itself = torch.eye(views, dtype=torch.bool, device=pairs.device)
    total = pairs.masked_fill(itself, 0.0).sum((-2, -1))
    return total / (views * (views - 1))


def _check_no_groups(prior: Prior) -> None:
    """Raise a TypeError for a prior that takes covariates."""
    if isinstance(prior, Grouped):
        raise TypeError(
            "expected a prior without groups, got Grouped, which only a ps.Joint gives "
            "the groups of its items; fit ps.limits.SimVAE, or take the prior within"
        )


def check_exchangeable(prior: Prior) -> None:
    """Raise a TypeError for a prior of views in order, or one that takes covariates."""
    _check_no_groups(prior)
    if prior.ordered:
        raise TypeError(
            "expected a prior whose views are exchangeable, for an objective that "
            f"pairs views both ways, got {type(prior).__name__}, of views in order; "
            "take ps.limits.Embedding(encoder, prior, entropy, plug_in=True)"
        )


def check_not_random(prior: Prior) -> None:
    """Raise an error if a hyper-parameter is random: it would have no posterior."""
    check_exchangeable(prior)
    for hyper in prior.random():
        raise ValueError(
            f"expected {hyper.name} as a number or ps.learned(number), got "
            f"{hyper.value}; for a posterior of it use SimCLR"
        )
