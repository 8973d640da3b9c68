"""What the benchmarks share beside `measure`: the memory that a call needs."""

import ctypes
import resource
from collections.abc import Callable
from pathlib import Path

import torch

__all__ = ["peak"]

# A 5 written here sets the peak of the resident memory back to what is resident now.
CLEAR = Path("/proc/self/clear_refs")


def peak(call: Callable[[], object], device: torch.device | str = "cpu") -> float:
    """Megabytes that a call needs at most beyond what is held before it.

    Call it once before, so that what is loaded on first use is there. On a GPU it is
    what torch has allocated; on a processor the resident memory of this process, once
    all that was freed before has been given back, which only Linux tells.
    """
    if torch.device(device).type == "cuda":
        held = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        return (torch.cuda.max_memory_allocated(device) - held) / 1e6
    ctypes.CDLL(None).malloc_trim(0)
    CLEAR.write_text("5")
    before = _most()
    call()
    return (_most() - before) / 1e6


def _most() -> int:
    """The peak of the resident memory of this process in bytes."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
