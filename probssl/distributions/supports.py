"""Supports of densities: their kind, their bijection from R^n, and finite ones."""

import copy
import math
from itertools import product
from typing import Any
from weakref import WeakKeyDictionary

import pyro.distributions as dist
import torch
from pyro.distributions import MaskedDistribution, TorchDistribution
from pyro.distributions.torch_distribution import (
    ExpandedDistribution,
    TorchDistributionMixin,
)
from torch import Tensor
from torch.distributions import (
    AffineTransform,
    Distribution,
    Independent,
    MixtureSameFamily,
    Transform,
    TransformedDistribution,
    VonMises,
    biject_to,
    constraints,
)
from torch.nn.functional import logsigmoid, pad

__all__ = [
    "MOST_STATES",
    "alike",
    "common_support",
    "dimensions",
    "ends_of",
    "from_real",
    "has_density_of",
    "has_jumps",
    "in_words",
    "is_point",
    "is_real",
    "is_sphere",
    "is_transformed",
    "narrower",
    "number_of",
    "of_pyro",
    "samples_of_states",
    "space_of",
    "states_of",
    "support_of",
    "values_of",
    "within",
]

_IMAGES: WeakKeyDictionary[Distribution, constraints.Constraint] = WeakKeyDictionary()
NEAR, JUMP = 1e-5, 1e-3  # of the spread of z, and of the density at its peak
MOST_STATES = 4096  # of a discrete content that is summed out


def support_of(distribution: Any) -> constraints.Constraint:
    """The support: of a mixture that of its components, of an angle (−π, π).

    Of a transformed distribution it is the image of its base's support; torch says the
    image of the whole domain of the last transform.

    Raises:
        ValueError: If the distribution does not say it.
    """
    if _supported_as(distribution, Independent):
        inner = support_of(distribution.base_dist)
        axes = distribution.reinterpreted_batch_ndims
        return constraints.independent(inner, axes) if axes else inner
    if isinstance(distribution, MaskedDistribution | ExpandedDistribution):
        return support_of(distribution.base_dist)
    if is_transformed(distribution):
        # Kept, since to compute it is to read numbers, which would stop a trace.
        if distribution not in _IMAGES:
            _IMAGES[distribution] = _of_transformed(distribution)
        return _IMAGES[distribution]
    if _supported_as(distribution, MixtureSameFamily):
        component = distribution.component_distribution
        return _hull(support_of(component), -1 - len(component.event_shape))
    if _supported_as(distribution, VonMises):
        return constraints.interval(-math.pi, math.pi)
    try:
        support: Any = distribution.support
    except NotImplementedError:
        support = None
    if support is None:
        raise ValueError(
            f"expected a distribution with a support, got {type(distribution).__name__}"
            " without; give the class one: support = constraints.real_vector"
        )
    return support


def has_density_of(distribution: Any, kind: type) -> bool:
    """Whether it is of a class of torch; no subclass with a density of its own."""
    return isinstance(distribution, kind) and (
        type(distribution).log_prob is kind.log_prob  # type: ignore[attr-defined]
    )


def _supported_as(distribution: Any, kind: Any) -> bool:
    """Whether it is of a class of torch, and has no support of its own."""
    return isinstance(distribution, kind) and not (
        "support" in vars(distribution)
        or getattr(type(distribution), "support", None) is not kind.support
    )


def common_support(
    distribution: Any, free: bool
) -> tuple[constraints.Constraint, bool]:
    """A support of all distributions of a batch, and whether theirs may differ.

    Where they do it is R^n.

    Arguments:
        free: Whether the ends may be learned.
    """
    support, event = support_of(distribution), distribution.event_shape
    if not any(isinstance(end, Tensor) for end in ends_of(support)):
        return support, False
    number, shape = copy.copy(number_of(support)), distribution.batch_shape + event
    real: Any = constraints.real
    for name in ("lower_bound", "upper_bound"):
        end = getattr(number, name, None)
        if isinstance(end, Tensor):
            rows = end.expand(shape).reshape(-1, *event)
            if free or bool((rows != rows[:1]).any()):
                number = real
                break
            same = bool((rows == rows.flatten()[0]).all())
            setattr(number, name, float(rows.flatten()[0]) if same else rows[0])
    whole: Any = constraints.independent(number, len(event)) if event else number
    return whole, True


@torch.no_grad()
def has_jumps(distribution: Any) -> bool:
    """Whether a density is not 0 just inside a finite end of its support."""
    z = distribution.sample()
    ends, far = ends_of(support_of(distribution)), z.std().clamp(min=1e-6)
    peak = distribution.log_prob(z).max()
    for end, side in zip(ends, (1.0, -1.0), strict=True):
        if end is not None:
            near = torch.as_tensor(end, dtype=z.dtype) + side * NEAR * far
            inside = distribution.log_prob(near.expand(z.shape))
            if bool((inside > peak + math.log(JUMP)).any()):
                return True
    return False


def is_transformed(distribution: Any) -> bool:
    """Whether its support is that which torch gives transformed distributions."""
    of_torch: Any = TransformedDistribution.support
    return getattr(type(distribution), "support", None) is of_torch


def _of_transformed(distribution: Any) -> constraints.Constraint:
    support: Any = support_of(distribution.base_dist)
    for transform in distribution.transforms:
        support = _image(support, transform)
    axes = len(distribution.event_shape) - support.event_dim
    return constraints.independent(support, axes) if axes > 0 else support


def _image(support: Any, transform: Transform) -> Any:
    """The image of a support under a transform."""
    number = number_of(support)
    ends, whole = ends_of(number), ends_of(transform.domain)
    if is_real(number) or str(number) == str(number_of(transform.domain)):
        return transform.codomain
    if None not in (*ends, *whole) and all(map(_equal, ends, whole)):
        return transform.codomain
    try:
        each = not transform.domain.event_dim or isinstance(transform, AffineTransform)
    except AssertionError:  # of torch, for several transforms side by side
        each = False
    if not (transform.bijective and each) or ends == [None, None]:
        raise ValueError(
            "expected a transformed distribution whose support is known, got "
            f"{type(transform).__name__} of {number}; write a subclass of "
            "TransformedDistribution with an attribute support = constraints.…"
        )
    infinite, dtype = (-math.inf, math.inf), torch.get_default_dtype()
    one, other = (
        transform(torch.as_tensor(default if end is None else end, dtype=dtype))
        for end, default in zip(ends, infinite, strict=True)
    )
    return _between(torch.minimum(one, other), torch.maximum(one, other))


def number_of(support: Any) -> Any:
    """The support of one number of a vector."""
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support


def ends_of(support: Any) -> list[Any]:
    """The ends of the support of a number, None where it has none."""
    number = number_of(support)
    return [getattr(number, f"{end}_bound", None) for end in ("lower", "upper")]


def _equal(one: Any, other: Any) -> bool:
    return bool((torch.as_tensor(one) == torch.as_tensor(other)).all())


def _between(low: Tensor, high: Tensor) -> Any:
    """The support of numbers between two ends, which may be infinite."""
    below, above = bool(low.isinf().all()), bool(high.isinf().all())
    if bool(low.isinf().any() != below) or bool(high.isinf().any() != above):
        raise ValueError(
            "expected numbers that are all bounded on the same sides, got some bounded "
            "below and others above; transform each in p(z|y), or flip their sign there"
        )
    if below and above:
        return constraints.real
    if above:
        return constraints.greater_than_eq(low)
    return constraints.less_than(high) if below else constraints.interval(low, high)


def within(distribution: Any, value: Tensor) -> Tensor:
    """Whether values are in the support, which may differ by the batch; of angles all.

    Raises:
        ValueError: As `support_of`.
    """
    if _supported_as(distribution, Independent):
        inside = within(distribution.base_dist, value)
        return _all(inside, distribution.reinterpreted_batch_ndims)
    if isinstance(distribution, MaskedDistribution | ExpandedDistribution):
        return within(distribution.base_dist, value)
    if _supported_as(distribution, MixtureSameFamily):
        parts = distribution.component_distribution
        return within(parts, value.unsqueeze(-1 - len(parts.event_shape))).any(-1)
    if not is_transformed(distribution):
        periodic = _supported_as(distribution, VonMises)
        support: Any = distribution.support if periodic else support_of(distribution)
        return torch.as_tensor(support.check(value))
    inside, axes = value.new_ones((), dtype=torch.bool), len(distribution.event_shape)
    for transform in reversed(distribution.transforms):
        each = axes - transform.codomain.event_dim  # axes that it treats apart
        inside = inside & _all(transform.codomain.check(value), each)
        value, axes = transform.inv(value), each + transform.domain.event_dim
    return inside & within(distribution.base_dist, value)


def _all(inside: Tensor, axes: int) -> Tensor:
    """Whether all are true along the last axes."""
    return inside.flatten(inside.ndim - axes).all(-1) if axes else inside


def _hull(support: constraints.Constraint, axis: int) -> constraints.Constraint:
    """The smallest interval that holds those of all components, along an axis."""
    if isinstance(support, constraints.independent):
        inner = _hull(support.base_constraint, axis)
        return constraints.independent(inner, support.reinterpreted_batch_ndims)
    hull = copy.copy(support)
    for name, end in (("lower_bound", Tensor.amin), ("upper_bound", Tensor.amax)):
        bound = getattr(hull, name, None)
        if isinstance(bound, Tensor) and bound.dim() >= -axis:
            setattr(hull, name, end(bound, axis))
    return hull


def of_pyro(name: str, value: Any) -> TorchDistribution:
    """Return a distribution of Pyro; raise a TypeError for what is none."""
    if isinstance(value, TorchDistributionMixin):
        distribution: TorchDistribution = value
        return distribution
    kind, own = type(value), "it from pyro.distributions, or inherit from its class "
    same = isinstance(value, Distribution) and hasattr(dist, kind.__name__)
    take = f"pyro.distributions.{kind.__name__}" if same else own + "TorchDistribution"
    raise TypeError(
        f"expected {name} as a distribution of Pyro, got {kind.__module__}."
        f"{kind.__qualname__}; take {take}"
    )


def is_point(distribution: Any) -> bool:
    """Whether it is a point mass, or made of one: it has no density."""
    if isinstance(distribution, dist.Delta):
        return True
    inner = vars(distribution).values()  # also those of an own class
    return any(is_point(part) for part in inner if isinstance(part, Distribution))


@torch.no_grad()
def narrower(q: Any, p: Any) -> tuple[str, str] | None:
    """The supports of q and p in words, where that of q is known to lack some of p's.

    None where it lacks none, or one of them is not known. Ends are compared, and other
    constraints at draws of p.
    """
    try:
        ours, theirs = support_of(q), support_of(p)
    except ValueError:
        return None
    if is_real(ours) or space_of(ours) != space_of(theirs):
        return None
    words = in_words(ours), in_words(theirs)
    ends, others = _numbered(ours), _numbered(theirs)
    for end, other, side in zip(ends, others, (1, -1), strict=True):
        if end is not None and (
            other is None or bool((side * (end - other) > _rounding(other)).any())
        ):
            return words
    bounded = any(end is not None for end in ends_of(ours))
    return None if bounded or bool(ours.check(p.sample((100,))).all()) else words


def _numbered(support: Any) -> list[Tensor | None]:
    """The ends of the support of a number; None where there is none, or infinity."""
    ends = (None if end is None else torch.as_tensor(end) for end in ends_of(support))
    return [None if end is None or bool(end.isinf().all()) else end for end in ends]


def _rounding(end: Tensor) -> Tensor:
    return 1e-5 * (1 + end.double().abs())


def is_sphere(support: constraints.Constraint) -> bool:
    """Whether it is a sphere, which no bijection from R^n reaches."""
    return type(number_of(support)).__name__.strip("_").lower() == "sphere"


def is_real(support: constraints.Constraint) -> bool:
    """Whether it is all of R^n."""
    # By its type: that of a mixture is a copy.
    return isinstance(number_of(support), type(constraints.real))


def space_of(support: constraints.Constraint) -> str:
    """The space with the measure of densities: vectors, a sphere, a simplex, …"""
    support = number_of(support)
    name = type(support).__name__.strip("_").lower()
    if name in ("sphere", "simplex"):
        return f"a {name}"
    return "discrete values" if support.is_discrete else "vectors"


def in_words(support: constraints.Constraint) -> str:
    """A support for messages: "numbers above 0", "whole numbers from 0 to 9", …"""
    support = number_of(support)
    if is_real(support):
        return "all numbers"
    kind = "whole numbers" if support.is_discrete else "numbers"
    low, high = ends_of(support)
    ends = [_shown(end) for end in (low, high) if end is not None]
    if low is not None and high is not None:
        return f"{kind} from {ends[0]} to {ends[1]}"
    if low is not None:
        closed = support.is_discrete or "Eq" in type(support).__name__
        return f"{kind} {'of at least' if closed else 'above'} {ends[0]}"
    return f"{kind} up to {ends[0]}" if high is not None else str(support)


def _shown(bound: Any) -> str:
    same = not isinstance(bound, Tensor) or bool((bound == bound.flatten()[0]).all())
    return f"{float(torch.as_tensor(bound).flatten()[0]):g}" if same else "a bound"


def alike(content: Distribution, views: Distribution) -> bool:
    """Whether points of `views` are in the support of `content`, as far as is known."""
    ours, theirs = support_of(content), support_of(views)
    same = is_real(ours) or str(ours) == str(theirs)
    return content.event_shape == views.event_shape and same


class _Only(TorchDistribution):
    """A distribution of event shape (1,) as that of the number, batch (\\*batch, 1)."""

    arg_constraints = {}

    def __init__(self, vector: Any) -> None:
        self.vector = vector
        batch = vector.batch_shape + vector.event_shape
        super().__init__(batch, validate_args=False)

    @property
    def support(self) -> Any:
        return number_of(support_of(self.vector))

    @property
    def mean(self) -> Tensor:
        mean: Tensor = self.vector.mean
        return mean

    @property
    def variance(self) -> Tensor:
        variance: Tensor = self.vector.variance
        return variance

    def log_prob(self, value: Tensor) -> Tensor:
        log_prob: Tensor = self.vector.log_prob(value)
        return log_prob.unsqueeze(-1)


def dimensions(distribution: Any) -> Any:
    """The distributions of the dimensions, batch (\\*batch, dim); None if dependent."""
    if has_density_of(distribution, Independent):
        axes, base = distribution.reinterpreted_batch_ndims, distribution.base_dist
        if axes == 1 and not base.event_shape:
            return base
    return _Only(distribution) if distribution.event_shape == (1,) else None


class _Simplex(Transform):
    """Stick-breaking, as of torch, with the digits of numbers near 0 and near 1."""

    domain, codomain, bijective = constraints.real_vector, constraints.simplex, True

    def _call(self, u: Tensor) -> Tensor:
        u = u - _log_rest(u)
        taken = torch.cat([logsigmoid(u), torch.zeros_like(u[..., :1])], -1)
        left = pad(logsigmoid(-u).cumsum(-1), (1, 0))
        return (taken + left).exp()

    def _inverse(self, y: Tensor) -> Tensor:
        left = y.flip(-1).cumsum(-1).flip(-1)[..., 1:]
        return y[..., :-1].log() - left.log() + _log_rest(left)

    def log_abs_det_jacobian(self, u: Tensor, y: Tensor) -> Tensor:
        u = u - _log_rest(u)
        left = pad(logsigmoid(-u).cumsum(-1), (1, 0))[..., :-1]
        return (left + logsigmoid(u) + logsigmoid(-u)).sum(-1)

    def forward_shape(self, shape: Any) -> Any:
        return (*shape[:-1], shape[-1] + 1)

    def inverse_shape(self, shape: Any) -> Any:
        return (*shape[:-1], shape[-1] - 1)


def _log_rest(u: Tensor) -> Tensor:
    """The log of how many numbers follow each."""
    return torch.arange(u.shape[-1], 0, -1, dtype=u.dtype, device=u.device).log()


def from_real(distribution: Distribution) -> Transform:
    """The bijection from R^n to the support; on R^n the identity.

    Raises:
        ValueError: If none is known.
    """
    support = support_of(distribution)
    if space_of(support) == "a simplex":
        return _Simplex()
    try:
        return biject_to(support)
    except NotImplementedError as error:
        raise ValueError(
            f"expected p(y) on a support with a bijection from R^n, got {support} of "
            f"{type(distribution).__name__}; write ImportanceSampling(proposal=…), a "
            "function of z and the mask of present views that returns q(y)"
        ) from error


def values_of(content: TorchDistribution) -> Tensor:
    """All values of a discrete distribution, as its `enumerate_support`.

    Raises:
        ValueError: If it has no finite list of values.
    """
    try:
        values: Tensor = content.enumerate_support(expand=False)
        return values
    except NotImplementedError as error:
        raise ValueError(
            f"expected a discrete p(y) with finitely many values, got {content}; "
            "for counts take a Categorical over those that matter"
        ) from error


def samples_of_states(content: TorchDistribution) -> Tensor:
    """All values, or of a large product those of one number for all its numbers."""
    try:
        return states_of(content)
    except ValueError:
        base: Any = content
        values = values_of(base.base_dist).flatten().unsqueeze(-1)
        return values.expand(-1, *content.event_shape)


def states_of(content: TorchDistribution) -> Tensor:
    """All values of a discrete distribution, shape (state, \\*event).

    Raises:
        ValueError: If it has no finite list of values, or more than `MOST_STATES`.
    """
    independent = isinstance(content, Independent) and content.event_shape
    each = values_of(content.base_dist if independent else content)
    if not independent:
        return each.reshape(-1, *content.event_shape)
    size = content.event_shape[0]
    if size * math.log(len(each)) > math.log(MOST_STATES) + 1e-9:
        raise ValueError(
            f"expected a discrete p(y) with at most {MOST_STATES:,} values, got "
            f"{len(each)}^{size}; take fewer dimensions, or p(z|y) as a product over "
            "the dimensions of y and z, whose sums are separate"
        )
    index = torch.tensor(list(product(range(len(each)), repeat=size)))
    return each.flatten()[index.to(each.device)]
