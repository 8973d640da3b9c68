"""Probes: how well labels and style factors are predicted from frozen representations.

References:
    Understanding intermediate layers using linear classifier probes (Alain and Bengio,
    2016)
    https://arxiv.org/abs/1610.01644
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Shaped

from ..arguments import positive, typed, whole
from ..arrays import (
    Array,
    check_alike,
    class_labels,
    finite,
    gate,
    is_categorical,
    plain,
    representations,
    train_test,
)
from .clustering import cluster
from .collapse import effective_rank
from .neighbours import nearest

__all__ = [
    "FewLabel",
    "each_factor",
    "few_label_probe",
    "fitted_probe",
    "knn",
    "knns",
    "linear_probe",
]
__all__ += ["linear_probes", "mlp_probe", "scores", "scores_and_draws", "style_probe"]

Z = Float[Array, "n dim"]
Y = Shaped[Array, " n"]
ZTest = Float[Array, "m dim"]
YTest = Shaped[Array, " m"]


LABELS_PER_CLASS = 5  # of the few-label probe


class FewLabel(NamedTuple):
    """Accuracy from few labels: mean and standard error over draws of labels.

    `draws` has the accuracy of each draw. The labels drawn depend on seed and items
    alone, so that differences of two representations are paired.
    """

    mean: float
    standard_error: float
    draws: tuple[float, ...]


@typed
def linear_probe(
    z_train: Z, y_train: Y, z_test: ZTest, y_test: YTest, *, penalty: float = 1.0
) -> float:
    r"""Test accuracy of multinomial logistic regression on standardised z.

    The weights W minimise, with mean and scale of each dimension from training,

    .. math:: -\sum_i \log p(y_i \mid z_i, W) + \frac{\lambda}{2} \lVert W \rVert^2.

    Arguments:
        penalty: The ridge weight :math:`\lambda`; the intercept is not penalised.
    """
    return linear_probes(z_train, y_train, {"": (z_test, y_test)}, penalty=penalty)[""]


def linear_probes(
    z_train: Z,
    y_train: Y,
    tests: Mapping[str, tuple[ZTest, YTest]],
    *,
    penalty: float = 1.0,
) -> dict[str, float]:
    """The accuracies of one `linear_probe` on several test sets, by name."""
    penalty = positive("penalty", penalty, "take 1e-6 for hardly any")
    checked = [train_test(z_train, y_train, z, y) for z, y in tests.values()]
    train, known = checked[0][:2]
    mean, scale = _moments(train)
    score = _logistic_regression((train - mean) / scale, known, penalty)
    return {
        name: float(score((z - mean) / scale, y))
        for name, (_, _, z, y) in zip(tests, checked, strict=True)
    }


@typed
def few_label_probe(
    z_train: Z,
    y_train: Y,
    z_test: ZTest,
    y_test: YTest,
    *,
    labels_per_class: int = LABELS_PER_CLASS,
    repeats: int = 20,
    seed: int = 0,
) -> FewLabel:
    """Test accuracy of `linear_probe` fitted to a few labels per class.

    Each repeat draws `labels_per_class` training items of each class, without
    replacement; z is standardised by all training items. The standard error is over
    draws, for one encoder and one test set.
    """
    from threadpoolctl import threadpool_limits

    z, y, there, y_test = train_test(z_train, y_train, z_test, y_test)
    labels_per_class = _labels_per_class(y, labels_per_class)
    repeats = whole("repeats", repeats, 2, hint="a standard error needs two")
    mean, scale = _moments(z)
    z, there = (z - mean) / scale, (there - mean) / scale
    random, accuracy = np.random.default_rng(seed), []
    with threadpool_limits(1):  # more threads are slower on fits so small
        for _ in range(repeats):
            known = _drawn_labels(random, y, labels_per_class)
            score = _logistic_regression(z[known], y[known])
            accuracy.append(float(score(there, y_test)))
    error = np.std(accuracy, ddof=1) / np.sqrt(repeats)
    return FewLabel(float(np.mean(accuracy)), float(error), tuple(accuracy))


def fitted_probe(
    z: np.ndarray,
    y: np.ndarray,
    penalty: float,
    labels_per_class: int | None,
    seed: int,
) -> tuple[Callable[[np.ndarray], np.ndarray], np.ndarray]:
    """The class probabilities of a `linear_probe` as a function of z, and the classes.

    Arguments:
        labels_per_class: How many labels of each class are drawn, as the first ones of
            `few_label_probe`; None takes all.
    """
    mean, scale = _moments(z)
    known: np.ndarray | slice = slice(None)
    if labels_per_class is not None:
        few = _labels_per_class(y, labels_per_class)
        known = _drawn_labels(np.random.default_rng(seed), y, few)
    model, within = _fitted((z[known] - mean) / scale, y[known], penalty)
    return lambda z: model.predict_proba(within((z - mean) / scale)), model.classes_


def _labels_per_class(y: np.ndarray, wanted: int) -> int:
    """The number of labels of each class, at most those of the smallest one."""
    names, counts = np.unique(y, return_counts=True)
    few = f"class {names[counts.argmin()]} has {counts.min()} items"
    return whole("labels_per_class", wanted, 1, counts.min(), few)


def _drawn_labels(random: np.random.Generator, y: np.ndarray, few: int) -> np.ndarray:
    """Rows of so many items of each class, drawn without replacement."""
    members = [np.flatnonzero(y == name) for name in np.unique(y)]
    return np.concatenate([random.choice(m, few, replace=False) for m in members])


@typed
def mlp_probe(
    z_train: Z,
    y_train: Y,
    z_test: ZTest,
    y_test: YTest,
    *,
    hidden: int = 256,
    seed: int = 0,
) -> float:
    """Test accuracy of a network with one hidden layer on standardised z.

    Arguments:
        hidden: The width of the hidden layer, with ReLU.
        seed: The seed of the initial weights and of the order of the items.
    """
    from sklearn.neural_network import MLPClassifier

    z_train, y_train, z_test, y_test = train_test(z_train, y_train, z_test, y_test)
    hidden = whole("hidden", hidden)
    mean, scale = _moments(z_train)
    z_train, z_test = (z_train - mean) / scale, (z_test - mean) / scale
    probe = MLPClassifier((hidden,), max_iter=10_000, random_state=seed)
    return float(probe.fit(z_train, y_train).score(z_test, y_test))


@typed
def knn(
    z_train: Z,
    y_train: Y,
    z_test: ZTest,
    y_test: YTest,
    k: int = 5,
    *,
    temperature: float | None = None,
) -> float:
    r"""Test accuracy of k nearest neighbours (k-NN), by majority vote.

    Distances are Euclidean, z is not standardised; on the unit sphere they order items
    as the cosine does. Ties go to the smaller label.

    With a temperature the neighbours are those of the largest cosine, and a vote has
    the weight :math:`\exp(\cos / \tau)`: the most probable class under a von
    Mises-Fisher kernel of concentration :math:`1 / \tau` at each neighbour. Usual are
    ``k=200, temperature=0.1``.

    Arguments:
        temperature: The temperature :math:`\tau`; None counts votes.

    Raises:
        ValueError: If k or the temperature is out of range, or an item is zero where
            there is a temperature.

    References:
        Unsupervised Feature Learning via Non-Parametric Instance-level Discrimination
        (Wu et al., 2018), for the weighted vote
        https://arxiv.org/abs/1805.01978
    """
    tests = {"": (z_test, y_test)}
    return knns(z_train, y_train, tests, k, temperature=temperature)[""]


def knns(
    z_train: Z,
    y_train: Y,
    tests: Mapping[str, tuple[ZTest, YTest]],
    k: int = 5,
    *,
    temperature: float | None = None,
) -> dict[str, float]:
    """The accuracies of `knn` on several test sets, by name."""
    checked = [train_test(z_train, y_train, z, y) for z, y in tests.values()]
    train, known = checked[0][:2]
    k = whole("k", k, 1, len(train), "the number of training items is the most")
    if temperature is not None:
        temperature = positive("temperature", temperature, "0.1 is usual")
        train = _directions(train)
    names, found = np.unique(known), {}
    for name, (_, _, z, y) in zip(tests, checked, strict=True):
        z = z if temperature is None else _directions(z)
        distance, rows = nearest(train, z, k)
        if temperature is None:
            weight = np.ones_like(distance)
        else:
            weight = _kernel(distance, temperature)
        votes = [np.where(known[rows] == each, weight, 0).sum(1) for each in names]
        found[name] = float((names[np.argmax(votes, 0)] == y).mean())
    return found


def _kernel(distance: np.ndarray, temperature: float) -> np.ndarray:
    """von Mises-Fisher kernels of the neighbours, the nearest of which has 1."""
    square = distance**2  # 2 − 2 cos
    return np.exp((square.min(1, keepdims=True) - square) / (2 * temperature))


def _directions(z: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(z, axis=1, keepdims=True)
    if not length.all():
        raise ValueError(
            "expected representations that have a direction for a cosine, got one that "
            "is zero; leave temperature out"
        )
    return z / length


@typed
def style_probe(
    z_train: Float[Array, "n dim"],
    s_train: Shaped[Array, "n *factor"],
    z_test: Float[Array, "m dim"],
    s_test: Shaped[Array, "m *factor"],
) -> list[float]:
    r"""Linear prediction of each style factor from z: test scores, at most 1.

    For floating-point factors it is the test :math:`R^2` of ridge regression (weight 1)
    on standardised z; for integers, booleans and strings the accuracy of
    `linear_probe`. The columns of a DataFrame, or of lists, are each of their own kind;
    in an array, which has one type, factors of different kinds need separate calls.
    """
    check_alike(s_train, s_test, "s_test")
    check_alike(z_train, s_train, "s_train", "index")
    check_alike(z_test, s_test, "s_test", "index")
    z_train, z_test = representations(z_train, z_test)
    known, asked = each_factor(s_train, len(z_train)), each_factor(s_test, len(z_test))
    if len(known) != len(asked):
        raise ValueError(
            f"expected the same style factors in training and test, got "
            f"{len(known)} and {len(asked)}"
        )
    for train, test in zip(known, asked, strict=True):
        if (train.dtype.kind == "f") != (test.dtype.kind == "f"):
            raise TypeError(
                "expected style factors of one kind in training and test, got "
                f"{train.dtype} and {test.dtype}; give floats in both for what is "
                "continuous, and whole numbers or strings in both for classes"
            )
    return [
        (_ridge if train.dtype.kind == "f" else linear_probe)(
            z_train, train, z_test, test
        )
        for train, test in zip(known, asked, strict=True)
    ]


@typed
def scores(
    z_train: Z,
    y_train: Y,
    z_test: ZTest,
    y_test: YTest,
    seed: int = 0,
    *,
    max_train: int | None = None,
) -> dict[str, float]:
    """Probes and k-NN from training to test; clustering and rank of the test set.

    The keys are linear_probe, few_label_probe (5 labels per class), few_label_probe_se
    (its standard error over 20 draws), knn (k = 5), cluster_accuracy, nmi, ari and
    effective_rank.

    Arguments:
        seed: The seed of the draws of labels, the clustering and `max_train`.
        max_train: The largest number of training items, drawn at random.
    """
    return scores_and_draws(z_train, y_train, z_test, y_test, seed, max_train)[0]


def scores_and_draws(
    z_train: Z,
    y_train: Y,
    z_test: ZTest,
    y_test: YTest,
    seed: int = 0,
    max_train: int | None = None,
) -> tuple[dict[str, float], FewLabel]:
    """The result of `scores`, and the few-label probe with all of its draws."""
    z_train, y_train, z_test, y_test = train_test(z_train, y_train, z_test, y_test)
    rows = kept(len(z_train), max_train, seed)
    z_train, y_train = z_train[rows], y_train[rows]
    data = (z_train, y_train, z_test, y_test)
    few = few_label_probe(*data, seed=seed)
    clusters = cluster(z_test, y_test, seed=seed)
    found = {
        "linear_probe": linear_probe(*data),
        "few_label_probe": few.mean,
        "few_label_probe_se": few.standard_error,
        "knn": knn(*data),
        "cluster_accuracy": clusters.accuracy,
        "nmi": clusters.nmi,
        "ari": clusters.ari,
        "effective_rank": effective_rank(z_test),
    }
    return found, few


def kept(items: int, max_train: int | None, seed: int) -> np.ndarray | slice:
    """The rows of the training items that probes are fitted to."""
    if max_train is None or whole("max_train", max_train) >= items:
        return slice(None)
    return np.random.default_rng(seed).choice(items, max_train, replace=False)


def _moments(train: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and scale of each dimension; the scale of a constant one is 1."""
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(train)
    return scaler.mean_, scaler.scale_


def _logistic_regression(
    z_train: np.ndarray, y_train: np.ndarray, penalty: float = 1.0
) -> Callable[[np.ndarray, np.ndarray], float]:
    """The accuracy of a fitted classifier, as a function of a test set."""
    model, within = _fitted(z_train, y_train, penalty)
    return lambda z, y: model.score(within(z), y)


def _fitted(
    z_train: np.ndarray, y_train: np.ndarray, penalty: float
) -> tuple[Any, Callable[[np.ndarray], np.ndarray]]:
    """A fitted classifier, and the map from z to what it takes."""
    from sklearn.linear_model import LogisticRegression

    # For two classes scikit-learn has one w, the difference of the rows of W. The best
    # rows are -w/2 and w/2, whose squares sum to half the square of w.
    share = 1 if len(np.unique(y_train)) > 2 else 1 / 2
    # A few tens of iterations are usual; the limit stops what does not converge. Where
    # classes differ little the first gradient is within the default tolerance.
    apart = (y_train[:, None] == np.unique(y_train)).astype(float)
    first = np.abs(apart.T @ (z_train - z_train.mean(0))).max() / len(z_train)
    tol = min(1e-4, 1e-3 * first) if first > 0 else 1e-4
    model = LogisticRegression(C=1 / (share * penalty), tol=tol, max_iter=10_000)
    if z_train.shape[1] <= len(z_train):
        return model.fit(z_train, y_train), lambda z: z
    # With the ridge penalty the optimum lies in the span of the items: fit within it.
    span = np.linalg.qr(z_train.T)[0]
    return model.fit(z_train @ span, y_train), lambda z: z @ span


def each_factor(s: Any, items: int) -> list[np.ndarray]:
    """The values of each factor."""
    if hasattr(s, "iloc") and s.ndim == 2:
        return [each for _, x in s.items() for each in each_factor(x, items)]
    if is_categorical(s):
        array = class_labels(s, "style factors")
    else:
        array = plain(gate(s, "style factors", words=True))
    if array.dtype.kind == "O":  # as lists are, whose columns have a kind each
        if array.ndim == 2:
            return [each for x in array.T for each in each_factor(x, items)]
        listed = np.atleast_1d(array).tolist()
        if all(isinstance(v, int | float | np.number) for v in listed):
            array = np.asarray(listed)
    if array.dtype.kind not in "biuf":
        array = class_labels(array, "style factors")
    if array.ndim not in (1, 2) or len(array) != items:
        raise ValueError(
            f"expected style factors ({items},) or ({items}, factors) for as many "
            f"representations, got {array.shape}; give one row per item"
        )
    if array.dtype.kind == "f":
        array = array.astype(np.float64)
    return list(array.reshape(items, -1).T)


def _ridge(
    z_train: np.ndarray, s_train: np.ndarray, z_test: np.ndarray, s_test: np.ndarray
) -> float:
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    s_train, s_test = finite(s_train, "style factors"), finite(s_test, "style factors")
    if np.ptp(s_test) == 0:
        raise ValueError(
            f"expected a style factor that varies, got {s_test[0]} for all test items; "
            "leave this factor out"
        )
    model = make_pipeline(StandardScaler(), Ridge(1.0)).fit(z_train, s_train)
    return float(model.score(z_test, s_test))
