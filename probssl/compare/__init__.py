"""Comparison of fitted objectives on the same data, views and measures."""

from .implied import Implied, Measure, evidence_of, implied_joint
from .run import compare
from .sampling import sampled
from .table import Comparison
from .terms import own_terms, representation_terms

__all__ = ["Comparison", "Implied", "Measure", "compare", "evidence_of"]
__all__ += ["implied_joint", "own_terms", "representation_terms", "sampled"]
