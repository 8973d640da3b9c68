r"""Which views belong together: the P of stochastic neighbour embedding.

P is a distribution over ordered pairs of different views, of a batch as a whole: P_ij
is the probability to draw view i and then its partner j, and P_{j|i} of the partner
alone. It says what is alike before anything is learned; the kernel of a prior, which is
Q, is fitted to it (`limits.NeighbourEmbedding`).

What makes views is what makes P. Of two views drawn from one item nothing is known but
that they belong together: P is 1 over the number of such pairs, and sparse. Where the
density :math:`\varphi(x_j \mid x_i)` of a view around a point is known, so that any
point may have come of any other, P is dense:

.. math:: P_{j \mid i} = \frac{\varphi(x_j \mid x_i)}
    {\sum_{k \ne i} \varphi(x_k \mid x_i)}, \qquad P_{ij} = \frac1M P_{j \mid i}

References:
    Your Contrastive Learning Is Secretly Doing Stochastic Neighbor Embedding
    (Hu et al., 2023)
    https://arxiv.org/abs/2205.14814
    Stochastic Neighbor Embedding (Hinton and Roweis, 2002)
    https://papers.nips.cc/paper/2276-stochastic-neighbor-embedding
"""

from .base import Affinity
from .dense import Dense, Mixup, Noise, Perplexity
from .within import Overlap, Positives

__all__ = [
    "Affinity",
    "Dense",
    "Mixup",
    "Noise",
    "Overlap",
    "Perplexity",
    "Positives",
]
