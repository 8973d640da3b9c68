"""Figures from arrays and tables: curves, maps, images, ranks and comparisons.

Each function returns a new matplotlib Figure: a notebook shows it as the last value of
a cell, ``figure.savefig("name.png")`` writes it. Global state of pyplot is not changed.
Colours are safe for colour-blind readers.
"""

from .advice import advice
from .curves import learning_curves
from .maps import latent_map, latent_maps
from .pictures import grid, images, reconstructions, views
from .posterior import (
    expected_coverage,
    hyper_parameters,
    predictive_intervals,
    ranks,
)
from .style import close
from .tables import comparison, matrix, terms

__all__ = ["advice", "close", "comparison", "expected_coverage", "grid"]
__all__ += ["hyper_parameters", "images", "latent_map", "latent_maps"]
__all__ += ["learning_curves", "matrix", "predictive_intervals", "ranks"]
__all__ += ["reconstructions", "terms", "views"]
