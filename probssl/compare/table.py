"""The results of a comparison as tables, text, HTML and JSON."""

import json
import math
from collections.abc import Mapping
from html import escape
from os import PathLike
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any

from ..estimates import places
from ..reading import guarded, json_of
from ..runtime.files import write
from .terms import FAILED

if TYPE_CHECKING:
    import pandas

__all__ = ["FROZEN", "MARKS", "Comparison", "Row", "check_rows"]

Row = dict[str, Any]
Cells = dict[str, list[str]]  # of a column: two title rows, then one per method

COLUMNS = {
    "reconstruction": ("E log", "p(x|z)"),
    "entropy": ("", "H[q]"),
    "alignment": ("E log", "p(z)"),
    "elbo": ("", "ELBO"),
    "log_det": ("", "log-det"),
    "linear_probe": ("linear", "probe"),
    "few_label_probe": ("few", "labels"),
    "few_label_gain": ("over", "PCA"),
    "knn": ("", "5-NN"),
    "cluster_accuracy": ("clus-", "ters"),
    "ari": ("", "ARI"),
    "effective_rank": ("", "rank"),
    "active_units": ("active", "units"),
    "seconds": ("", "seconds"),
}
DECIMALS = {"effective_rank": 1, "seconds": 1, "linear_probe": 3, "knn": 3, "ari": 3}
DECIMALS |= {"few_label_probe": 3, "cluster_accuracy": 3, "active_units": 0}
TERM_COLUMNS = {"reconstruction", "entropy", "alignment", "elbo", "log_det"}
TERM_COLUMNS |= {"gaussian_alignment", "gaussian_entropy"}

MATRIX_COLUMNS = {
    "log_det": ("Gaussian", "log-det"),
    "gaussian_kernel": ("Gaussian", "KDE"),
    "gaussian_nearest": ("Gaussian", "NN"),
    "student_nearest": ("Student", "NN"),
    "spherical_kernel": ("sphere", "KDE"),
    "info_nce": ("I(z;z')", "InfoNCE"),
    "gaussian_information": ("I(z;z')", "Gauss"),
    "nearest_information": ("I(z;z')", "NN"),
    "decoded": ("log p(x|z)", "decoder"),
    "frozen_elbo": ("frozen", "ELBO"),
    "frozen_evidence": ("frozen", "log p(x)"),
    "effective_rank": ("", "rank"),
    "view_distance": ("view", "dist."),
    "uniformity": ("uni-", "formity"),
}

FROZEN = "frozen_elbo", "frozen_evidence"  # of the joints of frozen encoders
PARTS = "matrix", "left_out"  # of a row, which have measures by name

# Terms that do not compare by themselves, and why.
SCALED = "changes when z is rescaled: compare sums of alignment and entropy"
ON_SPHERE = "one part of a sum, on the sphere: compare the sum"
MARKS = {"gaussian_alignment": SCALED, "gaussian_entropy": SCALED}
MARKS |= {"student_alignment": SCALED, "kernel_entropy": SCALED}
MARKS |= {"nearest_entropy": SCALED, "spherical_alignment": ON_SPHERE}
MARKS |= {"spherical_entropy": ON_SPHERE}

RISING = 0.1  # nats per element of x: a larger rise at the end is no convergence
LINE_WIDTH = 120
INVARIANT = "what does not move when z is rescaled; (standard error of last digits)"


class Comparison:
    """The results of `compare`: terms, scores and seconds of each method.

    Attributes:
        data: The name of the data set.
        seed: The seed of the views and of all draws.
        methods: For each name ``{"terms": …, "scores": …, "matrix": …, "errors": …,
            "left_out": …}``, and ``"seconds"`` where they are known. `errors` are
            standard errors by the names of the other entries; `left_out` says why an
            entry of the matrix is missing. ``"decoder"`` has the likelihood of the
            decoder fitted afterwards, and how much log p(x|z) of held-out items still
            rose in the last quarter of its fit, in nats per element of x. With
            ``compare(evidence=…)`` ``"implied"`` says the same of the joint fitted to
            the frozen encoder, with its dimension, steps, test items, and how many have
            a Pareto k̂ above 0.7; ``"curve"`` has its ELBO by epoch, see `curves`.
    """

    def __init__(self, data: str, seed: int, methods: dict[str, Row]) -> None:
        self.data, self.seed, self.methods = data, seed, methods

    @property
    def table(self) -> "pandas.DataFrame":
        """One row for each method, terms in nats per item; NaN where undefined."""
        rows = {
            name: {k: v for k, v in row["terms"].items() if k in TERM_COLUMNS}
            | row["scores"]
            | {"seconds": row.get("seconds", math.nan)}
            for name, row in self.methods.items()
        }
        table = _frame(rows)
        return table.reindex(columns=[*COLUMNS, *table.columns.difference([*COLUMNS])])

    @property
    def matrix(self) -> "pandas.DataFrame":
        r"""One row for each method, one column for each quantity without a gauge.

        None of them changes when z is rescaled or rotated. The columns are, with two
        views in nats per item,

        ========================  ==================================================
        log_det                   Gaussian alignment + log-determinant entropy
        gaussian_kernel           Gaussian alignment + kernel density entropy
        gaussian_nearest          Gaussian alignment + nearest-neighbour entropy
        student_nearest           Student-t alignment + nearest-neighbour entropy
        spherical_kernel          von Mises-Fisher alignment + kernel density entropy
        info_nce                  lower bound on I(z; z'), at most log n
        gaussian_information      I(z; z') of Gaussians
        nearest_information       I(z; z') by nearest neighbours
        decoded                   E log p(x|z) by a decoder fitted afterwards
        frozen_elbo               ELBO of a joint fitted to the frozen encoder
        frozen_evidence           log p(x_1, …, x_V) of that joint, refined
        effective_rank            of the test items, in dimensions
        view_distance             squared, of directions (the less, the closer)
        uniformity                Wang and Isola's, of directions (less is better)
        ========================  ==================================================

        and each has a column of its standard error, with the suffix ``_se``. Those of
        frozen encoders are there with ``compare(evidence=…)`` only.
        """
        methods = self.methods.values()
        known = {
            name for row in methods for part in PARTS for name in row.get(part, {})
        }
        listed = [n for n in MATRIX_COLUMNS if n in known or n not in FROZEN]
        rows: dict[str, dict[str, float]] = {}
        for name, row in self.methods.items():
            values, errors = row.get("matrix", {}), row.get("errors", {})
            rows[name] = {}
            for column in listed:
                rows[name][column] = values.get(column, math.nan)
                rows[name][f"{column}_se"] = errors.get(column, math.nan)
        columns = [f"{name}{end}" for name in listed for end in ("", "_se")]
        return _frame(rows).reindex(columns=columns)

    @property
    def curves(self) -> "dict[str, pandas.DataFrame]":
        """The learning curves of the joints of frozen encoders, by method.

        ELBO of the training items, ``value``, and of a fifth of them that was held out,
        ``valid_value``, in nats per item, by epoch; `plots.learning_curves` draws them.
        Without ``compare(evidence=…)`` there are none.
        """
        import pandas

        rows = self.methods.items()
        curves = {name: row["curve"] for name, row in rows if "curve" in row}
        return {k: pandas.DataFrame(c).set_index("epoch") for k, c in curves.items()}

    def __str__(self) -> str:
        if not self.methods:
            return f"no methods compared on {self.data}"
        names, (main, matrix) = [*self.methods], self._columns()
        text = "\n\n".join([_aligned(names, main), *self._notes()])
        return f"{text}\n\n{INVARIANT}\n{_aligned(names, matrix)}" if matrix else text

    __repr__ = __str__

    def _repr_html_(self) -> str:
        names, (main, matrix) = [*self.methods], self._columns()
        beside = f"<p>{INVARIANT}</p>{_html(names, matrix)}" if matrix else ""
        notes = "".join(f"<p>{escape(note)}</p>" for note in self._notes())
        return _html(names, main) + notes + beside

    def _columns(self) -> tuple[Cells, Cells]:
        """The columns of the main table and of the matrix: two title rows, then cells.

        Those that no method has are left out.
        """
        table, matrix = self.table, self.matrix
        main = {
            name: [*title, *self._cells(name)]
            for name, title in COLUMNS.items()
            if table[name].notna().any() or name in self._left_out()
        }
        beside = {
            name: [*title, *map(_with_error, matrix[name], matrix[f"{name}_se"])]
            for name, title in MATRIX_COLUMNS.items()
            if name in matrix
            and name != "effective_rank"
            and matrix[name].notna().any()
        }
        return main, beside

    def _left_out(self) -> dict[str, str]:
        """The columns of the main table that are left out, with the reason."""
        rows = (row.get("left_out", {}) for row in self.methods.values())
        return {k: why for row in rows for k, why in row.items() if k in COLUMNS}

    def _notes(self) -> list[str]:
        reasons = dict.fromkeys(
            why
            for name, why in self._left_out().items()
            if name == "elbo" and not why.startswith(FAILED)
        )
        notes = [f"ELBO and reconstruction left out: {why}" for why in reasons]
        notes += self._failures()
        fits = {
            k: row["decoder"] for k, row in self.methods.items() if "decoder" in row
        }
        used = dict.fromkeys(fit["likelihood"] for fit in fits.values())
        notes += [f"log p(x|z) decoder: fitted afterwards with {name}" for name in used]
        if rising := [name for name, fit in fits.items() if fit["rise"] > RISING]:
            notes.append(
                f"log p(x|z) decoder: not converged for {', '.join(rising)}; it still "
                f"rose by more than {RISING} nats per element of x in the last quarter "
                "of the fit: rescale the items, or compare under a likelihood of theirs"
            )
        return notes + self._frozen_notes()

    def _frozen_notes(self) -> list[str]:
        """What was fitted to the frozen encoders, and how far to trust it."""
        rows, said = self.methods.items(), "frozen ELBO, log p(x)"
        fits = {name: row["implied"] for name, row in rows if "implied" in row}
        notes = [
            f"{said}: one joint for all encoders, with {likelihood}, fitted in {steps} "
            f"steps; of {items} test items, all views of each"
            for likelihood, steps, items in dict.fromkeys(
                (fit["likelihood"], fit["steps"], fit["items"]) for fit in fits.values()
            )
        ]
        if bad := {k: n for k, fit in fits.items() if (n := fit["unreliable"])}:
            listed = ", ".join(f"{name} {number}" for name, number in bad.items())
            notes.append(
                f"frozen log p(x): Pareto k̂ is above 0.7 for some items, {listed}: "
                "a lower bound there"
            )
        if rising := [name for name, fit in fits.items() if fit["rise"] > RISING]:
            notes.append(
                f"{said}: not converged for {', '.join(rising)}; the ELBO still rose "
                f"by more than {RISING} nats per element of x in the last quarter of "
                "the fit: take more steps"
            )
        missing: dict[str, list[str]] = {}
        for name, row in rows:
            why = row.get("left_out", {}).get("frozen_elbo", FAILED)
            if not why.startswith(FAILED):
                missing.setdefault(why, []).append(name)
        notes += [
            f"{said} of {', '.join(names)} left out: {why}"
            for why, names in missing.items()
        ]
        return notes

    def _failures(self) -> list[str]:
        """Why measures failed, a line for each method and reason."""
        lines = []
        for name, row in self.methods.items():
            failed: dict[str, list[str]] = {}
            for column, why in row.get("left_out", {}).items():
                if why.startswith(FAILED) and column in COLUMNS | MATRIX_COLUMNS:
                    failed.setdefault(why, []).append(column)
            for why, columns in failed.items():
                lines.append(f"{name}: {', '.join(columns)} {why}")
        return lines

    def _cells(self, name: str) -> list[str]:
        """A column of the main table; a difference with its paired standard error."""
        column = self.table[name]
        if name != "few_label_gain":
            return [_number(value, DECIMALS.get(name, 2)) for value in column]
        errors = (row.get("errors", {}).get(name, 0.0) for row in self.methods.values())
        return list(map(_with_error, column, errors))

    def to_json(self, path: str | PathLike[str] | None = None) -> str:
        """The comparison as JSON, also written to `path` if it is given.

        ``"marks"`` says of some terms why they do not compare by themselves.
        """
        content = {"data": self.data, "seed": self.seed, "marks": MARKS}
        content["methods"] = self.methods
        text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
        if path is not None:
            write(path, text + "\n")
        return text

    @classmethod
    def from_json(cls, path: str | PathLike[str]) -> "Comparison":
        """Read what `to_json` wrote.

        Raises:
            FileNotFoundError: No such file.
            ValueError: A damaged file.
        """
        path = Path(path)
        with guarded(path, "Comparison.to_json writes it", "compare once more"):
            content = json_of(path)
            found = cls(content["data"], content["seed"], content["methods"])
            if type(found.data) is not str or type(found.seed) is not int:
                raise ValueError("data and seed are no name and number")
            check_rows(found.methods)
        return found


# Parts of a row that are numbers by name; others are in words as well.
NUMBERS = ("terms", "scores", "matrix", "errors", "seconds")


def check_rows(methods: Mapping[str, Row]) -> None:
    """Raise an error for rows that are no measurements."""
    for name, row in methods.items():
        for part, each in row.items():
            numbers = {part: each} if part == "seconds" else each
            if part == "curve":
                _check_curve(name, each)
                continue
            kinds = (int, float) if part in NUMBERS else (str, int, float, NoneType)
            if not all(type(x) in kinds for x in numbers.values()):
                raise ValueError(f"{part} of {name} is of another kind")
        if not {"terms", "scores"} <= row.keys():
            raise ValueError(f"{name} has no terms or no scores")


def _check_curve(name: str, columns: Mapping[str, list[float]]) -> None:
    """Raise an error for a learning curve that is no table of numbers."""
    lengths = {len(columns[column]) for column in ("epoch", "value", "valid_value")}
    kinds = {type(x) for column in columns.values() for x in column}
    if lengths != {len(columns["epoch"])} or not kinds <= {int, float}:
        raise ValueError(f"the curve of {name} is none")


def _frame(rows: Mapping[str, Mapping[str, float]]) -> "pandas.DataFrame":
    import pandas

    # from_dict of pandas before 3 sorts rows by the first column that they have.
    return pandas.DataFrame([*rows.values()], index=[*rows], dtype=float)


def _number(value: float, digits: int) -> str:
    return "–" if math.isnan(value) else f"{value:.{digits}f}"


def _with_error(value: float, error: float) -> str:
    """The value with the error of its last digits: 1.23(4) is 1.23 ± 0.04."""
    if not (math.isfinite(value) and 0 < error < math.inf):
        return _number(value, 2)
    digits, power = places(value, error)
    shown, last = (f"{x / 10.0**power:.{digits}f}" for x in (value, error))
    last = last.replace(".", "").lstrip("0")
    return f"{shown}({last})" + (f"e{power:+03d}" if power else "")


def _html(names: list[str], columns: Cells) -> str:
    """An HTML table; the first two cells of a column are its title."""
    titles = [f"{a} {b}".strip() for a, b, *_ in columns.values()]
    rows = [["", *titles]]
    for i, name in enumerate(names, start=2):
        rows.append([name, *(column[i] for column in columns.values())])
    lines = []
    for tag, (first, *rest) in zip(["th"] + ["td"] * len(names), rows, strict=True):
        others = "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in rest)
        lines.append(f"<tr><th>{escape(first)}</th>{others}</tr>")
    return f"<table>{''.join(lines)}</table>"


def _aligned(names: list[str], columns: Cells) -> str:
    """Columns under titles of two lines, in blocks of at most `LINE_WIDTH`."""
    left = max(map(len, names)) + 1
    blocks: list[list[str]] = []
    for cells in columns.values():
        width = max(map(len, cells)) + 1
        if not blocks or len(blocks[-1][0]) + width > LINE_WIDTH:
            blocks.append([name.ljust(left) for name in ("", "", *names)])
        blocks[-1] = [
            line + cell.rjust(width)
            for line, cell in zip(blocks[-1], cells, strict=True)
        ]
    shown = ([line for line in block if line.strip()] for block in blocks)
    return "\n\n".join("\n".join(lines) for lines in shown)
