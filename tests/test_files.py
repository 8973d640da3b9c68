"""Files are replaced as a whole, by one writer at a time; errors say what is kept."""

import errno
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import probssl as ps
from probssl.cli import main
from probssl.runtime import files
from probssl.runtime.digests import digest
from probssl.runtime.files import locked, move, write

HOLD = """
import sys, time
from filelock import FileLock
with FileLock(sys.argv[1] + "/.fit.lock"):
    print("held", flush=True)
    time.sleep(60)
"""


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def fit(folder: Path, **options: object) -> ps.History:
    torch.manual_seed(0)
    objective = ps.limits.SimCLR(ps.nn.MLPEncoder((3,), 2, hidden=(4,)))
    data = torch.randn(16, 2, 3)
    given = {"epochs": 1, "checkpoint": folder, "progress": False} | options
    return ps.fit(objective, ps.data.Groups(data), **given)


@pytest.mark.parametrize("content", ["text", b"bytes", lambda p: p.write_text("own")])
def test_a_file_is_replaced_and_nothing_else_stays(content, tmp_path):
    path = tmp_path / "folder" / "name.json"
    for _ in range(2):
        write(path, content)
    assert path.read_bytes() in (b"text", b"bytes", b"own")
    assert [p.name for p in path.parent.iterdir()] == ["name.json"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_keeps_the_file_and_says_so(step, tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write(path, "before")
    monkeypatch.setattr(os, step, full)
    with pytest.raises(OSError, match=f"{path}, got No space left.*unchanged") as error:
        write(path, "after")
    assert error.value.errno == errno.ENOSPC
    with pytest.raises(OSError, match="it is not written: free space"):
        write(tmp_path / "b.json", "new")
    assert path.read_text() == "before" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("number", "way"),
    [
        (errno.ENOSPC, "free space"),
        (errno.EFBIG, "raise the limit on the size of files"),
        (errno.EACCES, "give a place that you may write to"),
        (errno.EROFS, "give a place that you may write to"),
        (errno.EIO, "give another place"),
    ],
)
def test_the_way_out_is_that_of_the_error(number, way, tmp_path, monkeypatch):
    def fails(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fails)
    words = f"{os.strerror(number)}; it is not written: {way}"
    with pytest.raises(OSError, match=words) as error:
        write(tmp_path / "a.json", "text")
    assert error.value.errno == number and not list(tmp_path.iterdir())


def test_a_folder_that_is_not_flushed_has_the_new_file_and_says_so(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(files, "_flush", full)
    with pytest.raises(OSError, match="new content, which may not be on the disk"):
        write(tmp_path / "a.json", "after")
    assert (tmp_path / "a.json").read_text() == "after"


def test_a_file_in_the_place_of_a_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError, match="a file where .*: give another place"):
        write(tmp_path / "file" / "a.json", "text")
    with pytest.raises(OSError, match="file, got a file where a folder is needed"):
        fit(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_links_stay_and_devices_are_written(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "target")
    write(tmp_path / "link", "text")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_text() == "text"
    write(os.devnull, "text")
    write(tmp_path / "a", "text")
    move(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_text() == "text"


def test_what_a_killed_process_left_is_removed_and_no_other_file(tmp_path):
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        gone.wait()
    names = (
        f".{gone.pid}-1.part.a",
        f".{gone.pid}-1.part.b",
        f".{os.getppid()}-1.part.a",
    )
    for name in (*names, ".part.a", "1-1.part.a"):
        (tmp_path / name).write_text("half")
    write(tmp_path / "a", "text")
    assert not (tmp_path / names[0]).exists() and (tmp_path / names[1]).exists()
    with locked(tmp_path, "fit"):
        assert not (tmp_path / names[1]).exists()
    left = {names[2], ".part.a", "1-1.part.a", "a", ".fit.lock"}
    assert {path.name for path in tmp_path.iterdir()} == left


def test_a_second_writer_is_refused_until_the_first_is_killed(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with pytest.raises(BlockingIOError, match=f"fit in {tmp_path}, got another"):
            with locked(tmp_path, "fit", wait=0.1):
                pass
        other.kill()
    began = time.monotonic()
    fit(tmp_path)
    assert time.monotonic() - began < files.WAIT


def test_two_fits_do_not_share_a_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "WAIT", 0.1)

    def nested(epoch: int, row: dict[str, float]) -> None:
        ps.save(ps.nn.MLPEncoder((3,), 2), tmp_path)  # other files
        with pytest.raises(BlockingIOError, match="one process at a time to fit in"):
            fit(tmp_path, resume=True)

    assert len(fit(tmp_path, on_epoch=nested)) == 1
    assert len(fit(tmp_path, resume=True, epochs=2)) == 2  # it was freed


def test_a_run_of_the_command_line_is_not_that_of_a_script(tmp_path, capsys):
    short = ["--items", "60", "--epochs", "1", "--device", "cpu", "--out"]
    assert main(["fit", "SimCLR", *short, str(tmp_path / "run")]) == 0
    kept = {path: path.read_bytes() for path in (tmp_path / "run").glob("*.json")}
    for resume in (False, True):
        with pytest.raises(FileExistsError, match="whose checkpoint is .*checkpoints"):
            fit(tmp_path / "run", resume=resume)
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    with pytest.raises(FileExistsError, match=r"with probssl\.json and history\.json"):
        fit(tmp_path / "run")
    assert all(path.read_bytes() == text for path, text in kept.items())
    assert len(kept) == 2

    fit(tmp_path / "own")
    capsys.readouterr()
    for more in ([], ["--resume"]):
        assert main(["fit", "SimCLR", *short, str(tmp_path / "own"), *more]) == 2
        assert "which ps.fit wrote in Python" in capsys.readouterr().err
    with pytest.raises(FileNotFoundError, match=r"a checkpoint of fit; go on .*resume"):
        ps.load(tmp_path / "own")


def test_the_command_line_and_a_script_do_not_share_a_folder(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(files, "WAIT", 0.1)
    command = ["fit", "SimCLR", "--items", "60", "--epochs", "1", "--device", "cpu"]

    def nested(epoch: int, row: dict[str, float]) -> None:
        assert main([*command, "--out", str(tmp_path)]) == 2
        assert "one process at a time to fit in" in capsys.readouterr().err

    assert len(fit(tmp_path, on_epoch=nested)) == 1


def test_a_full_disk_ends_a_fit_with_the_folder_and_the_last_epoch(
    tmp_path, monkeypatch
):
    def after(epoch: int, row: dict[str, float]) -> None:
        if epoch == 2:
            monkeypatch.setattr(os, "fsync", full)

    with pytest.raises(OSError, match=f"{tmp_path}.*No space left.*is unchanged"):
        fit(tmp_path, epochs=3, on_epoch=after)
    monkeypatch.undo()
    assert len(fit(tmp_path, epochs=3, resume=True)) == 3


def test_history_beside_a_checkpoint_catches_up(tmp_path):
    fit(tmp_path, epochs=2)
    history = tmp_path / "history.json"
    whole = history.read_text()
    history.write_text("[]")  # the process was killed between the two
    fit(tmp_path, epochs=2, resume=True)
    assert history.read_text() == whole


def test_a_best_epoch_without_its_run_is_not_taken_for_a_new_one(tmp_path):
    fit(tmp_path, epochs=2)
    (tmp_path / "last.safetensors").unlink()
    with pytest.raises(FileExistsError, match=r"best\.safetensors.*is gone"):
        fit(tmp_path)


def test_a_save_that_fails_keeps_the_one_before(tmp_path, monkeypatch):
    encoder = ps.nn.MLPEncoder((3,), 2)
    ps.save(encoder, tmp_path, which=1)
    flushed, calls = os.fsync, []

    def fails_later(file: int) -> None:
        calls.append(file)
        (full if len(calls) == 3 else flushed)(file)

    monkeypatch.setattr(os, "fsync", fails_later)
    with pytest.raises(OSError, match=r"probssl\.json, got No space left.*unchanged"):
        ps.save(ps.nn.MLPEncoder((3,), 2), tmp_path, which=2)
    monkeypatch.undo()
    again = ps.load(tmp_path)
    assert torch.equal(next(again.parameters()), next(encoder.parameters()))
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"probssl.json", "model.safetensors", ".save.lock"}


def test_digests_differ_where_numbers_or_names_do():
    x = torch.arange(6.0)
    same = digest(x, {"a": 1}), digest(x.clone(), {"a": 1})
    others = digest(x.view(2, 3), {"a": 1}), digest(-x, {"a": 1}), digest(x, {"b": 1})
    assert same[0] == same[1] and len({same[0], *others, digest(x.double(), {})}) == 5
    big_endian = x.numpy().astype(">f4")
    assert digest(big_endian) == digest(x.numpy())


def test_a_fingerprint_is_that_of_the_items_and_their_labels():
    split = ps.data.Split(torch.randn(9, 2), torch.arange(9) % 3)
    data = ps.data.Dataset(split, split, None, "toy")
    renamed, moved = (
        data._replace(name="other"),
        split._replace(labels=split.labels + 1),
    )
    assert renamed.fingerprint == data.fingerprint == data.take(9, 9, None).fingerprint
    others = data._replace(train=moved), data.take(8, 9, None), data._replace(levels=1)
    assert len({data.fingerprint, *(other.fingerprint for other in others)}) == 4


def test_all_files_of_a_folder_have_the_mode_that_the_user_gives_new_files(tmp_path):
    before = os.umask(0o027)
    try:
        ps.save(ps.nn.MLPEncoder((3,), 2, hidden=()), tmp_path / "saved")
    finally:
        os.umask(before)
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "saved").iterdir()}
    assert modes == {0o640}
