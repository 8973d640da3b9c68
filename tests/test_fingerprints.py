"""Fingerprints: the same for the same object in every process, and for no other."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import probssl as ps
from probssl.runtime.fingerprints import fingerprint

HELPERS = Path(__file__).parent
ASK = """
from helpers.catalogue import Everything, noisy
from probssl.runtime.fingerprints import fingerprint
print(fingerprint(Everything()), fingerprint(noisy), fingerprint({"b", "a", "c"}))
"""
FACTOR, OTHER = 2.0, 3.0


def by_factor(x):
    return FACTOR * x


def by_other(x):
    return OTHER * x


def scaled(scale):
    return lambda x: scale * x


def noise(scale):
    return ps.views.Augment(ps.views.Noise(scale))


class Own(nn.Module):
    def __init__(self, power=1.0):
        super().__init__()
        self.power, self._cache = power, None
        self.layer = nn.Linear(2, 2)
        self.register_buffer("mask", torch.ones(2), persistent=False)


def masked():
    own = Own()
    own.mask[0] = 0
    return own


def test_it_is_that_of_every_other_process():
    found = set()
    for seed in ("1", "2", "3"):
        environment = os.environ | {"PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", ASK]
        options = {"capture_output": True, "text": True, "check": True}
        run = subprocess.run(command, cwd=HELPERS, env=environment, **options)
        found.add(run.stdout)
    assert len(found) == 1 and len(set(found.pop().split())) == 3


@pytest.mark.parametrize(
    ("one", "same", "other"),
    [
        (1.0, 1.0, 2.0),
        ([1, (2, "a")], [1, (2, "a")], [1, (2, "b")]),
        (torch.ones(2), torch.ones(2), torch.ones(2).double()),
        (scaled(1.0), scaled(1.0), scaled(2.0)),
        (lambda x: x + 1, lambda x: x + 1, lambda x: x - 1),
        (by_factor, by_factor, by_other),
        (noise(0.1), noise(0.1), noise(0.2)),
        (ps.train.linear(1, 0), ps.train.linear(1, 0), ps.train.linear(1, 0.5)),
        (Own(), Own(), Own(2.0)),  # parameters do not count
        (Own(), Own().eval(), masked()),
    ],
)
def test_it_is_of_what_an_object_is_made_of(one, same, other):
    assert fingerprint(one) == fingerprint(same) != fingerprint(other)


def test_a_cache_and_an_object_that_holds_itself_do_not_matter():
    own, used, loop = Own(), Own(), []
    used._cache = torch.ones(3)
    loop.append(loop)
    assert fingerprint(own) == fingerprint(used)
    assert fingerprint(loop) == fingerprint(loop)
