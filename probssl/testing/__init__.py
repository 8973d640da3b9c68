"""Laws that your own priors, likelihoods, guides and objectives must obey.

`check_prior`, `check_likelihood`, `check_guide` and `check_objective` test one part
each against every law in the table of their docstring, in that order: on a copy in
float64, from a fixed seed, without changing the part or the random state. They return
nothing if all laws hold, else they raise one `LawError` that lists every broken law:
what was expected, what came, and where to look. The first law in the list is often the
cause of the others: a density of the wrong shape, say, also fails its integral.

Laws about samples compare means with error bars of five standard errors, so that a
correct part hardly ever fails by chance; "undecided" means that fewer dimensions or
more `draws` are needed. In a test suite, parametrise over your parts::

    @pytest.mark.parametrize("prior", [MyPrior(2), MyPrior(3, scale=0.1)])
    def test_laws(prior):
        ps.testing.check_prior(prior)
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
