"""How Sphinx builds the site: ``sphinx-build -W docs docs/_build``."""

import re
import sys
from pathlib import Path

from docutils import nodes
from latex2mathml.converter import convert

sys.path.insert(0, str(Path(__file__).parent))
import generate

import probssl

project, author = "probssl", "The probssl developers"
copyright = author
release = version = probssl.__version__
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
html_theme = "furo"
html_title = "probssl"
html_math_renderer = "mathml"  # by the browser itself: no script, no network
exclude_patterns = ["_build", "jupyter_execute"]
default_role = "code"  # single backquotes in docstrings
nb_execution_mode = "off"  # pages show the committed output
myst_enable_extensions = ["amsmath", "deflist", "dollarmath"]
myst_heading_anchors = 3
suppress_warnings = ["mystnb.unknown_mime_type"]
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False

generate.write_pages()


def skip(app, what, name, obj, skip, options):
    """Leave out what other packages and named tuples put into our classes."""
    foreign = (getattr(obj, "__module__", None) or "").startswith("sklearn")
    field = (getattr(obj, "__doc__", None) or "").startswith("Alias for field number")
    return True if foreign or field else None


def mathml(text, display="inline"):
    if "\\\\" in text:
        text = rf"\begin{{aligned}}{text}\end{{aligned}}"
    # TeX has a space between a named function and its argument.
    spaced = re.sub(r"\\(log|exp|min|max|sin)\s+(?=[\w\\])", r"\\\1\\, ", text)
    return convert(spaced, display=display)


def inline_formula(self, node):
    self.body.append(mathml(node.astext()))
    raise nodes.SkipNode


def formula(self, node):
    self.body.append(f'<div class="math">{mathml(node.astext(), "block")}</div>\n')
    raise nodes.SkipNode


def pages_of_methods(app, docname, source):
    """The table links files of derivations, of which the site has pages."""
    if docname == "table":
        file = r"\(\.\./probssl/limits/(\w+)\.py\)"
        source[0] = re.sub(file, r"(methods/\1.rst)", source[0])


def setup(app):
    app.connect("source-read", pages_of_methods)
    app.add_html_math_renderer("mathml", (inline_formula, None), (formula, None))

    def as_rst(app, what, name, obj, options, lines):
        generate.as_rst(lines)

    app.connect("autodoc-process-docstring", as_rst, priority=100)  # before napoleon
    app.connect("autodoc-skip-member", skip)
