"""Nearest neighbours: how well labels are read off distances."""

from collections.abc import Mapping

from jaxtyping import Float, Shaped

from ..arrays import Array, train_test

__all__ = ["knn", "knns"]


def knn(
    z_train: Float[Array, "n dim"],
    y_train: Shaped[Array, " n"],
    z_test: Float[Array, "m dim"],
    y_test: Shaped[Array, " m"],
    k: int = 5,
) -> float:
    """Test accuracy of a vote of the k nearest training items.

    Distances are Euclidean in z as it is, not standardised; on the unit sphere they
    order items as the cosine does. Ties go to the smaller label.
    """
    return knns(z_train, y_train, {"": (z_test, y_test)}, k)[""]


def knns(
    z_train: Float[Array, "n dim"],
    y_train: Shaped[Array, " n"],
    tests: Mapping[str, tuple[Float[Array, "m dim"], Shaped[Array, " m"]]],
    k: int = 5,
) -> dict[str, float]:
    """The accuracies of `knn` on several test parts, by their names."""
    from sklearn.neighbors import KNeighborsClassifier

    checked = [train_test(z_train, y_train, z, y) for z, y in tests.values()]
    train, known = checked[0][:2]
    if not 1 <= k <= len(train):
        raise ValueError(
            f"expected k from 1 to the {len(train)} training items, got {k}; lower k"
        )
    vote = KNeighborsClassifier(k).fit(train, known)
    parts = zip(tests, checked, strict=True)
    return {name: float(vote.score(z, y)) for name, (_, _, z, y) in parts}
