r"""The joint distribution of views, latents and content, as a Pyro model and guide.

.. math:: p(x_1, \dots, x_V) = \int \prod_v p(x_v \mid z_v) \, p(z_1, \dots, z_V) \, dz,
    \qquad p(z_1, \dots, z_V) = \int p(y) \prod_v p(z_v \mid y) \, dy

The views x of an item share the content y; z_v is the latent of view v.

References:
    A Probabilistic Model behind Self-Supervised Learning (Bizeul et al., 2024)
    https://arxiv.org/abs/2402.01399
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from html import escape
from typing import Any, TypeGuard, cast, overload

import pyro
import torch
from jaxtyping import Bool, Float, Int
from pyro.distributions import TorchDistribution
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.params import param_with_module_name
from pyro.params.param_store import StateDict
from pyro.poutine.runtime import _PYRO_STACK
from torch import Size, Tensor, nn
from torch.distributions import Independent, constraints
from torch.utils._pytree import tree_map_only

from . import consistency
from .arguments import Parted, whole
from .covariates import (
    Covariates,
    Named,
    declares,
    given,
    missing,
    of_modalities,
    of_views,
)
from .distributions.mixture import CoupledComponents, SharedComponent
from .distributions.supports import has_density_of, of_pyro
from .guides import DiagonalGaussian
from .guides.views import Views
from .hyper import Positive, check_declared
from .likelihoods import Likelihood
from .likelihoods.base import check_output, shape_error
from .nn import PerModality
from .nn.base import called, network, output_error, takes, unmoved
from .nn.network import (
    CHECKED,
    asks,
    check_items_apart,
    check_width,
    each_view,
    given_views,
    known_dim,
    nets_of,
    present_only,
)
from .priors import Grouped, Mixture, Prior
from .runtime.buffers import register_unknown
from .runtime.precision import in_float32, lowered
from .runtime.randomness import restored_randomness
from .runtime.validation import unvalidated
from .terms import Batch, check_batch

__all__ = ["Joint", "Likelihoods", "given_z", "knows_component", "mean_of"]
__all__ += ["register", "sampled", "shape_error"]

LEAST_ACTIVE = 0.01  # of the prior's variance


class Likelihoods(nn.ModuleList):
    """One likelihood per modality: the density of all modalities together."""

    @property
    def measure(self) -> str:
        """The measure of the density of all modalities, a product."""
        return " × ".join(str(part.measure) for part in self)

    @property
    def pseudo(self) -> bool:
        """Whether one of them is only a pseudo-likelihood."""
        return any(bool(part.pseudo) for part in self)


class Joint(Parted):
    r"""The joint distribution of views that share a content y: a VAE of several views.

    ======================  =============================================
    p(h) = the prior's own  random hyper-parameters, outside the plate
    p(k) = the prior's own  "component", where some are observed: `Batch.content`
    p(z) = `prior`          z_1..V of each item, event shape (view, dim)
    p(x|z) = `likelihood`   of the decoder's output, for each view: the site "x"; with
                            several modalities "x_0", "x_1" and so on
    q(z|x) = `guide`        of the encoder's output
    q(y|z) = `content`      of z_1..V, if y is a site of the model
    ======================  =============================================

    `model` and `guide` are methods of a plain module, which Pyro's tools take:
    ``SVI(joint.model, joint.guide, …)``, ``poutine.trace(joint.model)``,
    ``Predictive``, ``MCMC(NUTS(joint.model))``, ``pyro.render_model``. Items are
    independent in one plate, "item", and their log-densities are added up.

    Several modalities have a likelihood, an encoder and a decoder each; `Batch.views`
    is then a tuple of tensors (batch, view, \*event), and z_1..V has the views of all
    modalities, concatenated. Where each modality has a single view, one tensor with a
    view per modality is accepted. Items that are stacks of views, (view, \*event) where
    \*event is the shape of p(x|z) for a decoder with an `event_shape`, are these views.
    Absent views, marked in `Batch.present`, may hold any values.

    **Covariates** c, such as the library size or the batch of a cell, are observed data
    that p(x|z, c) and q(z|x, c) are conditional on: `Batch.covariates`, by name. The
    encoder, decoder, likelihood or guide whose `forward` has an argument `covariates`
    gets a dictionary of them; other parts do not. Networks get a row for each of their
    n rows, (n,) or (n, k); a likelihood gets the axes (\*batch, view) of the decoder's
    output in their place. Of priors `priors.Grouped` alone takes some, the groups.

    Arguments:
        prior: p(z_1..V), with its hyper-parameters.
        likelihood: p(x_v | z_v) from the decoder's output; or a tuple of these.
        encoder: A module (n, \*event) -> (n, dim), the location of q(z|x); for several
            modalities an `nn.PerModality` of these.
        decoder: A module (n, dim) -> (n, \*event); or an `nn.PerModality` of these.
        guide: The class of the guide, such as `guides.DiagonalGaussian`,
            `guides.Coupled` or `guides.Point`; or a function of the encoder, which
            returns a guide: a module with the attribute `encoder`. An argument `dim` is
            given the dimension of the prior.
        content: A guide :math:`q(y \mid z_1, \dots, z_V)`, such as `guides.Content`: a
            module (\*batch, view, dim) -> distribution of y. Then y is a variable of
            the model, and the lower bound :math:`E_q[\log p(y) + \sum_v \log p(z_v
            \mid y) - \log q(y \mid z)]` replaces :math:`\log p(z_1, \dots, z_V)`: for
            priors whose integral over y is not known. By default the prior integrates
            y out.

    Raises:
        ValueError: If the dimensions of prior and encoder differ, the spaces of prior
            and guide, or the numbers of likelihoods, encoders and decoders.
        TypeError: If `guide` is itself a guide, or gives a module without `encoder`; if
            `content` is given and the prior has no p(z|y) of its own; if a `content`,
            or another prior than `priors.Grouped`, takes covariates.
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
        guide: Callable[..., nn.Module] = DiagonalGaussian,
        content: nn.Module | None = None,
    ) -> None:
        super().__init__()
        network("encoder", encoder, covariates=True)
        network("decoder", decoder, covariates=True)
        dim = known_dim(encoder) or prior.dim
        if prior.dim is None or dim != prior.dim:
            raise ValueError(
                f"expected prior and encoder of one dimension, got dim={prior.dim} and "
                f"dim={dim}; build both with the same dim"
            )
        for net in nets_of(decoder):
            check_width("decoder", net, dim)
        self.prior, self.decoder = prior, decoder
        self.several = not isinstance(likelihood, Likelihood)
        self.likelihood = (
            likelihood
            if isinstance(likelihood, Likelihood)
            else Likelihoods(likelihood)
        )
        many = len(self.sites) if self.several else None
        consistency.check_networks(many, decoder=decoder, encoder=encoder)
        for net, part in zip(nets_of(decoder), self.likelihoods, strict=True):
            check_output(part, net)
        self.posterior = consistency.guide_of(guide, encoder, dim)
        self.content = content
        consistency.check_covariates(prior, self.posterior, content)
        self._conditional = self._found_conditional()
        # Errors now rather than later.
        with torch.no_grad(), restored_randomness(), unmoved(self):
            consistency.check_guide(self.posterior, prior, lambda: prior(2))
            if content is not None:
                consistency.check_content_guide(content, prior)
            self._event = self._found_event()
        # The number of items in the data set, by which global sites are weighted.
        register_unknown(self, "population")
        check_declared(self)

    @property
    def encoder(self) -> nn.Module:
        encoder = self.posterior.encoder
        assert isinstance(encoder, nn.Module)
        return encoder

    @property
    def sites(self) -> tuple[str, ...]:
        """The names of the observed sites, one for each modality."""
        many = range(len(self.likelihoods))
        return tuple(f"x_{i}" for i in many) if self.several else ("x",)

    @property
    def likelihoods(self) -> tuple[Likelihood, ...]:
        """The likelihood of each modality."""
        each = self.likelihood if self.several else (self.likelihood,)
        return tuple(cast(Iterable[Likelihood], each))

    @property
    def conditional(self) -> tuple[str, ...]:
        """The parts that take covariates: guide (or its encoder), decoder, ….

        Their signatures are read when the joint is built, and by `check`.
        """
        return self._conditional

    def _found_conditional(self) -> tuple[str, ...]:
        found = {
            "guide": consistency.takes_covariates(self.posterior),
            "decoder": asks(self.decoder),
            "likelihood": any(map(declares, self.likelihoods)),
            "prior": declares(self.prior),
        }
        return tuple(name for name, takes in found.items() if takes)

    # The model and its guide

    @in_float32
    def model(self, batch: Batch, size: int | None = None) -> None:
        """p(h), p(z_1..V | h), p(x_v | z_v).

        Arguments:
            size: The number N of items in the data set of which the batch is a part:
                the log-densities of its B items are multiplied by N / B, as in
                ``plate("item", N, subsample_size=B)``. None adds them up.
        """
        register("joint", self)
        batch = self.arranged(batch)
        items, views = batch.shape
        drawn = self.prior.sample_hyper()
        with _plate(items, batch, size):
            known = self._component(batch, drawn) | self._grouping(batch)
            z = pyro.sample("z", self._latents(views, drawn, known))
            for name, _, p, x, mask in self._sites(z, batch, batch.parts):
                p = p if mask is None else p.mask(mask)
                pyro.sample(name, p.to_event(1), obs=x)

    @in_float32
    def guide(self, batch: Batch, size: int | None = None) -> None:
        """q(h), q(z_1..V | x_1..V, h), and q(y | z_1..V) with an explicit content."""
        register("joint", self)
        if not isinstance(batch, Batch):
            check_batch(batch)
        drawn = {h.name: h.sample_guide() for h in self.prior.random()}
        with _plate(batch.shape[0], batch, size):
            z = pyro.sample("z", self.encode(batch, **drawn))
            if self.content is not None:
                pyro.sample("y", self.content(z))

    @in_float32
    def encode(self, batch: Batch, **drawn: Tensor) -> TorchDistribution:
        """Return q(z_1..V | x_1..V, h), event shape (view, dim).

        Arguments:
            drawn: Values of random hyper-parameters; others have the median of their
                guide.
        """
        batch = self.arranged(batch)
        x = batch.parts if self.several else batch.stacked
        return self._encoded(x, batch, drawn)

    def _encoded(
        self, x: Views, batch: Batch, drawn: dict[str, Tensor]
    ) -> TorchDistribution:
        views = x.shape[1] if isinstance(x, Tensor) else batch.shape[1]
        known = self._observed(batch) | self._grouping(batch)
        prior = partial(self.prior, views, **drawn, **known)
        if "guide" not in self._conditional:
            return self.posterior(x, prior, batch.present)
        if batch.covariates is None:
            net = next(filter(declares, nets_of(self.encoder)), self.posterior)
            raise missing(f"q(z|x) of {type(net).__name__}")
        return self.posterior(x, prior, batch.present, covariates=batch.covariates)

    @overload
    def decode(
        self, z: Tensor, covariates: Covariates | None = None
    ) -> TorchDistribution: ...

    @overload
    def decode(
        self, z: Sequence[Tensor], covariates: Covariates | None = None
    ) -> tuple[TorchDistribution, ...]: ...

    @in_float32
    def decode(
        self, z: Tensor | Sequence[Tensor], covariates: Covariates | None = None
    ) -> TorchDistribution | tuple[TorchDistribution, ...]:
        """Return p(x_v | z_v), batch shape (\\*batch, view), event shape that of x.

        Arguments:
            z: Shape (\\*batch, view, dim); for several modalities a tuple of such
                tensors, as in `Batch.views`, which gives a tuple of distributions.
            covariates: Those of the items, as `Batch.covariates`, for parts that take
                them.

        Raises:
            ValueError: If z is a tensor for several modalities, or a tuple for one; if
                decoder or likelihood take covariates, and there are none, or of other
                items or views.
        """
        if isinstance(z, Tensor) == self.several:
            raise ValueError(
                f"expected z as {len(self.sites)} tensors, one for each modality, got "
                "one tensor; split it: joint.decode(z.split(1, -2))"
                if self.several
                else f"expected z as one tensor for one modality, got {len(z)} of them"
            )
        parts = (z,) if isinstance(z, Tensor) else z
        found = self._decoded(parts, covariates=covariates)
        return found[0] if isinstance(z, Tensor) else found

    def _given_z(
        self,
        z: Sequence[Tensor],
        masks: Sequence[Tensor | None] | None = None,
        covariates: Covariates | None = None,
    ) -> tuple[TorchDistribution, ...]:
        """As `_decoded`; of a subclass with its own `decode` what that returns."""
        if type(self).decode is Joint.decode and "decode" not in vars(self):
            return self._decoded(z, masks, covariates)
        apart = self._conditional in ((), ("guide",))
        own = given(None if apart else covariates)
        takes("decode", self.decode, z, **own)
        return (
            tuple(self.decode(z, **own))
            if self.several
            else (self.decode(z[0], **own),)
        )

    def _decoded(
        self,
        z: Sequence[Tensor],
        masks: Sequence[Tensor | None] | None = None,
        covariates: Covariates | None = None,
    ) -> tuple[TorchDistribution, ...]:
        """p(x_v | z_v) of each modality; the masks say which x_v are present."""
        found, nets = [], nets_of(self.decoder)
        masks = [None] * len(z) if masks is None else masks
        leads = [part.shape[:-1] for part in z]
        known: list[Any] = [None] * len(leads)
        if "decoder" in self._conditional:
            if covariates is None:
                part = next(filter(declares, nets))
                raise missing(f"the decoder {type(part).__name__}")
            known = given_views(nets, covariates, leads)
        for net, likelihood, part, mask, own, named in zip(
            nets,
            self.likelihoods,
            z,
            masks,
            known,
            self._of_likelihoods(covariates, leads),
            strict=True,
        ):
            flat, lead = part.flatten(0, -2), part.shape[:-1]
            if mask is None:
                bound = None if own is None else partial(net, covariates=own)
                output = lowered(called, net, flat, bound)
            else:
                rows = mask.expand(lead).flatten()
                call = partial(called if own is None else _called_with, net)
                output = lowered(present_only, net, flat, rows, call, own)
            tensor = isinstance(output, Tensor) and output.is_floating_point()
            if not tensor or output.shape[:1] != flat.shape[:1]:
                raise output_error(net, flat, output, "*event")
            output = output.view(lead + output.shape[1:])
            found.append(given_z(likelihood, output, lead, named))
        return tuple(found)

    def _of_likelihoods(
        self, covariates: Covariates | None, leads: Sequence[Size]
    ) -> list[Covariates | None]:
        """The covariates that the likelihood of each modality gets, if it takes any."""
        if "likelihood" not in self._conditional:
            return [None] * len(leads)
        asking = [*map(declares, self.likelihoods)]
        if covariates is None:
            part = self.likelihoods[asking.index(True)]
            raise missing(f"the likelihood {type(part).__name__}")
        each = of_modalities(covariates, [lead[-1] for lead in leads])
        return [
            of_views(known, lead) if known is not None and takes else None
            for known, lead, takes in zip(each, leads, asking, strict=True)
        ]

    def arranged(self, batch: Batch) -> Batch:
        """The batch with one tensor of views per modality, if there are several.

        Items (view, \\*event), for a decoder of that event shape, become their views.

        Raises:
            ValueError: If the numbers of modalities and likelihoods differ.
        """
        if not isinstance(batch, Batch):
            check_batch(batch)
        if not self.several:
            if self._event[0] != getattr(self.decoder, "event_shape", None):
                with torch.no_grad(), restored_randomness():
                    self._event = self._found_event()  # of a decoder set afterwards
            return _unstacked(batch, self._event[1])
        views, modalities = batch.views, len(self.sites)
        if isinstance(views, Tensor) and views.shape[1] == modalities:
            return batch._replace(views=views.split(1, 1))
        if isinstance(views, Tensor) or len(views) != modalities:
            found = tuple(views.shape) if isinstance(views, Tensor) else len(views)
            raise ValueError(
                f"expected the views of {modalities} modalities, got {found}; give "
                "Batch.views as a tuple of so many tensors (batch, view, *event)"
            )
        return batch

    def _found_event(self) -> tuple[Any, tuple[int, ...] | None]:
        """The `event_shape` of the decoder, if any, and the shape of one view."""
        if self.several:
            return None, None
        shape = getattr(self.decoder, "event_shape", None)
        return shape, _event(self.likelihoods[0], self.decoder)

    def _sites(
        self, z: Tensor, batch: Batch, parts: Sequence[Tensor]
    ) -> list[consistency.Site]:
        """p(x_v | z_v) of each modality, with its views."""
        split = z.split(batch.widths, -2) if self.several else (z,)
        masks = self._masks(batch)
        decoded = self._given_z(split, masks, batch.covariates)
        each = zip(self.sites, self.likelihoods, decoded, parts, masks, strict=True)
        return [consistency.Site(*site) for site in each]

    def _masks(self, batch: Batch) -> tuple[Bool[Tensor, "batch view"] | None, ...]:
        """The mask of present views of each modality; None means all."""
        if batch.present is None:
            return (None,) * len(self.likelihoods)
        return tuple(batch.present.split(batch.widths, 1))

    def _component(self, batch: Batch, drawn: dict[str, Tensor]) -> dict[str, Tensor]:
        """Sample p(k | h) where k is observed; return what p(z_1..V) is given."""
        observed = self._observed(batch)
        for name, k in observed.items():
            known = k >= 0
            with self.prior.at(**drawn):
                prior = self.prior.component().mask(known)
            k = pyro.sample(name, prior, obs=k.clamp(min=0))
            observed[name] = k.where(known, -1)
        return observed

    def _observed(self, batch: Batch) -> dict[str, Tensor]:
        if batch.content is None:
            return {}
        self.prior.component()  # an error if the prior has no components
        return {"component": batch.content}

    def _grouping(self, batch: Batch) -> dict[str, Any]:
        """The covariates, for a prior that takes them: it names what is missing."""
        if "prior" not in self._conditional:
            return {}
        return {"covariates": Named(batch.covariates or {})}

    def _latents(
        self, views: int, drawn: dict[str, Tensor], known: dict[str, Any]
    ) -> TorchDistribution:
        """p(z_1..V | h, k); with an explicit content y a site and p(z_1..V | y, h)."""
        if self.content is None:
            return self.prior(views, **drawn, **known)
        y = pyro.sample("y", self.prior.content(**drawn, **known))
        lifted = {h.name: h.lifted(drawn[h.name]) for h in self.prior.random()}
        each = self.prior.given(y.unsqueeze(-2), **lifted)
        return each.expand(y.shape[:-1] + (views,)).to_event(1)

    # Representations

    @in_float32
    def represent(
        self,
        x: Tensor | tuple[Tensor, ...],
        layer: str = "backbone",
        covariates: Covariates | None = None,
    ) -> Tensor:
        """The posterior mean of q(z|x), each item encoded alone: (n, dim).

        For several modalities, a tuple of tensors (n, \\*event), the mean over them.
        There is no projection head: `layer` changes nothing. Random hyper-parameters
        have the median of their guide.
        """
        return mean_of(self.alone(x, **given(covariates))).mean(1)

    def pooled(self, batch: Batch) -> Float[Tensor, "batch dim"]:
        """The posterior mean of q(z_1..V | x_1..V), averaged over present views."""
        mean = mean_of(self.encode(batch))
        if batch.present is None:
            return mean.mean(1)
        present = batch.present.unsqueeze(-1)
        return mean.where(present, 0.0).sum(1) / present.sum(1)

    def alone(
        self, x: Tensor | tuple[Tensor, ...], covariates: Covariates | None = None
    ) -> TorchDistribution:
        """Return q(z|x) of items with a single view of each modality."""
        views: Views = (
            x.unsqueeze(1)
            if isinstance(x, Tensor)
            else tuple(part.unsqueeze(1) for part in x)
        )
        return self.encode(Batch(views, covariates=covariates))

    def draw(self, batch: Batch, draws: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Draw h from its guide, and z from q(z_1..V | x_1..V, h).

        Returns z, (draw, item, view, dim), and the random hyper-parameters h by name,
        each with the axes (draw, 1) before its own.
        """
        q, drawn = self._over_hypers(batch, draws)
        return sampled(q, draws), drawn

    def _over_hypers(
        self, batch: Batch, draws: int
    ) -> tuple[TorchDistribution, dict[str, Tensor]]:
        """q(z|x, h) at so many draws of random hyper-parameters h, and these."""
        drawn = {h.name: h.draw((draws, 1)) for h in self.prior.random()}
        return self.encode(batch, **drawn), drawn

    def responsibilities(
        self, batch: Batch, draws: int = 16
    ) -> Float[Tensor, "batch component"]:
        r"""Classify items by their guide: :math:`E_{q(z, h \mid x)}[p(k \mid z, h)]`.

        That is :math:`p(k \mid x_1, \dots, x_V)` where q is the posterior of z and of
        the random hyper-parameters h. `Batch.content` is ignored. It is a mean over so
        many draws; under the guide `Coupled` q(k|x, h) takes the place of draws of z.

        Raises:
            ValueError: If the prior has no components.
        """
        self.prior.component()
        batch = batch._replace(content=None)
        q, drawn = self._over_hypers(batch, draws)
        p = self.prior(batch.shape[1], **drawn)
        if knows_component(q, self.prior) and _of_prior(q, p):
            exact: Tensor = q.component.probs
            return exact.mean(0) if drawn else exact
        z = sampled(q, draws)
        share = self.prior.responsibilities(z, batch.present, **drawn)
        return share.probs.mean(0)

    def check(self, batch: Batch) -> None:
        """Raise a ValueError if views, contents or draws of a guide leave a support.

        Raises:
            ValueError: If a part takes covariates that the batch does not have, if
                there is one view and a flat p(y), if the prior's parameters
                give no density or no integral over y, if the views contain NaN
                or values outside the likelihood's support, if an observed content is no
                component of the prior, if draws of a guide, of z or of y, are off the
                support of the prior, if p(x|z) has another shape than the views, if
                absent views or other items change what networks make of present views,
                or if a part has a site of its own: `pyro.sample`, or a `pyro.param`
                outside its modules.
        """
        check_declared(self)
        consistency.check_covariates(self.prior, self.posterior, self.content)
        self._conditional = self._found_conditional()  # of parts set afterwards
        batch = self.arranged(batch)
        if batch.content is not None:
            consistency.check_content(self.prior, batch.content, batch.shape[0])
        parts = batch.parts if self.several else (batch.stacked,)
        for likelihood, x, mask in zip(
            self.likelihoods, parts, self._masks(batch), strict=True
        ):
            if mask is None or bool(mask.any()):
                likelihood.check(x if mask is None else x[mask])
        device = parts[0].device
        forked = [device] if device.type == "cuda" else []
        with (
            torch.no_grad(),
            restored_randomness(forked),
            unmoved(self),
            consistency.without_sites(self),
        ):
            self.prior.check()
            if isinstance(self.prior, Grouped):
                self.prior.check_covariates(batch.covariates or {})
            p = self.prior(batch.shape[1])
            consistency.check_hypers(self.prior, batch.shape[1])
            if batch.present is not None:
                consistency.check_absent(self.prior, p)
            q = self.encode(batch)
            shape = (batch.shape[0], *p.event_shape)
            sites = partial(self._sites, batch=batch, parts=parts)
            present = batch.present
            consistency.check_posterior(self.posterior, q, shape, sites, present)
            z = consistency.drawn(self.posterior, q, self.prior, p, present)
            consistency.check_log_prob(self.prior, p, z)
            consistency.check_sites(sites(z))
            if self.content is not None:
                consistency.check_content_support(self.prior)
                consistency.drawn(self.content, self.content(z), self.prior)
            consistency.check_apart(self, batch, forked, self._of_present)
            some = Batch(
                batch.views, present=batch.present, covariates=batch.covariates
            )
            some = tree_map_only(Tensor, lambda x: x[:CHECKED], some)
            few = partial(self._sites, batch=some, parts=some.parts)
            z = z[:CHECKED]
            twice = partial(self._given_z, covariates=_twice(some))
            consistency.check_views(self, z, few, twice, forked)
        self._check_encoder_apart(parts, batch.covariates)

    def _check_encoder_apart(
        self, parts: tuple[Tensor, ...], covariates: Covariates | None
    ) -> None:
        """Raise a ValueError if the encoder's output for an item depends on others."""
        known = covariates if asks(self.encoder) else None

        def encoded(views: tuple[tuple[Tensor, ...], Any]) -> Tensor:
            x, own = views
            return each_view(self.encoder, x if self.several else x[0], covariates=own)

        check_items_apart(self, encoded, (parts, known))

    def _of_present(
        self, batch: Batch, parts: tuple[Tensor, ...], turned: bool
    ) -> list[Tensor]:
        """log q(z|x), log p(x|z) of present views; absent z of others where `turned`.

        For the same z: the random numbers that a draw takes may depend on all views.
        """
        z, present = self.encode(batch).sample(), cast(Tensor, batch.present)
        q = self._encoded(parts if self.several else parts[0], batch, {})
        found, present = [q.log_prob(z)], present.unsqueeze(-1)
        z = z.where(present, z.flip(0)) if turned else z
        sites = self._sites(z, batch, parts)
        return found + [site.p.log_prob(site.x)[site.mask] for site in sites]

    def remark_on(self, batch: Batch) -> str | None:
        r"""Say how many dimensions of z are inactive; None where all are active.

        A dimension is inactive where :math:`\mathrm{Var}_x E_q[z_d \mid x]`, over the
        items of the batch, is below 1 % of the variance of the prior: q(z|x) ignores x.
        Not said for a z that is no vector, or has a prior or guide without moments.
        """
        if self.prior.space != "vectors" or batch.shape[0] < 2:
            return None
        try:
            mean = self.pooled(batch._replace(content=None))
            spread = self.prior(1).variance.squeeze(-2).expand(mean.shape[1:])
        except (NotImplementedError, ValueError):
            return None
        active = mean.var(0) >= LEAST_ACTIVE * spread
        many, dim = int((~active).sum()), len(active)
        if not many:
            return None
        return (
            f"{many} of {dim} dimensions of z are inactive: q(z|x) is about the same "
            f"for all x (Var E[z|x] below {LEAST_ACTIVE:.0%} of the prior's variance); "
            "ps.posterior.rate_distortion gives the KL of each"
        )

    def check_content(self, content: Int[Tensor, " item"]) -> None:
        """Raise a ValueError if an observed content is no component of the prior."""
        consistency.check_content(self.prior, content, len(content))

    # What a notebook shows

    def __repr__(self) -> str:
        rows = [f"  {part}: {what}, {n:,} parameters" for part, what, n in self._rows()]
        return "\n".join(["Joint(", *rows, ")"])

    def _repr_html_(self) -> str:
        rows = [*self._rows(), ("total", "", _size(self))]
        head = "<tr><th>part</th><th>module</th><th>parameters</th></tr>"
        body = [
            f"<tr><th>{part}</th><td>{escape(what)}</td><td>{number:,}</td></tr>"
            for part, what, number in rows
        ]
        return f"<table>{head}{''.join(body)}</table>"

    def _rows(self) -> list[tuple[str, str, int]]:
        """Name, description and number of parameters of each part."""
        names = ("prior", "likelihood", "encoder", "decoder")
        parts = {name: getattr(self, name) for name in names} | {
            "guide": self.posterior
        }
        if self.content is not None:
            parts["content"] = self.content
        sizes = {name: _size(part) for name, part in parts.items()}
        sizes["guide"] -= sizes["encoder"]  # only the guide's own heads
        return [(name, _in_a_line(part), sizes[name]) for name, part in parts.items()]


def register(name: str, module: nn.Module) -> None:
    """Make parameters known to a tool that collects them, such as `pyro.infer.SVI`.

    As `pyro.module`, for the trainable parameters and only where a handler asks for
    parameters alone: training by `fit` leaves the store empty. The store holds the
    parameters themselves, under names such as ``joint$$$prior.scale.log``.

    Raises:
        ValueError: If the store has another parameter of that name.
    """
    if not any(getattr(handler, "param_only", False) for handler in _PYRO_STACK):
        return
    store = pyro.get_param_store()
    for key, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        full = param_with_module_name(name, key)
        if full not in store:  # not store[full] = …, which copies some
            real: StateDict = {
                "params": {full: parameter},
                "constraints": {full: constraints.real},
            }
            store.set_state(real)
        if pyro.param(full) is not parameter:
            raise ValueError(
                f"expected {full!r} in Pyro's parameter store to be the parameter of "
                f"this {type(module).__name__}, got that of another; call "
                "pyro.clear_param_store() before training a new one"
            )


def mean_of(q: TorchDistribution) -> Tensor:
    """Return the mean of q(z|x).

    Raises:
        ValueError: If it has none in closed form.
    """
    try:
        mean: Tensor = q.mean
    except NotImplementedError:
        inner: Any = q
        while isinstance(inner, Independent):
            inner = inner.base_dist
        raise ValueError(
            "expected q(z|x) with a mean, the representation, got "
            f"{type(inner).__name__} without; give its class a property mean, or draw "
            "from it: ps.to_arviz(…), complete(…, draws=…)"
        ) from None
    return mean


def knows_component(q: TorchDistribution, prior: Prior) -> TypeGuard[CoupledComponents]:
    """Whether q(k) of q(z|x) is that of classes: its components are those of p(k)."""
    return (
        type(prior).responsibilities is Mixture.responsibilities
        and has_density_of(q, CoupledComponents)
        and q.logits.shape[-1] == prior.component().logits.shape[-1]
    )


def _of_prior(q: CoupledComponents, p: TorchDistribution) -> bool:
    """Whether the components in q(z|x) are those of p(z), not of a guide's own."""
    return isinstance(p, SharedComponent) and torch.equal(q.prior.loc, p.loc)


def sampled(q: TorchDistribution, draws: int) -> Tensor:
    """Draws (draw, item, …) of a q of batch shape (item,), or that of each draw."""
    z: Tensor = q.sample((draws,) if len(q.batch_shape) == 1 else ())
    return z


def _plate(items: int, batch: Batch, size: int | None) -> pyro.plate:
    """The plate of the items of a batch, or of a data set of which it is a part."""
    if size is None:
        return pyro.plate("item", items, dim=-1)
    size = whole("size", size, items, hint="the number of items in the data set")
    rows = torch.arange(items) if batch.index is None else batch.index
    plate = pyro.plate("item", size, subsample=rows, dim=-1)
    if not torch.equal(plate.indices, rows):
        raise ValueError(
            "expected a guide on the items of the batch, got one that draws items of "
            "its own; give the autoguide create_plates=lambda batch, size: "
            'pyro.plate("item", size, subsample=batch.index, dim=-1)'
        )
    return plate


def _event(likelihood: nn.Module, decoder: nn.Module) -> tuple[int, ...] | None:
    """The shape of one view, if the decoder says that of its output.

    A likelihood may give x further axes, such as repeated measurements.
    """
    shape = getattr(decoder, "event_shape", None)
    if not isinstance(shape, tuple):
        return None
    if declares(likelihood):  # whose shape is that of the output, as usual
        return shape
    like = next(decoder.parameters(), torch.empty(0))
    # Where any numbers are no output that it takes, its views have that shape.
    with unvalidated(), suppress(RuntimeError, TypeError, ValueError):
        output = torch.randn(2, 3, *shape, dtype=like.dtype, device=like.device)
        return tuple(given_z(likelihood, output, output.shape[:2]).event_shape)
    return shape


def _unstacked(batch: Batch, event: tuple[int, ...] | None) -> Batch:
    """The batch, in which items that are stacks of views are these views."""
    x = batch.views
    if not isinstance(x, Tensor) or x.shape[1] != 1 or batch.present is not None:
        return batch
    return batch._replace(views=x.squeeze(1)) if x.shape[3:] == event else batch


def _called_with(
    net: nn.Module, x: Tensor, covariates: Covariates | None = None
) -> Any:
    return called(net, x, partial(net, covariates=covariates))


def _twice(batch: Batch) -> Covariates | None:
    """The covariates of a batch in which each modality has its views twice."""
    if batch.covariates is None:
        return None
    found = {}
    for name, x in batch.covariates.items():
        if x.ndim == 3:
            each = [torch.cat([part, part], 1) for part in x.split(batch.widths, 1)]
            x = torch.cat(each, 1)
        found[name] = x
    return found


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _in_a_line(module: nn.Module) -> str:
    """The class of a module, with its dimension and hyper-parameters."""
    if isinstance(module, PerModality | nn.ModuleList):
        parts = module.parts if isinstance(module, PerModality) else module
        return " × ".join(map(_in_a_line, parts))
    shown = [" ".join(module.extra_repr().split())] if module.extra_repr() else []
    if isinstance(module, Prior):
        shown = [f"dim={module.dim}", *shown]
    shown += [h.extra_repr() for h in module.children() if isinstance(h, Positive)]
    return f"{type(module).__name__}({', '.join(shown)})"


def given_z(
    likelihood: nn.Module,
    output: Tensor,
    lead: Size,
    covariates: Covariates | None = None,
) -> TorchDistribution:
    r"""Return p(x|z) for a decoder's output: batch shape `lead`, event shape that of x.

    Arguments:
        covariates: Those of a likelihood that takes them, each with the axes `lead`.

    Raises:
        TypeError: If the likelihood returns no distribution of Pyro.
        ValueError: If the distribution does not begin with the axes `lead`.
    """
    named = {} if covariates is None else {"covariates": covariates}
    p, axes = likelihood(output, **named), len(lead)
    name = type(likelihood).__name__
    if not isinstance(p, TorchDistributionMixin):
        p = of_pyro(f"the output of {name}", p)  # raises its error
    if p.batch_shape[:axes] != lead:
        raise ValueError(
            f"expected {name} to return a distribution whose batch shape begins with "
            f"{tuple(lead)}, the axes of items and views, got batch shape "
            f"{tuple(p.batch_shape)} and event shape {tuple(p.event_shape)} for a "
            f"decoder's output of shape {tuple(output.shape)}; count axes from the "
            "last, and keep those in front"
        )
    distribution: TorchDistribution = p.to_event(len(p.batch_shape) - axes)
    return distribution
