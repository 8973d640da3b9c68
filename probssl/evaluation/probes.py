"""Probes: how well a simple classifier reads labels off frozen representations.

References:
    Understanding intermediate layers using linear classifier probes (Alain and Bengio,
    2016)
    https://arxiv.org/abs/1610.01644
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Shaped

from .arrays import Array, train_test

__all__ = ["FewLabel", "few_label_probe", "linear_probe", "mlp_probe"]


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
    z_train, y_train, z_test, y_test = train_test(z_train, y_train, z_test, y_test)
    if not penalty > 0:
        raise ValueError(
            f"expected a positive penalty, got {penalty}; take 1e-6 for hardly any"
        )
    z_train, z_test = _standardised(z_train, z_test)
    return _logistic_regression(z_train, y_train, z_test, y_test, penalty)


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

    z_train, y_train, z_test, y_test = train_test(z_train, y_train, z_test, y_test)
    names, counts = np.unique(y_train, return_counts=True)
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
    z_train, z_test = _standardised(z_train, z_test)
    members = [np.flatnonzero(y_train == name) for name in names]
    random, accuracy = np.random.default_rng(seed), []
    with threadpool_limits(1):  # on fits so small threads only wait for each other
        for _ in range(repeats):
            few = [random.choice(m, labels_per_class, replace=False) for m in members]
            known = np.concatenate(few)
            labelled = z_train[known], y_train[known]
            accuracy.append(_logistic_regression(*labelled, z_test, y_test))
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
    z_train, z_test = _standardised(z_train, z_test)
    probe = MLPClassifier((hidden,), max_iter=10_000, random_state=seed)
    return float(probe.fit(z_train, y_train).score(z_test, y_test))


def _standardised(train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(train)
    return scaler.transform(train), scaler.transform(test)


def _logistic_regression(
    z_train: np.ndarray,
    y_train: np.ndarray,
    z_test: np.ndarray,
    y_test: np.ndarray,
    penalty: float = 1.0,
) -> float:
    from sklearn.linear_model import LogisticRegression

    if z_train.shape[1] > len(z_train):
        # The ridge leaves no weight outside the span of the items: fit within it.
        span = np.linalg.qr(z_train.T)[0]
        z_train, z_test = z_train @ span, z_test @ span
    # some tens of iterations do: the limit only ends what will never converge
    model = LogisticRegression(C=1 / penalty, max_iter=10_000)
    return float(model.fit(z_train, y_train).score(z_test, y_test))
