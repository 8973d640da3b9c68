"""The progress bar, and how often the device is looked at."""

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter

from tqdm import tqdm

from .history import Tally

__all__ = ["Progress"]

PERIOD = 0.25  # seconds between two looks at the device, each of which waits for it


class Progress:
    """A bar over the steps with the mean terms of the epoch; off, it only checks them.

    Arguments:
        total: The number of steps of the whole run, None if it is not known.
        done: The number of steps made before.
    """

    def __init__(self, total: int | None, done: int, shown: bool) -> None:
        self.bar = tqdm(total=total, initial=done, unit="step", disable=not shown)
        self.shown, self.done, self.due = shown, done, perf_counter()

    def title(self, text: str) -> None:
        """Write something before the bar."""
        self.bar.set_description(text, refresh=False)

    @contextmanager
    def busy(self, text: str) -> Iterator[None]:
        """Say so beside the title while something other than steps takes its time."""
        title = self.bar.desc
        self.bar.set_description(f"{title}{text}")
        try:
            yield
        finally:
            self.bar.set_description(title.removesuffix(": "))

    def look(self, tally: Tally, always: bool = False) -> None:
        """If it is time, read the terms, check them and show them."""
        if not always and perf_counter() < self.due:
            return
        tally.check()
        if self.shown:
            named = {name: f"{term:.4g}" for name, term in tally.mean().items() if term}
            self.bar.set_postfix(named, refresh=False)
            self.bar.update(tally.steps - self.done)
        self.done, self.due = tally.steps, perf_counter() + PERIOD

    def close(self) -> None:
        """Leave the bar as it stands."""
        self.bar.close()
