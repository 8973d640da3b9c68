"""Ctrl-C and SIGTERM as requests, which a loop honours between its steps."""

import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

__all__ = ["Interrupts", "leave"]


def leave(number: int, frame: FrameType | None) -> None:
    """A signal handler that exits as on an error, so that all is cleaned up."""
    sys.exit(128 + number)


APART = 1.0  # seconds: programs that start others often send the same signal twice

# Those of Python and of the command line. Handlers of others stay.
DEFAULTS = (signal.SIG_DFL, signal.default_int_handler, leave)


class Interrupts:
    """A context in which SIGINT and SIGTERM are noted instead of ending the program.

    The loop within it calls `check` between its steps. A second SIGINT, at least a
    second later, raises KeyboardInterrupt at once, but within `held`, where it could
    end the process.
    Signals reach the main thread alone; within other threads, and within a handler of
    the user's own, nothing is changed. A context within another shares its requests.

    Arguments:
        active: Whether signals are noted.
    """

    current: "Interrupts | None" = None  # the outermost one, which has the handlers

    def __init__(self, active: bool = True) -> None:
        self.active, self.source = active, self
        self._asked, self._since, self._holds = False, 0.0, 0
        self._before: dict[int, Any] = {}

    @property
    def asked(self) -> bool:
        """Whether a signal asked the loop to end."""
        return self.source._asked

    def check(self) -> None:
        """Raise a KeyboardInterrupt if a signal asked the loop to end."""
        if self.asked:
            raise KeyboardInterrupt

    @contextmanager
    def held(self) -> Iterator[None]:
        """A context, such as a compilation, that no signal breaks off."""
        self.source._holds += 1
        try:
            yield
        finally:
            self.source._holds -= 1

    def __enter__(self) -> "Interrupts":
        if not self.active or threading.current_thread() is not threading.main_thread():
            return self
        if Interrupts.current is not None:
            self.source = Interrupts.current
            return self
        Interrupts.current = self
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) in DEFAULTS:
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if Interrupts.current is self:
            for number, handler in self._before.items():
                signal.signal(number, handler)
            Interrupts.current = None

    def _note(self, number: int, frame: FrameType | None) -> None:
        if not self._asked:
            self._asked, self._since = True, time.monotonic()
            return
        again = number == signal.SIGINT and time.monotonic() > self._since + APART
        if again and not self._holds:
            raise KeyboardInterrupt
