"""Comparison of fitted objectives on the same data, views and measures."""

from .run import compare, sampled
from .table import Comparison
from .terms import own_terms, representation_terms

__all__ = ["Comparison", "compare", "own_terms", "representation_terms", "sampled"]
