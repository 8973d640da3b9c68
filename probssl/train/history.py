"""The history of a fit, and the running means of its terms."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from ..arguments import counted
from ..reading import guarded, parsed
from ..runtime.distributed import gather_to_cpu
from ..terms import Batch, Terms

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

__all__ = ["ADVICE", "History", "Row", "Tally", "check_rows", "not_finite"]

ADVICE = "lower learning_rate or set clip"  # for numbers that are not finite

Row = dict[str, float]


class History:
    """One row for each epoch: the mean terms over its items, and their sum, the value.

    Columns are ``epoch``, ``step`` (both from 1), ``value``, the terms, the same with
    the prefix ``valid_`` for validation data, ``lr``, ``seconds`` (training and
    validation) and those that `on_epoch` adds. Values are per item, in nats except for
    the penalty. Training values are means over the steps of the epoch, during which the
    parameters change.

    Arguments:
        interrupted: Whether Ctrl-C or SIGTERM ended the fit. An epoch that it broke off
            has a last row of its own, of the steps that were made, without validation.
    """

    def __init__(
        self, rows: list[Row] | None = None, interrupted: bool = False
    ) -> None:
        self.rows = [] if rows is None else rows
        self.interrupted = interrupted
        self.broken_off = False  # whether the last row is that of part of an epoch

    @property
    def finished(self) -> int:
        """The number of epochs that were finished."""
        return len(self) - self.broken_off

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, column: str) -> Float64[np.ndarray, " epoch"]:
        """A column, NaN where a row lacks it."""
        if column not in self.columns:
            raise KeyError(f"expected one of {self.columns}, got {column!r}")
        values = [row.get(column, np.nan) for row in self.rows]
        return np.array(values, dtype=np.float64)

    def __repr__(self) -> str:
        last = self.rows[-1] if self.rows else {}
        shown = [c for c in ("value", "valid_value", "seconds") if c in last]
        ends = ", ".join(f"{column} {last[column]:.4g}" for column in shown)
        return f"History({self._length()}{'; last: ' if ends else ''}{ends})"

    def _repr_html_(self) -> str:
        shown = self.table.dropna(axis="columns", how="all").tail(5)
        whole = self._length() + ", the last:" * (len(self) > 5)
        return f"<p>{whole}</p>" + shown.to_html(float_format="{:.4g}".format)

    def _length(self) -> str:
        part = " and a part" * self.broken_off
        return (
            f"{counted(self.finished, 'epoch')}{part}"
            + ", interrupted" * self.interrupted
        )

    def plot(self) -> "Figure":
        """Draw the value and its terms against the epoch: `plots.learning_curves`."""
        from ..plots import learning_curves

        return learning_curves(self)

    @property
    def columns(self) -> list[str]:
        """The names of the columns, in the order of their first appearance."""
        return list(dict.fromkeys(column for row in self.rows for column in row))

    @property
    def table(self) -> "pandas.DataFrame":
        """The rows as a table, indexed by epoch."""
        import pandas

        table = pandas.DataFrame(self.rows, columns=self.columns or ["epoch"])
        return table.set_index("epoch")

    def to_json(self) -> str:
        """The rows as JSON, for `from_json`; nothing is lost."""
        return json.dumps(self.rows)

    @classmethod
    def from_json(cls, text: str) -> "History":
        """Read the history that `to_json` wrote.

        Raises:
            ValueError: If it is none: rows of numbers, one for each epoch from 1 on.
        """
        with guarded("the text", "History.to_json writes it", "give what it wrote"):
            rows = parsed(text.encode(), constants=True)
            check_rows(rows)
        return cls(rows)


def check_rows(rows: Any) -> None:
    """Raise an error for rows that are no history."""
    for epoch, row in enumerate(rows, start=1):
        numbers = (type(x) in (int, float, bool) for x in row.values())
        if row["epoch"] != epoch or not all(numbers):
            raise ValueError(f"row {epoch} is not that of epoch {epoch}")


def not_finite(text: str, batches: Sequence[Batch] = ()) -> FloatingPointError:
    """An error after which the moment is not worth keeping, with its `batches`."""
    error = FloatingPointError(text)
    error.batches = list(batches)  # type: ignore[attr-defined]
    return error


class Tally:
    """A running mean of terms, kept on the device so that steps need not synchronise.

    Arguments:
        start: The number of earlier steps.
        kept: The end of the error message for a term that is not finite.
    """

    def __init__(self, start: int = 0, kept: str = "") -> None:
        self.start, self.steps, self.kept = start, start, kept
        self.items, self.total = 0, np.zeros(len(Terms._fields))
        self.pending: list[tuple[Terms, int]] = []
        self.broken: str | None = None

    @property
    def count(self) -> int:
        """The number of steps made, with the earlier ones."""
        return self.steps + len(self.pending)

    def add(self, terms: Terms, items: int) -> None:
        """Add the mean terms of a batch of `items`, without synchronising."""
        self.pending.append((terms, items))

    def read(self) -> None:
        """Copy the pending terms to the host: one synchronisation for all of them."""
        tensors = [
            t for terms, _ in self.pending for t in terms if isinstance(t, Tensor)
        ]
        values = iter(torch.stack(tensors).tolist() if tensors else [])
        for terms, items in self.pending:
            row = [next(values) if isinstance(t, Tensor) else float(t) for t in terms]
            self.steps, self.items = self.steps + 1, self.items + items
            self.total += items * np.array(row)
            if self.broken is None and not np.isfinite(row).all():
                named = zip(Terms._fields, row, strict=True)
                found = [f"{name} = {t}" for name, t in named if not np.isfinite(t)]
                self.broken = f"{' and '.join(found)} at step {self.steps}"
        self.pending = []

    def pool(self) -> None:
        """Add up the items and terms of all ranks; each of them calls it."""
        self.read()
        own = torch.tensor([self.items, *self.total], dtype=torch.double)
        items, *total = gather_to_cpu(own).sum(0).tolist()
        self.items, self.total = int(items), np.array(total)

    def mean(self) -> Row:
        """The mean terms over all items so far, and their sum, the value."""
        self.read()
        terms = (self.total / self.items).tolist()
        return {"value": sum(terms)} | dict(zip(Terms._fields, terms, strict=True))

    def check(self) -> None:
        """Raise a FloatingPointError if a term is not finite, naming the first step."""
        self.read()
        if self.broken is not None:
            raise not_finite(
                f"expected finite terms, got {self.broken}; {ADVICE}; {self.kept}"
            )
