"""Damaged and hostile files are refused by name, before memory is spent or code run."""

import gzip
import importlib.util
import json
import os
import pickle
import shutil
import struct
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from helpers.catalogue import OBJECTIVES
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

import probssl as ps
from probssl import reading
from probssl.cli import main
from probssl.data.files import _check_memory
from probssl.data.published import read_idx
from probssl.train.checkpoint import read, write

BENCHMARK = Path(__file__).parent.parent / "benchmarks" / "hostile_files.py"


def simclr() -> ps.limits.SimCLR:
    return ps.limits.SimCLR(ps.nn.MLPEncoder((5,), 3, hidden=(4,)))


def rewritten(folder: Path, **change: object) -> None:
    """Change a description, with a digest that is right."""
    path = folder / "probssl.json"
    description = json.loads(path.read_text()) | change
    description.pop("digest", None)
    description["digest"] = reading.digest(description)
    path.write_text(json.dumps(description))


# Digests


@pytest.mark.parametrize("name", ["probssl.json", "model.safetensors"])
def test_a_changed_bit_of_a_saved_objective_is_seen(name, tmp_path):
    """In the text a changed digit is valid JSON; in the weights a valid number."""
    path = ps.save(simclr(), tmp_path, who="a") / name
    data = bytearray(path.read_bytes())
    place = data.rindex(b'"a"') + 1 if name == "probssl.json" else len(data) - 2
    data[place] ^= 2
    path.write_bytes(data)
    with pytest.raises(ValueError, match=rf"{name} as .* its digest"):
        ps.load(tmp_path)


def test_a_folder_without_digests_loads(tmp_path):
    folder = ps.save(simclr(), tmp_path)
    description = json.loads((folder / "probssl.json").read_text())
    del description["digest"], description["weights"]
    (folder / "probssl.json").write_text(json.dumps(description))
    ps.load(folder)


def test_a_changed_bit_of_a_checkpoint_is_seen(tmp_path):
    path = tmp_path / "last.safetensors"
    write(path, {"x": torch.ones(3), "steps": 1})
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"last.safetensors as fit writes.* digest"):
        read(path)


def test_digests_tell_names_types_shapes_and_bits_apart():
    x = torch.arange(4.0)
    others = {
        "a": {"x": x},
        "b": {"y": x},
        "c": {"x": x.double()},
        "d": {"x": x.reshape(2, 2)},
        "e": {"x": x.flip(0)},
        "f": {"x": x.view(torch.int32)},
        "g": {},
    }
    digests = [reading.digest("", tensors) for tensors in others.values()]
    assert len({*digests, reading.digest("x", {"x": x})}) == len(others) + 1
    expanded = torch.ones(1).expand(4)
    assert reading.digest(0, {"x": expanded}) == reading.digest(0, {"x": torch.ones(4)})


# Weights


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_parameters_that_are_not_finite_are_neither_saved_nor_loaded(number, tmp_path):
    objective = simclr()
    path = ps.save(objective, tmp_path) / "model.safetensors"
    tensors = load_file(path)
    tensors["encoder.head.bias"][0] = number
    save_file(tensors, path, {"save": json.loads(save_of(tmp_path))["save"]})
    rewritten(tmp_path, weights=reading.digest("", tensors))
    into = simclr()
    before = {name: x.clone() for name, x in into.state_dict().items()}
    for kind in (None, into):
        with pytest.raises(ValueError, match=r"encoder\.head\.bias, got NaN or inf"):
            ps.load(tmp_path, into=kind)
    assert all(torch.equal(x, before[name]) for name, x in into.state_dict().items())
    with torch.no_grad():
        objective.encoder.head.bias[0] = number
    with pytest.raises(ValueError, match=r"finite numbers in the parameter encoder"):
        ps.save(objective, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def save_of(folder: Path) -> str:
    return (folder / "probssl.json").read_text()


def test_weights_of_another_kind_are_refused(tmp_path):
    path = ps.save(simclr(), tmp_path) / "model.safetensors"
    tensors = {name: x.view(torch.int32) for name, x in load_file(path).items()}
    save_file(tensors, path, {"save": json.loads(save_of(tmp_path))["save"]})
    rewritten(tmp_path, weights=reading.digest("", tensors))
    with pytest.raises(ValueError, match="whole numbers for"):
        ps.load(tmp_path)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("Normal", {"loc": 0.0, "scale": -1.0}),
        ("Normal", {"loc": {"tensor": "x"}, "scale": 1.0}),
        ("Uniform", {"low": 1.0}),
    ],
)
def test_parts_that_cannot_be_built_are_refused_by_the_name_of_the_file(
    name, arguments, tmp_path
):
    ps.save(simclr(), tmp_path)
    description = json.loads(save_of(tmp_path))["objective"]
    part = {"distribution": name, "arguments": arguments}
    description["arguments"]["temperature"] = part
    rewritten(tmp_path, objective=description)
    with pytest.raises(ValueError, match=r"probssl\.json"):
        ps.load(tmp_path)


# JSON


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000 + "]" * 100_000, "at most 200 deep, got 100000"),
        ('{"a":' * 300 + "1" + "}" * 300, "at most 200 deep, got 300"),
        ("[" + "[]," * 2_000_000 + "[]]", "in memory, got lists and dict"),
        ('{"a": 1, "b": 2, "a": 3}', "expected each name once, got 'a' twice"),
        ('{"a": NaN}', "expected finite numbers, got NaN"),
        ('{"a": ', "Expecting value"),
    ],
)
def test_json_is_bounded_before_it_is_built(text, message):
    with pytest.raises(ValueError, match=message):
        reading.parsed(text.encode())


def test_brackets_in_texts_do_not_count():
    for value in ("[" * 500, '"' + "[" * 500, "\\" * 3 + "{" * 500, "\n[" * 500):
        assert reading.parsed(json.dumps([value]).encode()) == [value]
    assert np.isnan(reading.parsed(b"[NaN]", constants=True)[0])
    floats = list(np.random.default_rng(0).random(50_000))
    assert reading.parsed(json.dumps(floats).encode()) == floats


@pytest.mark.parametrize("kind", [ps.train.History, ps.calibration.Ranks])
@pytest.mark.parametrize("text", ["", "{", "3", "[[]]", '[{"epoch": 2}]', "[" * 10**5])
def test_texts_of_other_origin_are_refused(kind, text):
    with pytest.raises(
        ValueError, match=f"the text.*({kind.__name__}.to_json writes it|deep)"
    ):
        kind.from_json(text)


def test_a_damaged_comparison_is_named(tmp_path):
    path = tmp_path / "found.json"
    row = {"terms": {"elbo": 1.0}, "scores": {"knn": 0.5}}
    ps.Comparison("toy", 0, {"A": row}).to_json(path)
    text = path.read_text()
    for old, new in (("1.0", '"x"'), ('"scores"', '"scare"'), ("}", ""), ("0,", "[],")):
        path.write_text(text.replace(old, new, 1))
        with pytest.raises(ValueError, match=r"found\.json as Comparison\.to_json wr"):
            ps.Comparison.from_json(path)


# What is no file


def fifo(path: Path) -> None:
    os.mkfifo(path)


def outside(path: Path) -> None:
    other = path.parent.parent / f"other-{path.name}"
    other.write_bytes(b"x")
    path.symlink_to(other)


SPECIAL = {
    "a pipe": fifo,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a link": outside,
    "a link that leads nowhere": lambda path: path.symlink_to(path.name),
    "a folder": Path.mkdir,
}


def readers(folder: Path) -> dict[str, object]:
    """Functions that read a file of this name in a folder."""
    return {
        "probssl.json": lambda: ps.load(folder),
        "model.safetensors": lambda: ps.load(folder),
        "mine.npz": lambda: ps.data.npz(folder / "mine.npz"),
        "train-images-idx3-ubyte": lambda: ps.data.mnist(folder),
        "test_batch": lambda: ps.data.cifar10(folder),
        "cifar10-test-jpeg.npz": lambda: ps.data.cifar10(folder),
        "omniglot-small.npz": lambda: ps.data.omniglot_small(folder),
        "found.json": lambda: ps.Comparison.from_json(folder / "found.json"),
        "last.safetensors": lambda: read(folder / "last.safetensors"),
        "a/0.png": lambda: ps.data.image_folder(folder),
    }


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
@pytest.mark.parametrize("special", SPECIAL)
def test_what_is_no_file_in_the_folder_is_refused_at_once(special, tmp_path):
    """A pipe would be waited for, a device read without end."""
    for number, name in enumerate(readers(tmp_path)):
        folder = tmp_path / str(number)
        path = folder / name
        path.parent.mkdir(parents=True)
        if name == "model.safetensors":
            ps.save(simclr(), folder)
            path.unlink()
        for other in ("labels", "images"):
            if "idx" in name:
                data = struct.pack(">HBBI", 0, 8, 1, 1) + b"\1"
                (folder / f"train-{other}-idx1-ubyte").write_bytes(data)
        for batch in range(1, 6):
            if name == "test_batch":
                shutil.copy(BENCHMARK, folder / f"data_batch_{batch}")
        if "cifar10" in name:
            np.savez(folder / "cifar10-train-jpeg.npz", header=np.zeros(1, np.uint8))
        SPECIAL[special](path)
        with pytest.raises((ValueError, OSError), match="expected"):
            readers(folder)[name]()


def test_links_inside_the_folder_are_followed(tmp_path):
    folder = ps.save(simclr(), tmp_path / "run")
    (folder / "model.safetensors").rename(folder / "blob")
    (folder / "model.safetensors").symlink_to("blob")
    (tmp_path / "link").symlink_to(folder)
    ps.load(tmp_path / "link")
    (folder / "blob").rename(tmp_path / "blob")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(tmp_path / "blob")
    with pytest.raises(ValueError, match="got a link to .*blob; copy the file"):
        ps.load(folder)


def test_a_file_that_may_not_be_read_keeps_the_kind_of_the_error(monkeypatch, tmp_path):
    path = ps.save(simclr(), tmp_path) / "probssl.json"

    def refuse(*_: object) -> int:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(reading.os, "open", refuse)
    with pytest.raises(
        PermissionError, match=r"expected .*got Permission denied; save"
    ):
        ps.load(tmp_path)


# Archives and idx files


def test_an_archive_that_declares_more_than_it_holds_is_refused(tmp_path):
    hostile = loaded()
    for form, message in ((0, "got 64"), (1, "got 1,000"), (2, "to unpack to at most")):
        (tmp_path / "mine.npz").write_bytes(hostile.archive_bomb("images", form, 130))
        with pytest.raises(ValueError, match=rf"mine\.npz.*{message}"):
            ps.data.npz(tmp_path / "mine.npz")


def test_an_archive_with_an_array_twice_is_refused(tmp_path):
    import zipfile

    path = tmp_path / "mine.npz"
    np.savez(path, x=np.zeros((8, 2)))
    with warnings.catch_warnings(), zipfile.ZipFile(path, "a") as zipped:
        warnings.simplefilter("ignore")
        zipped.writestr("x.npy", zipped.read("x.npy"))
    with pytest.raises(ValueError, match="expected each array once, got 'x' twice"):
        ps.data.npz(path)


def test_an_idx_file_that_declares_gigabytes_is_refused(tmp_path):
    head = struct.pack(">HBB3I", 0, 8, 3, 400_000, 280, 280)
    for name, data in (("a", head + b"\0"), ("a.gz", gzip.compress(head + bytes(9)))):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match="31,360,000,000 declared"):
            read_idx(tmp_path / name)


@pytest.mark.parametrize("label", [10, 200])
def test_labels_beyond_ten_classes_are_refused(label, tmp_path):
    for name, data in (
        ("images-idx3-ubyte", struct.pack(">HBB3I", 0, 8, 3, 2, 2, 2) + bytes(8)),
        ("labels-idx1-ubyte", struct.pack(">HBBI", 0, 8, 1, 2) + bytes([1, label])),
    ):
        for part in ("train", "t10k"):
            (tmp_path / f"{part}-{name}").write_bytes(data)
    for reads in (ps.data.mnist, ps.data.fashion_mnist):
        with pytest.raises(ValueError, match=f"0 to 9 in .*ubyte, got {label}"):
            reads(tmp_path)
    content = {"data": np.zeros((1, 3072), np.uint8), "labels": [label]}
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        (tmp_path / name).write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(ValueError, match=f"0 to 9 in .*data_batch_1, got {label}"):
        ps.data.cifar10(tmp_path)


@pytest.mark.parametrize(
    "order",
    [
        b"\x80\x04r\xff\xff\xff\x0fN.",  # a table of two gigabytes
        b"(" + b"]" * 600_000 + b"l.",  # lists of forty megabytes
        b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"x.",  # a text of a terabyte
    ],
)
def test_a_pickle_that_takes_memory_is_refused(order, tmp_path):
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        (tmp_path / name).write_bytes(order)
    with pytest.raises(
        ValueError, match="data_batch_1( as a CIFAR-10 batch|: expected)"
    ):
        ps.data.cifar10(tmp_path)


# Pictures


def colours(n: int = 2, side: int = 4) -> list[Image.Image]:
    values = np.random.default_rng(0).integers(0, 256, (n, side, side, 3), np.uint8)
    return [Image.fromarray(each) for each in values]


def test_pictures_of_other_kinds_do_not_vanish(tmp_path):
    (tmp_path / "a").mkdir()
    for i, picture in enumerate(colours()):
        picture.save(tmp_path / "a" / f"{i}.ppm")
    (tmp_path / "a" / ".hidden.heic").write_bytes(b"")
    found = ps.data.image_folder(tmp_path)
    assert len(found.train) + len(found.test) == 2
    (tmp_path / "a" / "2.heic").write_bytes(b"")
    with pytest.raises(ValueError, match=r"got .*a/2\.heic; convert it"):
        ps.data.image_folder(tmp_path)


def test_several_pictures_in_one_file_are_refused(tmp_path):
    (tmp_path / "a").mkdir()
    first, *others = colours(3)
    for name in ("0.gif", "0.tif", "0.webp"):
        first.save(tmp_path / "a" / name, save_all=True, append_images=others)
        with pytest.raises(ValueError, match=f"{name}: expected one picture, got 3"):
            ps.data.image_folder(tmp_path)
        (tmp_path / "a" / name).unlink()


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("0.ppm", b"P6\n2 2\n65535\n" + bytes(24), "8 bits a channel"),
        ("0.pgm", b"P5\n2 2\n4095\n" + bytes(8), "8 bits a channel"),
        ("0.ppm", b"P6\n30000 30000\n255\n" + bytes(9), "unpack to at most|Decompress"),
        ("0.png", b"%!PS-Adobe-3.0 EPSF-3.0\n", "damaged file"),
        ("0.png", b"", "damaged file"),
    ],
)
def test_pictures_are_refused_by_name(name, data, message, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / name).write_bytes(data)
    with pytest.raises(ValueError, match=f"{name}.*({message})"):
        ps.data.image_folder(tmp_path)


def test_pictures_beyond_the_free_memory_are_refused():
    _check_memory(10**6, 2)
    with pytest.raises(ValueError, match="2 pictures that fit into memory.*give size"):
        _check_memory(10**15, 2)


# Runs


def test_a_state_of_another_kind_is_refused_and_changes_nothing(tmp_path):
    x, options = torch.randn(8, 5), {"batch_size": 4, "progress": False}
    views = ps.views.Augment(nn.Identity())
    ps.fit(simclr(), x, views=views, epochs=1, checkpoint=tmp_path, **options)
    path = tmp_path / "last.safetensors"
    state = read(path)
    exp_avg = state["optimizer"]["state"][0]["exp_avg"]
    group = state["optimizer"]["param_groups"][0]
    for change in (
        {"steps": "2"},
        {"history": [{"epoch": 7}]},
        {"history": [{"epoch": 1, "value": "x"}]},
        {"stopping": state["stopping"] | {"gives_up": 1}},
        {"random": []},
        {"random": [{"cpu": torch.ones(3)}]},
        {"unknown": 1},
        {"optimizer": state["optimizer"] | {"state": {0: {"exp_avg": exp_avg[:1]}}}},
        {"optimizer": state["optimizer"] | {"param_groups": [group | {"lr": "x"}]}},
        {"objective": {k: x.long() for k, x in state["objective"].items()}},
        {"objective": {k: x * torch.nan for k, x in state["objective"].items()}},
    ):
        write(path, state | change)
        objective = simclr()
        before = {name: x.clone() for name, x in objective.state_dict().items()}
        with pytest.raises(ValueError, match=r"last\.safetensors"):
            ps.fit(
                objective,
                x,
                views=views,
                epochs=2,
                checkpoint=tmp_path,
                resume=True,
                **options,
            )
        if "random" not in change:
            found = objective.state_dict()
            assert all(torch.equal(x, found[name]) for name, x in before.items())


# The command line


def test_inspect_prints_no_control_characters_of_a_file(tmp_path, capsys):
    ps.save(simclr(), tmp_path, title="\x1b[2J\x1b]0;mine\x07")
    assert main(["inspect", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "\x1b" not in printed and "title: \\x1b[2J" in printed


@pytest.mark.parametrize(
    "options",
    [
        ["--device", "nonsense"],
        ["--device", "cuda:99"],
        ["--dim", "99999999999"],
        ["--data", "/dev/zero"],
        ["--data", "{folder}/pipe.npz"],
        ["--root", "/dev/null", "--data", "mnist"],
    ],
    ids=" ".join,
)
def test_no_fault_of_a_user_prints_a_traceback(options, tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe.npz")
    options = [option.format(folder=tmp_path) for option in options]
    out = ["--out", str(tmp_path / "out"), "--items", "50", "--epochs", "1"]
    assert main(["fit", "SimCLR", *out, *options]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("probssl: expected") and "Traceback" not in printed


# At random


def loaded() -> ModuleType:
    sys.path.insert(0, str(BENCHMARK.parent))
    try:
        spec = importlib.util.spec_from_file_location("hostile_files", BENCHMARK)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path.remove(str(BENCHMARK.parent))


def test_hostile_files_are_read_or_refused(tmp_path, monkeypatch):
    """Some of the files of `benchmarks/hostile_files.py`, but for the largest."""
    hostile = loaded()
    monkeypatch.setattr(hostile, "peak_memory", lambda call: call() or 0.0)
    watch = hostile.Watch()

    def found(count: int) -> Iterator[object]:
        for name, number in hostile.jobs(count):
            place = tmp_path / f"{name} {number}"
            place.mkdir()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield hostile.tried(name, number, place, watch)

    monkeypatch.setattr(hostile, "json_bomb", lambda _, text: text + text)
    monkeypatch.setattr(hostile, "gz_bomb", lambda _: b"\x1f\x8b\x08")
    monkeypatch.setattr(hostile, "big_picture", lambda: b"")
    monkeypatch.setattr(hostile, "archive_bomb", lambda *_: b"PK")
    torch.manual_seed(0)
    figures = hostile.main(210, tmp_path / "results.json", found)["all"]
    bad = {outcome: figures[outcome] for outcome in hostile.OUTCOMES[2:]}
    assert bad == dict.fromkeys(hostile.OUTCOMES[2:], 0)
    assert figures["read"] >= 21 and figures["refused"] > 100


def test_the_search_sees_code_that_is_run(tmp_path):
    """A reader that unpickles is found out."""
    hostile = loaded()
    watch, trace = hostile.Watch(), tmp_path / hostile.SENTINEL
    order = pickle.dumps(hostile.Call(os.mkdir, str(trace)))
    kind = hostile.Kind(
        lambda folder: (folder / "x").write_bytes(pickle.dumps(1)),
        lambda folder: pickle.loads((folder / "x").read_bytes()),
        "x",
        forges=(lambda _, folder: (folder / "x").write_bytes(order),),
    )
    hostile.KINDS["unsafe"] = kind
    found = hostile.tried("unsafe", 1, tmp_path, watch)
    assert found.outcome == "executed" and trace.exists()


def test_objectives_of_every_kind_have_digests(tmp_path):
    for name, make in list(OBJECTIVES.items())[:3]:
        folder = ps.save(make(), tmp_path / name)
        description = json.loads((folder / "probssl.json").read_text())
        assert len(description["digest"]) == len(description["weights"]) == 64
