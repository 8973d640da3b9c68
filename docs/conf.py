"""How Sphinx builds the site: ``sphinx-build -W docs docs/_build``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import generate

import probssl

project, author = "probssl", "The probssl developers"
copyright = author
release = version = getattr(probssl, "__version__", "0.2.0")
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx_copybutton",
]
html_theme = "furo"
html_title = "probssl"
exclude_patterns = ["_build", "jupyter_execute"]
default_role = "code"  # single backquotes in docstrings
nb_execution_mode = "off"  # pages show the committed output
myst_enable_extensions = ["dollarmath", "amsmath"]
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
    """Leave out what other packages put into our classes."""
    module = getattr(obj, "__module__", None) or ""
    return True if module.startswith("sklearn") else None


def setup(app):
    def as_rst(app, what, name, obj, options, lines):
        generate.as_rst(lines)

    app.connect("autodoc-process-docstring", as_rst, priority=100)  # before napoleon
    app.connect("autodoc-skip-member", skip)
