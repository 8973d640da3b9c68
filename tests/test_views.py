"""Augmentations against plain formulas, their laws, and their quantisation."""

import colorsys
import math

import numpy as np
import pytest
import torch
from helpers.checks import assert_mean, refusals, seeded
from scipy import ndimage
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch.testing import assert_close
from torch.utils.data import DataLoader

import probssl as ps
from probssl.views import (
    Affine,
    Augment,
    Background,
    Blur,
    Colour,
    Grey,
    Grid,
    Invert,
    Mask,
    MultiCrop,
    Noise,
    PerItem,
    digits,
    simclr,
    simvae_cifar10,
    simvae_mnist,
)

IMAGE_PARTS = [
    Affine(rotate=15, scale=(0.8, 1.2), shift=0.1, crop=(0.5, 1), flip=0.5),
    Affine(rotate=30, p=0.5, padding="border"),
    Colour(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, p=0.8),
    Colour(brightness=0.4, contrast=(0.5, 2)),
    Grey(p=0.5),
    Blur((0.5, 1.0)),
    Mask((0.2, 0.6), patch=4, p=0.9),
    Background(0.7, p=0.5),
]
ARRAY_PARTS = [
    Noise((0.1, 0.3), p=0.7),
    Mask(0.3, value=-1),
    Grid(16),
    Grid(),
    Invert(0.5),
]
PARTS = IMAGE_PARTS + ARRAY_PARTS
RECIPES = [digits, simclr, simvae_cifar10, simvae_mnist]


def name(value: object) -> str:
    return getattr(value, "__name__", type(value).__name__)


@pytest.fixture
def x(float64: None) -> Tensor:
    return torch.rand(6, 3, 12, 18)


# Geometry


@pytest.mark.parametrize(
    "part",
    [
        Affine(),
        Affine(crop=1.0),
        Affine(crop=(1.0, 1.0), ratio=(2.0, 3.0)),
        Affine(rotate=40, p=0),
        Colour(),
        Colour(brightness=0.9, hue=0.4, p=0),
        Colour(hue=(0.0, 1e-300)),
        Grey(p=0),
        Noise(0),
        Mask(0),
        Mask(0, patch=3),
        Blur(1e-3, p=1),
        Blur(2.0, size=1, p=1),
        Blur(p=0),
        Background(0.0),
        Invert(p=0),
        Grid(),
    ],
    ids=name,
)
def test_nothing_changes_where_nothing_is_asked_for(part, x):
    assert_close(part(x), x, rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    ("part", "plain"),
    [
        (Affine(flip=1), lambda x: x.flip(-1)),
        (Affine(vertical_flip=1), lambda x: x.flip(-2)),
        (Affine(flip=1, vertical_flip=1), lambda x: x.flip(-1, -2)),
        (Affine(rotate=(180, 180)), lambda x: torch.rot90(x, 2, (-2, -1))),
        (Affine(rotate=(-180, -180), flip=1), lambda x: x.flip(-2)),
    ],
    ids=["flip", "vertical", "both", "half turn", "flip and half turn"],
)
def test_flips_and_half_turns_move_pixels_onto_pixels(part, plain, x):
    assert_close(part(x), plain(x))


@pytest.mark.parametrize("shape", [(9, 9), (9, 14), (15, 8), (1, 5)], ids=str)
@pytest.mark.parametrize(
    ("degrees", "scale", "shift", "flip"),
    [
        (0, 2.0, 0.0, 0),
        (30, 1.0, 0.0, 0),
        (90, 1.0, 0.0, 0),
        (-100, 0.7, 0.13, 0),
        (0, 1.0, 0.2, 1),
        (20, 1.4, -0.3, 1),
    ],
)
def test_an_affine_map_is_scipys_in_pixels(degrees, scale, shift, flip, shape, float64):
    x = torch.rand(1, 1, *shape)
    moved = Affine(
        rotate=(degrees, degrees),
        scale=(scale, scale),
        shift=(shift, shift),
        flip=flip,
    )(x)[0, 0]
    # Rows down, columns across: from a pixel of the output to one of the input.
    angle = math.radians(degrees)
    cos, sin = math.cos(angle), math.sin(angle)
    back = np.diag([1, -1 if flip else 1]) @ [[cos, sin], [-sin, cos]] / scale
    centre = (np.array(shape) - 1) / 2
    offset = centre - back @ (centre + shift * np.array(shape))
    expected = ndimage.affine_transform(
        x[0, 0].numpy(), back, offset, order=1, mode="grid-constant"
    )
    assert_close(moved, torch.from_numpy(expected))


def ramps(n: int, height: int, width: int) -> Tensor:
    """Two channels, which hold how far right and how far down in pixels a pixel is."""
    down = torch.arange(height) - (height - 1) / 2
    across = torch.arange(width) - (width - 1) / 2
    both = torch.stack(torch.meshgrid(across, down, indexing="xy"))
    return both.double().expand(n, -1, -1, -1)


def drawn_maps(part: nn.Module, n: int, height: int, width: int) -> tuple:
    """The maps A q + b that a part drew, read off the ramps next to the centre."""
    moved = part(ramps(n, height, width))
    i, j = height // 2 - 1, width // 2 - 1
    across = moved[..., i, j + 1] - moved[..., i, j]
    down = moved[..., i + 1, j] - moved[..., i, j]
    centre = moved[..., i : i + 2, j : j + 2].mean((-2, -1))
    return torch.stack((across, down), -1), centre


def assert_uniform(sample: Tensor, low: float, high: float) -> None:
    assert low <= sample.min() and sample.max() <= high
    assert_mean(sample, (low + high) / 2)
    assert_mean((sample - (low + high) / 2).square(), (high - low) ** 2 / 12)


def test_angles_scales_and_shifts_are_uniform_and_independent(float64):
    n, height, width = 4000, 20, 30
    part = Affine(rotate=(-10, 20), scale=(0.85, 1.25), shift=0.1, padding="border")
    A, b = drawn_maps(part, n, height, width)
    scale = A.det().rsqrt()
    shift = -torch.linalg.solve(A, b)
    columns = torch.stack(
        (
            torch.atan2(A[:, 1, 0], A[:, 0, 0]).rad2deg(),
            scale,
            shift[:, 0] / width,
            shift[:, 1] / height,
        )
    )
    for column, (low, high) in zip(
        columns, [(-10, 20), (0.85, 1.25), (-0.1, 0.1), (-0.1, 0.1)], strict=True
    ):
        assert_uniform(column, low - 1e-9, high + 1e-9)
    correlation = columns.corrcoef() - torch.eye(4)
    assert correlation.abs().max() < 5 / n**0.5


@pytest.mark.parametrize(("shape", "most"), [((20, 20), 1.0), ((20, 30), 0.8)], ids=str)
def test_boxes_are_uniform_over_those_that_fit(shape, most, float64):
    n, (height, width) = 4000, shape
    part = Affine(crop=(0.3, most), ratio=(3 / 4, 4 / 3), padding="border")
    A, b = drawn_maps(part, n, height, width)
    size = A.diagonal(dim1=1, dim2=2)
    area, ratio = size.prod(1), size[:, 0] / size[:, 1] * width / height
    assert_close(A, size.diag_embed())
    assert 0.3 - 1e-9 <= area.min() and area.max() <= most + 1e-9
    assert 3 / 4 - 1e-9 <= ratio.min() and ratio.max() <= 4 / 3 + 1e-9
    room = (1 - size) * torch.tensor([width, height]) / 2
    assert (b.abs() <= room + 1e-9).all()
    assert_uniform((b / room)[:, 0], -1 - 1e-6, 1 + 1e-6)

    # The same law from points that are thrown into the plane of area and log ratio.
    a = 0.3 + (most - 0.3) * torch.rand(400_000)
    r = ((2 * torch.rand(400_000) - 1) * math.log(4 / 3)).exp() * height / width
    a = a[(a * r <= 1) & (a <= r)]
    error = (area.var() / n + a.var() / len(a)).sqrt()
    assert abs(area.mean() - a.mean()) < 5 * error
    large, plain = (area > 0.7).double(), (a > 0.7).double()
    error = (large.var() / n + plain.var() / len(a)).sqrt()
    assert abs(large.mean() - plain.mean()) < 5 * error


def test_where_no_box_fits_the_area_is_kept(float64):
    A, _ = drawn_maps(Affine(crop=0.9, padding="border"), 50, 10, 60)
    assert_close(A.det(), torch.full((50,), 0.9))
    assert (A.diagonal(dim1=1, dim2=2) <= 1 + 1e-9).all()


@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
def test_padding_says_what_lies_outside(padding, float64):
    moved = Affine(shift=(0.25, 0.25), padding=padding)(torch.ones(1, 1, 8, 8))
    assert_close(moved.sum().item(), 36.0 if padding == "zeros" else 64.0)


# Colour


def test_brightness_multiplies(x):
    assert_close(Colour(brightness=(1.3, 1.3))(x), (1.3 * x).clamp(max=1))


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_contrast_blends_with_the_mean_of_the_grey_image(channels, float64):
    x = torch.rand(5, channels, 8, 9)
    weights = torch.tensor([0.299, 0.587, 0.114])
    weights = weights if channels == 3 else torch.full((channels,), 1 / channels)
    mean = torch.einsum("nchw,c->n", x, weights) / 72
    expected = 0.6 * x + 0.4 * mean.view(5, 1, 1, 1)
    assert_close(Colour(contrast=(0.6, 0.6))(x), expected)


@pytest.mark.parametrize("factor", [0.0, 0.4, 1.9])
def test_saturation_blends_with_the_grey_image(factor, x):
    grey = torch.einsum("nchw,c->nhw", x, torch.tensor([0.299, 0.587, 0.114]))
    expected = factor * x + (1 - factor) * grey.unsqueeze(1)
    part = Colour(saturation=(factor, factor))
    assert_close(part(x), expected.clamp(0, 1))
    if factor == 0:
        assert_close(Grey(p=1)(x), expected)


def test_brightness_contrast_and_saturation_come_one_after_the_other(x):
    x = x / 2  # so that nothing is clamped in between
    b, c, s = ({k: (0.8, 0.8)} for k in ("brightness", "contrast", "saturation"))
    expected = Colour(**s)(Colour(**c)(Colour(**b)(x)))
    assert_close(Colour(**b, **c, **s)(x), expected)


@pytest.mark.parametrize("turn", [-0.5, -0.1, 0.0, 1e-12, 0.05, 0.2, 1 / 3, 0.5])
def test_hue_turns_as_in_colorsys(turn, float64):
    corners = torch.cartesian_prod(*[torch.tensor([0.0, 0.4, 1.0])] * 3)
    pixels = torch.cat((corners, torch.rand(200, 3)))
    turned = Colour(hue=(turn, turn or 5e-324))(pixels.T.reshape(1, 3, 1, -1))
    expected = []
    for pixel in pixels.tolist():
        h, s, v = colorsys.rgb_to_hsv(*pixel)
        expected.append(colorsys.hsv_to_rgb((h + turn) % 1, s, v))
    assert_close(turned[0, :, 0].T, torch.tensor(expected), rtol=0, atol=1e-11)


def test_colours_are_drawn_for_each_item(float64):
    n = 2000
    x = torch.full((n, 1, 1, 1), 0.5)
    assert_uniform(Colour(brightness=0.4)(x).flatten() / 0.5, 0.6 - 1e-9, 1.4 + 1e-9)


# Noise, masks, blur


def test_noise_has_its_scale_and_is_not_clamped(float64):
    x = 3 * torch.randn(2000, 50)
    noise = (Noise(0.4)(x) - x).flatten()
    assert_mean(noise, 0.0)
    assert_mean(noise.square(), 0.16)

    scales = Noise((0.1, 0.9))(torch.zeros(300, 2000)).std(1)
    assert_mean(scales, 0.5)
    assert scales.min() > 0.09 and scales.max() < 0.95


@pytest.mark.parametrize("shape", [(400, 30), (200, 2, 7, 9), (300, 4, 5)], ids=str)
def test_a_mask_hides_its_fraction_of_the_elements(shape, float64):
    hidden = Mask(0.3, value=-7)(torch.rand(shape)) == -7
    assert_mean(hidden.double().flatten(), 0.3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("fraction", [0.001, 0.999, (0.9989, 0.9991)], ids=str)
def test_a_mask_hides_its_fraction_in_few_bits(dtype, fraction):
    hidden = Mask(fraction)(torch.ones(1000, 500, dtype=dtype)) == 0
    assert_mean(hidden.double().flatten(), float(np.mean(fraction)))


def test_a_mask_hides_whole_patches_in_all_channels(float64):
    x = 1 + torch.rand(300, 3, 8, 11)
    masked = Mask(0.4, patch=4)(x)
    hidden = masked == 0
    assert_close(masked, x * ~hidden)
    assert (hidden == hidden[:, :1]).all()
    corners = hidden[:, 0, ::4, ::4]
    spread = corners.repeat_interleave(4, 1).repeat_interleave(4, 2)[..., :11]
    assert (hidden[:, 0] == spread).all()
    assert_mean(corners.double().flatten(), 0.4)


def test_each_item_draws_its_own_fraction(float64):
    share = (Mask((0.1, 0.5))(torch.ones(500, 1000)) == 0).double().mean(1)
    assert_mean(share, 0.3)
    # The variance of the fractions, and that of a share given its fraction.
    given = (0.3 * 0.7 - 0.4**2 / 12) / 1000
    assert_mean((share - 0.3).square(), 0.4**2 / 12 + given)


@pytest.mark.parametrize("scale", [0.4, 1.0, 1.5])
def test_blur_is_scipys_gaussian_filter(scale, x):
    reach = math.ceil(3 * scale)
    expected = ndimage.gaussian_filter(
        x.numpy(), scale, mode="mirror", radius=reach, axes=(2, 3)
    )
    assert_close(Blur(scale, p=1)(x), torch.from_numpy(expected))


def test_blur_keeps_constants_and_the_mean_of_what_is_inside(float64):
    part = Blur((0.5, 1.5), p=1)
    constant = torch.full((4, 2, 12, 15), 0.7)
    assert_close(part(constant), constant)
    inside = nn.functional.pad(torch.rand(4, 2, 5, 6), [10] * 4)
    assert_close(part(inside).sum((-2, -1)), inside.sum((-2, -1)))


def test_blur_draws_a_scale_for_each_item(float64):
    impulse = torch.zeros(60, 1, 21, 21)
    impulse[:, 0, 10, 10] = 1
    rows = Blur((0.8, 1.5), p=1)(impulse).sum((1, 2))
    variance = rows @ (torch.arange(21.0) - 10).square()
    # The kernel is cut at three of the largest scales or more: its variance is less.
    assert 0.63 < variance.min() and variance.max() < 1.5**2
    assert len(variance.unique()) == 60


# What all parts have in common


@pytest.mark.parametrize(
    "part",
    [
        Affine(rotate=(10, 20), p=0.3),
        Affine(flip=0.3),
        Affine(vertical_flip=0.3),
        Colour(brightness=(0.5, 0.6), p=0.3),
        Colour(hue=(0.1, 0.2), p=0.3),
        Grey(p=0.3),
        Noise(0.1, p=0.3),
        Mask(0.9, p=0.3),
        Mask(0.9, patch=1, p=0.3),
        Blur(1.0, p=0.3),
    ],
    ids=name,
)
def test_an_item_changes_with_probability_p(part, float64):
    x = torch.rand(1000, 3, 5, 7)
    changed = (part(x) - x).flatten(1).abs().amax(1) > 1e-9
    assert_mean(changed.double(), 0.3)
    if part.p < 1:
        out = part(x)
        same = (out - x).flatten(1).abs().amax(1) < 1e-9
        assert torch.equal(out[same], x[same])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("part", PARTS, ids=name)
def test_a_part_keeps_shape_type_and_its_input(part, dtype):
    x = torch.rand(5, 3, 8, 12, dtype=dtype)
    before = x.clone()
    out = part(x)
    assert out.shape == x.shape and out.dtype == dtype
    assert torch.equal(x, before)
    assert out.data_ptr() != x.data_ptr()


@pytest.mark.parametrize("part", PARTS, ids=name)
def test_views_are_differentiable(part, float64):
    x = torch.rand(5, 3, 8, 12, requires_grad=True)
    direction = torch.randn_like(x)

    def value(step: float) -> Tensor:
        torch.manual_seed(3)
        return part(x + step * direction).square().sum()

    (grad,) = torch.autograd.grad(value(0.0), x)
    if getattr(part, "levels", None) is None:
        difference = (value(1e-7) - value(-1e-7)) / 2e-7
        assert_close((grad * direction).sum(), difference, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "part", [*PARTS, *(recipe(views=3) for recipe in RECIPES)], ids=name
)
def test_what_was_saved_draws_the_same_views(part, tmp_path):
    x, again = torch.rand(4, 3, 8, 8), ps.load(ps.save(part, tmp_path))
    assert torch.equal(seeded(again, x), seeded(part, x))


# Augment


def test_views_of_an_item_lie_in_its_row(x):
    views = Augment(Affine(), views=3)(x)
    assert_close(views, x.unsqueeze(1).expand(-1, 3, -1, -1, -1))


@pytest.mark.parametrize("recipe", [Augment, *RECIPES], ids=name)
def test_views_and_items_differ_and_follow_the_seed(recipe):
    x = torch.rand(1, 3, 16, 16).expand(8, -1, -1, -1)
    sampler = recipe(views=3)
    first = seeded(sampler, x)
    assert first.shape == (8, 3, 3, 16, 16)
    assert len(first.flatten(0, 1).unique(dim=0)) == 24
    assert torch.equal(seeded(sampler, x), first)
    assert not torch.equal(sampler(x), first)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("levels", [1, 16, 255])
def test_images_end_exactly_on_the_grid(levels, dtype):
    x = torch.randint(levels + 1, (16, 1, 8, 8)).to(dtype) / levels
    views = Augment(Affine(rotate=15), Noise(0.3), levels=levels)(x)
    grid = torch.arange(levels + 1).to(dtype) / levels
    assert torch.isin(views, grid).all()
    assert {0, 1} <= set(views.unique().tolist())
    assert torch.equal(Grid(levels)(x), x)


def test_rounding_in_few_bits_is_that_of_single_precision():
    x = torch.rand(1000, 50).bfloat16()
    assert torch.equal(Grid(255)(x), Grid(255)(x.float()).bfloat16())
    found = Grid(16, "random")(torch.full((40_000, 1), 0.7).bfloat16())
    assert_mean(found.double(), float(torch.tensor(0.7).bfloat16()))


@pytest.mark.parametrize("levels", [1, 16])
def test_random_rounding_has_the_value_as_its_mean(levels):
    x, draws = torch.linspace(0, 1, 40).double(), 20_000
    found = Grid(levels, "random")(x.expand(draws, -1).clone())
    low = (x * levels).floor() / levels
    variance = (x - low) * (low + 1 / levels - x)
    assert (found == found.mul(levels).round() / levels).all()
    assert ((found - x).abs() < 1 / levels).all()
    error = 5 * (variance / draws).sqrt()
    assert ((found.mean(0) - x).abs() <= error + 1e-12).all()
    on_grid = torch.arange(levels + 1) / levels
    assert torch.equal(Grid(levels, "random")(on_grid.clone()), on_grid)
    image = Augment(Noise(0.0), levels=levels, rounding="random")(
        torch.rand(3, 1, 4, 4)
    )
    assert (image.mul(levels) % 1 == 0).all()


def test_the_default_moves_digits_a_little():
    x = torch.zeros(500, 1, 28, 28)
    x[:, :, 10:18, 10:18] = 1
    views = Augment()(x)
    across = torch.arange(28.0) - 13.5
    mass = views.sum((2, 3, 4))
    centre = (views.sum((2, 3)) @ across) / mass
    assert mass.min() > 64 * 0.84**2 and mass.max() < 64 * 1.16**2
    assert 2.0 < centre.abs().max() < 2.9


def test_images_are_clamped_and_arrays_are_not():
    images, array = torch.rand(20, 1, 8, 8), torch.randn(20, 30)
    noisy = Augment(Noise(1.0))(images)
    assert noisy.min() == 0 and noisy.max() == 1
    assert Augment(Noise(1.0), clamp=False)(images).min() < 0
    views = Augment(Noise(0.1), Mask(0.5), views=4)(array)
    assert views.shape == (20, 4, 30) and views.min() < 0
    array = torch.rand(20, 30)
    assert Augment(Noise(0.5), clamp=True)(array).min() == 0
    assert Augment(Noise(0.1), levels=2)(array).unique().tolist() == [0, 0.5, 1]


RGB = torch.rand(8, 3, 8, 8)
OUTSIDE = {"0..255": 255 * RGB, "normalised": (RGB - 0.5) / 0.25, "NaN": RGB / 0}


@pytest.mark.parametrize("x", OUTSIDE.values(), ids=OUTSIDE)
@pytest.mark.parametrize(
    "sampler", [Augment, MultiCrop, Invert, Colour, *RECIPES], ids=name
)
def test_images_outside_the_range_are_refused(sampler, x):
    views = sampler()
    assert views(RGB) is not None
    with pytest.raises(ValueError, match=r"values in \[0, 1\].*divide bytes by 255"):
        views(x)
    with pytest.raises(ValueError, match=r"expected finite|values in \[0, 1\]"):
        ps.fit(ps.limits.SimCLR(ps.nn.MLPEncoder((3, 8, 8), 2)), x, views=views)


def test_what_is_refused_is_what_would_be_clamped():
    x = OUTSIDE["normalised"]
    assert Augment(Affine(flip=1.0), clamp=False)(x).min() == x.min()
    for part in (Colour(brightness=0.5), Invert()):
        with pytest.raises(ValueError, match="for Augment"):
            Augment(part, clamp=False)(x)
        noisy = Augment(Noise(0.5), part)(RGB)  # beyond [0, 1] by Noise alone
        assert 0 <= noisy.min() and noisy.max() <= 1


@pytest.mark.parametrize("recipe", [Augment, *RECIPES], ids=name)
def test_one_item_and_one_view_will_do(recipe):
    assert recipe(views=1)(torch.rand(1, 3, 8, 12)).shape == (1, 1, 3, 8, 12)


def test_any_module_is_a_part():
    views = Augment(nn.Flatten(), nn.Linear(12, 5))(torch.rand(4, 3, 2, 2))
    assert views.shape == (4, 2, 5)


@pytest.mark.parametrize(
    "sampler",
    [
        digits(),
        simclr(),
        Augment(Noise((0.1, 0.3), p=0.5), Mask(0.2, patch=3), Blur((0.5, 1.0))),
        MultiCrop(local=3, local_size=(6, 6), levels=16),
    ],
    ids=["digits", "simclr", "noise", "multi-crop"],
)
def test_a_sampler_compiles_once_without_a_break(sampler):
    counter = CompileCounter()
    compiled = torch.compile(sampler, backend=counter, fullgraph=True)
    x = torch.rand(4, 3, 8, 12)
    for seed in range(3):
        views, expected = (seeded(s, x, seed=seed) for s in (compiled, sampler))
        assert_close(views, expected, rtol=0, atol=0)
    assert counter.frame_count == 1


# Multi-crop


def test_crops_come_as_a_batch_of_two_sizes(x):
    before = x.clone()
    for options, small in (
        ({"local": 5, "local_size": (6, 8)}, [(6, 5, 3, 6, 8)]),
        ({}, [(6, 6, 3, 12, 18)]),  # of the size of the image
        ({"local": 0}, []),
    ):
        batch = MultiCrop(**options)(x)
        parts = [batch.views] if isinstance(batch.views, Tensor) else batch.views
        assert isinstance(batch, ps.Batch)
        assert [part.shape for part in parts] == [(6, 2, 3, 12, 18), *small]
        assert all(part.dtype == x.dtype and part.ge(0).all() for part in parts)
        assert all(part.le(1).all() for part in parts)
    assert torch.equal(x, before)


def test_small_size_is_a_mean_over_what_a_pixel_covers(x):
    """Against Pillow, whose bilinear filter widens as well where it shrinks."""
    image = pytest.importorskip("PIL.Image")
    whole = MultiCrop(local=1, local_crop=1.0, local_size=(5, 6))
    found = whole(x).views[1][:, 0]
    for item, small in zip(x.float().numpy(), found, strict=True):
        for channel, one in zip(item, small, strict=True):
            plain = image.fromarray(channel).resize((6, 5), image.Resampling.BILINEAR)
            expected = torch.from_numpy(np.array(plain)).double()
            assert_close(one, expected, rtol=0, atol=1e-6)


def test_crops_are_affines_of_their_range(x):
    sampler = MultiCrop(local=4, crop=(0.3, 0.8), local_crop=(0.1, 0.2), flip=0.5)
    torch.manual_seed(3)
    large, small = sampler(x).views
    torch.manual_seed(3)
    first = Affine(crop=(0.3, 0.8), flip=0.5)(x.repeat_interleave(2, 0))
    second = Affine(crop=(0.1, 0.2), flip=0.5)(x.repeat_interleave(4, 0))
    assert_close(large.flatten(0, 1), first.clamp(0, 1))
    assert_close(small.flatten(0, 1), second.clamp(0, 1))


def test_parts_see_all_crops_and_the_grid_comes_last(x):
    sampler = MultiCrop(Colour(brightness=0.4), local=3, local_size=(6, 6), levels=16)
    for part in sampler(x).views:
        assert_close(part * 16, (part * 16).round())
    dark = MultiCrop(_Dark(), local=1)
    for part in dark(x).views:
        assert not part.any()


class _Dark(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 0 * x


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_local_crops_are_resized_in_any_type(dtype):
    sampler = MultiCrop(local_crop=1.0, local_size=(4, 4))
    found = sampler(torch.full((2, 1, 8, 8), 0.5, dtype=dtype)).views[1]
    assert found.dtype == dtype and found.shape == (2, 6, 1, 4, 4)
    assert_close(found.float(), torch.full_like(found, 0.5).float())


@pytest.mark.parametrize("kind", [ps.limits.SwAV, ps.limits.DINO])
def test_objectives_take_two_sizes_with_an_encoder_that_does(kind):
    encoder = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    objective = kind(encoder, components=6, dim=4)
    views = MultiCrop(local=3, local_size=(4, 4), local_crop=(0.3, 0.6), levels=16)
    digits = ps.data.digits().train.rows(slice(64))
    history = ps.fit(
        objective, digits, views=views, epochs=2, batch_size=32, progress=False
    )
    assert np.isfinite(history["value"]).all()


# Errors

test_wrong_arguments_are_refused = refusals(
    (lambda: Affine(rotate=-15), ValueError, r"rotate.*0 ± a.*got -15"),
    (lambda: Affine(rotate=(15, -15)), ValueError, "rotate.*lower end first"),
    (lambda: Affine(scale=(0, 1)), ValueError, r"scale.*\(0, inf\], got \(0, 1\)"),
    (lambda: Affine(scale=(1, 2, 3)), TypeError, "scale"),
    (lambda: Affine(shift="far"), TypeError, "shift"),
    (lambda: Affine(crop=(0.2, 1.1)), ValueError, r"crop.*\(0, 1\]"),
    (lambda: Affine(crop=0), ValueError, "crop"),
    (lambda: Affine(ratio=(4 / 3, 3 / 4)), ValueError, "ratio"),
    (lambda: Affine(flip=1.5), ValueError, "flip from 0 to 1"),
    (lambda: Affine(vertical_flip=-0.5), ValueError, "vertical_flip from 0 to 1"),
    (lambda: Affine(p=(0, 1)), TypeError, "p as a number"),
    (lambda: Affine(padding="circular"), ValueError, "padding.*'circular'"),
    (lambda: Colour(brightness=1.2), ValueError, r"brightness.*1 ± a"),
    (lambda: Colour(contrast=(-0.1, 1)), ValueError, "contrast"),
    (lambda: Colour(saturation=(1.2, 0.8)), ValueError, "saturation"),
    (lambda: Colour(hue=0.6), ValueError, r"hue.*\[-0.5, 0.5\]"),
    (lambda: Grey(p=None), TypeError, "p as a number"),
    (lambda: Noise(-1), ValueError, "scale"),
    (lambda: Mask(1.5), ValueError, "fraction"),
    (lambda: Mask(0.5, patch=0), ValueError, "patch as a whole number of at least 1"),
    (lambda: Blur(0), ValueError, "scale"),
    (lambda: Blur(size=4), ValueError, "odd size.*use 5"),
    (lambda: Grid(0), ValueError, "levels as a whole number"),
    (lambda: Grid(1, "up"), ValueError, "rounding as one of"),
    (lambda: Grid(rounding="random"), ValueError, "levels for rounding='random'"),
    (lambda: Augment(views=0), ValueError, "views as a whole number"),
    (
        lambda: Augment(levels=16, clamp=False),
        ValueError,
        "clamp=True or None with levels=16",
    ),
    (lambda: MultiCrop(views=0), ValueError, "views as a whole number"),
    (lambda: MultiCrop(local=-1), ValueError, "local as a whole number of at least 0"),
    (lambda: MultiCrop(crop=(0.5, 1.5)), ValueError, "crop as a number"),
    (lambda: MultiCrop(local_crop=0.0), ValueError, "local_crop as a number"),
    (lambda: MultiCrop(local_size=4), TypeError, "sequence of 2, .*, got 4"),
    (lambda: MultiCrop(local_size=(4, 0)), ValueError, "local_size as a whole number"),
    (lambda: MultiCrop()(torch.rand(4, 64)), ValueError, "shape .* for MultiCrop"),
    (lambda: Augment(2), TypeError, "modules.*got 2.*views=2"),
    (lambda: MultiCrop(2), TypeError, "modules.*got 2.*views=2"),
)


@pytest.mark.parametrize("part", PARTS + [simclr(), MultiCrop()], ids=name)
def test_bytes_are_refused(part):
    x = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    with pytest.raises(TypeError, match=r"torch.uint8.*x.float\(\) / 255"):
        part(x)
    with pytest.raises(TypeError, match="ndarray"):
        part(x.numpy())


@pytest.mark.parametrize("part", [*IMAGE_PARTS, Augment()], ids=name)
def test_arrays_are_refused_where_images_are_needed(part):
    with pytest.raises(ValueError, match=r"\(n, channel, height, width\).*Noise"):
        part(torch.rand(4, 64))


@pytest.mark.parametrize(
    "part", [Colour(saturation=0.1), Colour(hue=0.1), Grey(), simclr()], ids=name
)
def test_colours_of_grey_images_are_refused(part):
    with pytest.raises(ValueError, match="expected 3 channels.*got 1"):
        part(torch.rand(4, 1, 8, 8))


def test_a_kernel_larger_than_the_image_is_refused():
    with pytest.raises(ValueError, match="more than 6 pixels for a kernel of 13"):
        Blur()(torch.rand(2, 1, 6, 9))


@pytest.mark.parametrize(
    "part", [IMAGE_PARTS[0], Blur(), Grey(), Augment(), MultiCrop()], ids=name
)
@pytest.mark.parametrize("shape", [(8, 8, 1), (32, 32, 3), (28, 20, 4)])
def test_images_with_their_channel_last_are_refused(part, shape):
    x = torch.rand(5, *shape)
    with pytest.raises(ValueError, match=r"permute\(0, 3, 1, 2\)"):
        part(x)
    if shape[-1] == 3:
        part(x.permute(0, 3, 1, 2))


@pytest.mark.parametrize("shape", [(16, 3, 3), (64, 4, 4), (64, 8, 4), (3, 8, 3)])
def test_feature_maps_of_few_columns_are_images(shape):
    x = torch.rand(5, *shape)
    assert Affine(shift=0.2)(x).shape == x.shape


class Turned(nn.Module):
    """As transforms of torchvision do: one draw for all of a batch."""

    def forward(self, x: Tensor) -> Tensor:
        return x.rot90(int(torch.randint(4, ())), (-2, -1))


def test_a_part_that_draws_once_per_call_draws_for_each_item_if_wrapped(float64):
    x = torch.rand(1, 2, 4, 4).expand(400, 2, 4, 4)
    once, each = (Augment(part)(x) for part in (Turned(), PerItem(Turned())))
    assert once.equal(once[:1, :1].expand_as(once))
    turns = torch.stack([x[0].rot90(k, (-2, -1)) for k in range(4)])
    found = (each.unsqueeze(2) == turns).flatten(3).all(3).double()
    assert_close(found.sum(2), torch.ones(400, 2))
    for k in range(4):
        assert_mean(found[..., k].flatten(), 0.25)
    assert_mean((found[:, 0] * found[:, 1]).sum(1), 0.25)  # independent views


@pytest.mark.parametrize("loaded", [False, True])
def test_fit_names_views_that_share_one_draw(loaded, caplog):
    x = torch.rand(16, 1, 4, 4)
    cases = {
        "one draw": (Augment(Turned()), True),
        "a draw for each": (Augment(PerItem(Turned())), False),
        "the item twice": (lambda x: torch.stack([x, x], 1), False),
        "a change without a draw": (lambda x: torch.stack([x / 2, x / 2], 1), True),
    }
    for views, said in cases.values():
        caplog.clear()
        torch.manual_seed(0)
        network = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
        data = DataLoader(x, 8) if loaded else x
        ps.fit(ps.limits.SimCLR(network), data, views=views, epochs=1, progress=False)
        assert ("PerItem" in caplog.text) is said


def test_a_part_returns_the_items_that_it_got():
    class Twice(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([x, x])

    x, words = torch.rand(4, 1, 8, 8), "Twice to return as many rows .* 8.* got 16 rows"
    with pytest.raises(ValueError, match=words):
        ps.views.Augment(Twice(), views=2)(x)
    with pytest.raises(ValueError, match="PerItem to return as many rows"):
        ps.views.MultiCrop(ps.views.PerItem(Twice()))(x)
    with pytest.raises(ValueError, match="got tuple"):
        ps.views.Augment(
            type("Pair", (nn.Module,), {"forward": lambda s, x: (x, x)})()
        )(x)


def test_parts_are_known_inside_others():
    """Thinning keeps counts above 1, and colours refuse what is outside [0, 1]."""
    counts, wrap = torch.full((4, 1, 8, 8), 9.0), ps.views.PerItem
    thinned = ps.views.Augment(wrap(ps.views.Thinning(0.5)))(counts)
    assert thinned.max() > 1
    with pytest.raises(ValueError, match="1 of them inside others"):
        ps.views.Augment(wrap(ps.views.Thinning(0.5)), shares=True)
    with pytest.raises(ValueError, match="no levels, clamp=True, Colour or Invert"):
        ps.views.Augment(wrap(ps.views.Thinning(0.5)), ps.views.Invert())


def test_a_subclass_of_colour_needs_no_further_argument():
    class Warm(ps.views.Colour):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)

    x = torch.rand(4, 3, 8, 8)
    assert ps.views.Augment(Warm(brightness=0.2))(x).shape == (4, 2, 3, 8, 8)
