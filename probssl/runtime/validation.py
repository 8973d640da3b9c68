"""Validation by Pyro and torch, which is off for a while."""

from contextlib import AbstractContextManager

import pyro

__all__ = ["unvalidated", "validation_kept"]

KINDS = [f"validate_{k}" for k in ("distributions_pyro", "distributions_torch")]
KINDS += ["validate_infer", "validate_poutine"]


def unvalidated() -> AbstractContextManager[None]:
    """Switch validation off within the context, and each kind back as it was.

    `pyro.validation_enabled` gives torch the setting that Pyro had.
    """
    return pyro.settings.context(**dict.fromkeys(KINDS, False))


def validation_kept() -> AbstractContextManager[None]:
    """Leave the context with the validation that was on before."""
    return pyro.settings.context(**{kind: pyro.settings.get(kind) for kind in KINDS})
