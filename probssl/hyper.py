"""Positive hyper-parameters: fixed, fitted by maximum likelihood, or with a posterior.

A number is fixed. ``ps.learned(number)`` is fitted by gradient, with the networks. A
Pyro distribution is a prior p(θ), and θ gets a guide q(θ), a posterior: log-normal, or
logit-normal for a θ between 0 and 1.
"""

import copy
import math
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float
from pyro.distributions import MaskedDistribution
from pyro.distributions.torch_distribution import ExpandedDistribution
from torch import Tensor, nn
from torch.distributions import (
    Distribution,
    ExpTransform,
    Independent,
    SigmoidTransform,
    Transform,
    TransformedDistribution,
)
from torch.distributions.transforms import identity_transform

from .arguments import fixed, positive
from .distributions.supports import of_pyro, support_of
from .runtime.distributed import from_main, world_size
from .runtime.randomness import restored_randomness
from .runtime.validation import unvalidated

__all__ = ["Fraction", "Latent", "Learned", "Number", "Positive", "Reciprocal"]
__all__ += ["check_declared", "known_population", "learned", "mapped", "plain"]
__all__ += ["random_in"]

# The largest initial standard deviation of q(log θ), or of q(logit θ). One as wide as
# the prior would drown the gradients of the networks in noise.
INITIAL_STD = 0.05

WRAPPERS = (
    TransformedDistribution,
    Independent,
    MaskedDistribution,
    ExpandedDistribution,
)

# Names of other sites, variables and axes in Pyro traces and in `to_arviz`.
TAKEN = re.compile(
    r"chain|draw|item|view|dim|particles|component|[xyz](_\d+)?|log_x(_\d+)?|log_[pq]"
    r"|ess|pareto_k|log_evidence|component_probs|log_p_x(_\d+)?_given_z|k"
    r"|.*_(dim|hyper)|.*/.*"
)

Number = float | tuple[float, ...]


class Learned(NamedTuple):
    """The initial value of a hyper-parameter that is fitted by gradient."""

    value: Number


def learned(value: float | Sequence[float] | Tensor) -> Learned:
    """Fit a hyper-parameter by gradient (maximum likelihood), starting from `value`.

    Arguments:
        value: A positive number, or one for each dimension of z.

    Example:
        >>> learned(0.4)
        Learned(value=0.4)
    """
    number = plain(value)
    for each in number if isinstance(number, tuple) else (number,):
        positive("the value of ps.learned", each)
    return Learned(number)


class Latent(nn.Module):
    r"""A latent variable of all items together, with a guide of its own.

    It is a Pyro site outside the plate of items, such as a random hyper-parameter. The
    guide is normal where `transform` maps from, :math:`q(T^{-1} \theta) = N(m, s^2)`.

    Attributes:
        value: Its prior, a Pyro distribution.
        loc: The mean m.
        log_scale: log s.
        event_dim: The number of axes of a value.
    """

    name: str
    value: Any
    loc: Tensor
    log_scale: Tensor
    transform: Transform = identity_transform
    drawn: Tensor | None  # the value that `Prior.at` sets

    @property
    def event_dim(self) -> int:
        return self.loc.ndim

    def sample(self, drawn: dict[str, Tensor] | None = None) -> Tensor:
        """Sample it from its prior, as a Pyro site.

        Arguments:
            drawn: The values of latent variables that were sampled before it.
        """
        return pyro.sample(self.name, self.value)

    def sample_guide(self) -> Tensor:
        """Sample it from its guide, as a Pyro site."""
        return pyro.sample(self.name, self.posterior())

    def posterior(self) -> dist.TorchDistribution:
        """Return its guide; in training mode all ranks draw the same sample."""
        shared = self.training and world_size() > 1
        kind = _Shared if shared else dist.Normal
        guide = kind(self.loc, self.log_scale.exp(), validate_args=False)
        return guide.to_event(self.event_dim)

    @torch.no_grad()
    def draw(self, shape: Sequence[int]) -> Tensor:
        """Draw it from its guide, on this rank alone and without a site."""
        noise = torch.randn((*shape, *self.loc.shape)).to(self.loc)
        return self.transform(self.loc + self.log_scale.exp() * noise)

    def batch_of(self, value: Tensor) -> torch.Size:
        """The batch shape of a sampled value."""
        return value.shape[: value.ndim - self.event_dim]

    def lifted(self, value: Tensor) -> Tensor:
        """A sampled value with one more batch axis at the end, for the views."""
        return value.unsqueeze(-1 - self.event_dim)


class Positive(Latent):
    r"""A positive hyper-parameter :math:`\theta`, or one for each dimension of z.

    A number is a buffer; with `learned`, :math:`\log(\theta - \text{floor})` is a
    parameter; a Pyro distribution makes :math:`\theta` a random variable with the guide
    :math:`q(\log \theta) = N(m, s^2)`, which starts at the median of the prior.

    Arguments:
        value: The number, ``learned(number)``, or a Pyro distribution over all
            positive numbers, as its guide is. For each dimension a sequence of numbers,
            or a distribution with the event shape (dim,).
        name: The name of its Pyro site, and in error messages.
        floor: A lower bound of a learned value.
        dim: The length of a sequence of numbers; None allows a single number only.
    """

    value: Any  # a number, numbers, Learned, or a Pyro distribution
    fixed: Tensor
    # One step of Adam at rate 1e-3 moves log θ by 1e-3: too slow for most fits. With a
    # learning rate that decays to zero the last values do not fluctuate.
    learning_rate_factor = 10.0
    transform: Transform = ExpTransform()  # of a parameter, any real number
    kind, example, below = "positive finite number", "LogNormal(-1.0, 1.0)", math.inf
    # Numbers that a prior of this kind has on its support, and off it.
    within: tuple[float, ...] = 1e-9, 1e9
    outside: tuple[float, ...] = (-1e-9,)

    def __init__(
        self,
        value: "float | Sequence[float] | Tensor | Learned | Distribution | Positive",
        name: str = "scale",
        floor: float = 0.0,
        dim: int | None = None,
    ) -> None:
        super().__init__()
        value = value.value if isinstance(value, Positive) else value
        mapped(value, partial(fixed, name, hint="ps.learned(number) fits a number"))
        self.name, self.floor = name, floor
        self.learned, self.random = (
            isinstance(value, kind) for kind in (Learned, Distribution)
        )
        self.free = self.learned or self.random
        self.drawn = None
        if isinstance(value, Distribution):
            self.value = mapped(of_pyro(f"the prior of {name}", value), torch.clone)
            with restored_randomness():  # keep the random state
                draws = self.value.sample((1_001,))
            self.size = self._check_distribution(draws, dim)
            start = self.transform.inv(draws)
            self.loc = nn.Parameter(start.median(0).values)
            self.log_scale = nn.Parameter(start.std(0).clamp(1e-4, INITIAL_STD).log())
            return
        number = plain(value.value if isinstance(value, Learned) else value)
        self.size = self._check_number(number, dim)
        self.value = Learned(number) if self.learned else number
        if self.learned:
            exact = torch.tensor(number, dtype=torch.double).sub(floor)
            start = self.transform.inv(exact).to(torch.get_default_dtype())
            self.log = nn.Parameter(start)
        else:
            self.register_buffer("fixed", torch.tensor(number))

    def forward(self) -> Tensor:
        """The current value; of a random one the median of its guide."""
        if self.drawn is not None:
            return self.drawn
        if self.random:
            return self.transform(self.loc)
        return self.floor + self.transform(self.log) if self.learned else self.fixed

    def of(self, drawn: dict[str, Tensor]) -> Tensor:
        """The sampled value, where `drawn` has one, else the current value."""
        return drawn[self.name] if self.name in drawn else self()

    def over(
        self, drawn: dict[str, Tensor] | None = None
    ) -> Float[Tensor, "*batch 1 #dim"]:
        """The value, with axes for views and dimensions appended."""
        value = self.of(drawn or {}).unsqueeze(-1)
        return value.unsqueeze(-1) if self.size is None else value.mT

    @property
    def event_dim(self) -> int:
        return int(self.size is not None)

    def column(self, value: Tensor) -> Float[Tensor, "*batch #dim"]:
        """A sampled value with a last axis for the dimensions."""
        return value.unsqueeze(-1) if self.size is None else value

    def posterior(self) -> dist.TorchDistribution:
        r"""Return its guide, :math:`q(\log \theta) = N(m, s^2)`.

        In training mode all ranks draw the same sample.
        """
        # validate_args=False would not reach the inner normal, which then synchronises.
        with unvalidated():
            guide = self._guide(self.loc, self.log_scale.exp())
            if self.training and world_size() > 1:
                guide.base_dist = _Shared(self.loc, self.log_scale.exp())
        guide = mapped(guide, lambda tensor: tensor)
        return guide if self.size is None else guide.to_event(1)

    def shown(self) -> str:
        """The value in short; of one that has changed the present and the initial."""
        if not self.learned:
            given, now = _short(self.value, str), self._buffers.get("fixed")
            if now is None or now.is_meta:
                return given
            exact = torch.tensor(self.value, dtype=torch.double)
            same = torch.equal(exact.to(now), now)
            return given if same else f"{_short(now.tolist())} (set, from {given})"
        if self.log.is_meta:
            return str(self.value)
        now = (self.floor + self.transform(self.log.detach())).tolist()
        return f"{_short(now)} (learned, from {_short(self.value.value)})"

    def extra_repr(self) -> str:
        return f"{self.name}={self.shown()}"

    def _guide(self, loc: Tensor, scale: Tensor) -> dist.TransformedDistribution:
        return dist.LogNormal(loc, scale)

    def _check_number(self, number: Any, dim: int | None) -> int | None:
        """Check the numbers; return how many there are, None for a single one."""
        numbers, least = number if isinstance(number, tuple) else (number,), self.floor
        if not all(isinstance(n, float) and self.allows(n) for n in numbers):
            raise ValueError(
                f"expected {self.name} to be a {self.kind}"
                f"{f' above {least:g}' if least else ''}, got {number!r}; give a "
                "number, ps.learned(number) or a Pyro distribution over such numbers"
            )
        return (
            None if number is not numbers else _check_size(len(number), self.name, dim)
        )

    def allows(self, number: float) -> bool:
        """Whether a number may be its value."""
        return self.floor < number < self.below

    def _check_distribution(self, draws: Tensor, dim: int | None) -> int | None:
        value = self.value
        if TAKEN.fullmatch(self.name):
            raise ValueError(
                f"expected a name of its own for a random hyper-parameter, got "
                f"{self.name!r}, which another site, variable or axis of ps.to_arviz "
                "has, or a file cannot hold; call it for instance 'spread'"
            )
        if value.batch_shape or len(value.event_shape) > 1 or not self._covered(draws):
            raise ValueError(
                f"expected the distribution of {self.name} to be over one {self.kind}, "
                "any of them and no other, as its guide is, got "
                f"{value}; use for instance pyro.distributions.{self.example}"
            )
        shape = value.event_shape
        return _check_size(shape[0], self.name, dim) if shape else None

    def _covered(self, draws: Tensor) -> bool:
        """Whether the distribution is over all numbers of this kind and no others."""
        exact = mapped(self.value, lambda t: t.double() if t.is_floating_point() else t)
        whole = draws.new_ones(draws.shape[1:], dtype=torch.double)
        inside = [_has_density(exact, whole * n) for n in self.within + self.outside]
        return inside == [True] * len(self.within) + [False] * len(self.outside)

    def _apply(
        self, fn: Callable[[Tensor], Tensor], recurse: bool = True
    ) -> "Positive":
        """Move and convert the tensors of its prior as well, which is no module.

        A fixed number that still is the given one, rounded to its dtype, is rounded
        from the given one again: ``.double()`` makes it exact.
        """
        before = self._buffers.get("fixed")
        super()._apply(fn, recurse)
        if self.random:
            self.value = mapped(self.value, fn)
        if before is not None and not before.is_meta and not self.fixed.is_meta:
            exact = torch.tensor(self.value, dtype=torch.double)
            converted = self.fixed.dtype != before.dtype
            if converted and torch.equal(exact.to(before), before):
                self.fixed = exact.to(self.fixed)
        return self


class Fraction(Positive):
    r"""A hyper-parameter :math:`\theta` between 0 and 1, the bounds excluded.

    It is `Positive` but for the transform: with `learned` the parameter is
    :math:`\text{logit} \, \theta`, and a random one, with the support (0, 1), has the
    guide :math:`q(\text{logit} \, \theta) = N(m, s^2)`.
    """

    transform = SigmoidTransform()
    kind, example, below = "number between 0 and 1", "Beta(2.0, 8.0)", 1.0
    within, outside = (1e-6, 1 - 1e-6), (-1e-6, 1 + 1e-6)

    def _guide(self, loc: Tensor, scale: Tensor) -> dist.TransformedDistribution:
        return dist.TransformedDistribution(dist.Normal(loc, scale), self.transform)


class Reciprocal(Positive):
    """A hyper-parameter given by its reciprocal, as κ by the temperature τ = 1/κ.

    The reciprocal is what is fixed, learned or random, and the value of the Pyro site.
    """

    reciprocal = True

    def forward(self) -> Tensor:
        return super().forward().reciprocal()

    def of(self, drawn: dict[str, Tensor]) -> Tensor:
        return drawn[self.name].reciprocal() if self.name in drawn else self()


class _Shared(dist.Normal):
    """A normal distribution of which all ranks draw the sample of rank 0."""

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        noise = torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)
        return self.loc + from_main(noise) * self.scale


def random_in(part: object) -> Iterator[Positive]:
    """The random hyper-parameters within a module; none of anything else."""
    parts = part.modules() if isinstance(part, nn.Module) else ()
    return (h for h in parts if isinstance(h, Positive) and h.random)


def check_declared(whole: nn.Module) -> None:
    """Raise a ValueError for a random hyper-parameter within `whole` without a site.

    Those of the prior of a joint, or of an objective with a population, have one: in
    the prior, not where likelihood or decoder share them.
    """
    owners = [m for m in whole.modules() if "population" in m._buffers]
    priors: list[Any] = [o.prior for o in owners if hasattr(o, "prior")]
    known = {id(h) for prior in priors for h in prior.random()}
    for path, part in whole.named_modules():
        if isinstance(part, Positive) and part.random and id(part) not in known:
            raise ValueError(
                "expected random hyper-parameters among those of a prior, "
                f"prior.random(), got {part.name!r} at {path or 'the top'} of "
                f"{type(whole).__name__}, which would be fitted without its "
                f"distribution {type(part.value).__name__}; fix it or give "
                "ps.learned(number), or if it is within a prior of your own return it "
                "in random(), for a Joint or an objective of class limits.Embedding"
            )
    for owner in owners:
        for name in ("likelihood", "decoder"):
            inside = getattr(owner, name, None)
            parts = inside.modules() if isinstance(inside, nn.Module) else ()
            for part in parts:
                if isinstance(part, Positive) and part.random:
                    raise ValueError(
                        f"expected {part.name!r} in the prior alone, where it is "
                        f"random, got it in the {name} as well, where it would count "
                        "at its median; give that a hyper-parameter of its own, "
                        "ps.learned(number)"
                    )


def mapped(
    part: Any, fn: Callable[[Tensor], Tensor], done: dict[int, Any] | None = None
) -> Any:
    """Copy a distribution, apply `fn` to all its tensors, switch validation off."""
    done = {} if done is None else done
    if isinstance(part, Tensor):
        return fn(part)
    if isinstance(part, list):
        return [mapped(p, fn, done) for p in part]
    if not isinstance(part, Distribution | Transform):
        return part
    if id(part) not in done:  # a transform and its inverse refer to each other
        new = done[id(part)] = copy.copy(part)
        parts = {name: mapped(p, fn, done) for name, p in vars(part).items()}
        new.__dict__.update(parts)
        if isinstance(new, Distribution):
            new._validate_args = False
    return done[id(part)]


def _has_density(distribution: Any, value: Tensor) -> bool:
    """Whether a value is on the support, also of what transforms are applied to."""
    if not bool((distribution.log_prob(value) > -math.inf).all()):
        return False
    while isinstance(distribution, WRAPPERS):
        for transform in reversed(getattr(distribution, "transforms", [])):
            if not bool(transform.codomain.check(value).all()):
                return False
            value = transform.inv(value)
        distribution = distribution.base_dist
    return bool(support_of(distribution).check(value).all())


def known_population(population: Tensor | None) -> Tensor:
    """Return the number of items, by which global sites are weighted."""
    if population is None:
        raise ValueError(
            "expected population, the number of items by which the random "
            "hyper-parameters are weighted, got None; train with ps.fit, or, also for "
            "a DataLoader whose items fit cannot count, set "
            "population = torch.tensor(float(len(data))) on the joint or objective"
        )
    return population


def _short(value: Any, text: Callable[[Any], str] = "{:.3g}".format) -> str:
    """A value in words; of more than five numbers the first two, and how many."""
    if not isinstance(value, list | tuple):
        return text(value)
    shown = [text(number) for number in value]
    if len(shown) > 5:
        shown[2:] = ["…", f"{len(shown)} numbers"]
    return f"({', '.join(shown)})"


def plain(value: Any) -> Any:
    """Numbers, tensors and arrays as Python floats and tuples; all else unchanged."""
    value = value.detach() if isinstance(value, Tensor) else value
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, list | tuple):
        return tuple(plain(number) for number in value)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if number else value


def _check_size(size: int, name: str, dim: int | None) -> int:
    if size != dim:
        one = "one number" if dim is None else f"one number, or {dim} of them"
        raise ValueError(
            f"expected {name} to be {one}, got {size}; a number for each dimension is "
            "for priors that take one and know their dim; in a likelihood of your own "
            f"give ps.hyper.Positive(…, dim={size})"
        )
    return size
