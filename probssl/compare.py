"""Every method on the same data, the same views and the same measures."""

import json
import math
from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm import tqdm

from . import recipes
from .bounds import ELBO
from .data import Dataset, Split
from .entropies import LogDeterminant
from .evaluation import scores
from .joint import Joint
from .posterior import embed
from .priors import Gaussian
from .terms import Batch

if TYPE_CHECKING:
    import pandas

__all__ = ["Comparison", "compare", "gaussian_terms", "own_terms"]

Sampler = Callable[[Tensor], Tensor]
Row = dict[str, Any]

SHOWN = {
    "reconstruction": "E log p(x|z)",
    "entropy": "H[q]",
    "alignment": "E log p(z)",
    "elbo": "ELBO",
    "log_det": "log-det",
    "linear_probe": "linear",
    "few_label_probe": "few-label",
    "knn": "5-NN",
    "cluster_accuracy": "cluster",
    "ari": "ARI",
    "effective_rank": "rank",
    "seconds": "seconds",
}


class Comparison:
    """What `compare` found: for each method its terms, scores and seconds.

    Attributes:
        data: The name of the data set.
        seed: The seed of the views and of all draws.
        methods: For each name ``{"terms": …, "scores": …, "seconds": …}``.
    """

    def __init__(self, data: str, seed: int, methods: dict[str, Row]) -> None:
        self.data, self.seed, self.methods = data, seed, methods

    @property
    def table(self) -> "pandas.DataFrame":
        """One row for each method, terms in nats per item; NaN where undefined."""
        import pandas

        rows = {
            name: row["terms"] | row["scores"] | {"seconds": row["seconds"]}
            for name, row in self.methods.items()
        }
        table = pandas.DataFrame.from_dict(rows, orient="index").astype(float)
        return table.reindex(columns=[*SHOWN, *table.columns.difference([*SHOWN])])

    def __str__(self) -> str:
        table = self.table[list(SHOWN)].dropna(axis="columns", how="all")
        digits = {"rank": 1, "seconds": 1, "linear": 3, "few-label": 3, "5-NN": 3}
        digits |= {"cluster": 3, "ARI": 3}
        table = table.rename(columns=SHOWN)
        return table.to_string(
            na_rep="–",
            formatters={
                name: f"{{:.{digits.get(name, 2)}f}}".format for name in table.columns
            },
        )

    __repr__ = __str__

    def to_json(self, path: str | PathLike[str] | None = None) -> str:
        """The comparison as JSON, also written to `path` if it is given."""
        content = {"data": self.data, "seed": self.seed, "methods": self.methods}
        text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
        if path is not None:
            Path(path).write_text(text + "\n", encoding="utf-8")
        return text

    @classmethod
    def from_json(cls, path: str | PathLike[str]) -> "Comparison":
        """Read what `to_json` wrote."""
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        return cls(content["data"], content["seed"], content["methods"])


def compare(
    objectives: dict[str, nn.Module],
    data: Dataset,
    *,
    views: Sampler | None = None,
    baselines: bool = True,
    seconds: dict[str, float] | None = None,
    max_train: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Comparison:
    """Measure fitted objectives on the terms, in nats, and on the scores.

    Terms are measured on two views of each test item, the same for all, with unit
    weights; they are never read off a loss. Scores see each item alone, through the
    mean of q or the encoder's output, fitted on the training split.

    Arguments:
        objectives: Fitted objectives by name.
        data: The data set, with labels.
        views: The sampler of the views; by default `recipes.views`.
        baselines: Whether to add rows for raw pixels, PCA and an untrained encoder.
        seconds: The training time of each objective, to be listed.
        max_train: Fit probes on at most so many training items.
        seed: Of the views, the noise, and the draws of the probes.

    Raises:
        ValueError: If labels are missing, or if evidences under different measures of
            the data would stand side by side.
    """
    _check(objectives, data)
    sampler = recipes.views(data) if views is None else views
    pair = sampled(sampler, data.test, seed)
    rows: dict[str, Row] = {}
    encoders = _baselines(objectives, data, seed) if baselines else {}
    labels = (data.train.labels, data.test.labels)
    assert labels[0] is not None and labels[1] is not None
    everything = tqdm(
        [*objectives.items(), *encoders.items()], "measure", disable=not progress
    )
    for name, subject in everything:
        everything.set_postfix_str(name)
        train, test = (_represent(subject, s) for s in (data.train, data.test))
        z = torch.stack(
            [torch.from_numpy(_represent(subject, Split(v))) for v in pair.unbind(1)], 1
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            terms = own_terms(subject, pair) | gaussian_terms(z.flatten(2).double())
        rows[name] = {
            "terms": terms,
            "scores": scores(
                train,
                labels[0],
                test,
                labels[1],
                seed,
                max_train=max_train,
            ),
            "seconds": (seconds or {}).get(name, 0.0),
        }
    return Comparison(data.name, seed, rows)


def gaussian_terms(z: Float[Tensor, "n view dim"]) -> dict[str, float]:
    r"""The terms of z under a flat p(y) and a Gaussian p(z|y) of the likeliest scale.

    .. math:: \hat I = E \log p(z_1, \dots, z_V)
        + (V - 1) \tfrac12 \log |2 \pi e \Sigma|, \qquad
        \hat \sigma^2 = \frac{E \sum_v \lVert z_v - \bar z \rVert^2}{(V - 1) d}

    Their sum, the value of the log-det objective at its best scale, does not move when
    z is rescaled or rotated. For Gaussian z it is a lower bound on the mutual
    information of two views. It is left out where the covariance of z is singular.
    """
    n, views, dim = z.shape
    square = (z - z.mean(1, keepdim=True)).square().sum() / (n * (views - 1) * dim)
    if not square > 0 or int(torch.linalg.matrix_rank(z[:, 0] - z[:, 0].mean(0))) < dim:
        return {}
    prior = Gaussian(None, float(square.sqrt()), y_scale=math.inf).to(z.dtype)
    alignment = float(prior.log_prob(z).mean())
    entropy = (views - 1) * float(LogDeterminant(epsilon=0.0)(z))
    return {
        "gaussian_alignment": alignment,
        "gaussian_entropy": entropy,
        "log_det": alignment + entropy,
    }


@torch.no_grad()
def own_terms(
    objective: object, views: Float[Tensor, "n view *event"], particles: int = 8
) -> dict[str, float]:
    """The terms of the evidence bound of a joint for all views of an item, in nats.

    Unit weights whatever the objective's own; empty where there is no joint, or none
    that is proper.
    """
    joint = getattr(objective, "joint", None)
    if joint is None or not joint.prior.proper:
        return {}
    like = next(joint.parameters())
    total = torch.zeros(3, dtype=torch.double)
    for part in views.split(512):
        terms = ELBO(particles)(joint, Batch(part.to(like)))
        total += len(part) * torch.stack(
            [torch.as_tensor(t).double().cpu() for t in terms[:3]]
        )
    reconstruction, entropy, alignment = (total / len(views)).tolist()
    return {
        "reconstruction": reconstruction,
        "entropy": entropy,
        "alignment": alignment,
        "elbo": reconstruction + entropy + alignment,
    }


def sampled(
    sampler: Sampler, split: Split, seed: int
) -> Float[Tensor, "n view *event"]:
    """Views of all items of a split, always the same for one seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return torch.cat([sampler(part) for part in as_float(split).split(1024)])


def as_float(split: Split) -> Tensor:
    """The items as floating point; bytes become k/255."""
    images = split.images
    return images if images.is_floating_point() else images.float() / 255


def _represent(subject: object, split: Split) -> np.ndarray:
    if isinstance(subject, nn.Module):
        return np.asarray(embed(subject, split))
    return subject(as_float(split).flatten(1).numpy())  # type: ignore[operator]


def _baselines(
    objectives: dict[str, nn.Module], data: Dataset, seed: int
) -> dict[str, object]:
    """Raw pixels, PCA to the dimension of the first objective, an untrained encoder."""
    from sklearn.decomposition import PCA

    first = next(iter(objectives.values()))
    dim = embed(first, Split(data.test.images[:2])).shape[1]
    train = as_float(data.train).flatten(1).numpy()
    pca = PCA(min(dim, *train.shape), random_state=seed).fit(train)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        untrained = recipes.encoder(data, dim)
    return {
        "raw pixels": lambda x: x,
        f"PCA-{pca.n_components_}": pca.transform,
        "untrained encoder": untrained,
    }


def _check(objectives: dict[str, nn.Module], data: Dataset) -> None:
    if not objectives:
        raise ValueError(
            "expected at least one objective to compare, got none; give "
            "{'SimVAE': simvae, …}"
        )
    for part, split in (("training", data.train), ("test", data.test)):
        if split.labels is None:
            raise ValueError(
                f"expected labels for the {part} items of {data.name}, got none; "
                "scores need them: give the data set labels"
            )
    joints = {name: getattr(o, "joint", None) for name, o in objectives.items()}
    measures = {
        name: joint.likelihood.measure
        for name, joint in joints.items()
        if isinstance(joint, Joint)
    }
    if len(set(measures.values())) > 1:
        listed = "; ".join(f"{name}: {measure}" for name, measure in measures.items())
        raise ValueError(
            "expected evidences under one measure of the data, got "
            f"{listed}; they are no comparison: give all joints one kind of likelihood"
        )
