"""Imports point inwards, none in a circle, and heavy libraries are loaded lazily."""

import ast
import os
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import probssl as ps

ROOT = Path(__file__).parent.parent / "probssl"
# What each part of the package may import, besides the edge: `arguments`, `arrays` and
# `reading`, and `bars`.
INWARDS = {
    "estimates": "",
    "plots": "estimates",
    "evaluation": "estimates",
    "linear": "estimates",
    "information": "estimates",
    "hyper": "distributions runtime",
    "nn": "covariates runtime",
    "data": "covariates runtime terms",
    "views": "terms",
    "distributions": "runtime special",
    "priors": "covariates distributions hyper nn runtime special",
    "likelihoods": "distributions hyper special",
    "guides": "covariates distributions nn runtime",
    "consistency": "covariates distributions likelihoods nn priors runtime terms",
    "joint": "consistency covariates distributions guides hyper likelihoods nn priors "
    "runtime terms",
    "bounds": "consistency hyper joint likelihoods runtime terms",
    "entropies": "hyper nn priors runtime special",
    "affinities": "runtime special terms",
    "limits": "affinities bounds distributions entropies hyper joint likelihoods nn "
    "priors runtime special terms",
    "train": "data plots runtime terms",
    "posterior": "bounds covariates data distributions estimates evaluation guides "
    "joint likelihoods limits nn priors runtime special terms",
    "calibration": "bounds data distributions joint posterior runtime terms",
}
LEAVES = "arguments arrays bars covariates reading runtime special terms"
ALLOWED = {room: set(names.split()) for room, names in INWARDS.items()}
ALLOWED |= {leaf: set() for leaf in LEAVES.split()}
OUTERMOST = {
    "_arguments",
    "_checksum",
    "_compared",
    "recipes",
    "saving",
    "cli",
    "lightning",
    "maps",
    "shifts",
}
OUTERMOST |= {"compare", "probing", "testing", "__init__"}
COMMAND = "__main__"  # imports the command line alone
LAZY = ("arviz", "matplotlib", "pandas", "sklearn", "scipy", "xarray", "PIL", "zuko")
LAZY += ("sympy",)  # which torch takes half a second to load
LAZY += tuple(f"probssl.{room}" for room in ("linear", "maps", "plots", "testing"))


def room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """The rooms a file takes something from; its own room does not count."""
    depth, rooms = len(path.relative_to(ROOT).parts), set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            assert not any(name.name.startswith("probssl") for name in node.names), path
        if not isinstance(node, ast.ImportFrom) or not node.level:
            assert getattr(node, "module", "") != "probssl", path
            continue
        if node.level == depth:  # from the top of the package
            inside = [node.module] if node.module else [n.name for n in node.names]
            rooms |= {name.split(".")[0] for name in inside}
    return rooms - {room(path)}


FILES = sorted(ROOT.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_inwards(path):
    if room(path) == COMMAND:
        assert imported(path) == {"cli"}
    elif room(path) in OUTERMOST:
        assert "cli" not in imported(path)
    else:
        edge = {"arguments", "arrays", "bars", "reading"}
        assert imported(path) <= ALLOWED[room(path)] | edge


def taken(path: Path) -> set[Path]:
    """The files that a file imports at its top, under TYPE_CHECKING as well."""
    found: set[Path] = set()
    nodes = list(ast.parse(path.read_text()).body)
    for node in nodes:  # grows by the bodies of if and try, not by those of functions
        if isinstance(node, ast.If | ast.Try | ast.With | ast.ClassDef):
            nodes += ast.iter_child_nodes(node)
        if isinstance(node, ast.ImportFrom) and node.level:
            folder = path.parents[node.level - 1]
            base = folder / (node.module or "").replace(".", "/")
            for name in node.names:
                options = (base / f"{name.name}.py", base / name.name / "__init__.py")
                options += (base.with_suffix(".py"), base / "__init__.py")
                found.add(next(option for option in options if option.is_file()))
    return found - {path}


def test_no_file_imports_itself_in_a_circle():
    graph = {path: taken(path) for path in FILES if path != ROOT / "__init__.py"}
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(" <- ".join(str(p.relative_to(ROOT)) for p in error.args[1]))


def test_methods_never_import_one_another():
    for path in (ROOT / "limits").glob("*.py"):
        if path.name != "__init__.py":
            tree = ast.walk(ast.parse(path.read_text()))
            taken = [n for n in tree if isinstance(n, ast.ImportFrom) and n.level == 1]
            assert all(str(n.module).startswith("_") for n in taken), path


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_module_says_what_it_is_and_what_is_public(path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree)
    assigned = (n for n in tree.body if isinstance(n, ast.Assign))
    names = [getattr(t, "id", None) for n in assigned for t in n.targets]
    assert "__all__" in names


def test_the_top_of_the_package_holds_what_a_user_meets():
    assert len(ps.__all__) <= 40 and dir(ps) == sorted(ps.__all__) == ps.__all__
    for name in ps.__all__:
        assert getattr(ps, name).__doc__, name
    listed = {path.stem for path in ROOT.glob("*.py")} | set(os.listdir(ROOT))
    known = {*ps.__all__, *listed, "Comparison", "History"}
    assert {name for name in vars(ps) if name[0] != "_"} <= known  # nothing leaks


def test_submodules_are_reached_as_attributes_and_a_wrong_name_is_refused():
    for path in ROOT.glob("[a-z]*"):
        if path.stem not in ("compare", "lightning", "py"):
            assert getattr(ps, path.stem).__name__ == f"probssl.{path.stem}"
    with pytest.raises(AttributeError, match="no attribute 'nowhere'"):
        ps.nowhere  # noqa: B018
    with pytest.raises(ImportError, match="nowhere"):
        from probssl import nowhere  # noqa: F401
    assert not hasattr(ps, "nowhere.deeper")


def test_compare_is_the_function_and_its_package_is_imported_by_its_name():
    code = "import probssl.compare; from probssl.compare import Comparison; "
    code += "import probssl as ps; assert callable(ps.compare); "
    code += "assert ps.Comparison is Comparison"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_version_is_that_of_the_changelog():
    lines = (ROOT.parent / "CHANGELOG.md").read_text().splitlines()
    assert next(ln for ln in lines if ln[:3] == "## ").split()[1] == ps.__version__


def test_heavy_libraries_are_not_loaded_by_the_import():
    listed = f"[m for m in {LAZY!r} if m in sys.modules]"
    code = f"import sys, torch, pyro; old = {listed}; import probssl; "
    code += f"print(sorted(set({listed}) - set(old)))"
    out = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert out.strip() == "[]"
