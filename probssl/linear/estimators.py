r"""Joint embedding and reconstruction with linear maps, solved in closed form.

The estimators follow scikit-learn's conventions, with `partial_fit` for data that
arrive in parts. Views enter by their moments S, G and B alone (`moments`): exact for
views with a closed form, sums over the drawn views for a sampler.
"""

from abc import abstractmethod
from functools import reduce
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

from ..arguments import at_least, whole
from ..arrays import rows_for_sklearn
from .moments import Moments, Swaps, chance, of_data, of_views
from .solutions import Solution, agreement, error, joint_embedding, reconstruction
from .views import LARGEST_ENTRY, ClosedForm, Masking, Sampler, in_parts

__all__ = ["JointEmbeddingSSL", "ReconstructionSSL"]


class _LinearSSL(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Base class: moments of data and views, argument checks, and the encoder."""

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
        """Fit the rows of X; y is ignored."""
        X = self._checked(X, reset=True, least=2)
        if self.n_components is not None and self.n_components > min(X.shape):
            raise ValueError(
                f"expected n_components of at most {min(X.shape)}, the smaller of "
                f"n_samples = {X.shape[0]} and n_features = {X.shape[1]}, got "
                f"{self.n_components}"
            )
        self._solution: Solution | None = None
        self.moments_ = self._moments(X)
        self._solution = self._solve()
        return self

    def partial_fit(self, X: Float[Array, "n d"], y: object = None) -> Self:
        """Add one or more rows to those seen, and fit all of them.

        The maps are solved for on first use, not at each call.
        """
        first = not hasattr(self, "moments_")
        found = self._moments(self._checked(X, reset=first, least=1))
        self.moments_ = found if first else self.moments_.merged(found)
        self._solution = None
        return self

    def transform(self, X: Float[Array, "n d"]) -> Float[Array, "n k"]:
        """Encode rows, which count as views: (n, e), where views have e features.

        Raises:
            ValueError: If rows do not have as many features as views.
        """
        check_is_fitted(self)
        found, X = self._solved, rows_for_sklearn(X)
        features = len(found.view_mean)
        if features == self.n_features_in_:
            X = validate_data(self, X, dtype=np.float64, reset=False)
        else:
            X = check_array(X, dtype=np.float64)
        if X.shape[1] != features:
            raise ValueError(
                f"expected rows of {features} features, like the views, got "
                f"{X.shape[1]}; draw a view of each row first"
            )
        return (X - found.view_mean) @ found.encoder.T

    def score(self, X: Float[Array, "n d"], y: object = None) -> float:
        """Minus the objective on other rows and their views: larger is better.

        It is a mean over the rows: what views take from data, such as the mean that
        fills masked features, is that of the training data. A sampler draws new views,
        of up to 2,048 rows at once; the maps stay fixed. Joint embedding's scores
        compare at one n_components and one ridge only: further components lower the
        score, and a ridge shrinks W.
        """
        check_is_fitted(self)
        X = rows_for_sklearn(X)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        found = self._solved
        moments, views = self._moments(X), self._views()
        if isinstance(views, ClosedForm):
            moments = views.fitted(self.moments_.mean).moments(moments)
        return -self._objective(moments.about(found.mean, found.view_mean))

    @property
    def components_(self) -> Float[Array, "k e"]:
        """The encoder W or E: z = components_ @ (view - mean of the views)."""
        return self._solved.encoder

    @property
    def spectrum_(self) -> Float[Array, " rank"]:
        """All eigenvalues or singular values, the largest first."""
        return self._solved.spectrum

    @property
    def optimum_(self) -> float:
        """The objective at the solution, on the data seen."""
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
        """Check the settings, and return X as finite float64."""
        if self.n_components is not None:
            whole("n_components", self.n_components)
        whole("n_views", self.n_views, 2)
        at_least("ridge", self.ridge, 0)
        views = self._views()
        if isinstance(views, type) or not callable(views):
            raise TypeError(
                "expected views to be an object such as Masking(0.5), or a function "
                f"that draws views of rows, got {views!r}"
            )
        X = rows_for_sklearn(X)
        return validate_data(
            self, X, dtype=np.float64, reset=reset, ensure_min_samples=least
        )

    def _moments(self, X: Float[Array, "n d"]) -> Moments:
        """The moments of the data, with drawn views where these have no closed form."""
        if not (largest := max(X.max(), -X.min())) < LARGEST_ENTRY:
            raise ValueError(
                f"expected entries below {LARGEST_ENTRY:g}, whose squares do not "
                f"overflow, got {largest:g}; rescale the data"
            )
        if isinstance(self._views(), ClosedForm):
            return of_data(X)
        parts = in_parts(self._views(), X, self.n_views, self.verbose)
        first = self._of_part(*next(parts))
        return reduce(Moments.merged, (of_views(*part) for part in parts), first)

    def _of_part(
        self, x: Float[Array, "n d"], views: Float[Array, "n call view e"]
    ) -> Moments:
        return of_views(x, views)  # of the first rows

    def _views(self) -> Sampler | ClosedForm:
        return Masking() if self.views is None else self.views

    def _seen(self, moments: Moments) -> Moments:
        """Add the moments of views with a closed form."""
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
        """The objective of the fitted maps under these moments."""


class JointEmbeddingSSL(_LinearSSL):
    r"""Linear joint embedding: positive views agree, and representations stay white.

    .. math:: \min_W \frac1n \sum_i E \lVert W \tau_1(x_i) - W \tau_2(x_i) \rVert^2
        \quad \text{s.t.} \quad
        \frac1n \sum_i E[W \tau(x_i) \tau(x_i)^\top W^\top] = I_k

    With :math:`S^{-1/2} G S^{-1/2} = Q \Omega Q^\top` the solution is :math:`W =
    Q_k^\top S^{-1/2}`, and its value :math:`2 \sum_{i \le k} (1 - \omega_i)`. This is
    canonical correlation analysis (CCA) of two views that are drawn alike: the
    :math:`\omega_i` are the canonical correlations, the mutual information of Gaussian
    views is :math:`-\frac12 \sum_i \log(1 - \omega_i^2)` nats, and W spans the latents
    of probabilistic CCA, the linear p(y) ∏ p(x_v|y).

    One W encodes every view, and S and G pool the views of a call over their places in
    it, as in the paper. Where these are views of different kinds, such as the image
    and a rotated one, the solution is the same, but it is no CCA of one kind with the
    other, and `mutual_information` is refused.

    Arguments:
        n_components: k; None is the rank of S.
        views: Views with a closed form, or a sampler: rows (n, d) -> one view of each
            (n, e), or several (n, view, e). None is `Masking()`.
        n_views: How many views of each row are drawn from a sampler, or a few more
            where it returns several at once. All pairs of one call count as positive
            pairs, however they depend on one another given the row; of a sampler of one
            view a call, all pairs.
        ridge: Added to S, as a share of its mean variance, like that much more noise in
            the views; `optimum_` and `score` leave it out. Where S is singular (more
            features than rows, constant features), directions are left out whose
            standard deviation is below about a millionth of the largest. Standardise
            features whose units are that far apart.
        with_mean: Whether moments are taken around the means; the paper's are not.
        verbose: Show a progress bar while views are drawn.

    Attributes:
        components_: W, (k, e), each row with its largest entry positive.
        spectrum_: All :math:`\omega_i`, the largest first. With drawn views some may
            lie slightly below 0, since the estimate of G is unbiased, and far below
            where views of one call are opposed, as :math:`x \pm e` are.
        optimum_: The value of the objective with k components.
        moments_: The moments of the data seen, and of drawn views.

    Example:
        >>> from probssl.linear import Masking
        >>> x = np.random.default_rng(0).normal(size=(100, 5)) * [9, 5, 1, 1, 1]
        >>> model = JointEmbeddingSSL(2, views=Masking(0.3)).fit(x)
        >>> model.transform(x).shape
        (100, 2)

    Raises:
        ValueError: If data or views are not finite, all views of each row agree, there
            are more components than rows, features or directions of variance, or a
            number is out of its range.
        TypeError: If views are not callable, or a number is not of its type.

    References:
        Joint-Embedding vs Reconstruction: Provable Benefits of Latent Space Prediction
        for Self-Supervised Learning (Van Assel et al., 2025), Theorem 3.2
        https://arxiv.org/abs/2505.12477
    """

    def mutual_information(self) -> float:
        r""":math:`-\frac12 \sum_{i \le k} \log(1 - \omega_i^2)`, in nats per image.

        The mutual information of two views that are drawn alike, if they are Gaussian;
        infinite where views do not change a component. An :math:`\omega_i` below 0
        counts as 0 where it may be an estimate of 0.

        Raises:
            ValueError: With ``with_mean=False``: moments around 0 count what is the
                same in all images, the mean, as shared by the views of one. Where views
                of one call differ by their place in it beyond chance, as the image and
                a rotated one do: `moments.Swaps` of the first 2,048 rows.
        """
        if not self.with_mean:
            raise ValueError(
                "expected moments around the means for the mutual information, got "
                "with_mean=False, under which the mean of all images counts as what "
                "views share; fit with with_mean=True"
            )
        check_is_fitted(self)
        swaps = self.moments_.swaps
        if swaps is not None and swaps.differ:
            raise ValueError(
                "expected views of one call that are drawn alike for the mutual "
                "information, got views that differ by their place in the call: S and "
                "G are the moments of a pair in random order; draw each view by itself "
                "in the same way, or use sklearn.cross_decomposition.CCA of the two "
                "kinds"
            )
        kept = self.spectrum_[: self._n_features_out].clip(-1, 1)
        kept = kept[(kept > 0) | (kept < -chance(self.moments_.n, len(self.spectrum_)))]
        with np.errstate(divide="ignore"):
            return float(-0.5 * np.log1p(-np.square(kept)).sum())

    def _of_part(
        self, x: Float[Array, "n d"], views: Float[Array, "n call view e"]
    ) -> Moments:
        return of_views(x, views)._replace(swaps=Swaps.of(views))

    def _solve(self) -> Solution:
        return joint_embedding(self._problem(), self.n_components, self.ridge)

    def _objective(self, moments: Moments) -> float:
        return agreement(moments, self.components_)


class ReconstructionSSL(_LinearSSL):
    r"""Linear denoising autoencoder: reconstruct the image from k features of a view.

    .. math:: \min_{E, D} \frac1n \sum_i E \lVert x_i - D E \tau(x_i) \rVert^2

    With the singular values :math:`B S^{-1/2} = R \Phi P^\top` the solution is :math:`E
    = P_k^\top S^{-1/2}` and :math:`D = R_k \Phi_k`, up to an invertible map between
    them, and its value :math:`\mathrm{tr}(X^\top X / n) - \sum_{i \le k} \phi_i^2`.
    This is reduced-rank regression of x on its views: PCA where a view is the image,
    the marginalised denoising autoencoder where the view is corrupted.

    Arguments:
        n_components: k; None is the rank of S, or d if that is less. The other
            arguments, and the errors, are those of `JointEmbeddingSSL`.

    Attributes:
        components_: E, (k, e), with z white over the views; each row with its largest
            entry positive.
        decoder_: D, (d, k).
        spectrum_: All :math:`\phi_i`, the largest first.
        optimum_, moments_: As in `JointEmbeddingSSL`.

    Example:
        >>> from probssl.linear import Masking
        >>> x = np.random.default_rng(0).normal(size=(100, 5)) * [9, 5, 1, 1, 1]
        >>> model = ReconstructionSSL(2, views=Masking(0.3)).fit(x)
        >>> model.inverse_transform(model.transform(x)).shape
        (100, 5)

    References:
        Joint-Embedding vs Reconstruction: Provable Benefits of Latent Space Prediction
        for Self-Supervised Learning (Van Assel et al., 2025), Theorem 3.1
        https://arxiv.org/abs/2505.12477

    Raises:
        ValueError: If data or views are not finite, there are more components than
            rows, features or directions of variance, or a number is out of its range.
        TypeError: If views are not callable, or a number is not of its type.
    """

    @property
    def decoder_(self) -> Float[Array, "d k"]:
        """D: x is the mean of the data + decoder_ @ z."""
        return self._solved.decoder

    def inverse_transform(self, Z: Float[Array, "n k"]) -> Float[Array, "n d"]:
        """Decode: the reconstructed image of each z.

        Raises:
            ValueError: If z is not finite, or does not have k columns.
        """
        found = self._solved
        Z = check_array(rows_for_sklearn(Z, "Z"), dtype=np.float64)
        if Z.shape[1] != len(found.encoder):
            raise ValueError(
                f"expected z of shape (n, {len(found.encoder)}), got {Z.shape}"
            )
        return Z @ found.decoder.T + found.mean

    def _solve(self) -> Solution:
        return reconstruction(self._problem(), self.n_components, self.ridge)

    def _objective(self, moments: Moments) -> float:
        return error(moments, self.components_, self.decoder_)
