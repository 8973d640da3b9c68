"""Files that are written whole or not at all, and folders with one writer at a time.

A file is written under another name in the same folder, flushed to the disk and
renamed; then the folder is flushed. Whenever the process or the machine stops, the name
has all of the old content or all of the new.
"""

import errno
import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import get_ident
from typing import NoReturn

__all__ = ["locked", "move", "remove_lock", "write"]

Content = str | bytes | Callable[[Path], object]

LOCK = ".lock"
WAIT = 10.0  # seconds: workers of a killed process may hold its lock for five
PART = re.compile(r"\.(\d+)-\d+\.part\.(.+)")  # process, thread, name
UNABLE = errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.ENOLCK
SPACE, PERMISSION = "free space, or give another place", "give a place that you may "
PERMISSION += "write to, or allow it"
WAYS = {  # out of an error of the system
    None: SPACE,  # of a library that does not say which
    errno.ENOSPC: SPACE,
    getattr(errno, "EDQUOT", errno.ENOSPC): SPACE,
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
    errno.EACCES: PERMISSION,
    errno.EPERM: PERMISSION,
    errno.EROFS: PERMISSION,
}
logger = logging.getLogger(__name__)
_now = set[Path]()  # what this process writes just now


def write(path: str | os.PathLike[str], content: Content) -> None:
    """Replace a file: its name has all of the old content, or all of the new.

    What killed processes left of the same file is removed. A link stays a link: the
    file that it names is replaced. Devices and pipes are written as they are.

    Arguments:
        content: Text, which is written as UTF-8, bytes, or a function that writes a
            file of a given name, such as ``figure.savefig``.

    Raises:
        OSError: The error of the system, with the file, what is kept, and a way out.
    """
    path = Path(os.path.realpath(path))
    if isinstance(content, str):
        content = content.encode()
    if path.exists() and not (path.is_file() or path.is_dir()):
        _fill(path, content)
        return
    kept = "what it held before is unchanged" if path.exists() else "it is not written"
    part = path.with_name(f".{os.getpid()}-{get_ident()}.part.{path.name}")
    _now.add(part)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_parts(path.parent, path.name)
        _fill(part, content)
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
        kept = "it has the new content, which may not be on the disk yet"
        _flush(path.parent)
    except OSError as error:
        _refuse(path, kept, error)
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        _now.discard(part)


def move(source: Path, path: Path) -> None:
    """Rename a file that `write` wrote, over another one."""
    try:
        os.replace(source, path)
        _flush(path.parent)
    except OSError as error:
        _refuse(path, f"its content is in {source.name} or already here", error)


@contextmanager
def locked(folder: Path, work: str, wait: float | None = None) -> Iterator[None]:
    """A context in which this is the only writer in a folder, which is made if need be.

    The system frees the lock of a process that is killed. What killed processes left
    half-written in the folder is removed.

    Arguments:
        work: What the writer does, as in "save"; other work has another lock.
        wait: Seconds to wait for another writer; None means ten.

    Raises:
        BlockingIOError: If another process or thread does the same work there.
        OSError: If the folder cannot be made or written.
    """
    from filelock import FileLock, Timeout  # which few programs need

    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / f".{work}{LOCK}", thread_local=False)
        lock.acquire(timeout=WAIT if wait is None else wait)
    except Timeout:
        raise BlockingIOError(
            f"expected one process at a time to {work} in {folder}, got another that "
            f"does; wait for its end, or give another folder"
        ) from None
    except (OSError, NotImplementedError) as error:
        number = getattr(error, "errno", errno.ENOSYS)
        if number not in UNABLE:
            _refuse(folder, "nothing is written there", error)
        logger.warning(
            "%s is on a file system without locks (%s): start one process at a time "
            "that writes there",
            folder,
            error,
        )
        yield
        return
    try:
        _remove_parts(folder)
        yield
    finally:
        lock.release()


def remove_lock(folder: Path, work: str) -> None:
    """Remove the file of a lock, which `locked` leaves, with a folder to be removed."""
    with suppress(OSError):
        (folder / f".{work}{LOCK}").unlink()


def _fill(path: Path, content: bytes | Callable[[Path], object]) -> None:
    if callable(content):
        new = not path.exists()
        if new:
            path.touch()
        mode = path.stat().st_mode
        content(path)
        if new:  # libraries may replace it by a file that is for its owner alone
            path.chmod(mode)
    else:
        path.write_bytes(content)


def _flush(folder: Path) -> None:
    """Flush the names in a folder to the disk, where the system allows it."""
    if os.name == "nt":  # which opens no folders
        return
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    except OSError as error:
        if error.errno not in UNABLE:
            raise
    finally:
        os.close(opened)


def _remove_parts(folder: Path, name: str | None = None) -> None:
    """Remove what killed processes left half-written: of one file, or of all."""
    for path in folder.glob(".*.part.*"):
        found = PART.fullmatch(path.name)
        if found is None or name not in (None, found[2]) or path in _now:
            continue
        if int(found[1]) == os.getpid() or not _runs(int(found[1])):
            with suppress(OSError):
                path.unlink()


def _runs(process: int) -> bool:
    """Whether a process of this number runs; taken for granted on Windows."""
    if os.name == "nt":  # where signal 0 would end it
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it belongs to another user
        return True
    return True


def _refuse(path: Path, kept: str, error: Exception) -> NoReturn:
    """Raise the error of the system with the path, what is kept, and a way out."""
    reason = getattr(error, "strerror", None) or error
    if isinstance(error, FileExistsError | NotADirectoryError):
        reason = "a file where a folder is needed"
    kind = type(error) if isinstance(error, OSError) else OSError
    number = getattr(error, "errno", None)
    way = WAYS.get(number, "give another place")
    refused = kind(f"expected to write {path}, got {reason!s}; {kept}: {way}")
    refused.errno = number
    refused.unwritten = path  # type: ignore[attr-defined]
    raise refused from error
