"""The base class of priors over the views of an item, and parts that they share."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from jaxtyping import Float
from pyro.distributions import Categorical, TorchDistribution
from torch import Tensor

from ..arguments import Parted, whole
from ..distributions._base import Present, Vectors, Views
from ..distributions.gaussian import OneFactorNormal
from ..distributions.supports import space_of, support_of
from ..hyper import Latent, Learned, Positive
from ..runtime.threads import LOCK
from ..special import square_distances

__all__ = ["Drawn", "Pairs", "Points", "Present", "Prior", "Scale", "Vectors", "Views"]
__all__ += [
    "check_dim",
    "check_scales",
    "check_space",
    "content_scale",
    "log_normal",
    "one_factor",
]

DIM_HINT = "give the dimension of z, for instance dim=10"

Points = Float[Tensor, "*batch _ dim"]
Pairs = Float[Tensor, "*batch a b"]  # a value for each pair of points a and b
Drawn = dict[str, Tensor]  # values of random hyper-parameters, by name
Scale = float | Sequence[float] | Tensor | Learned | TorchDistribution | Positive


class Prior(Parted):
    r"""A prior :math:`p(z_1, \dots, z_V) = \int p(y) \prod_v p(z_v \mid y) \, dy`.

    One prior serves both worlds. Called, ``prior(views)`` returns the Pyro distribution
    of the views with the content y integrated out, event shape (view, dim): the
    alignment term of a generative model. `log_kernel` is the density of one view given
    another: the similarity of a contrastive objective.

    A prior of your own needs `dim` and `forward`; for objectives that plug one view in
    for the content, `log_kernel` as well; and for a `Joint` in which the content is a
    latent variable, `content` and `given`. Where views may be absent, the distribution
    that `forward` returns has `complete` and `complete_mean` too, ``(value, present) ->
    value`` with the absent views drawn given the present ones, or their mean. One on a
    sphere says so, ``space = "a sphere"``, and has the `gauge` V - 1 if one view alone
    is uniform. Random hyper-parameters in submodules count if `random` returns them.
    One of views in order, such as times, says so, ``ordered = True``: then `log_kernel`
    is the density of a view given the one before it.
    """

    dim: int | None
    content_dim: int | None = None  # of z: the first are the content's, the rest style
    ordered: bool = False  # whether the order of the views counts, as of times

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(self._shown())})"

    def _shown(self) -> list[str]:
        """Numbers, hyper-parameters and the classes of modules, for the `repr`."""
        numbers: dict[str, Any] = {
            n: v for n, v in vars(self).items() if isinstance(v, int | float)
        }
        shown = {n: v for n, v in numbers.items() if n[0] != "_" and n != "training"}
        for name, child in self.named_children():
            if isinstance(child, Positive):
                shown[child.name] = child.shown()
            else:
                shown[name] = type(child).__name__
        return [f"{name}={value}" for name, value in shown.items()]

    def forward(self, views: int, *, present: Present = None) -> TorchDistribution:
        """Return the distribution of the views, y integrated out.

        Arguments:
            views: The number of views.
            present: A mask of the present views; None means all.

        Priors take further keyword arguments where they apply: `dim`, the dimension of
        z, if built with ``dim=None``; and values of random hyper-parameters by name,
        whose shape becomes the batch shape.
        """
        raise NotImplementedError(f"{type(self).__name__} has no forward(views)")

    def check(self) -> None:
        """Raise an error if the present parameters give no density: `fit` calls it."""

    def log_prob(self, z: Views, present: Present = None) -> Float[Tensor, "*batch"]:
        r"""Return :math:`\log p(z_1, \dots, z_V)`, in nats per item."""
        return self.of(z, present).log_prob(z)

    def log_kernel(self, a: Points, b: Points, plug_in: bool = False) -> Pairs:
        r"""Return :math:`\log p(z' = b \mid z = a)`, normalised in b, for all pairs.

        With `plug_in`, :math:`\log p(z' = b \mid y = a)`.

        Raises:
            TypeError: With `plug_in`, if the prior has no kernel of its own.
        """
        if plug_in:
            raise TypeError(
                "expected a prior with p(z|y) for plug_in=True, got "
                f"{type(self).__name__} without a method log_kernel(a, b, plug_in); "
                "write one, or use an alignment and an entropy that do not plug in y"
            )
        pairs = torch.broadcast_tensors(a.unsqueeze(-2), b.unsqueeze(-3))
        marginal = self.log_prob(a.unsqueeze(-2)).unsqueeze(-1)
        return self.log_prob(torch.stack(pairs, -2)) - marginal

    def pmi(self, a: Points, b: Points) -> Pairs:
        r"""Return :math:`\log p(z', z) - \log p(z') p(z)` for all pairs, in nats.

        Raises:
            ValueError: If p(y) is flat: then one view alone has no density.
        """
        marginal = self.log_prob(b.unsqueeze(-2))
        return self.log_kernel(a, b) - marginal.unsqueeze(-2)

    def content(self, **drawn: Tensor) -> TorchDistribution:
        """Return p(y), event shape (dim,).

        Raises:
            TypeError: If the content is not a point in the space of z.
        """
        raise TypeError(_no_content(self, "content()"))

    def given(self, y: Vectors, **drawn: Tensor) -> TorchDistribution:
        """Return p(z|y), event shape (dim,); drawn values have the batch shape of y.

        Raises:
            TypeError: If views are not independent given a point in the space of z.
        """
        raise TypeError(_no_content(self, "given(y)"))

    def component(self) -> Categorical:
        """Return p(k), the weights of the components (clusters) of p(y).

        Raises:
            ValueError: If p(y) has no components.
        """
        raise ValueError(_no_components(self))

    def responsibilities(
        self, z: Views, present: Present = None, **given: Tensor
    ) -> Categorical:
        r"""Return the posterior of the component, :math:`p(k \mid z_1, \dots, z_V)`.

        Raises:
            ValueError: If p(y) has no components.
        """
        raise ValueError(_no_components(self))

    @contextmanager
    def at(self, **drawn: Tensor) -> Iterator["Prior"]:
        """A context in which random hyper-parameters have these values for all items.

        Example:
            >>> import pyro.distributions as dist
            >>> import probssl as ps
            >>> prior = ps.priors.Gaussian(2, scale=dist.LogNormal(0.0, 1.0))
            >>> with prior.at(scale=torch.tensor(0.5)):
            ...     log_kernel = prior.log_kernel(torch.zeros(3, 2), torch.ones(4, 2))
        """
        hypers = [h for h in self.random() if h.name in drawn]
        with LOCK if hypers else nullcontext():
            before = [h.drawn for h in hypers]
            try:
                for h in hypers:
                    h.drawn = drawn[h.name]
                yield self
            finally:
                for h, value in zip(hypers, before, strict=True):
                    h.drawn = value

    def on_support(self, z: Tensor) -> Tensor:
        """Map the output of an encoder to the support of z: here, the identity."""
        return z

    def centre(self, mean: Tensor) -> Tensor:
        """Map the mean of a q(z), on a sphere inside it, to the support: the identity.

        It is on the support where that is convex, and then not to be mapped again.
        """
        return mean

    def gauge(self, views: int) -> int:
        """Return how many entropies H[z] balance the log-density of the views.

        It is V for a proper p(y), V − 1 for a flat or uniform one.
        """
        return views if self.proper else views - 1

    def balanced(self, z: Views) -> Float[Tensor, "*batch"]:
        r"""Return the log-density that g entropies H[z] balance, in nats per item.

        With the `gauge` g it is that of all views for g = V, and that of the others
        given one for g = V − 1, where p(z_1) is constant: 1 under a flat p(y).

        .. math:: \log p(z_1, \dots, z_V) - (V - g) \log p(z_1)
        """
        value, views = self.log_prob(z), z.shape[-2]
        if self.proper and self.gauge(views) < views:
            return value - self.log_prob(z[..., :1, :])
        return value

    @property
    def proper(self) -> bool:
        """Whether p(y) is a density that integrates to one."""
        return True

    @property
    def space(self) -> str:
        """The space of z: "vectors", "a sphere" (density by area) or "a simplex"."""
        return "vectors"

    def random(self) -> Iterator[Latent]:
        """The hyper-parameters that are random variables, in the order of sampling."""
        return (h for h in self.children() if isinstance(h, Positive) and h.random)

    def sample_hyper(self) -> Drawn:
        """Sample the random hyper-parameters from their prior, as Pyro sites."""
        drawn: Drawn = {}
        for h in self.random():
            drawn[h.name] = h.sample(drawn)
        return drawn

    def of(
        self, z: Tensor, present: Tensor | None = None, **given: Tensor
    ) -> TorchDistribution:
        """Return the distribution of views shaped like z.

        Arguments:
            given: Drawn hyper-parameters, and known components, as for a call.

        Raises:
            ValueError: If z has no axes for views and dimensions, or another dimension
                than the prior, or if present is no mask of its views.
        """
        if z.ndim < 2:
            raise ValueError(
                f"expected z with shape (*batch, view, dim), got {tuple(z.shape)}; one "
                "view is z.unsqueeze(-2)"
            )
        if self.dim is not None and z.shape[-1] != self.dim:
            raise ValueError(
                f"expected z with dim {self.dim} as its last axis, got shape "
                f"{tuple(z.shape)}; build the prior with dim={z.shape[-1]} or the "
                f"encoder with {self.dim} outputs"
            )
        if present is not None and (
            present.dtype != torch.bool
            or present.shape[-1:] != z.shape[-2:-1]
            or any(
                len({1, a, b}) > 2
                for a, b in zip(present.shape[::-1], z.shape[-2::-1], strict=False)
            )
        ):
            raise ValueError(
                f"expected present as a mask of shape {tuple(z.shape[:-1])}, bool, got "
                f"{present.dtype} of shape {tuple(present.shape)}; write mask.bool()"
            )
        options: dict[str, Any] = {} if present is None else {"present": present}
        if self.dim is None:
            options["dim"] = z.shape[-1]
        return self(z.shape[-2], **options, **given)

    def known_dim(self) -> int:
        """The dimension of z.

        Raises:
            ValueError: If the prior was built with ``dim=None``.
        """
        if self.dim is None:
            raise ValueError(
                "expected a prior with a known dimension, got dim=None; build it with "
                "dim=… to sample from it or to use it in a Joint"
            )
        return self.dim


def _no_content(prior: Prior, method: str) -> str:
    return (
        f"expected a prior with p(y) and p(z|y), got {type(prior).__name__} without a "
        f"method {method}; integrate the content out: Joint(…, content=None)"
    )


def _no_components(prior: Prior) -> str:
    return (
        "expected a prior with components, which contents and classes are, got "
        f"{type(prior).__name__}; use priors.Mixture, priors.TwoTier, or for another "
        "p(z|k) priors.Custom with y_prior=dist.Categorical(…)"
    )


def check_dim(dim: int | None, least: int = 1) -> int | None:
    """Return a dimension of at least `least`, or None."""
    return None if dim is None else whole("dim", dim, least, hint=DIM_HINT)


def check_space(prior: Prior) -> None:
    """Raise an error for a prior on a sphere or a simplex whose `space` is another."""
    if prior.dim is None:
        return
    try:
        found = space_of(support_of(prior(2)))
    except (NotImplementedError, ValueError):
        return  # a density without a support
    if found in ("a sphere", "a simplex") and found != prior.space:
        raise ValueError(
            f"expected a prior with space = {found!r}, on which its density is, got "
            f"{type(prior).__name__} with {prior.space!r}; write that in the class"
        )


def content_scale(y_scale: Scale, dim: int | None = None) -> Positive | float:
    """Return the scale of the content; infinity, a flat p(y), stays a number."""
    if isinstance(y_scale, float) and y_scale == math.inf:
        return math.inf
    return Positive(y_scale, "y_scale", dim=dim)


def check_scales(scale: Positive, y_scale: Positive | float) -> None:
    """Check that rescaling z cannot trade one free scale for another."""
    if not scale.free:
        return
    if not isinstance(y_scale, Positive):
        raise ValueError(
            "expected a fixed scale with a flat p(y) (y_scale=math.inf), got "
            f"scale={scale.value!r}; under a flat p(y) a free scale has no optimum: "
            "fix the scale or give a finite y_scale"
        )
    if y_scale.free:
        raise ValueError(
            "expected at most one free scale, got both scale and y_scale learned or "
            "random; rescaling z trades one for the other: fix one of them"
        )


def log_normal(a: Points, b: Points, scale: Tensor) -> Pairs:
    r"""Return :math:`\log N(b_j \mid a_i, \text{scale}^2)`.

    Arguments:
        scale: Broadcastable to a and to b: one number, or one for each dimension.
    """
    square = square_distances(a / scale, b / scale)
    log_variance = 2 * scale.log().mean(-1, keepdim=True) + math.log(2 * math.pi)
    return -0.5 * (square + a.shape[-1] * log_variance)


def one_factor(
    shape: tuple[int, int], scale: Tensor, y_scale: Tensor, flat: bool, present: Present
) -> OneFactorNormal:
    """Return normal views around a normal content, or a flat one; shape (view, dim)."""
    if flat:
        hint = "under a flat p(y), y_scale=math.inf, one view has no density"
        whole("views", shape[0], 2, hint=hint)
    loc = scale.new_zeros(()).expand(shape)
    return OneFactorNormal(
        loc, scale, y_scale, flat=flat, present=present, validate_args=False
    )
