"""Measured rows of a comparison on the disk, from which it goes on after a kill."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..evaluation import FewLabel
from ..reading import guarded, json_of
from ..runtime.files import locked, write
from .table import Row, check_rows

__all__ = ["MEASURED", "Kept", "kept_rows", "read_rows"]

MEASURED = "measured.json"
FORMAT = 1


class Kept:
    """Rows by name, each with a digest of what it was measured on.

    Arguments:
        path: The file, which is replaced when a row is added; None keeps no rows.
    """

    def __init__(self, path: Path | None, rows: dict[str, Any]) -> None:
        self.path, self.rows = path, rows

    def get(self, name: str, digest: str) -> tuple[Row, FewLabel | None] | None:
        """The row of this name and digest, if it was measured before."""
        found = self.rows.get(name, {})
        if found.get("digest") != digest:
            return None
        few = found["few_label"]
        return found["row"], few and FewLabel(few[0], few[1], tuple(few[2]))

    def add(self, name: str, digest: str, row: Row, few: FewLabel | None) -> None:
        """Write a row beside the others."""
        if self.path is not None:
            self.rows[name] = {"digest": digest, "row": row, "few_label": few}
            content = {"format": FORMAT, "rows": self.rows}
            write(self.path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


@contextmanager
def kept_rows(folder: Path | None, resume: bool) -> Iterator[Kept]:
    """The rows in a folder, in which no other process measures meanwhile.

    Raises:
        BlockingIOError: If another one does.
        FileExistsError: If there are rows, but `resume` is False.
        ValueError: If their file is damaged, or there is nothing to resume from.
    """
    if folder is None:
        if resume:
            raise ValueError(
                "expected a folder to resume from, got checkpoint=None; name it"
            )
        yield Kept(None, {})
        return
    with locked(folder, "measure"):
        path = folder / MEASURED
        if path.exists() and not resume:
            raise FileExistsError(
                f"expected a folder without measured rows, got {path}; pass "
                "resume=True to go on from it, or another folder"
            )
        yield Kept(path, read_rows(folder))


def read_rows(folder: Path) -> dict[str, Any]:
    """The measured rows in a folder, by name."""
    path = folder / MEASURED
    if not path.exists():
        return {}
    with guarded(path, "compare writes it", "remove it, or give another folder"):
        content = json_of(path, path.parent, constants=True)
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']}")
        for row in content["rows"].values():
            check_rows({"row": row["row"]})
            FewLabel(*(row["few_label"] or (0, 0, ())))
        return dict(content["rows"])
