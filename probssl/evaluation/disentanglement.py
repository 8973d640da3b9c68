"""Disentanglement: whether each factor, of content or style, has a dimension of z.

References:
    Challenging Common Assumptions in the Unsupervised Learning of Disentangled
    Representations (Locatello et al., 2019), for a comparison
    https://arxiv.org/abs/1811.12359
"""

import math
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped

from ..arguments import typed, whole
from ..arrays import Array, centred, check_alike, representations
from ..estimates import Undefined
from .probes import each_factor, linear_probe

__all__ = ["DCI", "dci", "dci_of", "mcc", "mig", "sap"]

BINS, TREES = 20, 10
ROUNDINGS = 4  # of numbers, up to which a dimension, or a direction, is constant


class DCI(NamedTuple):
    """Disentanglement, completeness and informativeness.

    Arguments:
        disentanglement: From 0 to 1, which has each dimension used for one factor only.
        completeness: From 0 to 1, which has each factor held by one dimension only.
        informativeness: The test score of each factor: R² of a continuous factor, the
            accuracy of classes.
        importance: The importance of each dimension for each factor, (dim, factor);
            those of a factor sum to 1.
    """

    disentanglement: float
    completeness: float
    informativeness: tuple[float, ...]
    importance: Float[np.ndarray, "dim factor"]


@typed
def mig(
    z: Float[Array, "n dim"],
    factors: Shaped[Array, "n *factor"],
    *,
    bins: int = BINS,
) -> float:
    r"""The mutual information gap, the mean over factors; from 0 to 1.

    .. math:: \frac{I(z_{(1)}; v) - I(z_{(2)}; v)}{H(v)}

    with the two dimensions of the largest information of the factor v. Dimensions, and
    continuous factors, are cut into bins of equal width, so that the information has a
    bias upwards of about bins² / 2n nats, alike for both dimensions.

    Arguments:
        factors: As the style factors of `style_probe`: floats, or classes.
        bins: The number of bins.

    Raises:
        Undefined: For a factor that does not vary.
        ValueError: For a z of one dimension.

    References:
        Isolating Sources of Disentanglement in Variational Autoencoders (Chen et al.,
        2018)
        https://arxiv.org/abs/1802.04942
    """
    from sklearn.metrics import mutual_info_score

    z, columns = _checked(z, factors, least=2)
    bins = whole("bins", bins, 2)
    cut = [_binned(each, bins) for each in z.T]
    gaps = []
    for v in columns:
        v = _binned(v, bins) if v.dtype.kind == "f" else v
        first, second = sorted((mutual_info_score(v, c) for c in cut), reverse=True)[:2]
        gaps.append((first - second) / mutual_info_score(v, v))
    return float(np.mean(gaps))


@typed
def sap(z: Float[Array, "n dim"], factors: Shaped[Array, "n *factor"]) -> float:
    r"""The separated attribute predictability, the mean over factors; from 0 to 1.

    It is the gap between the two dimensions that predict a factor best, each alone and
    linearly: by the squared correlation for a continuous factor, by the accuracy of
    `linear_probe` on the same items for classes.

    Raises:
        Undefined: For a factor that does not vary.
        ValueError: For a z of one dimension.

    References:
        Variational Inference of Disentangled Latent Concepts from Unlabeled
        Observations (Kumar, Sattigeri and Balakrishnan, 2018)
        https://arxiv.org/abs/1711.00848
    """
    z, columns = _checked(z, factors, least=2)
    gaps = []
    for v in columns:
        if v.dtype.kind == "f":
            scores = np.square(_correlations(z, v[:, None])[:, 0])
        else:
            each = (z[:, d : d + 1] for d in range(z.shape[1]))
            scores = np.array([linear_probe(one, v, one, v) for one in each])
        first, second = np.sort(scores)[::-1][:2]
        gaps.append(first - second)
    return float(np.mean(gaps))


@typed
def mcc(
    z: Float[Array, "n dim"],
    factors: Float[Array, "n *factor"],
    *,
    ica: bool = False,
    correlation: Literal["pearson", "spearman"] = "pearson",
    seed: int = 0,
) -> float:
    r"""The mean correlation coefficient of the best one-to-one matching, from 0 to 1.

    .. math:: \max_\pi \frac1K \sum_k |\operatorname{corr}(z_{\pi(k)}, v_k)|

    over matchings of the K factors, or the dimensions if these are fewer. It is 1 where
    z has the factors up to order, sign and scale, as nonlinear ICA identifies them.
    Dimensions that do not vary, or with `ica` are linear in others, correlate with
    none.

    Arguments:
        factors: Continuous or binary factors, as numbers.
        ica: Whether independent components of z are taken first, by FastICA: then it is
            1 also for a linear mixture of independent factors that are not normal.
        correlation: ``"spearman"`` takes that of ranks, which any increasing function
            of a dimension leaves unchanged.
        seed: The seed of FastICA.

    Raises:
        Undefined: For a factor that does not vary.
        ValueError: For classes that are no numbers.

    References:
        Unsupervised Feature Extraction by Time-Contrastive Learning and Nonlinear ICA
        (Hyvärinen and Morioka, 2016)
        https://arxiv.org/abs/1605.06336
        Independent component analysis: algorithms and applications (Hyvärinen and Oja,
        2000), for FastICA
        https://doi.org/10.1016/S0893-6080(00)00026-5
    """
    from scipy.optimize import linear_sum_assignment
    from scipy.stats import rankdata
    from sklearn.decomposition import FastICA

    z, columns = _checked(z, factors)
    if any(v.dtype.kind == "U" for v in columns):
        raise ValueError(
            "expected factors as numbers for a correlation, got strings; code ordered "
            "classes as numbers, and give others to mig, dci or sap"
        )
    parts = [z, np.stack(columns, 1).astype(float)]
    if ica:
        parts[0], known = np.zeros_like(z), _of_full_rank(z)  # what z lacks counts 0
        if rank := known.shape[1]:
            model = FastICA(max_iter=2_000, random_state=seed)
            parts[0][:, :rank] = model.fit_transform(known)
    if correlation == "spearman":
        parts = [rankdata(part, axis=0) for part in parts]
    r = np.abs(_correlations(*parts))
    return float(r[linear_sum_assignment(r, maximize=True)].mean())


@typed
def dci(
    z_train: Float[Array, "n dim"],
    factors_train: Shaped[Array, "n *factor"],
    z_test: Float[Array, "m dim"],
    factors_test: Shaped[Array, "m *factor"],
    *,
    seed: int = 0,
) -> DCI:
    r"""Disentanglement, completeness and informativeness, by random forests.

    With the importance :math:`R_{dk}` of dimension d in the prediction of factor k,
    shares :math:`P_{dk} = R_{dk} / \sum_j R_{dj}` and :math:`\tilde P_{dk} = R_{dk} /
    \sum_j R_{jk}`, D dimensions and K factors,

    .. math:: \sum_d \rho_d \Bigl(1 + \sum_k P_{dk} \log_K P_{dk}\Bigr), \qquad
        \frac1K \sum_k \Bigl(1 + \sum_d \tilde P_{dk} \log_D \tilde P_{dk}\Bigr)

    are disentanglement, weighted by :math:`\rho_d = \sum_k R_{dk} / \sum_{jk} R_{jk}`,
    and completeness. The importance is the mean decrease of impurity in ten trees. No
    figure depends on the units of a dimension or of a continuous factor.

    Arguments:
        seed: The seed of the forests.

    Raises:
        Undefined: For a factor that does not vary.
        ValueError: For one factor, or one dimension.

    References:
        A Framework for the Quantitative Evaluation of Disentangled Representations
        (Eastwood and Williams, 2018)
        https://openreview.net/forum?id=By-7dz-AZ
    """
    from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor

    check_alike(z_train, z_test, "z_test")
    check_alike(factors_train, factors_test, "factors_test")
    z_train, known = _checked(z_train, factors_train, least=2)
    z_test, asked = _checked(z_test, factors_test, least=2)
    kinds = [[v.dtype.kind == "f" for v in part] for part in (known, asked)]
    if kinds[0] != kinds[1] or z_train.shape[1] != z_test.shape[1]:
        raise ValueError(
            "expected the same dimensions and factors in training and test, got z of "
            f"{z_train.shape} and {z_test.shape}, and {len(known)} and {len(asked)} "
            "factors, or other kinds of them; give the same columns of both"
        )
    places = _places(z_train, z_train), _places(z_train, z_test)
    importance, scores = [], []
    for train, test, real in zip(known, asked, kinds[0], strict=True):
        forest = RandomForestRegressor if real else RandomForestClassifier
        model = forest(TREES, max_features=None, random_state=seed)
        if real:
            centre, scale = train.mean(), train.std()
            train, test = (train - centre) / scale, (test - centre) / scale
        model.fit(places[0], train)
        importance.append(model.feature_importances_)
        scores.append(float(model.score(places[1], test)))
    r = np.stack(importance, 1)
    return DCI(*dci_of(r), tuple(scores), r)


def _places(
    train: Float[np.ndarray, "n dim"], z: Float[np.ndarray, "m dim"]
) -> Float[np.ndarray, "m dim"]:
    """z in ranks of the training values, which leaves trees as they are.

    Trees themselves round z to float32 and see no difference below 1e-7.
    """
    values = map(np.unique, train.T)
    columns = zip(z.T, values, strict=True)
    return np.stack([np.interp(x, v, np.arange(len(v))) for x, v in columns], 1)


def dci_of(importance: Float[np.ndarray, "dim factor"]) -> tuple[float, float]:
    """Disentanglement and completeness of a matrix of importances, not negative."""
    dims, factors = importance.shape
    if dims < 2 or factors < 2:
        raise ValueError(
            f"expected at least 2 dimensions and 2 factors, got {dims} and {factors}; "
            "with one of either there is nothing to tell apart"
        )
    total = importance.sum()
    by_dim = importance.sum(1) / total
    disentanglement = by_dim @ (1 - _entropy(importance.T) / np.log(factors))
    completeness = (1 - _entropy(importance) / np.log(dims)).mean()
    return float(disentanglement), float(completeness)


def _entropy(weight: Float[np.ndarray, "a b"]) -> Float[np.ndarray, " b"]:
    """The entropy of shares along the first axis, uniform where all weights are 0."""
    from scipy.stats import entropy

    found: np.ndarray = entropy(weight + (weight.sum(0) == 0))
    return found


def _correlations(
    z: Float[np.ndarray, "n dim"], v: Float[np.ndarray, "n factor"]
) -> Float[np.ndarray, "dim factor"]:
    """Pearson correlations; 0 for a dimension that does not vary."""
    units = []
    for x in (z, v):
        x = centred(x)
        largest = np.abs(x).max(0)
        x = x / np.where(largest > 0, largest, 1)  # whose squares are not lost
        length = np.linalg.norm(x, axis=0)
        units.append(x / np.where(length > 0, length, 1))
    found: np.ndarray = units[0].T @ units[1]
    return found


def _binned(x: Float[np.ndarray, " n"], bins: int) -> Int[np.ndarray, " n"]:
    """The bin of each number, of equal width between the smallest and the largest."""
    edges = np.linspace(x.min(), x.max(), bins + 1)[1:-1]
    return np.digitize(x, edges)


def _of_full_rank(z: np.ndarray) -> np.ndarray:
    """The principal components of z that are no rounding, each of variance 1.

    Independent components of z are rotations of these.
    """
    single = np.array_equal(z.astype(np.float32), z)
    rounding = ROUNDINGS * np.finfo(np.float32 if single else np.float64).eps
    rounding = rounding * np.abs(z).max(0)  # of each dimension
    spread = z.std(0)
    varied = spread > rounding
    spread = spread[varied]
    unit = (z[:, varied] - z[:, varied].mean(0)) / spread
    left, values, _ = np.linalg.svd(unit, full_matrices=False)
    least = math.sqrt(len(z)) * np.linalg.norm(rounding[varied] / spread)
    return left[:, values > least] * math.sqrt(len(z))


def _checked(
    z: Array, factors: Array, least: int = 1
) -> tuple[np.ndarray, list[np.ndarray]]:
    """z, and factors that vary, each as floats or classes."""
    check_alike(z, factors, "factors", "index")
    (z,) = representations(z)
    if z.shape[1] < least:
        raise ValueError(
            f"expected z of at least {least} dimensions for a gap between them, got "
            f"{z.shape}; give all dimensions"
        )
    columns = each_factor(factors, len(z))
    for number, v in enumerate(columns):
        if v.dtype.kind == "f" and not np.isfinite(v).all():
            raise ValueError(
                f"expected finite numbers in factor {number}, got NaN or infinity; "
                "leave these items out"
            )
        if len(np.unique(v)) < 2:
            raise Undefined(
                f"expected factors that vary, got {v[0]!r} for all items in factor "
                f"{number}; leave it out"
            )
    return z, columns
