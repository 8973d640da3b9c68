"""Views of several kinds: one network for all, or one for each."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import probssl as ps
from probssl.nn import MLPEncoder, PerModality, each_view


def test_every_view_is_encoded_in_its_place():
    encoder, x = MLPEncoder((4,), 3), torch.randn(5, 2, 4)
    z = each_view(encoder, x)
    assert z.shape == (5, 2, 3)
    assert_close(z[:, 1], encoder(x[:, 1]))


def test_modalities_have_networks_of_their_own_in_order():
    left, right = MLPEncoder((4,), 3), MLPEncoder((2, 2), 3)
    x = (torch.randn(5, 1, 4), torch.randn(5, 2, 2, 2))
    z = each_view(PerModality([left, right]), x)
    assert z.shape == (5, 3, 3)
    assert_close(z[:, 0], left(x[0][:, 0]))
    assert_close(z[:, 2], right(x[1][:, 1]))


def test_one_network_encodes_views_of_several_sizes():
    encoder = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4, 3))
    x = (torch.randn(5, 2, 1, 8, 8), torch.randn(5, 3, 1, 4, 4))
    z = each_view(encoder, x)
    assert z.shape == (5, 5, 3)
    assert_close(z[:, 4], encoder(x[1][:, 2]))


def test_modalities_are_saved_and_built_again(tmp_path):
    encoder = PerModality([MLPEncoder((4,), 3), MLPEncoder((2, 2), 3)])
    objective = ps.limits.LogDet(encoder)
    ps.save(objective, tmp_path)
    x = (torch.randn(5, 1, 4), torch.randn(5, 1, 2, 2))
    again = ps.load(tmp_path)
    assert_close(sum(again(ps.Batch(x))), sum(objective(ps.Batch(x))))


@pytest.mark.parametrize("parts", [[], [MLPEncoder((4,), 3), MLPEncoder((4,), 2)]])
def test_networks_of_different_dimension_are_refused(parts):
    with pytest.raises(ValueError, match="a network for each modality"):
        PerModality(parts)


@pytest.mark.parametrize("x", [torch.randn(5, 1, 4), (torch.randn(5, 1, 4),)])
def test_another_number_of_modalities_is_refused(x):
    encoder = PerModality([MLPEncoder((4,), 3), MLPEncoder((4,), 3)])
    with pytest.raises(ValueError, match="expected 2 parts, one for each modality"):
        each_view(encoder, x)
