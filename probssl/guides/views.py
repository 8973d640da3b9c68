r"""Guides of z (amortised posteriors, encoders): :math:`q(z_1, \dots, z_V \mid x)`."""

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from inspect import signature
from typing import Any

import torch
from jaxtyping import Float
from pyro.distributions import Delta, MultivariateNormal, Normal, TorchDistribution
from torch import Size, Tensor, nn
from torch.distributions import constraints
from torch.nn.functional import normalize, softplus

from ..arguments import Parted
from ..covariates import Covariates
from ..distributions._base import Present, Shape
from ..distributions.gaussian import OneFactorNormal
from ..distributions.sphere import PowerSpherical as PowerSphericalDensity
from ..nn import PerModality, each_view
from ..nn.base import (
    called_plainly,
    features_checked,
    features_of,
    features_width,
    recorded,
    with_features,
)
from ..nn.network import given_views, known_dim, masks_of, nets_of, present_only
from ..runtime.precision import lowered
from ..runtime.randomness import same_randomness

__all__ = [
    "Completed",
    "Coupled",
    "CoupledLikelihoods",
    "DiagonalGaussian",
    "Factors",
    "FullGaussian",
    "GaussianFactors",
    "Guide",
    "Point",
    "PowerSpherical",
    "PriorOf",
    "Views",
    "of_views",
]

CHUNKS, CHUNK = 50, 20  # draws of present views, for the mean of absent ones
FLOOR = 1e-4  # the least standard deviation: no log-density is infinite

PriorOf = Callable[..., Any]  # a distribution of the views, as `Prior` returns
# (batch, view, *event), or one such tensor for each modality
Views = Float[Tensor, "batch view ..."] | tuple[Tensor, ...]


class Factors(nn.Module):
    r"""Location and raw spread of each view: the two heads of a Gaussian encoder.

    .. math:: m(x_v) = \text{encoder}(x_v), \qquad s(x_v) = A \, f(x_v) + b

    The features f(x) are ``encoder.features(x)`` where the encoder has this method and
    its number of features, `width`; else f(x) = encoder(x). The head A, b is made here,
    and always on top of the encoder's public methods: overridden methods, hooks and
    compiled encoders count. One pass gives both where the encoder's `forward` calls
    `features` once; otherwise the features cost a second pass, which leaves buffers as
    they are and draws random numbers, such as those of dropout, of its own.

    Arguments:
        encoder: A module (n, \*event) -> (n, dim); or an `nn.PerModality` of these.
        spread: The number of raw spreads of a view, a function of dim.
        dim: The dimension of z, for encoders without the attribute `dim`. A `Joint`
            gives that of its prior.

    Raises:
        ValueError: If dim is not known; when called, if the encoder returns another
            shape than (n, dim).
    """

    def __init__(
        self, encoder: nn.Module, spread: Callable[[int], int], dim: int | None = None
    ) -> None:
        super().__init__()
        found = known_dim(encoder) if dim is None else dim
        if found is None:
            raise ValueError(
                "expected an encoder with the attribute dim, the dimension of z, got "
                f"{type(encoder).__name__}; set encoder.dim = …, or give the guide "
                "dim=…, as a Joint does"
            )
        self.encoder, self.dim = encoder, found
        widths = [features_width(net) or found for net in nets_of(encoder)]
        heads = [nn.Linear(width, spread(found)) for width in widths]
        several = isinstance(encoder, PerModality)
        self.spread: nn.Module = nn.ModuleList(heads) if several else heads[0]

    @property
    def raw(self) -> bool:
        """Whether the spread is raw: of a subclass with its own `forward` it is not."""
        return type(self).forward is Factors.forward

    def forward(
        self, x: Views, present: Present = None, covariates: Covariates | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return location and raw spread, (batch, view, dim) and (batch, view, size).

        The views of several modalities are concatenated.
        """
        return self._heads(x, present, covariates)

    def _heads(
        self, x: Views, present: Present, covariates: Covariates | None = None
    ) -> tuple[Tensor, Tensor]:
        """What `posterior.gaps` replaces by free numbers, also under a subclass."""
        parts = (x,) if isinstance(x, Tensor) else x
        masks = [None] * len(parts) if present is None else masks_of(parts, present)
        shapes = [part.shape[:2] for part in parts]
        known: list[Any] = [None] * len(parts)
        if covariates is not None:
            nets = nets_of(self.encoder)
            nets = nets * len(parts) if len(nets) < len(parts) else nets
            known = given_views(nets[: len(parts)], covariates, shapes)
        flat = [part.flatten(0, 1) for part in parts]
        both = lowered(self._flat, flat, masks, known)
        loc, raw = (
            [out.unflatten(0, shape) for out, shape in zip(outs, shapes, strict=True)]
            for outs in zip(*both, strict=True)
        )
        one = len(parts) == 1
        return (loc[0], raw[0]) if one else (torch.cat(loc, 1), torch.cat(raw, 1))

    def _flat(
        self,
        parts: list[Tensor],
        masks: list[Tensor | None],
        covariates: list[Any],
    ) -> list[tuple[Tensor, Tensor]]:
        """Location and raw spread of the flattened views of each modality."""
        whole, spread, nets = self.encoder, self.spread, nets_of(self.encoder)
        heads: list[Any] = (
            list(spread) if isinstance(spread, nn.ModuleList) else [spread]
        )
        if len(nets) < len(parts):  # one encoder for views of several sizes
            nets, heads = nets * len(parts), heads * len(parts)
        if isinstance(whole, PerModality) and not called_plainly(whole, PerModality):
            with ExitStack() as stack:
                seen = [stack.enter_context(recorded(net)) for net in nets]
                own = (covariates,) if any(c is not None for c in covariates) else ()
                encoded = [z.flatten(1) for z in whole(parts, *own)]
            each = zip(nets, parts, encoded, seen, covariates, strict=True)
            both = [(z, features_of(net, x, z, f, c)) for net, x, z, f, c in each]
        else:
            both = [
                with_features(net, x, known)
                if mask is None
                else present_only(net, x, mask, partial(with_features, net), known)
                for net, x, mask, known in zip(
                    nets, parts, masks, covariates, strict=True
                )
            ]
        for net, head, x, (loc, f) in zip(nets, heads, parts, both, strict=True):
            if loc.shape[1:] != (self.dim,):
                raise ValueError(
                    f"expected the encoder to return locations (n, {self.dim}), got "
                    f"{tuple(loc.shape)}; let it return z alone: the guide has a head "
                    "of its own for the spread"
                )
            if f.shape[1:] != (head.in_features,):
                features_checked(net, x, f, head.in_features)  # its error
            dtype = head.weight.dtype
            if f.dtype != dtype and not torch.is_autocast_enabled(f.device.type):
                raise ValueError(
                    f"expected {type(net).__name__} to return {dtype}, as the guide "
                    f"has, got {f.dtype}; end its forward with .to({dtype})"
                )
        return [(loc, head(f)) for (loc, f), head in zip(both, heads, strict=True)]


class GaussianFactors(Factors):
    r"""One normal factor :math:`N(z_v \mid m(x_v), r(x_v)^2)` for each view.

    Arguments:
        encoder: A module (n, \*event) -> (n, dim), or one for each modality; see
            `Factors`.
        floor: The least standard deviation, so that no log-density is infinite.
        dim: The dimension of z, for encoders without the attribute `dim`.
    """

    def __init__(
        self, encoder: nn.Module, floor: float = 1e-4, dim: int | None = None
    ) -> None:
        super().__init__(encoder, lambda dim: dim, dim)
        self.floor = floor

    def forward(
        self, x: Views, present: Present = None, covariates: Covariates | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return m and r, each with shape (batch, view, dim)."""
        loc, raw = super().forward(x, present, covariates)
        return loc, softplus(raw) + self.floor


class Guide(Parted):
    r"""A guide of z: called with views, prior and mask, it returns q(z_1..V | x_1..V).

    Arguments of `forward`:
        x: Shape (batch, view, \*event), or one such tensor for each modality.
        prior: The distribution of the views, ``prior(present=mask)``, which a guide may
            follow where a view is absent.
        present: Which views are present, bool (batch, view); None means all.
        covariates: Those of the items and views, for an encoder that takes them. A
            joint gives none to a guide whose `forward`, or `each`, does not take them.
    """

    factors: Factors

    @property
    def encoder(self) -> nn.Module:
        return self.factors.encoder

    def forward(
        self,
        x: Views,
        prior: PriorOf,
        present: Present = None,
        covariates: Covariates | None = None,
    ) -> TorchDistribution:
        known = signature(self.each).parameters
        named = given(covariates)
        if named and "covariates" not in known:
            raise TypeError(
                f"expected each(x, present, covariates) of {type(self).__name__}, "
                "whose encoder takes covariates, got one that does not; pass them on: "
                "self.factors(x, present, covariates)"
            )
        if present is not None and "present" in known:
            named["present"] = present
        return of_views(self.each(x, **named), prior, present)

    def each(
        self, x: Views, present: Present = None, covariates: Covariates | None = None
    ) -> TorchDistribution:
        """Return q(z_v | x_v) of independent views, batch (batch, view)."""
        raise NotImplementedError


class DiagonalGaussian(Guide):
    r"""Mean-field Gaussian, independent views and dimensions: SimVAE's and the VAE's.

    .. math:: q(z_1, \dots, z_V \mid x) = \prod_v N(z_v \mid m(x_v), r(x_v)^2)

    The posterior of views that share their content is not of this form, so the ELBO
    keeps a gap even with a perfect decoder; `Coupled` closes it. Absent views are drawn
    from the prior given the present ones, and then add nothing to the bound.
    """

    support = constraints.real_vector

    def __init__(self, encoder: nn.Module, *, dim: int | None = None) -> None:
        super().__init__()
        self.factors = GaussianFactors(encoder, dim=dim)

    def each(
        self, x: Views, present: Present = None, covariates: Covariates | None = None
    ) -> TorchDistribution:
        loc, scale = self.factors(x, present, **given(covariates))
        return Normal(loc, scale, validate_args=False).to_event(1)


class FullGaussian(Guide):
    r"""Independent views, each a normal with a full covariance over its dimensions.

    .. math:: q(z_1, \dots, z_V \mid x) = \prod_v N(z_v \mid m(x_v), L(x_v) L(x_v)^\top)

    The guide's head gives the lower triangle of L, d (d + 1) / 2 numbers, the diagonal
    first, whose elements are at least `floor`.
    """

    support = constraints.real_vector

    def __init__(
        self, encoder: nn.Module, floor: float = 1e-4, *, dim: int | None = None
    ) -> None:
        super().__init__()
        self.factors = Factors(encoder, lambda dim: dim * (dim + 1) // 2, dim)
        self.floor = floor

    def each(
        self, x: Views, present: Present = None, covariates: Covariates | None = None
    ) -> TorchDistribution:
        loc, raw = self.factors(x, present, **given(covariates))
        dim = loc.shape[-1]
        diagonal = softplus(raw[..., :dim]) + self.floor
        below = torch.tril_indices(dim, dim, -1, device=loc.device)
        tril = diagonal.diag_embed()
        tril[..., below[0], below[1]] = raw[..., dim:]
        return MultivariateNormal(loc, scale_tril=tril, validate_args=False)


class Coupled(Guide):
    r"""Structured posterior: the prior times the views' own posteriors, normalised.

    .. math:: q(z_1, \dots, z_V \mid x) \propto p(z_1, \dots, z_V)
        \prod_v \frac{q(z_v \mid x_v)}{p(z_v)}, \qquad
        q(z_v \mid x_v) = N(m_v, s_v^2)

    This is Bayes' rule for views that are independent given z: with the true
    :math:`p(z_v \mid x_v)` it is the true posterior. It is in closed form, for any
    subset of the views, under `priors.Gaussian`, `ContentStyle`, `Independent`,
    `Sequence`, `Mixture` and `TwoTier`, and the exact posterior where the likelihood is
    a normal function of z.

    The encoder gives :math:`q(z_v \mid x_v)` in units of the prior. With :math:`\mu`
    and :math:`\nu` the mean and standard deviation of :math:`p(z_v)`,

    .. math:: m_v = \mu + \nu \, \text{encoder}(x_v), \qquad
        s_v = \nu \, \mathrm{sigmoid}(A \, f(x_v) + b) \ge 10^{-4} \nu.

    Each view then multiplies the prior by :math:`e^{\eta z - \lambda z^2 / 2}`, with
    :math:`\lambda = s_v^{-2} - \nu^{-2} \ge 0` and :math:`\eta = m_v s_v^{-2} - \mu
    \nu^{-2}`: q can be normalised, and the ELBO is a bound, for all values of the
    encoder. Under a Gaussian prior q of a single view is :math:`N(m_v, s_v^2)`; its
    mean moves with the encoder at the same rate however wide q is, which it does not in
    `CoupledLikelihoods`.

    Under a mixture, :math:`p(z_v)` here is the normal with its mean and variance, over
    all components even where one is known. The component is summed out, and samples
    carry the exact gradient; see `distributions.NormalMixture`. Under a flat p(y),
    whose views have no scale of their own, this is `CoupledLikelihoods`.

    Arguments:
        encoder: A module (n, \*event) -> (n, dim), or one for each modality; see
            `Factors`.
        dim: The dimension of z, for encoders without the attribute `dim`.

    Raises:
        ValueError: When called under another prior: the product of `StudentT`,
            `Spherical` or `Custom` with normal factors has no closed form.
        TypeError: When called, if a subclass has a method `each`.
    """

    support = constraints.real_vector

    def __init__(self, encoder: nn.Module, *, dim: int | None = None) -> None:
        super().__init__()
        # Not `factors`, whose weights, as saved by 0.1.0, have another meaning.
        self.single = Factors(encoder, lambda dim: dim, dim)

    @property
    def encoder(self) -> nn.Module:
        return self.single.encoder

    def forward(
        self,
        x: Views,
        prior: PriorOf,
        present: Present = None,
        covariates: Covariates | None = None,
    ) -> TorchDistribution:
        joint = _closed(prior, self)
        loc, raw = self.single(x, present, **given(covariates))
        if isinstance(joint, OneFactorNormal) and joint.flat:
            return joint.times(loc, softplus(raw) + FLOOR, present)
        known = "component" in getattr(prior, "keywords", ())
        one = (prior(component=None) if known else joint).matched()
        share = FLOOR + (1 - FLOOR) * raw.sigmoid()
        return joint.times(
            one.loc + one.scale * loc, one.scale * share, present, over=one
        )


class CoupledLikelihoods(Guide):
    r"""Structured posterior: the prior times one normal factor per view, normalised.

    .. math:: q(z_1, \dots, z_V \mid x) \propto
        p(z_1, \dots, z_V) \prod_v N(z_v \mid m(x_v), r(x_v)^2)

    The same family as `Coupled`, by another parametrisation: the encoder gives the
    likelihood :math:`p(x_v \mid z_v)` as a normal function of z, which does not depend
    on the prior. Take it where that function is known, as for linear decoders, and the
    scales of the prior are inferred. With a decoder that is learned take `Coupled`:
    here the mean of q moves by :math:`\nu^2 / (\nu^2 + r^2)` with m, where
    :math:`\nu^2` is the variance of :math:`p(z_v)`, so that a wide factor hardly
    learns, and training leaves dimensions unused (``models/scale_of_views.py``).

    Folders in which an earlier version saved `Coupled` load as this class.

    Raises:
        ValueError: When called under another prior than `Coupled` takes.
    """

    support = constraints.real_vector

    def __init__(self, encoder: nn.Module, *, dim: int | None = None) -> None:
        super().__init__()
        self.factors = GaussianFactors(encoder, dim=dim)

    def forward(
        self,
        x: Views,
        prior: PriorOf,
        present: Present = None,
        covariates: Covariates | None = None,
    ) -> TorchDistribution:
        joint = _closed(prior, self)
        loc, scale = self.factors(x, present, **given(covariates))
        return joint.times(loc, scale, present)


def _closed(prior: PriorOf, guide: Guide) -> Any:
    """The distribution of the views, if its product with normal factors is closed."""
    if type(guide).each is not Guide.each:
        name = type(guide).__name__
        raise TypeError(
            f"expected a guide that couples views, got {name} with a method each for "
            "independent ones, which it never calls; derive it from guides.Guide, or "
            "override forward"
        )
    joint = prior()
    # `times` is that of the density, not of a base class with another one.
    own = [vars(kind) for kind in type(joint).__mro__]
    own = [methods for methods in own if methods.keys() & {"times", "log_prob"}]
    if not own or "times" not in own[0]:
        named = type(getattr(prior, "func", joint)).__name__  # a `Prior` and its views
        raise ValueError(
            "expected a prior whose product with normal factors is closed for the "
            f"guide {type(guide).__name__} (Gaussian, Independent, Sequence, Mixture "
            f"or TwoTier; StudentT, Spherical and Custom have none), got {named}; use "
            "DiagonalGaussian, or on the sphere guides.PowerSpherical"
        )
    return joint


class PowerSpherical(Guide):
    r"""Independent views, each power-spherical: the guide for `priors.Spherical`.

    .. math:: q(z_1, \dots, z_V \mid x) \propto \prod_v (1 + m(x_v)^\top z_v)^{c(x_v)}

    The encoder's output is normalised to the mean direction m; the guide's head gives
    the concentration c. Unlike von Mises-Fisher it is reparameterised. Absent views are
    drawn from the prior given the present ones. No gradient passes through these draws,
    and none is lost: the bound does not depend on them, for

    .. math:: \log p(z_1, \dots, z_V) - \log p(z_\text{absent} \mid z_\text{present})
        = \log p(z_\text{present}).

    Arguments:
        encoder: A module (n, \*event) -> (n, dim); see `Factors`.
        floor: The least concentration.
        dim: The dimension of z, for encoders without the attribute `dim`.

    References:
        The Power Spherical distribution (De Cao and Aziz, 2020)
        https://arxiv.org/abs/2006.04437

    Raises:
        ValueError: If dim is less than 2 or the shapes do not broadcast; with
            validation, if loc is not of length 1 or the concentration is negative.
    """

    support = PowerSphericalDensity.support

    def __init__(
        self, encoder: nn.Module, floor: float = 1e-2, *, dim: int | None = None
    ) -> None:
        super().__init__()
        self.factors, self.floor = Factors(encoder, lambda dim: 1, dim), floor

    def each(
        self, x: Views, present: Present = None, covariates: Covariates | None = None
    ) -> TorchDistribution:
        loc, raw = self.factors(x, present, **given(covariates))
        direction = normalize(loc, dim=-1)
        concentration = softplus(raw.squeeze(-1)) + self.floor
        return PowerSphericalDensity(direction, concentration, validate_args=False)


class Point(nn.Module):
    r"""Point mass at the encoder's output, as an autoencoder's; no entropy.

    Arguments:
        encoder: A module (n, \*event) -> (n, dim).

    Raises:
        ValueError: When called with a mask of absent views.
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(
        self,
        x: Views,
        prior: PriorOf,
        present: Present = None,
        covariates: Covariates | None = None,
    ) -> TorchDistribution:
        if present is not None:
            raise ValueError(
                "expected all views to be present for the guide Point, got a mask; "
                "use DiagonalGaussian or Coupled, which follow the prior where a view "
                "is absent"
            )
        z = each_view(self.encoder, x, **given(covariates))
        return Delta(z, event_dim=2, validate_args=False)


def given(covariates: Covariates | None) -> dict[str, Any]:
    """The argument `covariates` of a call, where there are some."""
    return {} if covariates is None else {"covariates": covariates}


def of_views(
    each: TorchDistribution, prior: PriorOf, present: Present
) -> TorchDistribution:
    """Join independent views; absent ones follow the prior given the present ones."""
    return each.to_event(1) if present is None else Completed(each, prior, present)


class Completed(TorchDistribution):
    r"""Present views from their own q, absent ones from the prior given them.

    .. math:: q(z) = \prod_{\text{present}} q(z_v \mid x_v) \;
        p(z_\text{absent} \mid z_\text{present})
    """

    arg_constraints = {}

    def __init__(
        self, each: TorchDistribution, prior: PriorOf, present: Tensor
    ) -> None:
        self.each, self.prior, self.present = each, prior, present
        shape = each.batch_shape[-1:] + each.event_shape
        super().__init__(each.batch_shape[:-1], shape, validate_args=False)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        return bool(self.each.has_rsample)

    @property
    def support(self) -> constraints.Constraint:
        return constraints.independent(self.each.support, 1)

    @property
    def mean(self) -> Tensor:
        """The mean; of absent views over 1,000 draws from a fixed seed.

        Where it is linear in the present views, as under normals, it is exact.
        """
        own, prior = self.each.mean, self.prior()
        if getattr(prior, "linear", False):
            return prior.complete_mean(own, self.present)
        draw = self.each.rsample if self.has_rsample else self.each.sample
        total = torch.zeros_like(own)
        with same_randomness(0, own.device):
            for _ in range(CHUNKS):
                drawn = prior.complete_mean(draw((CHUNK,)), self.present)
                total = total + drawn.mean(0) / CHUNKS
        return torch.where(self.present.unsqueeze(-1), own, total)

    def sample(self, sample_shape: Shape = ()) -> Tensor:
        with torch.no_grad():
            return self.prior().complete(self.each.sample(sample_shape), self.present)

    def rsample(self, sample_shape: Shape = ()) -> Tensor:
        return self.prior().complete(self.each.rsample(sample_shape), self.present)

    def log_prob(self, value: Tensor) -> Tensor:
        absent = self.prior().log_prob(value)
        absent = absent - self.prior(present=self.present).log_prob(value)
        # Not a product with the mask: q of an absent view may be zero at its draw.
        return self.each.log_prob(value).where(self.present, 0.0).sum(-1) + absent

    def expand(
        self, batch_shape: Shape, _instance: "Completed | None" = None
    ) -> "Completed":
        views = Size(batch_shape) + self.event_shape[:1]
        each, present = self.each.expand(views), self.present.expand(views)
        return Completed(each, self.prior, present)
