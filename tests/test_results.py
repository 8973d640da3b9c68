"""Tables and figures of the documentation are those in benchmarks/results."""

import importlib.util
import json
import re
import statistics
import sys
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import report
import torch

import probssl as ps

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "models"))  # scripts import one another
README = (ROOT / "README.md").read_text()
DIGITS, PERFORMANCE, ADVICE, NOVELTY, TEXT = (
    (ROOT / "docs" / f"{page}.md").read_text()
    for page in ("results", "performance", "howto/advice", "howto/novelty", "papers")
)


def figures(name: str) -> dict[str, Any]:
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "models" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def spread(values: list[float], digits: int = 3) -> str:
    x = torch.tensor(values, dtype=torch.float64)
    return f"{x.mean():.{digits}f} ± {x.std():.{digits}f}"


def rows(heading: str, text: str = TEXT) -> list[list[str]]:
    """The cells of the first table under a heading, without its first two lines."""
    table = re.search(r"^\|.*?(?=\n\n)", text.split(heading)[1], re.M | re.S)
    lines = table.group(0).splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_tables_of_additions_are_those_of_their_fits():
    measured = figures("against_baselines")
    assert script("against_baselines").tables(measured["rows"]).strip() in TEXT
    fits = {(row["data"], row["seed"], row["method"]) for row in measured["rows"]}
    assert len(fits) == len(measured["rows"]) == 2 * 3 * 20


def test_the_table_of_frozen_encoders_is_that_of_its_rows():
    measured = figures("frozen_evidence")["rows"]
    assert script("frozen_evidence").table(measured) in DIGITS
    fits = {(row["seed"], row["method"]) for row in measured}
    assert len(fits) == len(measured)
    means = {
        name: statistics.mean(r["evidence"] for r in measured if r["method"] == name)
        for name in {row["method"] for row in measured} - {"PCA"}
    }
    own = means.pop("VAE"), means.pop("SimVAE")
    assert round(min(own) - max(means.values())) == 24  # nats
    bad = {name: [] for name in means | {"VAE": 0, "SimVAE": 0}}
    for row in measured:
        bad.get(row["method"], []).append(row["k̂ above 0.7"])
    assert bad["VAE"] == bad["SimVAE"] == [0] * 5
    steps = figures("frozen_evidence_steps")["rows"]
    made = script("frozen_evidence")
    assert made.table_by_steps(steps) in DIGITS
    found = {(row["method"], row["steps"]): row["evidence"] for row in steps}
    for (few, many), rise in {(250, 500): [5, 5, 6], (1000, 2000): [2, 4, 3]}.items():
        gains = [found[name, many] - found[name, few] for name in made.COMPARED]
        assert [round(gain) for gain in gains] == rise
    unreliable = [count for name in means for count in bad[name]]
    assert (min(unreliable), max(unreliable)) == (1, 19)


CHOICES = {  # the first setting, the setting of the script, digits and page
    "against_baselines": lambda made: (*made.CHOICES[:2], 3, TEXT),
    "digit_map": lambda made: ({"map": made.TRIED[0]}, {"map": made.SETTING}, 4, TEXT),
    "joint_embedding_vs_reconstruction": lambda made: (made.READINGS[0],) * 2,
    "paradigms_under_noise": lambda made: (made.SETTING,) * 2 + (3, DIGITS),
    "poly_mnist": lambda made: (made.SETTING,) * 2 + (1, DIGITS),
}


@pytest.mark.parametrize("name", CHOICES)
def test_scripts_have_the_settings_that_validation_items_chose(name):
    rows = figures(f"{name}_choices")["rows"]
    first, kept, *shown = CHOICES[name](script(name))
    assert report.chosen(rows, first) == kept
    if shown:
        digits, page = shown
        assert report.choices(rows, first, digits) in page


@pytest.mark.parametrize(("name", "fits"), [("mnist", 72), ("fashion_mnist", 27)])
def test_the_tables_of_simvae_are_those_of_their_fits(name, fits):
    measured = figures(f"simvae_{name}")["rows"]
    assert script("simvae_mnist").tables(measured).strip() in DIGITS
    keys = ("views", "passes", "method", "seed")
    assert len({tuple(row[key] for key in keys) for row in measured}) == fits


def test_the_tables_of_the_released_objective_are_those_of_their_fits():
    measured, made = figures("simvae_release")["rows"], script("simvae_release")
    assert made.tables(measured).strip() in DIGITS
    fits = {(row["data"], row["views"], row["passes"]) for row in measured}
    assert fits <= set(made.RUNS.values())
    fits = {(*fit, method) for fit in fits for method in made.METHODS}
    keys = ("data", "views", "passes", "method")
    assert sorted(tuple(row[key] for key in keys) for row in measured) == sorted(
        3 * list(fits)
    )

    def ahead(figure: str, views: str = "affine") -> float:
        """Of the released objective over the bound, on MNIST."""
        at = {"data": "mnist", "views": views}
        own = [row[figure] for row in measured if at.items() <= row.items()]
        each = torch.tensor(own).view(2, 3).mean(1)
        return float(each[0] - each[1])

    text = " ".join(
        DIGITS.split("## The objective of SimVAE's released code")[1].split()
    )
    assert f"exact bound is {-ahead('test: bound of pairs'):.0f} nats lower" in text
    assert f"crops ({-ahead('test: bound of pairs', 'crops'):.0f} nats lower)" in text
    better, entropy, worse = (ahead(f"test: {name}") for name in made.TERMS)
    assert f"reconstructs {better:.0f} nats better, and loses {-worse:.0f} in" in text
    assert f"alignment and {-entropy:.0f} in the entropy" in text


def test_the_clusters_of_mnist_are_those_of_their_fits():
    made, measured = script("clusters_mnist"), figures("clusters_mnist")["rows"]
    assert made.table(measured) in DIGITS and made.shares(measured) in DIGITS
    section = DIGITS.split("## Clusters")[1].split("\n## ")[0]
    text, about = " ".join(section.split()), " ".join(made.__doc__.split())
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for row in measured:
        found.setdefault(row["method"], {})[row["seed"]] = row

    def mean(name: str, key: str = "test: accuracy") -> float:
        return sum(row[key] for row in found[name].values()) / len(found[name])

    vae, base = "VAE, Gaussian mixture of z", "SimVAE, Gaussian mixture of z"
    labelled, seen = "Mixture, with labels", {vae: made.FEW, made.RANDOM: made.FEW}
    seen |= {labelled: made.FEW, made.LABELLED: made.FEW}
    for name in (base, *made.FITS, made.JOINED, *seen):
        assert sorted(found[name]) == list(range(seen.get(name, made.SEEDS)))
    bounds = {name: mean(name, "validation: bound") for name in found}
    for name in (made.LABELLED, made.RANDOM, made.JOINED):
        assert f"{bounds[name]:.1f}".replace("-", "−") in text
    gain = bounds[made.LABELLED] - bounds[made.RANDOM]
    assert f"a bound {gain:.0f} nats above" in about
    assert bounds[made.LABELLED] > bounds[labelled]
    falls = f"falls from {mean(labelled):.3f} to {mean(made.LABELLED):.3f}"
    assert falls in text and f"ends at {mean(made.LABELLED):.3f}" in about
    many = mean(made.JOINED_MANY)
    assert f"best mean is {many:.3f}" in text and many > mean(made.JOINED)
    assert f"Reaches {mean('Mixture'):.3f} with ten components and {many:.3f}" in about
    below = (mean(base) - mean(name) for name in ("Mixture", "TwoTier"))
    assert "end {:.3f} and {:.3f} below".format(*below) in text
    gains = [
        found[base][k]["test: accuracy"] - row["test: accuracy"]
        for k, row in found[vae].items()
    ]
    assert f"{sum(gains) / len(gains):.3f} above that of the VAE" in text
    empty = [
        row["validation: classes by clusters"]
        for row in measured
        if row["method"] in ("Mixture", "TwoTier")
    ]
    assert all(sum(column) for each in empty for column in zip(*each, strict=True))


def test_the_likelihoods_of_binary_images_are_those_measured():
    measured = figures("vae_baselines")["rows"]
    assert script("vae_baselines").table(measured) in DIGITS
    for row in measured:
        if "refined less annealed" in row:
            ends = ("", ": standard error")
            gap, error = (row[f"refined less annealed{end}"] for end in ends)
            assert f"{gap:.2f} ± {error:.2f}" in DIGITS
        if row["seed"] > 0 or row["epochs"] < 120:
            continue
        curve = [f"{row['validation'][epoch]:.1f}" for epoch in ("20", "60", "120")]
        assert f"from {' to '.join(curve)}" in " ".join(DIGITS.split())


def test_the_scores_and_terms_of_all_objectives_on_mnist_were_measured():
    measured = figures("limits_mnist")["rows"]
    made, section = (
        script("limits_mnist"),
        DIGITS.split("## All objectives on MNIST")[1],
    )
    assert made.tables(measured).strip() in section
    assert {row["seed"] for row in measured} == {0, 1, 2}
    decoded: dict[str, list[float]] = {}
    for row in measured:
        if row.get("decoded") is not None:
            decoded.setdefault(row["method"], []).append(row["decoded"])
    mean = {name: statistics.mean(values) for name, values in decoded.items()}
    fitted = {row["method"] for row in measured if row.get("elbo") is not None}
    fitted |= {"DenoisingAutoencoder", "MaskedAutoencoder"}
    others = mean.keys() - fitted - {made.PCA, "raw pixels", "untrained encoder"}
    for some in (fitted, others):
        high, low = (f"−{-of(mean[n] for n in some):.1f}" for of in (max, min))
        assert f"{high} to {low}" in section.split("## Few labels")[0]


def test_what_halves_of_digits_share_was_measured():
    found = figures("multimodal_halves")
    made, section = script("multimodal_halves"), DIGITS.split("## Two modalities")[1]
    assert made.table(found["rows"]) in section
    whole, upper, lower = (f"{share:.3f}" for share in found["neighbours"].values())
    said = f"{whole} for true images, {upper} and {lower} for the upper and the lower"
    assert said in " ".join(section.split())
    first: dict[str, list[dict]] = {}
    for row in found["rows"]:
        first.setdefault(row["method"], []).append(row)
    both = {n: statistics.mean(r[made.BOTH] for r in own) for n, own in first.items()}
    coupled = min(both["Gaussian, Coupled"], both["12 + 8, Coupled"])
    assert f"{coupled - both['two VAEs']:.0f} nats over two VAEs" in section
    assert f"by {coupled - both['one VAE']:.0f} over one VAE" in section
    above = both["12 + 8, Coupled, some absent"] - both["two VAEs"]
    assert f"{above:.1f} above two VAEs" in section
    absent = both["12 + 8, Coupled"] - both["12 + 8, Coupled, some absent"]
    assert f"falls by {absent:.0f} nats" in section
    alone = {
        name: statistics.mean(row[made.FIRST] for row in own)
        for name, own in first.items()
        if name != "one VAE"
    }
    lost = (
        alone["two VAEs"] - alone[n] for n in ("Gaussian, Coupled", "12 + 8, Coupled")
    )
    assert "{:.0f} to {:.0f} nats below".format(*lost) in section
    (label,) = (name for name in first if name.startswith("label"))
    said = f"have −{-both[label]:.1f} nats, −{-alone[label]:.1f} for the image alone"
    assert said in section


def test_the_figures_of_multivae_are_those_measured():
    measured = figures("multimodal")["figures"]
    columns = [name for name in script("poly_mnist").COLUMNS if name in measured[0]]
    for name in ("MoPoE", "MVTCAE"):
        own = [row for row in measured if row["method"] == name]
        assert len(own) == 3
        each = (
            report.spread([row[column] for row in own], 1 if "log" in column else 3)
            for column in columns
        )
        assert f"| {name} | {' | '.join(each)} |" in DIGITS


def test_the_coherence_of_five_modalities_was_measured():
    found, section = figures("poly_mnist"), DIGITS.split("## Five modalities")[1]
    assert script("poly_mnist").table(found["rows"]) in section
    right = found["judges of true images"]
    assert f"right on {min(right):.2f} to {max(right):.2f}" in section
    four, alone = (
        statistics.mean(
            row["given 4"] for row in found["rows"] if row["method"] == name
        )
        for name in ("Gaussian, Coupled, some absent", "Gaussian")
    )
    said = f"to {four:.2f} of images given four, factorised {alone:.2f}"
    assert said in " ".join(section.split())


def test_the_scores_of_views_in_order_are_those_of_their_fits():
    measured = figures("moving_digits")["rows"]
    assert script("moving_digits").table(measured) in DIGITS
    assert all(row["test: share of k̂ > 0.7"] == 1 for row in measured)
    assert len(measured) == 12


def test_the_scores_of_content_and_style_are_those_of_their_fits():
    measured = figures("content_and_style")["rows"]
    assert script("content_and_style").table(measured) in DIGITS
    assert len({(row["prior"], row["seed"]) for row in measured}) == 4 * 3


def found_in(table: str, name: str) -> dict[str, str]:
    """The cells of a row of a table in Markdown, by their columns."""
    head, _, *lines = (
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in table.splitlines()
    )
    return next(dict(zip(head, row, strict=True)) for row in lines if row[0] == name)


def test_style_beside_content_was_measured():
    made, measured = script("style_plane"), figures("style_plane")["rows"]
    section = DIGITS.split("## Style beside content")[1].split("\n## ")[0]
    text = " ".join(section.split()).replace("−", "-")
    assert all(shown in section for shown in made.tables(measured).values())
    fits = {(row["data"], row["method"], row["seed"]) for row in measured}
    assert len(fits) == len(measured) == 2 * 3 * len(made.METHODS)
    known = {
        (row["method"], row["seed"]): row for row in figures("limits_mnist")["rows"]
    }
    for row in measured:  # the encoders of MNIST are those of that table
        if row["data"] == "mnist" and row["method"] != made.COUPLED:
            probes = known[row["method"], row["seed"]]
            assert row["content: linear"] == probes["linear_probe"]
            assert row["content: 5-NN"] == probes["knn"]

    def mean(data: str, method: str, column: str) -> float:
        at = {"data": data, "method": method}
        return statistics.mean(r[column] for r in measured if at.items() <= r.items())

    def ahead(other: str, column: str, data: str = "mnist") -> str:
        found = mean(data, "SimVAE", column) - mean(data, other, column)
        return f"{abs(found):.3f}"

    def each(column: str, *methods: str, data: str = "mnist") -> tuple[str, ...]:
        return tuple(f"{mean(data, method, column):.3f}" for method in methods)

    style, near = "style: linear", "style: 5-NN"
    said = "is {} above SimCLR's and {} above VICReg's"
    assert said.format(*(ahead(m, style) for m in ("SimCLR", "VICReg"))) in text
    said = "content is {} and {} lower by a linear probe, and {} and {} higher by 5-NN"
    columns = ("content: linear", "content: 5-NN")
    found = [ahead(m, column) for column in columns for m in ("SimCLR", "VICReg")]
    assert said.format(*found) in text
    over = found_in(made.tables(measured)["mnist: gains"], "SimVAE over BYOL")
    said = f"gains {over[style].strip('+')}, by 5-NN {over[near].strip('+')}"
    assert said in text
    said = f"has {ahead(made.COUPLED, style)} more by a linear probe, and "
    assert said + f"{ahead(made.COUPLED, near)} less by 5-NN" in text
    (shown,) = each("content: linear", "SphericalSimVAE")
    assert f"has less content, {shown} by a linear probe" in text
    said = "R² {} and {}, where SimVAE has {} and BYOL {}"
    methods = ("SimCLR", "VICReg", "SimVAE", "BYOL")
    assert said.format(*each("position: linear", *methods)) in text
    said = "BYOL ({}) and VICReg ({}) hold more than SimVAE ({})"
    methods = ("BYOL", "VICReg", "SimVAE")
    assert said.format(*each("thickness: linear", *methods)) in text
    said = (
        "BYOL ({}) and VICReg ({}) more often than in SimVAE's ({}) and SimCLR's ({})"
    )
    assert said.format(*each("writer: linear", *methods, "SimCLR")) in text
    assert f"by 5-NN SimVAE ({each('writer: 5-NN', 'SimVAE')[0]}) is ahead" in text
    assert "has {} of it, SimVAE {}".format(*each(style, "VAE", "SimVAE")) in text
    columns = ("content: linear", style)
    (shown,) = each(columns[0], "SimVAE", data="factors")
    assert f"VICReg (1.000) far better than in SimVAE ({shown})" in text
    for method in set(made.METHODS) - {made.UNTRAINED}:
        assert mean("factors", method, "content: 5-NN") >= 0.999
    found = [ahead(m, near, "factors") for m in ("SimCLR", "VICReg", "BYOL")]
    assert "is {} and {} above that of SimCLR and VICReg, and {}".format(*found) in text
    found = [each(column, "BYOL", data="factors")[0] for column in columns]
    assert "most of both by linear probes: {} and {}".format(*found) in text
    gaps = {method: mean("factors", method, "MIG") for method in made.METHODS}
    assert f"MIG is at most {gaps[made.PCA]:.3f}" in text
    assert max(gaps.values()) == gaps[made.PCA]
    missed = [row["ICA converged"] for row in measured if row["data"] == "factors"]
    assert f"not converge in {missed.count(False)} of {len(missed)} cases" in text


def test_the_novelty_of_images_was_measured():
    made, measured = script("novelty_mnist"), figures("novelty_mnist")["rows"]
    section = DIGITS.split("## Novel images")[1].split("\n## ")[0]
    text = " ".join(section.split()).replace("−", "-")
    assert made.tables(measured).strip() in section
    fits = {(row["method"], row["seed"], row["kind"]) for row in measured}
    assert len(fits) == len(measured) == 2 * 3 * 10

    def mean(kind: str, column: str, method: str = "SimVAE") -> float:
        at = {"kind": kind, "method": method}
        return statistics.mean(r[column] for r in measured if at.items() <= r.items())

    def auroc(kind: str, score: str, method: str = "SimVAE") -> str:
        return f"{mean(kind, f'{score}: AUROC', method):.3f}"

    nats = [f"{mean(kind, 'log p(x)'):.1f}" for kind in ("black", "known", "white")]
    said = "a black image has {} nats, a digit {}, and no black image is found"
    assert said.format(*nats) in text and f"white images have {nats[2]} nats" in text
    dark = [auroc(kind, "evidence") for kind in ("black", "a dot")]
    assert "(AUROC {}), nor a dot ({})".format(*dark) in text
    places = [auroc(k, s) for k in ("black", "a dot") for s in made.SCORES[2:]]
    assert set(places) == {"1.000"} and "finds both** (1.000)" in text
    density, evidence = (auroc("Omniglot", s) for s in ("log_density", "evidence"))
    said = f"letters {density} of SimVAE by kernel density, by evidence {evidence}"
    assert said in text
    novel = {row["kind"] for row in measured} - {made.KNOWN, made.SAME}
    shared = sorted(auroc(kind, "information") for kind in novel)
    said = f"(AUROC {shared[0]} to {shared[-1]})"
    assert said in text and said in NOVELTY
    shared = [f"{mean(kind, 'shared'):.1f} nats" for kind in ("black", "known")]
    said = "equal, {} on average, and those of a digit differ, {}"
    assert said.format(*shared) in text
    assert "finds none (AUROC 0.000)" in NOVELTY and dark[0] == "0.000"
    assert mean("black", "log p(x)") - mean("known", "log p(x)") > 100
    clothes, letters = (
        [auroc(kind, "log_density", method) for method in made.METHODS]
        for kind in ("Fashion-MNIST", "Omniglot")
    )
    said = "by density {} and {}, letters {} and {}".format(*clothes, *letters)
    assert said in text
    scores = [(m, s) for m in made.METHODS for s in made.SCORES]
    same = [mean(made.SAME, f"{s}: AUROC", m) for m, s in scores[:5] + scores[6:]]
    assert 0.485 < min(same) and max(same) < 0.505
    errors = {
        score: max(row.get(f"{score}: standard error", 0) for row in measured)
        for score in made.SCORES
    }
    said = "at most {:.3f}, at the places of z {:.3f}"
    limits = max(errors.values()), max(errors["log_density"], errors["distance"])
    assert said.format(*limits) in text


@pytest.mark.parametrize("data", ["mnist", "cifar10"])
def test_the_areas_of_the_affinity_were_measured(data):
    measured = [row for row in figures("same_content")["rows"] if row["data"] == data]
    names = [key for key in measured[0] if key not in ("data", "seed", "affinity")]
    shown = {
        cells[1]: cells[2:] for cells in rows("## Same content") if cells[0] == data
    }
    assert shown.keys() == {"learned", "closed form"}
    for kind, cells in shown.items():
        own = [row for row in measured if row["affinity"] == kind]
        assert len(own) == 3
        assert cells == [spread([row[name] for row in own]) for name in names]


def test_the_scores_of_the_maps_were_measured():
    measured = figures("digit_map")["rows"]
    names = {"`maps.NeighbourMap`": script("digit_map").SETTING}
    names |= {"t-SNE": "t-SNE", "PCA": "PCA"}
    digits = {"held_out": 3, "train": 3, "silhouette": 3, "cpu_seconds": 0}
    shown = rows("## A map of ten thousand digits")
    assert [cells[0] for cells in shown] == list(names)
    for cells in shown:
        own = [row for row in measured if row["method"] == names[cells[0]]]
        assert len(own) == 3
        found = [spread([row[key] for row in own], n) for key, n in digits.items()]
        assert cells[1:] == found
    best = [row for row in measured if row["method"] == script("digit_map").SETTING]
    assert all(row["held_out"] >= 0.9 for row in best)
    assert all(row["wall_seconds"] < 600 for row in best)


def test_what_lowers_pareto_k_was_measured():
    page = (ROOT / "docs" / "howto" / "evidence.md").read_text()
    measured = figures("reliable_evidence")["rows"]
    shown = re.findall(r"^\| (.+?) \| (-[\d.]+ \|.+ %) \|$", page, re.M)
    assert [name for name, _ in shown] == list(script("reliable_evidence").VARIANTS)
    for name, cells in shown:
        own = [row for row in measured if row["change"] == name]
        assert [row["particles"] for row in own] == [100, 1_000, 10_000]
        found = [f"{own[-1]['evidence']:.1f}", f"{own[-1]['median_ess']:.0f}"]
        found += [f"{100 * row['above']:.0f} %" for row in own]
        assert cells.split(" | ") == found
    of = {(row["change"], row["particles"]): row for row in measured}
    gain = of["`refine=500`", 10_000]["evidence"] - of["quickstart", 10_000]["evidence"]
    assert f"the estimate rises by {gain:.1f} nats" in page
    assert f"it takes {of['`refine=500`', 1_000]['cost']:.0f} times the time" in page


def test_the_guides_of_mnist_were_measured_on_no_test_image():
    measured = figures("scale_of_views")
    made = script("scale_of_views")
    assert made.table(measured["rows"]).strip() in DIGITS
    assert len(measured["rows"]) == 3 * made.SEEDS * (len(made.SCALES) + 1)
    assert "data.test" not in (ROOT / "models" / "scale_of_views.py").read_text()


def table(text: str, cells: str, columns: int) -> dict[str, list[str]]:
    """The rows of the table whose cells look like this, by their names."""
    found = re.findall(rf"^\| ([^|]+) \|((?: {cells} \|){{{columns}}})$", text, re.M)
    return {name: row.strip(" |").split(" | ") for name, row in found}


def measured() -> dict[str, dict[str, tuple[float, float]]]:
    return figures("digits")["mean and sd"]


def test_every_figure_in_the_tables_of_digits_was_measured():
    made = script("digits")
    for columns in (made.SCORES, made.MATRIX):
        assert made.table(measured(), columns) in DIGITS


def test_recipes_have_the_settings_that_validation_images_of_digits_chose():
    made, measured = script("digits"), figures("digits_choices")["rows"]
    assert made.choices(measured) in DIGITS
    data = ps.data.digits()
    for method in {row["choice"] for row in measured} - {"data augmentation"}:
        torch.manual_seed(0)
        recipe = ps.recipes.objective(method, data)
        torch.manual_seed(0)
        own = made.GRIDS[method][0](data, **made.chosen(measured, method))
        assert repr(recipe) == repr(own)
        one, other = recipe.state_dict(), own.state_dict()
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one), method


def test_every_score_in_the_readme_was_measured():
    scores, shown = measured(), table(README, r"-?[.\d]+ ± [.\d]+", 4)
    columns = {"linear_probe": 3, "few_label_probe": 3, "info_nce": 1, "decoded": 1}
    assert len(shown) == 5
    for name, cells in shown.items():
        found = (scores[name][column] for column in columns)
        digits = columns.values()
        for cell, (mean, sd), n in zip(cells, found, digits, strict=True):
            assert cell == f"{mean:.{n}f} ± {sd:.{n}f}", name


def test_every_figure_in_the_text_was_measured():
    scores = measured()
    for method in ("SimVAE", "VAE", "SphericalSimVAE"):
        mean, sd = scores[method]["elbo"]
        assert f"{mean:.1f} ± {sd:.1f}" in DIGITS
    generative = [name for name, row in scores.items() if "elbo" in row]
    generative += ["DenoisingAutoencoder", "MaskedAutoencoder"]
    baselines = {"raw pixels", "PCA-10", "untrained encoder"}
    without = scores.keys() - set(generative) - baselines
    for some in (generative, without):
        decoded = [scores[name]["decoded"][0] for name in some]
        assert f"{max(decoded):.1f} to {min(decoded):.1f}" in DIGITS
    assert f"PCA-10 has {scores['PCA-10']['decoded'][0]:.1f}" in DIGITS
    shared = [f"{scores[name]['info_nce'][0]:.1f}" for name in ("SimVAE", "VAE")]
    assert "InfoNCE {} against {} nats".format(*shared) in DIGITS
    ruler = [f"{scores['LogDet'][c][0]:.1f}" for c in ("log_det", "gaussian_kernel")]
    assert "LogDet has {} nats by its own and {}".format(*ruler) in DIGITS


def test_every_method_holds_what_the_table_says():
    """Above the untrained encoder; from few labels above PCA, or the text says why."""
    scores = measured()
    untrained = scores["untrained encoder"]["knn"][0]
    for name, row in scores.items():
        if name == "untrained encoder":
            continue
        assert row["knn"][0] >= untrained + 0.1 and row["effective_rank"][0] >= 3
    exempt = {"VAE", "BetaVAE", "IWAE", "MaskedAutoencoder", "TSimCLR", "PCA-10"}
    for name in scores.keys() - exempt - {"untrained encoder"}:
        gain, error = scores[name]["few_label_gain"]
        assert gain > 2 * error, name


STEPS = {
    "PyTorch by hand": ("by hand", "ms"),
    "Pyro's `Trace_ELBO`": ("Pyro", "ms"),
    "probssl": ("probssl", "ms"),
    "PyTorch by hand, compiled": ("by hand, compiled", "ms"),
    "probssl, compiled": ("probssl, compiled", "ms"),
    "ours compiled, to that by hand": ("probssl, compiled", "to by hand, compiled"),
    "ours compiled, to Pyro's": ("probssl, compiled", "to Pyro"),
}


def test_every_step_time_in_the_table_was_measured():
    cases = figures("steps")["figures"].values()
    shown = table(PERFORMANCE, r"(?:[.\d]+|–)", 3)
    for name, (step, figure) in STEPS.items():
        found = (case["steps"].get(step, {}).get(figure) for case in cases)
        assert shown[name] == ["–" if x is None else f"{x:g}" for x in found], name


def test_every_rate_of_whole_epochs_was_measured():
    rates = figures("epochs")["figures"]
    shown = table(PERFORMANCE, r"[.\d]+", 2)
    for name in [name for name in rates if "ratio" in rates[name]]:
        row = rates[name]
        assert shown[name] == [f"{row[key]:g}" for key in ("images/s", "ratio")]


def test_the_figures_of_denormals_and_blocks_were_measured():
    text = " ".join(PERFORMANCE.split())
    flushed, kept = figures("denormals")["figures"].values()
    last = "to step 1500"
    assert f"one step takes {flushed[last]:g} ms instead of {kept[last]:g}" in text
    blocks = figures("normaliser")["figures"]
    assert f"take {blocks['megabytes']['blocks, 16384']} MB" in text
    ratios = [row["ratio"] for row in blocks["seconds"]["4096"].values()]
    assert f"take {min(ratios):.1f} to {max(ratios):.1f} of the time" in text


def test_the_seconds_of_a_linear_fit_were_measured():
    seconds = figures("linear")["figures"]["seconds"]
    text = " ".join(ADVICE.split())
    assert f"are fitted in {seconds['whole fit']:g} s on two CPU cores" in text
    assert f"{seconds['moments']:g} s of it for the moments" in text


def test_what_was_advised_and_measured_under_noise_is_what_the_table_says():
    found = figures("paradigms_under_noise")
    row = r"^\| ([\d.]+) \| (moves.*?) \| ([^|]+?) \| (.+) \|$"
    shown = re.findall(row, DIGITS, re.MULTILINE)
    assert len(shown) == len(found["advice"])
    methods = ["SimCLR", "VICReg", "linear joint embedding", "SimVAE"]
    methods += ["denoising autoencoder", "masked autoencoder", "linear reconstruction"]
    for (ratio, views, verdict, cells), advice in zip(
        shown, found["advice"], strict=True
    ):
        assert float(ratio) == advice["ratio"] and verdict == advice["verdict"]
        assert views.endswith("background") == advice["matching"]
        cell = {name: advice[name] for name in ("ratio", "matching")}
        for method, value in zip(methods, cells.split(" | "), strict=True):
            probes = [
                row["linear_probe"]
                for row in found["rows"]
                if row["method"] == method and cell.items() <= row.items()
            ]
            assert value == f"{sum(probes) / len(probes):.2f}", (cell, method)


LABELS = (ROOT / "docs" / "howto" / "labels.md").read_text()
FIGURE = re.search(r'print\(f"{accuracy:.2f}"\)  # (0\.\d\d)', LABELS)


def accuracy_of_the_page(epochs: int) -> float:
    """The accuracy that the first block of docs/howto/labels.md prints."""
    code = re.search(r"```python\n(.*?)```", LABELS, re.S)[1]
    shorter = code.replace("epochs=50", f"epochs={epochs}, progress=False")
    assert shorter != code
    found: dict[str, Any] = {}
    exec(shorter, found)
    return float(found["accuracy"])


def test_few_labels_of_digits_teach_within_few_epochs():
    told = re.search(r"one image in ten .* right on (0\.\d\d) of test", README)
    assert FIGURE[1] == told[1]
    assert accuracy_of_the_page(8) > 0.6


@pytest.mark.slow  # half a minute
def test_the_accuracy_of_the_page_on_labels_was_measured():
    assert abs(accuracy_of_the_page(50) - float(FIGURE[1])) < 0.02


@pytest.mark.slow  # a minute for each
@pytest.mark.parametrize("family", [ps.priors.Mixture, ps.priors.TwoTier])
@pytest.mark.parametrize("share", [0.1, 1.0])
def test_classes_of_digits_are_found_as_other_classifiers_of_z_find_them(family, share):
    digits, found = ps.data.digits(), []
    for seed in range(4):
        torch.manual_seed(seed)
        networks = ps.nn.MLPEncoder((1, 8, 8), 10), ps.nn.MLPDecoder(10, (1, 8, 8))
        prior, likelihood = family(10, 10, scale=0.3), ps.likelihoods.Binomial(16)
        simvae = ps.limits.SimVAE(ps.Joint(prior, likelihood, *networks))
        labels, right = digits.train.labels, digits.test.labels
        known = labels.where(torch.rand(len(labels)) < share, -1)
        options = {"epochs": 40, "learning_rate": 3e-3, "progress": False}
        views = ps.views.digits()
        ps.fit(simvae, digits.train, views=views, content=known, **options)
        z, z_test = (torch.as_tensor(ps.embed(simvae, s)) for s in digits[:2])
        means = torch.stack([z[known == k].mean(0) for k in range(10)])
        nearest = torch.cdist(z_test, means).argmin(1)
        classified = torch.as_tensor(ps.classify(simvae, digits.test)).argmax(1)
        probe = ps.evaluation.linear_probe(
            z[known >= 0], known[known >= 0], z_test, right
        )
        each = [float((k == right).double().mean()) for k in (classified, nearest)]
        found.append([*each, float(probe)])
    classify, nearest, probe = torch.tensor(found).T
    gain = classify - (nearest if share < 1 else probe - 0.02)
    bar = 3 / len(digits.test) + 2 * gain.std() / len(gain) ** 0.5  # three items
    assert gain.mean() >= -bar


def test_the_accuracies_with_few_labels_were_measured():
    made, measured = script("few_labels_mnist"), figures("few_labels_mnist")["rows"]
    assert made.table(measured) in DIGITS
    draws = {(row["labels"], row["draw"]) for row in measured}
    assert len(draws) == len(measured) == 2 * made.DRAWS
    assert all(row["setting"] == made.SETTING._asdict() for row in measured)
    assert made.choices(figures("few_labels_mnist_choices")["rows"]) in DIGITS


def test_the_effects_of_writers_were_measured():
    made, measured = script("writers_mnist"), figures("writers_mnist")["rows"]
    assert made.table(measured) in DIGITS and made.shares(measured) in DIGITS
    fits = {(row["prior"], row["seed"]) for row in measured}
    assert len(fits) == len(measured) == 2 * made.SEEDS
    assert {(row["epochs"], row["writers"]) for row in measured} == {(made.EPOCHS, 508)}
    bad = [n for row in measured for name, n in row.items() if "k̂" in name]
    assert (min(bad), max(bad)) == (601, 781)


def section(heading: str) -> str:
    """A section of docs/results.md."""
    return DIGITS.split(f"\n## {heading}\n")[1].split("\n## ")[0]


def test_places_of_the_table_of_limits_are_those_of_their_fits():
    made, page = script("table_of_limits"), section("The table of limits")
    choices = figures("table_choices")["rows"]
    for name, setting in made.SETTINGS.items():
        assert made.chosen(choices, name) == setting
        assert f"{next(iter(setting.values())):g}" in page
    for data, epochs in made.EPOCHS.items():
        measured = figures(f"table_{data}")
        assert measured["settings"] == made.SETTINGS and measured["epochs"] == epochs
        assert made.averaged(measured["fits"]) == measured["rows"]
        assert made.table(measured["rows"]) in page
        assert made.gains(measured["fits"]) in page
        cells = {(fit["objective"], fit["seed"]) for fit in measured["fits"]}
        assert cells == set(product(measured["rows"], range(made.SEEDS)))
        assert len(cells) == len(measured["fits"])


def test_classes_from_pairs_of_one_class_are_those_of_their_fits():
    made, page = script("same_class_pairs"), section("Pairs of one class")
    measured = figures("same_class_pairs")
    assert measured["epochs"] == made.EPOCHS
    assert made.table(measured["rows"]) in page
    for name, seeds in made.SEEDS.items():
        own = {row["seed"] for row in measured["rows"] if row["objective"] == name}
        assert own == set(range(seeds))

    def mean(name: str) -> float:
        own = [r["test: accuracy"] for r in measured["rows"] if r["objective"] == name]
        return statistics.mean(own)

    exact, marginal, _ = map(mean, made.OBJECTIVES)
    about = " ".join(made.__doc__.split())
    assert f"Reaches {exact:.3f} with the exact objective and {marginal:.3f}" in about


def test_weights_that_are_set_by_hand_were_varied():
    made, page = script("hand_set_weights"), section("Weights set by hand")
    rows = figures("hand_set_weights")["rows"]
    assert made.table(rows) in page
    for values in made.scales(rows).values():
        assert ", ".join(f"{value:.2f}" for value in values) in page
    assert {row["seed"] for row in rows} == set(range(made.SEEDS))
    at = {row["factor"] for row in rows if row["objective"] == "VICReg"}
    assert made.best(rows, "VICReg") == 1 > made.best(rows, "LeJEPA")

    def test(factor: float) -> float:
        own = [r for r in rows if (r["objective"], r["factor"]) == ("VICReg", factor)]
        return statistics.mean(row["test: linear probe"] for row in own)

    assert f"costs {test(1.0) - test(min(at)):.3f}" in page


def test_shallow_cells_are_those_of_their_fits():
    made, page = script("shallow_cells"), section("Shallow cells")
    measured = figures("shallow_cells")
    kept = made.SETTING._asdict() | {"sizes": made.SIZES._asdict()}
    epochs = kept.pop("epochs")
    assert kept.items() <= measured.items()
    rows, longer = (made.after(measured["rows"], n) for n in (epochs, made.LONGER))
    for found, methods, seeds in (
        (rows, made.ROWS, made.SEEDS),
        (longer, made.LONG, made.LONGER_SEEDS),
    ):
        fits = [(row["method"], row["seed"]) for row in found]
        assert sorted(fits) == sorted(product(methods, range(seeds)))
        assert made.table(found, "accuracy") in page
        assert made.sets(found, "guide") in page
    assert made.ways(rows) in page and made.gains(rows) in page
    measured = figures("shallow_cells_refined")
    assert measured["setting"] == made.SETTING._asdict()
    refined = [(row["method"], row["seed"]) for row in measured["rows"]]
    assert sorted(refined) == sorted(product(made.REFINED, range(made.REFINED_SEEDS)))
    assert made.nats(measured["rows"]) in page
    choices = figures("shallow_cells_choices")["rows"]
    for choice in made.TRIED:
        own = [row for row in choices if row["choice"] == choice]
        assert made.choices(own) in page
        chosen = report.chosen(own, made.FIRST._asdict())
        assert chosen == made.SETTING._asdict()

    def mean(method: str, *keys: str) -> float:
        return statistics.mean(made.values(rows, method, *keys))

    text, depths = " ".join(page.split()), [str(depth) for depth in made.DEPTHS]
    scales = [row["scale"] for row in rows if row["method"] == made.LEARNED]
    assert f"learned scale is {statistics.mean(scales):.2f}" in text
    assert made.best(rows, made.HAND) == (base := "VAE + 10 × Barlow Twins")
    assert made.best(rows, made.FIXED) == (tied := "SimVAE, scale 0.1")
    below = [
        mean(base, "accuracy", n) - mean(made.LEARNED, "accuracy", n) for n in depths
    ]
    assert f"{min(below):.2f} to {max(below):.2f} below the best weight" in text
    held = min(mean(tied, "guide", n, "coverage") for n in depths)
    assert f"the type of at least {held:.2f} of the cells at each depth" in text
    hand = [mean(name, "guide", "20", "coverage") for name in made.HAND]
    assert f"it is {min(hand):.2f} to {max(hand):.2f} at 20 counts" in text
