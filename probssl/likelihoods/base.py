"""The base class of likelihoods, what they share, and which of them fit given data."""

import math
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions import Distribution

from ..arguments import at_least, instance, positive
from ..distributions.supports import in_words, support_of, within
from ..hyper import Learned, Positive, plain

__all__ = ["PSEUDO", "Likelihood", "Predicted", "Spread", "check_density"]
__all__ += [
    "check_output",
    "check_support",
    "refuse",
    "shape_error",
    "spread",
    "spread_of",
]

PSEUDO = "none (pseudo-likelihood)"  # the measure of what is no density
SIGMOIDS = (nn.Sigmoid, nn.Hardsigmoid, nn.LogSigmoid, nn.Softmax, nn.Softmax2d)
BOUNDED = (*SIGMOIDS, nn.Softplus, nn.ReLU, nn.Tanh, nn.Hardtanh)
SHAPES = (nn.Flatten, nn.Unflatten, nn.Identity, nn.Dropout)  # which bound nothing


class Likelihood(nn.Module):
    """A likelihood p(x|z): `forward` maps a decoder's output to the distribution of x.

    A likelihood of your own overrides `forward` and, where x is restricted, `check`.
    The shape of what `forward` returns, batch and event, is that of x; an output with
    several parameters for each element of x has another one.

    Attributes:
        measure: The reference measure of the density. Evidences are comparable under
            the same measure only.
        pseudo: Whether it is only a pseudo-likelihood, which gives no evidence.
        elementwise: Whether elements of x are independent given z. If not, vectors in
            the last axis are sampled as a whole, and `log_prob` gives summands whose
            sum over that axis is the log-probability.
        per_element: The parameters that the decoder returns for each element of x.
            Several are in a last axis of its output, as `output_shape` says.
        link: What the decoder's output is, if it may be any real number but is no
            value of x, such as ``"logits"``.
    """

    measure: str = "Lebesgue"
    pseudo: bool = False
    elementwise: bool = True
    per_element: int = 1
    link: str = ""

    def output_shape(self, event_shape: Sequence[int]) -> tuple[int, ...]:
        """Return the shape of the decoder's output for one x of this shape.

        A likelihood of your own with another layout overrides it.

        Example:
            >>> import probssl as ps
            >>> ps.likelihoods.HeteroscedasticGaussian().output_shape((1, 8, 8))
            (1, 8, 8, 2)
        """
        expected = "a tuple of sizes, (50,) for rows of 50 numbers"
        event = tuple(instance("event_shape", event_shape, Sequence, expected))
        return event if self.per_element == 1 else (*event, self.per_element)

    def check(self, x: Tensor) -> None:
        """Raise a ValueError if x is outside the support of this likelihood."""
        if not bool(torch.isfinite(x).all()):
            raise ValueError(
                "expected finite data, got NaN or infinite values; remove or impute "
                "them (a whole absent view is marked in Batch.present)"
            )

    def split(self, output: Tensor) -> list[Tensor]:
        """Return the parameters in the last axis of the output, one tensor each.

        Raises:
            ValueError: If there is no last axis of so many numbers.
        """
        if self.per_element == 1:
            return [output]
        if output.shape[-1:] != (self.per_element,):
            raise ValueError(
                f"expected the decoder's output with {self.per_element} numbers in a "
                f"last axis, the parameters of {type(self).__name__} for each element "
                f"of x, got shape {tuple(output.shape)}; build the decoder with "
                "event_shape=likelihood.output_shape(the shape of x)"
            )
        return list(output.unbind(-1))


class Predicted(NamedTuple):
    r"""A spread that the decoder predicts for each element of x, between two bounds.

    .. math:: \sigma = \mathrm{low}^{1 - s} \, \mathrm{high}^s, \qquad
        s = 1 / (1 + e^{-a})

    for the decoder's output a. The logarithm of the spread moves smoothly between those
    of the bounds and reaches neither; a = 0 is their geometric mean.

    Arguments:
        low: The lower bound. Without one, the density of elements that the decoder
            predicts exactly grows without bound.
        high: The upper bound.
    """

    low: float = 1e-2
    high: float = 10.0

    def of(self, output: Tensor) -> Tensor:
        """The spread for the decoder's output."""
        width = math.log(self.high / self.low)
        return (math.log(self.low) + width * output.sigmoid()).exp()


Spread = float | Sequence[float] | Tensor | Learned | Predicted


FORMS = (
    "give a number, ps.learned(number), a list of numbers for the elements of the last "
    "axis, or ps.likelihoods.Predicted(low, high)"
)


def spread(
    name: str, value: Spread, floor: float, hint: str = FORMS
) -> Positive | Predicted:
    """Return a spread as a hyper-parameter, or as predicted by the decoder.

    Arguments:
        floor: The lower bound of a learned one.
        hint: What to give instead of a wrong one.

    Raises:
        TypeError: If a bound of a predicted spread is not a number.
        ValueError: If it is not positive, its bounds are not ordered, or it is random.
    """
    if isinstance(value, Predicted):
        remedy = "give Predicted(low, high) with 0 < low < high, as Predicted(0.01, 10)"
        low, high = (positive(f"the bounds of {name}", x, remedy) for x in value)
        if low >= high:
            raise ValueError(
                f"expected the lower bound of {name} below the upper one, got {low:g} "
                f"and {high:g}; {remedy}"
            )
        return Predicted(low, high)
    if isinstance(value, Distribution):
        raise ValueError(
            f"expected {name} to be no distribution, got {type(value).__name__}; "
            f"{hint}: random hyper-parameters are those of the prior"
        )
    free = isinstance(value, Learned)
    floor = at_least("floor", floor, 0)
    numbers = plain(value.value if isinstance(value, Learned) else value)
    many = len(numbers) if isinstance(numbers, tuple) else None
    if many == 0:
        raise ValueError(f"expected {name} as a positive number, got none; {hint}")
    least = floor if free else 0.0
    for number in (numbers,) if many is None else numbers:
        if not isinstance(number, float) or not least < number < math.inf:
            above = f" above {least:g}, its floor," if least else ""
            lower = "lower floor=, or " if isinstance(number, float) and free else ""
            raise ValueError(
                f"expected {name} as a positive finite number{above}, got {number!r}; "
                f"{lower}{hint}"
            )
    return Positive(value, name, floor=least, dim=many)


def spread_of(number: Positive | Predicted, parameters: list[Tensor]) -> Tensor:
    """The spread, of which a predicted one is taken off the end of the parameters.

    Raises:
        ValueError: If there is one for each element, and not as many elements.
    """
    if isinstance(number, Predicted):
        return number.of(parameters.pop())
    if number.size not in (None, parameters[0].shape[-1]):
        raise ValueError(
            f"expected x with a last axis of {number.size} elements, as many as "
            f"{number.name} has numbers, got shape {tuple(parameters[0].shape)}; give "
            "one number, or one for each element of the last axis"
        )
    return number()


def check_output(likelihood: Likelihood, decoder: nn.Module) -> None:
    """Warn of a decoder that ends in an activation which the likelihood applies."""
    last: Any = getattr(decoder, "net", decoder)
    while type(last) is nn.Sequential and len(last):
        layers = [layer for layer in last if not isinstance(layer, SHAPES)]
        last = layers[-1] if layers else None
    link = likelihood.link or "parameters" * (likelihood.per_element > 1)
    if link and isinstance(last, BOUNDED):
        name = type(likelihood).__name__
        warnings.warn(
            f"expected a decoder that returns {link}, any real number, for "
            f"{name}, got {type(decoder).__name__} with {type(last).__name__} at its "
            f"end, which bounds them; leave it out: {name} itself maps any number to "
            "a parameter in its range",
            UserWarning,
            stacklevel=3,
        )


def shape_error(name: str, p: TorchDistribution, x: Tensor) -> ValueError:
    """The error for a p(x_1..V|z_1..V) that would broadcast against the views."""
    return ValueError(
        f"expected p(x|z) of the shape of the views, got {tuple(p.event_shape[1:])} at "
        f"the site {name!r} for views of shape {tuple(x.shape[2:])}; build the decoder "
        "with event_shape=likelihood.output_shape(the shape of a view)"
    )


def check_density(
    likelihood: Likelihood, p: TorchDistribution, x: Tensor, mask: Tensor | None
) -> None:
    """Raise a ValueError if x is off the support of p(x|z), or log p(x|z) not finite.

    Arguments:
        p: p(x|z) with the batch shape of the mask.
        mask: Which x are there; None means all.
    """
    if likelihood.pseudo:
        return
    check_support(likelihood, p, x, mask)
    absent = False if mask is None else ~mask
    log_prob = p.log_prob(x)
    if not bool((log_prob.isfinite() | absent).all()):
        values = ", ".join({str(v) for v in log_prob[~log_prob.isfinite()].tolist()})
        wanted = f"a finite log p(x|z), not {values}"
        hint = "keep values off the ends of the support"
        raise refuse(likelihood, wanted, x, hint)


def check_support(
    likelihood: Likelihood, p: TorchDistribution, x: Tensor, mask: Tensor | None
) -> None:
    """Raise a ValueError if x is off the support of p(x|z), as `check_density`."""
    absent = False if mask is None else ~mask
    try:
        inside = within(p, x)
    except ValueError:  # of a distribution that declares no support
        return
    if likelihood.pseudo or bool((inside | absent).all()):
        return
    counting = likelihood.measure.startswith("counting")
    hint = "give the counts themselves, and views that keep them whole"
    wanted = f"x on the support of p(x|z), {in_words(support_of(p))}"
    raise refuse(likelihood, wanted, x, hint * counting, suggest=not counting)


def refuse(
    likelihood: nn.Module, wanted: str, x: Tensor, hint: str = "", suggest: bool = True
) -> ValueError:
    """The error for data outside a support: what is wanted, what came, what fits it.

    Arguments:
        suggest: Whether the error names ready-made likelihoods for the data.
    """
    name = f"{type(likelihood).__name__}({likelihood.extra_repr()})"
    came, fits = _described(x)
    remedy = ", or ".join(filter(None, [hint, fits * suggest]))
    return ValueError(f"expected {wanted} for {name}, got {came}; {remedy}")


def _described(x: Tensor) -> tuple[str, str]:
    """What kind of data x is, and which likelihoods fit it."""
    low, high = float(x.min()), float(x.max())
    whole = bool((x == x.round()).all())
    span = f"from {low:.6g} to {high:.6g}"
    if whole and low >= 0:
        if high <= 1:
            return "only 0 and 1", "take Bernoulli() for binary data"
        ordered = f", Ordinal({high + 1:.0f}) for ordered categories" * (high < 100)
        grey = "; divide grey levels by the highest, as bytes by 255" * (high < 65536)
        counts = "take Poisson() or NegativeBinomial() for counts"
        return f"whole numbers {span}", counts + ordered + grey
    real = "take Gaussian(), Laplace() or StudentT() for real values"
    if low >= 0 and high <= 1:
        grid = "; for grey levels let the views end on the grid (levels=…)"
        return f"values {span}, some between 0 and 1", real + grid
    return f"values {span}", real
