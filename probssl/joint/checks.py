"""Whether the parts of a joint, and what it is given, belong together."""

from torch import Tensor, nn

from ..nn import PerModality
from ..priors import Prior
from ..terms import Batch

__all__ = ["check_content", "check_networks", "check_support"]


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
