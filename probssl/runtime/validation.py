"""Validation by Pyro and torch, which is off for a while."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from threading import Lock
from typing import Any

from pyro import settings

__all__ = ["unvalidated", "validation_kept"]

KINDS = [f"validate_{k}" for k in ("distributions_pyro", "distributions_torch")]
KINDS += ["validate_infer", "validate_poutine"]

_settings = Lock()
_within, _before = 0, dict[str, Any]()


@contextmanager
def unvalidated() -> Iterator[None]:
    """Switch validation off within the context, and each kind back as it was.

    All threads share these settings: validation is off until the last thread leaves,
    and then as it was before the first. `pyro.validation_enabled` would leave it off
    where two threads overlap, and gives torch the setting that Pyro had.
    """
    global _within
    with _settings:
        if not _within:
            _before.update((kind, settings.get(kind)) for kind in KINDS)
            settings.set(**dict.fromkeys(KINDS, False))
        _within += 1
    try:
        yield
    finally:
        with _settings:
            _within -= 1
            if not _within:
                settings.set(**_before)


def validation_kept() -> AbstractContextManager[None]:
    """Leave the context with the validation that was on before."""
    return settings.context(**{kind: settings.get(kind) for kind in KINDS})
