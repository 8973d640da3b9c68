"""The teacher: a moving average that moves in training alone."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from probssl.limits._ema import Teacher


def pair() -> tuple[nn.Module, Teacher]:
    leading = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    teacher = Teacher(leading, momentum=0.9)
    with torch.no_grad():
        leading[0].weight.add_(1.0)
    return leading, teacher


def test_it_moves_a_tenth_of_the_way():
    leading, teacher = pair()
    before = teacher.network[0].weight.clone()
    teacher.follow(leading)
    assert_close(teacher.network[0].weight, before + 0.1)


def test_it_stays_in_evaluation():
    leading, teacher = pair()
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    teacher.eval()
    teacher.follow(leading)
    teacher(torch.randn(4, 3))
    for key, value in teacher.state_dict().items():
        assert_close(value, before[key], rtol=0, atol=0)


def test_it_has_no_gradient_and_no_trainable_parameter():
    _, teacher = pair()
    z = teacher(torch.randn(4, 3, requires_grad=True))
    assert not z.requires_grad
    assert not any(p.requires_grad for p in teacher.parameters())


def test_momentum_zero_is_the_network_itself_and_one_stands_still():
    leading, _ = pair()
    for momentum, same in ((0.0, True), (1.0, False)):
        teacher = Teacher(leading, momentum)
        with torch.no_grad():
            leading[0].weight.add_(1.0)
        teacher.follow(leading)
        assert torch.equal(teacher.network[0].weight, leading[0].weight) is same


@pytest.mark.parametrize("momentum", [-0.1, 1.1, float("nan")])
def test_a_momentum_outside_zero_to_one_is_refused(momentum):
    with pytest.raises(ValueError, match="momentum from 0 to 1"):
        Teacher(nn.Linear(3, 2), momentum)
