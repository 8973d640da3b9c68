"""Numbers that are not finite: found before the update, named, and nothing is lost."""

import math
from copy import deepcopy
from functools import partial
from importlib import import_module
from typing import Any

import pytest
import torch
from helpers.catalogue import EVENT, noisy
from torch import Tensor, nn
from torch.testing import assert_close

import probssl as ps
from probssl.train import finite
from probssl.train.finite import Guard

STEPS = import_module("probssl.train.steps")
fit = partial(ps.fit, progress=False, views=noisy, batch_size=8, epochs=3)
OPTIMISERS: dict[str, Any] = {
    "fused Adam": partial(torch.optim.Adam, lr=0.01, fused=True),
    "fused SGD": partial(torch.optim.SGD, lr=0.01, momentum=0.9, fused=True),
    "SGD": partial(torch.optim.SGD, lr=0.01, momentum=0.9),
}


def points() -> Tensor:
    return torch.randn(24, EVENT, generator=torch.Generator().manual_seed(1))


class Network(nn.Module):
    """Agreement of two views after batch norm; a number at one step is another."""

    def __init__(self, spoil: str = "", step: int = 5) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(EVENT, 4), nn.BatchNorm1d(4))
        self.head = nn.Linear(4, 2)
        self.spoil, self.step, self.calls = spoil, step, 0
        self.seen: dict[str, Tensor] = {}

    def forward(self, batch: ps.Batch) -> ps.Terms:
        self.calls += self.training
        now = self.calls == self.step
        if now:
            self.seen = deepcopy(dict(self.named_parameters()))
        one, other = batch.views.unbind(1)
        z = [self.head(self.body(x)) for x in (one, other)]
        near = -(z[0] - z[1]).square().mean()
        if now and self.spoil == "gradient":
            near = near + (0 * self.head.weight).sum().abs().sqrt()
        number = math.inf if now and self.spoil == "term" else 0.0
        return ps.Terms(alignment=near, penalty=torch.tensor(number))


class Views:
    """Noisy views, of which one of an item is NaN in a call."""

    def __init__(self, call: int) -> None:
        self.call, self.calls = call, 0

    def __call__(self, x: Tensor) -> Tensor:
        self.calls += 1
        views = noisy(x)
        if self.calls == self.call:
            views[3, 1, 0] = math.nan
        return views


def check_whole(objective: Network) -> None:
    """All is finite, and parameters are those before the step."""
    assert not objective.training
    assert all(x.isfinite().all() for x in objective.state_dict().values())
    for name, parameter in objective.named_parameters():
        assert torch.equal(parameter, objective.seen[name]), name


FAULTS: dict[str, tuple[str, str]] = {
    "term": ("penalty = inf at step 5; views and parameters were finite", "lower"),
    "gradient": ("finite gradient, got .* in that of head.weight at step 5", "lower"),
}


@pytest.mark.parametrize("spoil", FAULTS)
@pytest.mark.parametrize("compile", [False, True])
def test_terms_and_gradients_are_named_and_the_step_is_not_made(
    spoil, compile, monkeypatch
):
    monkeypatch.setattr("probssl.train.graph.inductor", lambda graph, values: graph)
    objective = Network(spoil)
    with pytest.raises(FloatingPointError, match=FAULTS[spoil][0]) as caught:
        fit(objective, points(), compile=compile)
    assert FAULTS[spoil][1] in str(caught.value)
    assert len(caught.value.history) == 1
    (batch,) = caught.value.batches
    assert batch.views.shape == (8, 2, EVENT)
    named = str(caught.value).partition("in items ")[2].partition(" …")[0]
    assert named.split(", ") == [str(int(row)) for row in batch.index[:5]]
    check_whole(objective)


def test_views_are_blamed_with_the_rows_of_their_items_in_the_data():
    objective = Network()
    views = Views(9)  # two calls look at repeats, one at the first batch
    with pytest.raises(FloatingPointError, match="views, got NaN .* look at") as caught:
        fit(objective, points(), views=views)
    (batch,) = caught.value.batches
    assert f"those of item {int(batch.index[3])} of the data" in str(caught.value)
    assert "learning_rate" not in str(caught.value)
    assert all(x.isfinite().all() for x in objective.state_dict().values())


def test_parameters_that_were_lost_before_are_named():
    objective = Network()

    def spoil(step: int, terms: ps.Terms) -> None:
        if step == 4:
            with torch.no_grad():
                objective.head.bias[0] = math.inf

    with pytest.raises(FloatingPointError, match="in head.bias before step 5"):
        fit(objective, points(), on_step=spoil)


def test_an_update_that_overflows_is_found_at_the_end_of_the_epoch():
    large = partial(torch.optim.SGD, lr=1e38)
    with pytest.raises(FloatingPointError, match="after step 1, .* gradients were fin"):
        fit(Steep(), points(), batch_size=24, optimizer=large)


class Steep(Network):
    """One of large gradients."""

    def forward(self, batch: ps.Batch) -> ps.Terms:
        return ps.Terms(alignment=1e6 * self.head.weight.sum())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_finite_is_exact_also_where_the_sum_overflows(dtype):
    top = torch.finfo(dtype).max
    assert finite._finite(torch.full((3,), top, dtype=dtype))
    for bad in (math.nan, math.inf, -math.inf):
        assert not finite._finite(torch.tensor([1.0, bad, 2.0], dtype=dtype))
    sparse = torch.tensor([0.0, math.nan], dtype=torch.float32).to_sparse()
    assert not finite._finite(sparse)
    assert finite._finite(torch.tensor([0.0, 1.0]).to_sparse())


# --- as on an accelerator ----------------------------------------------------------


@pytest.fixture
def on_the_device(monkeypatch):
    """The flag of accelerators, on the CPU."""

    class Flagged(Guard):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            self.flag = torch.zeros(())

    monkeypatch.setattr(STEPS, "Guard", Flagged)


@pytest.mark.usefixtures("on_the_device")
@pytest.mark.parametrize("name", OPTIMISERS)
@pytest.mark.parametrize("spoil", FAULTS)
def test_a_flag_masks_the_update_of_fused_optimisers(name, spoil):
    objective = Network(spoil, step=6)  # the last of the second epoch
    optimizer = OPTIMISERS[name](objective.parameters())
    with pytest.raises(FloatingPointError) as caught:
        fit(objective, points(), optimizer=optimizer)
    assert not hasattr(optimizer, "found_inf")  # it would mask later steps
    assert "step 6" in str(caught.value) or "up to 6" in str(caught.value)
    assert all(x.isfinite().all() for x in objective.state_dict().values())
    if "fused" in name:
        check_whole(objective)


@pytest.mark.usefixtures("on_the_device")
@pytest.mark.parametrize("name", OPTIMISERS)
def test_the_flag_changes_no_step_that_is_finite(name, monkeypatch):
    torch.manual_seed(3)
    marked, plain = (Network() for _ in range(2))
    plain.load_state_dict(marked.state_dict())
    runs = []
    for objective in (marked, plain):
        torch.manual_seed(5)
        runs.append(fit(objective, points(), optimizer=OPTIMISERS[name]))
        monkeypatch.setattr(STEPS, "Guard", Guard)
    for one, other in zip(marked.parameters(), plain.parameters(), strict=True):
        assert torch.equal(one, other)
    assert_close(runs[0]["value"], runs[1]["value"])
