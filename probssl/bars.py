"""Whether a progress bar is shown; the environment variable ``TQDM_DISABLE`` hides all.

An option given to tqdm overrides its environment variables, so that a bar which is to
be shown is given none.
"""

import sys
from typing import TypedDict

__all__ = ["Disable", "at_terminal", "shown"]


class Disable(TypedDict, total=False):
    """The option of tqdm that hides a bar, or nothing."""

    disable: bool


def shown(progress: bool) -> Disable:
    """The options of a bar that is shown if wanted."""
    return {} if progress else {"disable": True}


def at_terminal() -> Disable:
    """The options of a bar that is shown at a terminal only."""
    return shown(sys.stderr.isatty())
