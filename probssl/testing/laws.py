"""A law is a generator of faults; `examine` runs laws and collects their faults."""

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from textwrap import shorten
from typing import Any, NamedTuple, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm import tqdm

from ..runtime.copies import copied
from ..runtime.randomness import restored_randomness
from ..runtime.threads import LOCK

__all__ = [
    "Estimate",
    "LawError",
    "Note",
    "Trial",
    "differs",
    "examine",
    "in_short",
    "mean_of",
    "precision",
    "unless_declined",
    "seeded",
    "twin",
]

# A law, and a function that builds the case to which it applies.
Trial = tuple[Callable[[Any], Iterator[str]], Callable[[], Any]]
Module = TypeVar("Module", bound=nn.Module)

LONGEST = 300  # characters of an error's message
BARS = 5.0  # standard errors by which an estimate may differ from its expectation
MOST_UNDECIDED = 2  # laws that importance sampling may refuse


class LawError(AssertionError):
    """Broken laws, each with what was expected, what came, and where to look.

    Arguments:
        subject: The name of the class that breaks them.
        faults: Pairs of the name of a law and a fault.

    Attributes:
        laws: The names of the broken laws, in the order of the check.
    """

    def __init__(self, subject: str, faults: Sequence[tuple[str, str]]) -> None:
        self.laws = tuple(dict.fromkeys(name for name, _ in faults))
        lines = [f"- {name}: {fault}" for name, fault in faults]
        count = "a law" if len(self.laws) == 1 else f"{len(self.laws)} laws"
        super().__init__("\n".join([f"{subject} breaks {count}:", *lines]))


class Note(str):
    """What a law has to say where it is not broken, such as "cannot be compiled"."""


class Estimate(NamedTuple):
    """A mean over samples, and its standard error."""

    value: Float[Tensor, "*shape"]
    error: Float[Tensor, "*shape"]

    def misses(self, expected: Tensor | float) -> Tensor:
        """The distance from `expected` in standard errors; rounding does not count."""
        away = ((self.value - expected).abs() - 1e-6).clamp(min=0)
        return (away / self.error.clamp(min=1e-12)).nan_to_num(math.inf)


def mean_of(sample: Float[Tensor, "n *shape"]) -> Estimate:
    """The mean over the first axis, with its standard error."""
    return Estimate(sample.mean(0), sample.std(0) / math.sqrt(len(sample)))


def examine(subject: str, laws: Iterable[Trial], seed: int) -> None:
    """Check every law, each in float64 and from the same random state.

    The random state and the default dtype of the caller are restored. A `Note` is a
    warning, if no law is broken; so is one law or two whose densities importance
    sampling refuses.

    Raises:
        LawError: If a law is broken; it names all that are.
    """
    faults: list[tuple[str, str]] = []
    undecided: list[tuple[str, str]] = []
    notes: list[str] = []
    cause: Exception | None = None
    # A bar is shown after two seconds.
    for law, make in tqdm(list(laws), subject, delay=2.0, unit="law", leave=False):
        name = law.__name__.replace("_", " ")
        try:
            with _forked(seed), precision(torch.float64), warnings.catch_warnings():
                # The laws have error bars from the effective sample sizes.
                warnings.filterwarnings("ignore", "importance sampling of y")
                for fault in law(make()):
                    if isinstance(fault, Note):
                        notes.append(f"{subject}: {fault}")
                    else:
                        faults.append((name, fault))
        except Exception as error:  # any other error breaks the law
            refused = "effective sample size" in str(error)
            (undecided if refused else faults).append((name, in_short(error)))
            cause = cause or error
    if faults or len(undecided) > MOST_UNDECIDED:
        faults += undecided
    notes += [f"{subject}: {name} is undecided, {why}" for name, why in undecided]
    if faults:
        raise LawError(subject, faults) from cause
    for note in notes:
        warnings.warn(note, stacklevel=3)


def in_short(error: Exception) -> str:
    """The type of an error and the first line of its message, without tensors."""
    first = str(error).strip().partition("\n")[0].rstrip(": ")
    return f"{type(error).__name__}: {shorten(first, LONGEST, placeholder=' …')}"


def differs(
    found: Tensor, expected: Tensor, relative: float = 1e-6, absolute: float = 1e-6
) -> str | None:
    """Describe the largest difference of two tensors; None if they agree."""
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


def unless_declined(call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """What a call returns, or None if it declines.

    It declines by a TypeError or ValueError that begins with "expected"; other errors
    are raised.
    """
    try:
        return call(*arguments, **options)
    except (TypeError, ValueError) as error:
        if not str(error).startswith("expected"):
            raise
        return None


def twin(module: Module) -> Module:
    """A copy in float64 and evaluation mode, on the CPU."""
    copy = copied(module).cpu().double().eval()
    copy.zero_grad()
    return copy


@contextmanager
def precision(dtype: torch.dtype) -> Iterator[None]:
    """Set the default dtype within the context; other threads wait meanwhile."""
    with LOCK:
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            yield
        finally:
            torch.set_default_dtype(before)


def seeded(seed: int) -> None:
    """Seed torch's generators of this machine.

    Cheaper than `torch.manual_seed`, which without a GPU records a traceback at each
    call, for lazy initialisation of CUDA.
    """
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(seed)


@contextmanager
def _forked(seed: int) -> Iterator[None]:
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    with restored_randomness(list(devices)):
        seeded(seed)
        yield
