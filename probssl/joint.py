"""The joint distribution as a module with a Pyro model and its guide."""

from collections.abc import Callable, Sequence
from functools import partial
from inspect import signature
from typing import Any, cast, overload

import pyro
import torch
from jaxtyping import Bool, Float
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from .guides import DiagonalGaussian
from .likelihoods import Likelihood
from .nn import PerModality
from .priors import Prior
from .runtime.precision import in_float32, lowered
from .terms import Batch

__all__ = [
    "Joint",
    "Likelihoods",
    "arranged",
    "check_content",
    "check_networks",
    "check_support",
    "decoded",
    "seen",
]


class Likelihoods(nn.ModuleList):
    """A likelihood for each modality: a density of all of them together."""

    @property
    def measure(self) -> str:
        """What the density of all modalities is a density of."""
        return " × ".join(str(part.measure) for part in self)

    @property
    def pseudo(self) -> bool:
        """Whether one of them is only a pseudo-likelihood."""
        return any(bool(part.pseudo) for part in self)


def arranged(batch: Batch, modalities: int) -> Batch:
    """The batch with its views in a tuple of so many; see `Joint.arranged`."""
    views = batch.views
    if isinstance(views, Tensor) and views.shape[1] == modalities:
        return batch._replace(views=views.split(1, 1))
    if isinstance(views, Tensor) or len(views) != modalities:
        found = tuple(views.shape) if isinstance(views, Tensor) else len(views)
        raise ValueError(
            f"expected the views of {modalities} modalities, got {found}; give "
            "Batch.views as a tuple of so many tensors (batch, view, *event)"
        )
    return batch


def seen(batch: Batch) -> tuple[Bool[Tensor, "batch view"] | None, ...]:
    """Which views of each modality are present; None means all of them."""
    if batch.present is None:
        return (None,) * len(batch.widths)
    return tuple(batch.present.split(batch.widths, 1))


def decoded(
    decoder: nn.Module, likelihoods: Sequence[Likelihood], z: Sequence[Tensor]
) -> tuple[TorchDistribution, ...]:
    """Return p(x_v | z_v) of each modality."""
    nets = decoder.parts if isinstance(decoder, PerModality) else (decoder,)
    found = []
    for net, likelihood, part in zip(nets, likelihoods, z, strict=True):
        output = lowered(net, part.flatten(0, -2))
        distribution = likelihood(output.view(part.shape[:-1] + output.shape[1:]))
        found.append(distribution.to_event(output.dim() - 1))
    return tuple(found)


class Joint(nn.Module):
    r"""Views of items that share a content y, which is integrated out, or explicit.

    ======================  =============================================
    p(h) = the prior's own  random hyper-parameters, outside the plate
    p(k) = the prior's own  "component", where some are observed: `Batch.content`
    p(z) = `prior`          z_1..V of each item, event shape (view, dim)
    p(x|z) = `likelihood`   of the decoder's output, for each view: the site "x"; with
                            several modalities "x_0", "x_1" and so on
    q(z|x) = `guide`        of the encoder's output
    q(y|z) = `content`      of z_1..V, if y is to be explicit
    ======================  =============================================

    It is a plain module with the methods `model` and `guide`, so Pyro's tools take it
    as it is: ``poutine.trace(joint.model)``, ``Predictive``,
    ``MCMC(NUTS(joint.model))``, ``pyro.render_model``. Items are independent in one
    plate, "item".

    Several modalities have a likelihood, an encoder and a decoder each; `Batch.views`
    is then a tuple of tensors (batch, view, \*event), and z_1..V has the views of all
    of them, one modality after the other. Where each has a single view, a tensor with a
    view for each modality will do. Views that are absent, marked in `Batch.present`,
    may hold anything.

    Arguments:
        prior: p(z_1..V), with its hyper-parameters.
        likelihood: p(x_v | z_v) from the decoder's output; or a tuple of these.
        encoder: A module (n, \*event) -> (n, dim); for several modalities an
            `nn.PerModality` of these.
        decoder: A module (n, dim) -> (n, \*event); or an `nn.PerModality` of these.
        guide: What makes the guide from the encoder, `guides.DiagonalGaussian`,
            `guides.Coupled` or `guides.Point`.
        content: A guide :math:`q(y \mid z_1, \dots, z_V)`, such as `guides.Content`: a
            module (\*batch, view, dim) -> distribution of y. Then y is a variable of
            the model, and :math:`E_q[\log p(y) + \sum_v \log p(z_v \mid y) - \log q(y
            \mid z)]` stands for :math:`\log p(z_1, \dots, z_V)`, which it is below:
            for priors whose integral over y is not known. By default the prior
            integrates it out.

    Raises:
        ValueError: If the dimensions of prior and encoder differ, or there are not as
            many decoders, or encoders, as likelihoods.
        TypeError: If y is to be explicit and the prior has no p(z|y) of its own.
    """

    prior: Prior
    likelihood: Likelihood | Likelihoods
    decoder: nn.Module
    posterior: nn.Module
    content: nn.Module | None
    population: Tensor | None

    def __init__(
        self,
        prior: Prior,
        likelihood: Likelihood | Sequence[Likelihood],
        encoder: nn.Module,
        decoder: nn.Module,
        *,
        guide: Callable[[nn.Module], nn.Module] = DiagonalGaussian,
        content: nn.Module | None = None,
    ) -> None:
        super().__init__()
        dim = getattr(encoder, "dim", None) or prior.dim
        if prior.dim is None or dim != prior.dim:
            raise ValueError(
                f"expected prior and encoder of one dimension, got dim={prior.dim} and "
                f"dim={dim}; build both with the same dim"
            )
        self.prior, self.decoder = prior, decoder
        self.several = not isinstance(likelihood, Likelihood)
        self.likelihood = (
            likelihood
            if isinstance(likelihood, Likelihood)
            else Likelihoods(likelihood)
        )
        for name, net in (("decoder", decoder), ("encoder", encoder)):
            check_networks(name, net, None if not self.several else len(self.sites))
        self.posterior, self.content = guide(encoder), content
        if content is not None:
            with torch.random.fork_rng(devices=[]):  # an error now rather than later
                prior.given(prior.content().sample())
        # The number of items in the data set, by which global sites are weighted.
        self.register_buffer("population", None)

    @property
    def encoder(self) -> nn.Module:
        encoder = self.posterior.encoder
        assert isinstance(encoder, nn.Module)
        return encoder

    @property
    def arguments(self) -> dict[str, object]:
        """What the constructor was called with, for `save`."""
        parts = ("prior", "likelihood", "encoder", "decoder", "content")
        return {part: getattr(self, part) for part in parts} | {
            "guide": _maker(self.posterior)
        }

    @property
    def sites(self) -> tuple[str, ...]:
        """The names of the observed views, one for each modality."""
        many = range(len(self.likelihoods))
        return tuple(f"x_{i}" for i in many) if self.several else ("x",)

    @property
    def likelihoods(self) -> tuple[Likelihood, ...]:
        """The likelihood of each modality."""
        found = self.likelihood
        each = (found,) if isinstance(found, Likelihood) else found
        return cast(tuple[Likelihood, ...], tuple(each))

    @in_float32
    def model(self, batch: Batch) -> None:
        """p(h), p(z_1..V | h), p(x_v | z_v)."""
        batch = self.arranged(batch)
        items, views = batch.shape
        drawn = {h.name: h.sample() for h in self.prior.random()}
        with pyro.plate("item", items, dim=-1):
            z = pyro.sample("z", self._latents(views, drawn, self._component(batch)))
            each = self._decoded(z.split(batch.widths, -2))
            for name, x, part, mask in zip(
                self.sites, each, batch.parts, seen(batch), strict=True
            ):
                x = x if mask is None else x.mask(mask)
                pyro.sample(name, x.to_event(1), obs=part)

    @in_float32
    def guide(self, batch: Batch) -> None:
        """q(h), q(z_1..V | x_1..V, h), and q(y | z_1..V) if y is explicit."""
        items, _ = batch.shape
        drawn = {h.name: h.sample_guide() for h in self.prior.random()}
        with pyro.plate("item", items, dim=-1):
            z = pyro.sample("z", self.encode(batch, **drawn))
            if self.content is not None:
                pyro.sample("y", self.content(z))

    @in_float32
    def encode(self, batch: Batch, **drawn: Tensor) -> TorchDistribution:
        """Return q(z_1..V | x_1..V), event shape (view, dim)."""
        batch = self.arranged(batch)
        prior = partial(self.prior, batch.shape[1], **drawn, **self._observed(batch))
        x = batch.parts if self.several else batch.stacked
        return self.posterior(x, prior, batch.present)

    @overload
    def decode(self, z: Tensor) -> TorchDistribution: ...

    @overload
    def decode(self, z: Sequence[Tensor]) -> tuple[TorchDistribution, ...]: ...

    @in_float32
    def decode(
        self, z: Tensor | Sequence[Tensor]
    ) -> TorchDistribution | tuple[TorchDistribution, ...]:
        """Return p(x_v | z_v), batch shape (\\*batch, view), event shape that of x.

        Arguments:
            z: Shape (\\*batch, view, dim); for several modalities a tuple of such
                tensors, as in `Batch.views`, for which there are so many distributions.

        Raises:
            ValueError: If it is a tensor for several modalities, or the other way.
        """
        if isinstance(z, Tensor) == self.several:
            raise ValueError(
                f"expected z as {len(self.sites)} tensors, one for each modality, got "
                "one tensor; split it: joint.decode(z.split(1, -2))"
                if self.several
                else f"expected z as one tensor for one modality, got {len(z)} of them"
            )
        return self._decoded((z,))[0] if isinstance(z, Tensor) else self._decoded(z)

    def _decoded(self, z: Sequence[Tensor]) -> tuple[TorchDistribution, ...]:
        return decoded(self.decoder, self.likelihoods, z)

    def arranged(self, batch: Batch) -> Batch:
        """The batch with its views in a tuple, if there are several modalities.

        Raises:
            ValueError: If there are not as many modalities as likelihoods.
        """
        return arranged(batch, len(self.sites)) if self.several else batch

    def _component(self, batch: Batch) -> dict[str, Tensor]:
        """p(k) where k is observed; what p(z_1..V) is to know of it."""
        observed = self._observed(batch)
        for name, k in observed.items():
            known = k >= 0
            prior = self.prior.component().mask(known)
            k = pyro.sample(name, prior, obs=k.clamp(min=0))
            observed[name] = k.where(known, -1)
        return observed

    def _observed(self, batch: Batch) -> dict[str, Tensor]:
        if batch.content is None:
            return {}
        self.prior.component()  # of a prior that has none this is an error
        return {"component": batch.content}

    def _latents(
        self, views: int, drawn: dict[str, Tensor], component: dict[str, Tensor]
    ) -> TorchDistribution:
        """p(z_1..V | h, k), or with an explicit y its site and p(z_1..V | y, h)."""
        if self.content is None:
            return self.prior(views, **drawn, **component)
        y = pyro.sample("y", self.prior.content(**drawn, **component))
        lifted = {h.name: h.lifted(drawn[h.name]) for h in self.prior.random()}
        each = self.prior.given(y.unsqueeze(-2), **lifted)
        return each.expand(y.shape[:-1] + (views,)).to_event(1)

    def responsibilities(
        self, batch: Batch, draws: int = 16
    ) -> Float[Tensor, "batch component"]:
        r"""Return :math:`p(k \mid x_1, \dots, x_V) = E_q[p(k \mid z_1, \dots, z_V)]`.

        It is how a mixture classifies items; what `Batch.content` says is not looked
        at. Under the guide `Coupled` it is exact, else a mean over so many draws.

        Raises:
            ValueError: If the prior has no components.
        """
        self.prior.component()
        q = self.encode(batch._replace(content=None))
        exact = getattr(q, "component", None)
        if exact is not None:
            return exact.probs
        z = q.sample((draws,))
        return self.prior.responsibilities(z, batch.present).probs.mean(0)

    @in_float32
    def represent(
        self, x: Tensor | tuple[Tensor, ...], layer: str = "backbone"
    ) -> Tensor:
        """The mean of q(z|x), each item seen alone; there is no projector.

        For several modalities, a tuple of tensors (n, \\*event), the mean over them.
        """
        return self.alone(x).mean.mean(1)

    def pooled(self, batch: Batch) -> Float[Tensor, "batch dim"]:
        """The mean of q(z_1..V | x_1..V), and over the views that are present."""
        mean = self.encode(batch).mean
        if batch.present is None:
            return mean.mean(1)
        weight = batch.present.unsqueeze(-1).to(mean.dtype)
        return (weight * mean).sum(1) / weight.sum(1)

    def alone(self, x: Tensor | tuple[Tensor, ...]) -> TorchDistribution:
        """Return q(z|x) of items with a single view of each modality."""
        if isinstance(x, Tensor):
            return self.encode(Batch(x.unsqueeze(1)))
        return self.encode(Batch(tuple(part.unsqueeze(1) for part in x)))

    def check(self, batch: Batch) -> None:
        """Raise an error if the batch cannot have come from the model.

        Raises:
            ValueError: If there is one view and a flat p(y), if the views are not what
                the likelihood is a density of, or hold NaN, if an observed content is
                no component of the prior, or if a guide, of z or of y, draws what the
                prior gives no density.
        """
        batch = self.arranged(batch)
        check_content(self.prior, batch)
        parts = batch.parts if self.several else (batch.stacked,)
        for likelihood, x, mask in zip(
            self.likelihoods, parts, seen(batch), strict=True
        ):
            if mask is None or bool(mask.any()):
                likelihood.check(x if mask is None else x[mask])
        support: Any = self.prior(batch.shape[1]).support
        device = parts[0].device
        forked = [device] if device.type == "cuda" else []
        with torch.no_grad(), torch.random.fork_rng(forked):  # a check changes nothing
            drawn = self.encode(batch).sample()
            check_support(self.posterior, self.prior, "p(z)", support.check(drawn))
            if self.content is not None:
                support = self.prior.content().support
                y = self.content(drawn).sample()
                check_support(self.content, self.prior, "p(y)", support.check(y))


def _maker(guide: nn.Module) -> Callable[[nn.Module], nn.Module]:
    """What makes such a guide from an encoder."""
    names = [name for name in signature(type(guide)).parameters if name != "encoder"]
    options = {name: getattr(guide, name) for name in names if hasattr(guide, name)}
    return partial(type(guide), **options) if options else type(guide)


def check_networks(name: str, net: nn.Module, modalities: int | None) -> None:
    """Raise an error if there is not one network for each modality; None means one."""
    found = len(net) if isinstance(net, PerModality) else None
    if found != modalities:
        raise ValueError(
            f"expected a likelihood and a {name} for each modality, got "
            f"{modalities or 1} and {found or 1}; give as many of both, for several "
            "likelihood=(a, b) and nn.PerModality([a, b]) for the networks"
        )


def check_content(prior: Prior, batch: Batch) -> None:
    """Raise an error if an observed content is no component of the prior."""
    if batch.content is None:
        return
    k, many = batch.content, prior.component().param_shape[-1]
    if k.shape != (batch.shape[0],) or k.is_floating_point() or k.is_complex():
        raise ValueError(
            f"expected content as {batch.shape[0]} whole numbers, got "
            f"{tuple(k.shape)} {k.dtype}; give one for each item, -1 if unknown"
        )
    if not bool(((k >= -1) & (k < many)).all()):
        raise ValueError(
            f"expected content from -1 (unknown) to {many - 1}, a component of "
            f"{type(prior).__name__}, got {int(k.min())} to {int(k.max())}; "
            "give the prior as many components as there are contents"
        )


def check_support(guide: nn.Module, prior: Prior, density: str, inside: Tensor) -> None:
    """Raise an error if draws of a guide are not all on the support of a density."""
    if not bool(inside.all()):
        raise ValueError(
            f"expected draws of {type(guide).__name__} on the support of {density} "
            f"of {type(prior).__name__}, got others; give the joint a guide "
            "for this prior, on the sphere guides.PowerSpherical or, for y, "
            "guides.SphericalContent"
        )
