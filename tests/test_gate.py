"""The gate for arrays from outside: every entry point, every kind of array."""

import math
from collections.abc import Iterator

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.checks import seeded
from scipy import sparse
from sklearn.svm import SVC
from torch import Tensor, nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    Sampler,
    TensorDataset,
)

import probssl as ps
from probssl import affinities, arrays, evaluation, information, linear, maps, plots
from probssl.data.batches import Items, checked
from probssl.limits._pair_affinity import PrincipalComponents

N, DIM = 40, 6
X = np.random.default_rng(0).random((N, DIM))
Y = np.arange(N) % 2
ENCODER = ps.nn.MLPEncoder((DIM,), 2)


def masked(x):
    return np.ma.masked_array(x, mask=x > x.mean())


def holed(x, value=np.nan):
    return np.where(x > x.mean(), value, x.astype(float))


def frame(x):
    return pd.DataFrame(x.reshape(len(x), -1))


# Kinds of arrays that hold no numbers, or not one for each place.
BAD = {
    "masked": masked,
    "NaN": holed,
    "infinity": lambda x: holed(x, np.inf),
    "complex": lambda x: x + 1j,
    "object": lambda x: np.where(x > x.mean(), None, x),
    "strings": lambda x: np.full(x.shape, "three"),
    "times": lambda x: x.astype(int).astype("M8[s]"),
    "sparse": lambda x: sparse.csr_matrix(x.reshape(len(x), -1)),
    "sparse tensor": lambda x: torch.tensor(x).to_sparse(),
    "complex tensor": lambda x: torch.tensor(x) + 1j,
    "quantised": lambda x: torch.quantize_per_tensor(
        torch.tensor(x).float(), 0.1, 0, torch.qint8
    ),
    "nested": lambda x: torch.nested.nested_tensor([torch.rand(2), torch.rand(3)]),
    "ragged": lambda x: [[1.0], [1.0, 2.0]],
    "empty": lambda x: x[:0],
    "missing": lambda x: frame(x).convert_dtypes().mask(frame(x) > 0),
    "mapping": lambda x: {"x": x},
    "nothing": lambda x: None,
}


def joint():
    prior = ps.priors.Mixture(2, components=2, scale=0.3)
    decoder = ps.nn.MLPDecoder(2, (DIM,))
    return ps.Joint(prior, ps.likelihoods.Gaussian(0.1), ENCODER, decoder)


def simclr():
    return ps.limits.SimCLR(ps.nn.MLPEncoder((DIM,), 2))


def fit(x, **options):
    options = {"views": ps.views.Augment(ps.views.Noise(0.1))} | options
    return ps.fit(simclr(), x, epochs=1, progress=False, **options)


PAIRS = np.random.default_rng(1).random((N, 2, DIM))
IMAGES = X.reshape(N, 1, 2, 3)
TABLE = np.arange(8.0).reshape(2, 2, 2) / 28
# Public functions that take numbers: an array that each takes, and the call.
POINTS = {
    "data.arrays": (X, ps.data.arrays),
    "data.arrays, test": (X, lambda x: ps.data.arrays(X, test=x)),
    "data.groups": (PAIRS, ps.data.groups),
    "data.groups of a list": (X, lambda x: ps.data.groups([X, x])),
    "fit": (X, fit),
    "fit, valid": (X, lambda x: fit(X, valid=x)),
    "fit, modalities": (X, lambda x: fit((X, x), views=None)),
    "fit, Split": (X, lambda x: fit(ps.data.Split(x))),
    "fit, Groups": (PAIRS, lambda x: fit(ps.data.Groups(x), views=None)),
    "embed": (X, lambda x: ps.embed(ENCODER, x)),
    "reconstruct": (X, lambda x: ps.reconstruct(joint(), x)),
    "complete": (PAIRS, lambda x: ps.complete(joint(), ps.data.Groups(x))),
    "evidence": (X, lambda x: ps.evidence(joint(), x, particles=2)),
    "compare_evidence": (
        X,
        lambda x: ps.compare_evidence({"a": joint(), "b": joint()}, x, particles=2),
    ),
    "classify": (X, lambda x: ps.classify(joint(), x)),
    "to_arviz": (X, lambda x: ps.to_arviz(joint(), x, draws=2)),
    "linear, fit": (X, lambda x: linear.ReconstructionSSL(2).fit(x)),
    "linear, partial_fit": (X, lambda x: linear.JointEmbeddingSSL(2).partial_fit(x)),
    "linear, transform": (X, lambda x: LINEAR.transform(x)),
    "linear, inverse": (X[:, :2], lambda x: LINEAR.inverse_transform(x)),
    "linear, score": (X, lambda x: LINEAR.score(x)),
    "linear.advise": (X, lambda x: linear.advise(x, linear.Masking(0.3))),
    "linear.LinearMaps": (PAIRS, linear.LinearMaps),
    "linear.alignment_threshold": (
        X[0],
        lambda x: linear.alignment_threshold([1.0], x, 1.0, "joint embedding"),
    ),
    "maps": (X, lambda x: maps.NeighbourMap(epochs=3, progress=False).fit(x)),
    "effective_rank": (X, evaluation.effective_rank),
    "alignment_uniformity": (PAIRS, evaluation.alignment_uniformity),
    "linear_probe": (X, lambda x: evaluation.linear_probe(x, Y, X, Y)),
    "style_probe": (X, lambda x: evaluation.style_probe(X, x, X, x)),
    "knn": (X, lambda x: evaluation.knn(X, Y, x, Y)),
    "cluster": (X, lambda x: evaluation.cluster(x, Y)),
    "crowding": (X, lambda x: evaluation.crowding(x, Y, progress=False)),
    "info_nce": (X, lambda x: evaluation.info_nce(X, x)),
    "gaussian_information": (X, lambda x: evaluation.gaussian_information(X, x)),
    "number_of_components": (X, evaluation.number_of_components),
    "information.estimate": (
        X,
        lambda x: information.estimate(X, x, Y, by=information.Clusters(2)),
    ),
    "information.discrete": (TABLE, information.discrete),
    "Mixup": (X, lambda x: affinities.Mixup(x, 0.1)),
    "PrincipalComponents": (X, lambda x: PrincipalComponents.of(x, 2)),
    "plots.latent_map": (X, plots.latent_map),
    "plots.latent_maps": (X[:, :2], lambda x: plots.latent_maps({"x": x})),
    "plots.images": (IMAGES, plots.images),
}
LINEAR = linear.ReconstructionSSL(2).fit(X)
ALLOWED = {
    ("plots.images", "NaN"),  # a view that is absent
    ("data.arrays, test", "nothing"),
    ("fit, valid", "nothing"),
    ("linear.alignment_threshold", "empty"),  # no noise
    ("style_probe", "strings"),  # classes
}
SCIKIT = ("linear, ", "maps")  # whose own checks say the rest


@pytest.mark.filterwarnings("ignore:.*(nested tensors|quantized tensor)")
@pytest.mark.parametrize("point", POINTS)
def test_what_holds_no_numbers_is_refused_everywhere(point):
    base, call = POINTS[point]
    for kind, spoil in BAD.items():
        if (point, kind) in ALLOWED:
            continue
        with pytest.raises((ValueError, TypeError)) as caught:
            call(spoil(base))
            pytest.fail(f"{point} takes {kind}")
        words = str(caught.value)
        assert "expected" in words and "got" in words or point.startswith(SCIKIT), kind


# The same numbers in other clothes.
GOOD = {
    "big-endian": lambda x: x.astype(">f8"),
    "negative strides": lambda x: x[:, ::-1].copy()[:, ::-1],
    "columns first": np.asfortranarray,
    "longdouble": lambda x: x.astype(np.longdouble),
    "half": lambda x: x.astype(np.float16),
    "read-only": lambda x: np.broadcast_to(x, x.shape),
    "lists": np.ndarray.tolist,
    "a mask of nothing": np.ma.masked_array,
    "a frame": pd.DataFrame,
    "a frame without NA": lambda x: pd.DataFrame(x).convert_dtypes(),
    "a mixed frame": lambda x: pd.DataFrame(x).astype({0: "float32", 1: "Float64"}),
    "a parameter": lambda x: torch.nn.Parameter(torch.tensor(x)),
    "a negated view": lambda x: torch.tensor(x * -1j).imag.neg(),
}
TAKEN = {
    "data.arrays": lambda x: ps.data.arrays(x, test=x).train.images,
    "data.groups": lambda x: ps.data.groups([x, x]).views,
    "embed": lambda x: ps.embed(ENCODER, x),
    "fit": lambda x: seeded(fit, x)["value"],
    "linear": lambda x: LINEAR.transform(x),
    "effective_rank": evaluation.effective_rank,
    "knn": lambda x: evaluation.knn(X, Y, x, Y),
}


@pytest.mark.parametrize("kind", GOOD)
def test_numbers_are_the_same_in_any_clothes(kind):
    for name, call in TAKEN.items():
        found, expected = (np.asarray(call(x)) for x in (GOOD[kind](X), X))
        off = 2e-2 if kind == "half" else 2e-6
        np.testing.assert_allclose(found, expected, rtol=off, atol=off, err_msg=name)


def test_a_file_of_foreign_numbers_is_read_lazily(tmp_path):
    np.save(tmp_path / "x.npy", X.astype(">f4"))
    file = np.load(tmp_path / "x.npy", mmap_mode="r")
    np.testing.assert_allclose(ps.embed(ENCODER, file), ps.embed(ENCODER, X), atol=1e-6)
    assert ps.data.batches.Items(file, None).parts[0] is file
    np.save(tmp_path / "y.npy", X + 1j)
    with pytest.raises(TypeError, match="complex"):
        fit(np.load(tmp_path / "y.npy", mmap_mode="r"))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (ps.data.digits(), "a Dataset; give its train.images"),
        (ps.data.digits().train, "a Split; give its images"),
        (ps.data.groups(PAIRS), "a Groups; give its views"),
        (ps.Batch(torch.tensor(PAIRS)), "a Batch; give its views"),
    ],
)
def test_a_data_set_among_arrays_is_named(given, words):
    for call in (
        lambda: ps.data.arrays(given),
        lambda: evaluation.effective_rank(given),
        lambda: evaluation.crowding(given, Y),
    ):
        with pytest.raises(TypeError, match=words):
            call()


def test_arrays_that_need_no_change_are_not_copied():
    x = X.astype(np.float32)
    found = arrays.tensor(x, "x")
    assert found.data_ptr() == x.ctypes.data
    assert arrays.finite(X) is X
    assert ps.data.arrays(x, test=x).train.images.data_ptr() == x.ctypes.data


# Labels


BAD_LABELS = {
    "masked": masked(Y),
    "NaN": holed(Y),
    "None": [None, *"ab" * (N // 2 - 1), "a"],
    "bytes among strings": [b"a", *"ab" * (N // 2 - 1), "a"],
    "missing": pd.Series(Y, dtype="Int64").mask(Y == 1),
    "no category": pd.Categorical(["a", None] * (N // 2)),
    "2^64 - 1": np.where(Y, 2**64 - 1, Y.astype(np.uint64)),
    "1e30": np.where(Y, 1e30, 2e30),
    "complex": Y + 1j,
    "times": Y.astype("M8[s]"),
    "sparse": sparse.csr_matrix(Y),
    "ragged": [[1], [1, 2]],
    "too few": Y[:-1],
    "too many axes": np.eye(N),
}
LABELLED = {
    "data.arrays": lambda y: ps.data.arrays(X, y),
    "data.groups": lambda y: ps.data.groups(PAIRS, y),
    "content of groups": lambda y: ps.data.groups(PAIRS, content=y),
    "content of fit": lambda y: ps.fit(ps.limits.SimVAE(joint()), X, content=y),
    "present": lambda y: ps.data.groups(PAIRS, present=y),
    "linear_probe": lambda y: evaluation.linear_probe(X, y, X, Y),
    "few_label_probe": lambda y: evaluation.few_label_probe(X, Y, X, y),
    "cluster": lambda y: evaluation.cluster(X, y),
    "matched_accuracy": lambda y: evaluation.matched_accuracy(Y, y),
    "crowding": lambda y: evaluation.crowding(X, y, progress=False),
    "information": lambda y: information.estimate(
        X, X, y, by=information.Clusters(2), progress=False
    ),
}


@pytest.mark.parametrize("point", LABELLED)
def test_labels_are_kept_or_refused(point):
    for kind, y in BAD_LABELS.items():
        with pytest.raises((ValueError, TypeError), match="expected .*got"):
            LABELLED[point](y)
            pytest.fail(f"{point} takes {kind}")


TEXT = pd.DataFrame({"y": np.where(Y, "dog", "cat")})


@pytest.mark.parametrize("point", [*LABELLED][:2] + [*LABELLED][5:])
def test_a_frame_of_labels_is_told_to_give_its_column(point):
    for table in (TEXT, TEXT == "dog", TEXT.astype("category")):
        with pytest.raises(ValueError, match=r"frame .* column.* y; .*frame\['y'\]"):
            LABELLED[point](table)


# Frames, whose columns and rows have names


NAMED = pd.DataFrame(X, columns=list("abcdef"))
TURNED = NAMED[list("fedcba")]
RENAMED = NAMED.rename(columns={"a": "weight"})
FRAMES = {
    "data.arrays": lambda a, b: ps.data.arrays(a, test=b),
    "fit": lambda a, b: fit(a, valid=b),
    "linear_probe": lambda a, b: evaluation.linear_probe(a, Y, b, Y),
    "knn": lambda a, b: evaluation.knn(a, Y, b, Y),
    "scores": lambda a, b: evaluation.scores(a, Y, b, Y),
    "style_probe": lambda a, b: evaluation.style_probe(a, Y, b, Y),
    "style factors": lambda a, b: evaluation.style_probe(X, a, X, b),
    "info_nce": evaluation.info_nce,
    "alignment": lambda a, b: evaluation.alignment_uniformity((a, b)),
}


@pytest.mark.parametrize("name", FRAMES)
def test_columns_of_another_order_are_refused(name):
    call = FRAMES[name]
    numbered = pd.DataFrame(X)
    refused = [
        (NAMED, TURNED),
        (NAMED, RENAMED),
        (numbered, numbered[[*range(6)][::-1]]),
    ]
    for known, other in refused:
        with pytest.raises(ValueError, match="columns .* in this order, got"):
            call(known, other)
    for other in (NAMED, NAMED.copy(), NAMED.to_numpy(), numbered):  # none, or alike
        call(NAMED, other)


def test_frames_of_groups_may_be_modalities_of_other_columns():
    assert ps.data.groups([NAMED, RENAMED]).views.shape == (N, 2, DIM)
    for other in (TURNED, NAMED[::-1]):
        with pytest.raises(ValueError, match="in this order"):
            ps.data.groups([NAMED, other])


def test_items_that_are_frames_or_series_have_their_columns_in_one_order():
    items = [NAMED.iloc[:4]] * N
    assert ps.data.arrays(items).train.images.shape[1:] == (4, DIM)
    assert len(ps.data.arrays([row for _, row in NAMED.iterrows()]).train) == 30
    for other in (TURNED.iloc[:4], RENAMED.iloc[:4]):
        with pytest.raises(ValueError, match="columns .* in this order"):
            ps.data.arrays([*items, other])
    with pytest.raises(ValueError, match="index .* a, b, .* in this order"):
        ps.data.arrays([NAMED.iloc[0], TURNED.iloc[1]])


def test_rows_of_another_order_are_refused():
    y = pd.Series(Y)
    for call in (
        lambda y: ps.data.arrays(NAMED, y),
        lambda y: ps.data.arrays(X, Y, test=NAMED, test_labels=y),
        lambda y: ps.data.Split(NAMED, y),
        lambda y: ps.data.groups([NAMED, NAMED], y),
        lambda y: ps.data.groups([NAMED, NAMED], content=y),
        lambda y: evaluation.knn(NAMED, y, X, Y),
        lambda y: evaluation.knn(X, Y, NAMED, y),
        lambda y: evaluation.style_probe(NAMED, y, NAMED, y),
        lambda y: evaluation.cluster(NAMED, y),
        lambda y: evaluation.matched_accuracy(y, pd.Series(Y)),
        lambda y: evaluation.crowding(NAMED, y, progress=False),
        lambda y: evaluation.gaussian_information(
            NAMED[["a"]], y.to_frame() + NAMED[["b"]].to_numpy()
        ),
        lambda y: information.estimate(NAMED, NAMED, y, bootstrap=20),
        lambda y: ps.fit(ps.limits.SimVAE(joint()), NAMED, content=y, epochs=1),
    ):
        with pytest.raises(ValueError, match="index .* in this order, got 39, 38"):
            call(y[::-1])
        call(y)
        call(y.set_axis(y.index + 100))  # of other rows: by position, like an array


# Dictionaries


@pytest.mark.parametrize(
    "call",
    [ps.data.arrays, ps.data.groups, ps.data.Split, ps.data.Groups]
    + [evaluation.effective_rank, lambda x: evaluation.knn(x, Y, X, Y)]
    + [lambda x: LINEAR.transform(x), lambda x: maps.NeighbourMap().fit(x)],
)
def test_a_dictionary_is_told_to_give_an_array(call):
    with pytest.raises(TypeError, match=r"a dict of 'image', 'text'; .*d\['image'\]"):
        call({"image": X, "text": X})
    with pytest.raises(TypeError, match=r"each row a dict of 'image', .*np.stack"):
        call([{"image": x, "label": 0} for x in X])


def test_a_column_of_arrays_is_told_to_be_stacked():
    column = pd.Series(list(X))
    for given in (column, column.to_numpy()):
        with pytest.raises(TypeError, match=r"array of object; .*np.stack\(list\(x"):
            ps.data.arrays(given)
    assert ps.data.arrays(np.stack(list(column))).train.images.shape == (30, DIM)


def test_a_torch_data_set_is_told_to_stack_its_items():
    data = TensorDataset(torch.tensor(X))  # whose rows are tuples of one item
    for call in (ps.data.arrays, ps.data.Split, evaluation.effective_rank):
        with pytest.raises(TypeError, match=r"TensorDataset, .*torch.stack\(\[item\[0"):
            call(data)


def test_a_loader_of_a_data_set_is_told_to_take_a_split():
    loader = DataLoader(ps.data.digits())
    for call in (fit, lambda x: ps.embed(ENCODER, x), lambda x: next(iter(x))):
        with pytest.raises(
            TypeError, match="got a Dataset.*give fit or embed data.train"
        ):
            call(loader)


def test_all_parts_of_a_split_have_one_length():
    for build in (ps.data.Split, ps.data.Groups):
        with pytest.raises(ValueError, match=r"as many rows .*\[40, 39\]"):
            build(torch.tensor(PAIRS), torch.tensor(Y[:-1]))
    pair = ps.data.Split(torch.tensor(X)), ps.data.Split(torch.tensor(X))
    with pytest.raises(TypeError, match="Split in a tuple.* valid="):
        fit(pair)
    with pytest.raises(TypeError, match="list of arrays.*np.stack.*tuple"):
        fit([X, X])


# Bytes


def test_bytes_are_images_only_where_the_data_set_says_so():
    counts = np.random.default_rng(0).poisson(3, (N, DIM)).astype(np.uint8)
    for point in ("data.arrays", "data.groups", "fit", "embed", "evidence", "maps"):
        base, call = POINTS[point]
        x = np.stack([counts, counts], 1) if base is PAIRS else counts
        for kind in (x, torch.tensor(x)):
            with pytest.raises(ValueError, match="images or counts.*levels=255"):
                call(kind)
    with pytest.raises(ValueError, match="images or counts.*collate_fn"):
        ps.embed(ENCODER, DataLoader(torch.tensor(counts)))
    said = ps.data.arrays(counts, test=counts, levels=255).train
    assert said.images.dtype == torch.uint8
    found, scaled = ps.embed(ENCODER, said), counts / np.float32(255)
    np.testing.assert_allclose(found, ps.embed(ENCODER, scaled), atol=1e-6)
    pairs = ps.data.groups([counts, counts], levels=255)
    assert pairs.views.dtype == torch.uint8
    kept = ps.data.arrays(counts.astype(np.float32), test=X).train
    assert np.array_equal(kept.images, counts)


# DataLoaders


class Rows(Dataset):
    """Rows as mappings, as Hugging Face data sets have them."""

    def __len__(self):
        return N

    def __getitem__(self, row):
        return {"pixels": X[row].astype(np.float32), "label": int(Y[row])}


class Stream(IterableDataset):
    def __iter__(self):
        return iter(torch.tensor(X).float())


PLAIN = torch.tensor(X).float()
LOADERS = {
    "tensors": DataLoader(PLAIN, 16),
    "with labels": DataLoader(TensorDataset(PLAIN, torch.tensor(Y)), 16),
    "a stream": DataLoader(Stream(), 7),
    "rows": DataLoader(
        Rows(), 16, collate_fn=lambda rows: np.stack([row["pixels"] for row in rows])
    ),
    "batches": DataLoader(
        PLAIN, 16, collate_fn=lambda rows: ps.Batch(torch.stack(rows)[:, None])
    ),
}


@pytest.mark.parametrize("kind", LOADERS)
def test_a_loader_is_read_like_the_array(kind):
    model, loader = joint(), LOADERS[kind]
    for call in (ps.embed, ps.reconstruct):
        np.testing.assert_allclose(call(model, loader), call(model, PLAIN), atol=1e-6)
    assert ps.classify(model, loader).shape == (N, 2)
    draws = ps.to_arviz(model, loader, draws=3, items=[2, 30])
    observed = draws["observed_data"]["x"].values
    np.testing.assert_array_equal(observed[:, 0], PLAIN[[2, 30]])


def test_evidence_of_a_loader_is_that_of_the_array():
    torch.manual_seed(0)
    model, loader = joint(), LOADERS["tensors"]
    many = {"particles": 2000}
    apart = [ps.evidence(model, x, **many).log_evidence for x in (loader, PLAIN)]
    again = ps.evidence(model, PLAIN, **many).log_evidence
    off, noise = (np.abs(apart[1] - other).mean() for other in (apart[0], again))
    assert off < 3 * noise


HOLED = PLAIN.index_fill(0, torch.tensor(3), math.nan)
BEYOND = PLAIN.double().index_fill(0, torch.tensor(3), 1e39)


@pytest.mark.parametrize("bad", [HOLED, BEYOND], ids=["NaN", "beyond float32"])
@pytest.mark.parametrize("alone", [True, False], ids=["items", "batches"])
def test_a_loader_of_numbers_that_are_not_finite_is_refused_by_fit(bad, alone):
    def batches(rows):
        return ps.Batch(torch.stack([torch.stack(rows)] * 2, 1))

    options = {"batch_size": 16, "collate_fn": None if alone else batches}
    bad, good = (DataLoader(x, **options) for x in (bad, PLAIN))
    views = (lambda x: torch.stack([x, x], 1)) if alone else None
    objective = ps.limits.SimVAE(joint())
    for data, valid in ((bad, None), (good, bad)):
        name = "validation " * (valid is bad) + "DataLoader"
        with pytest.raises(ValueError, match=f"of the {name}, .* in 1 of 16 items: 3"):
            ps.fit(objective, data, views=views, valid=valid, epochs=1, progress=False)
    assert all(p.isfinite().all() for p in objective.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_items_that_a_network_cannot_square_are_refused(dtype):
    encoder = ps.nn.ConvEncoder((1, 8, 8), 2)
    images = torch.rand(5, 1, 8, 8)
    near = ps.embed(encoder, images * 1e15)
    assert (near.std(0) > 0.01).all() and np.isfinite(near).all()
    encoder.to(dtype)
    for data in (images * 1e20, DataLoader(images * 1e20, 5)):
        with pytest.raises(ValueError, match=r"up to 1.8e\+16 in .* rescale them"):
            ps.embed(encoder, data)
    assert np.isfinite(ps.embed(encoder.double(), images.double() * 1e20)).all()


class ByClass(Sampler):
    """Items of each class in turn, as samplers for metric learning."""

    def __init__(self, rows: range) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[int]:
        return iter(sorted(self.rows, key=lambda row: row % 3))


class Buckets(ByClass):
    """Batches of items of like length."""

    def __init__(self) -> None:
        super().__init__(range(4))

    def __iter__(self) -> Iterator[Tensor]:
        return iter(torch.arange(N).flip(0).split(N // 4))


def test_a_sampler_of_ones_own_in_the_order_of_the_items_is_taken():
    model = joint()
    expected = ps.embed(model, PLAIN)
    for options in (
        {"sampler": range(N), "batch_size": 7},
        {"sampler": BatchSampler(range(N), 7, False), "batch_size": None},
        {"batch_sampler": [list(range(9)), list(range(9, N))]},
        {"batch_sampler": torch.arange(N).split(9)},
    ):
        found = ps.embed(model, DataLoader(PLAIN, **options))
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_a_loader_that_says_too_little_is_refused():
    model = joint()
    for loader, words in (
        (DataLoader(PLAIN, 8, shuffle=True), "RandomSampler; pass shuffle=False"),
        (DataLoader(PLAIN, 16, drop_last=True), "drop_last=False"),
        (DataLoader(PLAIN, 8, sampler=ByClass(range(N))), "a ByClass; pass shuffle"),
        (DataLoader(PLAIN, batch_sampler=Buckets()), "got one with a Buckets"),
        (DataLoader(PLAIN, batch_sampler=BatchSampler(range(N), 7, True)), "drop_last"),
        (DataLoader(PLAIN, batch_sampler=[[0, 1], [2]]), "all 40 items, got 3 of"),
        (DataLoader(Rows(), 8), "dict of 'pixels', 'label'.*collate_fn.*'pixels'"),
        (DataLoader(PLAIN[:0]), "an empty one"),
        (DataLoader(torch.tensor(holed(X))), "NaN or infinity"),
        (Rows(), r"got Rows; pass DataLoader"),
    ):
        with pytest.raises((ValueError, TypeError), match=words):
            ps.embed(model, loader)
    with pytest.raises(TypeError, match="collate_fn"):
        fit(DataLoader(Rows(), 8))
    pairs = DataLoader(
        torch.tensor(PAIRS).float(), 8, collate_fn=lambda r: ps.Batch(torch.stack(r))
    )
    with pytest.raises(TypeError, match="batches of 2 views"):
        ps.embed(simclr(), pairs)
    pooled = ps.embed(model, ps.data.groups(torch.tensor(PAIRS).float()))
    np.testing.assert_allclose(ps.embed(model, pairs), pooled, rtol=1e-5, atol=1e-6)


def test_views_that_are_given_as_something_else_name_groups():
    simvae, pairs = ps.limits.SimVAE(joint()), torch.tensor(PAIRS).float()
    calls = (
        lambda: ps.fit(simclr(), [PLAIN, PLAIN], progress=False),
        lambda: ps.fit(simclr(), pairs, progress=False),
        lambda: ps.fit(simvae, (PLAIN, PLAIN), progress=False),
    )
    for call in calls:
        with pytest.raises((TypeError, ValueError), match="ps.data.groups"):
            call()


class TwoCrops(Dataset):
    """Two views of an item, and its label."""

    def __len__(self):
        return N

    def __getitem__(self, row):
        return [PLAIN[row], PLAIN[row] / 2], 0


def test_a_loader_of_pairs_is_refused_and_its_message_makes_views():
    pairs = TensorDataset(PLAIN, PLAIN / 2)
    for data, words in ((pairs, "all but the first"), (TwoCrops(), "list of 2 tensor")):
        for use in (lambda loader: ps.embed(joint(), loader), fit):
            with pytest.raises((TypeError, ValueError), match=words) as error:
                use(DataLoader(data, 8))
            assert "ps.Batch(torch.stack([a, b], 1))" in str(error.value)
        text = str(error.value).partition("lambda rows: ")[2]
        code = text.partition(", or give")[0]
        loader = DataLoader(data, 8, collate_fn=eval(f"lambda rows: {code}"))
        (first, *_) = loader
        assert torch.equal(first.views, torch.stack([PLAIN[:8], PLAIN[:8] / 2], 1))
        fit(loader, views=None)
    images = torch.zeros(N, 1, 2, 2)
    for both in ((X, X), (images.numpy(), torch.zeros(N, 1, 3, 3))):
        with pytest.raises(ValueError, match="all but the first"):
            fit(DataLoader([both], batch_size=None, collate_fn=lambda x: x))
    labels = TensorDataset(
        PLAIN, torch.zeros(N), torch.zeros(N, *PLAIN.shape[1:]).int()
    )
    fit(DataLoader(labels, 8))


def test_a_split_of_arrays_is_one_of_tensors(tmp_path):
    x, names = IMAGES.astype(">f4"), np.where(Y, "a", "b")
    split = ps.data.Split(x, Y, style=names)
    assert isinstance(split.images, torch.Tensor) and isinstance(
        split.style, np.ndarray
    )
    assert torch.equal(split.images, torch.tensor(IMAGES).float())
    np.save(tmp_path / "x.npy", x)
    file = ps.data.Split(np.load(tmp_path / "x.npy", mmap_mode="r"), Y)
    data = ps.data.Dataset(split, file, None, "mine")
    encoder = ps.nn.MLPEncoder((1, 2, 3), 2)
    found = ps.shifts.shifted(encoder, data, {"inversion": ps.views.Invert()})
    swapped = data._replace(train=file, test=split)
    assert found == ps.shifts.shifted(
        encoder, swapped, {"inversion": ps.views.Invert()}
    )


class Listed(IterableDataset):
    """One batch that is given as it is."""

    def __init__(self, batch):
        self.batch = batch

    def __iter__(self):
        yield self.batch


X2 = torch.randn(4, 2, 3)
SEEN = torch.tensor([[True, True], [True, False], [False, True], [True, True]])


@pytest.mark.parametrize("kind", ["loader", "sampler"])
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"present": SEEN & False}, ValueError, "at least one view .* none for 4 of 4"),
        ({"present": SEEN[:, :1]}, ValueError, r"shape \(4, 2\) .*got \(4, 1\)"),
        ({"present": SEEN[:, 0]}, ValueError, r"shape \(4, 2\) .*got \(4,\)"),
        ({"present": 2 * SEEN.long()}, TypeError, "Booleans in present, or 0 and 1"),
        ({"present": SEEN.float()}, TypeError, "Booleans in present"),
        ({"present": "all"}, TypeError, "real numbers in present"),
        ({"content": torch.zeros(4, 1).long()}, ValueError, r"content with shape \(4,"),
        (
            {"content": torch.full((4,), 0.5)},
            TypeError,
            "whole numbers in Batch.content",
        ),
        ({"views": torch.randn(4)}, ValueError, r"views as a tensor .*got \(4,\)"),
        ({"views": (X2, X2[:3])}, ValueError, "as many items"),
        ({"views": ()}, ValueError, "at least one item"),
        ({"views": "images"}, TypeError, "real numbers in Batch.views"),
    ],
)
def test_a_batch_from_outside_that_does_not_fit_is_refused(
    kind, options, error, message
):
    batch = ps.Batch(X2)._replace(**options)
    joint = ps.Joint(
        ps.priors.Gaussian(2, 0.5),
        ps.likelihoods.Gaussian(0.5),
        torch.nn.Linear(3, 2),
        torch.nn.Linear(2, 3),
    )
    objective = ps.limits.SimVAE(joint)
    calls = [
        lambda: ps.fit(objective, X2[:, 0], views=lambda x: batch, epochs=1),
        lambda: ps.evidence(objective, X2[:, 0], views=lambda x: batch),
    ]
    if kind == "loader":
        loader = DataLoader(Listed(batch), batch_size=None)
        calls = [
            lambda: ps.fit(objective, loader, epochs=1),
            lambda: ps.evidence(objective, loader),
            lambda: ps.embed(objective, loader),
        ]
    for call in calls:
        with pytest.raises(error, match=message):
            call()


@pytest.mark.parametrize("turn", [torch.Tensor.int, np.asarray, torch.Tensor.tolist])
def test_a_mask_that_can_be_read_exactly_is(turn):
    batch = checked(ps.Batch(X2.numpy(), present=turn(SEEN), index=[3, 2, 1, 0]))
    assert batch.present.dtype == torch.bool and torch.equal(batch.present, SEEN)
    assert batch.index.tolist() == [3, 2, 1, 0] and torch.equal(batch.views, X2)


def test_a_mask_of_groups_is_checked_where_they_are_used():
    pairs = ps.data.groups(X2)._replace(present=SEEN & False)
    with pytest.raises(ValueError, match="at least one view of every item"):
        Items(pairs, None)


LOADER = DataLoader(TensorDataset(PLAIN), 8)
Z = X[:, :2]
PICTURE = {"neighbours": 3, "epochs": 3, "progress": False, "compile": False}
FORWARD = torch.zeros(3, 1)
# What a user may give by mistake, and the words of the refusal.
MISTAKES = {
    "a head without probabilities": (
        lambda: information.estimate(X, X, Y, by=information.Classifier(SVC())),
        r"model as a classifier .* got SVC\(\); as SVC\(probability=True\) has",
    ),
    "a head that is a class": (
        lambda: information.estimate(X, X, Y, by=information.Classifier(SVC)),
        "model as a classifier",
    ),
    "a head that is a network": (
        lambda: information.estimate(X, X, Y, by=information.Classifier(ENCODER)),
        "model as a classifier",
    ),
    "the name of an estimator": (
        lambda: information.estimate(X, X, Y, by="clusters"),
        "by as a.* Estimator, with sample, got 'clusters'",
    ),
    "info_nce of two dimensions": (
        lambda: evaluation.info_nce(X, Z),
        "representations of one dimension",
    ),
    "no labels": (
        lambda: evaluation.matched_accuracy([], []),
        r"labels \(n,\) of at least one item, got \(0,\)",
    ),
    "clusters of other items": (
        lambda: evaluation.matched_accuracy(Y[:3], Y),
        "a label for each .* got 40 representations and 3 labels",
    ),
    "labels of two axes": (
        lambda: plots.latent_map(Z, np.stack([Y, Y], 1)),
        r"one label for each of the 40 items, got shape \(40, 2\)",
    ),
    "labels in nested lists": (
        lambda: plots.latent_map(Z, [[1, 2]] * N),
        r"one label for each of the 40 items, got shape \(40, 2\)",
    ),
    "one label without axes": (
        lambda: plots.latent_map(Z, torch.tensor(3)),
        r"one label for each of the 40 items, got shape \(\)",
    ),
    "a map of a loader": (
        lambda: maps.NeighbourMap(**PICTURE).fit(LOADER),
        r"X as an array \(n, …\), got DataLoader; give the items",
    ),
    "a map of a name": (
        lambda: maps.NeighbourMap(**PICTURE).fit("digits"),
        r"X as an array \(n, …\), got str",
    ),
    "a linear fit of a loader": (
        lambda: linear.ReconstructionSSL(2).fit(LOADER),
        r"X as an array \(n, …\), got DataLoader",
    ),
    "a map with views that are none": (
        lambda: maps.NeighbourMap(**PICTURE, views="crop").fit(X),
        "views as a function of 1 argument or None, got 'crop'",
    ),
    "a map with a word for a switch": (
        lambda: maps.NeighbourMap(**PICTURE, joint="no").fit(X),
        "joint as True or False, got 'no'",
    ),
    "a map with a seed out of range": (
        lambda: maps.NeighbourMap(**PICTURE, random_state=-1).fit(X),
        "random_state as a whole number from 0",
    ),
    "neighbours of NaN": (
        lambda: maps.Neighbourhood(HOLED, 3),
        "finite numbers in items",
    ),
    "neighbours with views that are none": (
        lambda: maps.Neighbourhood(PLAIN, 3, "crop"),
        "views as a function of 1 argument",
    ),
    "neighbours of one axis": (
        lambda: maps.Neighbourhood(PLAIN[0], 3),
        r"items with shape \(n, \*event\)",
    ),
    "a row beyond the items": (
        lambda: maps.Neighbourhood(PLAIN, 3)(FORWARD + N),
        "row numbers from 0 to 39, got 40 to 40",
    ),
    "a row before the items": (
        lambda: maps.Neighbourhood(PLAIN, 3)(FORWARD - 1),
        "row numbers from 0 to 39, got -1 to -1",
    ),
    "rows that are words": (
        lambda: maps.Neighbourhood(PLAIN, 3)("abc"),
        "real numbers in numbers",
    ),
    "an encoder of NaN": (
        lambda: ps.embed(Nothing(), PLAIN),
        "finite numbers in z, got NaN or infinity in 80 of 80; .* has diverged",
    ),
    "a number of items with a fraction": (
        lambda: ps.data.Split(X).take(5.0),
        "n as a whole number, got 5.0",
    ),
    "more items than there are": (
        lambda: ps.data.Split(X).take(50),
        "n as a whole number from 1 to 40, got 50; there are no more items here",
    ),
    "a seed below 0": (
        lambda: ps.data.Split(X).take(5, seed=-1),
        "seed as a whole number from 0 to 4294967295 or None, got -1",
    ),
    "a row that is no list of rows": (
        lambda: ps.data.Split(X).rows(3),
        r"row numbers \(m,\).* got torch.int64 of shape \(\); give \[3\] for row 3",
    ),
    "rows with fractions": (
        lambda: ps.data.Split(X).rows([1.5]),
        "row numbers .* got torch.float64",
    ),
    "rows that are not there": (
        lambda: ps.data.Split(X).rows([50]),
        r"index of the 40 items here, got tensor\(\[50\]\); give \[3\]",
    ),
    "a mask of other items": (
        lambda: ps.data.Split(X).rows([True, False]),
        "index of the 40 items here, .* a mask of 40",
    ),
    "a slice between words": (
        lambda: ps.data.Split(X).rows(slice("a")),
        "index of the 40 items here",
    ),
    "a slice backwards": (
        lambda: ps.data.Split(X).rows(slice(30, 5, -3)),
        "index of the 40 items here",
    ),
    "no images": (lambda: ps.data.Split(None), "real numbers in images, got NoneType"),
    "one number": (
        lambda: ps.data.Split(3.0),
        r"images \(n, …\), a row for each item, got one number",
    ),
    "a seed that is a word": (
        lambda: ps.data.digits("a"),
        "seed as a whole number from 0",
    ),
}


class Nothing(nn.Module):
    dim = 2

    def forward(self, x):
        return torch.full((len(x), 2), math.nan)


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_answered_in_words(name):
    call, words = MISTAKES[name]
    with pytest.raises((TypeError, ValueError, IndexError), match=f"^expected {words}"):
        call()


def test_rows_in_bytes_are_row_numbers():
    split = ps.data.Split(X, Y)
    rows = np.array([1, 0, 0, 1], dtype=np.uint8)
    assert torch.equal(split.rows(rows).images, split.images[[1, 0, 0, 1]])
    assert torch.equal(split.rows(Y > 0).images, split.images[Y > 0])


def test_labels_that_are_tensors_count_by_value():
    listed = [torch.tensor(i % 2) for i in range(N)]
    figure = plots.latent_map(Z, listed)
    legend = figure.axes[0].get_legend() or figure.legends[0]
    assert len(legend.get_texts()) == 2
    plots.close([figure])


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        (ps.Batch(X2.numpy()), "Batch.views as a tensor.*got ndarray; give torch.as"),
        (ps.Batch([X2, X2]), "Batch.views as a tensor.*got list"),
        (ps.Batch(X2, present=SEEN.long()), r"Booleans, got torch.int64.*\.bool\(\)"),
        (ps.Batch(X2, present=SEEN.numpy()), "Booleans, got ndarray"),
    ],
)
def test_a_batch_that_an_objective_gets_holds_tensors(batch, words):
    prior, encoder = ps.priors.Gaussian(2, 0.5), ps.nn.MLPEncoder((3,), 2)
    decoder = ps.nn.MLPDecoder(2, (3,))
    own = ps.Joint(prior, ps.likelihoods.Gaussian(0.5), encoder, decoder)
    for call in (
        ps.limits.SimVAE(own),
        ps.limits.SimCLR(encoder),
        own.model,
        own.guide,
    ):
        with pytest.raises(TypeError, match=words):
            call(batch)
