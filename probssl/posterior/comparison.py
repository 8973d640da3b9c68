r"""Comparison of models by their log evidence: paired differences, stacking weights.

The log evidence of held-out items is their log predictive density, the quantity that
leave-one-out cross-validation estimates for models without a latent variable per item.

References:
    Practical Bayesian model evaluation using leave-one-out cross-validation and WAIC
    (Vehtari et al., 2017)
    https://arxiv.org/abs/1507.04544
    Using Stacking to Average Bayesian Predictive Distributions (Yao et al., 2018)
    https://arxiv.org/abs/1704.02030
"""

import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..arguments import typed
from ..arrays import plain
from ..data.batches import Loadable, Target, Views
from ..estimates import estimate
from ..joint import Joint
from ..terms import Batch
from .containers import compared
from .evidence import RELIABLE_K, Evidence, Run
from .items import batches, evaluating

if TYPE_CHECKING:
    import pandas

__all__ = ["EvidenceComparison", "compare_evidence", "pseudo_bma", "stacking"]

RESAMPLES = 1_000  # of the items, for the pseudo-BMA+ weights
LEAST = 1e-12  # weight of a model
POLISHED = 200  # steps of EM after the optimiser of stacking


class EvidenceComparison(NamedTuple):
    """Log evidences of models on the same items, the highest first.

    Arguments:
        evidences: The `Evidence` of each model, by name.
        stacking: The weight of each model in the mixture of models that gives the items
            the highest log density.
        pseudo_bma: The pseudo-BMA+ weights: how often a model is the best when the
            items are resampled, softly.
    """

    evidences: dict[str, Evidence]
    stacking: dict[str, float]
    pseudo_bma: dict[str, float]

    @property
    def table(self) -> "pandas.DataFrame":
        """A row for each model, in nats per item.

        ==============  ==============================================================
        log_evidence    mean over items
        se              its standard error
        difference      from the best model, paired by items
        difference_se   its standard error; 0 for the best model
        stacking        weight by stacking
        pseudo_bma      weight by pseudo-BMA+
        unreliable      items whose Pareto k̂ is above 0.7
        ==============  ==============================================================
        """
        import pandas

        best = self._first.log_evidence
        rows = {}
        for name, own in self.evidences.items():
            value, error = _mean(own.log_evidence)
            difference, difference_error = _mean(own.log_evidence - best)
            rows[name] = {
                "log_evidence": value,
                "se": error,
                "difference": difference,
                "difference_se": difference_error,
                "stacking": self.stacking[name],
                "pseudo_bma": self.pseudo_bma[name],
                "unreliable": own.unreliable,
            }
        return pandas.DataFrame.from_dict(rows, orient="index")

    def to_arviz(self) -> "pandas.DataFrame":
        """The table that ``az.plot_compare`` draws, as ``az.compare`` would return it.

        Sums over items, not means, in the columns of the installed version of ArviZ.
        The effective number of parameters is NaN: it corrects a density of the data
        that the parameters were fitted to.
        """
        table = self.table
        sums = len(self._first.log_evidence) * table.rename(
            columns={
                "log_evidence": "elpd",
                "difference": "elpd_diff",
                "difference_se": "dse",
            }
        )
        sums["weight"] = table["stacking"]
        return compared(sums, table["unreliable"] > 0)

    def __repr__(self) -> str:
        return f"{self._title()}\n{self.table.round(2).to_string()}"

    def _repr_html_(self) -> str:
        table = self.table.round(2).to_html()
        return f"<p>{self._title()}</p>{table}"

    @property
    def _first(self) -> Evidence:
        return next(iter(self.evidences.values()))

    def _title(self) -> str:
        items, measure = len(self._first.log_evidence), self._first.measure
        return f"log evidence of {items:,} items, nats per item, measure: {measure}"


@typed
def compare_evidence(
    objectives: Mapping[str, nn.Module],
    data: Loadable,
    *,
    particles: int = 100,
    refine: int = 0,
    anneal: int = 0,
    views: Views | None = None,
    batch_size: int = 64,
) -> EvidenceComparison:
    r"""Compare models by the log evidence of the same items, with paired errors.

    .. math:: \Delta_k = \frac1n \sum_{i=1}^n
        \big( \log \hat p_k(x_i) - \log \hat p_\text{best}(x_i) \big)

    All models see the same views of an item. Differences are paired by items: their
    standard error does not contain what makes an item hard for all models. The
    stacking weights maximise

    .. math:: \frac1n \sum_i \log \sum_k w_k \, \hat p_k(x_i), \qquad
        w_k \ge 0, \quad \sum_k w_k = 1.

    Take held-out items: on training items a model that overfits wins.

    Arguments:
        objectives: The models by name, each with a joint distribution.
        data: As in `evidence`.
        particles: As in `evidence`.
        refine: As in `evidence`.
        anneal: As in `evidence`.
        views: As in `evidence`: drawn once for all models.

    Raises:
        ValueError: If there are fewer than two models or items, if the likelihoods have
            different measures (densities do not compare with probabilities); or if a
            model has no evidence of these items.
    """
    if len(objectives) < 2:
        raise ValueError(
            f"expected at least 2 models to compare, got {list(objectives)}; give "
            "{'SimVAE': simvae, 'VAE': vae}, or call ps.evidence for one"
        )
    runs = {name: Run(o, particles, refine, anneal) for name, o in objectives.items()}
    _check_measures({name: run.joint for name, run in runs.items()})
    with ExitStack() as stack:
        likes = [stack.enter_context(evaluating(o)) for o in objectives.values()]
        for batch in batches(data, _finest(likes), views, batch_size, "evidences"):
            for run, like in zip(runs.values(), likes, strict=True):
                run.add(batch if like is None else _moved(batch, like))
    found = {name: run.evidence() for name, run in runs.items()}
    items = len(next(iter(found.values())).log_evidence)
    if items < 2:
        raise ValueError(
            f"expected at least 2 items, got {items}: a standard error over items "
            "needs them; give more"
        )
    if any(own.unreliable for own in found.values()):
        told = ", ".join(f"{name}: {own.unreliable}" for name, own in found.items())
        warnings.warn(
            f"Pareto k̂ is above {RELIABLE_K} for some of {items} items ({told}): their "
            "evidence is a lower bound of unknown error, and so are differences; "
            "take refine=500 or anneal=100, or leave these items out of a claim",
            stacklevel=3,
        )
    ordered = dict(sorted(found.items(), key=lambda pair: -pair[1].mean))
    columns = np.stack([own.log_evidence for own in ordered.values()], 1)
    weights = (stacking(columns), pseudo_bma(columns))
    return EvidenceComparison(
        ordered, *(dict(zip(ordered, map(float, w), strict=True)) for w in weights)
    )


def stacking(
    log_density: Float[np.ndarray, "item model"],
) -> Float[np.ndarray, " model"]:
    r"""Weights that maximise :math:`\sum_i \log \sum_k w_k p_k(x_i)` on the simplex."""
    from scipy.optimize import minimize

    density = np.exp(log_density - log_density.max(1, keepdims=True))
    models = density.shape[1]

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        mixed = density @ weights
        return -float(np.log(mixed).mean()), -(density / mixed[:, None]).mean(0)

    found = minimize(
        loss,
        np.full(models, 1 / models),
        jac=True,
        method="SLSQP",
        bounds=[(LEAST, 1.0)] * models,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1, "jac": np.ones_like},
        options={"ftol": 1e-12, "maxiter": 1_000},
    )
    weights = found.x.clip(LEAST)  # at 0 an item that a model alone has is lost
    weights /= weights.sum()
    for _ in range(POLISHED):  # steps of EM, exact where few items prefer a model
        weights *= (density / (density @ weights)[:, None]).mean(0)
    return weights


def pseudo_bma(
    log_density: Float[np.ndarray, "item model"],
) -> Float[np.ndarray, " model"]:
    """Pseudo-BMA+ weights: softmax of the sum over items, by the Bayesian bootstrap."""
    items = len(log_density)
    shares = torch.distributions.Dirichlet(torch.ones(items, dtype=torch.float64))
    sums = items * shares.sample((RESAMPLES,)) @ torch.from_numpy(log_density).double()
    return plain(sums.softmax(1).mean(0))


def _finest(likes: Sequence[Tensor | None]) -> Tensor | None:
    """That of the highest precision: the others round what it sees, as alone."""
    known = [like for like in likes if like is not None]
    return min(known, key=lambda like: torch.finfo(like.dtype).eps, default=None)


def _moved(batch: Batch, like: Tensor) -> Batch:
    return Target(like.device, like.dtype).batch(batch)


def _mean(values: Float[np.ndarray, " item"]) -> tuple[float, float]:
    mean = estimate(values)
    return mean.value, mean.standard_error


def _check_measures(joints: Mapping[str, Joint]) -> None:
    """Raise a ValueError for densities of different kinds.

    Views of one modality and modalities of one measure have the same; of several
    measures each modality counts.
    """
    measures = {}
    for name, joint in joints.items():
        each = [part.measure for part in joint.likelihoods]
        measures[name] = " × ".join(each if len({*each}) > 1 else each[:1])
    if len(set(measures.values())) > 1:
        told = "; ".join(f"{name}: {measure}" for name, measure in measures.items())
        raise ValueError(
            f"expected likelihoods of one measure, got {told}; a density does not "
            "compare with a probability: give all models a likelihood of one measure"
        )
