"""Every part can be pickled, copied and sent to a process that was spawned.

It gives the same values there: before and after a fit, also a compiled one. All are
sent to one process, whose start takes seconds.
"""

import multiprocessing
import pickle
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any

import pytest
import torch
from helpers import catalogue
from helpers.catalogue import DIM, EVENT, decoder, encoder
from torch import Tensor, nn
from torch.testing import assert_close

import probssl as ps
from probssl import guides, limits
from probssl.likelihoods import Likelihood
from probssl.priors import Gaussian, Prior

fit = partial(ps.fit, epochs=2, batch_size=8, progress=False)

ENCODERS: dict[str, Callable[[], nn.Module]] = {
    "MLP": encoder,
    "projector": lambda: ps.nn.Projector(EVENT, width=5, out=4),
    "convolutions": lambda: ps.nn.ConvEncoder((1, 8, 8), DIM),
    "ResNet-18": lambda: ps.nn.ResNet18Encoder((1, 8, 8), DIM),
    "compiled": lambda: torch.compile(encoder(), backend="eager"),
}


def flow(encoder: nn.Module, dim: int) -> nn.Module:
    return guides.Flow(encoder, dim=dim)


def simvae(**options: Any) -> nn.Module:
    return limits.SimVAE(catalogue.joint(Gaussian(DIM, 0.5), **options))


MORE: dict[str, Callable[[], nn.Module]] = {
    "flow": lambda: simvae(guide=flow),
    "explicit content": lambda: simvae(content=guides.Content(DIM)),
    "compiled encoder": lambda: limits.SimCLR(ENCODERS["compiled"]()),
}


def guided(name: str) -> nn.Module:
    kind, prior = catalogue.GUIDES[name]()
    dim = prior.known_dim()
    parts = ps.likelihoods.Gaussian(0.5), encoder(dim), decoder(dim)
    return limits.SimVAE(ps.Joint(prior, *parts, guide=kind))


TABLES: dict[str, dict[str, Callable[[], Any]]] = {
    "objective": catalogue.OBJECTIVES | MORE,
    "prior": catalogue.PRIORS,
    "likelihood": catalogue.LIKELIHOODS,
    "guide": {name: partial(guided, name) for name in catalogue.GUIDES},
    "encoder": ENCODERS,
}
ALL = [(table, name) for table, made in TABLES.items() for name in made]
SHAPES = {"convolutions": (1, 8, 8), "ResNet-18": (1, 8, 8)}  # of others (EVENT,)


@torch.no_grad()
def values(table: str, name: str, part: nn.Module) -> list[Tensor]:
    """What it makes of fixed inputs and random numbers."""
    torch.manual_seed(1)
    part.eval()
    if isinstance(part, Prior):
        return [part.log_prob(part.on_support(torch.randn(5, 2, part.known_dim())))]
    if isinstance(part, Likelihood):
        p = part(torch.randn(3, *part.output_shape((4,))))
        x = p.sample()
        return [x, p.log_prob(x)]
    if table == "encoder":
        return [part(torch.randn(4, *SHAPES.get(name, (EVENT,))))]
    return [torch.as_tensor(term) for term in part(catalogue.batch())]


def fitted(name: str) -> nn.Module:
    """An objective after a fit of two steps."""
    objective, batch = TABLES["objective"][name](), catalogue.batch()
    items = name == "denoising autoencoder"  # which needs them beside their views
    data = batch.clean if items else ps.data.Groups(batch.views)
    fit(objective, data, views=catalogue.noisy if items else None)
    return objective


def in_worker(sent: bytes) -> list[Any]:
    """The values of all parts; run in another process."""
    return [values(*key[:2], part) for key, part in pickle.loads(sent).items()]


@pytest.fixture(scope="module")
def there() -> dict[tuple[str, ...], tuple[nn.Module, list[Tensor]]]:
    """Each part, new and fitted, with its values in a process that was spawned."""
    torch.manual_seed(0)
    made = {key: TABLES[key[0]][key[1]]() for key in ALL}
    made |= {("objective", k, "fitted"): fitted(k) for k in catalogue.OBJECTIVES}
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        found = pool.apply(in_worker, (pickle.dumps(made),))
    return {key: (part, v) for (key, part), v in zip(made.items(), found, strict=True)}


@pytest.mark.parametrize("table, name", ALL, ids=[" ".join(key) for key in ALL])
def test_copies_have_the_same_values(there, table, name):
    """In this process and in another."""
    keys = [key for key in there if key[:2] == (table, name)]
    for key in keys:
        part, found = there[key]
        expected = values(table, name, deepcopy(part))
        copy = pickle.loads(pickle.dumps(part))
        assert_close(found, expected, rtol=1e-6, atol=1e-6, equal_nan=True)
        assert_close(values(table, name, copy), expected, rtol=0, atol=0)
        assert_close(values(table, name, part), expected, rtol=0, atol=0)
        modes = [module.training for module in copy.modules()]
        assert modes == [module.training for module in part.modules()]


@pytest.mark.parametrize("name", ["SimVAE", "BYOL"])
def test_copies_of_what_was_fitted_by_a_graph(traced, name):
    """And they can be fitted on."""
    objective, data = (
        TABLES["objective"][name](),
        ps.data.Groups(catalogue.batch().views),
    )
    fit(objective, data, compile=True)
    assert traced
    copies = deepcopy(objective), pickle.loads(pickle.dumps(objective))
    expected = values("objective", name, deepcopy(objective))
    histories = []
    for copy in copies:
        assert_close(values("objective", name, copy), expected, rtol=0, atol=0)
        torch.manual_seed(1)
        histories.append(fit(copy, data, compile=True)["value"])
    assert histories[0].tolist() == histories[1].tolist()
