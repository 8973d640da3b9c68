"""Constants in float64: `.double()` of an objective is the one built in float64."""

from collections.abc import Callable

import pytest
import torch
from helpers import catalogue
from torch import nn
from torch.testing import assert_close

import probssl as ps
from probssl import entropies


def in_both(make: Callable[[], nn.Module]) -> tuple[nn.Module, nn.Module]:
    """Built in float32 and converted; and built in float64, with the same weights.

    Numbers without axes, and those of hyper-parameters, are constants and not copied.
    """
    converted = make().double()
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.double)
    try:
        built = make().double()  # a distribution of the catalogue is in float32
    finally:
        torch.set_default_dtype(before)
    state = converted.state_dict()
    constant = {n for n, b in built.named_buffers() if not b.ndim or ".fixed" in n}
    kept = {n: x for n, x in state.items() if n not in constant}
    built.load_state_dict(kept, strict=False)
    return converted, built


def summed(objective: nn.Module, batch: ps.Batch) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.as_tensor(sum(objective(batch)))


@pytest.mark.parametrize("name", catalogue.OBJECTIVES)
def test_an_objective_in_float64_is_the_one_built_there(name, float64):
    converted, built = in_both(catalogue.OBJECTIVES[name])
    batch = catalogue.batch()
    for objective in (converted, built):
        if hasattr(objective, "population"):
            objective.population = torch.tensor(8.0)
    for _ in range(2):  # a teacher moves between them
        found, expected = (summed(each, batch) for each in (converted, built))
        assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", catalogue.PRIORS)
def test_a_prior_in_float64_is_the_one_built_there(name):
    converted, built = in_both(catalogue.PRIORS[name])
    z = torch.randn(5, 2, built.known_dim(), dtype=torch.double)
    z = built.on_support(z).abs()
    assert_close(converted.log_prob(z), built.log_prob(z), rtol=1e-12, atol=1e-12)


ENTROPIES: dict[str, Callable[[], nn.Module]] = {
    "log-determinant": lambda: entropies.LogDeterminant(0.3),
    "variance and covariance": lambda: entropies.VarianceCovariance(0.3, 1e-3),
    "nearest": lambda: entropies.NearestNeighbour(2, 0.3),
    "kernel": entropies.KernelDensity,
    "equipartition": lambda: entropies.Equipartition(3, 2, temperature=0.3),
}


@pytest.mark.parametrize("name", ENTROPIES)
def test_an_entropy_in_float64_is_the_one_built_there(name):
    converted, built = in_both(ENTROPIES[name])
    priors = in_both(lambda: ps.priors.Gaussian(2, 0.3, 0.7))
    z = torch.randn(7, 2, 2, dtype=torch.double)
    found, expected = converted(z, priors[0]), built(z, priors[1])
    assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_a_number_that_was_replaced_is_not_put_back():
    scale = ps.hyper.Positive(0.3)
    scale.fixed.fill_(0.7)
    assert scale.double()() == torch.tensor(0.7).double()
    scale = ps.hyper.Positive([0.1, 0.3], dim=2).double().float().double()
    assert scale().tolist() == [0.1, 0.3]
