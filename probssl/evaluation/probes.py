"""Probes: how well a simple classifier reads labels off frozen representations.

References:
    Understanding intermediate layers using linear classifier probes (Alain and Bengio,
    2016)
    https://arxiv.org/abs/1610.01644
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Shaped

from ..arrays import Array, train_test

__all__ = ["FewLabel", "few_label_probe", "linear_probe", "linear_probes"]
__all__ += ["mlp_probe"]


class FewLabel(NamedTuple):
    """Accuracy from few labels: its mean and standard error over draws of labels.

    `draws` has the accuracy of each: for the same seed and items the labels drawn are
    the same whatever z is, so that differences of two representations are paired.
    """

    mean: float
    standard_error: float
    draws: tuple[float, ...]


def linear_probe(
    z_train: Float[Array, "n dim"],
    y_train: Shaped[Array, " n"],
    z_test: Float[Array, "m dim"],
    y_test: Shaped[Array, " m"],
    *,
    penalty: float = 1.0,
) -> float:
    r"""Test accuracy of multinomial logistic regression on standardised z.

    The weights W minimise, with the mean and scale of each dimension from training,

    .. math:: -\sum_i \log p(y_i \mid z_i, W) + \frac{\lambda}{2} \lVert W \rVert^2.

    Arguments:
        penalty: The weight :math:`\lambda` of the ridge; the intercept is free.
    """
    return linear_probes(z_train, y_train, {"": (z_test, y_test)}, penalty=penalty)[""]


def linear_probes(
    z_train: Float[Array, "n dim"],
    y_train: Shaped[Array, " n"],
    tests: Mapping[str, tuple[Float[Array, "m dim"], Shaped[Array, " m"]]],
    *,
    penalty: float = 1.0,
) -> dict[str, float]:
    """The accuracies of one `linear_probe` on several test parts, by their names."""
    if not penalty > 0:
        raise ValueError(
            f"expected a positive penalty, got {penalty}; take 1e-6 for hardly any"
        )
    checked = [train_test(z_train, y_train, z, y) for z, y in tests.values()]
    train, known = checked[0][:2]
    mean, scale = _moments(train)
    score = _logistic_regression((train - mean) / scale, known, penalty)
    return {
        name: float(score((z - mean) / scale, y))
        for name, (_, _, z, y) in zip(tests, checked, strict=True)
    }


def few_label_probe(
    z_train: Float[Array, "n dim"],
    y_train: Shaped[Array, " n"],
    z_test: Float[Array, "m dim"],
    y_test: Shaped[Array, " m"],
    *,
    labels_per_class: int = 5,
    repeats: int = 20,
    seed: int = 0,
) -> FewLabel:
    """Test accuracy of `linear_probe` when only a few training labels are known.

    Each repeat draws `labels_per_class` training items of each class, without
    replacement. Labels are few, items are not: z is standardised by all of the training
    items. The standard error is over draws, for one encoder and one test set.
    """
    from threadpoolctl import threadpool_limits

    z, y, there, y_test = train_test(z_train, y_train, z_test, y_test)
    names, counts = np.unique(y, return_counts=True)
    if counts.min() < labels_per_class or labels_per_class < 1:
        raise ValueError(
            f"expected from 1 to as many labels_per_class as items of any class, got "
            f"{labels_per_class} and {counts.min()} items of class "
            f"{names[counts.argmin()]}; lower labels_per_class or give more items"
        )
    if repeats < 2:
        raise ValueError(
            f"expected repeats of at least 2 for a standard error, got {repeats}"
        )
    mean, scale = _moments(z)
    z, there = (z - mean) / scale, (there - mean) / scale
    members = [np.flatnonzero(y == name) for name in names]
    random, accuracy = np.random.default_rng(seed), []
    with threadpool_limits(1):  # on fits so small threads only wait for each other
        for _ in range(repeats):
            few = [random.choice(m, labels_per_class, replace=False) for m in members]
            known = np.concatenate(few)
            score = _logistic_regression(z[known], y[known])
            accuracy.append(float(score(there, y_test)))
    error = np.std(accuracy, ddof=1) / np.sqrt(repeats)
    return FewLabel(float(np.mean(accuracy)), float(error), tuple(accuracy))


def mlp_probe(
    z_train: Float[Array, "n dim"],
    y_train: Shaped[Array, " n"],
    z_test: Float[Array, "m dim"],
    y_test: Shaped[Array, " m"],
    *,
    hidden: int = 256,
    seed: int = 0,
) -> float:
    """Test accuracy of a network with one hidden layer on standardised z.

    Arguments:
        hidden: The width of the hidden layer, with ReLU.
        seed: Of the initial weights and of the order of the items.
    """
    from sklearn.neural_network import MLPClassifier

    z_train, y_train, z_test, y_test = train_test(z_train, y_train, z_test, y_test)
    mean, scale = _moments(z_train)
    z_train, z_test = (z_train - mean) / scale, (z_test - mean) / scale
    probe = MLPClassifier((hidden,), max_iter=10_000, random_state=seed)
    return float(probe.fit(z_train, y_train).score(z_test, y_test))


def _moments(train: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and scale of each dimension, the scale 1 where it is constant."""
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(train)
    return scaler.mean_, scaler.scale_


def _logistic_regression(
    z_train: np.ndarray, y_train: np.ndarray, penalty: float = 1.0
) -> Callable[[np.ndarray, np.ndarray], float]:
    """The accuracy of a fitted classifier, as a function of a test part."""
    from sklearn.linear_model import LogisticRegression

    # some tens of iterations do: the limit only ends what will never converge
    model = LogisticRegression(C=1 / penalty, max_iter=10_000)
    if z_train.shape[1] <= len(z_train):
        return model.fit(z_train, y_train).score
    # The ridge leaves no weight outside the span of the items: fit within it.
    span = np.linalg.qr(z_train.T)[0]
    model.fit(z_train @ span, y_train)
    return lambda z, y: model.score(z @ span, y)
