"""Covariates: what p(x|z) and q(z|x) are conditional on, such as the library size.

They are tensors by name. One of each item has the shape (batch,) or (batch, k); one of
each view has three axes, (batch, view, k).
"""

from collections.abc import Callable, Mapping, Sequence
from inspect import signature
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Size, Tensor, nn

from .arrays import check_alike, tensor, whole_numbers

__all__ = ["Covariates", "at_rows", "checked_covariates", "declares", "flat_views"]
__all__ += ["given", "joined", "missing", "of_modalities", "of_views", "rows_at"]

Covariates = dict[str, Tensor]
_DECLARED: WeakKeyDictionary[Callable[..., Any], bool] = WeakKeyDictionary()


class Named(dict[str, Tensor]):
    """Covariates as a part gets them: one that is not there is named in the error."""

    def __missing__(self, name: str) -> Tensor:
        found = ", ".join(map(repr, self)) or "none"
        raise ValueError(
            f"expected a covariate {name!r}, which a part of the joint takes, got "
            f"{found}; give the data that too: ps.data.Split(x, covariates={{{name!r}: "
            "…})"
        )


def declares(part: Any) -> bool:
    """Whether a module's `forward`, or a function, has an argument `covariates`."""
    part = getattr(part, "_orig_mod", part)  # of what was compiled
    call = part.forward if isinstance(part, nn.Module) else part
    call = getattr(call, "__func__", call)
    try:
        if call not in _DECLARED:
            _DECLARED[call] = "covariates" in signature(call).parameters
        return _DECLARED[call]
    except (TypeError, ValueError):  # of a built-in function
        return False


def given(covariates: Any) -> dict[str, Any]:
    """The argument `covariates` of a call, where there are some."""
    return {} if covariates is None else {"covariates": covariates}


def missing(part: str) -> ValueError:
    """The error for a part that takes covariates, of which the data have none."""
    return ValueError(
        f"expected covariates for {part}, whose forward takes them, got none; give "
        "ps.fit(…, covariates={…}), and all else data that have them: "
        "ps.data.Split(x, covariates={…}), Groups or Batches"
    )


def checked_covariates(
    values: Any, n: int, views: int | None = None, like: Any = None
) -> Covariates:
    """Covariates of n items as tensors: whole numbers as int64, others as floats.

    Values are read on the CPU alone: elsewhere that would synchronise.

    Arguments:
        views: The number of views, if it is known.
        like: The items, whose index those of pandas must share.

    Raises:
        TypeError: Anything but a dictionary of names and real numbers.
        ValueError: Other lengths or axes, NaN or infinity.
    """
    if not isinstance(values, Mapping) or not all(
        isinstance(name, str) and name for name in values
    ):
        raise TypeError(
            "expected covariates as a dictionary of names and arrays with a row for "
            f"each item, got {type(values).__name__}; give {{'size': x.sum(1)}}, of a "
            "table dict(frame)"
        )
    return {name: _checked(name, x, n, views, like) for name, x in values.items()}


def _checked(name: str, values: Any, n: int, views: int | None, like: Any) -> Tensor:
    what = f"covariates[{name!r}]"
    check_alike(like, values, what, "index")
    x = tensor(values, what)
    if not x.is_floating_point():
        small = x.dtype in (torch.bool, torch.int64)
        x = x.long() if small else whole_numbers(x, what, "")
    elif x.is_cpu and not bool(x.isfinite().all()):
        raise ValueError(
            f"expected finite numbers in {what}, got NaN or infinity; impute them, or "
            "leave these items out"
        )
    shape, several = tuple(x.shape), "any number of" if views is None else views
    right = 1 <= x.ndim <= 3 and shape[0] == n and 0 not in shape
    if not right or (x.ndim == 3 and views not in (None, shape[1])):
        raise ValueError(
            f"expected {what} of each of {n} items, ({n},) or ({n}, k), or of each of "
            f"{several} views, ({n}, view, k), got shape {shape}; give a row for each "
            "item, in the same order"
        )
    return x


def rows_at(covariates: Covariates | None, index: Any) -> Covariates | None:
    """The covariates in these rows."""
    if covariates is None:
        return None
    if isinstance(index, Tensor):
        return {name: x[index.to(x.device)] for name, x in covariates.items()}
    return {name: x[index] for name, x in covariates.items()}


def joined(*parts: Covariates | None) -> Covariates | None:
    """The covariates of several sources; later ones take the place of earlier ones."""
    known = [part for part in parts if part is not None]
    return {name: x for part in known for name, x in part.items()} if known else None


def of_views(covariates: Covariates, lead: Size | Sequence[int]) -> Named:
    """A row of the covariates for each of the axes `lead`, (\\*draws, batch, view).

    Each has the shape `lead`, or (\\*lead, k).
    """
    found = Named()
    for name, x in covariates.items():
        each = x if x.ndim == 3 else x.unsqueeze(1)
        own, items = tuple(each.shape[2:]), each.shape[:2]
        fits = items[0] == lead[-2] and (x.ndim < 3 or items[1] == lead[-1])
        if not fits:
            raise ValueError(
                f"expected covariates[{name!r}] of {lead[-2]} items"
                f"{f' with {lead[-1]} views' * (x.ndim == 3)}, got shape "
                f"{tuple(x.shape)}; give a row for each item, and of each view "
                "(item, view, k)"
            )
        found[name] = each.expand(*lead, *own)
    return found


def of_modalities(
    covariates: Covariates | None, widths: Sequence[int]
) -> list[Covariates | None]:
    """The covariates of the views of each modality; those of items are of all."""
    if covariates is None:
        return [None] * len(widths)
    starts = np.cumsum([0, *widths]).tolist()
    wrong = [x for x in covariates.values() if x.ndim == 3 and x.shape[1] != starts[-1]]
    if wrong:
        of_views(covariates, (len(wrong[0]), starts[-1]))  # its error
    return [
        {
            name: x[:, start : start + width] if x.ndim == 3 else x
            for name, x in covariates.items()
        }
        for start, width in zip(starts, widths, strict=False)
    ]


def flat_views(covariates: Covariates, lead: Size | Sequence[int]) -> Named:
    """As `of_views`, the axes `lead` flattened to rows, as networks get them."""
    axes = len(lead)
    each = of_views(covariates, lead).items()
    return Named({name: x.flatten(0, axes - 1) for name, x in each})


def at_rows(covariates: Named | None, rows: Tensor) -> Named | None:
    """Some of the rows that a network gets."""
    if covariates is None:
        return None
    return Named({name: x[rows] for name, x in covariates.items()})
