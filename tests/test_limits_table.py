"""The table of limits: each class declares its place, docstrings say the rest."""

import csv
import importlib
import inspect
import io
import json
import math
import re
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import nn

import probssl as ps
from probssl import limits
from probssl.limits import _place, _table
from probssl.limits._place import Conditional, Content, Information, Place

TESTS = Path(__file__).parent
TABLE = limits.table()
METHODS = [  # all but base classes and parts, whose files begin with an underscore
    name
    for name in limits.__all__
    if not getattr(limits, name).__module__.rpartition(".")[2].startswith("_")
]


def docstring(name: str) -> str:
    module = importlib.import_module(getattr(limits, name).__module__)
    return inspect.getdoc(module) or ""


def test_there_is_a_row_for_each_method_that_its_class_declares_itself():
    assert {row.name for row in TABLE} == set(METHODS)
    assert len(TABLE) == len(METHODS) == len({row.name for row in TABLE})
    assert all(isinstance(vars(getattr(limits, n))["place"], Place) for n in METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_the_theorem_of_a_row_is_a_test(name):
    row = TABLE[name]
    found = [
        path.name
        for path in sorted(TESTS.glob("test_*.py"))
        if re.search(rf"^def {row.test}\(", path.read_text(), re.MULTILINE)
    ]
    assert len(found) == 1 and found[0].startswith("test_limits"), row.theorem


@pytest.mark.parametrize("name", METHODS)
def test_year_reference_and_status_are_those_of_the_docstring(name):
    row, text = TABLE[name], " ".join(docstring(name).split())
    paper = f"{row.authors}, {row.year}" if row.authors else str(row.year)
    assert f"{row.title} ({paper})" in text and row.link in text
    status = text.partition("Status: ")[2]
    assert row.status and status.startswith(row.status.split(", ")[0])
    assert all(word in status for word in row.status.split(", "))
    assert row.dropped and row.dropped.split("; ")[0] in status


@pytest.mark.parametrize("name", METHODS)
def test_a_method_stands_where_its_choices_fit_together(name):
    row = TABLE[name]
    assert bool(row.cells) != issubclass(getattr(limits, name), limits._base.Extension)
    assert all(name in TABLE.grid[cell] for cell in row.cells)


@pytest.mark.parametrize("name", METHODS)
def test_the_conditional_of_a_row_is_that_of_the_choices_of_its_docstring(name):
    words = {"Gaussian": "N(", "von Mises-Fisher": "Mises-Fisher", "absent": ""}
    words |= {"Student-t": "Student's t", "categorical channel": "channel"}
    text = docstring(name).partition("The choices: ")[2].partition("\n\n")[0]
    text = " ".join(text.split())
    for _, conditional, _ in TABLE[name].cells:
        said = words[conditional] in text or conditional in text
        assert said or "any prior" in text or name in ("SimVAE", "MoCo"), conditional


def test_cells_are_all_on_the_axes_and_either_empty_or_not():
    axes = (_place.CONTENTS, _place.CONDITIONALS, _place.ENTROPIES)
    for cell in TABLE.grid:
        for value, axis in zip(cell, axes, strict=True):
            assert value in {choice.value for choice in axis}
    filled = {cell for row in TABLE for cell in row.cells}
    assert filled | set(TABLE.empty) == set(TABLE.grid)
    assert not filled & set(TABLE.empty)
    assert ("flat", "Gaussian", "log-determinant") in filled
    assert ("flat", "Student-t", "nearest neighbour") in TABLE.empty


@pytest.mark.parametrize(
    "cell",
    [
        ("flat", "von Mises-Fisher", "kernel density"),  # not on the sphere
        ("flat", "Gaussian", "shares of components"),  # of which there are none
        ("one of K", "categorical channel", "log-determinant"),  # no density of z
        ("absent", "Gaussian", "kernel density"),  # nothing of x in it
    ],
)
def test_cells_that_make_no_sense_are_not_in_the_grid(cell):
    assert cell not in TABLE.grid


PRIORS = {
    ("Gaussian", "Gaussian"): lambda: ps.priors.Gaussian(3, 0.5),
    ("flat", "Student-t"): lambda: ps.priors.StudentT(3, 0.5, 5.0, math.inf),
    ("one of K", "Gaussian"): lambda: ps.priors.Mixture(3, 4, 0.5),
}
ESTIMATES = {
    "kernel density": ps.entropies.KernelDensity,
    "log-determinant": ps.entropies.LogDeterminant,
    "nearest neighbour": ps.entropies.NearestNeighbour,
}


@pytest.mark.parametrize(
    "pair, estimate",
    [
        pair_and_estimate
        for pair_and_estimate in product(PRIORS, ESTIMATES)  # a component has no kernel
        if pair_and_estimate != (("one of K", "Gaussian"), "kernel density")
    ],
)
def test_an_embedding_fills_an_empty_cell(pair, estimate):
    assert (*pair, estimate) in TABLE.empty
    made = limits.Embedding(nn.Identity(), PRIORS[pair](), ESTIMATES[estimate]())
    z = torch.randn(9, 2, 3, requires_grad=True)
    value = sum(made(ps.Batch(z)))
    value.backward()
    assert value.isfinite() and z.grad.abs().sum() > 0


def test_a_choice_has_words_of_its_own_and_the_same_value():
    own = _place.MOVING("an EMA encoder's view")
    assert str(own) == "an EMA encoder's view" and own.value == _place.MOVING.value
    assert type(own) is Content and str(_place.MOVING) == "EMA or queue"


def test_several_contents_have_their_conditionals_in_turn():
    y = (_place.GAUSSIAN, _place.UNIFORM)
    k = (_place.NORMAL, _place.VMF)
    place = Place(2000, y, k, _place.DECODER, "A B-c is 1/2")
    assert place.test == "test_a_b_c_is_1_2"
    assert list(place.cells()) == [
        ("Gaussian", "Gaussian", "p(x|z)"),
        ("uniform on the sphere", "von Mises-Fisher", "p(x|z)"),
    ]
    extension = replace(place, conditional=Conditional("its base's"))
    assert not list(extension.cells())
    three = replace(place, information=3 * (Information("p(x|z)"),))
    with pytest.raises(ValueError, match="argument"):
        list(three.cells())


def test_a_paper_is_found_by_its_year_or_asked_for():
    text = "X: x.\n\nA (b)\nTitle (Ann, 2001), a source\nhttps://a\nC (2002)\nhttps://c"
    assert _table.reference(text, 2001) == ("A (b) Title", "Ann", "https://a")
    assert _table.reference(text, 2002) == ("C", "", "https://c")
    with pytest.raises(ValueError, match="expected a paper of 2003"):
        _table.reference(text, 2003)


def test_without_docstrings_there_is_no_table(monkeypatch):
    monkeypatch.setattr(limits.vicreg, "__doc__", None)
    with pytest.raises(RuntimeError, match="run Python without -OO"):
        limits.table()


def test_the_table_is_text_markdown_json_and_csv():
    text = str(TABLE)
    assert text == repr(TABLE) and max(map(len, text.split("\n"))) < 160
    assert "\nflat; Gaussian\n    log-determinant: LogDet 2026 (identity)\n" in text
    assert "empty: kernel density, collision" in " ".join(text.split())
    page = TABLE.to_markdown()
    assert page == TABLE._repr_markdown_() and "x|z" not in page
    for table in page.split("\n\n"):
        assert len({line.count("|") for line in table.splitlines()}) == 1
    found = json.loads(TABLE.to_json())
    assert [row["name"] for row in found["rows"]] == [row.name for row in TABLE]
    assert [tuple(cell) for cell in found["empty"]] == TABLE.empty
    lines = list(csv.DictReader(io.StringIO(TABLE.to_csv())))
    assert [line["information"] for line in lines] == [r.information for r in TABLE]
    with pytest.raises(KeyError, match="name of a method, got 'vicreg'"):
        TABLE["vicreg"]


def test_rows_go_by_the_axes_and_extensions_come_last():
    names = [row.name for row in TABLE]
    assert names[0] == "SimVAE" and set(names[-2:]) == {"DSA", "PID"}
    assert names.index("SimCLR") < names.index("LogDet") < names.index("LeJEPA")
