"""What linear estimators share: moments that add up, checks, and an encoder."""

from abc import abstractmethod
from functools import reduce
from numbers import Integral
from typing import Self

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array
from sklearn.base import (
    BaseEstimator,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
)
from sklearn.utils.validation import check_array, check_is_fitted, validate_data

from .moments import Moments, of_data, of_views
from .samplers import LARGEST, Sampler, in_parts
from .solutions import Solution
from .views import ClosedForm, Masking

__all__ = ["LinearSSL"]


class LinearSSL(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """What both have in common: moments, checks, and an encoder of their making."""

    def __init__(
        self,
        n_components: int | None = None,
        *,
        views: Sampler | ClosedForm | None = None,
        n_views: int = 4,
        ridge: float = 0.0,
        with_mean: bool = True,
        verbose: bool = False,
    ) -> None:
        self.n_components, self.views, self.n_views = n_components, views, n_views
        self.ridge, self.with_mean, self.verbose = ridge, with_mean, verbose

    def fit(self, X: Float[Array, "n d"], y: object = None) -> Self:
        """Solve for the rows of X; y is not used."""
        X = self._checked(X, reset=True, least=2)
        if self.n_components is not None and self.n_components > min(X.shape):
            raise ValueError(
                f"expected n_components of at most {min(X.shape)}, the lesser of "
                f"n_samples = {X.shape[0]} and n_features = {X.shape[1]}, got "
                f"{self.n_components}"
            )
        self._solution: Solution | None = None
        self.moments_ = self._moments(X)
        self._solution = self._solve()
        return self

    def partial_fit(self, X: Float[Array, "n d"], y: object = None) -> Self:
        """Add rows, one or more, to those seen; the solution is that of all of them.

        It is solved for when it is asked for, not at each call.
        """
        first = not hasattr(self, "moments_")
        found = self._moments(self._checked(X, reset=first, least=1))
        self.moments_ = found if first else self.moments_.merged(found)
        self._solution = None
        return self

    def transform(self, X: Float[Array, "n d"]) -> Float[Array, "n k"]:
        """z of each row, which is taken for a view: (n, e) where views have e features.

        Raises:
            ValueError: If rows have not as many features as views.
        """
        check_is_fitted(self)
        found = self._solved
        features = len(found.view_mean)
        if features == self.n_features_in_:
            X = validate_data(self, X, dtype=np.float64, reset=False)
        else:
            X = check_array(X, dtype=np.float64)
        if X.shape[1] != features:
            raise ValueError(
                f"expected rows of {features} features, as the views have, got "
                f"{X.shape[1]}; draw a view of each row first"
            )
        return (X - found.view_mean) @ found.encoder.T

    def score(self, X: Float[Array, "n d"], y: object = None) -> float:
        """Minus the objective for other rows and their views: larger is better.

        Views of a sampler are drawn anew. The maps stay as they are, so that joint
        embedding's is to be compared at one n_components and one ridge: each further
        component takes from it, and a ridge makes W smaller.
        """
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        found = self._solved
        moments = self._seen(self._moments(X)).about(found.mean, found.view_mean)
        return -self._objective(moments)

    @property
    def components_(self) -> Float[Array, "k e"]:
        """The encoder W or E: z = components_ @ (view - its mean)."""
        return self._solved.encoder

    @property
    def spectrum_(self) -> Float[Array, " rank"]:
        """All eigen- or singular values, the largest first."""
        return self._solved.spectrum

    @property
    def optimum_(self) -> float:
        """The value of the objective at the solution."""
        return self._objective(self._problem())

    @property
    def _n_features_out(self) -> int:
        return len(self.components_)

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "moments_")

    @property
    def _solved(self) -> Solution:
        check_is_fitted(self)
        if self._solution is None:
            self._solution = self._solve()
        return self._solution

    def _checked(self, X: Array, reset: bool, least: int) -> Float[Array, "n d"]:
        """X as finite float64, and settings that can be used."""
        for name, value, low in (
            ("n_components", self.n_components, 1),
            ("n_views", self.n_views, 2),
        ):
            whole = isinstance(value, Integral) and value >= low
            if not whole and not (value is None and name == "n_components"):
                raise ValueError(
                    f"expected {name} to be a whole number of at least {low}, got "
                    f"{value!r}"
                )
        if not 0 <= self.ridge < np.inf:
            raise ValueError(f"expected a finite ridge of at least 0, got {self.ridge}")
        views = self._views()
        if isinstance(views, type) or not callable(views):
            raise TypeError(
                "expected views to be an object such as Masking(0.5), or a function "
                f"that draws views of rows, got {views!r}"
            )
        return validate_data(
            self, X, dtype=np.float64, reset=reset, ensure_min_samples=least
        )

    def _moments(self, X: Float[Array, "n d"]) -> Moments:
        """Those of the data alone, or with views drawn of them."""
        if not max(X.max(), -X.min()) < LARGEST:
            raise ValueError(
                f"expected entries below {LARGEST:g}, which can be squared, got "
                f"{max(X.max(), -X.min()):g}; rescale the data"
            )
        if isinstance(self._views(), ClosedForm):
            return of_data(X)
        parts = in_parts(self._views(), X, self.n_views, self.verbose)
        return reduce(Moments.merged, (of_views(*part) for part in parts))

    def _views(self) -> Sampler | ClosedForm:
        return Masking() if self.views is None else self.views

    def _seen(self, moments: Moments) -> Moments:
        """With those of the views, where these have a closed form."""
        views = self._views()
        return views.moments(moments) if isinstance(views, ClosedForm) else moments

    def _problem(self) -> Moments:
        moments = self._seen(self.moments_)
        return moments if self.with_mean else moments.about(0.0, 0.0)

    @abstractmethod
    def _solve(self) -> Solution:
        """The maps for the moments so far."""

    @abstractmethod
    def _objective(self, moments: Moments) -> float:
        """Its value for the maps found and these moments."""
