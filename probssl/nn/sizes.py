"""Sizes of networks, checked once, where they are built."""

import operator
from collections.abc import Sequence

from torch import Tensor, nn

__all__ = ["Reshape", "check_items", "halvings", "integer", "sizes"]


class Reshape(nn.Module):
    """Items of one shape as items of another; the first module of every trunk."""

    def __init__(self, before: tuple[int, ...], after: tuple[int, ...]) -> None:
        super().__init__()
        self.before, self.after = before, after

    def forward(self, x: Tensor) -> Tensor:
        check_items(x, self.before)
        return x.reshape(len(x), *self.after)


def halvings(shape: tuple[int, ...], times: int) -> list[tuple[int, int]]:
    """The sizes of an image halved again and again, rounding up, the largest first."""
    least = 2**times
    if len(shape) != 3 or min(shape[1:]) < least:
        raise ValueError(
            f"expected event_shape (channel, height, width) of at least {least} x "
            f"{least} pixels, got {shape}; take a fully connected network instead"
        )
    sizes = [(shape[1], shape[2])]
    for _ in range(times):
        sizes += [((sizes[-1][0] + 1) // 2, (sizes[-1][1] + 1) // 2)]
    return sizes


def check_items(x: Tensor, event_shape: tuple[int, ...]) -> None:
    if x.shape[1:] != event_shape or x.ndim == 0:
        expected = ", ".join(["n", *map(str, event_shape)])
        raise ValueError(
            f"expected ({expected}), got {tuple(x.shape)}; put all items along one "
            "first axis, as x.flatten(0, 1) does for views (batch, view, ...)"
        )


def integer(name: str, value: int) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        number = 0
    if number < 1:
        raise ValueError(f"expected {name} as a positive integer, got {value!r}")
    return number


def sizes(**named: Sequence[int]) -> tuple[int, ...]:
    ((name, values),) = named.items()
    try:
        sizes = tuple(map(operator.index, values))
    except TypeError:
        sizes = (0,)
    if min(sizes, default=1) < 1:
        raise ValueError(
            f"expected {name} as a tuple of positive integers, got {values!r}; data x "
            "(n, ...) have event shape tuple(x.shape[1:]), (50,) for rows of 50 numbers"
        )
    return sizes
