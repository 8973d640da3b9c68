r"""Maps of data in a few dimensions: contrastive learning as neighbour embedding.

Visualizing Data using t-SNE (van der Maaten and Hinton, 2008)
https://jmlr.org/papers/v9/vandermaaten08a.html
Your Contrastive Learning Is Secretly Doing Stochastic Neighbor Embedding
(Hu et al., 2023)
https://arxiv.org/abs/2205.14814
Unsupervised visualization of image datasets using contrastive learning
(Böhm et al., 2023)
https://arxiv.org/abs/2210.09879

Neighbour embedding says by P which items belong together, and has the kernel Q of their
places on the map follow it. t-SNE takes P from distances and moves places; contrastive
learning takes P from augmentation, and moves a network that makes a place of any item.
Here P is both, and what is trained is the network.
"""

from .estimator import NeighbourMap
from .neighbourhood import Neighbourhood

__all__ = ["NeighbourMap", "Neighbourhood"]
