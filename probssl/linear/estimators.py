r"""Joint embedding and reconstruction with linear maps, solved in closed form.

Views enter by their moments S, G and B alone (`moments`): those of `ClosedForm` views
are exact, those of a sampler are sums over the views it draws. Scikit-learn's
conventions hold, among them `partial_fit` for data that come in parts.

Joint-Embedding vs Reconstruction: Provable Benefits of Latent Space Prediction for
Self-Supervised Learning (Van Assel et al., 2025), Theorems 3.1 and 3.2
https://arxiv.org/abs/2505.12477
"""

from abc import abstractmethod
from collections.abc import Iterator
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
from tqdm import tqdm

from .moments import Moments, of_data, of_views
from .solutions import Solution, agreement, error, joint_embedding, reconstruction
from .views import LARGEST, ClosedForm, Masking, Sampler, drawn

__all__ = ["JointEmbeddingSSL", "ReconstructionSSL"]

ROWS = 2_048  # of which views are drawn at a time


class _LinearSSL(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
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
        return reduce(Moments.merged, self._sampled(X))

    def _sampled(self, X: Float[Array, "n d"]) -> Iterator[Moments]:
        starts = range(0, len(X), ROWS)
        for start in tqdm(starts, "views", disable=not self.verbose, leave=False):
            rows = X[start : start + ROWS]
            yield of_views(rows, drawn(self._views(), rows, self.n_views))

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


class JointEmbeddingSSL(_LinearSSL):
    r"""Linear joint embedding: views of one image agree, all of them stay white.

    .. math:: \min_W \frac1n \sum_i E \lVert W \tau_1(x_i) - W \tau_2(x_i) \rVert^2
        \quad \text{s.t.} \quad
        \frac1n \sum_i E[W \tau(x_i) \tau(x_i)^\top W^\top] = I_k

    With :math:`S^{-1/2} G S^{-1/2} = Q \Omega Q^\top` the solution is :math:`W =
    Q_k^\top S^{-1/2}`, and its value :math:`2 \sum_{i \le k} (1 - \omega_i)`. The
    :math:`\omega_i` are the canonical correlations of two views, whose mutual
    information is :math:`-\frac12 \sum_i \log(1 - \omega_i^2)` nats if they are
    Gaussian, and W spans what probabilistic canonical correlation analysis, the linear
    p(y) ∏ p(x_v|y), finds.

    Arguments:
        n_components: k; None is the rank of S.
        views: Views of closed form, or a sampler: rows (n, d) -> one view of each
            (n, e), or several (n, view, e). None is `Masking()`.
        n_views: How many views of each row are drawn of a sampler, or a few more where
            it gives several at once.
        ridge: What is added to S, as a share of its mean variance, as if views had so
            much more noise; `optimum_` and `score` leave that out. Without it S may be
            singular, with more features than rows, or constant ones: directions are
            left out whose standard deviation is below some millionth of the largest.
            Standardise features whose units are that far apart.
        with_mean: Whether moments are taken around the means; the paper's are not.
        verbose: Show a progress bar while views are drawn.

    Attributes:
        components_: W, (k, e), each row with its largest entry positive.
        spectrum_: All :math:`\omega_i`, the largest first. Drawn views may put some
            slightly below 0: G is estimated without bias.
        optimum_: The value of the objective, for the k components.
        moments_: Those of the data seen, and of their views if these are drawn.

    Example:
        >>> x = np.random.default_rng(0).normal(size=(100, 5)) * [9, 5, 1, 1, 1]
        >>> model = JointEmbeddingSSL(2, views=Masking(0.3)).fit(x)
        >>> model.transform(x).shape
        (100, 2)

    Raises:
        ValueError: If data or views are not finite, all views of each row agree, or
            there are more components than rows, features or directions of variance.
        TypeError: If views are neither an object nor a function that can be called.

    References:
        Joint-Embedding vs Reconstruction: Provable Benefits of Latent Space Prediction
        for Self-Supervised Learning (Van Assel et al., 2025), Theorem 3.2
        https://arxiv.org/abs/2505.12477
    """

    def mutual_information(self) -> float:
        r""":math:`-\frac12 \sum_{i \le k} \log(1 - \omega_i^2)`, in nats per image.

        That of two views if they are Gaussian; infinite where views do not change a
        component. An :math:`\omega_i` estimated to be below 0 counts as 0.
        """
        kept = self.spectrum_[: self._n_features_out].clip(0, 1)
        with np.errstate(divide="ignore"):
            return float(-0.5 * np.log1p(-np.square(kept)).sum())

    def _solve(self) -> Solution:
        return joint_embedding(self._problem(), self.n_components, self.ridge)

    def _objective(self, moments: Moments) -> float:
        return agreement(moments, self.components_)


class ReconstructionSSL(_LinearSSL):
    r"""Linear reconstruction: the image from k numbers of one of its views.

    .. math:: \min_{E, D} \frac1n \sum_i E \lVert x_i - D E \tau(x_i) \rVert^2

    With the singular values :math:`B S^{-1/2} = R \Phi P^\top` the solution is :math:`E
    = P_k^\top S^{-1/2}` and :math:`D = R_k \Phi_k`, up to an invertible map between
    them, and its value :math:`\mathrm{tr}(X^\top X / n) - \sum_{i \le k} \phi_i^2`.
    That is the reduced-rank regression of x on its views: principal components where a
    view is the image, the marginalised denoising autoencoder where it is corrupted.

    Arguments:
        n_components: k; None is the rank of S, or d if that is less.
        views: Views of closed form, or a sampler: rows (n, d) -> one view of each
            (n, e), or several (n, view, e). None is `Masking()`.
        n_views: How many views of each row are drawn of a sampler, or a few more where
            it gives several at once.
        ridge: What is added to S, as a share of its mean variance, as if views had so
            much more noise; `optimum_` and `score` leave that out. Without it S may be
            singular, with more features than rows, or constant ones: directions are
            left out whose standard deviation is below some millionth of the largest.
            Standardise features whose units are that far apart.
        with_mean: Whether moments are taken around the means; the paper's are not.
        verbose: Show a progress bar while views are drawn.

    Attributes:
        components_: E, (k, e), whose z are white over the views; each row with its
            largest entry positive.
        decoder_: D, (d, k).
        spectrum_: All :math:`\phi_i`, the largest first.
        optimum_: The value of the objective, for the k components.
        moments_: Those of the data seen, and of their views if these are drawn.

    Example:
        >>> x = np.random.default_rng(0).normal(size=(100, 5)) * [9, 5, 1, 1, 1]
        >>> model = ReconstructionSSL(2, views=Masking(0.3)).fit(x)
        >>> model.inverse_transform(model.transform(x)).shape
        (100, 5)

    Raises:
        ValueError: If data or views are not finite, or there are more components than
            rows, features or directions of variance.
        TypeError: If views are neither an object nor a function that can be called.

    References:
        Joint-Embedding vs Reconstruction: Provable Benefits of Latent Space Prediction
        for Self-Supervised Learning (Van Assel et al., 2025), Theorem 3.1
        https://arxiv.org/abs/2505.12477
    """

    @property
    def decoder_(self) -> Float[Array, "d k"]:
        """D: x is the mean of the data + decoder_ @ z."""
        return self._solved.decoder

    def inverse_transform(self, Z: Float[Array, "n k"]) -> Float[Array, "n d"]:
        """The image of each z.

        Raises:
            ValueError: If z are not finite, or have not k entries.
        """
        found = self._solved
        Z = check_array(Z, dtype=np.float64)
        if Z.shape[1] != len(found.encoder):
            raise ValueError(
                f"expected z of shape (n, {len(found.encoder)}), got {Z.shape}"
            )
        return Z @ found.decoder.T + found.mean

    def _solve(self) -> Solution:
        return reconstruction(self._problem(), self.n_components, self.ridge)

    def _objective(self, moments: Moments) -> float:
        return error(moments, self.components_, self.decoder_)
