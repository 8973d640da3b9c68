"""Where a method stands in the table of limits: its choices on three axes.

A class of this folder says it once, as its class attribute `place`: p(y), p(z|y), what
keeps z informative, the year of its paper and its theorem. `table` takes the rest from
the docstring of the file. A choice is a value of an axis, to which a method may give
words of its own: ``MOVING("an EMA encoder's view")``.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Self

__all__ = ["ABSENT", "AFFINITY", "FLAT", "GAUSSIAN", "MOVING", "ONE_OF_K", "OTHER_VIEW"]
__all__ += ["PREDICTION", "UNIFORM", "CONTENTS", "Content"]
__all__ += ["CHANNEL", "NONE", "NORMAL", "STUDENT", "VMF", "CONDITIONALS"]
__all__ += ["COLLISION", "DECODER", "HEURISTIC", "KERNEL", "LOG_DETERMINANT", "NEAREST"]
__all__ += ["MOMENTS", "SHARES", "SKETCHED", "ENTROPIES"]
__all__ += ["Cell", "Conditional", "Information", "Place", "cells_that_make_sense"]

Cell = tuple[str, str, str]  # a value of each axis


@dataclass(frozen=True)
class Choice:
    """A value of an axis, and a method's words for it."""

    value: str
    words: str = ""

    def __call__(self, words: str) -> Self:
        return replace(self, words=words)

    def __str__(self) -> str:
        return self.words or self.value


class Content(Choice):
    """A choice of p(y)."""


class Conditional(Choice):
    """A choice of p(z|y)."""


class Information(Choice):
    """A choice of what keeps z informative."""


GAUSSIAN, FLAT = Content("Gaussian"), Content("flat")
ONE_OF_K, UNIFORM = Content("one of K"), Content("uniform on the sphere")
OTHER_VIEW, MOVING = Content("the other view"), Content("EMA or queue")
PREDICTION, AFFINITY = Content("a prediction"), Content("affinity")
ABSENT = Content("absent")
CONTENTS = [GAUSSIAN, FLAT, ONE_OF_K, UNIFORM, OTHER_VIEW, MOVING, PREDICTION]
CONTENTS += [AFFINITY, ABSENT]

NORMAL, STUDENT = Conditional("Gaussian"), Conditional("Student-t")
VMF, CHANNEL = Conditional("von Mises-Fisher"), Conditional("categorical channel")
NONE = Conditional("absent")
CONDITIONALS = [NORMAL, STUDENT, VMF, CHANNEL, NONE]

DECODER, KERNEL = Information("p(x|z)"), Information("kernel density")
COLLISION, LOG_DETERMINANT = Information("collision"), Information("log-determinant")
MOMENTS, SKETCHED = Information("second moments"), Information("sketched divergence")
NEAREST, SHARES = Information("nearest neighbour"), Information("shares of components")
HEURISTIC = Information("heuristic")
ENTROPIES = [DECODER, KERNEL, COLLISION, LOG_DETERMINANT, MOMENTS, SKETCHED, NEAREST]
ENTROPIES += [SHARES, HEURISTIC]

DENSITIES = (NORMAL, STUDENT, VMF)
FITS: dict[Content, tuple[Conditional, ...]] = dict.fromkeys(CONTENTS, DENSITIES)
FITS |= {GAUSSIAN: (NORMAL, STUDENT), FLAT: (NORMAL, STUDENT), UNIFORM: (VMF,)}
FITS |= {ONE_OF_K: (*DENSITIES, CHANNEL, NONE), ABSENT: (NORMAL, NONE)}


def makes_sense(y: Content, k: Conditional, information: Information) -> bool:
    """Whether a cell could hold an objective.

    A p(z|y) has the support of its p(y). Components have shares if y is one of K. A
    channel has no density of z to be estimated. Without a content, views share nothing,
    and only a decoder tells z of them.
    """
    if k not in FITS[y]:
        return False
    if y == ABSENT:
        return information == DECODER
    if k in (CHANNEL, NONE):
        return information in (DECODER, SHARES)
    return information != SHARES or y == ONE_OF_K


@dataclass(frozen=True)
class Place:
    """The choices of a method, its year and its theorem.

    Arguments:
        year: That of the paper, by which it is found in the docstring of the file.
        content: p(y), or several, to which conditional and information belong in turn.
        conditional: p(z|y); one for all, or as many as there are contents.
        information: What keeps z informative, likewise.
        theorem: A sentence, the name of the test which proves it in other letters.
    """

    year: int
    content: Content | tuple[Content, ...]
    conditional: Conditional | tuple[Conditional, ...]
    information: Information | tuple[Information, ...]
    theorem: str

    @property
    def test(self) -> str:
        """The name of the test of the theorem."""
        return "test_" + re.sub(r"\W+", "_", self.theorem.lower())

    def words(self) -> tuple[str, str, str]:
        """The three choices as the method calls them."""
        first, second, third = (
            ", ".join(dict.fromkeys(str(choice) for choice in axis))
            for axis in self._axes()
        )
        return first, second, third

    def cells(self) -> Iterator[Cell]:
        """The cells of the grid; none for an extension, which has its base's."""
        axes = self._axes()
        longest = max(map(len, axes))
        columns = [axis * (longest if len(axis) == 1 else 1) for axis in axes]
        for y, k, i in zip(*columns, strict=True):
            if Conditional(k.value) in CONDITIONALS:
                yield y.value, k.value, i.value

    def _axes(self) -> tuple[tuple[Choice, ...], ...]:
        axes = (self.content, self.conditional, self.information)
        return tuple(axis if isinstance(axis, tuple) else (axis,) for axis in axes)


def cells_that_make_sense() -> Iterator[Cell]:
    """All cells that make sense, in the order of the axes."""
    for y, k, i in product(CONTENTS, CONDITIONALS, ENTROPIES):
        if makes_sense(y, k, i):
            yield y.value, k.value, i.value
