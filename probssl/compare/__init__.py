"""Every method on the same data, the same views and the same measures."""

from .run import compare, sampled
from .table import Comparison
from .terms import own_terms, representation_terms

__all__ = ["Comparison", "compare", "own_terms", "representation_terms", "sampled"]
