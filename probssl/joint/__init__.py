r"""The one distribution, and its guide, in Pyro.

.. math:: p(y, z, x) = p(y) \prod_v p(z_v \mid y) \, p(x_v \mid z_v)

References:
    A Probabilistic Model behind Self-Supervised Learning (Bizeul et al., 2024)
    https://arxiv.org/abs/2402.01399
"""

from .model import Joint

__all__ = ["Joint"]
