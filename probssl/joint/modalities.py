"""Views of several kinds, each with a likelihood and networks of its own."""

from collections.abc import Sequence

from jaxtyping import Bool
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from ..likelihoods import Likelihood
from ..nn import PerModality
from ..precision import lowered
from ..terms import Batch

__all__ = ["Likelihoods", "arranged", "decoded", "seen"]


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
