"""Representations where images have changed: the same items, the same probe."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

import probssl as ps
from probssl.shifts import SHIFTS, apply, shifted, transferred
from probssl.views import Background, Invert


@pytest.fixture(scope="module")
def digits() -> ps.data.Dataset:
    return ps.data.digits()


class Pixels(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1)


def test_the_scores_are_those_of_a_probe_of_the_images_as_they_are(digits):
    found = shifted(Pixels(), digits)
    assert list(found) == ["clean", *SHIFTS]
    z, y = digits.train.images.flatten(1), digits.train.labels
    for name, row in found.items():
        part = digits.test if name == "clean" else apply(SHIFTS[name], digits.test)
        known = z, y, part.images.flatten(1), digits.test.labels
        assert row["linear_probe"] == ps.evaluation.linear_probe(*known)
        assert row["knn"] == ps.evaluation.knn(*known)


def test_what_is_shifted_is_harder_for_pixels(digits):
    found = shifted(Pixels(), digits)
    clean = found.pop("clean")["linear_probe"]
    assert clean > 0.9 and all(row["linear_probe"] < clean for row in found.values())


def test_shifts_leave_labels_range_and_the_random_stream_alone(digits):
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    for shift in SHIFTS.values():
        part = apply(shift, digits.test, seed=3)
        again = apply(shift, digits.test, seed=3)
        assert_close(part.images, again.images, rtol=0, atol=0)
        assert part.images.min() >= 0 and part.images.max() <= 1
        assert (part.images != digits.test.images).any()
        assert_close(part.labels, digits.test.labels)
    assert (torch.random.get_rng_state() == before).all()


def test_items_that_are_no_images_may_have_any_value():
    x = 3 * torch.randn(200, 5)
    images = torch.rand(20, 1, 8, 8)
    moved = apply(ps.views.Noise(0.3), ps.data.Split(x)).images
    assert ((moved - x).std() / 0.3 - 1).abs() < 0.2 and moved.min() < -3
    inside = apply(ps.views.Noise(0.3), ps.data.Split(images)).images
    assert inside.min() == 0 and inside.max() == 1


def test_bytes_are_read_as_shares_of_255():
    images = torch.arange(0, 256, 5, dtype=torch.uint8)[:, None, None, None]
    part = apply(Invert(), ps.data.Split(images.expand(-1, 1, 4, 4)))
    assert_close(part.images[:, 0, 0, 0], 1 - images[:, 0, 0, 0] / 255)


def test_other_data_get_a_probe_of_their_own(digits):
    train, test = (apply(Invert(), part) for part in (digits.train, digits.test))
    turned = digits._replace(train=train, test=test)
    found = transferred(Pixels(), {"digits": digits, "inverted": turned})
    assert found["digits"] == shifted(Pixels(), digits, {})["clean"]
    assert found["inverted"]["knn"] == pytest.approx(found["digits"]["knn"])


def test_several_test_parts_share_one_probe():
    random = np.random.default_rng(0)
    z, y = random.normal(size=(60, 4)), np.arange(60) % 3
    parts = {n: (random.normal(size=(30, 4)), np.arange(30) % 3) for n in "ab"}
    for many, one in (
        (ps.evaluation.linear_probes, ps.evaluation.linear_probe),
        (ps.evaluation.knns, ps.evaluation.knn),
    ):
        assert many(z, y, parts) == {n: one(z, y, *part) for n, part in parts.items()}


def test_a_background_is_light_and_shade_of_the_size_that_is_said():
    x = torch.full((4000, 1, 12, 9), 0.5, dtype=torch.float64)
    drawn = Background(0.8)(x) - x
    spread = float(drawn.var(0).mean().sqrt())
    assert abs(float(drawn.mean())) <= 0.01 and abs(spread / 0.2 - 1) <= 0.02
    flat = drawn[:500].flatten(1)
    assert torch.linalg.matrix_rank(flat) == 16  # of 108 directions
    assert not drawn.roll(1, 0).isclose(drawn).all(3).any()


def test_bad_input_is_refused(digits):
    with pytest.raises(ValueError, match="labels of training and test"):
        shifted(Pixels(), digits._replace(test=digits.test._replace(labels=None)))
    with pytest.raises(ValueError, match="other names of shifts than 'clean'"):
        shifted(Pixels(), digits, {"clean": Background(0.1)})
    with pytest.raises(ValueError, match="keeps the shape"):
        apply(nn.AvgPool2d(2), digits.test)
    with pytest.raises(ValueError, match="amplitude"):
        Background(-1.0)
