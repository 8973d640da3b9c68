"""The README keeps its word: its code runs, and its figures are the measured ones."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


@pytest.mark.usefixtures("few_digits", "short_decoders")
def test_the_code_runs(tmp_path, monkeypatch, capsys):
    code = "\n".join(re.findall(r"```python\n(.*?)```", README, re.DOTALL))
    short, found = re.subn(r"epochs=\d+", "epochs=1", code)
    assert found == len(re.findall(r"ps\.fit\(|fit_phases\(", code))
    short = re.sub(r"first=\d+", "first=0", short)
    short = re.sub(r"(check_prior\(.*\))\)", r"\1, draws=200)", short)
    short = re.sub(r"(advise\(.*)\)", r"\1, halves=2)", short)
    monkeypatch.chdir(tmp_path)
    exec(compile(short.replace("draws=500", "draws=5"), "README", "exec"), {})
    assert "SimCLR" in capsys.readouterr().out
    assert (tmp_path / "runs" / "simvae" / "model.safetensors").is_file()


def test_the_commands_are_those_of_the_continuous_integration():
    commands = (ROOT / ".ci" / "run").read_text()
    for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL):
        for command in block.strip().split(" && "):
            words = command.split()
            assert all(word in commands for word in words), command


def rows(cells: str, columns: int) -> dict[str, list[str]]:
    """The rows of the table whose cells look like this, by their names."""
    found = re.findall(rf"^\| ([^|]+) \|((?: {cells} \|){{{columns}}})$", README, re.M)
    return {name: row.strip(" |").split(" | ") for name, row in found}


def measured() -> dict[str, dict[str, tuple[float, float]]]:
    results = ROOT / "benchmarks" / "results" / "digits.json"
    return json.loads(results.read_text())["mean and sd"]


def test_every_score_in_the_table_was_measured():
    figures, shown = measured(), rows(r"[-+]?[.\d]+ ± [.\d]+", 6)
    assert shown.keys() == figures.keys()
    formats = {
        "linear_probe": ".3f",
        "few_label_probe": ".3f",
        "few_label_gain": "+.3f",
        "knn": ".3f",
        "cluster_accuracy": ".3f",
        "effective_rank": ".1f",
    }
    for name, cells in shown.items():
        for cell, (column, form) in zip(cells, formats.items(), strict=True):
            mean, sd = figures[name][column]
            assert cell == f"{mean:{form}} ± {sd:{form.lstrip('+')}}", (name, column)


def test_every_entry_of_the_matrix_was_measured():
    figures, shown = measured(), rows(r"(?:-?[.\d]+ ± [.\d]+|–)", 7)
    assert shown.keys() == figures.keys()
    columns = ["log_det", "gaussian_kernel", "gaussian_nearest", "spherical_kernel"]
    columns += ["info_nce", "gaussian_information", "decoded"]
    for name, cells in shown.items():
        for cell, column in zip(cells, columns, strict=True):
            mean, sd = figures[name].get(column, (None, None))
            expected = "–" if mean is None else f"{mean:.1f} ± {sd:.1f}"
            assert cell == expected, (name, column)


def test_every_figure_in_the_text_was_measured():
    figures = measured()
    for method in ("SimVAE", "VAE", "SphericalSimVAE"):
        mean, sd = figures[method]["elbo"]
        assert f"{mean:.1f} ± {sd:.1f}" in README
    generative = [name for name, row in figures.items() if "elbo" in row]
    generative += ["DenoisingAutoencoder", "MaskedAutoencoder"]
    baselines = {"raw pixels", "PCA-10", "untrained encoder"}
    without = figures.keys() - set(generative) - baselines
    for some in (generative, without):
        decoded = [figures[name]["decoded"][0] for name in some]
        assert f"{max(decoded):.1f} to {min(decoded):.1f}" in README
    assert f"PCA-10 has {figures['PCA-10']['decoded'][0]:.1f}" in README
    shared = [f"{figures[name]['info_nce'][0]:.1f}" for name in ("SimVAE", "VAE")]
    assert "InfoNCE {} against {} nats".format(*shared) in README
    ruler = [f"{figures['LogDet'][c][0]:.1f}" for c in ("log_det", "gaussian_kernel")]
    assert "LogDet has {} nats by its own and {}".format(*ruler) in README


def test_every_method_holds_what_the_table_says():
    """Above the untrained encoder; from few labels above PCA, or the text says why."""
    figures = measured()
    untrained = figures["untrained encoder"]["knn"][0]
    for name, row in figures.items():
        if name == "untrained encoder":
            continue
        assert row["knn"][0] >= untrained + 0.1 and row["effective_rank"][0] >= 3
    exempt = {"VAE", "BetaVAE", "IWAE", "MaskedAutoencoder", "TSimCLR", "PCA-10"}
    for name in figures.keys() - exempt - {"untrained encoder"}:
        gain, error = figures[name]["few_label_gain"]
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
    results = ROOT / "benchmarks" / "results" / "steps.json"
    cases = json.loads(results.read_text())["figures"].values()
    shown = rows(r"(?:[.\d]+|–)", 3)
    for name, (step, figure) in STEPS.items():
        found = (case["steps"].get(step, {}).get(figure) for case in cases)
        assert shown[name] == ["–" if x is None else f"{x:g}" for x in found], name


def test_every_rate_of_whole_epochs_was_measured():
    results = ROOT / "benchmarks" / "results" / "epochs.json"
    figures = json.loads(results.read_text())["figures"]
    shown = rows(r"[.\d]+", 2)
    for name in [name for name in figures if "ratio" in figures[name]]:
        row = figures[name]
        assert shown[name] == [f"{row[key]:g}" for key in ("images/s", "ratio")]


def test_the_seconds_of_a_linear_fit_were_measured():
    found = json.loads((ROOT / "benchmarks" / "results" / "linear.json").read_text())
    seconds = found["figures"]["seconds"]
    text = " ".join(README.split())
    assert f"are fitted in {seconds['whole fit']:g} s on two CPU cores" in text
    assert f"{seconds['moments']:g} s of it for the moments" in text


def test_what_was_advised_and_measured_under_noise_is_what_the_table_says():
    path = ROOT / "benchmarks" / "results" / "paradigms_under_noise.json"
    found = json.loads(path.read_text())
    row = r"^\| ([\d.]+) \| (moves.*?) \| ([^|]+?) \| (.+) \|$"
    shown = re.findall(row, README, re.MULTILINE)
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
