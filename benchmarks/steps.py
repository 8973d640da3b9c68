"""The time of one training step: hand-written, in Pyro, in probssl; and its floor.

A step is value, gradient and update for a given batch. All have the same weights, noise
and fused Adam, and their losses are compared before they are timed, interleaved in one
run:

- by hand: `handwritten`, eager and through torch.compile;
- Pyro: its own Trace_ELBO, with validation, the default, and without;
- probssl: the steps of `ps.fit`, eager and compiled.

The matrix products of a step are a floor for its time. They are counted, and timed
alone in their own shapes without allocation; products of large square matrices give the
ceiling of the machine. The update, which is bound by memory, is timed alone as well.

bfloat16 is measured where the hardware has matrix units for it. Writes milliseconds
and ratios to benchmarks/results/steps.json.

Takes six minutes on two CPU cores, half of it compilation.
"""

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pyro
import torch
from handwritten import PyroSimVAE, SimCLR, SimVAE
from measure import (
    Timing,
    device_of,
    digits,
    interleaved,
    matrix_units,
    options,
    report,
    table,
)
from torch import Tensor, nn
from torch.optim import Adam
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import probssl as ps
from probssl.runtime.precision import Precision
from probssl.train.compiled import compiled_step
from probssl.train.prepare import prepared_optimizer
from probssl.train.steps import Step

ITEMS, DIM, SCALE, TEMPERATURE, BLOCKS = 64, 10, 0.15, 0.5, 7
LEARNING_RATE = 1e-4
HAND, STOCK = "by hand, compiled", "Pyro"
RESULTS = Path(__file__).parent / "results" / "steps.json"

Make = Callable[[], Tensor]  # a step, which returns its loss


class Case(NamedTuple):
    """The setting of a step.

    Arguments:
        net: The hidden widths of SimVAE's encoder, mirrored in its decoder; or the
            class of SimCLR's encoder.
        repeats: The steps of a block.
        side: The side of the square matrices.
    """

    shape: tuple[int, ...]
    net: tuple[int, ...] | Callable[..., nn.Module]
    items: int = ITEMS
    repeats: int = 1
    blocks: int = BLOCKS
    side: int = 1_024


CASES = {
    "SimVAE, large MLP": Case((1, 28, 28), (2_000, 500, 500), repeats=5),
    "SimVAE, small MLP": Case((1, 8, 8), (256, 256), repeats=50),
    "SimCLR, ResNet-18": Case((3, 32, 32), ps.nn.ResNet18Encoder, blocks=5),
}


def objective_of(case: Case) -> nn.Module:
    """The objective of probssl."""
    if callable(case.net):
        return ps.limits.SimCLR(case.net(case.shape, 128), temperature=TEMPERATURE)
    joint = ps.Joint(
        ps.priors.Gaussian(DIM, SCALE),
        ps.likelihoods.Bernoulli(),
        ps.nn.MLPEncoder(case.shape, DIM, hidden=case.net),
        ps.nn.MLPDecoder(DIM, case.shape, hidden=case.net[::-1]),
    )
    return ps.limits.SimVAE(joint)


def by_hand(objective: nn.Module, case: Case, in_pyro: bool = False) -> nn.Module:
    """The same loss with the same weights, without probssl."""
    if callable(case.net):
        encoder = deepcopy(objective.network.encoder)
        for module in encoder.modules():
            if isinstance(module, nn.BatchNorm2d):  # torch's own, for torch.compile
                module.__class__ = nn.BatchNorm2d
        return SimCLR(encoder, TEMPERATURE)
    kind = PyroSimVAE if in_pyro else SimVAE
    pixels = torch.Size(case.shape).numel()
    return kind(pixels, case.net, DIM, SCALE).copy(objective.joint)


def adam(module: nn.Module) -> Adam:
    return Adam(module.parameters(), lr=LEARNING_RATE, fused=True)


def plain(
    module: nn.Module,
    x: Tensor,
    dtype: torch.dtype | None = None,
    compiled: bool = False,
) -> Make:
    """The usual body of a training loop."""
    optimizer = adam(module)
    # The same random numbers as eager mode, so that the losses can be compared.
    options = {"fallback_random": True}
    loss_of = torch.compile(module, options=options) if compiled else module

    def step() -> Tensor:
        optimizer.zero_grad()
        with torch.autocast(x.device.type, dtype, enabled=dtype is not None):
            loss = loss_of(x)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def ours(
    objective: nn.Module,
    x: Tensor,
    dtype: torch.dtype | None = None,
    compiled: bool = False,
) -> Make:
    """A step of `ps.fit`; a compiled one is replayed as a CUDA graph on a GPU."""
    objective = deepcopy(objective)
    optimizer = prepared_optimizer(None, objective, LEARNING_RATE)
    kind = compiled_step if compiled else Step
    step = kind(objective, optimizer, precision=Precision(dtype))

    def make_step() -> Tensor:
        loss = -torch.as_tensor(sum(step([ps.Batch(x)])))
        reason = getattr(step, "reason", None)
        if reason is not None:  # do not time the eager step twice
            raise RuntimeError(f"expected a compiled step, got an eager one: {reason}")
        return loss

    return make_step


def steps_of(
    objective: nn.Module, case: Case, x: Tensor, compiled: bool
) -> dict[str, Make]:
    """All steps of a case by name."""
    flat = x if callable(case.net) else x.flatten(2)
    hand = partial(by_hand, objective, case)
    found = {"by hand": plain(hand().to(x.device), flat)}
    if not callable(case.net):
        stock = [plain(hand(in_pyro=True).to(x.device), flat) for _ in range(2)]
        found[STOCK] = stock[0]
        found["Pyro, no validation"] = pyro.validation_enabled(False)(stock[1])
    found["probssl"] = ours(objective, x)
    kinds = {"compiled": None}
    if matrix_units(x.device):
        kinds["compiled, bfloat16"] = torch.bfloat16
    for name, dtype in kinds.items() if compiled else ():
        found[f"by hand, {name}"] = plain(hand().to(x.device), flat, dtype, True)
        found[f"probssl, {name}"] = ours(objective, x, dtype, True)
    return found


def agree(steps: dict[str, Make]) -> None:
    """Raise an error unless the losses of three steps agree among all subjects."""
    losses: dict[str, list[Tensor]] = {}
    for name, step in steps.items():
        torch.manual_seed(1)
        losses[name] = [step() for _ in range(3)]
    expected = torch.stack(losses["by hand"])
    for name, found in losses.items():
        near = 3e-2 if "bfloat16" in name else 1e-4
        torch.testing.assert_close(
            torch.stack(found),
            expected,
            rtol=near,
            atol=10 * near,
            msg=lambda text, name=name: f"{name}, by hand: {text}",
        )


class Products(TorchDispatchMode):
    """Records the matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.operands: list[tuple[Tensor, Tensor]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default):
            self.operands.append(args[-2:])
        return func(*args, **kwargs or {})

    def again(self) -> Callable[[], None]:
        """A function that repeats them on similar copies, without allocation."""
        copies = [tuple(map(_like, pair)) for pair in self.operands]
        results = [a @ b for a, b in copies]

        def products() -> None:
            for (a, b), out in zip(copies, results, strict=True):
                torch.mm(a, b, out=out)

        return products

    def flops(self) -> int:
        return sum(2 * a.numel() * b.shape[1] for a, b in self.operands)


def _like(x: Tensor) -> Tensor:
    return torch.empty_strided(x.shape, x.stride(), device=x.device).normal_()


def counted(step: Make) -> tuple[Products, int]:
    """The matrix products of a step, and the FLOP of these and of convolutions."""
    counter, products = FlopCounterMode(display=False), Products()
    with counter, products:
        step()
    return products, counter.get_total_flops()


def alone(module: nn.Module, products: Products, side: int) -> dict[str, Any]:
    """Lower bounds of the time of a step, each timed alone."""
    optimizer = adam(module)
    for parameter in module.parameters():
        parameter.grad = torch.randn_like(parameter)
    a, b = torch.randn(2, side, side, device=parameter.device)
    return {
        "the update": optimizer.step,
        "its matrix products": products.again(),
        "a square product": partial(torch.mm, a, b, out=torch.empty_like(a)),
    }


def measured(case: Case, device: torch.device, compiled: bool) -> dict[str, Any]:
    """The figures of a case: steps, their parts alone, and the ceiling."""
    torch.manual_seed(0)
    x = torch.rand(case.items, 2, *case.shape, device=device).round()
    objective = objective_of(case).to(device)
    steps = steps_of(objective, case, x, compiled)
    agree(steps)
    module = by_hand(objective, case).to(device)
    products, flops = counted(plain(module, x if callable(case.net) else x.flatten(2)))
    parts = alone(module, products, case.side)
    if products.flops() < flops:  # convolutions are not recorded
        del parts["its matrix products"]
    timed = interleaved(steps | parts, case.blocks, case.repeats, device)
    ceiling = 2 * case.side**3 / timed["a square product"].median
    return {
        "steps": {name: compared(name, timed, flops / ceiling) for name in steps},
        "parts alone": {name: timed[name].figures() for name in parts},
        "GFLOP of a step": digits(1e-9 * flops),
        "GFLOP/s of square products": digits(1e-9 * ceiling),
    }


def compared(name: str, timed: dict[str, Timing], floor: float) -> dict[str, Any]:
    """A row: milliseconds, ratios to the baselines, the share of the ceiling."""
    row = timed[name].figures()
    for other in (HAND, STOCK):
        if other in timed:
            row[f"to {other}"] = digits(timed[name].ratio(timed[other]))
    if "bfloat16" not in name:  # has another ceiling
        row["of ceiling"] = digits(floor / timed[name].median)
    return row


def main(
    cases: dict[str, Case] = CASES,
    device: str = "auto",
    compiled: bool = True,
    results: Path = RESULTS,
) -> dict[str, dict[str, Any]]:
    """Return the figures of each case."""
    place = device_of(device)
    figures = {name: measured(case, place, compiled) for name, case in cases.items()}
    sizes = {"items, views": [ITEMS, 2], "blocks": BLOCKS}
    report("benchmarks/steps.py", results, figures, device=place, **sizes)
    for name, found in figures.items():
        table(found["steps"], name)
        table(found["parts alone"], "parts alone")
        print(*(f"{value} {unit}" for unit, value in found.items() if "GF" in unit))
    if not matrix_units(place):
        print("no bfloat16: this processor has no matrix units for it")
    return figures


if __name__ == "__main__":
    arguments = options(__doc__).parse_args()
    main(device=arguments.device, results=arguments.out / RESULTS.name)
