"""Every file in models/ runs, in a short form."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

MODELS = Path(__file__).parent.parent / "models"


def digits(module: ModuleType, folder: Path) -> None:
    figures = module.main(
        seeds=1, epochs=1, methods=("VAE", "SimCLR"), results=folder / "digits.json"
    )
    assert {"VAE", "SimCLR", "raw pixels", "PCA-10"} <= set(figures)
    assert (folder / "digits.json").is_file()


SHORT = {"digits": digits}


def test_every_model_has_a_short_form():
    assert {path.stem for path in MODELS.glob("*.py")} == set(SHORT)


@pytest.mark.parametrize("name", sorted(SHORT))
def test_model_runs(name, tmp_path):
    spec = importlib.util.spec_from_file_location(name, MODELS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.__doc__ and module.main.__doc__
    SHORT[name](module, tmp_path)
