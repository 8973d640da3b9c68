"""How often a step crosses from one file of the package into another."""

import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import probssl as ps

__all__ = ["crossings"]

PACKAGE = str(Path(ps.__file__).parent) + "/"


def crossings(step: Callable[[], object]) -> Counter[tuple[str, str]]:
    """Count the calls of a step by caller and function, where their files differ.

    The caller of a function of the package is the innermost frame of the package below
    it; frames of other libraries in between, as of ``nn.Module.__call__``, are skipped.
    A generator that is resumed counts as called.
    """
    counts: Counter[tuple[str, str]] = Counter()

    def place(frame: FrameType) -> str:
        code = frame.f_code
        return f"{code.co_filename.removeprefix(PACKAGE)}:{code.co_name}"

    def profile(frame: FrameType, event: str, _: Any) -> None:
        if event != "call" or not frame.f_code.co_filename.startswith(PACKAGE):
            return
        caller = frame.f_back
        while caller and not caller.f_code.co_filename.startswith(PACKAGE):
            caller = caller.f_back
        if caller and caller.f_code.co_filename != frame.f_code.co_filename:
            counts[place(caller), place(frame)] += 1

    step()  # what is set up at first is no part of a step
    sys.setprofile(profile)
    try:
        step()
    finally:
        sys.setprofile(None)
    return counts
