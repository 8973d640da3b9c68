"""Nearest neighbours: how well labels are read off distances."""

from jaxtyping import Float, Shaped

from .arrays import Array, train_test

__all__ = ["knn"]


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
    from sklearn.neighbors import KNeighborsClassifier

    z_train, y_train, z_test, y_test = train_test(z_train, y_train, z_test, y_test)
    if not 1 <= k <= len(z_train):
        raise ValueError(
            f"expected k from 1 to the {len(z_train)} training items, got {k}; lower k"
        )
    vote = KNeighborsClassifier(k).fit(z_train, y_train)
    return float(vote.score(z_test, y_test))
