"""A fit in phases: the weight at each step, when clusters are assigned, going on."""

from pathlib import Path

import pytest
import torch
from helpers.catalogue import EVENT, encoder, noisy, projector
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.testing import assert_close

import probssl as ps
from probssl.limits import BYOL, PID, SimCLR, SimVAE
from probssl.train import fit_phases, linear

ITEMS, BATCH, CLUSTERS = 32, 8, 3
STEPS = ITEMS // BATCH


def data() -> Tensor:
    return torch.randn(ITEMS, EVENT, generator=torch.Generator().manual_seed(9))


def base(kind: type[nn.Module] = SimCLR) -> nn.Module:
    torch.manual_seed(3)
    return kind(encoder(), projector())


OPTIONS = {
    "views": noisy,
    "batch_size": BATCH,
    "scheduler": lambda optimizer: CosineAnnealingLR(optimizer, 20),
    "progress": False,
}


class Watched:
    """A run, with the weight at each step and the epochs before an assignment."""

    def __init__(self, objective: PID | None = None) -> None:
        self.objective = objective or PID(base(), CLUSTERS, ITEMS)
        self.weights: list[float] = []
        self.assigned: list[tuple[int, bool]] = []

    def assign(self) -> None:
        objective = self.objective
        self.assigned.append((len(self.weights) // STEPS, objective.training))
        objective.assign(ps.embed(objective, data(), layer=objective.layer))

    def see(self, step: int, terms: ps.Terms) -> None:
        self.weights.append(float(self.objective.weight))

    def fit(self, first: int = 2, epochs: int = 6, **options: object) -> ps.History:
        options = OPTIONS | {"on_step": self.see} | options
        return fit_phases(
            self.objective, data(), self.assign, first=first, epochs=epochs, **options
        )


def test_the_weight_is_0_at_first_and_then_rises_by_equal_factors():
    run = Watched()
    history = run.fit(first=2, epochs=6)
    total, before = 6 * STEPS, 2 * STEPS
    assert run.weights[:before] == [0.0] * before
    for step in range(before, total):
        share = (step - before) / (total - before)
        plain = 1e-5 * (1e-1 / 1e-5) ** share
        assert run.weights[step] == pytest.approx(plain, rel=1e-6)  # float32
    assert history["weight"].tolist() == run.weights[STEPS - 1 :: STEPS]


@pytest.mark.parametrize(
    ("first", "refresh", "expected"),
    [(2, 2, [2, 4]), (2, 3, [2, 5]), (1, None, [1]), (0, 4, [0, 4]), (5, 1, [5])],
)
def test_clusters_are_assigned_after_the_first_phase_and_at_each_refresh(
    first, refresh, expected
):
    run = Watched()
    history = run.fit(first=first, refresh=refresh)
    assert run.assigned == [(epoch, False) for epoch in expected]
    rounds = [sum(epoch < e for epoch in expected) for e in range(1, 7)]
    assert history["round"].tolist() == rounds
    assert history["phase"].tolist() == [1] * first + [3] * (6 - first)
    assert history["epoch"].tolist() == [1, 2, 3, 4, 5, 6]


def test_a_rise_may_be_any_function_of_the_share_of_its_phase():
    run = Watched()
    run.fit(first=2, epochs=4, ramp=linear(0.2, 0.6))
    expected = [0.0] * 8 + [0.2 + 0.4 * k / 8 for k in range(8)]
    assert run.weights == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("kind", [SimCLR, BYOL])
def test_it_is_a_fit_of_the_base_where_the_weight_stays_0(kind):
    alone = base(kind)
    once = ps.fit(alone, data(), epochs=6, **OPTIONS)
    run = Watched(PID(base(kind), CLUSTERS, ITEMS))
    history = run.fit(refresh=2, ramp=lambda share: 0.0)
    assert len(run.assigned) == 2
    for column in ("value", "lr", "step"):
        assert history[column].tolist() == once[column].tolist()
    assert_close(run.objective.base.state_dict(), alone.state_dict(), rtol=0, atol=0)


def test_a_stopped_run_goes_on_bit_for_bit(tmp_path: Path):
    def fitted(name: str, **options: object) -> tuple[PID, ps.History]:
        torch.manual_seed(5)
        run = Watched()
        history = run.fit(refresh=2, checkpoint=tmp_path / name, **options)
        return run.objective, history

    whole, expected = fitted("whole")
    for epoch in (1, 4):  # within a phase, and where clusters are assigned
        fitted(f"{epoch}", on_epoch=lambda e, row, last=epoch: e == last)
        parts, history = fitted(f"{epoch}", resume=True)
        assert_close(parts.state_dict(), whole.state_dict(), rtol=0, atol=0)
        for column in ("value", "round", "phase", "weight", "lr"):
            assert history[column].tolist() == expected[column].tolist()


def test_schedules_and_on_epoch_are_those_of_the_user_too():
    run, rows = Watched(PID(base(BYOL), CLUSTERS, ITEMS)), []

    def look(epoch: int, row: dict[str, float]) -> bool:
        rows.append(dict(row))
        row["twice"] = 2 * epoch
        return epoch == 3

    schedules = {"base.teacher.momentum": linear(0.5, 0.8)}
    history = run.fit(epochs=4, on_epoch=look, schedules=schedules)
    assert [row["phase"] for row in rows] == [1, 1, 3]
    assert history["twice"].tolist() == [2, 4, 6]
    momentum = float(run.objective.base.teacher.momentum)
    assert momentum == pytest.approx(0.5 + 0.3 * 11 / 16)


@pytest.mark.slow  # traces a step
def test_a_traced_run_has_the_weights_and_clusters_of_a_plain_one(traced):
    plain = Watched()
    expected = plain.fit(refresh=2, compile=False)
    ours = Watched()  # which seeds the random numbers
    history = ours.fit(refresh=2, compile=True)
    assert ours.weights == plain.weights and traced
    assert_close(history["value"], expected["value"], rtol=1e-5, atol=1e-5)
    assert torch.equal(ours.objective.assignment, plain.objective.assignment)


REFUSED: list[tuple[dict[str, object], str]] = [
    (
        {"first": 6},
        "first as a whole number from 0 to 5, got 6; epochs counts",
    ),
    ({"first": -1}, "first as a whole number from 0"),
    ({"epochs": 0}, "epochs as a whole number"),
    ({"refresh": 0}, "refresh as a whole number"),
    ({"ramp": (0.0, 0.1)}, "start as a positive finite number"),
    ({"ramp": (0.1, 1e-5)}, "rises from a positive number"),
    ({"ramp": (-1e-5, 0.1)}, "rises from a positive number"),
    ({"schedules": {"weight": linear(0.0, 1.0)}}, "got a schedule of it"),
    ({"valid": torch.zeros(4, EVENT)}, "no validation data"),
    ({"objective": base()}, "with a buffer 'weight'"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED)
def test_bad_arguments_are_refused_before_any_work(options, message):
    run = Watched(options.get("objective"))  # type: ignore[arg-type]
    options = {k: v for k, v in options.items() if k != "objective"}
    with pytest.raises(ValueError, match=message):
        run.fit(**options)
    assert not run.weights and not run.assigned


# Beside the prior that sums the cluster out


@pytest.mark.slow  # fits five models
def test_clusters_of_pid_and_of_two_tiers_are_those_there_are():
    """A point estimate of the cluster, and its posterior under SimVAE with TwoTier."""
    items, dim, clusters = 150, 6, 3
    label = torch.arange(items) % clusters
    centre = 3 * torch.linalg.qr(torch.randn(dim, dim)).Q[:clusters]
    x = centre[label] + 0.5 * torch.randn(items, dim)

    def jittered(x: Tensor) -> Tensor:
        return x[:, None] + 0.3 * torch.randn(len(x), 2, dim)

    def network() -> nn.Module:
        return ps.nn.MLPEncoder((dim,), 2, hidden=(32,))

    options = {"views": jittered, "batch_size": 50, "progress": False}
    options |= {"learning_rate": 1e-2}
    pid = PID(SimCLR(network()), clusters, items)

    def assign() -> None:
        pid.assign(ps.embed(pid, x))

    fit_phases(pid, x, assign, first=5, epochs=20, refresh=5, **options)

    def two_tiers() -> tuple[float, Tensor]:
        """The bound that a fit reaches, and the likeliest clusters."""
        prior = ps.priors.TwoTier(2, clusters, scale=0.3, y_scale=0.5)
        decoder = ps.nn.MLPDecoder(2, (dim,), hidden=(32,))
        likelihood = ps.likelihoods.Gaussian(0.3)
        simvae = SimVAE(ps.Joint(prior, likelihood, network(), decoder))
        history = ps.fit(simvae, x, epochs=60, **options)
        z = torch.as_tensor(ps.embed(simvae, x)).unsqueeze(1)
        return history["value"][-1], prior.responsibilities(z).probs.argmax(1)

    # Of a mixture, as of K-means, the best of several starts counts.
    _, likeliest = max((two_tiers() for _ in range(4)), key=lambda found: found[0])
    for found in (pid.assignment, likeliest):
        assert ps.evaluation.matched_accuracy(found, label) > 0.98
