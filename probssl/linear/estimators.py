r"""Joint embedding and reconstruction with linear maps, solved in closed form.

Views enter by their moments S, G and B alone (`moments`): those of `ClosedForm` views
are exact, those of a sampler are sums over the views it draws. Scikit-learn's
conventions hold, among them `partial_fit` for data that come in parts.

Joint-Embedding vs Reconstruction: Provable Benefits of Latent Space Prediction for
Self-Supervised Learning (Van Assel et al., 2025), Theorems 3.1 and 3.2
https://arxiv.org/abs/2505.12477
"""

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array
from sklearn.utils.validation import check_array

from .base import LinearSSL
from .moments import Moments
from .solutions import Solution, agreement, error, joint_embedding, reconstruction

__all__ = ["JointEmbeddingSSL", "ReconstructionSSL"]


class JointEmbeddingSSL(LinearSSL):
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
        >>> from probssl.linear import Masking
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


class ReconstructionSSL(LinearSSL):
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
        >>> from probssl.linear import Masking
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
