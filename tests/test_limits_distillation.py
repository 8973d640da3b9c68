"""BYOL and SimSiam: their published updates, which are no gradients; EMA teachers."""

import math
from copy import deepcopy
from functools import partial

import pytest
import torch
from helpers.checks import asymmetry
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, normalize
from torch.testing import assert_close

import probssl as ps
from probssl.limits._ema import Teacher
from probssl.limits.byol import BYOL
from probssl.limits.simsiam import SimSiam
from probssl.terms import Batch

pytestmark = pytest.mark.usefixtures("float64")
IDENTITY = {"rtol": 1e-10, "atol": 1e-10}


def value(objective: nn.Module, x: Tensor) -> Tensor:
    return torch.as_tensor(sum(objective(Batch(x))))


def grads(value: Tensor, module: nn.Module) -> list[Tensor]:
    """The gradients of all that is trained."""
    trained = [p for p in module.parameters() if p.requires_grad]
    return list(torch.autograd.grad(value, trained))


def log_vmf(kappa: float) -> float:
    """log C_3(κ), κ / (4 π sinh κ)."""
    return math.log(kappa / (4 * math.pi * math.sinh(kappa)))


def networks() -> list[nn.Module]:
    encoder = nn.Sequential(nn.Linear(5, 6), nn.Tanh())
    return [encoder, nn.Linear(6, 3), nn.Sequential(nn.Linear(3, 3), nn.Tanh())]


def ordered(views: int) -> list[tuple[int, int]]:
    return [(v, w) for v in range(views) for w in range(views) if v != w]


@pytest.mark.parametrize("views", [2, 3])
def test_simsiam_follows_the_published_rule(views):
    encoder, projector, predictor = networks()
    objective, x = SimSiam(encoder, projector, predictor), torch.randn(7, views, 5)
    z = [projector(encoder(x[:, v])) for v in range(views)]
    p = [predictor(each) for each in z]
    cosines = [cosine_similarity(p[v], z[w].detach()).mean() for v, w in ordered(views)]
    loss = -sum(cosines) / len(cosines)
    assert_close(value(objective, x), log_vmf(1.0) - loss, **IDENTITY)
    for ours, plain in zip(
        grads(value(objective, x), objective), grads(-loss, objective), strict=True
    ):
        assert_close(ours, plain, **IDENTITY)


def test_byol_follows_the_published_rule_and_its_teacher_too():
    parts, x = nn.ModuleList(networks()), torch.randn(7, 2, 5)
    encoder, projector, predictor = parts
    objective = BYOL(encoder, projector, predictor, momentum=0.9)
    online = nn.Sequential(encoder, projector)
    teacher = deepcopy(online)
    optimizer = torch.optim.SGD(parts.parameters(), 0.5)
    for _ in range(3):
        for slow, fast in zip(teacher.parameters(), online.parameters(), strict=True):
            slow.data = 0.9 * slow.data + 0.1 * fast.data
        loss = torch.zeros(())
        for v, w in ordered(2):
            p = normalize(predictor(online(x[:, v])), dim=-1)
            aim = normalize(teacher(x[:, w]), dim=-1).detach()
            loss = loss + (p - aim).square().sum(-1).mean()
        ours = value(objective, x)  # which moves the teacher
        assert_close(ours, log_vmf(4.0) + 4 - loss, **IDENTITY)
        optimizer.zero_grad()
        loss.backward()
        for grad, parameter in zip(grads(ours, parts), parts.parameters(), strict=True):
            assert_close(grad, -parameter.grad, **IDENTITY)
        optimizer.step()
    pairs = zip(objective.teacher.parameters(), teacher.parameters(), strict=True)
    for own, plain in pairs:
        assert_close(own, plain, **IDENTITY)


def test_simsiam_is_byol_with_a_teacher_that_follows_at_once():
    parts, x = networks(), torch.randn(7, 3, 5)
    byol, simsiam = BYOL(*parts, momentum=0.0), SimSiam(*parts)
    for _ in range(2):
        left, right = value(byol, x), value(simsiam, x)
        assert_close((left - log_vmf(4.0)) / 4, right - log_vmf(1.0), **IDENTITY)
        found, expected = grads(left, byol), grads(right, simsiam)
        for one, other in zip(found, expected, strict=True):
            assert_close(one, 4 * other, **IDENTITY)
        with torch.no_grad():
            parts[0][0].weight.add_(torch.randn(6, 5))


def test_the_value_is_the_density_of_the_target_around_the_prediction():
    z, predictor = torch.randn(7, 2, 3), nn.Linear(3, 3)
    terms = SimSiam(nn.Identity(), predictor=predictor)(Batch(z))
    y, aim = normalize(predictor(z), dim=-1), normalize(z, dim=-1)
    kernel = ps.distributions.VonMisesFisher(y, torch.tensor(1.0))
    assert_close(terms.alignment, kernel.log_prob(aim.flip(1)).mean())
    assert terms == terms._replace(reconstruction=0.0, entropy=0.0, penalty=0.0)


def turning(objective: nn.Module, x: Tensor) -> float:
    """The asymmetry of the update of what is trained."""
    trained = [p for p in objective.parameters() if p.requires_grad]
    start = nn.utils.parameters_to_vector(trained).detach().clone()

    def update(at: Tensor) -> Tensor:
        nn.utils.vector_to_parameters(at.clone(), trained)
        return nn.utils.parameters_to_vector(grads(value(objective, x), objective))

    found = asymmetry(update, start)
    nn.utils.vector_to_parameters(start, trained)
    return found


def test_the_update_of_simsiam_is_the_gradient_of_no_scalar():
    x = torch.randn(6, 2, 4)
    linear = nn.Linear(4, 3, bias=False)
    simsiam = SimSiam(linear, predictor=nn.Linear(3, 3, bias=False))
    assert turning(simsiam, x) > 0.1
    # Of one that has a scalar the same differences are symmetric.
    assert turning(ps.limits.SimCLR(linear), x) < 1e-6


def test_without_a_predictor_the_stop_only_halves_the_gradient():
    x, linear = torch.randn(6, 2, 4), nn.Linear(4, 3, bias=False)
    simsiam = SimSiam(linear, predictor=nn.Identity())
    z = linear(x)
    full = grads(cosine_similarity(z[:, 0], z[:, 1]).mean(), linear)[0]
    assert_close(grads(value(simsiam, x), linear)[0], full / 2, **IDENTITY)
    assert turning(simsiam, x) < 1e-6


def test_the_updates_of_byol_and_its_teacher_are_the_gradient_of_no_scalar():
    """The derivative of θ's update in ξ is no multiple of that of ξ's in θ, which is I.

    So no scalar of (θ, ξ) has both as its gradient, whatever the rates of the two.
    """
    x, linear = torch.randn(6, 2, 4), nn.Linear(4, 3, bias=False)
    byol = BYOL(linear, predictor=nn.Linear(3, 3), momentum=1.0)
    (xi,) = byol.teacher.parameters()
    columns, start, step = [], xi.flatten().clone(), 1e-5
    for direction in torch.eye(12):
        ends = []
        for sign in (1, -1):
            moved = (start + sign * step * direction).view_as(xi)
            with torch.no_grad():
                xi.copy_(moved)
            ends.append(grads(value(byol, x), linear)[0].flatten())
        columns.append((ends[0] - ends[1]) / (2 * step))
    cross = torch.stack(columns, 1)
    nearest = cross.trace() / 12 * torch.eye(12)
    assert (cross - nearest).norm() > 0.5 * cross.norm()


@pytest.mark.parametrize("limit", [BYOL, SimSiam])
def test_the_value_is_largest_where_all_z_are_one_point(limit):
    """What speaks against a collapse is not in the value."""
    z, predictor = torch.randn(1, 1, 3).repeat(7, 2, 1), nn.Identity()
    objective = limit(nn.Identity(), predictor=predictor)
    kappa = float(objective.prior.concentration())
    assert_close(value(objective, z), torch.tensor(log_vmf(kappa) + kappa))
    assert value(objective, torch.randn(7, 2, 3)) < value(objective, z)


@pytest.mark.parametrize("limit", [BYOL, SimSiam])
def test_the_predictor_has_the_dimension_of_z(limit):
    encoder = ps.nn.MLPEncoder((5,), 4)
    projected = limit(encoder, ps.nn.Projector(4, 8, 3)).predictor
    assert (projected.dim, projected.out, projected.layers) == (3, 3, 2)
    assert limit(encoder).predictor.out == 4
    assert limit(nn.Linear(5, 2), dim=2).predictor.out == 2
    assert limit(encoder, nn.Linear(4, 6), dim=6).predictor.out == 6
    assert isinstance(limit(nn.Identity()).predictor, nn.Identity)
    empty = nn.Sequential()  # which is falsy
    assert limit(encoder, predictor=empty).predictor is empty
    with pytest.raises(ValueError, match="to know the dimension of z"):
        limit(encoder, nn.Tanh())


# The teacher


def teacher_behind() -> tuple[nn.Module, Teacher]:
    network = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    teacher = Teacher(network, momentum=0.9)
    with torch.no_grad():
        network[0].weight.add_(1.0)
    return network, teacher


def test_a_teacher_follows_no_network_of_another_shape():
    byol = ps.limits.BYOL(nn.Linear(3, 4))
    byol.encoder = nn.Linear(3, 2)
    with pytest.raises(ValueError, match="build the objective anew"):
        byol.teacher.follow(byol.network)


def test_a_teacher_moves_in_training_only_and_has_no_gradient():
    network, teacher = teacher_behind()
    before = deepcopy(teacher.state_dict())
    teacher.eval()
    teacher.follow(network)
    assert not teacher(torch.randn(4, 3, requires_grad=True)).requires_grad
    assert_close(teacher.state_dict(), before, rtol=0, atol=0)
    teacher.train()
    teacher.follow(network)
    weight = before["network.0.weight"]
    assert_close(teacher.network[0].weight.detach(), weight + 0.1)
    assert not any(p.requires_grad for p in teacher.parameters())


def test_momentum_zero_is_the_network_itself_and_one_stands_still():
    network, _ = teacher_behind()
    for momentum, same in ((0.0, True), (1.0, False)):
        teacher = Teacher(network, momentum)
        with torch.no_grad():
            network[0].weight.add_(1.0)
        teacher.follow(network)
        assert torch.equal(teacher.network[0].weight, network[0].weight) is same


def test_a_network_that_no_teacher_can_copy_is_refused_in_words():
    with pytest.warns(FutureWarning):
        norm = nn.utils.weight_norm(nn.Linear(6, 4))
    with pytest.raises(ValueError, match="can be copied.*parametrizations.weight_norm"):
        BYOL(nn.Sequential(norm, nn.Linear(4, 3)))


class Layered(nn.Module):
    dim = 3

    def __init__(self) -> None:
        super().__init__()
        self.layers, self.scale = nn.Linear(6, 3), 1.0

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def patched(change: str) -> nn.Module:
    """A network with a function that runs a part of it."""
    net = Layered()
    match change:
        case "forward":
            net.forward = lambda x: net.layers(x)
        case "the old forward":
            old = net.forward
            net.forward = lambda x: old(x) / 2
        case "a hook":
            net.layers.register_forward_hook(lambda layer, x, z: z @ net.layers.weight)
        case "a list":
            parts = [net.layers]
            net.helpers = {"call": lambda x: parts[0](x)}
    return net


@pytest.mark.parametrize("change", ["forward", "the old forward", "a hook", "a list"])
@pytest.mark.parametrize(
    "make",
    [
        ps.limits.BYOL,
        lambda net: ps.limits.MoCo(net, dim=3, queue=32),
        lambda net: ps.limits.DINO(net, dim=3),
        lambda net: ps.limits.DSA(ps.limits.SimCLR(net)),
        lambda net: ps.limits.DSA(ps.limits.SimCLR(Layered()), reference=net),
    ],
)
def test_a_network_whose_copy_would_run_the_original_is_refused(change, make):
    with pytest.raises(ValueError, match="a copy would run the original; make it a me"):
        make(patched(change))


def test_what_holds_no_part_of_the_network_is_copied():
    net = Layered()
    net.act, net.bound = torch.tanh, net.forward
    net.forward = partial(Layered.forward, net)
    net.layers.register_forward_hook(lambda layer, x, z: z / 2)
    teacher = Teacher(net, 0.5)
    with torch.no_grad():
        net.layers.weight.zero_()
    x = torch.ones(2, 6)
    for call in (teacher, teacher.network.bound):
        assert_close(
            call(x), (x @ teacher.network.layers.weight.T + net.layers.bias) / 2
        )
        assert call(x).std() > 0


class Attends(nn.Module):
    """Attention along axis 0, as of `nn.TransformerEncoderLayer` for rows (n, dim)."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0)

    def forward(self, z: Tensor) -> Tensor:
        return self.layer(z)


@pytest.mark.parametrize("mixing", [Attends, lambda: nn.BatchNorm1d(4)])
def test_predictors_and_references_that_mix_items_are_refused(mixing):
    net, batch = nn.Linear(3, 4), ps.Batch(torch.randn(12, 2, 3))
    objectives = {
        "SimSiam": ps.limits.SimSiam(net, predictor=mixing()),
        "BYOL": ps.limits.BYOL(net, predictor=mixing()),
        "DSA": ps.limits.DSA(
            ps.limits.SimCLR(net),
            reference=nn.Sequential(nn.Linear(3, 4), mixing()),
            neighbours=3,
            dim=4,
        ),
    }
    for name, objective in objectives.items():
        if mixing is not Attends:  # batch norm has its running statistics in evaluation
            objective.check(batch)
            continue
        with pytest.raises(ValueError, match=f"networks of {name} .* one by one"):
            objective.check(batch)
