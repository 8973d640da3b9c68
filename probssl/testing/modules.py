"""Laws of any module: gradients, precision, device, state, saving, tracing."""

import math
from collections.abc import Callable, Iterator, Sequence
from tempfile import TemporaryDirectory
from traceback import walk_tb
from typing import Any, NamedTuple

import pyro
import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx

from ..runtime.copies import copied
from ..runtime.validation import unvalidated
from ..saving import load, save
from .laws import BARS, Note, differs, in_short, precision, seeded

__all__ = ["Valued", "device", "gradients", "saving", "single_precision", "state"]
__all__ += ["NUMERICAL", "UNTRACED", "tracing", "under_a_seed"]

DIFFERENCES = (1e-4, 1e-3, 1e-5, 1e-6)  # step sizes; one that agrees is enough
SEED, REPEATS = 2, 20  # of a value that is an estimate
VALIDATES = torch.distributions.distribution.__file__
LIBRARIES = (torch.distributions.__path__[0], pyro.distributions.__path__[0])
VALIDATION = "give it validate_args=False, or call pyro.enable_validation(False)"
TENSORS = (
    "make tensors of the module buffers, write device=z.device where one is made, and "
    "give a distribution its constants as numbers: 0.3, not torch.tensor(0.3)"
)


class Valued(NamedTuple):
    """A module, and a tensor that it computes from inputs.

    Arguments:
        module: The module, in float64.
        value: A function of the module and the inputs that returns one tensor.
        inputs: Tensors in float64.
    """

    module: nn.Module
    value: Callable[..., Tensor]
    inputs: tuple[Tensor, ...]


def under_a_seed(case: Valued, seed: int = SEED) -> Tensor:
    """The value, from the same random numbers each time."""
    seeded(seed)
    return case.value(case.module, *case.inputs)


def gradients(case: Valued) -> Iterator[str]:
    """Gradients in the inputs and every parameter are those of finite differences.

    For a random value the means are compared: its gradient may leave out how its draws
    depend on the parameters, which differences include.
    """
    inputs = tuple(x.detach().clone().requires_grad_() for x in case.inputs)
    case = case._replace(inputs=inputs)
    leaves = {f"argument {i}": x for i, x in enumerate(inputs, 1)}
    leaves |= {k: p for k, p in case.module.named_parameters() if p.requires_grad}
    value = under_a_seed(case)
    weight = torch.rand_like(value) + 0.5
    if leaves and not value.requires_grad:
        yield "expected a value with a gradient, got one without; look for .detach()"
        return
    repeated = torch.equal(under_a_seed(case, SEED + 1), value)
    totals = [
        lambda s=s: (weight * under_a_seed(case, s)).sum()
        for s in range(1 if repeated else REPEATS)
    ]
    grads = [
        torch.autograd.grad(
            total(), list(leaves.values()), allow_unused=True, materialize_grads=True
        )
        for total in totals
    ]
    for name, leaf, *each in zip(leaves, leaves.values(), *grads, strict=True):
        yield from _gradient(name, leaf, each, totals)


def _gradient(
    name: str,
    leaf: Tensor,
    grads: Sequence[Tensor],
    totals: Sequence[Callable[[], Tensor]],
) -> Iterator[str]:
    direction = torch.randn_like(leaf)
    direction = direction / direction.norm().clamp(min=1e-30)
    exact = torch.stack([(grad * direction).sum() for grad in grads]).detach()
    rounding = 1e-6 * (1 + float(totals[0]().detach().abs()))
    nearest, least = math.inf, math.inf
    for step in DIFFERENCES:
        each = [_difference(leaf, direction, step, t) for t in totals]
        found = torch.stack(each).detach()
        gap = float((found - exact).mean().abs())
        bars = BARS * float((found - exact).std(correction=0)) / math.sqrt(len(found))
        size = max(abs(float(exact.mean())), abs(float(found.mean())))
        if gap <= 1e-3 * size + rounding + bars:
            return
        if gap < least:
            nearest, least = float(found.mean()), gap
    yield (
        f"expected the gradient {nearest:.6g} in {name}, by finite differences, got "
        f"{float(exact.mean()):.6g} from autograd; look for .detach(), "
        "torch.no_grad() or in-place writes in the forward pass"
    )


def _difference(
    leaf: Tensor, direction: Tensor, step: float, total: Callable[[], Tensor]
) -> Tensor:
    before, ends = leaf.detach().clone(), []
    for sign in (-1, 1):
        with torch.no_grad():
            leaf.copy_(before + sign * step * direction)
        ends.append(total().detach())
    with torch.no_grad():
        leaf.copy_(before)
    return (ends[1] - ends[0]) / (2 * step)


def single_precision(case: Valued) -> Iterator[str]:
    """In float32 the value is float32, and close to the one in float64."""
    expected, again = under_a_seed(case), under_a_seed(case, SEED + 1)
    with precision(torch.float32):
        inputs = tuple(x.float() for x in case.inputs)
        single = Valued(copied(case.module).float(), case.value, inputs)
        found = under_a_seed(single)
    if found.dtype != torch.float32:
        yield (
            f"expected float32 from float32, got {found.dtype}; look for tensors of "
            "another dtype: let them follow their inputs, as x.new_tensor(…) does"
        )
    if not found.isfinite().all() and expected.isfinite().all():
        yield "expected finite values in float32 as in float64, got others"
    # In another dtype the same seed gives other draws.
    elif torch.equal(expected, again):
        gap = differs(found.to(expected), expected, 1e-3, 1e-3)
        if gap:
            yield f"{gap} in float32; look for cancellation"


def device(case: Valued) -> Iterator[str]:
    """On another device the value is on that device, and the same.

    Without a GPU the other device is "meta", which has shapes only: it shows which
    tensors are left on the CPU.
    """
    kind = "cuda" if torch.cuda.is_available() else "meta"
    inputs = tuple(x.detach().to(kind).requires_grad_() for x in case.inputs)
    moved = Valued(copied(case.module).to(kind), case.value, inputs)
    try:
        found = under_a_seed(moved)
    except (RuntimeError, NotImplementedError) as error:
        if _validating(error):
            where = "a part of its" if _validating_within(error) else "its"
            yield Note(
                f"{where} distribution validates its arguments, which synchronises "
                f"with a GPU; {VALIDATION}"
            )
            return
        if kind == "meta" and _within_a_library(error):
            yield Note(f"its device cannot be checked without a GPU: {in_short(error)}")
            return
        yield f"expected a value on {kind}, got {in_short(error)}; {TENSORS}"
        return
    if found.device.type != kind:
        yield f"expected a value on {kind}, got one on {found.device}"
    elif kind == "cuda":
        expected, again = under_a_seed(case), under_a_seed(case, SEED + 1)
        gap = differs(found.cpu(), expected) if torch.equal(expected, again) else None
        if gap:
            yield f"{gap} on {kind}"


def _within_a_library(error: Exception) -> bool:
    """Whether a distribution of torch or Pyro fails, other than by mixing devices."""
    frames = walk_tb(error.__traceback__)
    inside = any(f.f_code.co_filename.startswith(LIBRARIES) for f, _ in frames)
    return inside and not _validating(error) and "device" not in str(error)


def _validating_within(error: Exception) -> bool:
    """Whether part of a distribution validates, despite validate_args=False."""
    for frame, _ in walk_tb(error.__traceback__):
        own = frame.f_locals
        if isinstance(outer := own.get("self"), Distribution):
            asked = own.get("validate_args", outer._validate_args)
            return _validating(error) and asked is False
    return False


def _validating(error: Exception) -> bool:
    """Whether the error comes from a distribution that validates its arguments."""
    frames = walk_tb(error.__traceback__)
    return any(frame.f_code.co_filename == VALIDATES for frame, _ in frames)


def state(case: Valued) -> Iterator[str]:
    """In evaluation mode `state_dict` does not change."""
    before = {k: v.clone() for k, v in case.module.state_dict().items()}
    under_a_seed(case)
    for name, now in case.module.state_dict().items():
        if not torch.equal(now, before[name]):
            yield (
                f"expected {name} to stay in evaluation mode, got another value; "
                "update it only `if self.training`"
            )


def saving(case: Valued) -> Iterator[str]:
    """Saved, and loaded into a module with other numbers, it has the same value."""
    expected, other = under_a_seed(case).detach(), copied(case.module)
    _perturb(other)
    with TemporaryDirectory() as folder:
        save(case.module, folder)
        load(folder, into=other)
    gap = differs(under_a_seed(case._replace(module=other)), expected)
    if gap:
        yield (
            f"{gap} after ps.save and ps.load(into=…); make tensors that are not "
            "parameters buffers: self.register_buffer(name, tensor)"
        )


@torch.no_grad()
def _perturb(module: nn.Module) -> None:
    """Change what `state_dict` holds, and tensors that are plain attributes."""
    loose = [
        part
        for child in module.modules()
        for part in vars(child).values()
        if isinstance(part, Tensor) and part.is_leaf
    ]
    for tensor in [*module.state_dict().values(), *loose]:
        if tensor.is_floating_point():
            tensor.mul_(1 + 0.2 * torch.rand_like(tensor)).add_(0.02)


def tracing(case: Valued) -> Iterator[str]:
    """Traced, as by `torch.compile`, value and gradients are the eager ones.

    Tracing fails where the code synchronises with the host, as `.item()` does.
    """
    under_a_seed(case)  # an error in eager mode has the plainer message
    call = _Call(case)
    tensors = {k: p.detach() for k, p in call.named_parameters() if p.requires_grad}

    def step(tensors: dict[str, Tensor], inputs: tuple[Tensor, ...]) -> Any:
        tensors = {k: v.detach().requires_grad_() for k, v in tensors.items()}
        inputs = tuple(x.detach().requires_grad_() for x in inputs)
        value = functional_call(call, tensors, inputs)
        leaves = [*tensors.values(), *inputs]
        if not leaves or not value.requires_grad:
            return [value]
        grads = torch.autograd.grad(
            value.sum(), leaves, allow_unused=True, materialize_grads=True
        )
        return [value, *grads]

    trace = make_fx(step, tracing_mode="fake", _allow_non_fake_inputs=True)
    found = []
    # Validation synchronises with the host; tracing switches it off.
    with unvalidated():
        try:
            graph = trace(tensors, case.inputs)
        except Exception as error:
            if _within_a_library(error):
                yield Note(
                    f"it cannot be compiled, {in_short(error)}: with compile=True, fit "
                    "runs it as without"
                )
                return
            yield (
                f"expected a function that torch can trace, got {in_short(error)}; "
                "look for .item(), float(tensor) or `if tensor:`"
            )
            return
        for function in (graph, step):
            seeded(SEED)
            found.append(function(tensors, case.inputs))
    names = ["the value", *(f"the gradient in {k}" for k in tensors)]
    names += [f"the gradient in argument {i + 1}" for i in range(len(case.inputs))]
    for name, traced, eager in zip(names, *found, strict=False):
        gap = differs(traced, eager)
        if gap:
            yield f"{gap} in {name}, traced against eager"


class _Call(nn.Module):
    """The value as a forward pass, for `functional_call`."""

    def __init__(self, case: Valued) -> None:
        super().__init__()
        self.module, self.value = case.module, case.value

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.value(self.module, *inputs)


NUMERICAL = (single_precision, device, state, saving)
UNTRACED = (gradients, *NUMERICAL)
