"""Simulated cells: means, dispersions, the tree of types, depths, batches, doublets."""

import math

import pytest
import torch
from helpers.checks import assert_mean, refusals, seeded
from torch.testing import assert_close

from probssl import data


def residuals(drawn: data.Cells) -> tuple[torch.Tensor, torch.Tensor]:
    """Per cell: the standardised residual summed over genes, and its square's."""
    mean = drawn.mean.double()
    variance = mean + drawn.dispersion * mean.square()
    away = drawn.split.images.double() - mean
    scale = variance.sqrt()
    return (away / scale).mean(1), (away / scale).square().mean(1)


@pytest.mark.parametrize("alpha", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("doublets", [0.0, 0.3])
def test_counts_have_the_means_and_dispersions_of_the_truth(alpha, doublets):
    drawn = data.cells(
        4000, 20, batches=3, dispersion=alpha, doublets=doublets, depth=(300, 3000)
    )
    first, second = residuals(drawn)
    assert_mean(first, 0.0)
    assert_mean(second, 1.0)
    x = drawn.split.images
    assert (x == x.round()).all() and (x >= 0).all()
    assert_mean((x.sum(1) - drawn.depth).double() / drawn.depth, 0.0)


def test_depths_types_batches_and_doublets_have_their_laws():
    n = 20_000
    drawn = data.cells(n, 2, types=4, batches=2, doublets=0.1)
    place = (drawn.depth.double() / 100).log() / math.log(200)
    assert_mean(place, 0.5)
    assert_mean((place - 0.5).square(), 1 / 12)
    assert drawn.depth.min() >= 99.9 and drawn.depth.max() <= 20_001
    label, batch = drawn.split.labels, drawn.split.covariates["batch"]
    for k in range(4):
        for b in range(2):
            assert_mean(((label == k) & (batch == b)).double(), 1 / 8)
    assert_mean(drawn.doublet.double(), 0.1)
    single = ~drawn.doublet
    assert torch.equal(drawn.second[single], label[single])
    assert_mean((drawn.second == label)[drawn.doublet].double(), 1 / 4)
    assert_close(drawn.split.covariates["size"][:, 0] * 1000, drawn.depth)
    assert not data.cells(100, 2).doublet.any()


def ancestors(node: int, parents: tuple[int, ...]) -> set[int]:
    return set() if node < 0 else {node} | ancestors(parents[node], parents)


@pytest.mark.parametrize("types", [1, 2, 7])
def test_types_are_the_leaves_of_a_binary_tree(types):
    drawn = data.cells(10, 3, types=types)
    parents, leaves = drawn.parents, drawn.leaves
    assert len(parents) == 2 * types - 1 and len(leaves) == types
    assert parents[0] == -1 and set(leaves).isdisjoint(parents)
    assert all(parents.count(node) == 2 for node in set(parents) - {-1})
    assert_close(drawn.share.sum(-1), torch.ones(1, types))


def test_types_differ_by_the_programs_of_the_nodes_between_them():
    """The variance of log-ratios is that of the programs, over genes."""
    effect, program, genes = 0.5, 0.3, 40_000
    drawn = data.cells(
        1, genes, types=5, effect=effect, program=program, batches=2, batch_effect=0.2
    )
    logs, found = drawn.share.double().log(), []
    for i in range(5):
        for j in range(i):
            one, two = (ancestors(drawn.leaves[k], drawn.parents) for k in (i, j))
            between = len(one ^ two)
            ratio = logs[0, i] - logs[0, j]
            square = (ratio - ratio.mean()).square()
            assert_mean(square, between * program * effect**2, rounding=1e-4)
            found.append(between)
    assert len(set(found)) > 1
    shift = logs[1, 0] - logs[0, 0]
    assert_mean((shift - shift.mean()).square(), 0.2**2, rounding=1e-4)
    others = logs[1] - logs[0]
    centred = others - others.mean(1, keepdim=True)
    assert_close(centred[0], centred[4], rtol=0, atol=1e-4)  # float32


def test_cells_follow_the_seed():
    one, two = (seeded(data.cells, 30, 5) for _ in range(2))
    assert torch.equal(one.split.images, two.split.images)
    assert "30 items (5,)" in repr(one) and len(repr(one)) < 150


test_wrong_arguments_of_cells_are_refused = refusals(
    (lambda: data.cells(0), ValueError, "n as a whole number"),
    (lambda: data.cells(5, types=0), ValueError, "types as a whole number"),
    (lambda: data.cells(5, depth=(20, 10)), ValueError, "lower end first"),
    (lambda: data.cells(5, depth=(0, 10)), ValueError, "depth as a positive"),
    (lambda: data.cells(5, dispersion=-1), ValueError, "dispersion"),
    (lambda: data.cells(5, program=1.5), ValueError, "program from 0 to 1"),
    (lambda: data.cells(5, doublets=-0.1), ValueError, "doublets from 0 to 1"),
)
