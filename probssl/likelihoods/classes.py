"""Likelihoods of classes."""

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from ..arguments import whole
from ..distributions._base import Expandable, Shape
from .base import PSEUDO, Likelihood

__all__ = ["Categorical", "OneHot"]


class Categorical(Likelihood):
    r"""Categorical likelihood of a class, such as a label: one-hot in the last axis.

    .. math:: \log p(x \mid z) = \sum_c x_c \, \Big( a_c - \log \sum_{c'} e^{a_{c'}}
        \Big), \qquad a = \mathrm{decoder}(z)

    It is minus the cross-entropy. Classes along the other axes are independent given z.

    Arguments:
        classes: The number of classes, the length of the last axis.
        soft: Whether to accept class probabilities, such as smoothed labels. The
            formula is then a pseudo-likelihood, no density of x.

    Raises:
        ValueError: If there are fewer than two classes.
    """

    elementwise = False
    link = "logits"

    def __init__(self, classes: int, soft: bool = False) -> None:
        super().__init__()
        self.classes = whole("classes", classes, least=2)
        self.soft = self.pseudo = soft
        self.measure = PSEUDO if soft else f"counting, {classes} classes"

    def extra_repr(self) -> str:
        return f"classes={self.classes}" + ", soft=True" * self.soft

    def forward(self, output: Tensor) -> dist.TorchDistribution:
        self._check_last_axis(output, "the decoder's output")
        return OneHot(output)

    def check(self, x: Tensor) -> None:
        super().check(x)
        self._check_last_axis(x, "x")
        one = ((x.sum(-1) - 1).abs() < 1e-3).all() & (x >= 0).all()
        hard = ((x == 0) | (x == 1)).all()
        if not bool(one & (hard | self.soft)):
            form = "probabilities that sum to 1" if self.soft else "one-hot vectors"
            raise ValueError(
                f"expected {form} in the last axis for Categorical, got other values "
                f"between {float(x.min()):.3g} and {float(x.max()):.3g}; give "
                f"torch.nn.functional.one_hot(labels, {self.classes}) as floats, or "
                "probabilities to the pseudo-likelihood Categorical(…, soft=True)"
            )

    def _check_last_axis(self, x: Tensor, what: str) -> None:
        if x.shape[-1:] != (self.classes,):
            raise ValueError(
                f"expected {what} to have a last axis of {self.classes} classes, got "
                f"shape {tuple(x.shape)}; give it the event shape ({self.classes},)"
            )


class OneHot(Expandable):
    r"""One-hot vectors in the last axis, sampled as a whole.

    The classes belong to the batch shape, as the elements of other likelihoods do:
    `log_prob` has a summand :math:`x_c \log p_c` for each class, of which only the sum
    over classes, that of ``to_event(1)``, is a log-probability. For class probabilities
    x the sum is minus the cross-entropy.
    """

    parts = {"logits": 0}
    support = constraints.unit_interval

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits
        super().__init__(logits.shape, validate_args=False)

    @property
    def mean(self) -> Tensor:
        return self.logits.softmax(-1)

    @property
    def variance(self) -> Tensor:
        return self.mean * (1 - self.mean)

    @torch.no_grad()
    def sample(self, sample_shape: Shape = ()) -> Tensor:
        whole = dist.OneHotCategorical(logits=self.logits, validate_args=False)
        return whole.sample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        return value * self.logits.log_softmax(-1)
