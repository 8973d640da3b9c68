"""Write what the documentation generates: the table of limits, and pages of code.

``python docs/generate.py`` writes the table of limits into docs/concepts.md, and its
main rows into README.md. The build of the site (`conf.py`) writes it into docs/methods,
beside a page for each file of probssl/limits, for the API, for the notebooks and for
their pictures. Git ignores all that the build writes.
"""

import ast
import base64
import json
import re
import shutil
from importlib import import_module
from inspect import isclass, isfunction, ismodule
from pathlib import Path

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
VMF = "von Mises-Fisher"
# Objectives; p(y); p(z|y); what keeps z informative; status, each part of which the
# docstring of the file has after "Status:" (tests/test_docs.py).
ROWS = [
    (
        "SimVAE",
        "Gaussian, mixture, sphere",
        f"Gaussian, {VMF}",
        "p(x|z)",
        "exact bound",
    ),
    ("VAE", "views independent", "N(0, I)", "p(x|z)", "exact bound"),
    ("SimCLR", "the other view", VMF, "kernel density of z", "identity"),
    ("CLIP", "the other modality", VMF, "kernel density of z", "identity"),
    ("MoCo", "an EMA encoder's view", VMF, "kernel density over a queue", "identity"),
    (
        "NNCLR",
        "a neighbour in a queue",
        VMF,
        "kernel density of predictions",
        "identity",
    ),
    ("SigLIP", "the other view", VMF, "logistic loss of other pairs", "surrogate"),
    (
        "InstanceDiscrimination",
        "one of N images",
        VMF,
        "softmax over images",
        "identity",
    ),
    ("TSimCLR", "the other view", "Student-t", "collision entropy", "identity"),
    (
        "AlignmentUniformity",
        "the other view",
        VMF,
        "collision entropy of each view",
        "identity",
    ),
    (
        "NeighbourEmbedding SNE SymmetricSNE TSNE",
        "a partner from P",
        "any kernel",
        "normaliser of Q",
        "identity",
    ),
    ("LogDet", "flat", "Gaussian", "log-determinant", "identity"),
    ("VICReg", "flat", "Gaussian", "variances, covariances", "surrogate"),
    ("BarlowTwins", "flat", "Gaussian", "squared correlations", "surrogate"),
    ("FroSSL", "flat", "Gaussian", "Frobenius norm of correlations", "surrogate"),
    (
        "LeJEPA",
        "Gaussian, Var(z) = 1",
        "Gaussian",
        "characteristic function of slices",
        "surrogate",
    ),
    (
        "VISReg",
        "Gaussian, Var(z) = 1",
        "Gaussian",
        "moments, quantiles of slices",
        "surrogate, heuristic",
    ),
    ("WMSE", "flat", "Gaussian", "whitening", "identity, surrogate"),
    ("MMCR", "another view", VMF, "nuclear norm of centroids", "surrogate"),
    ("TiCo", "an EMA encoder's view", VMF, "second moments", "surrogate"),
    ("BYOL SimSiam", "a prediction", VMF, "predictor, stop-gradient", "heuristic"),
    (
        "SwAV DeepClustering",
        "one of K",
        VMF,
        "equal shares of components",
        "identity, surrogate",
    ),
    ("DINO", "one of K", VMF, "centred, sharpened teacher", "heuristic"),
    (
        "CategoricalMatching",
        "one of K",
        "a symmetric channel",
        "entropy of classes",
        "identity",
    ),
    ("RPM", "one of K", "absent", "shares of classes", "exact bound"),
    (
        "DenoisingAutoencoder MaskedAutoencoder",
        "absent",
        "flat",
        "p(clean or hidden x|z)",
        "exact bound",
    ),
    ("DSA", "learned affinity", "its base's", "its base's, a regulator", "heuristic"),
    ("PID", "cluster, then item", "its base's", "its base's, clusters", "surrogate"),
]


# The first names of the rows that README shows.
MAIN = (
    *("SimVAE", "VAE", "SimCLR", "CLIP", "MoCo", "TSimCLR"),
    *("NeighbourEmbedding", "LogDet", "VICReg", "BarlowTwins", "WMSE", "BYOL", "SwAV"),
    *("DINO", "DenoisingAutoencoder", "DSA", "PID"),
)


def source_of(objective: str) -> Path:
    """The file of probssl/limits that defines an objective."""
    module = getattr(import_module("probssl.limits"), objective).__module__
    return LIMITS / f"{module.rpartition('.')[2]}.py"


def docstring(path: Path) -> str:
    return ast.get_docstring(ast.parse(path.read_text())) or ""


def limits_table(link: bool = False, main: bool = False) -> str:
    """The table of limits in Markdown.

    Arguments:
        link: Whether to link each objective to its page.
        main: Whether to leave out the rows that README does not show.
    """
    lines = [
        "| objective | p(y); p(z given y) | keeps z informative | status |",
        "|---|---|---|---|",
    ]
    for names, content, conditional, kept, status in ROWS:
        if main and names.split()[0] not in MAIN:
            continue
        each = [
            f"[`{name}`]({source_of(name).stem}.rst)" if link else f"`{name}`"
            for name in names.split()
        ]
        cells = [", ".join(each), f"{content}; {conditional}", kept, status]
        lines.append("| " + " | ".join(cells).replace("x|z", "x given z") + " |")
    return "\n".join(lines)


def with_table(page: str, main: bool = False) -> str:
    """A page with the present table of limits; README shows the main rows."""
    head, _, rest = page.partition(START)
    return f"{head}{START}\n{limits_table(main=main)}\n{END}{rest.partition(END)[2]}"


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
            page += f".. autoclass:: probssl.limits.{name}\n   :members:\n\n"
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
