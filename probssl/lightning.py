"""An objective as a LightningModule, to be trained by Lightning's Trainer.

It needs the package lightning, ``pip install "probssl[lightning]"``, and is imported
explicitly::

    import lightning
    import probssl as ps
    from probssl.lightning import Module
    from torch.utils.data import DataLoader

    digits = ps.data.digits()
    simclr = ps.limits.SimCLR(ps.nn.MLPEncoder((1, 8, 8), 10))
    module = Module(simclr, views=ps.views.digits())
    train = DataLoader(digits.train.images, 128, shuffle=True, drop_last=True)
    valid = DataLoader(digits.test.images, 128)
    trainer = lightning.Trainer(max_epochs=50, precision="bf16-mixed")
    trainer.fit(module, train, valid)
    z = ps.embed(simclr, digits.test)

The Trainer has the loop, devices, mixed precision, gradient clipping and accumulation,
loggers and checkpoints. Objectives and results are those of `fit`.
"""

import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any, Self

from jaxtyping import Float
from lightning.pytorch import LightningModule
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.utilities import GradClipAlgorithmType
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils._pytree import tree_map_only
from torch.utils.data import DataLoader

from .data.batches import Views
from .runtime.distributed import world_size
from .runtime.randomness import order_generator, same_randomness
from .terms import Batch, HeldOut, Terms
from .train.batches import accepted, loaded, look_at, population_of
from .train.history import Tally
from .train.prepare import (
    ContentCheck,
    check_horizon,
    prepared_optimizer,
    prepared_scheduler,
    settle,
    target_of,
)
from .train.schedules import Schedule, Schedules
from .train.steps import Writes, loss

__all__ = ["Module"]

MAX_PENDING = 256  # batches whose terms stay on the device before they are read


class Module(LightningModule):
    """Maximises the value of an objective, the sum of its terms, in Lightning.

    DataLoaders yield items, tuples that begin with items, or Batches; labels and other
    entries do not reach the objective. Views are drawn on the device. Numbers reach
    them unchanged, in the objective's dtype; bytes are refused, which may be images or
    counts. The objective's method `check`, if it has one, is called with the first
    batch. Buffers named ``population`` are set to the number of items of the training
    set, if it is certain, unless you set them: not with a collate_fn of your own, say.

    The value and the terms are logged under the names of `History` (``value``,
    ``valid_value``), as means over the items of an epoch and of all ranks. Larger is
    better: `ModelCheckpoint` and `EarlyStopping` need ``mode="max"``. Validation draws
    the same random numbers every time, and does not change those of training.

    Under gradient accumulation all batches of a step see the buffers and frozen
    parameters as they were before it, as in `fit`: an EMA teacher or a queue moves once
    per step. As always in Lightning, each batch has the weight 1/accumulate, whatever
    its number of items, also in a last group of fewer batches: `fit` weights by items.

    With several ranks the gradients are averaged, and an objective that couples items
    has the value of the whole batch; all ranks need the same number of items. Each
    draws its own views and noise.

    Lightning's checkpoints hold tensors and plain values, but no arguments::

        Module.load_from_checkpoint(path, weights_only=True, objective=simclr)

    Arguments:
        views: A data augmentation (batch, \\*event) -> (batch, view, \\*event), or ->
            Batch. Without one the items are their only view; Batches have their own.
        optimizer: As in `fit`: an optimiser, or a function that makes one from the
            trainable parameters. The default is fused Adam with `learning_rate`, by
            default 1e-3.
        scheduler: As in `fit`: a learning-rate schedule, or a function that makes one
            from the optimiser, stepped once per optimiser step.
        schedules: As in `fit`: for the name of a buffer of the objective a function of
            the finished share of the run.
    """

    def __init__(
        self,
        objective: nn.Module,
        views: Views | None = None,
        *,
        optimizer: Optimizer | Callable[[list[Parameter]], Optimizer] | None = None,
        learning_rate: float | None = None,
        scheduler: LRScheduler | Callable[[Optimizer], LRScheduler] | None = None,
        schedules: Mapping[str, Schedule] | None = None,
    ) -> None:
        super().__init__()
        self.objective, self.views = objective, views
        self.optimizer, self.learning_rate = optimizer, learning_rate
        self.scheduler, self.schedules = scheduler, schedules
        self._schedules: Schedules | None = None
        self._writes: Writes | None = None
        self._check_content = ContentCheck(objective)
        self._randomness = ExitStack()
        self._train, self._held_out = Tally(), Tally()

    def train(self, mode: bool = True) -> Self:
        """Set the mode of all but the views, which keep theirs in validation."""
        parts = self.views.modules() if isinstance(self.views, nn.Module) else ()
        kept = [(part, part.training) for part in parts]
        super().train(mode)
        for part, before in kept:
            part.training = before
        return self

    def forward(self, batch: Batch) -> Terms:
        """The terms of the objective, means over the items of the batch."""
        return self.objective(batch)

    def configure_optimizers(self) -> Any:
        """The optimiser, and the scheduler if there is one."""
        given, rate = self.optimizer, self.learning_rate
        optimizer = prepared_optimizer(given, self.objective, rate)
        scheduler = prepared_scheduler(self.scheduler, optimizer)
        if scheduler is not None:
            check_horizon(scheduler, self.trainer.max_epochs, self._total)
        schedule = {"scheduler": scheduler, "interval": "step"}
        return [optimizer], [schedule] if scheduler else []

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip as Lightning does, under bfloat16 also with a fused optimiser."""
        plugin = self.trainer.precision_plugin
        if not isinstance(plugin, MixedPrecision) or plugin.scaler is not None:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
            return
        # Unscaled gradients need no unscaling, for which Lightning would refuse here.
        super(MixedPrecision, plugin).clip_gradients(
            optimizer,
            gradient_clip_val or 0.0,
            GradClipAlgorithmType(gradient_clip_algorithm or "norm"),
        )

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Check what was loaded, before it is on the device."""
        dtype = target_of(self.objective, "cpu").dtype
        return accepted(batch, self.views, dtype, self._check_content)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Batch:
        """The batch of what was loaded, its views drawn on the device."""
        return loaded(batch, self.views, target_of(self.objective, self.device))

    def on_fit_start(self) -> None:
        """Put the objective, which may come from an earlier fit, in training mode."""
        self.objective.train()

    def on_train_start(self) -> None:
        """Prepare what depends on the length of the data and of the run."""
        self._count_items()
        if world_size() > 1:
            order_generator()  # reseeds the ranks; Lightning has an order of its own
        if self.schedules:
            self._schedules = Schedules(self.objective, self.schedules, self._total)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Reset the buffers to their values before the step of this batch."""
        accumulate = self.trainer.accumulate_grad_batches
        if batch_idx % accumulate == 0:
            check = getattr(self.objective, "check", None)
            if self.global_step == 0:
                look_at(batch)
                if check is not None:
                    check(batch)
            if self._schedules is not None:
                self._schedules.set(self.global_step)
            self._writes = Writes(self.objective) if accumulate > 1 else None
        elif self._writes is not None:
            self._writes.reset()

    def on_train_batch_end(self, *_: Any) -> None:
        """Keep what the batch wrote to buffers beside what those before it wrote."""
        if self._writes is not None:
            self._writes.keep()

    def training_step(self, batch: Batch, batch_idx: int) -> Float[Tensor, ""]:
        """The loss, minus the value."""
        return loss(self._terms(batch, self._train))

    def on_train_epoch_end(self) -> None:
        """Log the value and the terms."""
        self._log("", self._train)
        self._train = Tally()

    def on_validation_start(self) -> None:
        """Seed the random numbers, the same for every validation."""
        if self.trainer.sanity_checking:  # the training set is not loaded yet
            self.trainer.fit_loop.setup_data()
            self._count_items()
        # Ranks have different items, and need different random numbers.
        randomness = same_randomness(self.global_rank, self.device)
        self._randomness.enter_context(randomness)
        self._held_out = Tally()

    def validation_step(
        self, batch: Batch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Measure the terms."""
        if dataloader_idx:
            raise ValueError(
                "expected one DataLoader of held-out data, got several, whose values "
                "would be mixed; give trainer.validate(module, loader) each in turn"
            )
        self._terms(HeldOut(*batch), self._held_out)

    def on_validation_epoch_end(self) -> None:
        """Log the value and the terms as ``valid_…``."""
        self._log("valid_", self._held_out)

    def on_validation_end(self) -> None:
        """Restore the random numbers of training."""
        self._randomness.close()

    def on_test_epoch_end(self) -> None:
        """Log the value and the terms as ``test_…``."""
        self._log("test_", self._held_out)

    on_test_start, on_test_end = on_validation_start, on_validation_end
    test_step = validation_step

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Create the populations, which are None before a fit."""
        for name, value in checkpoint["state_dict"].items():
            if name.endswith(".population"):
                settle(self.objective, self.device, int(value), stored=False)

    @property
    def _total(self) -> int | None:
        """The number of steps of the run; None if it is not known."""
        total = self.trainer.estimated_stepping_batches
        return None if math.isinf(total) else int(total)

    def _terms(self, batch: Batch, tally: Tally) -> Terms:
        terms = self(batch)
        tally.add(tree_map_only(Tensor, Tensor.detach, terms), batch.shape[0])
        if len(tally.pending) == MAX_PENDING:
            tally.read()
        return terms

    def _log(self, prefix: str, tally: Tally) -> None:
        if not tally.pending and not tally.items:
            return  # a run resumed at the end of an epoch has no batches in it
        # Once per epoch: logging at every step can take longer than the step.
        row = {prefix + name: mean for name, mean in tally.mean().items()}
        self.log(prefix + "value", row.pop(prefix + "value"), True, sync_dist=True)
        self.log_dict(row, sync_dist=True)

    def _count_items(self) -> None:
        """Set the populations to the number of items, if it is certain."""
        loader = self.trainer.train_dataloader
        count = population_of(loader) if isinstance(loader, DataLoader) else None
        settle(self.objective, self.device, count, stored=False)
