r"""Simulation-based calibration (SBC) and TARP: ranks, uniformity test and coverage.

If parameters are drawn from the prior, data given them, and posterior draws given the
data, then parameters and draws are exchangeable: the rank of the true value among L
draws is uniform on 0..L. A posterior that is too narrow gives extreme ranks, one that
is too wide central ranks, a biased one skewed ranks.

.. math:: \theta \sim p(\theta), \quad x \sim p(x \mid \theta), \quad
    \theta_1, \dots, \theta_L \sim p(\theta \mid x) \quad \Rightarrow \quad
    \#\{l : \theta_l < \theta\} \sim \mathrm{Uniform}\{0, \dots, L\}

SBC ranks one number at a time. TARP (tests of accuracy with random points) ranks the
distance of all numbers of an item together from a random point, and so sees wrong
dependencies as well.

References:
    Validating Bayesian Inference Algorithms with Simulation-Based Calibration (Talts et
    al., 2018)
    https://arxiv.org/abs/1804.06788
    Sampling-Based Accuracy Testing of Posterior Estimators for General Inference (Lemos
    et al., 2023)
    https://arxiv.org/abs/2302.03026
"""

import json
from collections.abc import Callable, Iterator, Sequence
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
from .distributions.supports import support_of
from .joint import Joint
from .posterior.contents import draw_content
from .posterior.items import BAR_DELAY, evaluating
from .posterior.joints import (
    check_guides,
    check_proper,
    check_spread,
    check_unconditional,
    joint_of,
)
from .reading import guarded, parsed
from .runtime.interrupts import Interrupts
from .terms import Batch

__all__ = ["ChiSquare", "Ranks", "Simulated", "latent_ranks", "latent_tarp", "rank"]
__all__ += ["simulate", "simulation_based_calibration", "tarp"]

Pair = tuple[Tensor, Tensor]  # true values (item, …), and draws (draw, item, …)


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

    def __repr__(self) -> str:
        many, *shape = self.ranks.shape
        of = f" of {tuple(shape)} values each" if shape else ""
        level = f"90 % intervals hold {np.mean(self.coverage(0.9)):.0%}"
        return f"Ranks({many:,} ranks{of} among {self.draws} draws; {level})"

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
        """Read the ranks that `to_json` wrote.

        Raises:
            ValueError: If they are none: whole numbers from 0 to the number of draws.
        """
        with guarded("the text", "Ranks.to_json writes it", "give what it wrote"):
            read = parsed(text.encode())
            ranks, draws = np.array(read["ranks"]), read["draws"]
            whole = ranks.size and ranks.dtype.kind == "i" and type(draws) is int
            if not (whole and ranks.min() >= 0 and ranks.max() <= draws):
                raise ValueError("ranks are not numbers from 0 to draws")
        return Ranks(ranks, draws)


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


@typed
def tarp(
    true: Float[Tensor, "item *shape"],
    draws: Float[Tensor, "draw item *shape"],
    references: Float[Tensor, "item *shape"] | None = None,
) -> Ranks:
    r"""Rank true values by their distance from random points, a rank for each item.

    .. math:: r_i = \#\{l : d(\theta_{il}, \rho_i) < d(\theta_i, \rho_i)\}

    All numbers of an item count together, in units of the standard deviation of its
    draws and true value. Uniform ranks, by `Ranks.chi_square`, mean that the credible
    regions around :math:`\rho` hold the true value as often as they say; too narrow
    draws give extreme ranks. `plots.expected_coverage` draws them.

    Arguments:
        references: The points :math:`\rho`, which may depend on the data x, but on true
            values and draws not otherwise. By default the true values of other items,
            which are draws from the prior. They cannot tell the posterior from the
            prior itself; points that depend on x can.

    Raises:
        ValueError: For a single item without references, or if the shapes do not fit,
            or a number is not finite.
    """
    true, draws = tensor(true, "true", finite=True), tensor(draws, "draws", finite=True)
    if true.ndim < 1 or draws.ndim != true.ndim + 1 or draws.shape[1:] != true.shape:
        raise ValueError(
            f"expected draws of shape (draw, *{tuple(true.shape)}), the first axis of "
            f"true being that of items, got {tuple(draws.shape)}; stack them along a "
            "first axis"
        )
    if references is None:
        if len(true) < 2:
            raise ValueError(
                "expected at least 2 items, whose true values are each other's random "
                f"points, got {len(true)}; give references=…"
            )
        references = true.roll(1, 0)
    references = tensor(references, "references", finite=True)
    if references.shape != true.shape:
        raise ValueError(
            f"expected references of shape {tuple(true.shape)}, one point for each "
            f"item, got {tuple(references.shape)}; give as many as true values"
        )
    both = torch.cat([true.unsqueeze(0), draws]).double()
    spread = both.std(0)
    away = (both - references) / spread.where(spread > 0, 1.0)
    distance = away.flatten(2).norm(dim=-1) if away.ndim > 2 else away.abs()
    return Ranks((distance[1:] < distance[0]).sum(0), len(draws))


def _single(joint: Joint, what: str) -> Joint:
    """Return a joint; raise a ValueError for several modalities, or covariates."""
    check_unconditional(joint, what)
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
    jointly: bool = False,
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
        jointly: Whether to add TARP's ranks of all hyper-parameters together, as
            "tarp".

    Returns:
        The ranks of each hyper-parameter, by name.

    Raises:
        ValueError: If there is no random hyper-parameter, or no model to draw from.
    """
    whole("draws", draws)
    whole("repeats", repeats, least=2 if jointly else 1)
    found: dict[str, list[np.ndarray]] = {}
    pairs: list[Pair] = []
    with Interrupts() as interrupts:
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
            interrupts.check()  # its fit was cut short
            numbers = []
            for h in joint.prior.random():
                drawn, own = h.posterior().sample((draws,)), true.hyper[h.name]
                found.setdefault(h.name, []).append(rank(own, drawn))
                numbers.append((own.reshape(1, -1), drawn.reshape(draws, 1, -1)))
            true_numbers, drawn_numbers = zip(*numbers, strict=True)
            pairs.append((torch.cat(true_numbers, -1), torch.cat(drawn_numbers, -1)))
    ranks = {name: Ranks(np.stack(each), draws) for name, each in found.items()}
    return ranks | ({"tarp": tarp(*_joined(pairs))} if jointly else {})


def _joined(pairs: Sequence[Pair]) -> Pair:
    """The items of several pairs."""
    true, drawn = zip(*pairs, strict=True)
    return torch.cat(true), torch.cat(drawn, 1)


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
    parts = []
    for pairs in _compared(objective, items, views, draws, batch_size, content=False):
        parts.append(rank(*pairs["z"]))
    return Ranks(np.concatenate(parts), draws)


@typed
def latent_tarp(
    objective: nn.Module,
    items: int = 1000,
    views: int = 2,
    *,
    draws: int = 99,
    batch_size: int = 128,
) -> dict[str, Ranks]:
    """TARP of a guide: ranks of the true z of simulated items, and of their content y.

    As `latent_ranks`, for all views and dimensions of an item together: a guide with
    the right spread of each number and wrong correlations is found out. The draws of y
    are those of `posterior_y`.

    Returns:
        The ranks of "z", and of "y" where views are independent given a continuous y
        whose posterior the prior or a guide knows.

    Raises:
        ValueError: As `latent_ranks`; for fewer than two items.
    """
    whole("items", items, least=2)
    found: dict[str, list[Pair]] = {}
    for pairs in _compared(objective, items, views, draws, batch_size, content=True):
        for name, pair in pairs.items():
            found.setdefault(name, []).append(pair)
    return {name: tarp(*_joined(pairs)) for name, pairs in found.items()}


def _compared(
    objective: nn.Module,
    items: int,
    views: int,
    draws: int,
    batch_size: int,
    content: bool,
) -> Iterator[dict[str, Pair]]:
    """True values of simulated items with draws of the guide given their views."""
    for name, number in {"items": items, "views": views, "draws": draws}.items():
        whole(name, number)
    whole("batch_size", batch_size)
    joint = _single(joint_of(objective, "ranks of z"), "ranks of z")
    check_proper(joint, "ranks of z")
    check_spread(joint, "ranks of z")
    starts = range(0, items, batch_size)
    with evaluating(objective):
        for start in tqdm(starts, "ranks", delay=BAR_DELAY, unit="batch"):
            true = _true(joint, min(batch_size, items - start), views, content)
            drawn = _posterior_draws(joint, true["z"], draws, "y" in true)
            shared = [name for name in true if name in drawn]
            yield {name: (true[name], drawn[name]) for name in shared}


def _true(joint: Joint, items: int, views: int, content: bool) -> dict[str, Tensor]:
    """z of simulated items, and their y where it is wanted and continuous."""
    try:
        p = joint.prior.content() if content else None
    except TypeError:
        p = None
    if p is None or support_of(p).is_discrete:
        return {"z": joint.prior(views).sample((items,))}
    y = p.sample((items,))
    try:
        each = joint.prior.given(y.unsqueeze(-2))
    except TypeError:  # views are not independent given y
        return {"z": joint.prior(views).sample((items,))}
    return {"z": each.expand((items, views)).sample(), "y": y}


def _posterior_draws(
    joint: Joint, z: Tensor, draws: int, content: bool
) -> dict[str, Tensor]:
    """Draws of z, and of y, given views that are drawn given the true z."""
    batch = Batch(joint.decode(z).sample())
    check_guides(joint, batch, "ranks of z")
    drawn = joint.encode(batch).sample((draws,))
    if not content:
        return {"z": drawn}
    if joint.content is not None:
        return {"z": drawn, "y": joint.content(drawn).sample()}
    return {"z": drawn} | draw_content(joint.prior, drawn, {})
