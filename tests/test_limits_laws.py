"""Laws of all objectives without a decoder; own objectives; what is refused."""

import importlib
import inspect
import math
import pkgutil
from collections.abc import Callable
from copy import deepcopy

import pyro.distributions as dist
import pytest
import torch
from helpers.catalogue import EVENT, ITEMS, OBJECTIVES, batch, encoder, joint, projector
from helpers.checks import refusals, value_and_grad
from torch import Tensor, nn
from torch.testing import assert_close

import probssl as ps
from probssl import limits
from probssl.likelihoods import Categorical
from probssl.limits import (
    BYOL,
    CLIP,
    DCLW,
    DINO,
    DSA,
    MMCR,
    NNCLR,
    PID,
    RPM,
    SNE,
    TSNE,
    VAE,
    WMSE,
    AlignmentUniformity,
    BarlowTwins,
    CategoricalMatching,
    DeepClustering,
    FroSSL,
    InstanceDiscrimination,
    JointEmbedding,
    LearnedAffinity,
    LeJEPA,
    LogDet,
    MaskedAutoencoder,
    MoCo,
    NeighbourEmbedding,
    PrincipalComponents,
    PriorAffinity,
    SigLIP,
    SimCLR,
    SimSiam,
    SimVAE,
    SwAV,
    TiCo,
    TSimCLR,
    VICReg,
    VISReg,
)
from probssl.limits._pair_affinity import neighbour_score
from probssl.priors import Gaussian, Independent, Spherical
from probssl.terms import Batch, Terms
from probssl.train.steps import loss

pytestmark = pytest.mark.usefixtures("float64")
IDENTITY = nn.Identity()
RANDOM = dist.LogNormal(0.0, 1.0)

# Objectives of z itself, nine items with four dimensions.
ON_Z: dict[str, Callable[[], nn.Module]] = {
    "SimCLR": lambda: SimCLR(nn.Identity()),
    "decoupled": lambda: SimCLR(nn.Identity(), decoupled=True, queue=5, dim=4),
    "DCLW": lambda: DCLW(nn.Identity()),
    "CLIP": lambda: CLIP(nn.Identity()),
    "instance": lambda: InstanceDiscrimination(nn.Identity(), 9, dim=4),
    "MoCo": lambda: MoCo(nn.Identity(), dim=4),
    "NNCLR": lambda: NNCLR(nn.Identity(), None, nn.Identity(), dim=4),
    "SigLIP": lambda: SigLIP(nn.Identity()),
    "categorical matching": lambda: CategoricalMatching(nn.Identity()),
    "RPM": lambda: RPM(nn.Identity(), components=4),
    "t-SimCLR": lambda: TSimCLR(nn.Identity()),
    "LogDet": lambda: LogDet(nn.Identity()),
    "VICReg": lambda: VICReg(nn.Identity()),
    "alignment and uniformity": lambda: AlignmentUniformity(nn.Identity()),
    "FroSSL": lambda: FroSSL(nn.Identity()),
    "MMCR": lambda: MMCR(nn.Identity()),
    "TiCo": lambda: TiCo(nn.Identity(), dim=4),
    "LeJEPA": lambda: LeJEPA(nn.Identity(), slices=6),
    "VISReg": lambda: VISReg(nn.Identity(), slices=6),
    "Barlow Twins": lambda: BarlowTwins(nn.Identity()),
    "W-MSE": lambda: WMSE(nn.Identity()),
    "Euclidean W-MSE": lambda: WMSE(nn.Identity(), normalise=False),
    "BYOL": lambda: BYOL(nn.Identity()),
    "SimSiam": lambda: SimSiam(nn.Identity()),
    "SwAV": lambda: SwAV(nn.Identity(), components=5, dim=4),
    "DINO": lambda: DINO(nn.Identity(), components=5, dim=4),
    "deep clustering": lambda: DeepClustering(nn.Identity(), 3, 9, dim=4),
    "DSA": lambda: DSA(
        SimCLR(nn.Identity()), nn.Identity(), LearnedAffinity(4), neighbours=3
    ),
}


def value(objective: nn.Module, z: Tensor) -> Tensor:
    return torch.as_tensor(sum(objective(Batch(z, index=torch.arange(len(z))))))


@pytest.mark.parametrize("name", ON_Z)
@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
def test_value_and_grad_are_finite_for_equal_views_and_extreme_sizes(name, size):
    z = (size * torch.randn(9, 1, 4)).repeat(1, 2, 1).requires_grad_()
    found, grad = value_and_grad(value(ON_Z[name](), z), z)
    assert found.isfinite() and grad.isfinite().all()


# Those whose update is the gradient of their value.
SCALARS = ON_Z.keys() - {
    "MoCo",
    "NNCLR",
    "TiCo",
    "BYOL",
    "SimSiam",
    "SwAV",
    "DINO",
    "DSA",
    "VISReg",
}


@pytest.mark.parametrize("name", sorted(SCALARS))
def test_gradients_are_exact(name):
    objective = ON_Z[name]().eval()
    z = (0.5 * torch.randn(6, 2, 4)).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: value(objective, z), z)


DIRECTIONS = [
    "SimCLR",
    "decoupled",
    "DCLW",
    "CLIP",
    "MoCo",
    "instance",
    "BYOL",
    "SimSiam",
]
DIRECTIONS += ["SwAV", "DINO", "deep clustering"]
DIRECTIONS += ["alignment and uniformity", "MMCR", "TiCo", "NNCLR", "SigLIP"]


@pytest.mark.parametrize("name", DIRECTIONS)
def test_objectives_of_directions_ignore_the_length_of_z_and_of_prototypes(name):
    z, objective = torch.randn(9, 2, 4), ON_Z[name]().eval()
    expected = value(objective, z)
    with torch.no_grad():
        for key, tensor in objective.state_dict().items():
            if key.endswith("centres") and name != "DINO":
                tensor.mul_(0.1 + torch.rand(len(tensor), 1))
    assert_close(value(objective, (0.1 + torch.rand(9, 2, 1)) * z), expected)


ROTATED = [*DIRECTIONS, "LogDet", "t-SimCLR"]


@pytest.mark.parametrize("name", ROTATED)
def test_rotations_of_z_with_the_prototypes_change_nothing(name):
    z, objective = torch.randn(9, 2, 4), ON_Z[name]().eval()
    rotation, expected = torch.linalg.qr(torch.randn(4, 4)).Q, value(objective, z)
    with torch.no_grad():
        for key, tensor in objective.state_dict().items():
            if key.endswith(("centres", "bank", "memory")):
                tensor.copy_(tensor @ rotation)
    assert_close(value(objective, z @ rotation), expected)


ONE_VIEW = {"instance", "deep clustering"}


@pytest.mark.parametrize("name", sorted(ON_Z.keys() - ONE_VIEW))
def test_too_few_views_or_items_are_refused(name):
    objective = ON_Z[name]()
    for shape in ((9, 1, 4), (1, 2, 4)):
        for call in (objective, objective.check):
            with pytest.raises(ValueError, match="at least 2 items with at least 2"):
                call(Batch(torch.randn(shape)))


@pytest.mark.parametrize("name", ON_Z)
def test_absent_views_and_contents_are_refused(name):
    objective, z = ON_Z[name](), torch.randn(9, 2, 4)
    complete = Batch(z, index=torch.arange(9))
    for call in (objective, objective.check):
        with pytest.raises(ValueError, match="absent views"):
            call(complete._replace(present=torch.ones(9, 2).bool()))
        with pytest.raises(ValueError, match="no content"):
            call(complete._replace(content=torch.zeros(9).long()))


# Files


METHODS = [m.name for m in pkgutil.iter_modules(limits.__path__) if m.name[0] != "_"]


@pytest.mark.parametrize("name", METHODS)
def test_every_method_states_its_choices_its_limit_and_its_status(name):
    text = inspect.getdoc(importlib.import_module(f"probssl.limits.{name}"))
    paragraphs = text.split("\n\n")
    starts = ("The choices: ", "The limit: ", "Status: ")
    for start in starts:
        assert sum(part.startswith(start) for part in paragraphs) == 1, start
    status = next(p for p in paragraphs if p.startswith(starts[2])).split(": ", 1)[1]
    assert status.startswith(("identity", "surrogate", "heuristic", "exact bound"))
    assert "https://" in text and paragraphs[0].endswith(".")


# Objectives of one's own


class Repelled(JointEmbedding):
    """As someone writes it who knows `value` alone; views attract, items repel."""

    def value(self, z, batch):
        near = (z - z.mean(1, keepdim=True)).square().sum((1, 2)).mean()
        apart = torch.cdist(z.mean(1), z.mean(1)).square()
        return Terms(alignment=-near, penalty=-(-apart).exp().mean())


class Bare(nn.Module):
    """As someone writes it who knows `forward`, `represent` and `check`."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(EVENT, 3)

    def forward(self, batch):
        z = self.net(batch.views)
        return Terms(
            entropy=z.flatten(0, 1).var(0).log1p().sum() / 2,
            alignment=-(z - z.mean(1, keepdim=True)).square().sum((1, 2)).mean(),
        )

    def check(self, batch):
        if min(batch.shape) < 2:
            raise ValueError("expected two views of two items")

    def represent(self, x, layer="backbone"):
        return self.net(x)


OWN = {
    "value": lambda: Repelled(encoder(), projector()),
    "forward": Bare,
    "DSA on value": lambda: DSA(Repelled(encoder(), projector()), neighbours=3),
    "PID on value": lambda: PID(Repelled(encoder(), projector()), 2, ITEMS),
}


def pair(x: Tensor) -> Tensor:
    return x[:, None] + 0.1 * torch.randn(len(x), 2, EVENT)


@pytest.mark.parametrize("name", OWN)
def test_own_objectives_are_fitted_embedded_saved_and_loaded(name, tmp_path):
    objective, x = OWN[name](), torch.randn(ITEMS, EVENT)
    options = {"views": pair, "batch_size": 8, "learning_rate": 1e-2}
    history = ps.fit(objective, x, epochs=30, **options, progress=False)
    assert history["value"][-1] > history["value"][0]
    z = ps.embed(objective, x)
    assert z.shape == (ITEMS, 3)
    again = ps.load(ps.save(objective, tmp_path), into=OWN[name]())
    data = batch(1)
    assert_close(sum(again(data)), sum(objective.eval()(data)), rtol=0, atol=0)
    assert_close(ps.embed(again, x), z, rtol=0, atol=0)


VARIANTS = {
    "random temperature": lambda: CLIP(encoder(), temperature=dist.LogNormal(-2, 0.5)),
    "queue behind a projector": lambda: SimCLR(encoder(), projector(), queue=20),
    "W-MSE in parts": lambda: WMSE(encoder(), projector(), size=5, rounds=2),
    "Euclidean W-MSE": lambda: WMSE(encoder(), projector(), normalise=False),
}


@pytest.mark.parametrize("name", OWN | VARIANTS)
def test_own_objectives_and_variants_obey_the_laws(name):
    objective, data = (OWN | VARIANTS)[name](), batch(items=12)
    data = data._replace(index=torch.arange(12) % ITEMS)
    if "population" in objective._buffers:
        objective.population = torch.tensor(9.0)
    with torch.no_grad():
        objective(data)  # fills the queue
    ps.testing.check_objective(objective, data, repeats=10)


def test_own_objectives_are_compared():
    torch.set_default_dtype(torch.float32)
    x, labels = torch.randn(60, EVENT), torch.arange(60) % 2
    train, test = ps.data.Split(x[:40], labels[:40]), ps.data.Split(x[40:], labels[40:])
    data = ps.data.Dataset(train, test, levels=None, name="noise")
    own = {name: OWN[name]() for name in ("value", "forward")}
    options = {"views": pair, "baselines": False, "progress": False}
    methods = ps.compare(own, data, **options).methods
    for name in own:
        scores = methods[name]["scores"].values()
        assert scores and all(math.isfinite(score) for score in scores)


@pytest.mark.parametrize("layer", ["backbone", "projector"])
def test_extensions_take_z_from_the_one_pass_of_the_base(layer):
    """With dropout a second pass would give another z, and other random numbers."""
    net = nn.Sequential(encoder(), nn.Dropout(0.5))
    net.dim = 3
    base = SimCLR(net, projector()).train()
    seen = []
    net.register_forward_hook(lambda _, __, z: seen.append(z))
    objective = PID(base, 2, ITEMS, weight=1.0, layer=layer)
    objective.assign(torch.randn(ITEMS, objective.classifier.in_features))
    data = batch()
    torch.manual_seed(3)
    terms = objective(data)
    torch.manual_seed(3)
    alone = base(data)
    assert len(seen) == 2 and torch.equal(seen[0], seen[1])
    z = seen[0] if layer == "backbone" else base.projector(seen[0])
    q = objective.responsibilities(z.unflatten(0, (ITEMS, 2)))
    expected = q.log_prob(objective.assignment[:, None]).sum(1).mean()
    assert_close(terms.alignment - alone.alignment, expected)


@pytest.mark.parametrize("extend", [DSA, PID])
def test_random_hyper_parameters_are_drawn_under_an_extension_too(extend):
    base = SimCLR(encoder(), temperature=dist.LogNormal(-1.0, 0.5))
    base.population = torch.tensor(100.0)
    objective = DSA(base, neighbours=3) if extend is DSA else PID(base, 2, ITEMS)
    terms = []
    for each in (objective, base, objective):
        torch.manual_seed(5)
        terms.append(each.eval()(batch()))
    assert terms[0] == terms[2] and terms[0].hyper != 0
    assert_close(terms[0][:4], terms[1][:4])


EXTENSIONS = {
    "DSA": lambda base: DSA(base, neighbours=3),
    "PID": lambda base: PID(base, 2, ITEMS),
}
HOOKS = ["forward_pre", "forward", "full_backward_pre", "full_backward"]


@pytest.mark.parametrize("name", EXTENSIONS)
@pytest.mark.parametrize("method", ["__call__", "forward", "latents"])
def test_a_base_that_overrides_what_an_extension_leaves_out_is_refused(name, method):
    def own(self, batch):
        return getattr(SimCLR, method)(self, batch)

    base = type("Own", (SimCLR,), {method: own})(encoder())
    with pytest.raises(TypeError, match=f"implements value.*Own.* overrides {method}"):
        EXTENSIONS[name](base)


@pytest.mark.parametrize("name", EXTENSIONS)
@pytest.mark.parametrize("method", ["forward", "latents"])
def test_so_is_an_instance_that_does_before_or_after(name, method):
    base = SimCLR(encoder())
    objective = EXTENSIONS[name](base)
    setattr(base, method, getattr(base, method))
    for call in (lambda: objective(batch()), lambda: EXTENSIONS[name](base)):
        with pytest.raises(TypeError, match=f"SimCLR, which overrides {method}"):
            call()


@pytest.mark.parametrize("name", EXTENSIONS)
@pytest.mark.parametrize("kind", HOOKS)
def test_hooks_on_a_base_are_refused(name, kind):
    base = SimCLR(encoder())
    objective = EXTENSIONS[name](base)
    hook = getattr(base, f"register_{kind}_hook")(lambda *_: None)
    for call in (lambda: objective(batch()), lambda: EXTENSIONS[name](base)):
        with pytest.raises(TypeError, match="hooks, got SimCLR.* on the extension"):
            call()
    hook.remove()
    objective(batch())


@pytest.mark.parametrize("name", EXTENSIONS)
def test_what_a_base_overrides_otherwise_is_honoured(name):
    class Own(SimCLR):
        def layers(self, views):
            return tuple(3 * z + 1 for z in super().layers(views))

        def prepared(self, z):
            return super().prepared(z.flip(-1) + 1)

        def value(self, z, batch):
            return Terms(hyper=super().value(z, batch).alignment)

    base = Own(encoder())
    of_layers = {"DSA": lambda base: DSA(base, encoder(), neighbours=3)}
    objective = (EXTENSIONS | of_layers)[name](base)
    assert objective(batch()).hyper == base(batch()).hyper != 0
    base.value = lambda z, batch: Terms(hyper=z.sum())
    assert objective(batch()).hyper == base(batch()).hyper != 0


@pytest.mark.parametrize("name", EXTENSIONS)
def test_a_base_whose_value_is_no_terms_is_refused_as_by_fit(name):
    class Own(SimCLR):
        def value(self, z, batch):
            return z.sum()

    with pytest.raises(TypeError, match="to return Terms, got Tensor"):
        EXTENSIONS[name](Own(encoder()))(batch())


@pytest.mark.parametrize("name", OBJECTIVES)
def test_evaluation_leaves_the_state_as_it_was(name):
    objective = OBJECTIVES[name]().eval()
    before = deepcopy(objective.state_dict())
    sum(objective(batch()))
    assert_close(objective.state_dict(), before, rtol=0, atol=0)


# What is refused


def on_z(name: str, **changes: object) -> Callable[[], object]:
    z = changes.pop("z", torch.randn(9, 2, 4))
    return lambda: ON_Z[name]()(Batch(z, index=torch.arange(len(z)), **changes))


def checked(name: str, rows: list[int] | None) -> Callable[[], object]:
    index = None if rows is None else torch.tensor(rows)
    return lambda: ON_Z[name]().check(Batch(torch.randn(2, 1, 4), index=index))


def assigned(z: Tensor) -> Callable[[], object]:
    return lambda: ON_Z["deep clustering"]().assign(z)


def on(kind: Callable[..., nn.Module], *sizes: int, **options: object) -> Callable:
    return lambda: kind(nn.Identity(), *sizes, **options)


def dsa(**options: object) -> Callable[[], object]:
    options = {"reference": IDENTITY, "neighbours": 3, "dim": 4} | options
    return lambda: DSA(SimCLR(nn.Identity()), **options)


def pid(components: object = 3, **options: object) -> Callable[[], object]:
    return lambda: PID(SimCLR(nn.Identity()), components, 20, **{"dim": 4} | options)


def masked(**options: object) -> MaskedAutoencoder:
    nets = nn.Linear(8, 3), nn.Linear(3, 8)
    return MaskedAutoencoder(
        *nets, **{"likelihood": ps.likelihoods.Gaussian()} | options
    )


test_arguments_out_of_range_are_refused = refusals(
    (on(SimCLR, temperature=0.0), ValueError, "temperature"),
    (on(SimCLR, queue=5), ValueError, "expected to know the dim"),
    (on(SimCLR, queue=-1, dim=3), ValueError, "expected .*queue|size"),
    (on_z("decoupled", z=torch.randn(4, 2, 6)), ValueError, "expected"),
    (on(LogDet, scale=-1.0), ValueError, "scale"),
    (on(VICReg, variance=0.0), ValueError, "variance as a positive"),
    (on(VICReg, covariance=-1.0), ValueError, "covariance as a finite"),
    (lambda: VAE(joint(Gaussian(3))), ValueError, "independent views"),
    (lambda: VAE(joint(Independent(3)), beta=-1.0), ValueError, "beta as a finite"),
    (on(CLIP, temperature=ps.learned(0.005)), ValueError, "temperature"),
    (lambda: CLIP(IDENTITY)(Batch((torch.randn(4, 1, 3),))), ValueError, "2 views"),
    (on(InstanceDiscrimination, 9), ValueError, "to know the dim"),
    (on(InstanceDiscrimination, 1, dim=3), ValueError, "items as a"),
    (on(InstanceDiscrimination, 9, momentum=1.0, dim=3), ValueError, "below 1, got 1"),
    (on(InstanceDiscrimination, 9, temperature=RANDOM), TypeError, "as a number"),
    (on_z("instance", z=torch.randn(4, 2, 3)), ValueError, "dim 4, as the bank"),
    (checked("instance", None), ValueError, "Batch.index"),
    (checked("instance", [0, 9]), ValueError, "rows from 0 to 8"),
    (checked("instance", [-1, 2]), ValueError, "rows from 0 to 8"),
    (checked("deep clustering", None), ValueError, "Batch.index"),
    (checked("deep clustering", [0, 9]), ValueError, "rows from 0 to 8"),
    (assigned(torch.randn(9, 5)), ValueError, r"9, 4\), got \(9, 5\).*backbone"),
    (assigned(torch.full((9, 4), math.nan)), ValueError, "finite z"),
    (assigned(torch.eye(4)[torch.arange(9) % 2]), ValueError, "got 2 distinct ones"),
    (on(MoCo, dim=3, momentum=1.1), ValueError, "momentum from 0 to 1"),
    (on(MoCo, dim=3, queue=0), ValueError, "expected"),
    (on(MoCo, dim=3, temperature=RANDOM), TypeError, "as a number"),
    (on(MoCo, temperature=0.1, prior=Spherical(None)), ValueError, "beside a prior"),
    (on(SimCLR, dim=3), ValueError, "no dim without a queue, got 3; leave it out"),
    (on(NeighbourEmbedding, dim=3), ValueError, "no dim without a queue"),
    (on(NeighbourEmbedding, queue=9), ValueError, "no queue for one normaliser"),
    (on(SimSiam, predictor=nn.Identity(), dim=4), ValueError, "beside a predictor"),
    (on(WMSE, rounds=4), ValueError, "no rounds without a size"),
    (dsa(affinity=LearnedAffinity(4)), ValueError, "no dim beside an affinity"),
    (dsa(momentum=0.9), ValueError, "no momentum beside a reference"),
    (on(SwAV, dim=0), ValueError, "dim as a whole number of at least 1, got 0"),
    (on(SimCLR, queue=2**70, dim=3), ValueError, "queue|size"),
    (on(TSimCLR, temperature=0.0), ValueError, "temperature as a pos"),
    (on(TSimCLR, dof=-1.0), ValueError, "dof"),
    (on(TSNE, dof=math.nan), ValueError, "dof"),
    (on(SNE, scale=0.0), ValueError, "scale"),
    (on(NeighbourEmbedding, queue=5, dim=3), ValueError, "no queue"),
    (on(BarlowTwins, redundancy=0.0), ValueError, "redundancy as a pos"),
    (on(BarlowTwins, epsilon=-1.0), ValueError, "epsilon as a finite"),
    (on(WMSE, size=0), ValueError, "size as a whole"),
    (on(WMSE, rounds=0), ValueError, "rounds as a whole"),
    (on(WMSE, epsilon=2.0), ValueError, "epsilon from 0 to 1"),
    (on_z("W-MSE", z=torch.randn(4, 2, 4)), ValueError, "more items than the 4 dim"),
    (lambda: on(WMSE, size=4)()(Batch(torch.randn(12, 2, 4))), ValueError, "4 dim"),
    (on(BYOL, momentum=1.5), ValueError, "momentum from 0 to 1"),
    (lambda: BYOL(nn.Sequential(IDENTITY)), ValueError, "to know the dimension of z"),
    (lambda: SwAV(IDENTITY), ValueError, "dim=…"),
    (on(SwAV, temperature=0.0, dim=4), ValueError, "temperature"),
    (on(SwAV, temperature=RANDOM, dim=4), TypeError, "as a number"),
    (on(SwAV, epsilon=0.0, dim=4), ValueError, "epsilon as a positive"),
    (on(SwAV, iterations=-1, dim=4), ValueError, "iterations as a whole"),
    (on(SwAV, components=1, dim=4), ValueError, "at least 2"),
    (on_z("SwAV", z=torch.randn(9, 2, 3)), ValueError, "dim=3"),
    (
        on(DINO, teacher_temperature=-1.0, dim=2),
        ValueError,
        "teacher_temperature as a pos",
    ),
    (on(DINO, centre_momentum=1.1, dim=4), ValueError, "centre_momentum from 0 to 1"),
    (on(DINO, momentum=1.1, dim=4), ValueError, "momentum from 0 to 1"),
    (on(DeepClustering, 5, 4, dim=4), ValueError, "items as a whole.*5"),
    (dsa(neighbours=0), ValueError, "neighbours as a whole"),
    (dsa(neighbours=2.5), TypeError, "neighbours as a whole"),
    (dsa(mutual=3), ValueError, "mutual as a whole number from 0 to 2"),
    (dsa(weight=-1.0), ValueError, "weight as a finite"),
    (dsa(anchor=math.nan), ValueError, "anchor as a finite"),
    (dsa(temperature=0.0), ValueError, "temperature as a positive"),
    (dsa(reference_temperature=-1.0), ValueError, "reference_temperature as a pos"),
    (dsa(dim=None), ValueError, "to know the dimension"),
    (dsa(reference=None, momentum=2.0), ValueError, "momentum from 0 to 1"),
    (lambda: DSA(SimVAE(joint(Gaussian(3)))), TypeError, "as base"),
    (lambda: PID(SimVAE(joint(Gaussian(3))), 3, 20), TypeError, "as base"),
    (pid(21), ValueError, "items as a whole number of at least 21"),
    (pid(1), ValueError, "components as a whole number of at least 2"),
    (pid(2.5), TypeError, "components as a whole number"),
    (pid(weight=math.nan), ValueError, "weight as a finite number of at least 0"),
    (pid(layer="head"), ValueError, "layer as one of 'backbone', 'projector'"),
    (pid(dim=None), ValueError, "dim=…"),
    (lambda: PriorAffinity(Gaussian(None, 1.0, math.inf)), ValueError, "proper"),
    (lambda: PriorAffinity(Gaussian(2), -1.0), ValueError, "odds"),
    (lambda: PriorAffinity(Gaussian(2), RANDOM), TypeError, "odds as a number"),
    (lambda: LearnedAffinity(0), ValueError, "dim"),
    (lambda: LearnedAffinity(3)(*torch.randn(2, 5, 4)), ValueError, "dim 3 as their"),
    (lambda: PrincipalComponents.of(torch.randn(4, 9), 5), ValueError, "at least 5"),
    (lambda: PrincipalComponents.of(torch.randn(40, 3), 5), ValueError, "at least 5"),
    (lambda: neighbour_score(torch.randn(5, 3), 5), ValueError, "neighbours=5"),
    (lambda: masked(share=1.0), ValueError, "share strictly between 0 and 1"),
    (lambda: masked(patch=2.0), TypeError, "patch as a whole number"),
    (lambda: masked(likelihood=Categorical(8)), ValueError, "independent elements"),
    (lambda: on(JointEmbedding)()(batch()), NotImplementedError, "has no value"),
)


class WithoutRepresent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(EVENT, 3)

    def forward(self, batch: Batch) -> Terms:
        z = self.encoder(batch.views)
        return Terms(penalty=-z.var(1).mean())


class RepresentAlone(WithoutRepresent):
    def represent(self, x: Tensor) -> Tensor:
        return self.encoder(x)


def test_an_objective_without_represent_is_told_what_to_add():
    x = torch.randn(8, EVENT)
    with pytest.raises(TypeError, match=r"WithoutRepresent.* def represent\(self, x"):
        ps.embed(WithoutRepresent(), x)
    objective = RepresentAlone()
    assert_close(torch.as_tensor(ps.embed(objective, x)), objective.encoder(x).detach())


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ([torch.ones(())], TypeError, "got penalty of type list"),
        (torch.ones((), dtype=torch.complex64), ValueError, "real means .*complex64"),
        (torch.ones(8), ValueError, r"real means .* shape \(8,\)"),
    ],
)
def test_terms_of_another_kind_are_refused(value, error, message):
    with pytest.raises(error, match=message):
        loss(Terms(penalty=value))
