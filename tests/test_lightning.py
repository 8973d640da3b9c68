"""The objective in Lightning: what `fit` does, a Trainer does."""

import gc
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from helpers.catalogue import EVENT, OBJECTIVES, encoder, noisy, projector
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset

import probssl as ps
from probssl.terms import Batch, Terms

lightning = pytest.importorskip("lightning", reason="lightning is an extra")

from probssl.lightning import Module  # noqa: E402  # it needs lightning

pytestmark = [
    # Lightning's own: its advice, and how it takes trees of tensors apart.
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.* have no `val_dataloader`. Skipping val loop"),
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated"),
    pytest.mark.usefixtures("float64", "one_thread"),
]
vicreg, byol = OBJECTIVES["VICReg"], OBJECTIVES["BYOL"]
Trainer = Callable[..., Any]


@pytest.fixture
def trainer(tmp_path: Path) -> Trainer:
    """A Trainer that writes only where it may, and hardly that."""
    return partial(
        lightning.Trainer,
        accelerator="cpu",
        default_root_dir=tmp_path,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def moco() -> nn.Module:
    # Whole batches, of 16 keys, leave the queue: the order within one does not matter.
    return ps.limits.MoCo(encoder(), projector(), queue=32)


def random_scale() -> nn.Module:
    """An objective that needs the number of items."""
    prior = ps.priors.Gaussian(3, dist.LogNormal(-1.0, 0.3))
    return ps.limits.Embedding(encoder(), prior, ps.entropies.KernelDensity())


def pairs(x: Tensor) -> Tensor:
    """Two views that differ and are not drawn."""
    return torch.stack([x, x.roll(1, -1) * 0.9], 1)


def items(n: int = 32) -> Tensor:
    return torch.randn(n, EVENT)


class Recorder(nn.Module):
    """Keeps what it sees, and with which parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.seen: list[Any] = []
        self.modes: list[bool] = []

    def forward(self, batch: Batch) -> Terms:
        self.seen.append(batch)
        self.modes.append(self.training)
        return Terms(alignment=self.weight * batch.stacked.mean())


def twins(make: Callable[[], nn.Module]) -> tuple[nn.Module, nn.Module]:
    one, other = make(), make()
    other.load_state_dict(one.state_dict())
    return one, other


class Dropped(nn.Module):
    """Views with noise that a module in evaluation mode would not have."""

    def __init__(self) -> None:
        super().__init__()
        self.noise = nn.Dropout(0.5)
        self.modes: list[bool] = []

    def forward(self, x: Tensor) -> Tensor:
        self.modes.append(self.noise.training)
        return self.noise(torch.stack([x, x], 1))


@pytest.mark.filterwarnings("ignore:Found 2 module.* in eval mode")
@pytest.mark.parametrize("mode", [True, False])
def test_validation_leaves_the_mode_of_the_views(mode, trainer):
    loader, objective, views = DataLoader(items(28), 8), vicreg(), Dropped()
    module = Module(objective, views.train(mode))
    loop = trainer(max_epochs=2, num_sanity_val_steps=1, val_check_interval=2)
    loop.fit(module, loader, loader)
    loop.validate(module, loader, verbose=False)
    assert set(views.modes) == {mode} and views.noise.training is mode
    assert objective.training and objective.encoder.training
    assert not module.eval().objective.training


@pytest.mark.parametrize("make", [vicreg, moco, byol], ids=["VICReg", "MoCo", "BYOL"])
def test_a_trainer_makes_the_steps_of_fit(make, trainer):
    """The steps, with their clipping and schedule; the state; the terms of an epoch."""
    fitted, ours = twins(make)
    loader = DataLoader(items(28), 8)
    rules = {
        "optimizer": partial(SGD, lr=0.05, momentum=0.9),
        "scheduler": lambda o: LinearLR(o, 1.0, 0.1, total_iters=9),
    }
    history = ps.fit(
        fitted, loader, valid=loader, views=pairs, epochs=3, clip=0.1,
        progress=False, **rules
    )  # fmt: skip
    loop = trainer(max_epochs=3, gradient_clip_val=0.1)
    loop.fit(Module(ours, pairs, **rules), loader, loader)
    assert_close(ours.state_dict(), fitted.state_dict(), rtol=1e-10, atol=1e-10)
    for column, value in loop.callback_metrics.items():
        assert float(value) == pytest.approx(history[column][-1], rel=1e-10, abs=1e-10)
    assert len(loop.callback_metrics) == 2 * (1 + len(Terms._fields))


def test_without_an_optimizer_it_is_that_of_fit(trainer):
    scale = ps.learned(0.5)
    prior = partial(ps.priors.Gaussian, 3, scale)

    def make() -> nn.Module:
        return ps.limits.Embedding(encoder(), prior(), ps.entropies.KernelDensity())

    fitted, ours = twins(make)
    loader = DataLoader(items(), 8)
    ps.fit(fitted, loader, views=pairs, epochs=2, learning_rate=3e-3, progress=False)
    trainer(max_epochs=2).fit(Module(ours, pairs, learning_rate=3e-3), loader)
    assert_close(ours.state_dict(), fitted.state_dict(), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("make", [moco, byol], ids=["MoCo", "BYOL"])
def test_a_teacher_and_a_queue_move_once_per_step(make, trainer):
    fitted, ours = twins(make)
    loader = DataLoader(items(32), 8)
    rules = {"optimizer": partial(SGD, lr=0.05)}
    ps.fit(fitted, loader, views=pairs, epochs=2, accumulate=2, progress=False, **rules)
    loop = trainer(max_epochs=2, accumulate_grad_batches=2)
    loop.fit(Module(ours, pairs, **rules), loader)
    assert loop.global_step == 4
    assert_close(ours.state_dict(), fitted.state_dict(), rtol=1e-10, atol=1e-10)


def test_a_step_of_one_batch_at_the_end_of_an_epoch_starts_anew(trainer):
    moves = []

    class Counted(Recorder):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("moves", torch.zeros(()))

        def forward(self, batch: Batch) -> Terms:
            self.moves += 1
            moves.append(int(self.moves))
            return super().forward(batch)

    module = Module(Counted(), optimizer=partial(SGD, lr=0.1))
    loop = trainer(max_epochs=2, accumulate_grad_batches=2)
    loop.fit(module, DataLoader(items(24), 8))
    assert moves == [1, 1, 2, 3, 3, 4] and loop.global_step == 4


def test_only_the_items_reach_the_objective(trainer):
    x, labels = torch.arange(8.0 * EVENT).view(8, EVENT), torch.arange(8)
    loader = DataLoader(TensorDataset(x, labels), 4)
    objective = Recorder()
    module = Module(objective, optimizer=partial(SGD, lr=0.1))
    trainer(max_epochs=1).fit(module, loader)
    for batch, part in zip(objective.seen, x.split(4), strict=True):
        assert_close(batch, Batch(part[:, None], clean=part))


def test_a_loader_may_yield_batches(trainer):
    def collate(rows: list[Tensor]) -> Batch:
        x = torch.stack(rows)
        return Batch(
            noisy(x).float(),
            index=x[:, 0].mul(100).long(),
            present=torch.ones(len(x), 2) > 0,
        )

    objective = Recorder()
    loader = DataLoader(items(8), 4, collate_fn=collate)
    trainer(max_epochs=1).fit(Module(objective), loader)
    batch = objective.seen[0]
    assert batch.views.dtype == torch.float64 and batch.present.all()
    with pytest.raises(ValueError, match="expected no views for a DataLoader of Batc"):
        trainer(max_epochs=1).fit(Module(objective, views=noisy), loader)
    loader = DataLoader([{"x": 1.0}] * 4, 2)
    with pytest.raises(TypeError, match="the DataLoader .* got dict of 'x'; give"):
        trainer(max_epochs=1).fit(Module(objective), loader)


def test_contents_are_checked_in_every_batch(trainer):
    class Known(Recorder):
        def check_content(self, content: Tensor) -> None:
            if content.max() > 3:
                raise ValueError(f"expected content to 3, got {int(content.max())}")

    def loader(last: int) -> DataLoader:
        load = [Batch(items(2)[:, None], content=torch.tensor([0, 3]))] * 2
        load.append(load[0]._replace(content=torch.tensor([-1, last])))
        return DataLoader(load, batch_size=None)

    trainer(max_epochs=1).fit(Module(Known()), loader(3))
    for last, match in ((4, "content to 3, got 4"), (-2, "from -1 .* got -2")):
        with pytest.raises(ValueError, match=match):
            trainer(max_epochs=1).fit(Module(Known()), loader(last))


def test_the_objective_may_check_the_first_batch(trainer):
    class Checked(Recorder):
        def check(self, batch: Batch) -> None:
            raise ValueError(f"expected 3 views, got {batch.shape[1]}")

    with pytest.raises(ValueError, match="expected 3 views, got 2"):
        trainer(max_epochs=1).fit(Module(Checked(), noisy), DataLoader(items(), 8))


def test_validation_draws_the_same_and_leaves_training_alone(trainer):
    """In evaluation mode, in training mode before and after."""
    values, data, rest = [], items(8), items(8)
    # With generators of their own, loaders draw nothing from the global one.
    load = partial(DataLoader, batch_size=8, generator=torch.Generator())

    class Watch(lightning.Callback):
        def on_validation_end(self, loop: Any, module: Module) -> None:
            values.append(float(loop.callback_metrics["valid_value"]))

    alone, beside = Recorder(), Recorder().eval()
    module = Module(beside, noisy, optimizer=partial(torch.optim.SGD, lr=0.0))
    torch.manual_seed(1)
    trainer(max_epochs=3).fit(Module(alone, noisy), load(data))
    loop = trainer(max_epochs=3, num_sanity_val_steps=1, callbacks=Watch())
    torch.manual_seed(1)
    loop.fit(module, load(data), load(rest))
    assert len(set(values)) == 1 and len(values) == 4
    assert beside.modes == [False, *[True, False] * 3]
    assert_close(beside.seen[1::2], alone.seen, rtol=0, atol=0)
    (row,) = loop.test(module, load(rest), verbose=False)
    assert row["test_value"] == pytest.approx(values[0])


def test_the_population_is_known_before_the_first_validation(trainer):
    objective = random_scale()
    module = Module(objective, pairs)
    loader = DataLoader(items(24), 8)
    trainer(max_epochs=1).fit(module, loader, DataLoader(items(8), 8))
    assert objective.population == 24 and not objective.population.is_inference()


def test_numbers_that_the_user_set_stay(trainer):
    objective = random_scale()
    objective.population = torch.tensor(7.0)
    objective.register_buffer("labelled", torch.tensor(0.25))
    loader = DataLoader(items(24).unflatten(0, (4, 6)), batch_size=None)
    trainer(max_epochs=1).fit(Module(objective, pairs), loader)
    assert objective.population == 7 and objective.labelled == 0.25
    with pytest.raises(ValueError, match="set population"):
        trainer(max_epochs=1).fit(Module(random_scale(), pairs), loader)


def test_schedules_follow_the_share_of_the_run_that_is_done(trainer):
    class Weighted(Recorder):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("share", torch.zeros(()))

        def forward(self, batch: Batch) -> Terms:
            shares.append(float(self.share))
            return super().forward(batch)

    shares: list[float] = []
    module = Module(Weighted(), schedules={"share": lambda share: share})
    loop = trainer(max_epochs=2, accumulate_grad_batches=2)
    loop.fit(module, DataLoader(items(32), 8))
    assert shares == [0.0, 0.0, 0.25, 0.25, 0.5, 0.5, 0.75, 0.75]


@pytest.mark.parametrize("make", [moco, random_scale], ids=["MoCo", "random"])
def test_a_checkpoint_holds_tensors_and_the_run_goes_on_from_it(make, trainer):
    class Seeded(lightning.Callback):
        def on_train_epoch_start(self, loop: Any, module: Module) -> None:
            torch.manual_seed(loop.current_epoch)

    (whole, first), rest = twins(make), make()
    # A loader draws a seed whenever it begins, which a run that goes on does once more.
    loader = DataLoader(items(24), 8, generator=torch.Generator())
    trainer = partial(trainer, callbacks=Seeded())
    rule = {"scheduler": lambda o: LinearLR(o, 1.0, 0.1, total_iters=9)}
    loop = trainer(max_epochs=2)
    loop.fit(Module(first, pairs, **rule), loader)
    path = Path(loop.default_root_dir, "two.ckpt")
    loop.save_checkpoint(path)

    read = Module.load_from_checkpoint(path, weights_only=True, objective=make())
    assert_close(read.objective.state_dict(), first.state_dict(), rtol=0, atol=0)
    assert not torch.load(path, weights_only=True).get("hyper_parameters")

    trainer(max_epochs=3).fit(Module(whole, pairs, **rule), loader)
    trainer(max_epochs=3).fit(Module(rest, pairs, **rule), loader, ckpt_path=path)
    assert_close(rest.state_dict(), whole.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_the_gradient_for_a_fused_optimizer_is_clipped(precision, trainer):
    objective, x = vicreg().float(), items(8).float()
    before = nn.utils.parameters_to_vector(objective.parameters()).detach()
    loop = trainer(max_epochs=1, precision=precision, gradient_clip_val=0.25)
    rule = {"optimizer": partial(SGD, lr=1.0, fused=True)}
    loop.fit(Module(objective, pairs, **rule), DataLoader(x, 8))
    after = nn.utils.parameters_to_vector(objective.parameters()).detach()
    assert_close((after - before).norm(), torch.tensor(0.25), check_dtype=False)


class Several(nn.Module):
    """The sum of several objectives."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList([vicreg(), moco(), byol()])

    def forward(self, batch: Batch) -> Terms:
        return Terms(*map(sum, zip(*(part(batch) for part in self.parts), strict=True)))


@pytest.mark.slow  # the processes import everything anew
def test_two_processes_make_the_steps_of_one(trainer):
    """One batch of all items, since Lightning shuffles them for several processes."""
    one, two = twins(Several)
    data, rest, rule = items(8), items(16), {"optimizer": partial(SGD, lr=0.05)}
    trainer = partial(trainer, max_epochs=4)
    loop, both = trainer(), trainer(devices=2, strategy="ddp_spawn")
    loop.fit(Module(one, pairs, **rule), DataLoader(data, 8), DataLoader(rest, 8))
    both.fit(Module(two, pairs, **rule), DataLoader(data, 4), DataLoader(rest, 4))
    for name, parameter in one.named_parameters():
        found = two.get_parameter(name)
        assert_close(found, parameter, rtol=1e-10, atol=1e-10)
    for name, value in loop.callback_metrics.items():
        found = both.callback_metrics[name]
        assert_close(found, value, rtol=1e-6, atol=1e-6, check_dtype=False)


def test_several_sets_held_out_and_a_last_item_alone_are_refused(trainer):
    x = torch.rand(9, EVENT)
    whole, alone = DataLoader(x, 9), DataLoader(x, 4)
    for loaders, words in (
        ((whole, [whole, whole]), "one DataLoader of held-out data"),
        ((alone,), "got 1 with 2; .*drop_last=True"),
    ):
        module = Module(ps.limits.SimCLR(encoder()), views=noisy)
        with pytest.raises(ValueError, match=words):
            trainer(max_epochs=1).fit(module, *loaders)


def test_an_ended_validation_does_not_set_the_random_state_when_it_is_collected(
    trainer,
):
    x = torch.rand(9, EVENT)
    module = Module(ps.limits.SimCLR(encoder()), views=noisy)
    with pytest.raises(ValueError, match="one DataLoader"):
        trainer(max_epochs=1).fit(module, DataLoader(x, 9), [DataLoader(x, 9)] * 2)
    del module
    torch.manual_seed(5)
    expected = torch.get_rng_state()
    gc.collect()
    assert torch.equal(torch.get_rng_state(), expected)


def test_a_schedule_that_counts_epochs_is_named(trainer, caplog):
    for horizon, said in ((2, True), (8, False)):
        caplog.clear()
        scheduler = partial(CosineAnnealingLR, T_max=horizon)
        module = Module(vicreg(), pairs, scheduler=scheduler)
        trainer(max_epochs=2).fit(module, DataLoader(items(32), 8))
        assert ("T_max=8, the number of steps" in caplog.text) is said
