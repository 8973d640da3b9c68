r"""One network for all views of an item: what objectives without a decoder share."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .nn import Network, PerModality
from .precision import lowered
from .terms import Batch, Terms

__all__ = ["Extension", "Siamese", "check_no_content", "check_present"]


class Siamese(nn.Module):
    r"""An encoder, and a projector behind it whose output is compared.

    Arguments:
        encoder: A module (n, \*event) -> (n, dim); for views of several kinds
            `nn.PerModality`.
        projector: A module (n, dim) -> (n, dim').
    """

    encoder: nn.Module
    projector: nn.Module | None
    _ear: tuple[int, list[Tensor]] | None = None  # behind which of the parts

    def __init__(self, encoder: nn.Module, projector: nn.Module | None = None) -> None:
        super().__init__()
        self.encoder, self.projector = encoder, projector

    @property
    def network(self) -> nn.Module:
        """Encoder and projector as one."""
        if self._ear is None:
            return Network(self.encoder, self.projector)
        place, ear = self._ear
        parts = [self.encoder] + ([] if self.projector is None else [self.projector])
        each = [Network(part) for part in parts]
        each[place].register_forward_hook(lambda _, __, z: ear.append(z))
        return nn.Sequential(*each)

    @contextmanager
    def overheard(self, layer: str = "projector") -> Iterator[list[Tensor]]:
        """Collect the z, shape (batch, view, dim), of every pass of `network`.

        Arguments:
            layer: ``"backbone"``, or ``"projector"`` for what the objective compares.
        """
        ear: list[Tensor] = []
        self._ear = 0 if layer == "backbone" else -1, ear
        try:
            yield ear
        finally:
            del self._ear

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
        check_present(self, batch)
        check_no_content(self, batch)


class Extension(nn.Module):
    """An objective on top of another, whose representations it shares.

    Arguments:
        base: The objective below, with an encoder for all views.

    Raises:
        TypeError: If the base is not one without a decoder.
    """

    base: Siamese

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        if not isinstance(base, Siamese):
            raise TypeError(
                "expected a contrastive or joint-embedding objective as base, such as "
                f"SimCLR(encoder), got {type(base).__name__}; what has a decoder is "
                "extended by its prior"
            )
        self.base = base

    @property
    def encoder(self) -> nn.Module:
        """That of the base."""
        return self.base.encoder

    @property
    def projector(self) -> nn.Module | None:
        """That of the base."""
        return self.base.projector

    def represent(
        self, x: Tensor | tuple[Tensor, ...], layer: str = "backbone"
    ) -> Float[Tensor, "n dim"]:
        """What the encoder of the base makes of x, or its projector."""
        return self.base.represent(x, layer)

    def check(self, batch: Batch) -> None:
        """Raise an error if the base cannot take the batch."""
        self.base.check(batch)

    def below(
        self, batch: Batch, layer: str = "projector"
    ) -> tuple[Terms, Float[Tensor, "batch view dim"]]:
        """The terms of the base, and the z it has them from, in one pass.

        Arguments:
            layer: ``"backbone"`` for the z that the encoder gives instead.
        """
        with self.base.overheard(layer) as heard:
            terms = self.base(batch)
        if not heard:
            raise ValueError(
                f"expected {type(self.base).__name__} to call its `network`, got no "
                "representations; let forward take z from self.network(batch.views)"
            )
        return terms, heard[0]


def check_no_content(objective: nn.Module, batch: Batch) -> None:
    """Raise an error if contents are given, which the objective would not look at."""
    if batch.content is not None:
        raise ValueError(
            f"expected no content for {type(objective).__name__}, which has no use for "
            "labels, got some; leave fit's content out, or use SimVAE with "
            "priors.Mixture"
        )


def check_present(objective: nn.Module, batch: Batch) -> None:
    """Raise an error if views are absent, which the objective would take for some."""
    if batch.present is not None:
        raise ValueError(
            f"expected all views to be present for {type(objective).__name__}, got a "
            "mask; drop the incomplete items, or use SimVAE, which integrates out "
            "absent views"
        )
