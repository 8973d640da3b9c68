"""Large and small crops: what they show, their sizes and the grid they end on."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch.testing import assert_close

import probssl as ps
from probssl.limits.dino import DINO
from probssl.limits.swav import SwAV
from probssl.terms import Batch
from probssl.views import Affine, Colour, MultiCrop


@pytest.fixture
def x(float64: None) -> Tensor:
    return torch.rand(6, 3, 12, 18)


def ramps(n: int, height: int, width: int) -> Tensor:
    """Two channels that hold where a pixel is, in fractions of the image."""
    down, across = (
        torch.arange(1, 2 * size, 2, dtype=torch.double) / (2 * size)
        for size in (height, width)
    )
    both = torch.stack(torch.meshgrid(across, down, indexing="xy"))
    return both.expand(n, -1, -1, -1)


def areas(crops: Tensor) -> Tensor:
    """The fraction of the image that each crop of ramps shows."""
    height, width = crops.shape[-2:]
    middle = crops[..., height // 2, :], crops[..., width // 2]
    steps = [line[..., 2:-2].diff(dim=-1).median(-1).values for line in middle]
    return steps[0][..., 0] * width * steps[1][..., 1] * height


def test_crops_come_as_a_batch_of_two_sizes(x):
    batch = MultiCrop(views=2, local=5, local_size=(6, 8))(x)
    assert isinstance(batch, Batch) and batch.shape == (6, 7)
    large, small = batch.views
    assert large.shape == (6, 2, 3, 12, 18) and small.shape == (6, 5, 3, 6, 8)
    assert large.dtype == small.dtype == x.dtype
    for part in (large, small):
        assert part.ge(0).all() and part.le(1).all()


def test_small_crops_have_the_size_of_the_image_by_default(x):
    large, small = MultiCrop()(x).views
    assert large.shape == (6, 2, 3, 12, 18) and small.shape == (6, 6, 3, 12, 18)


def test_without_small_crops_there_is_one_tensor(x):
    views = MultiCrop(local=0, views=3)(x).views
    assert isinstance(views, Tensor) and views.shape == (6, 3, 3, 12, 18)


def test_crops_of_all_of_an_image_are_the_image(x):
    whole = MultiCrop(views=2, local=2, crop=1.0, local_crop=1.0)
    whole.large.ratio = whole.small.ratio = (1.0, 1.0)
    for part in whole(x).views:
        assert_close(part, x.unsqueeze(1).expand_as(part), rtol=0, atol=1e-12)


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


def test_crops_show_the_fractions_asked_for():
    x = ramps(200, 32, 48)
    sampler = MultiCrop(views=2, local=3, crop=(0.5, 0.9), local_crop=(0.1, 0.3))
    large, small = (areas(part).flatten() for part in sampler(x).views)
    for area, (low, high) in ((large, (0.5, 0.9)), (small, (0.1, 0.3))):
        assert area.min() > low - 1e-6 and area.max() < high + 1e-6
        assert area.min() < low + 0.05 and area.max() > high - 0.05


def test_every_crop_has_draws_of_its_own_from_the_global_generator(x):
    sampler = MultiCrop()
    torch.manual_seed(3)
    first = sampler(x).views
    torch.manual_seed(3)
    again = sampler(x).views
    other = sampler(x).views
    for one, same, new in zip(first, again, other, strict=True):
        assert torch.equal(one, same) and not torch.equal(one, new)
        assert not torch.equal(one[:, 0], one[:, 1])


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


def test_images_are_left_alone(x):
    before = x.clone()
    MultiCrop(Colour(brightness=0.4), levels=16)(x)
    assert torch.equal(x, before)


@pytest.mark.parametrize("kind", [SwAV, DINO])
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


def test_it_compiles_once_without_a_break(x):
    counter = CompileCounter()
    sampler = MultiCrop(local=3, local_size=(6, 6), levels=16)
    compiled = torch.compile(
        lambda x: sampler(x).views, backend=counter, fullgraph=True
    )
    for seed in range(2):
        torch.manual_seed(seed)
        found = compiled(x)
        torch.manual_seed(seed)
        for one, plain in zip(found, sampler(x).views, strict=True):
            assert_close(one, plain, rtol=0, atol=0)
    assert counter.frame_count == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MultiCrop(views=0), "views as an integer of 1"),
        (lambda: MultiCrop(local=-1), "local as an integer of 0"),
        (lambda: MultiCrop(crop=(0.5, 1.5)), "crop as a number"),
        (lambda: MultiCrop(local_crop=0.0), "local_crop as a number"),
        (lambda: MultiCrop(local_size=4), r"\(height, width\), got 4"),
        (lambda: MultiCrop(local_size=(4, 0)), "local_size as an integer of 1"),
        (lambda: MultiCrop(flip=2.0), "flip as a probability"),
        (lambda: MultiCrop(levels=0), "levels as an integer"),
        (lambda: MultiCrop()(torch.rand(4, 64)), "shape .* for MultiCrop"),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_parts_are_objects_and_images_are_no_bytes():
    with pytest.raises(TypeError, match="modules.*got 2.*views=2, local=6"):
        MultiCrop(2)
    with pytest.raises(TypeError, match="torch.uint8"):
        MultiCrop()(torch.zeros(2, 1, 8, 8, dtype=torch.uint8))
