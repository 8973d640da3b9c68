r"""Simulation-based calibration (SBC): ranks, uniformity test and coverage.

If parameters are drawn from the prior, data given them, and posterior draws given the
data, then parameters and draws are exchangeable: the rank of the true value among L
draws is uniform on 0..L. A posterior that is too narrow gives extreme ranks, one that
is too wide central ranks, a biased one skewed ranks.

.. math:: \theta \sim p(\theta), \quad x \sim p(x \mid \theta), \quad
    \theta_1, \dots, \theta_L \sim p(\theta \mid x) \quad \Rightarrow \quad
    \#\{l : \theta_l < \theta\} \sim \mathrm{Uniform}\{0, \dots, L\}

References:
    Validating Bayesian Inference Algorithms with Simulation-Based Calibration (Talts et
    al., 2018)
    https://arxiv.org/abs/1804.06788
"""

import json
from collections.abc import Callable
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from jaxtyping import Float, Int
from pyro import poutine
from torch import Tensor, nn
from tqdm import tqdm

from .arguments import between, typed, whole
from .arrays import plain, span, tensor, whole_numbers
from .data.splits import Groups
from .joint import Joint
from .posterior.items import BAR_DELAY, evaluating
from .posterior.joints import check_guides, check_proper, check_spread, joint_of
from .terms import Batch

__all__ = ["ChiSquare", "Ranks", "Simulated", "latent_ranks", "rank", "simulate"]
__all__ += ["simulation_based_calibration"]


class Simulated(NamedTuple):
    """A data set drawn from the model, with its latent variables.

    Arguments:
        data: The views x, as `fit` takes them.
        z: The representations of the views.
        y: The content of each item, if it is explicit in the model; else None.
        hyper: The random hyper-parameters by name, drawn once for all items.
    """

    data: Groups
    z: Float[Tensor, "item view dim"]
    y: Float[Tensor, "item dim"] | None
    hyper: dict[str, Tensor]


class ChiSquare(NamedTuple):
    """Pearson's chi-square statistic and its p-value."""

    statistic: np.ndarray
    p_value: np.ndarray


class _Ranks(NamedTuple):
    ranks: Int[np.ndarray, "repeat *shape"]
    draws: int


class Ranks(_Ranks):
    """Ranks of true values among draws, independent along the first axis only.

    Entries of further axes, such as views and dimensions of z, are tested separately.

    Arguments:
        ranks: The number of draws below the true value, from 0 to `draws`.
        draws: The number L of draws.

    Raises:
        TypeError: Ranks that are not whole numbers.
        ValueError: No ranks, or ranks beyond 0 to `draws`.
    """

    __slots__ = ()

    def __new__(cls, ranks: Any, draws: int) -> Self:
        draws = whole("draws", draws)
        found = whole_numbers(ranks, "ranks", "count the draws below the true value")
        if not found.numel() or not found.ndim:
            raise ValueError(
                "expected ranks (repeat, *shape) of one repeat or more, got shape "
                f"{tuple(found.shape)}; give one row for each repeat"
            )
        low, high = span(found)
        if low < 0 or high > draws:
            raise ValueError(
                f"expected ranks from 0 to the number of draws, {draws}, got them from "
                f"{low:g} to {high:g}; give the number of draws that they were among"
            )
        return super().__new__(cls, plain(found), draws)

    def counts(self, bins: int = 10) -> Int[np.ndarray, "bins *shape"]:
        """Count the ranks in bins of equal width."""
        bin_of = self.ranks * bins // (self.draws + 1)
        return np.stack([(bin_of == b).sum(0) for b in range(bins)])

    def expected(self, bins: int = 10) -> Float[np.ndarray, " bins"]:
        """Expected counts of uniform ranks; all equal if bins divides draws + 1."""
        possible = np.arange(self.draws + 1) * bins // (self.draws + 1)
        share = np.bincount(possible, minlength=bins) / (self.draws + 1)
        return len(self.ranks) * share

    def chi_square(self, bins: int = 10) -> ChiSquare:
        r"""Pearson's chi-square test of uniform ranks.

        .. math:: \chi^2 = \sum_b \frac{(n_b - E n_b)^2}{E n_b}, \qquad
            \text{with bins} - 1 \text{ degrees of freedom}

        Raises:
            ValueError: If a bin expects fewer than five ranks: too few for the
                chi-square approximation.
        """
        from scipy.stats import chisquare

        expected = self.expected(bins)
        if bins < 2 or expected.min() < 5:
            raise ValueError(
                f"expected 2 or more bins with at least 5 ranks each, got {bins} bins "
                f"for {len(self.ranks)} ranks among {self.draws} draws; take fewer "
                "bins or more repeats"
            )
        each = expected.reshape(-1, *[1] * (self.ranks.ndim - 1))
        statistic, p_value = chisquare(self.counts(bins), each)
        return ChiSquare(np.asarray(statistic), np.asarray(p_value))

    def coverage(self, level: float = 0.9) -> Float[np.ndarray, "*shape"]:
        """The share of true values within the central interval of that probability.

        Uniform ranks have `level` for any number L of draws: a rank r stands for the
        interval from r / (L + 1) to (r + 1) / (L + 1), and counts by its part inside.

        Raises:
            ValueError: If the level is not between 0 and 1.
        """
        level = between("level", level, 0, 1, "try 0.9", open=True)
        cells, edge = self.draws + 1, (1 - level) / 2
        above = self.ranks + 1 - edge * cells  # the parts beyond the lower bound
        below = (1 - edge) * cells - self.ranks  # and before the upper one
        return (above.clip(0, 1) + below.clip(0, 1) - 1).clip(0).mean(0)

    def to_json(self) -> str:
        """The ranks and the number of draws as JSON, for `from_json`."""
        return json.dumps({"draws": self.draws, "ranks": self.ranks.tolist()})

    @staticmethod
    def from_json(text: str) -> "Ranks":
        """Read the ranks that `to_json` wrote."""
        read = json.loads(text)
        return Ranks(np.array(read["ranks"]), read["draws"])


@typed
def rank(
    true: Float[Tensor, "*shape"], draws: Float[Tensor, "draw *shape"]
) -> Int[np.ndarray, "*shape"]:
    """Count the draws below the true value of a continuous quantity (no ties).

    Raises:
        ValueError: If the shape of a draw is not that of the true value, or one of them
            is not finite.
    """
    true, draws = tensor(true, "true", finite=True), tensor(draws, "draws", finite=True)
    if draws.ndim != true.ndim + 1 or draws.shape[1:] != true.shape:
        raise ValueError(
            f"expected draws of shape (draw, *{tuple(true.shape)}), got "
            f"{tuple(draws.shape)}; stack them along a first axis"
        )
    return plain((draws < true).sum(0))


def _single(joint: Joint, what: str) -> Joint:
    """Return a joint; raise a ValueError for one of several modalities."""
    if joint.several:
        raise ValueError(
            f"expected a joint of one modality for {what}, got {len(joint.sites)}; "
            "draw them from the joint: joint.decode(joint.prior(views).sample((n,)))"
        )
    return joint


@typed
def simulate(objective: nn.Module, items: int, views: int = 2) -> Simulated:
    """Draw a data set from the model, random hyper-parameters from their prior.

    Raises:
        ValueError: If there is no joint distribution, p(y) is flat, or there are
            several modalities.
    """
    whole("items", items)
    whole("views", views)
    joint = _single(joint_of(objective, "a simulation"), "a simulation")
    check_proper(joint, "a simulation")
    anything = Batch(torch.empty(items, views))  # only its shape is used
    with evaluating(objective):
        model = poutine.trace(poutine.uncondition(joint.model))
        sites: dict[str, Any] = dict(model.get_trace(anything).nodes)
    hyper = {h.name: sites[h.name]["value"] for h in joint.prior.random()}
    y = sites["y"]["value"] if "y" in sites else None
    return Simulated(Groups(sites["x"]["value"]), sites["z"]["value"], y, hyper)


@typed
def simulation_based_calibration(
    build: Callable[[], nn.Module],
    fit: Callable[[Any, Groups], object],
    *,
    items: int = 100,
    views: int = 2,
    repeats: int = 300,
    draws: int = 99,
) -> dict[str, Ranks]:
    """Rank true hyper-parameters among draws of the guides fitted to their data (SBC).

    Each repeat builds an objective, simulates a data set from it, fits the objective to
    it, and ranks the true hyper-parameters among draws of their guides. Decoder and
    likelihood define the simulator: `fit` must not change them, which
    ``requires_grad_(False)`` ensures.

    Arguments:
        build: Returns a joint, or an objective with one, with random hyper-parameters.
        fit: Fits an objective to a data set, in place.
        repeats: The number of data sets.
        draws: The number L of draws; 99 give 100 possible ranks.

    Returns:
        The ranks of each hyper-parameter, by name.

    Raises:
        ValueError: If there is no random hyper-parameter, or no model to draw from.
    """
    whole("repeats", repeats)
    whole("draws", draws)
    found: dict[str, list[np.ndarray]] = {}
    for _ in tqdm(range(repeats), "calibration", delay=BAR_DELAY, unit="data set"):
        objective = build()
        joint = joint_of(objective, "simulation-based calibration")
        true = simulate(objective, items, views)
        if not true.hyper:
            raise ValueError(
                "expected random hyper-parameters to calibrate, got none; give the "
                "prior a Pyro distribution, or check the encoder with latent_ranks"
            )
        fit(objective, true.data)
        for h in joint.prior.random():
            drawn = h.posterior().sample((draws,))
            found.setdefault(h.name, []).append(rank(true.hyper[h.name], drawn))
    return {name: Ranks(np.stack(ranks), draws) for name, ranks in found.items()}


@typed
def latent_ranks(
    objective: nn.Module,
    items: int = 1000,
    views: int = 2,
    *,
    draws: int = 99,
    batch_size: int = 128,
) -> Ranks:
    """Rank the true z of simulated items among draws of q(z|x): calibration of a guide.

    Items are simulated from the objective, with random hyper-parameters at the median
    of their guide. Ranks have the shape (item, view, dim); views and dimensions of an
    item are dependent and tested separately. Uniform ranks do not prove that q is
    exact: the normalised likelihood, the posterior under a flat prior, may pass too.

    Raises:
        ValueError: If there is no joint distribution with a proper p(y) and a guide
            with a density.
    """
    whole("items", items)
    whole("views", views)
    whole("draws", draws)
    whole("batch_size", batch_size)
    joint = _single(joint_of(objective, "ranks of z"), "ranks of z")
    check_proper(joint, "ranks of z")
    check_spread(joint, "ranks of z")
    parts = []
    starts = range(0, items, batch_size)
    with evaluating(objective):
        for start in tqdm(starts, "ranks", delay=BAR_DELAY, unit="batch"):
            z = joint.prior(views).sample((min(batch_size, items - start),))
            batch = Batch(joint.decode(z).sample())
            check_guides(joint, batch, "ranks of z")
            q = joint.encode(batch)
            parts.append(rank(z, q.sample((draws,))))
    return Ranks(np.concatenate(parts), draws)
