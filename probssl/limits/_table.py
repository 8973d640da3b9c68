"""The table of limits: a row for each method, on the axes of p(y), p(z|y) and H[z].

Each row joins what a class declares as its `place` with what the docstring of its file
says: the reference, the status, and what is dropped.
"""

import csv
import inspect
import io
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib import import_module
from textwrap import fill
from typing import NamedTuple

from ._place import (
    CONDITIONALS,
    CONTENTS,
    ENTROPIES,
    Cell,
    Conditional,
    Content,
    Place,
    cells_that_make_sense,
)

__all__ = ["Row", "Table", "table"]

STATUSES = ["exact bound", "identity", "surrogate", "heuristic"]
STATUS = re.compile(rf"\b({'|'.join(STATUSES)})\b")
DROPPED = re.compile(r"\bit drops (.+?)(?=[.:;](?: |$))", re.IGNORECASE)
REFERENCE = re.compile(r"(.+) \((?:([^()]+), )?(\d{4})\)")
HEADER = ("objective", "year", "p(y); p(z|y)", "keeps z informative", "status")
WIDTH = 88


class Row(NamedTuple):
    """A method: its reference, its choices, its status and its theorem.

    Attributes:
        name: The class in `limits`.
        year, title, authors, link: Of the paper; no authors where they are not known.
        content: p(y), in the method's words.
        conditional: p(z|y).
        information: What keeps z informative.
        status: How exactly the loss is alignment plus entropy.
        dropped: What is left out of the joint distribution.
        theorem: What is proved of it, in words.
        test: The test in ``tests/`` which proves it.
        cells: Where it stands on the axes; nowhere for an extension of any base.
    """

    name: str
    year: int
    title: str
    authors: str
    link: str
    content: str
    conditional: str
    information: str
    status: str
    dropped: str
    theorem: str
    test: str
    cells: list[Cell]


class Table:
    """The rows of methods, and the grid of their choices.

    Attributes:
        rows: One for each method, in the order of the axes, statuses and years.
        grid: Each cell that makes sense, p(y), p(z|y) and what keeps z informative,
            with the names of its methods; without any where nobody has been.
    """

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = list(rows) if isinstance(rows, Iterable) else [rows]
        if others := [row for row in self.rows if not isinstance(row, Row)]:
            raise TypeError(
                f"expected rows as a list of Row, got {others[0]!r} in it; "
                "ps.limits.table() makes them"
            )
        self.grid: dict[Cell, list[str]] = {
            cell: [row.name for row in self.rows if cell in row.cells]
            for cell in cells_that_make_sense()
        }

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, name: str) -> Row:
        for row in self.rows:
            if row.name == name:
                return row
        names = ", ".join(row.name for row in self.rows)
        raise KeyError(f"expected the name of a method, got {name!r}; one of {names}")

    @property
    def empty(self) -> list[Cell]:
        """The cells that make sense and have no method."""
        return [cell for cell, names in self.grid.items() if not names]

    def __str__(self) -> str:
        lines = [HEADER, *map(_short, self.rows)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        rows = [
            "  ".join(map(str.ljust, line, widths)).rstrip()  # of one column each
            for line in lines
        ]
        return "\n".join([*rows, "", *self._grid_lines()])

    __repr__ = __str__

    def _repr_markdown_(self) -> str:
        return self.to_markdown()

    def _grid_lines(self) -> Iterator[str]:
        count = f"{len(self.grid) - len(self.empty)} of {len(self.grid)} cells"
        yield f"The grid, {count} with a method:"
        for (content, conditional), cells in self.by_pair().items():
            yield f"\n{content}; {conditional}"
            for information, names in cells.items():
                if names:
                    said = ", ".join(self.named(name) for name in names)
                    yield _wrapped(f"{information}: {said}")
            empty = [name for name, names in cells.items() if not names]
            if empty:
                yield _wrapped(f"empty: {', '.join(empty)}")

    def named(self, name: str) -> str:
        """A method with its year and status."""
        row = self[name]
        return f"{name} {row.year} ({row.status})"

    def by_pair(self) -> dict[tuple[str, str], dict[str, list[str]]]:
        """The grid by p(y) and p(z|y), then by what keeps z informative."""
        found: dict[tuple[str, str], dict[str, list[str]]] = {}
        for (content, conditional, information), names in self.grid.items():
            found.setdefault((content, conditional), {})[information] = names
        return found

    def to_markdown(self, name: Callable[[str], str] = "`{}`".format) -> str:
        """Rows and grid as two tables in Markdown; empty cells of the grid have a dot.

        Arguments:
            name: From the name of a method to how it is written.
        """
        rows = [[name(row.name), *_short(row)[1:]] for row in self.rows]
        grid = [
            [f"{y}; {k}", *(self._cell(cells, e.value, name) for e in ENTROPIES)]
            for (y, k), cells in self.by_pair().items()
        ]
        title = ["p(y); p(z|y)", *(e.value for e in ENTROPIES)]
        return f"{markdown(HEADER, rows)}\n\n{markdown(title, grid)}"

    def _cell(
        self, cells: dict[str, list[str]], information: str, name: Callable[[str], str]
    ) -> str:
        if information not in cells:
            return ""
        names = cells[information]
        said = [f"{name(n)} {self[n].year}, {self[n].status}" for n in names]
        return "<br>".join(said) or "·"

    def to_json(self) -> str:
        """Rows and empty cells."""
        rows = [row._asdict() for row in self.rows]
        return json.dumps({"rows": rows, "empty": self.empty}, indent=1) + "\n"

    def to_csv(self) -> str:
        """The rows without their cells."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerows([Row._fields[:-1], *(row[:-1] for row in self.rows)])
        return text.getvalue()


def table() -> Table:
    """Return the table of limits, with a row for each method of `limits`.

    Example:
        >>> import probssl as ps
        >>> found = ps.limits.table()
        >>> found["VICReg"].year, found["VICReg"].status
        (2022, 'surrogate')
        >>> ("flat", "Gaussian", "kernel density") in found.empty
        True

    Raises:
        RuntimeError: If Python runs without docstrings.
    """
    package = import_module(__package__)
    classes = (getattr(package, name) for name in package.__all__)
    rows = [row_of(c) for c in classes if isinstance(vars(c).get("place"), Place)]
    return Table(sorted(rows, key=_order))


def row_of(method: type) -> Row:
    """The row of a class that declares its `place`."""
    place: Place = vars(method)["place"]
    text = inspect.getdoc(sys.modules[method.__module__])
    if text is None:
        raise RuntimeError(
            "expected the docstrings, of which the table is made, got none; run Python "
            "without -OO"
        )
    title, authors, link = reference(text, place.year)
    status = " ".join(text.partition("Status: ")[2].partition("\n\n")[0].split())
    return Row(
        method.__name__,
        place.year,
        title,
        authors,
        link,
        *place.words(),
        ", ".join(dict.fromkeys(STATUS.findall(status))),
        "; ".join(DROPPED.findall(status)),
        place.theorem,
        place.test,
        list(place.cells()),
    )


def reference(text: str, year: int) -> tuple[str, str, str]:
    """Title, authors and address of the first paper of a year in a docstring."""
    paper: list[str] = []
    for line in text.split("\n\n")[1].splitlines():
        if not line.startswith("https://"):
            paper.append(line)
            continue
        found = REFERENCE.match(" ".join(paper))
        if found and int(found[3]) == year:
            return found[1], found[2] or "", line
        paper = []
    raise ValueError(
        f"expected a paper of {year} in the docstring that begins {text[:40]!r}, got "
        "none; write Title (authors, year), and its address in the next line"
    )


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, in which no bar ends a cell."""
    lines = [header, ["---"] * len(header), *rows]
    each = ("| " + " | ".join(line) + " |" for line in _without_bars(lines))
    return "\n".join(each).replace("| --- ", "|---").replace("|--- |", "|---|")


def _without_bars(lines: Sequence[Sequence[str]]) -> Iterator[list[str]]:
    for line in lines:
        yield [re.sub(r"(?<=\w)\|(?=\w)", " given ", cell) for cell in line]


def _short(row: Row) -> tuple[str, ...]:
    """The columns of `HEADER`."""
    choices = f"{row.content}; {row.conditional}"
    return row.name, str(row.year), choices, row.information, row.status


def _order(row: Row) -> tuple[int, ...]:
    """By what keeps z informative, p(y), p(z|y), status, year; extensions last."""
    if not row.cells:
        return (len(ENTROPIES),)
    content, conditional, information = row.cells[0]
    values = [choice.value for choice in ENTROPIES]
    return (
        values.index(information),
        CONTENTS.index(Content(content)),
        CONDITIONALS.index(Conditional(conditional)),
        STATUSES.index(row.status.split(", ")[0]),
        row.year,
    )


def _wrapped(text: str) -> str:
    return fill(text, WIDTH, initial_indent="    ", subsequent_indent="        ")
