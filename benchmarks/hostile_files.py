"""Damaged and hostile files: what becomes of each kind of file that the package reads.

Files that the package writes, and small data sets in each format, are damaged at
random: bits flipped, parts cut off, doubled, moved or overwritten. Others are forged:
other types, names, sizes and numbers at random places, with digests that are right;
pickles that would run code; archives and pictures that declare gigabytes; brackets
100,000 deep; pipes, devices, and links out of the folder. Each is then read, in a
process whose memory is limited, and counts as

- read: the value is that of the whole file, or of another valid one where the format
  has no checksum or the digest was forged as well;
- refused: the error is a ValueError, TypeError or OSError that names the file and says
  what was expected;
- unclear: any other error, a crash, or no answer within 20 seconds;
- executed: code in the file was run;
- memory: the peak is 200 MB or more above the size of the file;
- wrong: a value that is not that of the whole file, although a checksum shows it.

Prints the counts, and writes them as JSON to hostile_files.json. 10,500 files take five
minutes of a CPU core (Linux only).
"""

import argparse
import gzip
import io
import json
import os
import pickle
import random
import resource
import signal
import struct
import subprocess
import sys
import time
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import safetensors.torch
import torch
from measure import options, peak_memory, report, table
from PIL import Image
from torch import Generator, nn
from tqdm import tqdm

import probssl as ps
from probssl.reading import digest
from probssl.train.prepare import prepared_optimizer
from probssl.train.run import Checkpoints, EarlyStopping, Run
from probssl.train.schedules import Schedules

COUNT = 10_500
RESULTS = Path(__file__).parent / "results" / "hostile_files.json"
LIMIT, SECONDS = 200, 20  # megabytes; of one file
ROOM = 2**31  # bytes that a process may take beyond what it has at the start
OUTCOMES = ("read", "refused", "unclear", "executed", "memory", "wrong")
SENTINEL = "executed-by-a-file"
FORBIDDEN = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen")
FORBIDDEN += ("socket.connect", "socket.bind", "ctypes.dlopen")

Forge = Callable[[random.Random, Path], None]


class Kind(NamedTuple):
    """Files of one kind.

    Arguments:
        make: Writes them to a folder.
        read: What the package reads from the folder.
        target: The name of the file that is damaged; a pattern.
        checked: Whether each changed bit can be seen.
        forges: How such a file is forged.
    """

    make: Callable[[Path], object]
    read: Callable[[Path], object]
    target: str
    checked: bool = False
    forges: tuple[Forge, ...] = ()


# Whole files


def objective() -> ps.limits.SimVAE:
    torch.manual_seed(0)
    joint = ps.Joint(
        ps.priors.Gaussian(2, 0.3),
        ps.likelihoods.Gaussian(0.1),
        ps.nn.MLPEncoder((4,), 2, hidden=(3,)),
        ps.nn.MLPDecoder(2, (4,), hidden=(3,)),
    )
    return ps.limits.SimVAE(joint)


def moco() -> nn.Module:
    torch.manual_seed(0)
    encoder = ps.nn.MLPEncoder((1, 4, 4), 3, hidden=(3,))
    return ps.limits.MoCo(encoder, queue=8, temperature=0.5)


def run_of(folder: Path) -> tuple[Run, Checkpoints]:
    made = ps.limits.SimCLR(ps.nn.MLPEncoder((4,), 2, hidden=(3,)), temperature=0.5)
    optimizer = prepared_optimizer(None, made, None)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 50)
    cpu = torch.device("cpu")
    stopping, schedules = EarlyStopping("value", None), Schedules(made, None, 50)
    run = Run(made, optimizer, scheduler, Generator(), stopping, cpu, schedules)
    return run, Checkpoints(folder, 1)


def write_run(folder: Path) -> None:
    run, _ = run_of(folder)
    for parameter in run.objective.parameters():
        parameter.grad = torch.ones_like(parameter)
    run.optimizer.step()
    run.scheduler.step()
    run.finish({"epoch": 1, "step": 2, "value": 0.5}, 2)
    run.setting = {"items": "8"}
    run.write(folder / "last.safetensors")


def resumed(folder: Path) -> object:
    run, checkpoints = run_of(folder)
    checkpoints.begin(run, True, 9)
    for parameter in run.objective.parameters():
        parameter.grad = torch.zeros_like(parameter)
    state = digest(run.history.rows, run.objective.state_dict())
    run.optimizer.step()
    run.scheduler.step()
    return state, run.steps, run.order.initial_seed()


def loaded(folder: Path) -> object:
    found = ps.load(folder)
    grad = [x.requires_grad for x in found.parameters()]
    return digest(str(found), found.state_dict()), grad


def comparison(folder: Path) -> None:
    row = {"terms": {"elbo": -1.5}, "scores": {"knn": 0.5}, "seconds": 1.0}
    row |= {"matrix": {"info_nce": 1.0}, "errors": {"few_label_gain": 0.1}}
    ps.Comparison("digits", 0, {"A": row, "B": row}).to_json(folder / "found.json")


def table_of(folder: Path) -> object:
    found = ps.Comparison.from_json(folder / "found.json")
    return str(found), found.table.to_json(), found.matrix.to_json()


def text_of(folder: Path) -> str:
    return (folder / "text.json").read_bytes().decode("utf-8", "replace")


def history(folder: Path) -> object:
    found = ps.train.History.from_json(text_of(folder))
    return found.table.to_json(), found["value"].tolist() if len(found) else []


def write_history(folder: Path) -> None:
    rows = [{"epoch": i, "step": i, "value": i / 2} for i in (1, 2, 3)]
    (folder / "text.json").write_text(ps.train.History(rows).to_json())


def write_ranks(folder: Path) -> None:
    ranks = ps.calibration.Ranks(np.arange(40).reshape(20, 2), 99)
    (folder / "text.json").write_text(ranks.to_json())


def ranks_of(folder: Path) -> object:
    found = ps.calibration.Ranks.from_json(text_of(folder))
    return found.coverage().tolist(), found.ranks.tolist()


def pixels(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


LABELS = np.arange(8, dtype=np.uint8) % 10


def idx(array: np.ndarray) -> bytes:
    head = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    return head + array.tobytes()


def mnist(suffix: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        pack = (lambda x: gzip.compress(x, mtime=0)) if suffix else bytes
        for part in ("train", "t10k"):
            images, labels = folder / f"{part}-images-idx3-ubyte{suffix}", LABELS
            images.write_bytes(pack(idx(pixels(8, 28, 28))))
            name = folder / f"{part}-labels-idx1-ubyte{suffix}"
            name.write_bytes(pack(idx(labels)))

    return write


def archive(folder: Path) -> None:
    np.savez(folder / "mine.npz", images=pixels(8, 6, 6), labels=LABELS % 2)


def archive_of_names(folder: Path) -> None:
    names = np.array(list("abababab"))
    x = np.linspace(-1, 1, 40).reshape(8, 5)
    np.savez_compressed(folder / "mine.npz", x=x, y=names, x_test=x, y_test=names)


BATCHES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")


def batches(folder: Path) -> None:
    for name in BATCHES:
        content = {"data": pixels(2, 3072), "labels": [1, 7], "filenames": ["a", "b"]}
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))


def packed(folder: Path) -> None:
    file = io.BytesIO()
    Image.fromarray(pixels(32, 32, 3)).save(file, "JPEG")
    jpeg = np.frombuffer(file.getvalue(), np.uint8)
    start = file.getvalue().index(b"\xff\xda") + 14
    for name in ("train", "test"):
        np.savez(
            folder / f"cifar10-{name}-jpeg.npz",
            header=jpeg[:start],
            scans=np.tile(jpeg[start:-2], 2),
            lengths=np.full(2, len(jpeg) - start - 2, np.uint16),
            labels=np.array([3, 1], np.uint8),
        )


def omniglot(folder: Path) -> None:
    np.savez(
        folder / "omniglot-small.npz",
        images=np.packbits(pixels(40, 15) > 127, axis=1),
        shape=np.array([3, 5], np.uint8),
        alphabet=np.zeros(40, np.uint8),
        character=np.repeat([1, 2], 20).astype(np.uint8),
        drawer=np.tile(np.arange(1, 21), 2).astype(np.uint8),
    )


def pictures(suffix: str, size: tuple[int, ...] = (8, 8, 3)) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        for name in "ab":
            (folder / name).mkdir()
            for i in range(2):
                options = {"compression": "tiff_lzw"} if suffix == ".tif" and i else {}
                picture = Image.fromarray(pixels(*size))
                picture.save(folder / name / f"{i}{suffix}", **options)

    return write


def valued(made: ps.data.Dataset) -> object:
    """A checksum of a data set, whose images and labels are in their range."""
    values = []
    for split in made[:2]:
        images, labels = torch.as_tensor(split.images), split.labels
        finite = images.dtype == torch.uint8 or bool(images.isfinite().all())
        assert finite and len(images) and images.ndim > 1, "no images"
        if labels is not None:
            assert labels.dtype == torch.int64 and len(labels) == len(images)
        values.append(digest(str(split.classes), {"x": images, "y": labels}))
    return values, made.levels


# Damage


def damaged(chance: random.Random, data: bytes) -> bytes:
    """Bytes with one kind of damage, at random places."""
    n = len(data)
    a, b = sorted(chance.randrange(n) for _ in range(2))
    changed = bytearray(data)
    match chance.randrange(9):
        case 0 | 1:
            changed[a] ^= 1 << chance.randrange(8)
        case 2:
            for _ in range(chance.randrange(2, 20)):
                changed[chance.randrange(n)] = chance.randrange(256)
        case 3:
            changed = changed[:a]
        case 4:
            changed[a:a] = changed[a:b]
        case 5:
            middle = (a + b) // 2
            changed[a:b] = changed[middle:b] + changed[a:middle]
        case 6:
            changed[a : min(b, a + 64)] = bytes(min(b, a + 64) - a)
        case 7:
            huge = chance.choice([2**31 - 1, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1])
            order = chance.choice(["<", ">"])
            some = struct.pack(f"{order}Q", huge)
            part = some if chance.random() < 0.5 else some[:4]
            changed[a : a + len(part)] = part
        case 8:
            changed += chance.randbytes(chance.randrange(1, 64))
    return bytes(changed)


STRANGE: list[Any] = [None, True, -1, 0, 2, 10**9, 10**30, 0.5, -1e308, "", "nan", "x"]
STRANGE += [
    "../../../etc/passwd",
    "/dev/zero",
    "os.system",
    "builtins.exec",
    "a\x1b[2J",
]
STRANGE += [[], {}, [[]], [1e300] * 3, {"same": 0}, {"type": "limits.SimVAE"}]
STRANGE += [{"class": "limits.SimCLR", "arguments": {}}, {"foreign": "os.system"}]
STRANGE += [{"distribution": "Normal", "arguments": {"loc": 0.0, "scale": -1.0}}]
STRANGE += [{"distribution": "LKJCholesky", "arguments": {"dim": 10**5}}]
STRANGE += [{"partial": {"class": "nn.MLPEncoder"}, "arguments": {"dim": 10**9}}]
STRANGE += [{"float": "nan"}, {"tensor": [[1, 2], [3]]}, {"of": 1, "event": 10**9}]
STRANGE += [{"tensor": "x"}, {"tuple": 1}, {"dict": [[1]]}, {"counter": [[[], 1]]}]


def forged(chance: random.Random, value: Any) -> Any:
    """A value of JSON with another part at a random place."""
    places = list(_places(value))
    holder, key = chance.choice(places) if places else ([value], 0)
    match chance.randrange(6):
        case 0 if isinstance(holder, dict):
            holder[chance.choice(["x", "../x", "__class__", "id"])] = holder.pop(key)
        case 1:
            del holder[key]
        case 2 if places:
            other, name = chance.choice(places)
            holder[key] = json.loads(json.dumps(other[name]))
        case 3 if isinstance(holder[key], int | float):
            grown = [-holder[key], holder[key] * 1000, holder[key] + 1, 1e-30, 7]
            holder[key] = chance.choice(grown)
        case _:
            holder[key] = chance.choice(STRANGE)
    return value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    for key, part in list(pairs):
        yield value, key
        if isinstance(part, dict | list):
            yield from _places(part)


def json_bomb(chance: random.Random, text: str) -> str:
    """JSON that takes far more than its size, or has what JSON has not."""
    deep = 100_000
    bombs = [
        "[" * deep + "]" * deep,
        '{"a":' * deep + "1" + "}" * deep,
        "[" + "[]," * 2_000_000 + "[]]",
        "[" + '{"a":1},' * 1_500_000 + "1]",
        "[" + "9" * 100_000 + "]",
        text.replace("{", '{"format": 3, "format": 3, ', 1),
        text.replace("0", "NaN", 1),
        text.replace("1", "Infinity", 1),
        text.replace("[", "[" * 300, 1).replace("]", "]" * 300, 1),
        text + text,
        "\ufeff" + text,
        '"\\ud800"',
        "null",
    ]
    return chance.choice(bombs)


def forge_json(name: str) -> Forge:
    def forge(chance: random.Random, folder: Path) -> None:
        path = folder / name
        text = path.read_text()
        if chance.random() < 0.2:
            path.write_text(json_bomb(chance, text))
            return
        value = forged(chance, json.loads(text))
        path.write_text(json.dumps(value))

    return forge


def forge_description(chance: random.Random, folder: Path) -> None:
    """A description with the right digest of what is wrong in it."""
    path = folder / "probssl.json"
    description = json.loads(path.read_text())
    if chance.random() < 0.2:
        part = "objective" if chance.random() < 0.5 else chance.choice([*description])
        bomb = json_bomb(chance, json.dumps(description[part]))
        text = path.read_text()
        old = json.dumps(description[part], indent=2).replace("\n", "\n  ")
        path.write_text(text.replace(old, bomb))
        return
    description.pop("digest")
    for _ in range(chance.randrange(1, 3)):
        if isinstance(description.get("objective"), dict) and chance.random() < 0.8:
            forged(chance, description["objective"])
        else:
            forged(chance, description)
    with suppress(ValueError):
        description["digest"] = digest(description)
    path.write_text(json.dumps(description))


def _header(data: bytes) -> tuple[dict[str, Any], bytes]:
    end = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:end]), data[end:]


def _joined(header: str, body: bytes) -> bytes:
    return len(header.encode()).to_bytes(8, "little") + header.encode() + body


def forge_weights(chance: random.Random, folder: Path) -> None:
    """Weights of other shapes, types, names or numbers, with the right digests."""
    path, described = folder / "model.safetensors", folder / "probssl.json"
    header, body = _header(path.read_bytes())
    texts = header.pop("__metadata__")
    match chance.randrange(4):
        case 0:
            body = bytearray(body)
            place = 4 * chance.randrange(len(body) // 4)
            number = chance.choice([np.nan, np.inf, -np.inf, 1e38])
            body[place : place + 4] = struct.pack("<f", number)
        case 1:
            name = chance.choice([*header])
            kinds = ["I32", "F16", "U8", "BOOL", "F64", "I64", "C64", "F8_E4M3"]
            header[name]["dtype"] = chance.choice(kinds)
        case 2:
            one, other = chance.sample([*header], 2)
            header[one], header[other] = header[other], header[one]
        case 3:
            header = forged(chance, header)
    text = json.dumps({"__metadata__": texts, **header})
    if chance.random() < 0.1:
        text = json_bomb(chance, text)
    path.write_bytes(_joined(text, bytes(body)))
    with suppress(Exception):
        description = json.loads(described.read_text())
        tensors = safetensors.torch.load(path.read_bytes())
        description |= {"weights": digest("", tensors)}
        description.pop("digest")
        description["digest"] = digest(description)
        described.write_text(json.dumps(description))


def forge_checkpoint(chance: random.Random, folder: Path) -> None:
    """A checkpoint of another state, with the right digest."""
    path = folder / "last.safetensors"
    header, body = _header(path.read_bytes())
    texts = header["__metadata__"]
    state = texts["state"]
    if chance.random() < 0.15:
        texts["state"] = json_bomb(chance, state)
    elif chance.random() < 0.2:
        place = 4 * chance.randrange(len(body) // 4)
        body = body[:place] + struct.pack("<f", np.nan) + body[place + 4 :]
    elif chance.random() < 0.2:
        texts_before = header.pop("__metadata__")
        header = forged(chance, header)
        header = {"__metadata__": texts_before} | header
    else:
        texts["state"] = json.dumps(forged(chance, json.loads(state)))
    with suppress(Exception):
        tensors = safetensors.torch.load(_joined(json.dumps(header), body))
        texts["digest"] = digest(texts["state"], tensors)
    path.write_bytes(_joined(json.dumps(header), body))


class Call:
    """Pickled, this is the order to call a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.order = function, arguments

    def __reduce__(self) -> Any:
        return self.order


def orders(folder: Path) -> list[Any]:
    trace = str(folder.parent / SENTINEL)
    return [
        Call(open, trace, "w"),
        Call(os.system, f"touch {trace}"),
        Call(exec, f"open({trace!r}, 'w')"),
        Call(np.save, trace, np.zeros(1)),
        Call(getattr, Call(__import__, "os"), "system"),
    ]


def forge_disguised(chance: random.Random, folder: Path) -> None:
    """A pickle under the name of the file, plain or in an archive."""
    path = chance.choice([p for p in folder.rglob("*") if p.is_file()])
    order = chance.choice(orders(folder))
    pickled = pickle.dumps(order, chance.randrange(6))
    match chance.randrange(3):
        case 0:
            path.write_bytes(pickled)
        case 1:
            file = io.BytesIO()
            torch.save({"objective": order}, file)
            path.write_bytes(file.getvalue())
        case 2:
            file = io.BytesIO()
            np.savez(file, images=np.array([order] * 8, dtype=object))
            path.write_bytes(file.getvalue())


def forge_archive(chance: random.Random, folder: Path) -> None:
    """A NumPy archive with other arrays, names, or sizes."""
    path = chance.choice(sorted(folder.glob("*.npz")))
    content = dict(np.load(path))
    name = chance.choice([*content])
    x = content[name]
    others: list[Any] = [
        lambda: np.array(chance.choice(orders(folder)), dtype=object),
        lambda: x.astype(np.float64) * np.nan,
        lambda: x[:0],
        lambda: x[:-1],
        lambda: x.reshape(-1),
        lambda: x[None],
        lambda: x.astype("U5"),
        lambda: x.astype(complex),
        lambda: x.astype("datetime64[s]"),
        lambda: np.zeros(3, dtype=[("a", "i4"), ("b", "f8")]),
        lambda: np.full_like(x, 200) if x.dtype.kind in "iu" else x + 1e300,
        lambda: x.astype(np.int64) - 2**62,
        lambda: np.zeros((8,), "V0"),
        lambda: x.astype(">i4"),
        lambda: np.asfortranarray(x),
    ]
    match chance.randrange(4):
        case 0:
            keys = ["../../x", "/etc/passwd", "images.npy", "lables", "x", "y", "\0"]
            content[chance.choice(keys)] = content.pop(name)
        case 1:
            path.write_bytes(archive_bomb(name, chance.randrange(3)))
            return
        case _:
            with suppress(ValueError, TypeError):
                content[name] = chance.choice(others)()
    with suppress(ValueError):
        np.savez(path, **content)


@cache
def archive_bomb(name: str, form: int, megabytes: int = 400) -> bytes:
    """An archive that declares gigabytes, or holds 400 MB of zeros."""
    shape = "(300000000000,)" if form == 0 else f"({megabytes}000000,)"
    head = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}"
    head = head.ljust(117) + "\n"
    start = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head.encode()
    file = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(file, "w") as zipped:
        warnings.simplefilter("ignore")
        if form == 1:
            with zipped.open(zipfile.ZipInfo(f"{name}.npy"), "w") as member:
                member.write(start + bytes(1000))
        elif form == 0:
            zipped.writestr(f"{name}.npy", start + bytes(64))
        else:
            info = zipfile.ZipInfo(f"{name}.npy")
            info.compress_type = zipfile.ZIP_DEFLATED
            with zipped.open(info, "w", force_zip64=True) as member:
                member.write(start)
                for _ in range(megabytes):
                    member.write(bytes(1_000_000))
    return file.getvalue()


def forge_batch(chance: random.Random, folder: Path) -> None:
    """A pickle that calls, that makes a table of gigabytes, or holds something else."""
    path = folder / chance.choice(BATCHES)
    content: dict[str, Any] = {"data": pixels(2, 3072), "labels": [1, 7]}
    order = chance.choice(orders(folder))
    others = [
        order,
        [order, 1],
        [1, -1],
        [10, 1],
        [1.5, 2.5],
        [True, False],
        [[1], [2]],
        "ab",
        [10**30, 1],
        None,
        pixels(2, 3071),
        pixels(3, 3072),
        np.zeros((2, 3072)),
    ]
    raw = [
        b"\x80\x04r\xff\xff\xff\x0fN.",
        b"\x80\x02}" + b"r\xf0\xff\xff\x07.",
        b"\x80\x04(" + b"\x8f" * 3_000_000 + b"l.",
        b"(" + b"]" * 5_000_000 + b"l.",
        b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"x.",
        b"\x80\x04\x8d" + struct.pack("<Q", 2**62) + b"x.",
        b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b"N.",
        b"\x8b" + struct.pack("<i", 2**31 - 1) + b"1.",
        b"(" * 100_000 + b"t" * 100_000 + b".",
        b"]" + b"q\0h\0a" * 1000 + b".",
        b"cos\nsystem\n(Vtouch x\ntR.",
        b"\x82\x01.",
        b"Pname\n.",
        b"I" + b"9" * 200_000 + b"\n.",
    ]
    if chance.random() < 0.4:
        path.write_bytes(chance.choice(raw))
        return
    content[chance.choice(["data", "labels", "filenames"])] = chance.choice(others)
    path.write_bytes(pickle.dumps(content, chance.randrange(6)))


def forge_idx(chance: random.Random, folder: Path) -> None:
    """An idx file of another shape or type, or one that unpacks without end."""
    path = chance.choice(sorted(folder.glob("*ubyte*")))
    zipped = path.suffix == ".gz"
    if zipped and chance.random() < 0.2:
        path.write_bytes(gz_bomb(chance.randrange(2)))
        return
    data = gzip.decompress(path.read_bytes()) if zipped else path.read_bytes()
    axes = chance.choice([0, 1, 2, 3, 4, 255])
    sizes = [chance.choice([0, 1, 8, 28, 784, 2**31, 2**32 - 1]) for _ in range(axes)]
    head = struct.pack(f">HBB{axes}I", 0, chance.choice([8, 8, 8, 13]), axes, *sizes)
    body = data[4 + 4 * data[3] :]
    forged_data = head + chance.choice([body, body[:-1], bytes([250]) * len(body)])
    path.write_bytes(gzip.compress(forged_data, 1) if zipped else forged_data)


@cache
def gz_bomb(form: int) -> bytes:
    shape = (8, 28, 28) if form else (400_000, 28, 28)
    return gzip.compress(struct.pack(">HBB3I", 0, 8, 3, *shape) + bytes(320_000_000), 9)


def png(width: int, height: int, bits: int, colour: int, rows: bytes) -> bytes:
    """A PNG with right checksums, whatever it declares."""

    def part(kind: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    head = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    body = part(b"IDAT", zlib.compress(rows)) + part(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", head) + body


def forge_picture(chance: random.Random, folder: Path) -> None:
    """A picture that declares more than it holds, has more bits, or several frames."""
    path = chance.choice([p for p in sorted(folder.rglob("*.*")) if p.is_file()])
    grey = Image.fromarray(pixels(8, 8))
    side = chance.choice([0, 1, 8, 9_000, 30_000, 2**31 - 1])
    forms: list[Callable[[], bytes]] = [
        lambda: png(side, 8, 8, 2, bytes(200)),
        lambda: png(side, side, 8, 6, bytes(200)),
        lambda: png(8, 8, 16, chance.choice([0, 2, 4, 6]), bytes(1000)),
        lambda: png(8, 8, chance.choice([1, 2, 3, 4]), 0, bytes(200)),
        big_picture,
        lambda: b"P6\n%d %d\n255\n" % (side, side) + bytes(192),
        lambda: b"P6\n8 8\n65535\n" + bytes(384),
        lambda: b"P5\n8 8\n%d\n" % chance.choice([1, 15, 255, 4095]) + bytes(128),
        lambda: b"GIF89a" + struct.pack("<HH", 65535, 65535) + bytes(30),
        lambda: saved(grey, "GIF", save_all=True, append_images=[grey.rotate(90)] * 3),
        lambda: saved(grey, "TIFF", save_all=True, append_images=[grey] * 2),
        lambda: saved(grey.convert("CMYK"), "JPEG"),
        lambda: saved(grey.convert("I"), "TIFF"),
        lambda: saved(grey.convert("F"), "TIFF"),
        lambda: saved(Image.fromarray(pixels(8, 8).astype(np.uint16)), "PNG"),
        lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n(x) run\n",
        lambda: b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    ]
    path.write_bytes(chance.choice(forms)())


def saved(picture: Image.Image, form: str, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, form, **options)
    return file.getvalue()


@cache
def big_picture() -> bytes:
    """300 MB of black pixels in a file of 300 kB."""
    side = 10_000
    return png(side, side, 8, 2, bytes(side * (3 * side + 1)))


def forge_special(chance: random.Random, folder: Path) -> None:
    """No file: a pipe, a folder, a device, a link out of the folder or to itself."""
    path = chance.choice([p for p in folder.rglob("*") if p.is_file()])
    data = path.read_bytes()
    path.unlink()
    match chance.randrange(6):
        case 0:
            os.mkfifo(path)
        case 1:
            path.mkdir()
        case 2:
            path.symlink_to(chance.choice(["/dev/zero", "/dev/random", "/dev/null"]))
        case 3:
            outside = folder.parent / f"outside-{path.name}"
            outside.write_bytes(data)
            path.symlink_to(outside)
        case 4:
            path.symlink_to(path.name)
        case 5:
            path.write_bytes(b"")


DISGUISED = (forge_disguised, forge_special)
ARCHIVE, PICTURE = (forge_archive, *DISGUISED), (forge_picture, *DISGUISED)
KINDS: dict[str, Kind] = {
    "description": Kind(
        lambda folder: ps.save(objective(), folder, data="toy"),
        loaded,
        "probssl.json",
        True,
        (forge_description,) * 4 + DISGUISED,
    ),
    "description of buffers": Kind(
        lambda folder: ps.save(moco(), folder),
        loaded,
        "probssl.json",
        True,
        (forge_description,) * 4 + DISGUISED,
    ),
    "weights": Kind(
        lambda folder: ps.save(objective(), folder),
        loaded,
        "model.safetensors",
        True,
        (forge_weights,) * 3 + DISGUISED,
    ),
    "checkpoint": Kind(
        write_run,
        resumed,
        "last.safetensors",
        True,
        (forge_checkpoint,) * 4 + DISGUISED,
    ),
    "comparison": Kind(
        comparison,
        table_of,
        "found.json",
        False,
        (forge_json("found.json"), *DISGUISED),
    ),
    "history": Kind(
        write_history, history, "text.json", False, (forge_json("text.json"),)
    ),
    "ranks": Kind(
        write_ranks, ranks_of, "text.json", False, (forge_json("text.json"),)
    ),
    "idx": Kind(
        mnist(""),
        lambda folder: valued(ps.data.mnist(folder, binary=False)),
        "*ubyte",
        False,
        (forge_idx, *DISGUISED),
    ),
    "idx.gz": Kind(
        mnist(".gz"),
        lambda folder: valued(ps.data.fashion_mnist(folder)),
        "*ubyte.gz",
        True,
        (forge_idx, *DISGUISED),
    ),
    "npz": Kind(
        archive,
        lambda folder: valued(ps.data.npz(folder / "mine.npz")),
        "mine.npz",
        True,
        ARCHIVE,
    ),
    "npz of names": Kind(
        archive_of_names,
        lambda folder: valued(ps.data.npz(folder / "mine.npz")),
        "mine.npz",
        True,
        ARCHIVE,
    ),
    "CIFAR-10 batch": Kind(
        batches,
        lambda folder: valued(ps.data.cifar10(folder)),
        "*_batch*",
        False,
        (forge_batch,) * 2 + DISGUISED,
    ),
    "CIFAR-10 JPEGs": Kind(
        packed, lambda folder: valued(ps.data.cifar10(folder)), "*.npz", True, ARCHIVE
    ),
    "Omniglot": Kind(
        omniglot,
        lambda folder: valued(ps.data.omniglot_small(folder)),
        "*.npz",
        True,
        ARCHIVE,
    ),
}
KINDS |= {
    suffix.removeprefix(".").upper(): Kind(
        pictures(suffix),
        lambda folder: valued(ps.data.image_folder(folder)),
        f"*/*{suffix}",
        suffix == ".png",
        PICTURE,
    )
    for suffix in (".png", ".jpg", ".tif", ".gif", ".bmp", ".webp", ".ppm")
}


# Reading


class Watch:
    """Notes what code does that no reader should."""

    def __init__(self) -> None:
        self.on, self.seen = False, []
        sys.addaudithook(self.hook)

    def hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        cached = ".pyc" in str(arguments)  # which the import of a module writes
        if self.on and (
            (event in FORBIDDEN and not cached)
            or (event == "open" and SENTINEL in str(arguments[0]))
        ):
            self.seen.append(f"{event}{arguments}")


class TooLong(BaseException):
    """A file was read for longer than `SECONDS`."""


def too_long(*_: object) -> None:
    raise TooLong


class Found(NamedTuple):
    """What became of one file."""

    outcome: str
    said: str
    megabytes: float


@cache
def made(name: str) -> tuple[dict[str, bytes], object]:
    """Whole files of a kind by their paths, and the value that is read from them."""
    with TemporaryDirectory() as place:
        folder = Path(place)
        KINDS[name].make(folder)
        paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        files = {str(path.relative_to(folder)): path.read_bytes() for path in paths}
        return files, KINDS[name].read(folder)


def tried(name: str, number: int, place: Path, watch: Watch) -> Found:
    """Damage or forge a file of this kind, by its number, and read it.

    The first file of each kind, number 0, is whole.
    """
    kind, chance = KINDS[name], random.Random(f"{name} {number}")
    folder = place / "files"
    files, whole = made(name)
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    forge = number % 2 == 1
    if number == 0:
        pass
    elif forge:
        chance.choice(kind.forges)(chance, folder)
    else:
        path = chance.choice(sorted(folder.glob(kind.target)))
        path.write_bytes(damaged(chance, path.read_bytes()))
    size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) / 1e6
    answers: list[Any] = []

    def read() -> None:
        watch.on = True
        try:
            answers[:] = kind.read(folder), None
        except (Exception, TooLong) as caught:
            answers[:] = None, caught
        finally:
            watch.on = False

    watch.seen = []
    signal.alarm(SECONDS)
    try:
        taken = peak_memory(read)
    finally:
        signal.alarm(0)
    value, error = answers
    executed = watch.seen or (place / SENTINEL).exists() or Path(SENTINEL).exists()
    said = "" if error is None else f"{type(error).__name__}: {error}"
    named = any(word in said for word in (str(folder), "the text"))
    kinds = ValueError, TypeError, OSError
    if executed:
        outcome, said = "executed", f"{watch.seen} {said}"
    elif taken > LIMIT + size or isinstance(error, MemoryError):
        outcome = "memory"
    elif error is not None:
        clear_words = isinstance(error, kinds) and named and "expected" in said
        outcome = "refused" if clear_words else "unclear"
    else:
        same = value == whole or forge or not kind.checked
        outcome = "read" if same else "wrong"
    return Found(outcome, said, round(max(taken, 0.0), 1))


def jobs(count: int) -> list[tuple[str, int]]:
    """So many files, of each kind alike."""
    each = -(-count // len(KINDS))
    return [(name, number) for number in range(each) for name in KINDS][:count]


def work(first: int, count: int) -> None:
    """Try the files from this one on, and print what became of each."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    signal.signal(signal.SIGALRM, too_long)
    for prepare in (archive_bomb, gz_bomb):  # before memory is limited
        with suppress(TypeError):
            prepare(0)
    big_picture()
    held = int(Path("/proc/self/statm").read_text().split()[5]) * os.sysconf(
        "SC_PAGE_SIZE"
    )
    resource.setrlimit(resource.RLIMIT_DATA, (held + ROOM, held + ROOM))
    watch = Watch()
    for name, number in jobs(count)[first:]:
        with TemporaryDirectory() as place:
            print(json.dumps(tried(name, number, Path(place), watch)), flush=True)


def results_of(count: int) -> Iterator[Found]:
    """What became of each file, read by processes; a new one where one crashed."""
    done = 0
    while done < count:
        command = [sys.executable, __file__, "--work", str(done), "--count", str(count)]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith("["):
                    yield Found(*json.loads(line))
                    done += 1
        if done < count:
            yield Found("unclear", f"the process ended by {process.returncode}", 0.0)
            done += 1


def main(
    count: int = COUNT,
    results: Path = RESULTS,
    found_by: Callable[[int], Iterator[Found]] = results_of,
    show: int = 0,
) -> dict[str, dict[str, Any]]:
    """Return the number of files by kind and outcome, and the peak of memory.

    Arguments:
        found_by: A function that yields what became of each of so many files.
        show: The number of bad outcomes of each kind that are printed.
    """
    began = time.perf_counter()
    outcomes: dict[str, Counter[str]] = {name: Counter() for name in KINDS}
    peaks, shown = dict.fromkeys(KINDS, 0.0), Counter[tuple[str, str]]()
    bar = tqdm(jobs(count), unit="file")
    for (name, number), found in zip(bar, found_by(count), strict=True):
        outcomes[name][found.outcome] += 1
        peaks[name] = max(peaks[name], found.megabytes)
        key = name, found.outcome
        if found.outcome not in ("read", "refused") and shown[key] < show:
            shown[key] += 1
            tqdm.write(
                f"{name} {number}: {found.outcome}, {found.megabytes} MB, "
                f"{found.said[:500]}"
            )
    figures: dict[str, dict[str, Any]] = {
        name: {"files": sum(each.values())}
        | {outcome: each[outcome] for outcome in OUTCOMES}
        | {"peak, MB": peaks[name]}
        for name, each in outcomes.items()
    }
    total = {
        key: sum(row[key] for row in figures.values()) for key in ("files", *OUTCOMES)
    }
    figures["all"] = total | {"peak, MB": max(peaks.values())}
    table(figures)
    seconds = round(time.perf_counter() - began)
    script = "benchmarks/hostile_files.py"
    report(script, results, figures, seconds=seconds, limit_in_MB=LIMIT)
    return figures


if __name__ == "__main__":
    parser = options(__doc__, device=False)
    parser.add_argument("--count", type=int, default=COUNT, help="number of files")
    parser.add_argument("--show", type=int, default=0, help="bad outcomes of each kind")
    parser.add_argument("--work", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work is None:
        main(given.count, given.out / RESULTS.name, show=given.show)
    else:
        work(given.work, given.count)
