"""Validation by Pyro and torch, which is off for a while."""

from contextlib import AbstractContextManager

import pyro

__all__ = ["unvalidated"]


def unvalidated() -> AbstractContextManager[None]:
    """Switch validation off within the context, and each kind back as it was.

    `pyro.validation_enabled` gives torch the setting that Pyro had.
    """
    kinds = "distributions_pyro", "distributions_torch", "infer", "poutine"
    return pyro.settings.context(**{f"validate_{kind}": False for kind in kinds})
