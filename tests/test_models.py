"""Every file in models/ runs, in a short form."""

import ast
import importlib.util
import json
import math
import re
import sys
from functools import partial
from itertools import product
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any
from unittest import mock

import cifar10
import numpy as np
import pytest
import report
import subjects
import torch
from helpers import held_out
from scipy import stats

import probssl as ps
from probssl.cli import main as command
from probssl.evaluation import probes

pytestmark = pytest.mark.usefixtures("few_digits", "short_decoders")
ROOT = Path(__file__).parent.parent
MODELS = ROOT / "models"
PROJECTOR = ps.nn.Projector


def digits(module: ModuleType, folder: Path) -> None:
    path, runs = folder / "digits.json", folder / "runs"
    options = {"seeds": 1, "epochs": 1, "jobs": 1, "results": path, "runs": runs}
    first = module.main(methods=("SimCLR",), **options)
    assert module.main(methods=("SimCLR",), **options) == first  # from its folder
    figures = module.main(methods=("VAE",), **options)
    assert list(figures)[:4] == ["VAE", "SimCLR", "raw pixels", "PCA-10"]
    assert figures["SimCLR"] == first["SimCLR"]
    assert json.loads(path.read_text())["mean and sd"] == figures
    assert module.kept(path, 1, 1) == figures
    assert module.kept(path, 2, 1) == module.kept(path, 1, 2) == {}
    assert len(module.table(figures, module.SCORES).splitlines()) == 2 + 5

    path = folder / "digits_choices.json"
    rows = module.choose(("LogDet",), seeds=2, epochs=1, results=path)
    assert [row["setting"] for row in rows] == 2 * [{"projector": False}] + 2 * [
        {"projector": True}
    ]
    assert module.choose(("LogDet",), 2, 1, path) == rows
    assert len(module.choices(rows).splitlines()) == 3
    for better in (True, False):
        scores = [0.1 * (row["setting"]["projector"] is better) for row in rows]
        found = [r | {"score": s} for r, s in zip(rows, scores, strict=True)]
        assert module.chosen(found, "LogDet") == {"projector": better}
    digits = ps.data.digits()
    out = torch.cat([module.held_out(digits, k).test.images for k in range(5)])
    assert sorted(out.sum((1, 2, 3))) == sorted(digits.train.images.sum((1, 2, 3)))
    assert len(module.held_out(digits, 1).train) == 240


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks, projectors and probes of CIFAR-10 for few images."""

    def encoder(shape: tuple[int, ...], dim: int = 512) -> torch.nn.Module:
        layers = torch.nn.Flatten(), torch.nn.Linear(math.prod(shape), 12)
        return ps.nn.Encoder(torch.nn.Sequential(*layers, torch.nn.Tanh()), 12, dim)

    def projector(dim: int, width: int = 512, out: int = 128, layers: int = 2) -> Any:
        return PROJECTOR(dim, min(width, 16), out, layers)

    monkeypatch.setattr(ps.nn, "Projector", projector)
    numbers = {"WIDTH": 16, "OUT": 4, "WHITENED": 8, "NEIGHBOURS": 5}
    networks = {"encoder": encoder, "decoder": ps.nn.MLPDecoder}
    for name, value in (numbers | networks).items():
        monkeypatch.setattr(cifar10, name, value)


def photographs() -> ps.data.Dataset:
    drawn, labels = torch.Generator().manual_seed(0), torch.arange(96) % 4
    colours = torch.rand(4, 3, 8, 8, generator=drawn)[labels]
    images = (colours + torch.rand(96, 3, 8, 8, generator=drawn)) / 2
    both = ps.data.Split((255 * images).byte(), labels)
    return ps.data.Dataset(both.rows(slice(72)), both.rows(slice(72, None)), 255, "x")


def on_cifar10(
    module: ModuleType, folder: Path, epochs: int = 1, seeds: int = 1
) -> list[dict]:
    """All fits of a script; they leave folders, from which a second run reads."""
    options = {"seeds": seeds, "epochs": epochs, "results": folder, "runs": folder}
    rows = module.main(**options, data=photographs())
    methods = module.EXPERIMENT.methods
    assert [row["method"] for row in rows[::seeds]] == list(methods)
    columns = module.EXPERIMENT.columns
    assert all(columns.keys() <= row.keys() for row in rows)
    assert all(0 <= v <= 1 for row in rows for k, v in row.items() if "linear" in k)
    some = list(methods)[-1:]  # and those whose folders are there
    assert module.main(names=some, **options, data=photographs()) == rows
    shown = cifar10.table(module.EXPERIMENT, rows)
    gains = [method for method in methods.values() if method.base]
    assert shown.count("\n| ") == len(methods) + len(gains) + bool(gains)
    assert report.read(folder / f"{module.__name__}.json") == rows
    saved = folder / module.__name__
    assert len(list(saved.iterdir())) == len(rows)
    one = saved / f"{list(methods)[0]}, {epochs} epochs, seed 0"
    assert command(["inspect", str(one)]) == 0
    return rows


def limits_cifar10(module: ModuleType, folder: Path) -> None:
    rows = on_cifar10(module, folder)
    first = cifar10.cell(
        module.EXPERIMENT, "SimCLR", 0, 1, "cpu", photographs(), folder / "other"
    )
    assert {k: v for k, v in first.items() if k != "seconds"}.items() <= rows[0].items()
    # Stopped after its first epoch, it goes on to the same end.
    stopped, whole = folder / "stopped", folder / "whole"
    given = module.EXPERIMENT, "SimCLR", 0, 2, "cpu", photographs()
    with mock.patch.object(ps, "save", side_effect=KeyboardInterrupt):
        with pytest.raises(KeyboardInterrupt):
            cifar10.cell(*given, stopped)
    assert (next(stopped.glob("*/*/checkpoint")) / "last.safetensors").is_file()
    rows = [cifar10.cell(*given, place) for place in (stopped, whole)]
    for row in rows:
        row.pop("seconds")
    assert rows[0] == rows[1]
    assert not list(stopped.glob("*/*/checkpoint"))
    # benchmarks/gpu.py measures the images per second of the same objective.
    of_512 = partial(ps.nn.ResNet18Encoder, dim=512)
    in_full = mock.patch.multiple(ps.nn, Projector=PROJECTOR)
    with in_full, torch.device("meta"), mock.patch.object(cifar10, "encoder", of_512):
        simclr = module.METHODS["SimCLR"].build((3, 32, 32), 1)
        assert str(simclr) == str(subjects.simclr_resnet())


def simvae_cifar10(module: ModuleType, folder: Path) -> None:
    module.PAIRS = 8
    rows = on_cifar10(module, folder)
    assert all(row["test: bound of pairs"] < 0 for row in rows[len(rows) // 2 :])
    histories = (folder / "simvae_cifar10").glob("*/history.json")
    epochs = {h.parent.name[:3]: len(json.loads(h.read_text())) for h in histories}
    assert epochs == {"VAE": 2, "Sim": 1}  # of single views twice as many


def dsa_cifar10(module: ModuleType, folder: Path) -> None:
    rows = on_cifar10(module, folder, seeds=2)
    assert all(row["test: crowding"] > 0 for row in rows)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 1.0)
    rates, schedule = [], cifar10.stepped(optimizer, 600, 300)
    for _ in range(600):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert rates[0] == 1 / 150 and rates[149:500] == [1.0] * 351
    assert rates[500:] == pytest.approx([0.2] * 50 + [0.04] * 50)


def pid_cifar10(module: ModuleType, folder: Path) -> None:
    rows = on_cifar10(module, folder, epochs=3)
    assert all(0 <= row["test, corrupted: linear"] <= 1 for row in rows)
    x = torch.rand(2, 3, 8, 8)
    for corrupt in (module.Pixelate(1.0), module.ZoomBlur(1.0), module.ZoomBlur(1.01)):
        torch.testing.assert_close(corrupt(x), x)
    assert module.Pixelate(0.5)(x).unique().numel() <= 2 * 3 * 16
    assert len(module.ZoomBlur(1.06).factors) == 6


def five_gaussians(module: ModuleType, folder: Path) -> None:
    centres = module.corners(6)
    assert torch.allclose(torch.pdist(centres), torch.tensor(1.0))
    x = torch.randn(40, 3)
    views = module.mixup(0.5)(x)
    assert (views - x[:, None]).abs().max() <= 0.5 * (x.max() - x.min())
    found = module.main(seeds=1, circle_steps=80, steps=2, dims=(2, 6), results=folder)
    (circle,), rows = found["circle"], found["views"]
    assert len(rows) == 3 * (1 + 2 * 4) and all(row["crowding"] > 0 for row in rows)
    assert sum(circle["gaps"]) == pytest.approx(360)
    assert 30 < min(circle["gaps"]) and max(circle["gaps"]) < 120  # on the way to 72
    assert (folder / "five_gaussians.json").is_file()
    assert (folder / "five_gaussians.png").is_file()


def joint_embedding_vs_reconstruction(module: ModuleType, folder: Path) -> None:
    variances = torch.linspace(3e5, 2e4, 60, dtype=torch.float64)
    x = torch.randn(400, 60, dtype=torch.float64) * variances.sqrt()
    sets = {"synthetic": ps.data.Split(x, x[:, :10].argmax(1))}
    rows = module.main(seeds=1, sizes=2, sets=sets, results=folder)
    last = {tuple(row.values())[1:4]: row["median"][-1] for row in rows}
    strong = [last["joint embedding", "strong", alpha] for alpha in (0.1, 1.0, 10.0)]
    assert len(rows) == 18 and strong[0] > 100 * strong[1] > 1000 * strong[2]
    assert last["reconstruction", "strong", 1.0] > 10 * strong[1]
    assert (folder / "joint_embedding_vs_reconstruction.json").is_file()
    found = module.choose(seeds=1, split=sets["synthetic"], results=folder)
    assert [row["setting"] for row in found] == list(module.READINGS)
    Z, Y = np.random.default_rng(0).normal(size=(2, 50, 3))
    some = module.least_squares(Z[:30], Y[:30], 0.1, (Z[30:], Y[30:]))
    V = np.linalg.solve(Z[:30].T @ Z[:30] + 3.0, Z[:30].T @ Y[:30])
    assert some == pytest.approx(((Y[30:] - Z[30:] @ V) ** 2).sum(1).mean())
    assert (folder / "joint_embedding_vs_reconstruction.png").is_file()


def scale_calibration(module: ModuleType, folder: Path) -> None:
    figures = module.main(repeats=10, steps=5, bins=2, results=folder / "ranks.json")
    assert 0 <= figures["p_value"] <= 1
    assert (folder / "ranks.json").is_file() and (folder / "ranks.png").is_file()


def content_and_style(module: ModuleType, folder: Path) -> None:
    grey = ps.data.digits().train
    images = (255 * grey.images).to(torch.uint8)
    data = ps.data.arrays(images, grey.labels, levels=255)
    rows = module.main(seeds=1, epochs=1, data=data, results=folder)
    assert [row["prior"] for row in rows] == list(module.PRIORS)
    probes = [row["validation: linear"] for row in rows]
    assert all(0 <= probe <= 1 for probe in probes)
    assert all(row["validation: bound of pairs"] < 0 for row in rows)
    split = [row["prior"] for row in rows if "validation: 5-NN, content" in row]
    assert split == ["6 + 4, scale 0.15", "6 + 4, scale 0.1"]
    assert (folder / "content_and_style.json").is_file()


def moving_digits(module: ModuleType, folder: Path) -> None:
    options = {"seeds": 1, "epochs": 1, "n": 64, "held_out": 12, "particles": 3}
    rows = module.main(**options, data=ps.data.digits(), results=folder)
    assert [row["prior"] for row in rows] == list(module.PRIORS)
    assert all(row["test: bound"] < 0 <= row["test: digit"] <= 1 for row in rows)
    assert all(row["test: place"] <= 1 for row in rows)
    assert len(module.table(rows).splitlines()) == 2 + len(module.PRIORS)
    assert report.read(folder / "moving_digits.json") == rows
    drawn = module.series(ps.data.digits(), 8, 4)
    assert drawn["test"].groups.views.shape == (4, module.FRAMES, *module.SHAPE)


def scale_of_views(module: ModuleType, folder: Path) -> None:
    grey = ps.data.digits()
    images, labels = (grey.train.images > 0.5, grey.train.labels)
    data = ps.data.arrays(images, labels)
    rows = module.main(seeds=2, epochs=1, scales=(0.1, 1.0), data=data, results=folder)
    assert len(rows) == 18 and {row["fixed"] for row in rows} == {0.1, 1.0, None}
    assert len(module.table(rows).splitlines()) == 2 + 9
    assert all(row["sd of Var(z|y)"] > 0 for row in rows if row["fixed"] is None)
    assert (folder / "scale_of_views.json").is_file()
    assert (folder / "scale_of_views.png").is_file()


def paradigms_under_noise(module: ModuleType, folder: Path) -> None:
    images, labels = torch.rand(400, 1, 8, 8), torch.arange(400) % 4
    data = ps.data.arrays(images, labels)
    m, x = module.amplitude(data, 2.0), data.train.images
    noise = module.noisy(data, 2.0).train.images - (1 - m) * x
    signal = (1 - m) * x.var(0).mean().sqrt()
    assert noise.var(0).mean().sqrt() / signal == pytest.approx(2, rel=0.1)

    rows = module.main(seeds=1, epochs=1, ratios=(0.0, 2.0), data=data, results=folder)
    assert len(rows) == 9 + 9 + 7
    module.CHANGES = module.CHANGES[1:2]
    found = module.choose(seeds=1, epochs=1, data=data, results=folder)
    rates = {(row["method"], row["setting"]["rate"]) for row in found}
    assert rates == set(product(module.CHOSEN_BY, (8e-3, 4e-3)))
    assert all(0 <= row["linear_probe"] <= 1 and 0 <= row["knn"] <= 1 for row in rows)
    assert (folder / "paradigms_under_noise.json").is_file()
    assert (folder / "paradigms_under_noise.png").is_file()


def against_baselines(module: ModuleType, folder: Path) -> None:
    module.BATCH, names = 50, ("mnist", "fashion-mnist", "omniglot")
    images, labels = torch.rand(150, 1, 14, 14), torch.arange(150) % 3
    images[:, :, :7] *= labels[:, None, None, None] / 2
    data = ps.data.arrays(images, labels)
    sets = {name: data._replace(name=name) for name in names}
    for method, base in module.METHODS.items():
        objective = module.build(method, data)
        kind = {"DSA": ps.limits.DSA, "PID": ps.limits.PID, "t-S": ps.limits.TSimCLR}
        expected = [k for name, k in kind.items() if name in method]
        assert not expected or type(objective) is expected[0]
        below = getattr(objective, "base", objective)
        assert type(below) is type(module.build(base, data)) or "t-S" in method
    short = ("SimCLR", "t-SimCLR", "SimCLR + DSA", "SimCLR + PID")
    for methods in (short[:2], short[2:]):  # the second run keeps what the first found
        rows = module.main(2, 5, methods, sets, folder)
    assert len(rows) == 2 * 2 * len(short)
    clean = [row["shifted"]["clean"] for row in rows]
    assert all(0 <= each["linear_probe"] <= 1 for each in clean)
    shown = module.tables(rows)
    for method in short:
        own = 1 if module.METHODS[method] == method else 2
        assert shown.count(f"| {method} |") == 2 * (1 + own)
    assert (folder / "against_baselines.json").is_file()
    module.CHOICES = module.CHOICES[:2]
    found = module.choose(1, 4, sets, folder)
    ramps = {(row["data"], *row["setting"]["ramp"]) for row in found}
    assert len(found) == len(ramps) == 2 * 2


def digit_map(module: ModuleType, folder: Path) -> None:
    images, labels = torch.rand(60, 1, 14, 14), torch.arange(60) % 3
    images[:, :, :7] *= labels[:, None, None, None] / 2
    data = ps.data.arrays(images, labels)
    methods = tuple(dict.fromkeys([*module.METHODS, *module.MAPS]))
    rows = module.main(seeds=1, epochs=3, methods=methods, data=data, results=folder)
    assert [row["method"] for row in rows] == list(methods)
    assert all(0 <= row["held_out"] <= 1 >= row["silhouette"] for row in rows)
    assert (folder / "digit_map.json").is_file()
    found = module.choose(seeds=1, epochs=3, data=data, results=folder)
    assert [row["setting"]["map"] for row in found] == list(module.TRIED)
    assert (folder / "digit_map.png").is_file()


def few_labels_mnist(module: ModuleType, folder: Path) -> None:
    module.BATCH, colour = 40, torch.rand(4, 1, 1, 1)
    labels = torch.arange(250) % 4
    images = (colour[labels] + 0.1 * torch.rand(250, 1, 28, 28)).clamp(max=1)
    both = ps.data.Split((255 * images).byte(), labels)
    data = ps.data.Dataset(both.rows(slice(200)), both.rows(slice(200, None)), 255, "x")
    setting = module.Setting(epochs=1, images=150)
    style = setting._replace(style=6)
    with mock.patch.object(ps.data, "load", side_effect=lambda name: data) as load:
        rows = module.main(draws=2, labels=(8, 40), setting=setting, results=folder)
        found = module.choose(((((8, 0),), (setting, style)),), results=folder)
        assert load.call_count == 6
        assert module.main(2, (8, 40), setting, folder) == rows
        assert load.call_count == 6
    cells = [(0, 8), (0, 40), (1, 8), (1, 40)]
    assert [(row["draw"], row["labels"]) for row in rows] == cells
    assert all(0 <= row[name] <= 1 for row in rows for name in module.NAMES)
    assert [row["setting"]["style"] for row in found] == [0, 6]
    known = module.drawn(data.train.labels, 8, seed=0)
    assert (known[known >= 0].bincount() == 2).all()
    two = torch.arange(150).where(torch.arange(150) < 2, -1)
    assert module.repeated(two).bincount().tolist() == [7] * 2 + [1] * 148
    loc, scale = module.Classes(3, style=6)()
    assert (loc[:, -6:] == 0).all() and (scale[:, -6:] * module.SCALE == 1).all()


def limits_mnist(module: ModuleType, folder: Path) -> None:
    names = ("VAE", "SimCLR", "DeepClustering", "baselines")
    options = {"seeds": 2, "epochs": 1, "data": ps.data.digits()}
    options |= {"results": folder, "runs": folder}
    first = module.main(names[1:], **options)
    rows = module.main(names[:1], **options)  # and those whose folders are there
    assert [row for row in rows if row["method"] != "VAE"] == first
    assert module.main(("SimCLR",), **options) == rows
    shown = list(names[:3]) + ["raw pixels", module.PCA, "untrained encoder"]
    assert list(dict.fromkeys(row["method"] for row in rows)) == shown
    assert len(rows) == 2 * len(shown) and rows[0]["elbo"] < 0
    text = module.tables(rows)
    assert all(text.count(f"| {name} |") == 2 for name in shown)
    assert text.count("+0.000 ± 0.000") == 1  # of PCA over itself
    assert json.loads((folder / "limits_mnist.json").read_text())["rows"] == rows


def novelty_mnist(module: ModuleType, folder: Path) -> None:
    module.ITEMS, module.FEWER, module.PARTICLES = 30, 20, 25
    data = ps.data.digits()._replace(levels=1)
    data = data._replace(
        train=data.train._replace(images=data.train.images.round()),
        test=data.test._replace(images=data.test.images.round()),
    )
    letters = torch.zeros(40, 1, 20, 20, dtype=torch.uint8)
    letters[:, :, 5, :] = 255
    others = {"letters": ps.data.arrays(letters, test=letters, levels=1)}
    rows = module.main(1, 1, data, others, folder, folder)
    assert report.read(folder / "novelty_mnist.json") == rows
    kinds = list(module.images(data, others))
    assert kinds[:3] == [module.KNOWN, module.SAME, "letters"]
    assert [row["kind"] for row in rows] == 2 * kinds
    assert "information: AUROC" in rows[1] and "information: AUROC" not in rows[-1]
    shown = module.tables(rows)
    assert all(shown.count(f"| {kind} |") == 4 for kind in kinds[1:])
    assert shown.count(f"| {module.KNOWN} |") == 1
    found = module.images(data, others)
    assert all(set(x.unique().tolist()) <= {0.0, 1.0} for x in found.values())
    assert {len(x) for x in found.values()} == {30}
    assert (found["a dot"].sum((1, 2, 3)) == module.DOT**2).all()
    assert (found["letters"].sum((1, 2, 3)) == 8).all()  # a line stays a line
    share = (found["noisy"] != found[module.SAME]).double().mean()
    assert abs(share - module.FLIPPED) < 5 * (0.09 / found["noisy"].numel()) ** 0.5
    assert not (found[module.KNOWN] == found[module.SAME]).all((1, 2, 3)).any()


def style_plane(module: ModuleType, folder: Path) -> None:
    module.IMAGES, module.WRITERS, module.OF_EACH = 160, 4, 12
    digits = ps.data.digits()
    writer = torch.arange(300) % 5
    digits = digits._replace(train=digits.train._replace(style=writer))
    with torch.random.fork_rng():
        shapes = ps.data.Dataset(*map(ps.data.factors, (60, 60)), None, "shapes")
    sets = {"mnist": digits, "factors": shapes}
    methods = {"mnist": (module.COUPLED, "BYOL"), "factors": (module.PCA,)}
    rows = module.main(methods, 1, 1, sets, folder, folder)
    assert [row["method"] for row in rows] == [module.COUPLED, "BYOL", module.PCA]
    (folder / "style_plane.json").unlink()
    some = {"factors": shapes}
    assert module.main(methods, 1, 1, some, folder, folder) == rows[2:]  # of a folder
    found = module.tables(rows)
    assert found["mnist: gains"].count("over BYOL") == 1
    assert found["factors: scores"].count("\n") == 1 + 1
    # A z that has the style, whatever the class, predicts all of it; the class nothing.
    parts = module.handwriting(digits)
    still, writers = parts["still"], parts["writers"]
    assert len(still.train) == 160 and writers.train.labels.bincount().max() == 6
    assert not {*map(bytes, writers.train.images.numpy())} & {
        *map(bytes, (*writers.test.images.numpy(), *still.train.images.numpy()))
    }
    apart = {True: still.train.style, False: still.train.labels[:, None].double()}
    there = {True: still.test.style, False: still.test.labels[:, None].double()}
    for knows in (True, False):
        embedded = {len(still.train): apart[knows], len(still.test): there[knows]}
        with mock.patch.object(ps, "embed", lambda _, part, z=embedded: z[len(part)]):
            linear, near = module.within(None, still)
        assert (linear > 0.9).all() if knows else (linear < 0).all()
        assert (near > 0.2).all() if knows else (near < 0).all()
    assert (parts["moved"].test.style.abs().amax(0) > 0.1).all()


def reliable_evidence(module: ModuleType, folder: Path) -> None:
    module.PARTICLES = (30, 60)
    names = ("quickstart", "refitted guide")
    rows = module.main(epochs=1, variants=names, results=folder)
    assert [row["change"] for row in rows] == [names[0]] * 2 + [names[1]] * 2
    assert all(0 <= row["above"] <= 1 <= row["median_ess"] <= 60 for row in rows)
    assert (folder / "reliable_evidence.json").is_file()


def same_content(module: ModuleType, folder: Path) -> None:
    module.BATCH, colour = 50, torch.rand(4, 3, 1, 1)
    labels = torch.arange(200) % 4
    images = (colour[labels] + 0.1 * torch.rand(200, 3, 16, 16)).clamp(max=1)
    sets = {"cifar10": ps.data.arrays(images, labels)}
    rows = module.main(seeds=1, epochs=2, sets=sets, results=folder)
    assert [row["affinity"] for row in rows] == ["learned", "closed form"]
    assert all(row["cosine of pixels"] > 0.9 and 0 <= row["M"] <= 1 for row in rows)
    assert (folder / "same_content.json").is_file()


def frozen_evidence(module: ModuleType, folder: Path) -> None:
    short = {"epochs": 1, "steps": 2, "items": 4}
    folders = {"results": folder, "runs": folder / "runs"}
    methods = ("LogDet", module.PCA)
    rows = module.main([1], methods, **short, **folders)
    again = module.main([0, 1], methods[:1], **short, **folders)
    assert again[1] == rows[0] and [row["seed"] for row in again] == [0, 1]
    assert all(row["evidence error"] > 0 for row in rows)
    assert len(module.table(rows + again[:1]).splitlines()) == 2 + 2
    assert list(module.curves(rows)) == list(methods)
    assert (folder / "frozen_evidence.png").is_file()
    short.pop("steps")
    rows = module.by_steps((2, 3), methods[:1], **short, **folders)
    assert [row["steps"] for row in rows] == [2, 3]
    assert module.table_by_steps(rows).count(f"{rows[0]['evidence']:.1f}") >= 1


def shallow_cells(module: ModuleType, folder: Path) -> None:
    module.VALIDATION, module.TEST, module.FEW, module.HIDDEN = 12, 20, 4, 8
    module.DEPTHS, module.DRAWS, module.WEIGHED = (20, 500), 5, 30
    module.TRIED = module.TRIED | {"all": module.TRIED["all"][:1]}
    sizes, setting = module.Sizes(48, 12, 3), module.FIRST._replace(epochs=1)
    options = {"setting": setting, "sizes": sizes, "results": folder}
    methods = (module.TRUTH, module.COUPLED, "LogDet")
    worlds = {0: module.simulated(0, sizes)}
    rows = module.main([0], methods, worlds=worlds, **options)
    assert [row["method"] for row in rows] == list(methods)
    shown = module.tables(rows)
    assert shown.count("\n| truth |") == 4 and shown.count("\n| LogDet |") == 1
    assert (folder / "shallow_cells_1.png").is_file()
    twins = [row | {"method": name} for row in rows[1:2] for name in module.HAND]
    assert module.best(twins, module.HAND) == next(iter(module.HAND))
    assert module.gains(rows + twins).count("+0.00") == len(module.DEPTHS)
    found = module.choose([0], sizes, worlds, folder)
    assert [row["setting"]["twins"] for row in found] == 3 * ["draws"] + ["means"]

    module.ITEMS = 4
    own = module.refined([0], (module.LEARNED,), setting, sizes, worlds, folder, 2)
    assert list(own[0]["nats below the truth"]) == ["20", "500"]
    assert module.nats(own).count("\n| SimVAE") == 1

    # Densities of pairs are those of the likelihood, and p(k|x) those of Bayes' rule.
    drawn, depth = worlds[0]["data"].test, 200
    shallow, share = module.thinned(drawn, depth), worlds[0]["share"]
    assert (shallow.images <= drawn.images).all()
    log_mean, alpha = (depth * share).log().double(), torch.linspace(0.1, 2.0, 12)
    pairs = module.log_likelihoods(shallow.images, log_mean, alpha)
    r = 1 / alpha.double().numpy()
    mean = log_mean.exp().numpy()
    for k in range(3):
        exact = stats.nbinom.logpmf(shallow.images.numpy(), r, r / (r + mean[k]))
        assert pairs[:, k].numpy() == pytest.approx(exact.sum(1), rel=1e-9)
    # Sets of probabilities (0.6, 0.35, 0.05) have the first two types.
    share = np.array([[0.35, 0.05, 0.6]] * 3)
    sets = module.credible(share, np.array([0, 1, 2]))
    assert sets == pytest.approx({"accuracy": 1 / 3, "coverage": 2 / 3, "size": 2.0})
    # The second view has at most the counts of the first, at a log-uniform depth.
    torch.manual_seed(0)
    batch = module.Shallow()(torch.full((2_000, 5), 200.0))
    assert (batch.views[:, 1] <= batch.views[:, 0]).all()
    log_share = batch.covariates["share"][:, 1, 0].log() / math.log(10 / 1_000)
    assert log_share.mean().item() == pytest.approx(0.5, abs=5 * 0.29 / 2_000**0.5)
    kept = batch.views[:, 1].sum(1) / batch.covariates["share"][:, 1, 0]
    assert kept.mean().item() == pytest.approx(1_000, rel=0.05)


def writers_mnist(module: ModuleType, folder: Path) -> None:
    module.IMAGES, module.HELD, module.SCORED, module.PARTICLES = 90, 30, 20, 5
    module.BATCH, module.HIDDEN = 30, (8,)
    images, labels = torch.rand(240, 1, 28, 28), torch.arange(240) % 4
    writer = torch.where(torch.arange(240) < 180, 5 + torch.arange(240) % 7, 40)
    both = ps.data.Split((255 * images).byte(), labels, style=writer)
    data = ps.data.Dataset(both.rows(slice(180)), both.rows(slice(180, None)), 255, "x")
    with mock.patch.object(ps.data, "load", side_effect=lambda name: data) as load:
        rows = module.main(seeds=2, epochs=1, results=folder)
        assert load.call_count == 4
        assert module.main(2, 1, folder) == rows and load.call_count == 4
        found = module.images(90, 30)
    assert [(row["seed"], row["prior"]) for row in rows] == [
        (seed, prior) for seed in (0, 1) for prior in module.PRIORS
    ]
    assert found.writers == 7 and len(found.test) == 60
    assert (found.test.covariates["writer"] == -1).all()
    drawn = report.parts(data)["train"].take(120)
    for split, own in (
        (found.train, drawn.rows(slice(90))),
        (found.held, drawn.rows(slice(90, None))),
    ):
        assert (split.covariates["writer"] == torch.as_tensor(own.style) - 5).all()
    for row in rows:
        low, middle, high = (row.get(name, 0.5) for name in module.SHARE)
        assert 0 <= row[module.PROBE] <= 1 and 0 < low <= middle <= high < 1
    assert module.table(rows).count("\n| ") == 4
    assert module.shares(rows).count("\n| ") == 2


def vae_baselines(module: ModuleType, folder: Path) -> None:
    module.HIDDEN, module.WIDE, module.PSEUDO = (8,), (9,), 5
    module.DIM, module.SPHERE = 3, 3
    grey = torch.randint(256, (130, 1, 28, 28), dtype=torch.uint8)
    binary = (grey[120:] > 127).byte() * 255
    splits = ps.data.Split(grey[:120]), ps.data.Split(binary)
    data = ps.data.Dataset(*splits, 1, "noise", "random")
    module.REFINED, module.FEWER, module.FIRST = 4, 30, 5
    module.ANNEAL, module.ANNEALED, module.CHAINS = 2, 2, 5

    short = {"epochs": 1, "samples": 20, "refine": 2, "data": data, "runs": folder}

    def run(names: tuple[str, ...], results: Path, seeds: int = 1) -> list[report.Row]:
        return module.main(names, **short, results=results, seeds=range(seeds))

    rows = run(tuple(module.MODELS), folder)
    assert [row["model"] for row in rows] == list(module.MODELS)
    for row in rows:
        assert row["nats"] > 400 and row["standard error"] > 0
        assert set(row["validation"]) == {"1"}
        assert row[module.SOME] == pytest.approx(row["nats"], rel=0.2)
        assert "refined: nats less" in row and "refined less annealed" in row
    assert run(("VAE",), folder) == rows[:1]
    again = run(("VAE",), folder / "other")[0]  # of the fit that is kept
    assert again["nats"] == rows[0]["nats"]
    more = run(("VAE",), folder, seeds=2)
    assert more[0] == rows[0] and "nats" not in more[1] and module.SOME in more[1]
    assert (
        module.table(report.read(folder / "vae_baselines.json")).count("| VAE |") == 1
    )
    train, held_out = module.split(data)
    assert (len(train), len(held_out)) == (96, 24)
    assert set(held_out.unique().tolist()) == {0.0, 1.0}


def bytes_of_digits() -> ps.data.Dataset:
    digits = ps.data.digits()
    split, test = digits.train.take(300), digits.test.take(100)
    to_bytes = [p._replace(images=(255 * p.images).byte()) for p in (split, test)]
    return ps.data.Dataset(*to_bytes, 255, "digits")


def clusters_mnist(module: ModuleType, folder: Path) -> None:
    digits = ps.data.digits()
    to_bytes = [p._replace(images=(255 * p.images).byte()) for p in digits[:2]]
    data = ps.data.Dataset(*to_bytes, 255, "digits")
    module.HIDDEN, module.BATCH, module.PAIRS, module.FEW = (16,), 50, 20, 1
    module.CONTENT, module.STYLE, module.IMAGES = 4, 1, 200
    module.FIRST, module.THEN = (2, 2e-3), (1, 1e-3)
    rows = module.main(range(2), data, folder, folder)
    assert module.main([1], data, folder, folder) == rows  # from file and report
    assert report.read(folder / "clusters_mnist.json") == rows
    methods = list(dict.fromkeys(row["method"] for row in rows))
    assert len(rows) == 2 * len(methods) - 5  # the others have one seed
    assert all(0.1 <= row["test: accuracy"] <= 1 for row in rows)
    assert module.table(rows).count("\n") == 1 + len(methods)
    assert module.shares(rows).count("\n") == 1 + 10
    # What two views have in common: one of two values, whatever the rest.
    shared = torch.block_diag(torch.full((2, 2), 1 / 8), torch.full((2, 2), 1 / 8))
    assert module.information(shared.numpy()) == pytest.approx(math.log(2))
    # The start is the model without components, in another basis.
    parts = report.parts(data, levels=1)
    prior = ps.priors.ContentStyle(module.CONTENT, module.STYLE, module.SCALE)
    first = module.simvae(prior, (1, 8, 8))
    module.fit(first, parts["train"], (1, 2e-3))
    z = torch.as_tensor(ps.embed(first, parts["test"]))
    for kind, components in module.FITS.values():
        start = module.start(kind, components, first, parts["train"], 0)
        other = module.moved(first, start)
        single, x = first.joint.posterior.single, parts["test"].images.unsqueeze(1)
        mean = start.prior(1).matched()
        found = mean.loc + mean.scale * other.joint.posterior.single(x)[0].squeeze(1)
        torch.testing.assert_close(found, z @ start.basis.mT, rtol=1e-3, atol=1e-3)
        assert torch.equal(single(x)[1], other.joint.posterior.single(x)[1])
        images = [m.joint.decode(v[None]).mean for m, v in ((first, z), (other, found))]
        torch.testing.assert_close(*images, rtol=1e-3, atol=1e-3)


def simvae_mnist(module: ModuleType, folder: Path) -> None:
    data = bytes_of_digits()
    module.HIDDEN, module.PAIRS = (8,), 20
    module.RUNS = {"mnist": (("affine", 6, tuple(module.METHODS)),)}
    options = {"seeds": 1, "results": folder, "runs": folder, "jobs": 1, "data": data}
    rows = module.main("mnist", **options)
    assert [row["method"] for row in rows] == list(module.METHODS)
    assert all(0 <= row["test: linear"] <= 1 for row in rows)
    assert module.main("mnist", **options) == rows  # from the report
    options["results"] = folder / "other"
    assert module.main("mnist", **options) == rows  # from the folders
    text = module.tables(rows)
    assert text.count("\n| ") == 1 + len(module.METHODS) and text.count("–") == 3
    # No fit sees a test image, and no method is chosen on one.
    parts = report.parts(data, levels=1)
    known = torch.cat([parts["train"].images, parts["validation"].images])
    assert len(parts["validation"]) == 60
    torch.testing.assert_close(known, (data.train.images > 127).float())
    torch.testing.assert_close(parts["test"].images, (data.test.images > 127).float())


def simvae_release(module: ModuleType, folder: Path) -> None:
    module.simvae_mnist.HIDDEN, module.simvae_mnist.PAIRS = (8,), 20
    for levels in (1, 255):
        objective = module.released((1, 4, 4), levels).double()
        x = torch.randint(levels + 1, (7, 2, 1, 4, 4)).double() / levels
        torch.manual_seed(3)
        found = float(sum(objective(ps.Batch(x))).detach())
        torch.manual_seed(3)
        q = objective.joint.posterior.each(x)
        noise = torch.randn(7, 2, module.DIM, dtype=torch.float64)
        logits = objective.joint.decoder((q.mean + noise * q.stddev).flatten(0, 1))
        parts = [part.detach().numpy() for part in (x, q.mean, q.stddev, noise, logits)]
        expected = released_by_numpy(*parts)
        assert found == pytest.approx(expected, rel=1e-10)

    data = bytes_of_digits()
    module.RUNS = {
        run: (name, "affine", 4)
        for run, name in (("affine", "mnist"), ("fashion-mnist", "fashion-mnist"))
    }
    options = {"seeds": 2, "results": folder, "runs": folder, "data": data}
    rows = module.main(tuple(module.RUNS), **options)
    assert [row["method"] for row in rows[::2]] == 2 * list(module.METHODS)
    assert module.main(("affine",), **options) == rows[: len(rows) // 2]
    assert sorted(map(str, report.read(folder / "simvae_release.json"))) == sorted(
        map(str, rows)
    )
    assert module.main(tuple(module.RUNS), **options) == rows  # from the folders
    unbound = [row for row in rows if "test: bound of pairs" not in row]
    assert {row["data"] for row in unbound} == {"fashion-mnist"} and len(unbound) == 2
    for row in rows:
        terms = [row[f"test: {name}"] for name in module.TERMS if row not in unbound]
        assert sum(terms) == pytest.approx(row.get("test: bound of pairs", 0))
    module.beside = lambda name: [{**row, "method": "VAE"} for row in rows[:2]]
    text = module.tables(rows)
    assert all(text.count(f"| {method} |") == 3 for method in module.METHODS)


def released_by_numpy(
    x: np.ndarray,
    mean: np.ndarray,
    s: np.ndarray,
    noise: np.ndarray,
    logits: np.ndarray,
) -> float:
    """The loss of SimVAE's released code over the batch, as a value per item."""
    z, total = mean + noise * s, 0.0
    white = 1 / (1 + np.exp(-logits.reshape(x.shape)))
    for i in range(len(x)):
        cross = -x[i] * np.log(white[i]) - (1 - x[i]) * np.log(1 - white[i])
        entropy = 0.5 * (2 * np.pi * np.log(s[i] ** 2)).sum()
        centre = (z[i, 0] + z[i, 1]) / 2
        prior = -0.5 * ((z[i] - centre) ** 2 / 0.15).sum() - 0.5 * (centre**2).sum()
        total += -cross.sum() / np.exp(-4.6) + entropy + prior
    return total / len(x)


def multimodal_halves(module: ModuleType, folder: Path) -> None:
    module.HIDDEN, module.BATCH, module.PARTICLES = (8,), 50, 30
    module.SCORED, module.NEIGHBOURS = 28, 60
    grey = torch.randint(256, (180, 1, 28, 28), dtype=torch.uint8)
    labels = torch.arange(180) % 10
    binary = (grey[150:] > 127).byte() * 255
    train = ps.data.Split(grey[:150], labels[:150])
    test = ps.data.Split(binary, labels[150:])
    data = ps.data.Dataset(train, test, 1, "noise", "random")
    options = {"seeds": 1, "epochs": 1, "data": data, "jobs": 1}
    options |= {"results": folder, "runs": folder}
    rows = module.main(**options)
    assert [row["method"] for row in rows] == list(module.METHODS)
    assert module.main(**options) == rows  # from the folders
    for row in rows:
        assert row["log p(x₁, x₂)"] < -400
        shares = [row[name] for name in module.TOLD if name in row]
        assert all(0 <= share <= 1 for share in shares)
        if "shared" in row:  # log p(x₁, x₂) = log p(x₁) + log p(x₂ given x₁)
            parts = row["log p(x₁)"] + row["log p(x₂ given x₁)"]
            assert parts == pytest.approx(row["log p(x₁, x₂)"])
    # Halves are the pixels of the image in their order; labels are drawn as they are.
    found = module.parts(data)
    whole, halves, label = (
        module.items_of(found["test"], module.METHODS[name]).views
        for name in ("one VAE", "two VAEs", "label: 10 + 30, Coupled, some absent")
    )
    assert torch.equal(torch.cat(halves, -1), whole[0])
    assert torch.equal(label[0], whole[0])
    assert torch.equal(label[1][:, 0].argmax(1), found["test"].labels)
    assert (len(found["train"]), len(found["validation"])) == (120, 28)
    absent = ~module.Drawn((3, 2), absent=0.2)(torch.rand(5_000, 5)).present
    assert not absent.all(1).any()
    assert torch.allclose(
        absent.double().mean(0), torch.tensor(0.2).double(), atol=0.03
    )
    assert module.table(rows).count("\n| ") == len(module.METHODS)


def poly_mnist(module: ModuleType, folder: Path) -> None:
    module.HIDDEN, module.BATCH, module.JUDGE_EPOCHS = (8,), 20, 1
    module.SCORED, module.PARTICLES = 20, 5
    grey = torch.randint(256, (240, 1, 28, 28), dtype=torch.uint8)
    labels = torch.arange(240) % 10
    train, test = (
        ps.data.Split(grey[part], labels[part])
        for part in (slice(180), slice(180, None))
    )
    data = ps.data.Dataset(train, test, 255, "noise")
    options = {"seeds": 1, "epochs": 1, "items": 60, "data": data, "jobs": 1}
    options |= {"results": folder, "runs": folder}
    rows = module.main(**options)
    assert [row["method"] for row in rows] == list(module.METHODS)
    assert module.main(**options) == rows  # from the folders
    shares = [*module.COHERENCE, "agreement", "linear probe"]
    assert all(0 <= row[name] <= 1 for row in rows for name in shares)
    assert module.table(rows).count("\n| ") == len(rows)
    module.SETTING = {"hidden": [8], "epochs": 1, "rate": 2e-3}
    found = module.choose(1, 40, [{"hidden": [6]}], data, folder)
    assert [row["setting"]["hidden"] for row in found] == [[8], [6]]
    # A perfect generator is as coherent as the judges are right; others are by chance.
    found = module.parts(data, 60)
    nets = [lambda x, v=v: x[:, 0, v, :10] for v in range(5)]
    labels = found["test"].labels
    exact = torch.nn.functional.one_hot(labels, 14).float()
    exact = exact[:, None, None, None].expand(-1, 5, 3, 14, -1)
    for x, share in ((exact, 1.0), (exact.roll(1, -1), 0.0)):
        shown = module.coherence(lambda _, seen, x=x: x, found["test"], nets)
        assert shown == dict.fromkeys(module.COHERENCE, share)
        assert module.agreement(x, nets) == 1.0
    one_other = torch.cat([exact[:, :4], exact[:, 4:].roll(1, -1)], 1)
    assert module.agreement(one_other, nets) == 0.0
    present = module.some_absent(torch.rand(4_000, 5, 1)).present
    assert present.any(1).all() and 0.47 < present.all(1).double().mean() < 0.56
    # Textures are in [0, 1], and differ between items.
    grid, free = torch.rand(2, 14, 14), torch.rand(5, 9)
    for texture in module.TEXTURES:
        back = texture(2 * grid - 1, free)
        assert back.shape == (5, 14, 14) and 0 <= back.min() <= back.max() <= 1
        assert not torch.equal(back[0], back[1])


def hand_set_weights(module: ModuleType, folder: Path) -> None:
    module.SLICES = 8
    options = {"seeds": 1, "epochs": 1, "factors": (0.1,), "results": folder}
    rows = module.main(**options)
    assert module.main(**options) == rows  # from the report
    assert len(rows) == len(module.WEIGHTED) + len(module.WITHOUT)
    assert all(0 <= row["validation: linear probe"] <= 1 for row in rows)
    assert len(module.scales(rows)) == 2
    assert all(len(each) == 1 for each in module.scales(rows).values())
    shown = module.table(rows)
    assert shown.count("**") == 2 * 2 and "÷ 10" in shown
    assert (folder / "hand_set_weights.png").is_file()
    # A factor of one is the published objective.
    data = ps.data.digits()
    weight = module.lejepa(data, 1.0).weight
    assert weight == pytest.approx(ps.limits.LeJEPA(torch.nn.Identity()).weight)
    z, published = torch.randn(40, 2, 6), ps.limits.VICReg(torch.nn.Identity())
    ours = module.vicreg(data, 1.0)
    batch = ps.Batch(z)
    assert sum(ours.value(z, batch)) == pytest.approx(float(sum(published(batch))))


def same_class_pairs(module: ModuleType, folder: Path) -> None:
    module.BATCH, labels = 40, torch.arange(300) % 4
    images = torch.zeros(300, 1, 8, 8)
    for k in range(4):
        images[labels == k, :, 4 * (k // 2) :, 4 * (k % 2) :] = 1.0
    data = ps.data.arrays(images, labels)
    seeds = dict.fromkeys(module.OBJECTIVES, 1) | {module.EXACT: 2}
    rows = module.main(seeds, 1, data, folder)
    assert module.main(seeds, 1, data, folder) == rows  # from the report
    assert len(rows) == 4 and module.table(rows).count("\n| ") == 3
    assert all(0 < row["validation: accuracy"] <= 1 for row in rows)
    batch = module.pairs(images, labels)(range(30))
    assert batch.views.shape == (30, 2, 1, 8, 8)
    with mock.patch.object(module, "MOVED", torch.nn.Identity()):
        batch = module.pairs(images, labels)(range(300))
    assert torch.equal(batch.views[:, 0], batch.views[:, 1])
    assert len(batch.views[:, 0].unique(dim=0)) == 4


def table_of_limits(module: ModuleType, folder: Path) -> None:
    names = ("LogDet", "SimVAE", *module.EMPTY)
    options = {"seeds": 2, "epochs": 1, "results": folder}
    first = module.main(("digits",), names[:1], **options)["digits"]
    assert [(fit["objective"], fit["seed"]) for fit in first] == [
        ("LogDet", 0),
        ("LogDet", 1),
    ]
    fits = module.main(("digits",), names, **options)["digits"]
    assert fits[:2] == first and len(fits) == 2 * len(names)
    assert all(0 <= fit["probe"] <= 1 for fit in fits)
    for fit in fits:
        value = fit["alignment"] + fit["entropy"]
        assert fit["value"] == pytest.approx(value, abs=1e-6)
    saved = json.loads((folder / "table_digits.json").read_text())
    assert saved["fits"] == fits and saved["rows"] == module.averaged(fits)
    assert list(saved["rows"]) == list(names) and saved["rows"]["SimVAE"]["seeds"] == 2
    assert module.table(saved["rows"]).count("\n| ") == len(names)
    found = module.choose(seeds=1, epochs=1, results=folder)
    tried = {name: tried for name, (_, tried) in module.EMPTY.items()}
    for name, settings in tried.items():
        own = [row["setting"] for row in found if row["choice"] == name]
        assert own == list(settings) and module.chosen(found, name) == settings[0]
    # The divergence from the uniform distribution is that of a small concentration.
    torch.manual_seed(0)
    dim, kappa, n = 3, 0.5, 20_000
    prior = ps.priors.Spherical(dim, 1.0)
    z = torch.nn.functional.normalize(torch.randn(4 * n, dim), dim=-1)
    keep = torch.rand(4 * n) < (1 + kappa * z[:, 0]) / (1 + kappa)
    area = math.log(4 * math.pi)
    for sample, expected in ((z[:n], 0.0), (z[keep][:n], kappa**2 / (2 * dim))):
        divergence = area - module.to_uniform(sample[:, None], prior)
        assert float(divergence) == pytest.approx(expected, abs=0.003)
    # With learned means the mixture's cell has no upper bound.
    values = []
    for factor in (10.0, 20.0):
        means = factor * torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
        prior = ps.priors.Mixture(3, ps.priors.Components.at(means), 0.5)
        entropy = ps.entropies.LogDeterminant(epsilon=0.0)
        cell = ps.limits.Embedding(torch.nn.Identity(), prior, entropy)
        z = means.unsqueeze(1).expand(-1, 2, -1)
        values.append(sum(cell(ps.Batch(z))).item())
    assert values[1] - values[0] == pytest.approx(2 * 3 * math.log(2), abs=1e-3)


SHORT = {
    "against_baselines": against_baselines,
    "clusters_mnist": clusters_mnist,
    "content_and_style": content_and_style,
    "digit_map": digit_map,
    "digits": digits,
    "dsa_cifar10": dsa_cifar10,
    "few_labels_mnist": few_labels_mnist,
    "five_gaussians": five_gaussians,
    "hand_set_weights": hand_set_weights,
    "frozen_evidence": frozen_evidence,
    "joint_embedding_vs_reconstruction": joint_embedding_vs_reconstruction,
    "limits_cifar10": limits_cifar10,
    "limits_mnist": limits_mnist,
    "moving_digits": moving_digits,
    "multimodal_halves": multimodal_halves,
    "novelty_mnist": novelty_mnist,
    "paradigms_under_noise": paradigms_under_noise,
    "pid_cifar10": pid_cifar10,
    "poly_mnist": poly_mnist,
    "reliable_evidence": reliable_evidence,
    "same_class_pairs": same_class_pairs,
    "same_content": same_content,
    "shallow_cells": shallow_cells,
    "scale_calibration": scale_calibration,
    "scale_of_views": scale_of_views,
    "simvae_cifar10": simvae_cifar10,
    "simvae_mnist": simvae_mnist,
    "simvae_release": simvae_release,
    "style_plane": style_plane,
    "table_of_limits": table_of_limits,
    "vae_baselines": vae_baselines,
    "writers_mnist": writers_mnist,
}


def test_rows_are_collected_once_and_other_rows_are_kept(tmp_path):
    path, fitted = tmp_path / "report.json", []

    def fit(cell: dict) -> dict:
        fitted.append(cell["n"])
        return {"square": cell["n"] ** 2}

    cells = [{"n": n, "setting": {"rate": 0.1}} for n in range(3)]
    assert report.known(path) == []
    for some in (cells[:2], cells[1:], cells[1:]):
        rows = report.collected(path, "x.py", some, fit, epochs=3)
        assert rows == [cell | {"square": cell["n"] ** 2} for cell in some]
    assert fitted == [0, 1, 2] and len(report.read(path)) == 3
    assert report.known(path, epochs=4) == [] != report.known(path, epochs=3)
    assert report.collected(path, "x.py", cells[:1], fit, epochs=4) == rows[:0] + [
        {**cells[0], "square": 0}
    ]
    assert fitted == [0, 1, 2, 0]


def test_a_setting_is_changed_where_another_is_better_by_two_standard_errors():
    drawn = np.random.default_rng(0)
    base = drawn.normal(size=(4, 3))  # seeds, methods
    above = {"a": [0.0] * 4, "b": [1.0, 1.2, 0.9, 1.1], "c": [9.0, -3.0, 0.0, 1.0]}
    rows = [
        {"setting": {"x": x}, "seed": s, "method": m, "score": base[s, m] + more[s]}
        for x, more in above.items()
        for s, m in np.ndindex(4, 3)
    ]
    gains = {setting["x"]: (a, b) for setting, a, b in report.gains(rows, {"x": "a"})}
    assert list(gains) == ["c", "b"]  # the best first
    for x, (gain, error) in gains.items():
        assert gain == pytest.approx(np.mean(above[x]))
        assert error == pytest.approx(np.std(above[x], ddof=1) / 2)
    assert report.chosen(rows, {"x": "a"}) == {"x": "b"}  # the gain of c is uncertain
    assert report.chosen(rows, {"x": "b"}) == {"x": "b"}
    one = [row for row in rows if row["seed"] == 0]  # whose error is unknown
    assert report.gains(one, {"x": "a"})[0][1:] == (pytest.approx(9.0), math.inf)
    assert report.chosen(one, {"x": "a"}) == {"x": "a"}
    assert report.choices(one, {"x": "a"}).splitlines()[3].endswith("| +9.000 |")
    (score,) = (each for setting, each in report.scores(rows) if setting == {"x": "a"})
    assert score == pytest.approx(base.mean(1))
    shown = report.choices(rows, {"x": "a"}).splitlines()
    assert shown[0] == "| x | score | above the first |" and len(shown) == 2 + 3
    assert shown[4].endswith("+1.050 ± 0.065 |")


def test_validation_images_are_the_last_of_the_training_set():
    data = ps.data.digits()
    found = report.parts(data, most=50)
    images = torch.cat([found["train"].images, found["validation"].images])
    assert torch.equal(images, data.train.images)
    assert len(found["validation"]) == 50 and found["test"] is data.test
    assert len(report.parts(data)["validation"]) == len(data.train) // 5
    held = report.without_test(data, 50)
    assert torch.equal(held.test.images, data.train.images[-50:])
    assert len(held.train) == len(data.train) - 50


# Scripts that fit to test images, and say why.
FITS_TO_TEST = {"reliable_evidence"}  # a guide, to compare its evidence


def test_every_model_has_a_short_form():
    shared = {"cifar10", "report"}
    assert {path.stem for path in MODELS.glob("*.py")} - shared == set(SHORT)


def imported(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, MODELS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", sorted(SHORT))
def test_functions_of_a_script_reach_its_processes(name, monkeypatch):
    """By value, as those of ``__main__``: a name of a module of torch would stop it."""
    cloudpickle = pytest.importorskip("cloudpickle")  # of joblib
    module = imported(name)
    monkeypatch.setitem(sys.modules, name, module)
    cloudpickle.register_pickle_by_value(module)
    try:
        for part in vars(module).values():
            if isinstance(part, FunctionType) and part.__module__ == name:
                cloudpickle.dumps(part)
    finally:
        cloudpickle.unregister_pickle_by_value(module)


@pytest.mark.parametrize("name", sorted(SHORT))
def test_model_runs_and_fits_nothing_to_test_images(name, tmp_path, monkeypatch):
    module = imported(name)
    few = partial(probes.few_label_probe, repeats=2)  # most of the time, with 20
    for place in (probes, ps.evaluation):
        monkeypatch.setattr(place, "few_label_probe", few)
    assert module.__doc__ and module.main.__doc__
    with held_out.watched(module) as calls:
        SHORT[name](module, tmp_path)
    if name not in FITS_TO_TEST:
        held_out.check(calls, tmp_path / "again", getattr(module, "CHOSEN_ON", None))


def probed(data: ps.data.Dataset, part: ps.data.Split, **options: object) -> float:
    encoder = ps.nn.MLPEncoder((1, 8, 8), 2, hidden=())
    simclr = ps.limits.SimCLR(encoder)
    given = {"views": ps.views.digits(), "epochs": 6, "progress": False}
    train = data.train.rows(slice(200))
    ps.fit(simclr, train, **given | options)
    known = ps.embed(simclr, train), train.labels
    return ps.evaluation.linear_probe(*known, ps.embed(simclr, part), part.labels)


def honest(data: ps.data.Dataset) -> dict[str, float]:
    held = data.train.rows(slice(200, None))
    return {"validation": probed(data, held), "test": probed(data, data.test)}


def best_of_epochs(data: ps.data.Dataset) -> dict[str, float]:
    options = {"valid": data.test, "patience": 9, "learning_rate": 0.5}
    return {"test": probed(data, data.test, **options)}


def best_of_seeds(data: ps.data.Dataset) -> dict[str, float]:
    return {"test": max(probed(data, data.test) for _ in range(3))}


def fitted_to_validation(data: ps.data.Dataset) -> dict[str, float]:
    return {"validation": probed(data, data.train.rows(slice(150, 200)))}


def named_validation(data: ps.data.Dataset) -> dict[str, float]:
    return {"validation": probed(data, data.test)}


@pytest.mark.parametrize(
    ("main", "message"),
    [
        (honest, None),
        (best_of_epochs, "a fit depends on test images"),
        (best_of_seeds, "scores of test images that are not reported"),
        (fitted_to_validation, "a fit depends on validation images"),
        (named_validation, "validation"),
    ],
)
def test_a_script_that_fits_or_chooses_on_test_images_is_caught(
    main, message, tmp_path
):
    data, module = ps.data.digits(), ModuleType("script")
    module.main = main
    data = data._replace(train=data.train.rows(slice(200 + 50 * (main is honest))))
    with held_out.watched(module) as calls:
        module.main(data)
    if message is None:
        held_out.check(calls, tmp_path, "validation")
    else:
        with pytest.raises(AssertionError, match=message):
            held_out.check(calls, tmp_path, "validation")


SAID = {"nothing": "chosen", "published": "published", "validation": "validation"}


@pytest.mark.parametrize("name", sorted(SHORT))
def test_script_and_page_say_what_settings_were_chosen_on(name):
    """`CHOSEN_ON` is held against the run above; words repeat it."""
    tree = ast.parse((MODELS / f"{name}.py").read_text())
    names = {ast.unparse(n.targets[0]): n.value for n in tree.body if is_constant(n)}
    assert "CHOSEN_ON" in names, f"set CHOSEN_ON to one of {', '.join(SAID)}"
    chosen, about = ast.literal_eval(names["CHOSEN_ON"]), ast.get_docstring(tree)
    assert "chosen" in about and SAID[chosen] in about
    for page, heading in re.findall(r'docs/(\w+)\.md,\s+"([^"]+)"', about):
        text = (ROOT / "docs" / f"{page}.md").read_text()
        section = text.partition(f"## {heading}\n")[2].partition("\n## ")[0]
        # A script may be merged before it has run; then the page lacks the section.
        assert not section or ("chosen" in section and SAID[chosen] in section)
        assert not re.search(r"(?<!othing was )chosen\s+on (these )?test", section)


def is_constant(node: ast.stmt) -> bool:
    return isinstance(node, ast.Assign) and len(node.targets) == 1
