"""Under autocast networks run in bfloat16, and what is a density does not."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from copy import deepcopy
from functools import partial
from threading import Thread
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from helpers.catalogue import DIM, OBJECTIVES, batch, decoder, encoder, joint
from pyro import poutine
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

import probssl as ps
from probssl.runtime.precision import (
    Precision,
    in_float32,
    lowered,
    lowering,
    network_dtype,
)
from probssl.train.prepare import prepared_precision

HALF = torch.bfloat16
# What autocast lowers, and what loses most in a lower precision.
SENSITIVE = "mm addmm bmm baddbmm mv dot addmv convolution"
SENSITIVE += " exp log logsumexp log1p expm1 pow _softmax _log_softmax sum mean"

autocast = partial(torch.autocast, "cpu", HALF)
lowered_to_half = partial(lowering, HALF)


class Columns(nn.Module):
    """A network without a matrix product, so that there is nothing to lower."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.in_features, self.out_features = inputs, outputs
        self.weight = nn.Parameter(torch.rand(outputs) + 0.5)
        self.columns = torch.arange(outputs) % inputs

    def forward(self, x: Tensor) -> Tensor:
        return x[..., self.columns] * self.weight


def objective_of(name: str) -> nn.Module:
    torch.manual_seed(0)
    return OBJECTIVES[name]()


def without_products(objective: nn.Module) -> nn.Module:
    for module in list(objective.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                columns = Columns(child.in_features, child.out_features)
                columns.requires_grad_(child.weight.requires_grad)
                setattr(module, name, columns)
    return objective


def terms_of(objective: nn.Module, data: ps.Batch) -> list[Tensor]:
    torch.manual_seed(1)
    return [term for term in objective(data) if isinstance(term, Tensor)]


def grads_of(objective: nn.Module, terms: list[Tensor]) -> list[Tensor]:
    parameters = [p for p in objective.parameters() if p.requires_grad]
    grads = torch.autograd.grad(sum(terms), parameters, materialize_grads=True)
    return list(grads)


def step_under(
    context: Callable[[], AbstractContextManager[Any]], objective: nn.Module
) -> list[Tensor]:
    """Terms and gradient of a training step on a copy; autocast covers forward only."""
    objective = deepcopy(objective).train()
    with context():
        terms = terms_of(objective, batch())
        if context is lowered_to_half:
            return [*terms, *grads_of(objective, terms)]
    return [*terms, *grads_of(objective, terms)]


def assert_unchanged(call: Callable[[], Any], dtype: torch.dtype | None = None) -> None:
    """A function returns the same under autocast, bit for bit."""
    expected = call()
    with autocast():
        found = call()
    assert_close(found, expected, rtol=0, atol=0)
    assert dtype is None or all(value.dtype == dtype for value in found)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_what_is_no_network_has_the_value_and_gradient_of_float32(name: str) -> None:
    objective = without_products(objective_of(name))
    plain = step_under(lambda: lowering(None), objective)
    assert all(value.dtype == torch.float32 for value in plain)
    for context in (autocast, lowered_to_half):
        assert_close(step_under(context, objective), plain, rtol=0, atol=0)


class Spy(TorchDispatchMode):
    """The sensitive operations in bfloat16, and whether in a linear layer."""

    def __init__(self, objective: nn.Module) -> None:
        super().__init__()
        self.inside, self.found = 0, {True: set[str](), False: set[str]()}
        self.linear, self.wide = 0, 0
        for module in objective.modules():
            if isinstance(module, nn.Linear):
                module.register_forward_pre_hook(self._enter)
                module.register_forward_hook(self._leave)

    def _enter(self, module: nn.Module, inputs: Any) -> None:
        self.inside += 1

    def _leave(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self.inside -= 1
        self.linear += 1
        self.wide += output.dtype != HALF

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__
        tensors = [x for x in (*args, result) if isinstance(x, Tensor)]
        if name in SENSITIVE.split() and any(x.dtype == HALF for x in tensors):
            self.found[self.inside > 0].add(name)
        return result


@pytest.mark.parametrize("name", OBJECTIVES)
def test_all_of_the_networks_and_nothing_else_is_in_bfloat16(name: str) -> None:
    for context in (autocast, lowered_to_half):
        objective = objective_of(name)
        spy = Spy(objective)
        with context(), spy:
            terms = terms_of(objective, batch())
        assert spy.linear and not spy.wide
        assert not spy.found[False]
        assert all(term.dtype == torch.float32 for term in terms)


GUIDES = {
    "coupled": ps.guides.Coupled,
    "mixture": ps.guides.Coupled,
    "full": ps.guides.FullGaussian,
    "point": ps.guides.Point,
    "flow": ps.guides.Flow,
}


def joint_of(name: str) -> ps.Joint:
    prior: ps.priors.Prior = ps.priors.Gaussian(DIM, 0.5)
    if name == "flow":
        pytest.importorskip("zuko", reason="the normalising flows need it")
    if name == "mixture":
        prior = ps.priors.TwoTier(DIM, components=3, scale=0.5)
    if name == "several":
        networks = [ps.nn.PerModality([make(), make()]) for make in (encoder, decoder)]
        return ps.Joint(prior, (ps.likelihoods.Gaussian(0.5),) * 2, *networks)
    if name == "content":
        return joint(prior, content=ps.guides.Content(DIM))
    return joint(prior, guide=GUIDES[name])


@pytest.mark.parametrize("name", [*GUIDES, "content", "several"])
def test_joints_have_distributions_in_float32(name: str) -> None:
    joint, data = joint_of(name), batch()
    spy = Spy(joint)
    with autocast(), spy:
        guide = poutine.trace(joint.guide).get_trace(data)
        model = poutine.trace(poutine.replay(joint.model, guide)).get_trace(data)
        weights = ps.bounds.log_weights(joint, data)
        q = joint.encode(data)
        z = guide.nodes["z"]["value"]
        several = z.split(1, 1) if joint.several else z
        x = joint.decode(several)
        x = torch.cat([each.mean for each in (x if joint.several else (x,))], 1)
        alone = data.views[:, 0]
        mean = joint.represent((alone, alone) if joint.several else alone)
    sites = [*guide.nodes.values(), *model.nodes.values()]
    values = [site["value"] for site in sites if site["type"] == "sample"]
    floats = [x for x in values if torch.is_floating_point(x)]
    for value in (*floats, *weights, q.mean, x, mean):
        assert value.dtype == torch.float32
    assert not spy.found[False]
    assert spy.wide < spy.linear
    # The networks of a flow or of q(y|z) are part of a density.
    assert (spy.wide > 0) == (name in ("flow", "content"))


def turned(x: Tensor) -> Tensor:
    size = x.shape[-1]
    turn = torch.linspace(-1, 1, size**2, device=x.device).view(size, size)
    return x @ torch.linalg.matrix_exp(turn - turn.mT)


class Turned(dist.Normal):
    """A density with a matrix product."""

    def log_prob(self, value: Tensor) -> Tensor:
        return super().log_prob(turned(value))


class TurnedGaussian(ps.likelihoods.Likelihood):
    def forward(self, output: Tensor) -> dist.TorchDistribution:
        return Turned(turned(output), 0.5)


class TurnedPoint(ps.guides.Point):
    def forward(self, *args: Any) -> dist.TorchDistribution:
        return dist.Delta(turned(super().forward(*args).mean), event_dim=2)


def turned_joint(**options: Any) -> ps.Joint:
    prior = ps.priors.Gaussian(DIM, 0.5)
    return ps.Joint(prior, TurnedGaussian(), encoder(), decoder(), **options)


@pytest.mark.parametrize(
    "made",
    [
        lambda: ps.limits.SimVAE(turned_joint()),
        lambda: ps.limits.DenoisingAutoencoder(encoder(), decoder(), TurnedGaussian()),
        lambda: ps.limits.MaskedAutoencoder(encoder(), decoder(), TurnedGaussian()),
    ],
)
def test_likelihoods_are_in_float32(made: Callable[[], nn.Module]) -> None:
    objective = without_products(made())
    assert_unchanged(lambda: terms_of(objective, batch()))


def test_what_a_joint_makes_of_outputs_is_in_float32() -> None:
    joint = without_products(turned_joint(guide=TurnedPoint))
    assert isinstance(joint, ps.Joint)

    def means() -> list[Tensor]:
        torch.manual_seed(1)
        nodes = poutine.trace(joint.model).get_trace(batch()).nodes
        z = nodes["z"]["value"]
        q, p = joint.encode(batch()), joint.decode(z)
        return [q.mean, p.mean, nodes["x"]["fn"].mean]

    assert_unchanged(means)


def test_a_pseudo_posterior_has_the_log_density_of_float32() -> None:
    temperature = dist.LogNormal(0.0, 1.0)
    objective = without_products(ps.limits.SimCLR(encoder(), temperature=temperature))

    def log_density() -> Tensor:
        torch.manual_seed(1)
        return poutine.trace(objective.model).get_trace(batch()).log_prob_sum()

    assert_unchanged(log_density)


def test_a_predictor_of_an_entropy_is_a_network() -> None:
    prior = ps.priors.Spherical(None, 5.0)
    entropy = ps.entropies.PlugIn(nn.Linear(DIM, DIM))
    objective = ps.limits.Embedding(encoder(), prior, entropy, all_views=True)
    spy = Spy(objective)
    with autocast(), spy:
        terms = terms_of(objective, batch())
    assert spy.linear == 3 and not spy.wide and not spy.found[False]
    assert all(term.dtype == torch.float32 for term in terms)


REPRESENTING = (
    "SimCLR",
    "BYOL",
    "SimVAE",
    "denoising autoencoder",
    "masked autoencoder",
)


@pytest.mark.parametrize("name", REPRESENTING)
def test_representations_come_out_in_float32(name: str) -> None:
    objective, x = objective_of(name).eval(), batch().views[:, 0]
    layers = ["backbone"] + ["projector"] * hasattr(objective, "projector")
    for layer in layers:
        with autocast():
            z = objective.represent(x, layer)
        assert z.dtype == torch.float32
        assert not torch.equal(z, objective.represent(x, layer))


def test_networks_of_several_modalities_are_in_bfloat16() -> None:
    objective = ps.limits.CLIP(ps.nn.PerModality([encoder(), encoder()]))
    spy, x = Spy(objective), batch().views.unbind(1)
    data = ps.Batch(tuple(part.unsqueeze(1) for part in x))
    with autocast(), spy:
        values = [*terms_of(objective, data), objective.represent(x)]
    assert spy.linear == 8 and not spy.wide and not spy.found[False]
    assert all(value.dtype == torch.float32 for value in values)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_objective_in_float64_stays_in_float64(name: str, float64: None) -> None:
    objective = objective_of(name).eval()
    assert_unchanged(lambda: terms_of(objective, batch()), torch.float64)


@pytest.mark.parametrize("name", ["SimCLR", "MoCo", "SimVAE"])
def test_the_cache_of_weights_changes_nothing(name: str) -> None:
    def uncached() -> torch.autocast:
        return torch.autocast("cpu", HALF, cache_enabled=False)

    objective = objective_of(name)
    found = (step_under(context, objective) for context in (uncached, autocast))
    assert_close(*found, rtol=0, atol=0)


def test_lowering_is_autocast_for_networks_alone() -> None:
    layer, x = nn.Linear(4, 4), torch.randn(3, 4)
    with autocast():
        expected = layer(x).float()
    with lowering(HALF):
        assert network_dtype("cpu") is HALF
        assert layer(x).dtype == torch.float32
        assert not torch.equal(layer(x), expected)
        assert torch.equal(lowered(layer, x), expected)
        with lowering(None):
            assert torch.equal(lowered(layer, x), layer(x))
    assert network_dtype("cpu") is None
    assert torch.equal(lowered(layer, x), layer(x))


def test_networks_in_float32_functions_are_lowered_again() -> None:
    seen: list[bool] = []

    def network(x: Tensor) -> tuple[Tensor, list[Tensor]]:
        seen.append(torch.is_autocast_enabled("cpu"))
        return x.to(HALF), [x.double(), x.half(), x.long()]

    @in_float32
    def density(x: Tensor, fail: bool = False) -> Any:
        """A density."""
        assert not torch.is_autocast_enabled("cpu")
        if fail:
            raise KeyError
        return lowered(network, x)

    with autocast():
        first, (second, third, last) = density(torch.ones(2))
        density(x=torch.ones(2))
        with pytest.raises(KeyError):
            density(torch.ones(2), fail=True)
        assert torch.is_autocast_enabled("cpu")
        assert network_dtype("cpu") is HALF
    assert network_dtype("cpu") is None
    types = [x.dtype for x in (first, second, third, last)]
    assert types == [torch.float32, torch.float64, torch.float32, torch.int64]
    assert seen == [True, True]
    assert density.__doc__ == "A density."
    assert density(torch.ones(2))[0].dtype == HALF  # its own, without autocast


def test_terms_come_back_as_terms() -> None:
    def own(data: ps.Batch) -> ps.Terms:
        return ps.Terms(alignment=data.views.to(HALF).mean())

    with lowering(HALF):
        terms = lowered(own, batch())
    assert isinstance(terms, ps.Terms)
    assert isinstance(terms.alignment, Tensor)
    assert terms.alignment.dtype == torch.float32 and terms.entropy == 0.0


def test_devices_without_autocast_are_left_alone() -> None:
    layer, x = nn.Linear(4, 4, device="meta"), torch.empty(3, 4, device="meta")
    with autocast(), lowering(HALF):
        assert in_float32(partial(lowered, layer))(x).dtype == torch.float32
    assert lowered(lambda: 1) == 1


def test_a_compiler_of_python_sees_what_is_lowered() -> None:
    layer, x = nn.Linear(4, 4), torch.randn(3, 4)

    @in_float32
    def density(x: Tensor) -> Tensor:
        return -lowered(layer, x).square().sum()

    compiled = torch.compile(density, backend="eager", fullgraph=True)
    for context in (partial(lowering, None), lowered_to_half, autocast):
        with context():
            assert torch.equal(compiled(x), density(x))


def test_another_thread_is_not_lowered() -> None:
    found: list[torch.dtype | None] = []
    with lowering(HALF):
        thread = Thread(target=lambda: found.append(network_dtype("cpu")))
        thread.start()
        thread.join()
    assert found == [None]


def test_a_fit_takes_bfloat16_for_objectives_in_float32() -> None:
    assert prepared_precision(None, False, torch.float64) == Precision()
    assert prepared_precision(HALF, True, torch.float32) == Precision(HALF, True)
    with pytest.raises(ValueError, match="scaled loss"):
        prepared_precision(torch.float16, False, torch.float32)
    with pytest.raises(ValueError, match=r"objective\.float\(\)"):
        prepared_precision(HALF, False, torch.float64)


def test_a_precision_is_active_inside_and_nowhere_else() -> None:
    before = torch.get_float32_matmul_precision()
    with Precision(HALF, True).active(torch.device("cpu")):
        assert network_dtype("cpu") is HALF
        assert torch.get_float32_matmul_precision() == before
    with Precision().active(torch.device("cpu")):
        assert network_dtype("cpu") is None
    assert network_dtype("cpu") is None


@pytest.mark.gpu
def test_products_are_in_tf32_inside_and_nowhere_else() -> None:
    a = torch.rand(512, 512, device="cuda")
    exact = a @ a
    with Precision(None, True).active(a.device):
        rounded = a @ a
    assert torch.equal(a @ a, exact)
    assert not torch.equal(rounded, exact)
    assert_close(rounded, exact, rtol=2**-10, atol=0)


@pytest.mark.gpu
@pytest.mark.parametrize("name", OBJECTIVES)
def test_terms_are_in_float32_on_a_gpu(name: str) -> None:
    objective = objective_of(name).cuda()
    data = ps.Batch(*(x if x is None else x.cuda() for x in batch()))
    with torch.autocast("cuda", HALF):
        terms = terms_of(objective, data)
    assert all(term.dtype == torch.float32 for term in terms)
    assert all(grad.isfinite().all() for grad in grads_of(objective, terms))


class Own(nn.Module):
    """An objective that is no class of the package."""

    def __init__(self, exact: bool) -> None:
        super().__init__()
        self.net, self.exact = nn.Linear(5, 5), exact

    def forward(self, views: ps.Batch) -> ps.Terms:
        out = self.net(views.stacked)
        out = out.float() if self.exact else out
        return ps.Terms(penalty=-out.square().sum(-1).mean())


@pytest.mark.parametrize("exact", [False, True])
def test_rounded_terms_of_a_module_of_its_own_are_named(exact, caplog) -> None:
    ps.fit(Own(exact), torch.randn(8, 5), epochs=1, precision=HALF, progress=False)
    assert ("got bfloat16 of Own" in caplog.text) != exact
