"""Data sets: splits, arrays, groups, files that are read without trust, simulators."""

import gzip
import hashlib
import io
import math
import pickle
import re
import struct
import zlib

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.checks import assert_mean, refusals
from PIL import Image
from sklearn.preprocessing import LabelEncoder
from torch.testing import assert_close
from torch.utils.data import DataLoader

import probssl as ps
from probssl import data, embed, recipes
from probssl.data import Split
from probssl.data.batches import Items
from probssl.data.published import read_idx
from probssl.data.simulators import FACTORS, SHAPES
from probssl.nn import MLPEncoder

RNG = np.random.RandomState(0)


def pixels(*shape):
    return RNG.randint(0, 256, shape).astype(np.uint8)


PAIRS = data.groups(np.zeros((4, 2, 3)))


def exact(tensor, array):
    return torch.equal(tensor, torch.from_numpy(np.ascontiguousarray(array)))


def parted(made):
    """The items of both splits, as sorted bytes."""
    images = torch.cat([made.train.images, made.test.images]).numpy()
    return sorted(row.tobytes() for row in images)


# Splits


def test_digits_are_sixteenths_in_a_fixed_stratified_split():
    digits = data.digits()
    assert digits.levels == 16 and digits.name == "digits"
    for split in digits[:2]:
        counts = split.images * 16
        assert split.images.shape[1:] == (1, 8, 8)
        assert split.images.dtype == torch.float32 and split.labels.dtype == torch.int64
        assert torch.equal(counts, counts.round())
        assert counts.min() == 0 and counts.max() == 16
    train, test = digits.train.labels.bincount(), digits.test.labels.bincount()
    assert ((train - 3 * test).abs() <= 2).all() and (train + test).sum() == 1797
    assert 16 * sum(split.images.sum() for split in digits[:2]) == 561718
    # These numbers change if the split does.
    assert 16 * digits.test.images.sum() == 140239
    assert digits.test.labels[:5].tolist() == [2, 6, 8, 6, 1]
    assert torch.equal(data.digits(0).test.images, digits.test.images)
    assert not torch.equal(data.digits(1).test.images, digits.test.images)


def test_fixed_split_parts_the_items_and_keeps_every_class_in_training():
    images = np.arange(23.0)[:, None]
    labels = np.array([7] + [2] * 2 + [5] * 8 + [-1] * 12)
    whole = data.arrays(images, labels)
    train, test = whole.train, whole.test
    assert sorted([*train.images[:, 0], *test.images[:, 0]]) == list(range(23))
    assert train.labels.unique().tolist() == [-1, 2, 5, 7]
    assert sorted(test.labels.tolist()) == [-1] * 3 + [2] + [5] * 2
    assert (labels[train.images[:, 0].int()] == train.labels.numpy()).all()


def test_take_is_a_fixed_random_subset_or_the_first_items():
    n = torch.arange(50)
    split = data.Split(n[:, None], n, n[:, None].float())
    part = split.take(20)
    assert len(part.labels.unique()) == 20
    assert (part.images[:, 0] == part.labels).all()
    assert (part.style[:, 0] == part.labels).all()
    assert torch.equal(part.labels, split.take(20).labels)
    assert not torch.equal(part.labels, split.take(20, seed=1).labels)
    assert torch.equal(split.take(20, seed=None).labels, torch.arange(20))
    assert data.Split(split.images).take(3).labels is None
    for n in (0, 51):
        with pytest.raises(
            ValueError, match=f"n as a whole number from 1 to 50, got {n}"
        ):
            split.take(n)
    groups = data.Groups(torch.arange(50)[:, None, None], content=torch.arange(50))
    assert torch.equal(groups.take(20).views[:, 0, 0], part.labels)
    assert torch.equal(groups.take(20).content, part.labels)
    both = data.Dataset(split, split.take(30), 255, "n").take(20, 10, seed=1)
    assert torch.equal(both.train.labels, split.take(20, 1).labels)
    assert torch.equal(both.test.labels, split.take(30).take(10, 1).labels)
    assert both[2:] == (255, "n", "nearest")


@pytest.mark.parametrize("n", [1, 5, 20])
def test_rows_of_any_column_keep_the_axis_of_items(n, tmp_path):
    x, names = RNG.rand(20, 3, 4, 4), np.array([*"abcd"] * 5)
    np.save(tmp_path / "x.npy", x)
    file = np.load(tmp_path / "x.npy", mmap_mode="r")
    for split in (
        data.Split(file, names, style=names),
        data.Split(x, names.tolist(), style=x[:, 0, 0]),
        data.Split((x, x[:, :1]), np.arange(20)),
    ):
        order = torch.randperm(20, generator=torch.Generator().manual_seed(0))[:n]
        made = split.take(n)
        parts = made.images if isinstance(made.images, tuple) else (made.images,)
        for part, whole in zip(parts, (x, x[:, :1]), strict=False):
            np.testing.assert_array_equal(part, whole[order.numpy()])
        assert len(made.labels) == n and len(repr(made)) < 99
        for index in (order, order.numpy(), order.tolist()):
            again = split.rows(index)
            np.testing.assert_array_equal(again.labels, made.labels)
        mask = np.isin(np.arange(20), order)
        assert len(split.rows(mask)) == len(split.rows(torch.tensor(mask))) == n


SPLIT = data.Split(np.eye(3), [0, 1, 2])
test_a_split_is_no_list_of_items = refusals(
    (lambda: SPLIT.rows(1), TypeError, r"index, got torch.int64 of shape \(\); give"),
    (lambda: SPLIT.rows([0.0, 1.0]), TypeError, "row numbers .*got torch.float"),
    (lambda: SPLIT[0], TypeError, r"rows by .rows\(slice\(10\)\)"),
    (lambda: list(SPLIT), TypeError, "not iterable"),
    (lambda: next(iter(DataLoader(SPLIT, 2))), TypeError, r"DataLoader\(data.images"),
    (lambda: next(iter(DataLoader(PAIRS, 2))), TypeError, r"DataLoader\(data.views"),
    (lambda: SPLIT._replace(classes="abc"), ValueError, "a tuple of strings.*'abc'"),
    (lambda: SPLIT._replace(classes=("a", "b")), ValueError, "labels up to 2"),
    (lambda: SPLIT._replace(classes=(0, 1, 2)), ValueError, "a tuple of strings"),
)


def test_take_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    data.Split(torch.rand(9, 2).zero_()).take(3)
    data.digits()
    after = torch.get_rng_state()
    torch.set_rng_state(before)
    torch.rand(9, 2)
    assert torch.equal(after, torch.get_rng_state())


def test_what_is_printed_is_short_and_len_counts_the_items():
    digits = data.digits()
    assert len(digits.train) == 1346 and len(repr(digits)) < 200
    assert repr(digits.test) == "Split(451 items (1, 8, 8), float32, 10 classes)"
    assert "<th>test</th><td>451 items (1, 8, 8)" in digits._repr_html_()
    assert "<th>Split</th><td>451 items" in digits.test._repr_html_()
    pair = data.groups([X, X[:, :1]], present=np.ones((6, 2), bool))
    assert len(pair) == 6
    assert repr(pair) == "Groups(6 items (1, 2), (1, 1), float64, present)"
    assert len(repr(data.linear_gaussian(100))) < 150


def test_splits_of_arrays_and_groups_of_a_list_print_too():
    x, y = np.zeros((6, 3), np.float32), np.array([0, 1, 2, 0, 1, 2])
    assert repr(data.Split(x, y)) == "Split(6 items (3,), float32, 3 classes)"
    parts = [torch.zeros(4, 2, 3), torch.zeros(4, 1, 5)]
    groups = data.Groups(parts)
    assert len(groups.rows(slice(2))) == 2 and "4 items (2, 3), (1, 5)" in repr(groups)


# Arrays


@pytest.mark.parametrize("kind", [np.asarray, torch.tensor, pd.DataFrame, list])
def test_arrays_take_numbers_from_anywhere(kind):
    x, test = RNG.rand(8, 3), RNG.rand(2, 3)
    made = data.arrays(kind(x), [0, 1] * 4, test=kind(test), test_labels=[1, 0])
    assert torch.equal(made.train.images, torch.tensor(x))
    assert torch.equal(made.train.labels, torch.tensor([0, 1] * 4))
    assert made.levels is None and made.name == "arrays"


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_floating_point_keeps_its_type(kind):
    x = RNG.rand(4, 3).astype(kind)
    assert exact(data.arrays(x, test=x).train.images, x)
    assert exact(data.groups([x, x]).views, np.stack([x, x], 1))
    wide = data.arrays(x, test=x.astype(np.float64))
    assert exact(wide.train.images, x.astype(np.float64))


@pytest.mark.parametrize(
    "kind", [np.int32, np.int64, np.uint32, np.uint64, torch.tensor]
)
def test_whole_numbers_are_exact_or_refused(kind):
    convert = kind if kind is torch.tensor else (lambda x: np.array(x, kind))
    encoder = MLPEncoder((2,), 2).double()
    for most in (2**15, 2**24, 2**24 + 1, 2**31 - 1):
        x = convert([[most, 5]] * 3)
        for made in (x, data.Split(x), data.arrays(x, test=x).train):
            found = embed(encoder, made)
            assert np.array_equal(found, embed(encoder, np.array([[most, 5.0]] * 3)))
    if kind in (np.int64, np.uint64):
        with pytest.raises(ValueError, match="float64 holds exactly in images"):
            data.arrays(convert([[2**53 + 1, 5]] * 3))


@pytest.mark.usefixtures("float64")
def test_arrays_follow_the_default_type():
    x = RNG.rand(4, 3)
    assert data.arrays(x.astype(np.int64), test=x).train.images.dtype == torch.float64


def test_bytes_stay_bytes_and_booleans_become_black_and_white():
    x = pixels(8, 1, 2, 2)
    made = data.arrays(x, test=x, levels=255)
    assert made.levels == 255 and exact(made.train.images, x)
    made = data.arrays(x > 127, test=x > 127)
    assert made.levels == 1 and exact(made.train.images, (x > 127) * np.uint8(255))


def test_foreign_byte_order_and_strides_are_read_as_they_are_meant():
    x = RNG.rand(6, 4).astype(">f4")[::-1, ::2]
    assert exact(data.arrays(x, test=x).train.images, x.astype("<f4"))


STRINGS, WHOLE = ["cat", "ant", "cat", "bee"], [3, 0, 3, 1]
CODES = {
    "list": (STRINGS, [2, 0, 2, 1]),
    "bytes": (np.array(STRINGS, "S3"), [2, 0, 2, 1]),
    "variable": (np.array(STRINGS, "T"), [2, 0, 2, 1]),
    "series": (pd.Series(STRINGS), [2, 0, 2, 1]),
    "categorical": (pd.Categorical(STRINGS), [2, 0, 2, 1]),
    "uint8": (np.array(WHOLE, dtype=np.uint8), WHOLE),
    "int32": (torch.tensor(WHOLE, dtype=torch.int32), WHOLE),
    "float": ([3.0, 0.0, 3.0, 1.0], WHOLE),
    "nullable": (pd.Series(WHOLE, dtype="Int64"), WHOLE),
    "object": (np.array(WHOLE, dtype=object), WHOLE),
}


@pytest.mark.parametrize("kind", CODES)
def test_labels_are_int64_and_strings_are_numbered_by_their_sorted_order(kind):
    labels, codes = CODES[kind]
    x = RNG.rand(4, 2)
    made = data.arrays(x, labels, test=x, test_labels=labels)
    for split in made[:2]:
        assert split.labels.tolist() == codes and split.labels.dtype == torch.int64


def test_strings_are_numbered_over_both_splits():
    x = RNG.rand(4, 2)
    made = data.arrays(x, STRINGS, test=x[:2], test_labels=["ape", "bee"])
    assert made.train.labels.tolist() == [3, 0, 3, 2]
    assert made.test.labels.tolist() == [1, 2]


X = np.linspace(0, 1, 12).reshape(6, 2)
PAIR, SIX = [X, X], range(6)


def refuses(make, cases):
    """A test of calls with these positional and keyword arguments."""
    return refusals(
        *(
            (lambda a=a, o=o: make(*a, **o), error, re.escape(message))
            for message, error, *a, o in cases
        )
    )


test_arrays_say_what_is_wrong = refuses(
    data.arrays,
    [
        ("at least one item, got shape (0, 2)", ValueError, X[:0], {}),
        ("at least one item, got shape (12,)", ValueError, X.flatten(), {}),
        ("each of the 6 images, got 5", ValueError, X, {"labels": range(5)}),
        ("got 6 with shape (6, 3)", ValueError, X, {"labels": np.eye(6, 3)}),
        ("infinity in 1 of 6", ValueError, np.where(X == 0, np.nan, X), {}),
        ("infinity in 2 of 6", ValueError, np.where(X > 0.7, np.inf, X), {}),
        ("from 0 to 2", ValueError, 2 * X, {"levels": 255}),
        ("from -1 to 0", ValueError, X - 1, {"levels": 255}),
        ("on the grid k/16", ValueError, X, {"levels": 16}),
        ("grid k/1 (a byte k", ValueError, (X > 0).astype(np.uint8), {"levels": 1}),
        ("levels as a whole number", ValueError, X, {"levels": 0}),
        ("got an array of object", TypeError, X.astype(object), {}),
        ("got an array of <U", TypeError, X.astype(str), {}),
        ("got an array of complex", TypeError, X + 1j, {}),
        ("got torch.complex", TypeError, torch.tensor(X + 1j), {}),
        ("numbers or strings in labels", ValueError, X, {"labels": [0.5] * 6}),
        ("such as nan", ValueError, X, {"labels": [math.nan] * 6}),
        ("such as inf", ValueError, X, {"labels": [math.inf] * 6}),
        ("such as None", TypeError, X, {"labels": [None] + ["a"] * 5}),
        ("pass both", ValueError, X, {"test_labels": [1]}),
        ("both labels and test_labels", ValueError, X, {"test": X, "labels": SIX}),
        ("like the training images, (2,)", ValueError, X, {"test": X[:, :1]}),
        ("in 6 class(es)", ValueError, X, {"labels": SIX}),
        ("each", TypeError, X, {"test": X, "labels": SIX, "test_labels": [*"abcdef"]}),
    ],
)
BYTES, W = (X * 255).astype(np.uint8), torch.ones(3, 2)
test_groups_say_what_is_wrong = refuses(
    data.groups,
    [
        ("a list with one array", ValueError, X, {}),
        ("the same n, got shapes []", ValueError, [], {}),
        ("the same n, got shapes [(6", ValueError, [X, X[:3]], {}),
        ("the same n, got shapes [(6,)", ValueError, [X[:, 0], X[:, 0]], {}),
        ("views on the grid k/255", ValueError, [BYTES, X[:, :1]], {"levels": 255}),
        ("each of 2 modalities", ValueError, [BYTES, X[:, :1]], {"levels": [255]}),
        ("that are stacked", ValueError, [BYTES, X], {"levels": [255, None]}),
        ("at least one item", ValueError, np.zeros((0, 2, 3)), {}),
        ("one class for each of the 6", ValueError, PAIR, {"labels": [1, 2]}),
        ("Booleans", TypeError, PAIR, {"present": np.ones((6, 2))}),
        ("(6, 2) (n, view)", ValueError, PAIR, {"present": [[True] * 3] * 6}),
        ("none for 6 of 6", ValueError, PAIR, {"present": [[False] * 2] * 6}),
    ],
)
test_linear_gaussian_says_what_is_wrong = refuses(
    data.linear_gaussian,
    [
        ("features=4 and dim=None", ValueError, 3, {"weight": W, "features": 4}),
        ("features=None and dim=1", ValueError, 3, {"weight": W, "dim": 1}),
        ("got (3,)", ValueError, 3, {"weight": W[:, 0]}),
        ("y_scale as a finite number", ValueError, 3, {"y_scale": math.inf}),
        ("scale as a finite number of", ValueError, 3, {"scale": -1}),
        ("noise as a finite number", ValueError, 3, {"noise": math.nan}),
        ("views as a whole number", ValueError, 3, {"views": 0}),
    ],
)
test_factors_refuse_no_items = refuses(data.factors, [("got 0", ValueError, 0, {})])


@pytest.mark.parametrize("levels", [1, 16, 255])
def test_images_on_the_grid_pass_in_every_precision(levels):
    x = torch.arange(levels + 1, dtype=torch.float64)[:, None] / levels
    for kind in (torch.float32, torch.float64, torch.float16):
        made = data.arrays(x.to(kind), test=x.to(kind), levels=levels)
        assert made.levels == levels
        assert (made.train.images.double() - x).abs().max() < 1e-7
    if levels == 255:
        with pytest.raises(ValueError, match="tells 256 grey levels apart"):
            data.arrays(x.bfloat16(), levels=levels)


def test_a_list_has_items_and_a_tuple_modalities():
    images = list(RNG.rand(5, 3, 8, 8).astype(np.float32))
    for kind in (
        images,
        [torch.tensor(x) for x in images],
        [x.tolist() for x in images],
    ):
        split = data.Split(kind, [0, 1, 0, 1, 0])
        assert len(split) == 5 and exact(split.images.float(), np.stack(images))
    pair = data.Split((np.stack(images), RNG.rand(5, 2)))
    assert [tuple(part.shape) for part in pair.images] == [(5, 3, 8, 8), (5, 2)]
    for empty in ([], ()):
        with pytest.raises(ValueError, match="one item in images, got an empty"):
            data.Split(empty)


@pytest.mark.parametrize("kind", CODES)
def test_labels_of_a_split_pass_the_same_gate(kind):
    labels, codes = CODES[kind]
    x = RNG.rand(4, 2)
    wanted = np.unique(codes, return_inverse=True)[1].tolist()
    given = labels, tuple(labels), list(labels)
    for one in given[: 1 if kind == "bytes" else 3]:  # objects of bytes are refused
        found = data.Split(x, one).labels
        assert np.unique(found, return_inverse=True)[1].tolist() == wanted
        assert isinstance(found, np.ndarray) or found.dtype == torch.int64


def test_labels_of_a_split_that_are_no_classes_are_refused():
    x = RNG.rand(4, 2)
    assert data.Split(x, list(torch.tensor(WHOLE))).labels.tolist() == WHOLE
    for bad in ([None] * 4, [math.nan] * 4, [0.5] * 4, np.eye(4), [1, "a", 2, 3]):
        with pytest.raises((TypeError, ValueError), match="expected .*got"):
            data.Split(x, bad)


# Groups


def test_groups_stack_views_and_keep_modalities_apart():
    a, b, c = RNG.rand(5, 1, 4), RNG.rand(5, 1, 4), RNG.rand(5, 7)
    pair = data.groups([a, b], labels=list("aabbc"))
    assert exact(pair.views, np.stack([a, b], 1))
    assert pair.labels.tolist() == [0, 0, 1, 1, 2] and pair.present is None
    assert torch.equal(data.groups(np.stack([a, b], 1)).views, pair.views)
    both = data.groups((a, c), present=np.array([[True, False]] + [[True, True]] * 4))
    assert [tuple(view.shape) for view in both.views] == [(5, 1, 1, 4), (5, 1, 7)]
    part = both.rows(torch.tensor([4, 0]))
    assert exact(part.views[0][:, 0], a[[4, 0]])
    assert part.present.tolist() == [[True, True], [True, False]]
    assert pair.rows(slice(2)).labels.tolist() == [0, 0]


def test_modalities_keep_their_types_and_views_share_the_widest():
    seen, table = X > 0.5, X[:, :1]
    apart = data.groups([seen, table]).views
    assert apart[0].dtype == torch.uint8 and exact(apart[1][:, 0], table)
    for levels in ([255, None], (255, None)):
        apart = data.groups([BYTES, table], levels=levels).views
        assert exact(apart[0][:, 0], BYTES) and exact(apart[1][:, 0], table)
    both = data.groups([seen, X]).views
    assert exact(both[:, 1], X) and exact(both[:, 0], seen.astype(float))


def test_groups_replace_what_is_missing_and_leave_what_was_given():
    x = torch.ones(2, 2, 3)
    x[0, 1] = math.nan
    made = data.groups(x, present=[[True, False], [True, True]])
    assert torch.equal(made.views[0, 1], torch.zeros(3)) and x[0, 1].isnan().all()
    assert made.views.sum() == 9
    with pytest.raises(ValueError, match="infinity in 1 of 2 items"):
        data.groups(x, present=[[True, True], [True, False]])


# idx files


def idx(array, kind=8):
    head = struct.pack(f">HBB{array.ndim}I", 0, kind, array.ndim, *array.shape)
    return head + array.tobytes()


def write_idx(folder, train="train", suffix=".gz", n=6):
    folder.mkdir(exist_ok=True)
    opened = gzip.open if suffix else open
    written = {}
    for prefix in (train, "t10k"):
        for stem, array in {
            "images-idx3-ubyte": pixels(n, 5, 4),
            "labels-idx1-ubyte": pixels(n) % 10,
        }.items():
            with opened(folder / f"{prefix}-{stem}{suffix}", "wb") as file:
                file.write(idx(array))
            written[prefix, stem[:6]] = array
    return written


@pytest.mark.parametrize("suffix", [".gz", ""])
def test_mnist_reads_idx_files(tmp_path, suffix):
    written = write_idx(tmp_path, suffix=suffix)
    grey, binary = data.mnist(tmp_path, binary=False), data.mnist(str(tmp_path))
    assert (grey.levels, binary.levels, binary.name) == (255, 1, "mnist")
    for prefix, split, black in (
        ("train", grey.train, binary.train),
        ("t10k", grey.test, binary.test),
    ):
        x = written[prefix, "images"][:, None]
        assert exact(split.images, x) and split.style is None
        assert exact(black.images, np.where(x > 127, 255, 0).astype(np.uint8))
        assert exact(split.labels, written[prefix, "labels"].astype(np.int64))


def test_dynamic_mnist_draws_the_test_set_once_and_leaves_training_to_the_views(
    tmp_path,
):
    write_idx(tmp_path)
    grey, dynamic = (data.mnist(tmp_path, binary=b) for b in (False, "dynamic"))
    assert exact(dynamic.train.images, grey.train.images.numpy())
    assert (dynamic.levels, dynamic.rounding) == (1, "random")
    torch.manual_seed(1)
    again = data.mnist(tmp_path, binary="dynamic").test.images
    assert exact(again, dynamic.test.images.numpy())
    assert set(again.unique().tolist()) == {0, 255}
    views = recipes.views(dynamic)
    assert set(views(torch.rand(4, 1, 5, 4)).unique().tolist()) == {0.0, 1.0}
    with pytest.raises(ValueError, match="binary"):
        data.mnist(tmp_path, binary="static")


def test_mnist_takes_the_writers_that_lie_beside_as_style(tmp_path):
    write_idx(tmp_path)
    writers = {f"{p}_writer": np.arange(6, dtype=np.uint16) for p in ("train", "t10k")}
    np.savez(tmp_path / "mnist-writers.npz", **writers)
    assert torch.equal(data.mnist(tmp_path).test.style, torch.arange(6))
    writers["t10k_writer"] = np.arange(5)
    np.savez(tmp_path / "mnist-writers.npz", **writers)
    with pytest.raises(ValueError, match="expected 6 writers of t10k"):
        data.mnist(tmp_path)


@pytest.mark.parametrize("train", ["train", "train20k"])
def test_fashion_mnist_takes_the_whole_or_the_first_20000(tmp_path, train):
    written = write_idx(tmp_path, train)
    made = data.fashion_mnist(tmp_path)
    assert exact(made.train.images[:, 0], written[train, "images"])
    assert made.levels == 255 and made.name == "fashion-mnist"
    assert made.train.classes[5] == made.test.classes[5] == "Sandal"


# Without the time, which is in the test's name: workers compare names.
PACKED = gzip.compress(idx(pixels(900)), mtime=0)


@pytest.mark.parametrize(
    "name, message, content",
    [
        ("file", "0000 0d 01", idx(pixels(3), kind=13)),
        ("file", "0102 08 01", b"\1\2" + idx(pixels(3))[2:]),
        ("file", "requires a buffer", b"\0\0"),
        ("file", "requires a buffer", idx(pixels(3, 3))[:6]),
        ("file", "expected 9 bytes, 1 or more, .* got 8", idx(pixels(3, 3))[:-1]),
        ("file", "expected 9 bytes, .* got more", idx(pixels(3, 3)) + b"\0"),
        ("file", "expected 0 bytes, 1 or more", idx(pixels(0, 3))),
        ("file.gz", "file.gz as .* damaged", PACKED[:-100]),
        ("file.gz", "file.gz as .* damaged", b"plain"),
        ("file.gz", "file.gz as .* damaged", b"\x1f\x8b\x08" * 9),
    ],
)
def test_damaged_idx_files_are_refused(tmp_path, name, message, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_idx(tmp_path / name)


def test_idx_images_and_labels_must_agree(tmp_path):
    write_idx(tmp_path)
    with gzip.open(tmp_path / "t10k-labels-idx1-ubyte.gz", "wb") as file:
        file.write(idx(pixels(5)))
    with pytest.raises(ValueError, match=r"t10k .* \(6, 5, 4\) and \(5,\)"):
        data.mnist(tmp_path)


# CIFAR-10


def canonical(x, y):
    """The protocol 2 of Python 3, in which bytes are encoded text."""
    return pickle.dumps({"data": x, "labels": [int(c) for c in y]}, protocol=2)


def spelling(name):
    def write(x, y):
        content = canonical(x, y)
        for other in (b"numpy._core.multiarray", b"numpy.core.multiarray"):
            content = content.replace(other, name)
        assert name + b"\n_reconstruct" in content
        return content

    return write


def python2(x, y):
    """The opcodes of Python 2, in which a string is bytes of no encoding."""

    def string(s):
        return b"T" + struct.pack("<i", len(s)) + s

    kind = b"cnumpy\ndtype\n(" + string(b"u1") + b"K\0K\1tR(K\3" + string(b"|")
    kind += b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb"
    shape = b"".join(b"M" + struct.pack("<H", size) for size in x.shape)
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\0t"
    array += string(b"b") + b"tR(K\1(" + shape + b"t" + kind + b"\x89"
    array += string(x.tobytes()) + b"tb"
    labels = b"(" + b"".join(b"K" + bytes([c]) for c in y) + b"l"
    pairs = string(b"data") + array + string(b"labels") + labels
    return b"\x80\x02}(" + string(b"batch_label") + string(b"one") + pairs + b"u."


BATCHES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")
PICKLES = {
    "old": spelling(b"numpy.core.multiarray"),
    "new": spelling(b"numpy._core.multiarray"),
    "python2": python2,
    "columns": lambda x, y: canonical(np.asfortranarray(x), y),
}


def write_cifar(folder, write):
    folder.mkdir(exist_ok=True)
    batches = [(pixels(4, 3072), pixels(4) % 10) for _ in BATCHES]
    for name, (x, y) in zip(BATCHES, batches, strict=True):
        (folder / name).write_bytes(write(x, y))
    return batches


@pytest.mark.parametrize("spelled", PICKLES)
@pytest.mark.parametrize("inside", ["", "cifar-10-batches-py"])
def test_cifar10_reads_the_canonical_pickles(tmp_path, spelled, inside):
    batches = write_cifar(tmp_path / inside, PICKLES[spelled])
    made = data.cifar10(tmp_path)
    x = np.concatenate([x for x, _ in batches]).reshape(-1, 3, 32, 32)
    y = np.concatenate([y for _, y in batches]).astype(np.int64)
    assert exact(made.train.images, x[:20]) and exact(made.test.images, x[20:])
    assert exact(made.train.labels, y[:20]) and exact(made.test.labels, y[20:])
    assert made.levels == 255 and made.name == "cifar10"
    assert len(made.test.classes) == 10 and made.train.classes[6] == "frog"


class Call:
    """Pickled, this is the order to call a function."""

    def __init__(self, function, *arguments):
        self.order = function, arguments

    def __reduce__(self):
        return self.order


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("place", ["data", "labels", "filenames"])
def test_a_pickle_that_would_run_code_is_refused_and_does_not(
    tmp_path, place, protocol
):
    batches, trace = write_cifar(tmp_path, canonical), tmp_path / "trace"
    content = {"data": batches[0][0].tolist(), "labels": [0] * 4}
    content[place] = Call(open, str(trace), "w")
    bad = pickle.dumps(content, protocol=protocol)
    (tmp_path / "data_batch_3").write_bytes(bad)
    with pytest.raises(ValueError, match="data_batch_3 .* refers to _?io.open"):
        data.cifar10(tmp_path)
    assert not trace.exists()
    pickle.loads(bad)[place].close()
    assert trace.exists()  # the plain way does run it


@pytest.mark.parametrize(
    "order, message",
    [
        (b"cos\nsystem\n(V:\ntR.", "as a CIFAR-10 batch.*refers to os.system"),
        (b"cbuiltins\neval\n(V1\ntR.", "refers to builtins.eval"),
        (b"cnumpy\nload\n(V/\ntR.", "refers to numpy.load"),
        (b"\x80\x04\x8c\x05numpy\x8c\x0dndarray.dumps\x93.", "refers to numpy.ndarray"),
        (b"cnumpy\ndtype\n(VO8\ntR.", r"expected bytes \('u1'\), got type 'O8'"),
        (b"c_codecs\nencode\n(VA\nVzlib\ntR.", "expected latin1, got encoding 'zlib'"),
        (b"cnumpy\nndarray\n(K\1tR.", "not callable"),
        (b"}.", "'data'"),
        (b"", "exhausted"),
        (b"Pelsewhere\n.", "persistent"),
        (canonical(pixels(4, 3072), range(3)), r"got \(4, 3072\) and 3"),
    ],
)
def test_a_pickle_with_any_other_content_is_refused(tmp_path, order, message):
    write_cifar(tmp_path, canonical)
    (tmp_path / "test_batch").write_bytes(order)
    with pytest.raises(ValueError, match=f"test_batch.*{message}"):
        data.cifar10(tmp_path)


def jpegs(n, size=(32, 32)):
    """JPEGs, the number of bytes they share at the start, and the decoded pixels."""
    files, decoded = [], []
    for _ in range(n):
        file = io.BytesIO()
        Image.fromarray(pixels(*size, 3)).save(file, "JPEG", quality=75)
        files.append(file.getvalue())
        decoded.append(np.asarray(Image.open(file)))
    start = files[0].index(b"\xff\xda") + 14  # the scan's own header has 12 bytes
    assert len({file[:start] for file in files}) == 1
    return files, start, np.stack(decoded)


def write_jpegs(folder, size=(32, 32)):
    made = {}
    for name in ("train", "test"):
        files, start, made[name] = jpegs(4, size)
        scans = [np.frombuffer(file[start:-2], np.uint8) for file in files]
        np.savez(
            folder / f"cifar10-{name}-jpeg.npz",
            header=np.frombuffer(files[0][:start], np.uint8),
            scans=np.concatenate(scans),
            lengths=np.array([len(scan) for scan in scans], dtype=np.uint16),
            labels=np.array([3, 1, 4, 1], dtype=np.uint8),
        )
    return made


def test_cifar10_reads_packed_jpegs(tmp_path):
    written, made = write_jpegs(tmp_path), data.cifar10(tmp_path)
    assert exact(made.train.images, written["train"].transpose(0, 3, 1, 2))
    assert exact(made.test.images, written["test"].transpose(0, 3, 1, 2))
    assert made.train.labels.tolist() == [3, 1, 4, 1] and made.levels == 255
    assert made.train.images.is_contiguous()


def test_damaged_packed_jpegs_are_refused(tmp_path):
    write_jpegs(tmp_path, size=(16, 16))
    with pytest.raises(ValueError, match=r"0 of .*train-jpeg.npz as .*got \(16, 16\)"):
        data.cifar10(tmp_path)
    write_jpegs(tmp_path)
    path = tmp_path / "cifar10-test-jpeg.npz"
    content = dict(np.load(path))
    for harm, message in (
        (content | {"header": content["header"][:50]}, "image 0 of .*test-jpeg.npz"),
        (content | {"lengths": content["lengths"] + 1}, "add up"),
        ({"header": content["header"]}, "labels, lengths, scans in"),
    ):
        np.savez(path, **harm)
        with pytest.raises(ValueError, match=message):
            data.cifar10(tmp_path)


# Omniglot


def write_omniglot(folder):
    """Two alphabets of two and one characters, 20 drawers, 3 × 5 pixels."""
    ink = pixels(60, 3, 5) > 127
    np.savez(
        folder / "omniglot-small.npz",
        images=np.packbits(ink.reshape(60, -1), axis=1),
        shape=np.array([3, 5], dtype=np.uint8),
        alphabet=np.repeat([0, 0, 1], 20).astype(np.uint8),
        character=np.repeat([1, 2, 1], 20).astype(np.uint8),
        drawer=np.tile(np.arange(1, 21), 3).astype(np.uint8),
    )
    return ink


def test_omniglot_unpacks_ink_characters_and_drawers(tmp_path):
    ink = write_omniglot(tmp_path).reshape(3, 20, 1, 3, 5) * np.uint8(255)
    made = data.omniglot_small(tmp_path)
    assert exact(made.train.images.reshape(3, 15, 1, 3, 5), ink[:, :15])
    assert exact(made.test.images.reshape(3, 5, 1, 3, 5), ink[:, 15:])
    assert torch.equal(made.test.labels, torch.arange(3).repeat_interleave(5))
    assert torch.equal(made.train.style, torch.arange(1, 16).repeat(3))
    assert made.levels == 1 and made.name == "omniglot"


def test_omniglot_without_its_keys_is_refused(tmp_path):
    np.savez(tmp_path / "omniglot-small.npz", images=pixels(2, 2), shape=[4, 4])
    with pytest.raises(ValueError, match="expected alphabet, character, drawer in"):
        data.omniglot_small(tmp_path)


# Archives


def archive(path, **content):
    np.savez(path / "mine.npz", **content)
    return path / "mine.npz"


@pytest.mark.parametrize("names", [("images", "labels"), ("x", "y")])
def test_npz_reads_images_and_labels_of_both_splits(tmp_path, names):
    image, label = names
    x, y = pixels(8, 1, 4, 4), np.array(list("abcdabcd"))
    content = {image: x, label: y, f"{image}_test": x[:3], f"{label}_test": y[:3]}
    made = data.npz(archive(tmp_path, **content))
    assert exact(made.train.images, x) and exact(made.test.images, x[:3])
    assert made.test.labels.tolist() == [0, 1, 2]
    assert made.levels == 255 and made.name == "mine"


def test_npz_without_test_images_is_split(tmp_path):
    x = pixels(8, 1, 4, 4)
    made = data.npz(archive(tmp_path, x=x, y=[0] * 4 + [1] * 4))
    assert parted(made) == sorted(row.tobytes() for row in x)
    assert made.test.labels.sort().values.tolist() == [0, 1]
    assert data.npz(archive(tmp_path, x=x)).train.labels is None


def test_npz_takes_the_number_of_levels(tmp_path):
    x = np.arange(16).reshape(4, 2, 2) % 5 / 4
    assert data.npz(archive(tmp_path, x=x, levels=4)).levels == 4
    with pytest.raises(ValueError, match="grid k/3"):
        data.npz(archive(tmp_path, x=x, levels=3))


KEPT = {(9,): (9,), (5, 6): (1, 5, 6), (3, 5, 6): (3, 5, 6), (2, 3, 4, 5): (2, 3, 4, 5)}
MOVED = {(5, 6, 3): (3, 5, 6), (5, 6, 1): (1, 5, 6)}


@pytest.mark.parametrize("shape, event", (KEPT | MOVED).items(), ids=str)
def test_npz_moves_the_channel_to_the_front(tmp_path, shape, event):
    x = pixels(4, *shape)
    said = {} if len(shape) in (2, 3) else {"levels": 255}  # bytes of no image
    made = data.npz(archive(tmp_path, x=x, x_test=x, **said))
    front = np.moveaxis(x, 3, 1) if shape in MOVED else x
    assert exact(made.train.images, front.reshape(4, *event))
    assert made.train.images.is_contiguous()


def test_npz_refuses_axes_that_can_be_read_in_two_ways(tmp_path):
    for shape, why in (((3, 5, 1), "two of these"), ((5, 6, 4), "none")):
        with pytest.raises(ValueError, match=f"which is {why}"):
            data.npz(archive(tmp_path, x=pixels(4, *shape)))


def test_npz_never_opens_pickled_objects(tmp_path):
    trace = tmp_path / "trace"
    x = np.array([Call(open, str(trace), "w")] * 2, dtype=object)
    with pytest.raises(ValueError, match="mine.npz as .*Object arrays"):
        data.npz(archive(tmp_path, x=x))
    (tmp_path / "mine.npz").write_bytes(pickle.dumps(x))
    with pytest.raises(ValueError, match="damaged"):
        data.npz(tmp_path / "mine.npz")
    assert not trace.exists()


def test_npz_refuses_what_it_would_drop(tmp_path):
    x = np.zeros((4, 2))
    for message, content in (
        ("one number.*shape .2,.; save levels=16", {"x": x, "levels": [16, 16]}),
        ("one of images.*got images and x", {"x": x, "images": x}),
        ("got labels and y_train", {"x": x, "labels": SIX, "y_train": SIX}),
    ):
        with pytest.raises(ValueError, match=message):
            data.npz(archive(tmp_path, **content))


def test_npz_without_images_or_without_a_file_says_so(tmp_path):
    for message, content in (
        ("expected one of images, .* got labels", {"labels": [1]}),
        ("keys among images, .* got 'lables'", {"x": pixels(8, 3), "lables": [1] * 8}),
    ):
        with pytest.raises(ValueError, match=message):
            data.npz(archive(tmp_path, **content))
    with pytest.raises(FileNotFoundError, match="absent.npz"):
        data.npz(tmp_path / "absent.npz")


# Folders


def write_pictures(folder, classes="ab", n=4, size=(6, 5), channels=3, suffix=".png"):
    made = []
    for name in classes:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(n):
            made.append(pixels(*size, channels).squeeze())
            Image.fromarray(made[-1]).save(folder / name / f"{i}{suffix}")
    return np.stack(made).reshape(-1, *size, channels).transpose(0, 3, 1, 2)


@pytest.mark.parametrize("channels", [1, 3])
def test_image_folder_reads_both_splits_grey_ones_with_the_channels_of_all(
    tmp_path, channels
):
    x = write_pictures(tmp_path / "train", channels=channels)
    grey = write_pictures(tmp_path / "test", "bc", 1, channels=1)
    made = data.image_folder(tmp_path)
    assert exact(made.train.images, x)
    assert exact(made.test.images, np.repeat(grey, channels, 1))
    assert made.train.labels.tolist() == [0] * 4 + [1] * 4
    assert made.test.labels.tolist() == [1, 2]
    assert made.train.classes == made.test.classes == ("a", "b", "c")
    assert made.levels == 255 and made.name == tmp_path.name


def test_image_folder_without_splits_sets_a_quarter_aside(tmp_path):
    x = write_pictures(tmp_path)
    (tmp_path / "readme.txt").write_text("no picture")
    made = data.image_folder(tmp_path)
    assert parted(made) == sorted(row.tobytes() for row in x)
    assert made.test.labels.sort().values.tolist() == [0, 1]
    assert made.train.classes == made.test.classes == ("a", "b")


def test_image_folder_drops_transparency(tmp_path):
    x = write_pictures(tmp_path / "train", "a", 1, channels=4)
    (tmp_path / "test" / "a").mkdir(parents=True)
    palette = Image.fromarray(np.zeros((6, 5), np.uint8), "P")
    palette.putpalette([9, 8, 7])
    palette.save(tmp_path / "test" / "a" / "0.png", transparency=bytes([100]))
    made = data.image_folder(tmp_path)
    assert exact(made.train.images, x[:, :3])
    assert made.test.images[0, :, 0, 0].tolist() == [9, 8, 7]


def test_image_folder_resizes_where_asked(tmp_path):
    write_pictures(tmp_path, "a", suffix=".JPG")
    write_pictures(tmp_path, "b", size=(4, 4), suffix=".jpeg")
    with pytest.raises(ValueError, match=r"\(6, 5\) in .* and \(4, 4\) .*give size="):
        data.image_folder(tmp_path)
    assert data.image_folder(tmp_path, 7).train.images.shape == (6, 3, 7, 7)
    assert data.image_folder(tmp_path, (3, 8)).test.images.shape == (2, 3, 3, 8)


def test_image_folder_says_what_is_wrong(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent"):
        data.image_folder(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match=r"CLASS/\*.png, \*.jpg"):
        data.image_folder(tmp_path)
    (tmp_path / "a").mkdir()
    with pytest.raises(ValueError, match=r"every class folder, got none in .*/a;"):
        data.image_folder(tmp_path)
    (tmp_path / "a" / "0.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="0.png as a picture"):
        data.image_folder(tmp_path)
    Image.fromarray(np.zeros((3, 3), np.uint16)).save(tmp_path / "a" / "0.png")
    with pytest.raises(ValueError, match="8 bits a channel, got"):
        data.image_folder(tmp_path)
    colours = pixels(3, 3, 3)  # which Pillow cannot write with 16 bits
    (tmp_path / "a" / "0.png").write_bytes(png_of_16_bits(colours))
    with pytest.raises(ValueError, match="got mode RGB with more"):
        data.image_folder(tmp_path)


def png_of_16_bits(colours):
    def part(kind, content):
        size, check = len(content), zlib.crc32(kind + content)
        return struct.pack(">I", size) + kind + content + struct.pack(">I", check)

    height, width, _ = colours.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in colours)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + part(b"IHDR", header)
    return start + part(b"IDAT", zlib.compress(rows)) + part(b"IEND", b"")


@pytest.mark.parametrize("suffix", [".bmp", ".gif", ".tif", ".webp"])
def test_image_folder_reads_every_kind_of_picture(tmp_path, suffix):
    write_pictures(tmp_path, suffix=suffix)
    assert data.image_folder(tmp_path).train.images.shape == (6, 3, 6, 5)


def test_image_folder_turns_photographs_upright(tmp_path):
    photograph, exif = Image.fromarray(pixels(6, 5, 3)), Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    (tmp_path / "a").mkdir()
    for i in range(2):
        photograph.save(tmp_path / "a" / f"{i}.png", exif=exif)
    upright = np.asarray(photograph.rotate(-90, expand=True)).transpose(2, 0, 1)
    assert exact(data.image_folder(tmp_path).train.images[0], upright)


# By name


def test_load_finds_every_kind_of_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PROBSSL_DATA", raising=False)
    write_idx(tmp_path / "mnist")
    write_idx(tmp_path / "fashion-mnist")
    write_cifar(tmp_path / "cifar-10-jpeg", canonical)
    (tmp_path / "omniglot-small").mkdir()
    write_omniglot(tmp_path / "omniglot-small")
    write_pictures(tmp_path / "pictures")
    named = {"mnist": 1, "fashion-mnist": 255, "cifar10": 255, "omniglot": 1}
    for name, levels in named.items():
        assert data.load(name, tmp_path)[2:4] == (levels, name)
    assert data.load("mnist", tmp_path / "mnist").name == "mnist"
    assert data.load("digits").name == "digits"
    assert data.load("pictures").name == "pictures"
    assert data.load(archive(tmp_path, x=pixels(8, 3, 3))).name == "mine"
    monkeypatch.setenv("PROBSSL_DATA", str(tmp_path))
    assert data.load("mnist").name == "mnist"
    assert data.load("mnist", binary=False).levels == 255
    assert data.load("pictures", size=4).train.images.shape[1:] == (3, 4, 4)


def test_load_says_what_is_wrong(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PROBSSL_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match="pass root= .*--root"):
        data.load("mnist")
    names = "digits, mnist, fashion-mnist, cifar10, omniglot, a .npz file"
    with pytest.raises(ValueError, match=f"expected {names}.* got 'imagenet'"):
        data.load("imagenet")
    for name in ("digits", "mine.npz"):
        with pytest.raises(ValueError, match=f"got it with '{name}'"):
            data.load(name, tmp_path)
    with pytest.raises(FileNotFoundError, match="mine.npz"):
        data.load("mine.npz")
    with pytest.raises(TypeError, match="binary"):
        data.load("digits", binary=False)


MISSING = {
    "mnist": "train-images-idx3-ubyte.gz or train-images-idx3-ubyte",
    "fashion-mnist": "train20k-images-idx3-ubyte.gz or train20k-images",
    "cifar10": "data_batch_1, .*, test_batch in .*cifar10-train-jpeg.npz",
    "omniglot": "omniglot-small.npz",
}


@pytest.mark.parametrize("name", MISSING)
def test_missing_files_are_named_with_their_folder(tmp_path, name):
    with pytest.raises(FileNotFoundError, match=f"expected .*{MISSING[name]}") as said:
        data.load(name, tmp_path)
    assert str(tmp_path) in str(said.value)


def test_an_incomplete_set_names_what_is_missing(tmp_path):
    (tmp_path / "packed").mkdir()
    write_cifar(tmp_path, canonical)
    write_jpegs(tmp_path / "packed")
    for name in ("data_batch_2", "packed/cifar10-test-jpeg.npz"):
        path = tmp_path / name
        path.unlink()
        with pytest.raises(FileNotFoundError, match=f"missing {path.name};"):
            data.cifar10(path.parent)


# Simulators


@pytest.mark.usefixtures("float64")
def test_linear_gaussian_views_have_the_covariance_of_the_joint():
    n, scale, y_scale, noise = 40_000, 0.5, 1.5, 0.3
    W = torch.tensor([[1.0, 0.5], [-0.3, 2.0], [0.0, 0.7]])
    scales = {"scale": scale, "y_scale": y_scale, "noise": noise}
    drawn = data.linear_gaussian(n, views=2, **scales, weight=W)
    assert drawn.groups.views.shape == (n, 2, 3)
    assert torch.equal(drawn.weight, W)
    same = W @ W.mT * (y_scale**2 + scale**2) + noise**2 * torch.eye(3)
    across = W @ W.mT * y_scale**2
    expected = torch.cat([torch.cat([same, across], 1), torch.cat([across, same], 1)])
    x = drawn.groups.views.flatten(1)
    products = x.unsqueeze(1) * x.unsqueeze(2)
    error = (products.mean(0) - expected) / (products.std(0) / math.sqrt(n))
    assert error.abs().max() < 5


def test_linear_gaussian_without_noise_is_its_own_truth():
    drawn = data.linear_gaussian(7, dim=3, features=5, views=4, scale=0, noise=0)
    assert torch.equal(drawn.z, drawn.y.unsqueeze(1).expand(7, 4, 3))
    assert_close(drawn.groups.views, drawn.z @ drawn.weight.mT)
    one = data.linear_gaussian(2, weight=torch.ones(6, 1).double())
    assert one.z.shape == (2, 2, 1)


def test_factors_are_independent_and_uniform():
    n = 4_000
    drawn = data.factors(n)
    assert drawn.images.shape == (n, 1, 16, 16)
    assert drawn.images.min() >= 0 and drawn.images.max() <= 1
    share = drawn.labels.bincount(minlength=len(SHAPES)) / n
    assert ((share - 0.25).abs() < 5 * math.sqrt(0.25 * 0.75 / n)).all()
    low, high = drawn.style.amin(0), drawn.style.amax(0)
    expected = torch.tensor([[-2, -2, -math.pi / 4, 0.6], [2, 2, math.pi / 4, 1.6]])
    assert_close(torch.stack([low, high]), expected, rtol=0, atol=0.02)  # n extremes
    every = torch.cat([drawn.style, drawn.labels.unsqueeze(1)], 1).mT
    correlation = every.corrcoef() - torch.eye(len(FACTORS) + 1)
    assert correlation.abs().max() < 5 / math.sqrt(n)


def test_drawings_show_their_factors():
    drawn = data.factors(2_000)
    style = dict(zip(FACTORS, drawn.style.mT, strict=True))
    x = drawn.images[:, 0]
    axis = torch.arange(16) - 7.5
    mass = x.sum((1, 2))
    centre = [(x.sum(a) * axis).sum(1) / mass for a in (1, 2)]  # right, down

    cross = drawn.labels == SHAPES.index("cross")  # symmetric about its position
    for name, at in zip("xy", centre, strict=True):
        assert (at - style[name])[cross].abs().max() < 0.1  # a soft edge is cut off

    bar = drawn.labels == SHAPES.index("bar")  # upright at angle 0, 8 long, round ends
    right, down = axis - centre[0].unsqueeze(1), axis - centre[1].unsqueeze(1)
    xx = torch.einsum("nyx,nx->n", x, right.square())
    yy = torch.einsum("nyx,ny->n", x, down.square())
    xy = torch.einsum("nyx,nx,ny->n", x, right, down)
    leaning = torch.atan2(-2 * xy, yy - xx) / 2
    assert (leaning - style["angle"])[bar].abs().max() < 0.05  # radians, by the pixels
    t = style["thickness"]
    area = 16 * t + math.pi * t.square()
    assert ((mass - area) / area)[bar].abs().max() < 0.1  # soft edges add to the ends


def test_moving_digits_are_where_they_are_said_to_be():
    digits = data.digits().train
    drawn = data.moving_digits(200, 9, images=digits, speed=2.0, seed=4)
    x, at, velocity = drawn.groups.views[:, :, 0], drawn.position, drawn.velocity
    assert x.shape == (200, 9, 16, 16) and at.shape == velocity.shape == (200, 9, 2)
    assert torch.equal(16 * x, (16 * x).round()) and x.min() == 0 and x.max() == 1
    assert (at >= 0).all() and (at <= 8).all()
    axis = torch.arange(16.0)
    mass = x.sum((2, 3))
    centre = torch.stack([(x.sum(d) * axis).sum(-1) / mass for d in (2, 3)], -1)
    apart = centre - at  # the same for all frames of a series, up to grey levels
    assert (apart - apart.mean(1, keepdim=True)).abs().max() < 0.15
    ahead = at[:, :-1] + velocity[:, :-1]
    inside = (ahead > 0) & (ahead < 8)
    assert_close(ahead[inside], at[:, 1:][inside])
    bounced = torch.where(ahead < 0, -ahead, 16 - ahead)
    near = ~inside & (bounced > 0) & (bounced < 8)
    assert near.any()
    assert_close(bounced[near], at[:, 1:][near], rtol=0, atol=1e-5)
    assert_close(velocity[:, 1:][near], -velocity[:, :-1][near])
    assert_close(velocity.abs(), velocity[:, :1].abs().expand_as(velocity))


def test_moving_digits_are_uniform_and_follow_their_seed():
    n = 4_000
    still = data.moving_digits(n, 1, seed=0)
    assert_mean(still.position[:, 0], torch.full((2,), 4.0))
    assert_mean(still.position[:, 0].square(), torch.full((2,), 64 / 3))
    assert_mean(still.velocity[:, 0].square(), torch.ones(2))
    state = torch.get_rng_state()
    again, other = (data.moving_digits(n, 1, seed=seed) for seed in (0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(again.groups.views, still.groups.views)
    assert not torch.equal(other.position, still.position)
    whole = data.moving_digits(3, 4, images=data.digits().test, speed=0)
    assert (whole.groups.views == whole.groups.views[:, :1]).all()
    assert "MovingDigits(Groups(3 items" in repr(whole)


test_moving_digits_of_nothing_are_refused = refusals(
    (lambda: data.moving_digits(0), ValueError, "n as a whole number of at least 1"),
    (lambda: data.moving_digits(2, 0), ValueError, "frames as a whole number of at"),
    (lambda: data.moving_digits(2, speed=-1.0), ValueError, "speed"),
    (lambda: data.moving_digits(2, images=SPLIT), ValueError, r"shape \(1, 8, 8\)"),
)


# The real files


def digest(split):
    """MD5 sums of the idx files that hold these images and labels."""
    x, y = split.images[:, 0].numpy(), split.labels.numpy().astype(np.uint8)
    return [hashlib.md5(idx(a), usedforsecurity=False).hexdigest() for a in (x, y)]


MNIST = "6bbc9ace898e44ae57da46a324031adb", "a25bea736e30d166cdddb491f175f624"
MNIST += "2646ac647ad5339dbf082846283269ea", "27ae3e4e09519cfbb04c329615203637"
FASHION = "8181f5470baa50b63fa0f6fddb340f0a", "15d484375f8d13e6eb1aabb0c3f46965"


def test_mnist_is_the_published_one_and_knows_its_writers(data_root):
    made = data.load("mnist", data_root)
    assert made.train.images.shape == (60_000, 1, 28, 28)
    writers = made.train.style.unique(), made.test.style.unique()
    assert [len(each) for each in writers] == [539, 297]
    assert not np.intersect1d(*writers).size
    assert made.train.images.unique().tolist() == [0, 255]
    grey = data.mnist(data_root / "mnist", binary=False)
    assert (*digest(grey.train), *digest(grey.test)) == MNIST
    p = grey.test.images.double() / 255
    drawn = data.mnist(data_root / "mnist", binary="dynamic").test.images / 255
    away, error = (drawn - p).sum((0, 1)), (p * (1 - p)).sum((0, 1)).sqrt()
    assert (away.abs() <= 5 * error).all()  # of each pixel


def test_fashion_mnist_has_the_published_test_set(data_root):
    made = data.load("fashion-mnist", data_root)
    assert len(made.train.images) in (20_000, 60_000)
    assert (*digest(made.test),) == FASHION
    assert made.train.labels.bincount(minlength=10).min() > 1900


def test_cifar10_has_ten_balanced_classes_and_the_known_moments(data_root):
    made = data.load("cifar10", data_root)
    assert made.train.images.shape == (50_000, 3, 32, 32)
    assert made.train.labels.bincount().tolist() == [5_000] * 10
    assert made.test.labels.bincount().tolist() == [1_000] * 10
    channels = made.train.images.transpose(0, 1).flatten(1)
    histogram = torch.stack([c.bincount(minlength=256) for c in channels]).double()
    level = torch.arange(256).double() / 255
    mean = histogram @ level / histogram.sum(1)
    deviation = (histogram @ level.square() / histogram.sum(1) - mean.square()).sqrt()
    # Figures of the canonical files and of their JPEG version differ by 0.004.
    known = [[0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]]
    found = torch.stack([mean, deviation])
    assert_close(found, torch.tensor(known).double(), rtol=0, atol=2e-3)


def test_omniglot_crosses_characters_and_drawers_in_full(data_root):
    made = data.load("omniglot", data_root)
    assert made.train.images.shape == (3630, 1, 105, 105)
    assert made.test.images.shape == (1210, 1, 105, 105)
    cells = made.train.labels * 20 + made.train.style
    assert len(cells.unique()) == 3630 == 242 * 15
    assert made.train.labels.unique().tolist() == list(range(242))
    ink = [int((split.images == 255).sum()) for split in made[:2]]
    assert ink == [820521660 // 255, 275550960 // 255]


CLASSES = ("monocyte", "T cell", "B cell")  # not in alphabetical order
NUMBERS = np.arange(40) % 3
NAMES = np.array(CLASSES)[NUMBERS]
SOME = [None if i % 4 else name for i, name in enumerate(NAMES)]
KNOWN = np.where(np.arange(40) % 4, -1, NUMBERS)


def categorical(names, order=CLASSES):
    return pd.Categorical(names, categories=list(order))


class TestNamesOfClasses:
    @pytest.mark.parametrize("kind", [lambda y: y, pd.Series, pd.CategoricalIndex])
    def test_categories_keep_their_order_and_codes(self, kind):
        x, y = np.arange(40.0)[:, None], kind(categorical(NAMES))
        found = data.arrays(x, y, test=x, test_labels=NAMES)
        for split in found[:2]:
            assert split.labels.tolist() == NUMBERS.tolist()
            assert split.rows(slice(3)).classes == CLASSES
        assert "3 classes (monocyte, T cell, B cell)" in repr(found)
        assert data.groups([x, x], y).labels.tolist() == NUMBERS.tolist()
        assert data.arrays(x, NAMES).train.classes == tuple(sorted(CLASSES))
        assert data.arrays(x, NUMBERS).train.classes is None

    def test_missing_ones_and_other_categories_are_refused(self):
        x = np.arange(40.0)[:, None]
        with pytest.raises(ValueError, match="labels, got 30 of 40 missing"):
            data.arrays(x, categorical(SOME))
        other = categorical(NAMES, sorted(CLASSES))
        with pytest.raises(ValueError, match="the same categories"):
            data.arrays(x, categorical(NAMES), test=x, test_labels=other)

    @pytest.mark.parametrize(
        "content",
        [
            SOME,
            np.array(SOME, dtype=object),
            pd.Series(SOME, dtype="string"),
            categorical(SOME),
            pd.Series(categorical(SOME, sorted(CLASSES))),
            categorical(SOME).codes,
            KNOWN,
        ],
    )
    def test_contents_are_numbers_or_names(self, content):
        x = torch.rand(40, 1)
        split = data.Split(x, torch.from_numpy(NUMBERS), classes=CLASSES)
        assert Items(split, None, content=content).content.tolist() == KNOWN.tolist()
        found = data.groups([x, x], categorical(NAMES), content=content).content
        assert found.tolist() == KNOWN.tolist()

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (["T cell"] * 39 + ["t cell"], "monocyte, T cell.*got 't cell'"),
            ([1] * 39 + [None], r"-1 where.*None.*give -1"),
            (np.array([1] * 39 + [None], dtype=object), r"-1 where.*give -1"),
            (pd.Series([1.0] * 39 + [np.nan]), r"-1 where.*fillna\(-1\)"),
            (pd.Series([1] * 39 + [None], dtype="Int64"), r"-1 where.*fillna\(-1\)"),
        ],
    )
    def test_other_contents_are_refused(self, content, message):
        split = data.Split(torch.rand(40, 1), classes=CLASSES)
        with pytest.raises(ValueError, match=message):
            Items(split, None, content=content)

    @pytest.mark.parametrize("kind", [pd.Categorical, pd.CategoricalIndex])
    def test_categories_that_are_numbers_are_numbers(self, kind):
        numbers = [2, 0, None, 1] * 10
        found = Items(torch.rand(40, 1), None, content=kind(numbers)).content
        assert found.tolist() == [2, 0, -1, 1] * 10
        assert data.groups([X, X], SIX, content=kind(SIX)).content.tolist() == [*SIX]

    @pytest.mark.parametrize("kind", [pd.Categorical, pd.CategoricalIndex])
    def test_labels_of_such_categories_are_these_numbers(self, kind):
        x, y = np.arange(40.0)[:, None], NUMBERS + 1
        found = data.arrays(x, kind(y), test=x, test_labels=y)
        assert found.train.labels.tolist() == found.test.labels.tolist() == [*y]
        assert found.train.classes is None
        grouped = [data.groups([x, x], labels) for labels in (kind(y), y)]
        assert torch.equal(*(part.labels for part in grouped))
        later = data.groups([x, x], y, classes=kind(y))
        assert later.labels.tolist() == [*y]

    def test_categories_among_numbers_are_refused(self):
        x = np.arange(40.0)[:, None]
        with pytest.raises(TypeError, match="strings or numbers.*some of each"):
            data.arrays(x, categorical(NAMES), test=x, test_labels=NUMBERS)

    def test_names_need_a_data_set_that_knows_them(self):
        with pytest.raises(TypeError, match="order of the data set's labels and -1"):
            Items(torch.rand(40, 1), None, content=SOME)

    def test_sparse_frames_are_refused(self):
        x = pd.DataFrame(np.eye(4)).astype(pd.SparseDtype(float, 0))
        with pytest.raises(TypeError, match=r"sparse.*to_dense\(\)"):
            data.arrays(x)


ANIMALS = ["cat", "dog", "owl"]
NAMED = {
    "names": ANIMALS,
    "an array": np.array(ANIMALS),
    "groups": data.groups(np.zeros((3, 2, 1)), ANIMALS),
    "a split": data.arrays(np.zeros((6, 1)), ANIMALS * 2).train,
    "numbers by names": {"owl": 2, "cat": 0, "dog": 1},
    "names by numbers": {2: "owl", 0: "cat", 1: "dog"},
    "an encoder": LabelEncoder().fit(ANIMALS),
    "a data set": data.arrays(np.zeros((6, 1)), ANIMALS * 2),
    "a categorical": pd.Categorical(["owl"], categories=ANIMALS),
    "a series": pd.Series(pd.Categorical(["owl"], categories=ANIMALS)),
}


def test_classes_of_a_data_set_whose_labels_are_numbers_have_no_names():
    views = np.zeros((2, 2, 1))
    numbered = data.groups(views, [2, 0])
    assert data.groups(views, [0, 1], classes=numbered).labels.tolist() == [0, 1]
    with pytest.raises(TypeError, match="labels as whole numbers.*got names"):
        data.groups(views, ["owl", "cat"], classes=numbered)


@pytest.mark.parametrize("known", NAMED.values(), ids=NAMED)
def test_names_of_classes_that_are_known_number_absent_ones_alike(known):
    views, few = np.zeros((2, 2, 1)), ["owl", "dog"]
    later = pd.Categorical(few, categories=["owl", "dog"])
    for labels in (few, np.array(few), later, pd.Series(few)):
        groups = data.groups(views, labels, classes=known)
        assert groups.labels.tolist() == [2, 1]
        assert groups.classes == tuple(ANIMALS)
        images = data.arrays(
            views[:, 0], labels, test=views[:, 0], test_labels=few, classes=known
        )
        assert images.train.labels.tolist() == images.test.labels.tolist() == [2, 1]
    only = data.groups(views, content=["owl", None], classes=known)
    assert only.content.tolist() == [2, -1] and only.labels is None
    assert data.groups(views, [2, 0], classes=known).labels.tolist() == [2, 0]
    with pytest.raises(ValueError, match="names of classes in labels.*got 'cow'"):
        data.groups(views, ["owl", "cow"], classes=known)
    with pytest.raises(ValueError, match="for labels up to 3"):
        data.groups(views, [2, 3], classes=known)


UNNAMED = data.groups(np.zeros((3, 2, 1)))


@pytest.mark.parametrize(
    "bad", ["cat", [], ["cat", "cat"], UNNAMED, {*"ab"}, {"a": 1}, 4]
)
def test_names_of_classes_are_all_of_them_each_once(bad):
    with pytest.raises(ValueError, match="expected classes as the names of all"):
        data.groups(np.zeros((2, 2, 1)), ["cat", "cat"], classes=bad)


def test_data_sets_that_number_their_classes_otherwise_do_not_meet():
    rng = np.random.default_rng(0)
    x, few = rng.normal(size=(60, 2, 3)), rng.normal(size=(40, 2, 3))
    train = data.groups(x, ANIMALS * 20, content=ANIMALS * 20)
    test = data.groups(few, ["dog", "owl"] * 20, content=["dog", "owl"] * 20)
    assert test.labels.tolist()[:2] == [0, 1]  # the numbers of cat and dog
    z, there, words = x[:, 0], few[:, 0], "number their classes alike.*classes=first"
    for score in (ps.evaluation.knn, ps.evaluation.linear_probe):
        with pytest.raises(ValueError, match=words):
            score(z, train.labels, there, test.labels)
        with pytest.raises(ValueError, match=words):  # of some rows too
            score(z[:30], train.rows(slice(30)).labels, there, test.labels)
    prior = ps.priors.Mixture(2, 3)
    parts = {"encoder": torch.nn.Linear(3, 2), "decoder": torch.nn.Linear(2, 3)}
    simvae = ps.limits.SimVAE(ps.Joint(prior, ps.likelihoods.Gaussian(), **parts))
    with pytest.raises(ValueError, match=words):
        ps.fit(simvae, train, valid=test, epochs=1, progress=False)
    alike = data.groups(
        few, ["dog", "owl"] * 20, content=["dog", "owl"] * 20, classes=train
    )
    ps.fit(simvae, train, valid=alike, epochs=1, progress=False)
    assert 0 <= ps.evaluation.knn(z, train.labels, there, alike.labels) <= 1
    splits = [
        Split(each.views[:, 0], each.labels, classes=each.classes)
        for each in (train, test)
    ]
    meet = data.Dataset(*splits, None, "animals")
    with pytest.raises(ValueError, match=words):
        ps.compare({"SimCLR": ps.limits.SimCLR(torch.nn.Linear(3, 2))}, meet)


class TestItemsWithoutALabel:
    labels = torch.tensor([0, 1, -1] * 8)
    named = Split(torch.rand(24, 3), labels, classes=("cat", "dog"))

    def test_are_of_no_class_where_classes_have_names(self):
        assert "2 classes (cat, dog), 8 without a label" in repr(self.named)
        both = data.groups([self.named.images] * 2, self.labels, classes=self.named)
        assert "2 classes (cat, dog), 8 without a label" in repr(both)
        assert "3 classes" in repr(Split(self.named.images, self.labels))
        few = self.named.rows(self.named.labels >= 0)
        assert repr(few).endswith("2 classes (cat, dog))")

    def test_are_refused_by_scores_of_classes(self):
        z, y = self.named.images, self.named.labels
        for score in (
            lambda: ps.evaluation.linear_probe(z, y, z, y),
            lambda: ps.evaluation.knn(z, y, z, y),
            lambda: ps.evaluation.crowding(z, y),
            lambda: ps.evaluation.cluster(z, y),
        ):
            with pytest.raises(ValueError, match=r"-1, no class, for 8 of.*>= 0"):
                score()
        few = self.named.rows(y >= 0)
        assert ps.evaluation.knn(few.images, few.labels, few.images, few.labels) > 0

    def test_have_no_other_negative_label(self):
        with pytest.raises(ValueError, match="from 0, or -1 of items without, got -2"):
            self.named._replace(labels=self.labels * 2)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int8])
def test_labels_of_any_type_are_whole_numbers(dtype):
    found = Split(X[:6], np.array([0, 1, 2] * 2, dtype)).labels
    assert found.dtype == torch.int64 and found.tolist() == [0, 1, 2] * 2
