"""A law is a function that yields what breaks it; `examine` gathers the broken ones."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, NamedTuple, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm import tqdm

__all__ = [
    "Estimate",
    "LawError",
    "Trial",
    "differs",
    "examine",
    "mean_of",
    "precision",
    "refusal",
    "seeded",
    "twin",
]

# A law, and what makes the thing that it is about.
Trial = tuple[Callable[[Any], Iterator[str]], Callable[[], Any]]
Module = TypeVar("Module", bound=nn.Module)

PATIENCE = 3.0  # seconds before a progress bar shows
BARS = 5.0  # standard errors that an estimate may be away from what is expected


class LawError(AssertionError):
    """Laws that are broken, each with what was expected, what came, where to look.

    Arguments:
        subject: What breaks them.
        faults: Pairs of a law's name and of how it is broken.
    """

    def __init__(self, subject: str, faults: Sequence[tuple[str, str]]) -> None:
        self.laws = tuple(dict.fromkeys(name for name, _ in faults))
        lines = [f"- {name}: {fault}" for name, fault in faults]
        count = "a law" if len(self.laws) == 1 else f"{len(self.laws)} laws"
        super().__init__("\n".join([f"{subject} breaks {count}:", *lines]))


class Estimate(NamedTuple):
    """A mean over samples, and its standard error."""

    value: Float[Tensor, "*shape"]
    error: Float[Tensor, "*shape"]

    def misses(self, expected: Tensor | float) -> Tensor:
        """By how many standard errors it is away; rounding is forgiven."""
        away = ((self.value - expected).abs() - 1e-6).clamp(min=0)
        return (away / self.error.clamp(min=1e-12)).nan_to_num(math.inf)


def mean_of(sample: Float[Tensor, "n *shape"]) -> Estimate:
    """The mean over the first axis."""
    return Estimate(sample.mean(0), sample.std(0) / math.sqrt(len(sample)))


def examine(subject: str, laws: Iterable[Trial], seed: int) -> None:
    """Try every law on what it is about, each from the same random state, in float64.

    The caller's random state and default precision are left as they were.

    Raises:
        LawError: If any is broken, naming all that are.
    """
    faults: list[tuple[str, str]] = []
    cause: Exception | None = None
    for law, make in tqdm(list(laws), subject, delay=PATIENCE, unit="law", leave=False):
        name = law.__name__.replace("_", " ")
        try:
            with _forked(seed), precision(torch.float64):
                for fault in law(make()):
                    faults.append((name, fault))
        except Exception as error:  # whatever it is, the law does not hold
            faults.append((name, f"{type(error).__name__}: {error}"))
            cause = cause or error
    if faults:
        raise LawError(subject, faults) from cause


def differs(
    found: Tensor, expected: Tensor, relative: float = 1e-6, absolute: float = 1e-6
) -> str | None:
    """Say where two tensors differ the most, or None if they agree."""
    found, expected = found.detach(), expected.detach()
    if found.shape != expected.shape:
        return f"expected shape {tuple(expected.shape)}, got {tuple(found.shape)}"
    pair = found.to(expected), expected
    if torch.isclose(*pair, relative, absolute, equal_nan=True).all():
        return None
    gap = (pair[0] - pair[1]).abs().nan_to_num(math.inf).flatten()
    worst = int(gap.argmax())
    was, came = (float(part.flatten()[worst]) for part in (expected, found))
    return f"expected {was:.6g}, got {came:.6g}, a difference of {came - was:.3g}"


def refusal(call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """What a call returns, or None where it says that there is nothing of the kind.

    A refusal is a TypeError or ValueError of the form "expected …, got …"; any other
    error is passed on.
    """
    try:
        return call(*arguments, **options)
    except (TypeError, ValueError) as error:
        if not str(error).startswith("expected"):
            raise
        return None


def twin(module: Module) -> Module:
    """A copy in float64 and evaluation mode, on the CPU; the original stays."""
    copied = deepcopy(module).cpu().double().eval()
    copied.zero_grad()
    return copied


@contextmanager
def precision(dtype: torch.dtype) -> Iterator[None]:
    """Make a type the default, for modules without a number to take it from."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def seeded(seed: int) -> None:
    """Seed torch's generators of this machine.

    Cheaper than `torch.manual_seed`, which without a GPU writes down, each time,
    where it was called from, for devices yet to come.
    """
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(seed)


@contextmanager
def _forked(seed: int) -> Iterator[None]:
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    with torch.random.fork_rng(list(devices)):
        seeded(seed)
        yield
