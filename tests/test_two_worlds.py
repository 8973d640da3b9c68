"""One prior object, two worlds: generative and contrastive, from fit to folder."""

from collections.abc import Iterator
from functools import partial

import pyro.distributions as dist
import pytest
import torch
from helpers.catalogue import flow
from helpers.checks import seeded
from torch import Tensor, nn
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing import assert_close

import probssl as ps
from probssl.entropies import KernelDensity, LogDeterminant
from probssl.hyper import Positive
from probssl.limits._base import Embedding
from probssl.terms import Batch

pytestmark = pytest.mark.usefixtures("float64")
DIM = 4


class Laplace(nn.Module):
    """p(z|y) with a scale that may be learned or random."""

    def __init__(self, scale: object) -> None:
        super().__init__()
        self.scale = Positive(scale)

    def forward(self, y: Tensor, scale: Tensor | None = None) -> dist.Independent:
        return dist.Laplace(y, self.scale() if scale is None else scale).to_event(1)


PRIORS = {
    "gaussian": lambda: ps.priors.Gaussian(DIM, 0.3),
    "diagonal": lambda: ps.priors.Gaussian(DIM, ps.learned([0.1, 0.2, 0.3, 0.4])),
    "random scale": lambda: ps.priors.Gaussian(DIM, dist.LogNormal(-1.0, 0.5)),
    "content and style": lambda: ps.priors.ContentStyle(3, 1, 0.3),
    "random content": lambda: ps.priors.ContentStyle(3, 1, dist.Beta(2.0, 5.0)),
    "sphere": lambda: ps.priors.Spherical(DIM, dist.LogNormal(2.0, 0.5)),
    "student": lambda: ps.priors.StudentT(DIM, 0.3, dist.LogNormal(1.5, 0.3)),
    "mixture": lambda: ps.priors.Mixture(DIM, 5, 0.5),
    "two tiers": lambda: ps.priors.TwoTier(DIM, 5, 0.3),
    "sequence": lambda: ps.priors.Sequence(DIM, ps.priors.Contraction(DIM)),
    "random sequence": lambda: ps.priors.Sequence(DIM, dist.Beta(5.0, 2.0)),
    "five lines": lambda: ps.priors.Custom(
        lambda y: dist.Laplace(y, 0.3).to_event(1), dim=DIM
    ),
    "learned": lambda: ps.priors.Custom(Laplace(ps.learned(0.3)), DIM),
    "random": lambda: ps.priors.Custom(Laplace(dist.LogNormal(-1.0, 0.5)), DIM),
    "flow": lambda: ps.priors.Custom(flow, DIM),
}
OWN = ("five lines", "learned", "random", "flow")  # need `into` to be loaded
TINY = {"hidden": (16,)}


@pytest.fixture(scope="module")
def digits() -> ps.data.Dataset:
    """A few digits, for which the real classes and views are right."""
    whole = ps.data.digits()
    train, test = (
        ps.data.Split(split.images[:n], split.labels[:n])
        for split, n in ((whole.train, 200), (whole.test, 60))
    )
    return whole._replace(train=train, test=test)


def encoder() -> nn.Module:
    return ps.nn.MLPEncoder((1, 8, 8), DIM, **TINY)


def generative(name: str) -> nn.Module:
    guide = ps.guides.PowerSpherical if name == "sphere" else ps.guides.DiagonalGaussian
    return ps.limits.SimVAE(
        ps.Joint(
            PRIORS[name](),
            ps.likelihoods.Binomial(16),
            encoder(),
            ps.nn.MLPDecoder(DIM, (1, 8, 8), **TINY),
            guide=guide,
        )
    )


def contrastive(name: str) -> nn.Module:
    if name == "mixture":  # its content is a cluster, for which no view can stand
        return Embedding(encoder(), PRIORS[name](), LogDeterminant())
    return Embedding(encoder(), PRIORS[name](), KernelDensity(), plug_in=True)


def both(name: str) -> Iterator[nn.Module]:
    torch.manual_seed(0)
    return (make(name).double() for make in (generative, contrastive))


@pytest.mark.parametrize("name", PRIORS)
def test_a_prior_is_fitted_saved_and_inspected_in_both_worlds(name, digits, tmp_path):
    for i, objective in enumerate(both(name)):
        history = ps.fit(
            objective, digits.train, views=ps.views.digits(), epochs=2, progress=False
        )
        assert all(torch.tensor(history["value"]).isfinite())
        folder = ps.save(objective, tmp_path / str(i))
        if name in OWN:
            with pytest.raises(ValueError, match="into="):
                ps.load(folder)
            (again,) = (o for j, o in enumerate(both(name)) if j == i)
            again = ps.load(folder, into=again)
        else:
            again = ps.load(folder)
        z = ps.embed(objective, digits.test)
        assert z.shape == (60, DIM)
        assert_close(ps.embed(again, digits.test), z)
        hypers = [h.name for h in getattr(objective, "joint", objective).prior.random()]
        if i == 0 or hypers:
            idata = ps.to_arviz(objective, digits.test, draws=7, items=3)
            assert idata.posterior.sizes["draw"] == 7
            assert set(hypers) <= {*idata.posterior} & {*idata.prior}


def step(objective: nn.Module, parameters: dict[str, Tensor], views: Tensor) -> list:
    """The value and its gradients, as a function that can be traced."""
    value = sum(functional_call(objective, parameters, (Batch(views),)))
    leaves = list(parameters.values())
    gradients = torch.autograd.grad(value, leaves, allow_unused=True)
    return [value, *(gradient for gradient in gradients if gradient is not None)]


@pytest.mark.filterwarnings(  # of Inductor itself
    "ignore::DeprecationWarning", "ignore::FutureWarning"
)
@pytest.mark.parametrize(
    "compiled", [False, pytest.param(True, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("name", PRIORS)
def test_a_training_step_is_one_graph_with_the_eager_value_and_gradient(
    name, compiled, digits
):
    views = ps.views.digits()(digits.train.images[:6].double())
    for objective in both(name):
        for module in objective.modules():
            if "population" in module._buffers:
                module.population = torch.tensor(200.0)
        given = dict(objective.named_parameters()), views
        run = partial(step, objective)
        graph = make_fx(run)(*given)
        eager = seeded(run, *given)
        assert_close(seeded(graph, *given), eager)
        assert len(eager) > 4
        if compiled:
            # The graph holds the gradients: it needs none of its own.
            with torch.no_grad(), torch._inductor.config.patch(fallback_random=True):
                assert_close(seeded(torch.compile(graph), *given), eager)


@pytest.mark.usefixtures("short_decoders")
def test_a_custom_prior_stands_beside_others_in_a_comparison(digits):
    objectives = {
        f"{name}, {i}": objective
        for name in ("gaussian", "five lines")
        for i, objective in enumerate(both(name))
    }
    comparison = ps.compare(objectives, digits, baselines=False, progress=False)
    table = comparison.table
    assert table["elbo"].notna().to_list() == [True, False, True, False]
    assert table[["log_det", "linear_probe"]].notna().all(axis=None)
