"""Laws that priors, likelihoods, guides and objectives of your own must obey.

Each function tries every law of what it is given, on a copy, and raises a `LawError`
that names all that are broken, by how much, and where to look.
"""

from .guides import check_guide
from .laws import LawError
from .likelihoods import check_likelihood
from .objectives import check_objective
from .priors import check_prior

__all__ = [
    "LawError",
    "check_guide",
    "check_likelihood",
    "check_objective",
    "check_prior",
]
