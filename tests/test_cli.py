"""The command line, as a newcomer uses it."""

import json
import subprocess
import sys
from functools import partial
from runpy import run_module

import arviz
import numpy as np
import pyro.distributions as dist
import pytest
import torch

import probssl as ps
from probssl import cli, recipes
from probssl.cli import main

pytestmark = pytest.mark.usefixtures("short_decoders")
SHORT = ["--epochs", "1", "--items", "200", "--device", "cpu"]


def test_compare_prints_one_table_and_writes_what_it_says(tmp_path, capsys):
    out = tmp_path / "comparison"
    methods = "SphericalSimVAE,SimVAE,simclr,VICReg"
    options = ["--methods", methods, "--out", str(out)]
    assert main(["compare", *options, *SHORT]) == 0
    printed = capsys.readouterr().out
    rows = ("SphericalSimVAE", "SimVAE", "SimCLR", "VICReg", "raw pixels", "PCA-10")
    assert all(f"\n{row}" in printed for row in rows)
    found = json.loads((out / "comparison.json").read_text())
    assert found["data"] == "digits" and found["seed"] == 0
    scores = {"linear_probe", "knn", "few_label_probe", "ari", "effective_rank"}
    for row in found["methods"].values():
        assert {"terms", "scores", "matrix", "errors", "left_out"} <= set(row)
        assert scores <= set(row["scores"])
    terms = {"reconstruction", "entropy", "alignment", "elbo"}  # sphere and plane alike
    for name in ("SphericalSimVAE", "SimVAE"):
        assert terms <= set(found["methods"][name]["terms"])
    for name in ("comparison.png", "matrix.png"):
        assert (out / name).stat().st_size > 10_000
    idata = arviz.from_netcdf(str(out / "SimVAE" / "posterior.nc"))
    assert "z" in idata["posterior"]
    assert isinstance(ps.load(out / "SimCLR"), ps.limits.SimCLR)


def test_the_same_seed_gives_the_same_table_whatever_the_random_state(tmp_path):
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        folder = tmp_path / str(seed)
        options = ["--methods", "simclr", "--out", str(folder), *SHORT]
        assert main(["compare", *options]) == 0
        found.append(json.loads((folder / "comparison.json").read_text()))
        found[-1]["methods"]["SimCLR"].pop("seconds")
    assert found[0] == found[1]


def test_fit_resumes_and_inspect_says_what_is_there(tmp_path, capsys):
    out = str(tmp_path / "run")
    assert main(["fit", "simvae", "--out", out, *SHORT]) == 0
    longer = ["--epochs", "2", *SHORT[2:], "--resume"]
    assert main(["fit", "simvae", "--out", out, *longer]) == 0
    capsys.readouterr()
    assert main(["inspect", out]) == 0
    printed = capsys.readouterr().out
    assert "SimVAE" in printed and "parameters" in printed and "curves.png" in printed
    history = ps.History.from_json((tmp_path / "run" / "history.json").read_text())
    assert len(history) == 2


def test_inspect_describes_what_only_its_owner_can_build(tmp_path, capsys):
    class Own(torch.nn.Linear):
        dim = 3

    def near(y, scale):
        return dist.Laplace(y, scale).to_event(1)

    y_prior = dist.Normal(torch.zeros(3), 2.0).to_event(1)
    joint = ps.Joint(
        ps.priors.Custom(partial(near, scale=0.1), dim=3, y_prior=y_prior),
        (ps.likelihoods.Gaussian(ps.learned([0.2] * 5)), ps.likelihoods.Poisson()),
        ps.nn.PerModality([Own(5, 3), ps.nn.MLPEncoder((5,), 3)]),
        ps.nn.PerModality([ps.nn.MLPDecoder(3, (5,)), ps.nn.MLPDecoder(3, (5,))]),
    )
    objective = ps.limits.SimVAE(joint)
    ps.save(objective, tmp_path, data="mine")
    assert main(["inspect", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    lines = [
        "SimVAE",
        "  joint: Joint",
        "    prior: Custom",
        f"      conditional: {__name__}.{near.__qualname__} *",
        "        scale: 0.1",
        "      dim: 3",
        "      y_prior: Normal",
        "        loc: [0.0, 0.0, 0.0]",
        "    likelihood: 2 of",
        "      0: Gaussian",
        "    encoder: PerModality",
        f"        0: {__name__}.{Own.__qualname__} *",
    ]
    places = [printed.split("\n").index(line) for line in lines]
    assert places == sorted(places)
    numbers = sum(t.numel() for t in objective.state_dict().values())
    assert f"{numbers:,} numbers, float32" in printed and "data: mine" in printed
    assert "ps.load(folder, into=objective)" in printed

    changed = ps.limits.SimCLR(ps.nn.MLPEncoder((5,), 3))
    changed.encoder.head = torch.nn.Linear(256, 3, bias=False)
    with pytest.warns(UserWarning, match="as its constructor builds it"):
        ps.save(changed, tmp_path)
    assert main(["inspect", str(tmp_path)]) == 0
    assert "\nchanged: encoder.head" in capsys.readouterr().out


def test_compare_lists_the_evidence_of_frozen_encoders(tmp_path, capsys):
    given = ["compare", "--methods", "simclr", "--no-baselines", "--out", str(tmp_path)]
    short = ["--epochs", "1", "--items", "100", "--device", "cpu"]
    assert main([*given, "--evidence", "-1", *short]) == 2
    assert not (tmp_path / "SimCLR").exists()
    assert main([*given, "--evidence", "2", *short]) == 0
    assert "frozen ELBO, log p(x): one joint" in capsys.readouterr().out
    assert (tmp_path / "evidence.png").is_file()
    assert main([*given, *short]) == 0  # anew, without what is no longer measured
    assert not (tmp_path / "evidence.png").exists()


def test_compare_leaves_baselines_out(tmp_path, capsys):
    options = ["--methods", "simclr", "--no-baselines", "--out", str(tmp_path)]
    assert main(["compare", *options, *SHORT]) == 0
    found = json.loads((tmp_path / "comparison.json").read_text())
    assert list(found["methods"]) == ["SimCLR"]
    assert (tmp_path / "comparison.png").is_file()


def test_methods_are_saved_before_they_are_compared(tmp_path, capsys, monkeypatch):
    def fails(*_, **__):
        raise ValueError("expected more, got resume=True and jobs='1', or device=cpu")

    monkeypatch.setattr("probssl.cli.compare", fails)
    options = ["--methods", "SimCLR, vicreg", "--jobs", "1", "--out", str(tmp_path)]
    assert main(["compare", *options, *SHORT]) == 2
    for name in ("SimCLR", "VICReg"):
        assert type(ps.load(tmp_path / name)).__name__ == name
    error = capsys.readouterr().err
    assert "got --resume and --jobs 1, or --device cpu" in error


def test_a_comparison_that_was_killed_goes_on(tmp_path, capsys, monkeypatch):
    fitted, measured, out = [], [], tmp_path / "out"
    fit_methods, compare = cli.fit_methods, cli.compare

    def counted(methods, *given, **options):
        fitted.extend(methods)
        return fit_methods(methods, *given, **options)

    def killed(*given, **options):
        measured.append(options["resume"])
        if len(measured) == 1:
            raise ValueError("killed")
        return compare(*given, **options)

    monkeypatch.setattr(cli, "fit_methods", counted)
    monkeypatch.setattr(cli, "compare", killed)
    monkeypatch.setattr(cli, "_draw", lambda *_: None)
    given = ["compare", "--jobs", "1", "--no-baselines", "--out", str(out), *SHORT]
    assert main([*given, "--methods", "simclr"]) == 2
    more = [*given, "--methods", "simclr,vicreg", "--resume"]
    assert main(more) == 0
    assert fitted == ["SimCLR", "VICReg"] and measured == [False, True]
    resumed = json.loads((out / "comparison.json").read_text())
    assert main(more) == 0  # all is there
    assert fitted == ["SimCLR", "VICReg"]
    assert json.loads((out / "comparison.json").read_text()) == resumed

    capsys.readouterr()
    assert main([*more, "--epochs", "2"]) == 2
    assert "with --epochs 2 in" in capsys.readouterr().err

    run = str(out / "SimCLR")  # by its folder
    only = ["compare", run, *given[3:5], str(tmp_path / "runs"), *SHORT[:4]]
    assert main(only) == 0
    runs = json.loads((tmp_path / "runs" / "comparison.json").read_text())["methods"]
    assert list(runs) == ["SimCLR"]
    assert runs["SimCLR"]["terms"] == resumed["methods"]["SimCLR"]["terms"]
    assert main(["compare", run, *given[3:5], str(tmp_path / "no"), "--items", "150"])
    assert "expected runs on the same data, digits (" in capsys.readouterr().err
    assert main(["compare", run, run, *given[3:5], str(tmp_path / "no")])
    assert not (tmp_path / "no").exists()


def test_an_interrupted_comparison_says_what_it_keeps(tmp_path, capsys, monkeypatch):
    def stops(*_, **__):
        raise KeyboardInterrupt

    given = ["compare", "--methods", "SimCLR", "--jobs", "1", "--out", str(tmp_path)]
    given += ["--no-baselines", *SHORT]
    with monkeypatch.context() as patch:
        patch.setattr(cli, "fit_methods", stops)
        assert main(given) == 130
    said = f"{tmp_path} is unfinished, --resume goes on; it keeps "
    assert f"interrupted; {said}nothing yet" in capsys.readouterr().err
    assert main(["inspect", str(tmp_path)]) == 0
    assert "a comparison, unfinished: --resume goes on" in capsys.readouterr().out
    with monkeypatch.context() as patch:
        measured = cli.compare
        patch.setattr(cli, "compare", lambda *a, **b: stops(measured(*a, **b)))
        assert main(given) == 130
    kept = "fits of SimCLR; measured rows of SimCLR"
    assert said + kept in capsys.readouterr().err
    assert main(["inspect", str(tmp_path)]) == 0
    assert "unfinished" in (printed := capsys.readouterr().out)
    assert "fits of SimCLR\nmeasured rows of SimCLR\nfiles: SimCLR, mea" in printed
    monkeypatch.setattr(cli, "_draw", lambda *_: None)
    assert main([*given, "--resume"]) == main(["inspect", str(tmp_path)]) == 0
    assert "a comparison\n" in capsys.readouterr().out


@pytest.mark.parametrize("saved", [True, False])
def test_a_run_of_another_method_is_not_gone_on_from(saved, tmp_path, capsys):
    assert main(["fit", "VICReg", "--out", str(tmp_path), *SHORT]) == 0
    if not saved:  # it was killed
        (tmp_path / "probssl.json").unlink()
        capsys.readouterr()
        assert main(["inspect", str(tmp_path)]) == 0
        printed = capsys.readouterr().out
        assert "an unfinished run of VICReg" in printed and "has 1 epoch\n" in printed
    fit = ["fit", "BarlowTwins", "--out", str(tmp_path), *SHORT, "--resume"]
    assert main(fit) == 2
    words = f"a run of BarlowTwins in {tmp_path} to go on from, got one of VICReg"
    assert words in capsys.readouterr().err


def test_the_package_is_a_command(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["probssl", "table"])
    with pytest.raises(SystemExit, match="0"):
        run_module("probssl", run_name="__main__")
    assert "SimCLR" in capsys.readouterr().out


def test_a_checkpoint_names_the_option(tmp_path, capsys):
    fit = ["fit", "SimCLR", "--out", str(tmp_path), *SHORT]
    assert [main(fit), main(fit)] == [0, 2]
    assert "pass --resume to go on from it" in capsys.readouterr().err
    assert main([*fit[:3], str(tmp_path / "few"), *SHORT[:2], "--items", "1"]) == 2
    assert "got 1 with 2; give more items in every batch" in capsys.readouterr().err


def slow(names, fast):
    """Parameters, all but the fast ones marked as slow."""
    slow = pytest.mark.slow
    return [pytest.param(n, marks=[] if n in fast else slow) for n in names]


@pytest.mark.parametrize("method", slow(recipes.METHODS, fast=("TSNE", "PID")))
def test_fit_fits_every_method_and_draws_what_it_has(method, tmp_path, capsys):
    options = ["--items", "60", "--epochs", "3", "--device", "cpu"]
    assert main(["fit", method, "--out", str(tmp_path), *options]) == 0
    objective = ps.load(tmp_path)
    assert "History(3 epochs" in capsys.readouterr().out
    names = {path.name for path in tmp_path.iterdir()}
    assert {"curves.png", "map.png", "history.json"} <= names
    generative = isinstance(getattr(objective, "joint", None), ps.Joint)
    assert ("posterior.nc" in names) == ("samples.png" in names) == generative


def test_fit_of_vectors_writes_all_but_pictures(tmp_path, capsys):
    x = torch.randn(60, 5).numpy()
    np.savez(tmp_path / "tab.npz", x=x)
    options = ["--data", str(tmp_path / "tab.npz"), "--epochs", "1", "--device", "cpu"]
    assert main(["fit", "SimVAE", "--out", str(tmp_path / "run"), *options]) == 0
    assert "History(1 epoch;" in capsys.readouterr().out
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"curves.png", "map.png", "history.json", "posterior.nc"} <= names
    assert not {"reconstructions.png", "samples.png"} & names


def test_advise_says_which_paradigm_and_writes_the_figures_behind_it(tmp_path, capsys):
    out = tmp_path / "advice"
    assert main(["advise", "--items", "400", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    found = json.loads((out / "advice.json").read_text())
    assert f"\n{found['verdict']}: " in printed and found["n_components"] == 10
    assert (out / "advice.png").is_file()


@pytest.mark.parametrize("form", ["", "--markdown", "--json", "--csv"])
def test_table_prints_rows_and_empty_cells(form, capsys):
    assert main(["table", *filter(None, [form])]) == 0
    printed, table = capsys.readouterr().out, ps.limits.table()
    forms = {"--markdown": table.to_markdown, "--json": table.to_json}
    forms |= {"--csv": table.to_csv, "": table.__str__}
    assert printed == forms[form]().rstrip("\n") + "\n"
    if form == "":
        assert "\nVICReg " in printed and "empty: kernel density" in printed


def test_table_is_printed_in_one_form(capsys):
    with pytest.raises(SystemExit):
        main(["table", "--json", "--csv"])
    assert "not allowed with argument" in capsys.readouterr().err


REAL = ("mnist", "fashion-mnist", "cifar10")  # whose JPEGs take half a minute


@pytest.mark.parametrize("data", slow(REAL, fast=("mnist",)))
def test_compare_runs_on_real_data(data, data_root, tmp_path):
    folder = {"cifar10": "cifar-10-jpeg"}.get(data, data)
    if data == "cifar10":
        pytest.importorskip("PIL", reason="the JPEG form of CIFAR-10 needs Pillow")
    options = ["--data", data, "--root", str(data_root / folder), *SHORT]
    options += ["--methods", "simvae,simclr", "--jobs", "1", "--out", str(tmp_path)]
    assert main(["compare", *options]) == 0
    found = json.loads((tmp_path / "comparison.json").read_text())
    assert found["data"] == data and "SimVAE" in found["methods"]


@pytest.mark.parametrize(
    "arguments, place",
    [
        (["compare"], "file"),
        (["compare"], "file/inside"),
        (["compare", "--methods", "simclr"], "."),  # where simclr's folder is a file
        (["fit", "simclr"], "file"),
        (["advise"], "file"),
    ],
)
def test_an_output_that_is_no_folder_is_refused_before_any_work(
    arguments, place, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("probssl.cli.load", None)
    for name in ("file", "SimCLR"):
        (tmp_path / name).write_text("mine")
    assert main([*arguments, "--out", str(tmp_path / place)]) == 2
    assert "expected a folder to write to as --out" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"file", "SimCLR"}


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["compare", "--methods", "simclr,magic"], "expected one of the methods"),
        (["compare", "--data", "nowhere"], "nowhere"),
        (["compare", "--data", "mnist", "--root", "nowhere"], "train-images"),
        (["compare", "--items", "0"], "--items"),
        (["compare", "--seed", "-1", "--items", "200"], "seed as a whole number"),
        (["compare", "--seed", "5000000000"], "seed as a whole number from 0 to"),
        (["compare", "--epochs", "0", "--items", "200"], "epochs"),
        (["fit", "deepclustering", "--resume", "--items", "50"], "in rounds"),
        (["inspect", "nowhere"], "probssl.json"),
        (["advise", "--items", "50"], "at least 100"),
    ],
)
def test_mistakes_are_said_in_one_sentence(arguments, message, tmp_path, capsys):
    out = [] if arguments[0] == "inspect" else ["--out", str(tmp_path / "out")]
    assert main([*arguments, *out]) == 2
    printed = capsys.readouterr().err
    assert message in printed and "Traceback" not in printed
    assert not (tmp_path / "out").exists()


def test_a_posterior_on_a_full_disk_is_an_error_before_hdf5_ends_the_process(tmp_path):
    """In a process of its own, whose files may not be larger than 100 kB."""
    code = f"""
import resource
from functools import partial
from pathlib import Path
import torch
import probssl as ps
from probssl.cli import _netcdf
from probssl.runtime.files import write

nets = ps.nn.MLPEncoder((4,), 2, hidden=()), ps.nn.MLPDecoder(2, (4,), hidden=())
joint = ps.Joint(ps.priors.Gaussian(2), ps.likelihoods.Gaussian(0.5), *nets)
found = ps.to_arviz(joint, torch.randn(20, 2, 4), draws=400)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
try:
    write(Path({str(tmp_path / "posterior.nc")!r}), partial(_netcdf, found))
except OSError as error:
    print(error)
"""
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True
    )
    assert run.returncode == 0 and run.stderr == "", run.stderr
    assert "posterior.nc, got File too large; it is not written" in run.stdout
    assert list(tmp_path.iterdir()) == []
