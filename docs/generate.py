"""Write what the documentation generates: the table of limits, and pages of code.

The table of limits is `limits.table`, which each class declares. ``python
docs/generate.py`` writes it into docs/concepts.md, its main rows into README.md, and
with papers, theorems, figures and the grid into docs/table.md. The build of the site
(`conf.py`) writes it into docs/methods, beside a page for each file of probssl/limits,
for the API, for the notebooks and for their pictures. Git ignores all that the build
writes.
"""

import ast
import base64
import json
import re
import shutil
from importlib import import_module
from inspect import isclass, isfunction, ismodule
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from probssl import limits
from probssl.limits._table import markdown

DOCS = Path(__file__).parent
ROOT = DOCS.parent
LIMITS = ROOT / "probssl" / "limits"
START = "<!-- limits: written by docs/generate.py -->"
END = "<!-- end of limits -->"

# Public, though not in `probssl.__all__`.
MORE = (
    "affinities",
    "bounds",
    "calibration",
    "distributions",
    "hyper",
    "information",
    "lightning",
    "maps",
    "posterior",
    "probing",
    "shifts",
    "special",
)
RETURNED = ("Comparison", "History")
# The rows that README shows.
MAIN = (
    *("SimVAE", "VAE", "SimCLR", "CLIP", "MoCo", "TSimCLR"),
    *("NeighbourEmbedding", "LogDet", "VICReg", "BarlowTwins", "WMSE", "BYOL"),
    *("SimSiam", "SwAV", "DeepClustering", "DINO", "DenoisingAutoencoder"),
    *("DSA", "PID"),
)
CLOSE = "<!-- end of what docs/generate.py writes -->"
# Figures of models/digits.py and limits_mnist.py in the table, and their decimals.
MEASURED = {"info_nce": 1, "linear_probe": 3, "knn": 3, "seconds": 0}
# Figures of models/table_of_limits.py: their titles and decimals.
ALIKE = {
    "alignment": ("alignment, nats", 1),
    "entropy": ("log-determinant, nats", 1),
    "value": ("sum, nats", 1),
    "probe": ("linear probe", 3),
    "knn": ("5-NN", 3),
    "seconds": ("fit, s", 0),
}
INTRO = (
    "With one encoder, z of 10 dimensions and one number of steps for all (`python "
    "models/table_of_limits.py`): Gaussian alignment at its maximum-likelihood scale, "
    "log-determinant and their sum, which does not change when z is rescaled. A row "
    "that names no class is an empty cell, built from `limits.Embedding`, in the last "
    "with an entropy of the script's own."
)
RECIPES = {"CLIP": "InfoNCE"}  # by another name there


def source_of(objective: str) -> Path:
    """The file of probssl/limits that defines an objective."""
    module = getattr(import_module("probssl.limits"), objective).__module__
    return LIMITS / f"{module.rpartition('.')[2]}.py"


def docstring(path: Path) -> str:
    return ast.get_docstring(ast.parse(path.read_text())) or ""


def limits_table(link: bool = False, main: bool = False) -> str:
    """The table of limits in Markdown; methods of the same choices share a row.

    Arguments:
        link: Whether to link each objective to its page.
        main: Whether to leave out the rows that README does not show.
    """
    found: dict[tuple[str, ...], list[str]] = {}
    for row in limits.table():
        if row.name in MAIN or not main:
            choices = f"{row.content}; {row.conditional}"
            cells = (choices, row.information, row.status)
            page = f"[`{row.name}`]({source_of(row.name).stem}.rst)"
            found.setdefault(cells, []).append(page if link else f"`{row.name}`")
    header = ["objective", "p(y); p(z|y)", "keeps z informative", "status"]
    return markdown(header, [[", ".join(names), *c] for c, names in found.items()])


def with_table(page: str, main: bool = False) -> str:
    """A page with the present table of limits; README shows the main rows."""
    head, _, rest = page.partition(START)
    return f"{head}{START}\n{limits_table(main=main)}\n{END}{rest.partition(END)[2]}"


def results(name: str) -> dict[str, Any]:
    """A file of benchmarks/results; empty if it is not there."""
    path = ROOT / "benchmarks" / "results" / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else {}


def measured() -> dict[str, dict[str, dict[str, list[float]]]]:
    """Mean and standard deviation over seeds, by data, method and figure."""
    mnist: dict[str, dict[str, list[float]]] = {}
    for row in results("limits_mnist")["rows"]:
        known = mnist.setdefault(row["method"], {})
        for name in MEASURED:
            value = row["CPU seconds of the fit" if name == "seconds" else name]
            known.setdefault(name, []).append(value)
    spread = {
        method: {k: [mean(x), stdev(x)] for k, x in known.items() if None not in x}
        for method, known in mnist.items()
    }
    return {"digits": results("digits")["mean and sd"], "MNIST": spread}


def measured_table() -> str:
    """Each method's figures on digits and on MNIST; a dash where there are none."""
    units = ["I(z; z′), nats", "linear probe", "5-NN", "fit, s"]
    found, lines = measured(), []
    for row in limits.table():
        cells = [f"`{row.name}`"]
        for data in found.values():
            own = data.get(RECIPES.get(row.name, row.name), {})
            for figure, digits in MEASURED.items():
                middle, sd = own.get(figure, (None, None))
                known = middle is not None
                cells.append(f"{middle:.{digits}f} ± {sd:.{digits}f}" if known else "–")
        lines.append(cells)
    titles = [f"{data}: {unit}" for data in found for unit in units]
    return markdown(["objective", *titles], lines)


def alike_table() -> str:
    """Rows and empty cells fitted alike; nothing where they are not measured."""
    parts = [INTRO]
    for data in ("digits", "mnist"):
        found, lines = results(f"table_{data}").get("rows", {}), []
        for name, row in found.items():
            figures = (
                f"{row[k][0]:.{n}f} ± {row[k][1]:.{n}f}" for k, (_, n) in ALIKE.items()
            )
            lines.append([f"`{name}`" if name in limits.__all__ else name, *figures])
        if lines:
            seeds = ", ".join(sorted({str(row["seeds"]) for row in found.values()}))
            title = [f"{data}, {seeds} seeds", *(words for words, _ in ALIKE.values())]
            parts.append(markdown(title, lines))
    return "\n\n".join(parts) if len(parts) > 1 else ""


def theorem_file(test: str) -> Path:
    """The file of tests/ that has a test."""
    for path in sorted((ROOT / "tests").glob("test_*.py")):
        if re.search(rf"^def {test}\(", path.read_text(), re.MULTILINE):
            return path
    raise ValueError(f"expected a test {test} in tests/, got none; write it")


def papers_table() -> str:
    """The paper of each method, its choices, and the file of its derivation."""
    rows = []
    for row in limits.table():
        paper = f"{row.authors or row.title}, {row.year}"
        choices = f"{row.content}; {row.conditional}"
        cells = [f"[{paper}]({row.link})", choices, row.information, row.status]
        rows.append([linked(row.name), *cells])
    title = ["objective", "paper", "p(y); p(z|y)", "keeps z informative", "status"]
    return markdown(title, rows)


def linked(name: str) -> str:
    """A method and the way to the file of its derivation; `conf.py` has its page."""
    return f"[`{name}`](../probssl/limits/{source_of(name).name})"


def theorems_table() -> str:
    """What is proved of each method, and what it drops."""
    rows = []
    for row in limits.table():
        file = theorem_file(row.test).name
        proof = f"[{row.theorem}](../tests/{file})"
        rows.append([f"`{row.name}`", proof, row.dropped])
    return markdown(["objective", "theorem", "drops"], rows)


def empty_cells() -> str:
    """The cells without a method, a line for each p(y) and p(z|y)."""
    lines = []
    for (content, conditional), cells in limits.table().by_pair().items():
        empty = [name for name, methods in cells.items() if not methods]
        if empty:
            lines.append(f"- {content}; {conditional}: {', '.join(empty)}")
    return "\n".join(lines).replace("x|z", "x given z")


def with_parts(page: str) -> str:
    """docs/table.md with the present tables between its marks."""
    table = limits.table()
    grid = table.to_markdown().split("\n\n")[1]
    filled = len(table.grid) - len(table.empty)
    count = f"{len(table)} methods fill {filled} of {len(table.grid)} cells."
    parts = {
        "papers": papers_table(),
        "theorems": theorems_table(),
        "measured": "\n\n".join(filter(None, (measured_table(), alike_table()))),
        "grid": f"{count}\n\n{grid}",
        "empty": empty_cells(),
    }
    for name, part in parts.items():
        start = f"<!-- {name}: written by docs/generate.py -->"
        head, mark, rest = page.partition(start)
        page = f"{head}{mark}\n\n{part}\n\n{CLOSE}{rest.partition(CLOSE)[2]}"
    return page


def with_grid(notebook: dict[str, Any]) -> dict[str, Any]:
    """Notebook 2 with the present table as the output of its last code cell."""
    cell = [c for c in notebook["cells"] if c["cell_type"] == "code"][-1]
    table = limits.table()
    forms = {"text/markdown": table.to_markdown(), "text/plain": str(table)}
    data = {kind: text.splitlines(keepends=True) for kind, text in forms.items()}
    cell["outputs"][0]["data"] = data
    return notebook


def heading(title: str) -> str:
    return f"{title}\n{'=' * len(title)}\n\n"


def write_methods(folder: Path) -> None:
    """A page for each file of probssl/limits, and their table."""
    folder.mkdir()
    names = []
    for path in sorted(LIMITS.glob("[a-z]*.py")):
        page = heading(docstring(path).split(":")[0])
        page += f".. automodule:: probssl.limits.{path.stem}\n   :members:\n"
        (folder / f"{path.stem}.rst").write_text(page)
        names.append(path.stem)
    bases = import_module("probssl.limits")
    page = heading("Base classes and parts")
    for name in bases.__all__:
        if source_of(name).stem.startswith("_"):
            kind = "class" if isclass(getattr(bases, name)) else "function"
            members = "   :members:\n" * (kind == "class")
            page += f".. auto{kind}:: probssl.limits.{name}\n{members}\n"
    (folder / "bases.rst").write_text(page)
    entries = "\n".join(["bases", *names])
    (folder / "index.md").write_text(
        "# Methods\n\n"
        "Each page is the docstring of one file of `probssl/limits`: the papers, the "
        "choices, the limit that is taken, and its status. A theorem in "
        "`tests/test_limits*.py` proves each row. [Concepts](../concepts.md) says what "
        "the columns mean.\n\n"
        f"{limits_table(link=True)}\n\n"
        f"```{{toctree}}\n:maxdepth: 1\n\n{entries}\n```\n"
    )


def write_api(folder: Path) -> None:
    """A page for the top level of the package, and one for each submodule."""
    folder.mkdir()
    package = import_module("probssl")
    top, modules = heading("probssl"), []
    for name in (*package.__all__, *RETURNED):
        value = getattr(package, name)
        if ismodule(value):
            modules.append(name)
        elif isclass(value):
            top += f".. autoclass:: probssl.{name}\n   :members:\n\n"
        elif isfunction(value):
            top += f".. autofunction:: probssl.{name}\n\n"
    modules = sorted({*modules, *MORE})
    above = ", ".join((*package.__all__, *RETURNED))
    for name in modules:
        page = f"{heading(f'probssl.{name}')}.. automodule:: probssl.{name}\n"
        if name != "limits":  # has its own pages
            page += "   :members:\n   :imported-members:\n"
            page += f"   :exclude-members: {above}\n"
        (folder / f"{name}.rst").write_text(page)
    (folder / "top.rst").write_text(top)
    entries = "\n".join(("top", *modules))
    (folder / "index.md").write_text(
        "# API reference\n\nThe docstrings of what `import probssl as ps` offers, and "
        "of its public submodules.\n\n"
        f"```{{toctree}}\n:maxdepth: 1\n\n{entries}\n```\n"
    )


def write_notebooks(folder: Path) -> None:
    """Copies of the notebooks with their committed output, and their pictures."""
    folder.mkdir()
    gallery = (
        "# Gallery\n\nPictures of the [notebooks](notebooks/index.md), as committed.\n"
    )
    names = []
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        shutil.copy(path, folder)
        names.append(path.stem)
        cells = json.loads(path.read_text())["cells"]
        title = "".join(cells[0]["source"]).splitlines()[0].lstrip("# ")
        gallery += f"\n## [{title}](notebooks/{path.name})\n\n"
        pictures = [
            output["data"]["image/png"]
            for cell in cells
            for output in cell.get("outputs", [])
            if "image/png" in output.get("data", {})
        ]
        for i, picture in enumerate(pictures):
            target = folder / f"{path.stem}-{i}.png"
            target.write_bytes(base64.b64decode(picture))
            gallery += f"![{title}, picture {i + 1}](notebooks/{target.name})\n"
    (DOCS / "gallery.md").write_text(gallery)
    entries = "\n".join(names)
    (folder / "index.md").write_text(
        "# Notebooks\n\nFrom `notebooks/`, with their committed output.\n\n"
        f"```{{toctree}}\n:maxdepth: 1\n\n{entries}\n```\n"
    )


def write_pages() -> None:
    """All generated pages of the site, from an empty start."""
    for name, write in (
        ("methods", write_methods),
        ("api", write_api),
        ("notebooks", write_notebooks),
    ):
        shutil.rmtree(DOCS / name, ignore_errors=True)
        write(DOCS / name)


def as_rst(lines: list[str]) -> None:
    """Change a docstring in place to what Sphinx reads without loss.

    Lines with addresses stay lines; outside of formulas ``|`` and a last ``_`` stay
    what they are.
    """
    math, table = None, False  # the indentation of a formula; within a table
    for i, line in enumerate(lines):
        table = bool(line.strip()) and (table or bool(re.match(r" *=+ +=", line)))
        indent = len(line) - len(line.lstrip())
        if math is not None and line.strip() and indent <= math:
            math = None
        if ".. math::" in line:
            math = indent
        if math is None and not table:
            parts = line.split("`")  # every other one is code or a formula
            parts[::2] = [part.replace("|", r"\|") for part in parts[::2]]
            line = re.sub(r"^(Arguments) of .+:$", r"\1:", "`".join(parts))
            lines[i] = re.sub(r"(?<=\s)(\w+)_(?=\s)", r"\1\\_", line)
    for i, line in enumerate(lines):
        if re.match(r"https?://", line):
            first = i
            while first > 0 and lines[first - 1].strip() and lines[first - 1][0] != "|":
                first -= 1
            lines[first:i] = [f"  {lines[j]}" for j in range(first, i)]
            lines[first] = f"| {lines[first].lstrip()}"
            lines[i] = f"| {line}"


if __name__ == "__main__":
    for path in (ROOT / "README.md", DOCS / "concepts.md"):
        path.write_text(with_table(path.read_text(), main=path.stem == "README"))
    path = DOCS / "table.md"
    path.write_text(with_parts(path.read_text()))
    path = ROOT / "notebooks" / "2-limits.ipynb"
    notebook = with_grid(json.loads(path.read_text()))
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")
