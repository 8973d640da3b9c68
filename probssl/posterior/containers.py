"""ArviZ 0.2x and 1.x: containers of draws, and Pareto k̂."""

import warnings
from collections.abc import Mapping
from importlib.metadata import version
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from ..runtime.threads import LOCK

if TYPE_CHECKING:
    import arviz
    import pandas
    import xarray

__all__ = ["Variable", "compared", "container", "pareto_k", "provenance"]

Variable = tuple[tuple[str, ...], np.ndarray]  # the names of its axes, its values

MIN_DRAWS = 25  # whose largest fifth is a tail that can be fitted


def container(
    groups: Mapping[str, Mapping[str, Variable]],
    coords: Mapping[str, np.ndarray | list[str]],
    attrs: Mapping[str, str | int],
) -> "arviz.InferenceData | xarray.DataTree":
    """Groups of named arrays as InferenceData (ArviZ 0.2x) or as a DataTree (1.x).

    Arguments:
        coords: The labels along an axis; other axes count from 0.
        attrs: The attributes of every group.
    """
    import xarray

    datasets = {}
    for name, variables in groups.items():
        sizes: dict[str, int] = {}
        for axes, values in variables.values():
            sizes |= zip(axes, values.shape, strict=True)
        labels = {axis: coords.get(axis, np.arange(n)) for axis, n in sizes.items()}
        datasets[name] = xarray.Dataset(dict(variables), labels, dict(attrs))
    if _major() == 0:
        return _arviz().InferenceData(attrs=dict(attrs), **datasets)
    root = xarray.Dataset(attrs=dict(attrs))
    return xarray.DataTree.from_dict({"/": root} | datasets)


def provenance() -> dict[str, str]:
    """The attributes that ArviZ gives for the origin of draws."""
    return {
        "inference": "SVI",
        "inference_library": "pyro-ppl",
        "inference_library_version": version("pyro-ppl"),
        "creation_library": "probssl",
    }


def compared(
    sums: "pandas.DataFrame", unreliable: "pandas.Series[bool]"
) -> "pandas.DataFrame":
    """A comparison with the columns of ``az.compare``, which ``az.plot_compare`` draws.

    Arguments:
        sums: A row for each model, the best first, with the columns elpd and se (the
            sum of log densities over items), elpd_diff (from the best, at most 0) and
            dse, and weight.
        unreliable: The models whose densities are not reliable.
    """
    table = sums.assign(rank=range(len(sums)), p=np.nan)
    if _major() > 0:
        table["diag_elpd"] = np.where(unreliable, "k̂ > 0.7", "")
        columns = ["rank", "elpd_diff", "dse", "diag_elpd", "p", "elpd", "se", "weight"]
        return table[columns]
    table = table.assign(elpd_diff=-table["elpd_diff"], warning=unreliable, scale="log")
    table = table.rename(columns={"elpd": "elpd_loo", "p": "p_loo"})
    columns = ["rank", "elpd_loo", "p_loo", "elpd_diff", "weight", "se", "dse"]
    return table[[*columns, "warning", "scale"]]


def pareto_k(log_weights: Float[np.ndarray, "item draw"]) -> Float[np.ndarray, " item"]:
    """Pareto k̂ of each item: the shape of the tail of its importance weights.

    NaN below 25 draws, and where the weights differ by no more than rounding; infinity
    where all weights are zero. Single zeros are below any tail.

    References:
        Pareto Smoothed Importance Sampling (Vehtari et al., 2024)
        https://arxiv.org/abs/1507.02646
    """
    largest = log_weights.max(1, keepdims=True)
    nowhere = np.isneginf(largest[:, 0])
    k = np.where(nowhere, np.inf, np.nan)
    if log_weights.shape[1] < MIN_DRAWS:
        return k
    least = np.log(np.finfo(np.float64).tiny)
    zero = np.where(nowhere[:, None], 0.0, largest)
    weights = np.maximum(log_weights.astype(np.float64) - zero, least)
    size = np.abs(largest[:, 0]) * np.finfo(log_weights.dtype).eps
    rows = ~nowhere & (np.ptp(weights, 1) > 64 * size)
    if not rows.any():
        return k
    chosen = weights[rows]
    if _major() == 0:
        k[rows] = _arviz().psislw(chosen)[1]
        return k
    from arviz_stats.base import array_stats

    # This psislw takes log-likelihoods, the negative log-weights of leave-one-out; k̂ of
    # a few large weights above equal ones is NaN, where 0.2x has infinity.
    found = array_stats.psislw(-chosen)[1]
    k[rows] = np.where(np.isnan(found), np.inf, found)
    return k


def _major() -> int:
    return int(version("arviz").partition(".")[0])


def _arviz() -> ModuleType:
    with LOCK, warnings.catch_warnings():
        # ArviZ 0.23 announces the next version once a day.
        warnings.filterwarnings("ignore", r"\s*ArviZ is undergoing", FutureWarning)
        import arviz

    return arviz
