"""The precision of a fit: that of its networks, and of its matrix products."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch

from ..precision import lowering

__all__ = ["Precision", "prepared_precision"]


class Precision(NamedTuple):
    """What the networks are lowered to, and whether float32 products may be in TF32.

    Arguments:
        autocast: The precision of the networks; None leaves it to the parameters.
        tf32: Whether matrix products of float32 numbers on a CUDA device round their
            factors to the 11 binary digits of TF32, those of densities included.
    """

    autocast: torch.dtype | None = None
    tf32: bool = False

    @contextmanager
    def active(self, device: torch.device) -> Iterator[None]:
        """Compute in this precision, in what is made of views, value and gradient."""
        if not self.tf32 or device.type != "cuda":
            with lowering(self.autocast):
                yield
            return
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high")
        try:
            with lowering(self.autocast):
                yield
        finally:
            torch.set_float32_matmul_precision(before)


def prepared_precision(
    precision: torch.dtype | None, tf32: bool, own: torch.dtype
) -> Precision:
    """What `fit` is asked for, checked.

    Arguments:
        own: The precision of the objective's parameters.

    Raises:
        ValueError: If the networks can not be lowered to this.
    """
    if precision not in (None, torch.bfloat16):
        raise ValueError(
            f"expected precision to be torch.bfloat16 or None, got {precision!r}; "
            "float16 would need a scaled loss, and other types are those of the "
            "objective: convert it, as objective.double() does"
        )
    if precision is not None and own != torch.float32:
        raise ValueError(
            f"expected an objective in float32 for precision={precision}, got {own}; "
            "call objective.float() before, or leave precision out"
        )
    return Precision(precision, tf32)
