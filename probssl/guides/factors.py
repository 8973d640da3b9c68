"""What every guide has: an encoder, a second head, and views that may be absent."""

from collections.abc import Callable, Iterable
from itertools import repeat
from typing import Any

import torch
from jaxtyping import Bool, Float
from pyro.distributions import TorchDistribution
from torch import Size, Tensor, nn
from torch.distributions import constraints
from torch.nn.functional import softplus

from ..nn import Encoder, PerModality
from ..runtime.precision import lowered

__all__ = ["Factors", "GaussianFactors", "PriorOf", "Views", "of_views"]

PriorOf = Callable[..., Any]  # a distribution of the views, as `Prior` returns
# (batch, view, *event), or one such tensor for each modality
Views = Float[Tensor, "batch view ..."] | tuple[Tensor, ...]
Shape = Size | list[int] | tuple[int, ...]


class Factors(nn.Module):
    r"""One location and one raw spread for each view: what guides are made of.

    An `nn.Encoder` gives the location by its own head; a second head on the same
    trunk, made here, gives the spread. Any other module must return both, side by side.
    In an `nn.PerModality` this holds for each of its networks.

    Arguments:
        encoder: A module (n, \*event) -> (n, dim), or (n, dim + spread); or an
            `nn.PerModality` of these.
        spread: The number of raw spreads for each dimension d: a function of d.
    """

    def __init__(self, encoder: nn.Module, spread: Callable[[int], int]) -> None:
        super().__init__()
        self.encoder, self.size = encoder, spread
        self.spread: nn.Module | None = None
        if isinstance(encoder, PerModality):
            self.spread = nn.ModuleList(_head(part, spread) for part in encoder.parts)
        elif isinstance(encoder, Encoder):
            self.spread = _head(encoder, spread)

    def forward(self, x: Views) -> tuple[Tensor, Tensor]:
        """Return location and raw spread, (batch, view, dim) and (batch, view, size).

        The views of several modalities follow one another.

        Raises:
            ValueError: If the outputs of a module cannot be both.
        """
        if isinstance(x, Tensor):
            return lowered(self._of, self.encoder, self.spread, x)
        encoders: Iterable[nn.Module] = repeat(self.encoder, len(x))
        heads: Iterable[nn.Module | None] = repeat(self.spread, len(x))
        if isinstance(self.encoder, PerModality):
            assert isinstance(self.spread, nn.ModuleList)
            encoders, heads = self.encoder.parts, self.spread
        parts = zip(encoders, heads, x, strict=True)
        each = [lowered(self._of, *part) for part in parts]
        loc, raw = (torch.cat(found, 1) for found in zip(*each, strict=True))
        return loc, raw

    def _of(
        self, encoder: nn.Module, head: nn.Module | None, x: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Location and raw spread of the views of one modality."""
        flat = x.flatten(0, 1)
        if isinstance(encoder, Encoder) and head is not None:
            features = encoder.trunk(flat)
            loc, raw = encoder.head(features), head(features)
        else:
            loc, raw = self._split(encoder(flat))
        return loc.unflatten(0, x.shape[:2]), raw.unflatten(0, x.shape[:2])

    def _split(self, output: Tensor) -> tuple[Tensor, Tensor]:
        sizes = {dim + self.size(dim): dim for dim in range(1, output.shape[-1])}
        dim = sizes.get(output.shape[-1]) if output.dim() == 2 else None
        if dim is None:
            raise ValueError(
                "expected the encoder to return locations and raw spreads, "
                f"{self.size(2)} for 2 dimensions and so on, side by side, got "
                f"{tuple(output.shape)}; wrap its trunk as "
                "ps.nn.Encoder(trunk, width, dim), which adds both heads"
            )
        return output[:, :dim], output[:, dim:]


class GaussianFactors(Factors):
    r"""One normal factor :math:`N(z_v \mid m(x_v), r(x_v)^2)` for each view.

    Arguments:
        encoder: A module (n, \*event) -> (n, dim), or (n, 2·dim), or one for each
            modality; see `Factors`.
        floor: The least standard deviation, so that no log-density is infinite.
    """

    def __init__(self, encoder: nn.Module, floor: float = 1e-4) -> None:
        super().__init__(encoder, lambda dim: dim)
        self.floor = floor

    def forward(self, x: Views) -> tuple[Tensor, Tensor]:
        """Return m and r, each with shape (batch, view, dim)."""
        loc, raw = super().forward(x)
        return loc, softplus(raw) + self.floor


def _head(encoder: nn.Module, spread: Callable[[int], int]) -> nn.Module:
    """A second head on the trunk of an encoder; other modules return both."""
    if not isinstance(encoder, Encoder):
        return nn.Identity()
    return nn.Linear(encoder.width, spread(encoder.dim))


def of_views(
    each: TorchDistribution, prior: PriorOf, present: Bool[Tensor, "batch view"] | None
) -> TorchDistribution:
    """Views from their own distributions; absent ones follow the prior given them."""
    return each.to_event(1) if present is None else _Completed(each, prior, present)


class _Completed(TorchDistribution):
    r"""Present views from their own q, absent ones from the prior given them.

    .. math:: q(z) = \prod_{\text{present}} q(z_v \mid x_v) \;
        p(z_\text{absent} \mid z_\text{present})
    """

    arg_constraints = {}
    has_rsample = True

    def __init__(
        self, each: TorchDistribution, prior: PriorOf, present: Tensor
    ) -> None:
        self.each, self.prior, self.present = each, prior, present
        shape = each.batch_shape[-1:] + each.event_shape
        super().__init__(each.batch_shape[:-1], shape, validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        return constraints.independent(self.each.support, 1)

    @property
    def mean(self) -> Tensor:
        return self.prior().complete_mean(self.each.mean, self.present)

    def rsample(self, sample_shape: Shape = ()) -> Tensor:
        return self.prior().complete(self.each.rsample(sample_shape), self.present)

    def log_prob(self, value: Tensor) -> Tensor:
        absent = self.prior().log_prob(value)
        absent = absent - self.prior(present=self.present).log_prob(value)
        # not a product: an absent view may lie where q is zero
        return self.each.log_prob(value).where(self.present, 0.0).sum(-1) + absent

    def expand(
        self, batch_shape: Shape, _instance: "_Completed | None" = None
    ) -> "_Completed":
        views = Size(batch_shape) + self.event_shape[:1]
        each, present = self.each.expand(views), self.present.expand(views)
        return _Completed(each, self.prior, present)
