r"""One network for all views of an item: what objectives without a decoder share."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .nn import Network, PerModality
from .precision import lowered
from .terms import Batch

__all__ = ["Siamese", "check_no_content"]


class Siamese(nn.Module):
    r"""An encoder, and a projector behind it whose output is compared.

    Arguments:
        encoder: A module (n, \*event) -> (n, dim); for views of several kinds
            `nn.PerModality`.
        projector: A module (n, dim) -> (n, dim').
    """

    encoder: nn.Module
    projector: nn.Module | None

    def __init__(self, encoder: nn.Module, projector: nn.Module | None = None) -> None:
        super().__init__()
        self.encoder, self.projector = encoder, projector

    @property
    def network(self) -> Network:
        """Encoder and projector as one."""
        return Network(self.encoder, self.projector)

    def represent(
        self, x: Tensor | tuple[Tensor, ...], layer: str = "backbone"
    ) -> Float[Tensor, "n dim"]:
        """The encoder's output for x, or with ``layer="projector"`` the projector's.

        Of items of several modalities, a tuple, the mean of their representations.
        """
        if isinstance(self.encoder, PerModality):
            parts = x if isinstance(x, tuple) else (x,)
            each = lowered(self.encoder, parts)
            z = torch.stack([out.flatten(1) for out in each]).mean(0)
        else:
            z = lowered(self.encoder, x).flatten(1)
        if layer == "projector" and self.projector:
            return lowered(self.projector, z)
        return z

    def check(self, batch: Batch) -> None:
        """Raise an error if there is one view or item, or absent views or contents."""
        items, views = batch.shape
        if views < 2 or items < 2:
            raise ValueError(
                f"expected at least 2 items with at least 2 views each, got {items} "
                f"with {views}; give fit a view sampler, for instance "
                "views=ps.views.Augment(), and a larger batch"
            )
        if batch.present is not None:
            raise ValueError(
                f"expected all views to be present for {type(self).__name__}, got a "
                "mask; drop the incomplete items, or use SimVAE, which integrates out "
                "absent views"
            )
        check_no_content(self, batch)


def check_no_content(objective: nn.Module, batch: Batch) -> None:
    """Raise an error if contents are given, which the objective would not look at."""
    if batch.content is not None:
        raise ValueError(
            f"expected no content for {type(objective).__name__}, which has no use for "
            "labels, got some; leave fit's content out, or use SimVAE with "
            "priors.Mixture"
        )
