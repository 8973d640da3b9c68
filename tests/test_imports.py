"""The picture of the house: imports point inwards, and heavy libraries load lazily."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "probssl"
LEAVES = {"arguments", "arrays", "special", "terms", "plots", "runtime"}
ALLOWED: dict[str, set[str]] = {leaf: set() for leaf in LEAVES} | {
    "estimates": {"arrays"},
    "evaluation": {"arrays", "estimates"},
    "linear": {"arrays", "estimates"},
    "information": {"arrays", "estimates"},
    "hyper": {"runtime"},
    "nn": {"runtime"},
    "data": {"terms"},
    "views": {"terms"},
    "distributions": {"special"},
    "priors": {"distributions", "hyper", "special"},
    "likelihoods": {"hyper"},
    "guides": {"distributions", "nn", "runtime"},
    "joint": {"priors", "likelihoods", "guides", "nn", "runtime", "terms"},
    "bounds": {"hyper", "joint", "runtime", "terms"},
    "entropies": {"hyper", "runtime", "priors", "special"},
    "affinities": {"runtime", "terms"},
    "limits": {
        "affinities",
        "bounds",
        "entropies",
        "hyper",
        "joint",
        "likelihoods",
        "nn",
        "priors",
        "runtime",
        "special",
        "terms",
    },
    "train": {"data", "runtime", "terms"},
    "posterior": {
        "bounds",
        "data",
        "guides",
        "joint",
        "likelihoods",
        "limits",
        "priors",
        "runtime",
        "terms",
    },
    "calibration": {"bounds", "data", "joint", "posterior", "terms"},
}
OUTERMOST = {"compare", "recipes", "saving", "cli", "testing", "lightning", "__init__"}
OUTERMOST |= {"maps", "shifts"}
LAZY = ("arviz", "matplotlib", "pandas", "sklearn", "scipy", "xarray", "PIL", "zuko")


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
    if room(path) in OUTERMOST:
        assert "cli" not in imported(path)
    else:
        assert imported(path) <= ALLOWED[room(path)] | {"arguments"}


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


def test_heavy_libraries_are_not_loaded_by_the_import():
    listed = f"[m for m in {LAZY!r} if m in sys.modules]"
    code = f"import sys, torch, pyro; old = {listed}; import probssl; "
    code += f"print(sorted(set({listed}) - set(old)))"
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert out.stdout.strip() == "[]"
