"""Figures from arrays and tables: curves, maps, images and comparisons.

Each function returns a matplotlib Figure of its own, which a notebook shows as the last
value of a cell and ``figure.savefig("name.png")`` writes. Nothing is shown or set
elsewhere; colours can be told apart by colour-blind readers.
"""

from .curves import learning_curves
from .maps import latent_map
from .pictures import images, reconstructions, views
from .style import close
from .tables import comparison, terms

__all__ = [
    "close",
    "comparison",
    "images",
    "latent_map",
    "learning_curves",
    "reconstructions",
    "terms",
    "views",
]
