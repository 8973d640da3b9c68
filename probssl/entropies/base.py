"""The base class of estimators of H[z]."""

from jaxtyping import Float
from torch import Tensor, nn

from ..priors import Prior

__all__ = ["Entropy", "Views", "coordinates"]

Views = Float[Tensor, "batch view dim"]


class Entropy(nn.Module):
    r"""An estimator of the entropy of representations, in nats.

    Called with z, of shape (batch, view, dim), and the prior whose kernel it may need,
    it returns the marginal entropy H[z] of one view, averaged over the views. `joint`
    returns the joint entropy of all views of an item, less by their mutual information:

    .. math:: H[z_1, \dots, z_V] = \sum_v H[z_v] - I[z_1, \dots, z_V]

    An estimator of your own needs `forward`; and `joint` for objectives with
    ``all_views=True``. A plain function of z and the prior works as well. Objectives
    raise the estimate: an upper bound with parameters of its own, which are to lower
    it, reverses their gradient, ``2 * p.detach() - p`` in place of p, as `PlugIn` does.
    """

    def forward(self, z: Views, prior: Prior) -> Float[Tensor, ""]:
        raise NotImplementedError(f"{type(self).__name__} has no forward(z, prior)")

    def joint(self, z: Views, prior: Prior) -> Float[Tensor, ""]:
        r"""Return :math:`\hat H[z_1, \dots, z_V]`.

        Raises:
            TypeError: If the estimator has no joint form.
        """
        raise TypeError(
            "expected an estimator of the joint entropy of the views for "
            f"all_views=True, got {type(self).__name__}; use LogDeterminant, "
            "KernelDensity, NearestNeighbour, Collision or PlugIn"
        )

    def conditional(self, z: Views, prior: Prior) -> Float[Tensor, ""]:
        r"""Return :math:`\hat H[z_2, \dots, z_V \mid z_1]`.

        .. math:: H[z_2, \dots, z_V \mid z_1] = H[z_1, \dots, z_V] - H[z_1]

        It is a mean over the view that stands first, unless the prior is one of views
        in order.
        """
        first = z[:, :1] if getattr(prior, "ordered", False) else z
        return self.joint(z, prior) - self(first, prior)

    def following(self, z: Views, prior: Prior) -> Float[Tensor, ""]:
        r"""Return the mean of :math:`\hat H[z_2], \dots, \hat H[z_V]`.

        Under a prior of views in order these are predicted, and the first view, whose
        entropy may be another, is not.
        """
        return self(z[:, 1:], prior)


def coordinates(z: Views, prior: Prior | None) -> Views:
    """z in coordinates whose volume is the measure of the prior's densities.

    On a simplex they are all but the last, as for a Dirichlet density.

    Raises:
        ValueError: On a sphere, where that is the area.
    """
    space = "vectors" if prior is None else prior.space
    if space == "a sphere":
        raise ValueError(
            f"expected a prior over vectors for an entropy by covariances, got "
            f"{type(prior).__name__}, whose density is by area on a sphere; use "
            "KernelDensity or NearestNeighbour"
        )
    return z[..., :-1] if space == "a simplex" else z
