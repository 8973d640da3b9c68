"""Files in Inductor's cache that a killed process left incomplete.

Inductor takes each file that exists. An incomplete library fails to load, or ends the
process by a bus error, each time; so it is removed beforehand.
"""

import logging
import re
import struct
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

__all__ = ["remove_broken", "remove_named"]

KEY = re.compile(r"c[a-z2-7]{51}")  # of a file in the cache: its hash in base 32
logger = logging.getLogger(__name__)


def remove_broken() -> None:
    """Remove libraries and sources that are incomplete."""
    for kind in ("so", "cpp"):
        for file in _cache().glob(f"??/*.{kind}"):
            if _incomplete(file):
                _remove(file, _incomplete)


def remove_named(error: BaseException, but: Collection[str] = ()) -> set[str]:
    """Remove the files that an error names; return their keys.

    Arguments:
        but: Keys of files that are left alone.
    """
    said = (
        str((e, getattr(e, "path", ""), getattr(e, "name", ""))) for e in _chain(error)
    )
    keys = set(KEY.findall(" ".join(said))).difference(but)
    for key in keys:
        for file in _cache().glob(f"??/{key}.*"):
            _remove(file)
    return keys


def _cache() -> Path:
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    return Path(cache_dir())


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _incomplete(file: Path) -> bool:
    """Whether it is empty, or a library without its end, the section headers."""
    try:
        with file.open("rb") as opened:
            head, size = opened.read(64), file.stat().st_size
    except FileNotFoundError:  # another process removed it
        return False
    if file.suffix != ".so" or not any(head):
        return not any(head)
    if len(head) < 64:
        return True
    if head[:6] != b"\x7fELF\x02\x01":  # no 64-bit library of Linux
        return False
    start, width, count = struct.unpack_from("<Q10xHH", head, 40)
    return bool(size < start + width * count)


def _remove(file: Path, broken: Callable[[Path], bool] = Path.is_file) -> None:
    """Remove a broken file, unless another process holds its lock and so writes it."""
    from filelock import FileLock, Timeout  # with Inductor, which not every run needs
    from torch._inductor.codecache import get_lock_dir

    lock = Path(get_lock_dir()) / f"{file.name.partition('.')[0]}.lock"
    try:
        with FileLock(lock, timeout=0.1):
            if not broken(file):
                return
            file.unlink()
    except (Timeout, FileNotFoundError):
        return
    logger.warning("removed a damaged file from the compiler's cache: %s", file)
