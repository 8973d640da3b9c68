"""The documentation keeps its word: its code runs, its links lead somewhere.

All Python blocks of a page run in their order, in one namespace and an empty folder.
For speed a run is shortened: a quarter of the digits, decoders of `compare` that are
hardly fitted, and in the text ``epochs``, ``draws`` and their like made small
(`SHORTER`). A block whose last comment is ``# SomeError: words … more words`` has to
raise that error, with these words in this order. Packages that are not installed are
replaced by `stand_ins`. Of shell blocks the arguments are read by the command line's
own parser; tests/test_torchrun.py starts processes.
"""

import math
import re
import shlex
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch

from probssl import cli, limits

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
sys.path.insert(0, str(DOCS))
import generate  # noqa: E402
import picture  # noqa: E402

README = ROOT / "README.md"
GENERATED = ("_build", "api", "methods", "notebooks")
PAGES = [README, ROOT / "CONTRIBUTING.md"] + [
    path
    for path in sorted(DOCS.rglob("*.md"))
    if path.relative_to(DOCS).parts[0] not in GENERATED and path.stem != "gallery"
]
NAMES = [str(path.relative_to(ROOT)) for path in PAGES]
SHORTER = {
    r"\bepochs=\d{2,}": "epochs=1",
    r"\bdraws=\d+": "draws=20",
    r"\bparticles=\d+": "particles=5",
    r"\b(evidence|refine|steps)=\d{2,}": r"\1=1",
    r"\banneal=\d+": "anneal=3",
    r"\btest\.take\(100\)": "test.take(8)",
    r"\bfirst=\d+": "first=0",
    r"\bn_jobs=\d+": "n_jobs=1",
    r"(check_\w+\([^\n]*)\)$": r"\1, **few)",
    r"(advise\([^\n]*)\)$": r"\1, halves=2)",
}
ERROR = re.compile(r"# (\w+(?:Error|Warning)): (.+)\s*$")


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def shortened(code: str) -> str:
    for pattern, replacement in SHORTER.items():
        code = re.sub(pattern, replacement, code, flags=re.MULTILINE)
    return re.sub(r"(check_(?!prior|likelihood)\w+\(.*), \*\*few\)", r"\1)", code)


class Recorder(MagicMock):
    """A module, class or object of a package that is not there."""


class Rows(list[dict[str, Any]]):
    """A Hugging Face dataset of a few images: rows, and columns by their name."""

    def with_format(self, kind: str) -> "Rows":
        return self

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, str):
            return np.array([row[key] for row in self])
        return super().__getitem__(key)


def load_dataset(*_: str, **__: str) -> Rows:
    grey = np.random.default_rng(0).integers(0, 256, (60, 8, 8)).astype(np.uint8)
    return Rows({"image": image, "label": i % 10} for i, image in enumerate(grey))


def stand_ins() -> dict[str, ModuleType]:
    """Modules that the pages use and that are not installed."""
    datasets = ModuleType("datasets")
    datasets.load_dataset = load_dataset  # type: ignore[attr-defined]
    found = {"datasets": datasets}  # even if it is installed: nothing is downloaded
    for name in ("torch.utils.tensorboard", "mlflow", "wandb"):
        try:
            import_module(name)
        except ImportError:
            found[name] = Recorder(spec=None)
    return found


@pytest.mark.filterwarnings(  # of Lightning's Trainer, as in test_lightning.py
    "ignore:.* have no `val_dataloader`. Skipping val loop",
    "ignore:`isinstance.treespec, LeafSpec.` is deprecated",
    "ignore:.*does not have many workers",
    "ignore:Pareto k̂ is above",  # of the few particles here
    "ignore:The inplace keyword in DataFrame.sort_values",  # ArviZ 0.23 and pandas 3.1
)
@pytest.mark.usefixtures("few_digits", "short_decoders")
@pytest.mark.parametrize("path", PAGES, ids=NAMES)
def test_the_code_of_a_page_runs(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__main__", "few": {"draws": 200}}
    for name, module in stand_ins().items():
        monkeypatch.setitem(sys.modules, name, module)
    for i, block in enumerate(blocks(path.read_text(), "python")):
        code = compile(shortened(block), f"{path.name}, block {i + 1}", "exec")
        promised = ERROR.search(block)
        if promised is None:
            exec(code, namespace)
            continue
        with pytest.raises(Exception) as caught:
            exec(code, namespace)
        assert caught.type.__name__ == promised[1], caught.value
        words = [re.escape(part.strip()) for part in promised[2].split("…")]
        assert re.search(".*".join(words), " ".join(str(caught.value).split()))


def test_the_tests_that_the_page_on_reliability_names_are_there():
    named = re.findall(
        r"`(test_\w+\.py)((?:::\w+)*)`", (DOCS / "reliability.md").read_text()
    )
    assert len(named) > 30
    for file, path in named:
        text = (ROOT / "tests" / file).read_text()
        for name in filter(None, path.split("::")):
            assert re.search(rf"^ *(def|class) {name}\b", text, re.MULTILINE), name


@pytest.mark.parametrize("path", PAGES, ids=NAMES)
def test_the_commands_of_a_page_are_commands(path):
    ci = (ROOT / ".ci" / "run").read_text()
    for block in blocks(path.read_text(), "bash"):
        for command in block.strip().replace("\n", " && ").split(" && "):
            words = shlex.split(command, comments=True)
            if words[:1] == ["torchrun"]:
                words = words[words.index("-m") + 1 :] if "-m" in words else words
            if words[:1] in (["probssl"], ["probssl.cli"]) and words[1:]:
                cli._parser().parse_args(words[1:])
            elif words[:1] != ["torchrun"]:
                assert all(word in ci for word in words), command


@pytest.mark.parametrize("path", PAGES, ids=NAMES)
def test_the_links_of_a_page_lead_somewhere(path):
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        file = target.partition("#")[0]
        if "://" in target or not file:
            continue
        place = (path.parent / file).resolve()
        assert place.exists(), target
        built = place.relative_to(ROOT).parts[:2] if place.is_relative_to(DOCS) else ()
        assert not {*built} & {*GENERATED, "gallery.md"}, f"{target}: on the site only"
    assert not re.search(r"/(home|root|tmp|work)/", text)


def test_the_readme_is_short():
    text = README.read_text()
    assert len(text.splitlines()) <= 120 and len(text.split()) <= 900
    assert (DOCS / "map.png").stat().st_size < 150_000


def test_the_table_of_limits_is_generated_from_the_code():
    for path in (README, DOCS / "concepts.md"):
        text = path.read_text()
        table = generate.with_table(text, main=path == README)
        assert table == text, "run python docs/generate.py"
    page = (DOCS / "table.md").read_text()
    assert generate.with_parts(page) == page, "run python docs/generate.py"
    names = [row.name for row in limits.table()]
    assert set(generate.MAIN) <= set(names)
    for name in names:
        assert f"`{name}`" in page and f"`{name}`" in (DOCS / "concepts.md").read_text()


def test_figures_of_the_table_are_those_of_the_results(monkeypatch):
    page = (DOCS / "table.md").read_text()
    digits = generate.results("digits")["mean and sd"]
    for label, recipe in (("VICReg", "VICReg"), ("CLIP", "InfoNCE")):
        probe, sd = digits[recipe]["linear_probe"]
        row = page.split("digits: linear probe")[1].split(f"| `{label}` |")[1]
        assert row.split(" | ")[1] == f"{probe:.3f} ± {sd:.3f}"
    assert generate.results("nowhere") == {}
    row = {k: [1.25, 0.5] for k in generate.ALIKE} | {"seeds": 5}
    rows = {"VICReg": row, "Student-t, nearest neighbour": row}
    monkeypatch.setattr(generate, "results", lambda name: {"rows": rows})
    lines = generate.alike_table().splitlines()
    assert lines[0] == generate.INTRO
    assert lines[2].startswith("| digits, 5 seeds | alignment, nats |")
    assert lines[4].startswith("| `VICReg` | 1.2 ± 0.5 |")
    assert lines[5].startswith("| Student-t, nearest neighbour |")
    monkeypatch.setattr(generate, "results", lambda name: {})
    assert generate.alike_table() == ""
    with pytest.raises(ValueError, match="expected a test test_of_nothing"):
        generate.theorem_file("test_of_nothing")


def test_the_picture_of_pooled_views_is_of_the_orders_that_are_said():
    deltas = torch.tensor([0.2, 0.4], dtype=torch.float64)
    for statistic in (picture.EppsPulley(), picture.SlicedWasserstein()):
        each, pooled = picture.apart(statistic, torch.linspace(0, 0.95, 6)).unbind(1)
        assert (pooled <= each + 1e-6).all()
    each, pooled = picture.apart(picture.EppsPulley(), deltas).unbind(1)
    assert each[0] / (deltas[0] ** 2 / 2) == pytest.approx(2, rel=0.05)
    assert math.log2(each[1] / each[0]) == pytest.approx(2, abs=0.2)
    assert math.log2(pooled[1] / pooled[0]) == pytest.approx(8, abs=0.5)


def test_docstrings_reach_the_site_without_loss():
    table = ["====  ======", "p(z|y)  |Q|", "====  ======"]
    lines = [
        "A Paper (2020)",
        "https://one",
        "Two",
        "https://two",
        "",
        "so p(z|y), `a|b`,",
    ]
    lines += [
        "and decoder_ @ z:",
        "",
        *table,
        "",
        ".. math:: |Q|",
        "    |A|",
        "",
        "|Q|",
    ]
    generate.as_rst(lines)
    assert lines[:4] == ["| A Paper (2020)", "| https://one", "| Two", "| https://two"]
    assert lines[5:7] == [r"so p(z\|y), `a|b`,", r"and decoder\_ @ z:"]
    assert lines[8:] == [*table, "", ".. math:: |Q|", "    |A|", "", r"\|Q\|"]
