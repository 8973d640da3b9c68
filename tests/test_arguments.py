"""Arguments are returned as plain values, or refused in one form of message."""

import math

import numpy as np
import pyro.distributions as dist
import pytest
import torch

import probssl as ps
from probssl.arguments import at_least, between, choice, instance, positive, whole


@pytest.mark.parametrize(
    ("check", "value", "found"),
    [
        (lambda x: positive("x", x), np.float32(0.5), 0.5),
        (lambda x: positive("x", x), torch.tensor(2), 2.0),
        (lambda x: at_least("x", x, 0), 0, 0.0),
        (lambda x: between("x", x, 0, 1), 1, 1.0),
        (lambda x: whole("x", x), np.int64(3), 3),
        (lambda x: whole("x", x, 0), torch.tensor(0), 0),
        (lambda x: choice("x", x, ("a", None)), None, None),
        (lambda x: instance("x", x, int, "an int"), 4, 4),
    ],
)
def test_what_is_in_range_comes_back_as_a_plain_value(check, value, found):
    assert check(value) == found and type(check(value)) is type(found)


@pytest.mark.parametrize(
    ("check", "value", "error", "message"),
    [
        (lambda x: positive("x", x, "take 1"), 0, ValueError, "x .*, got 0; take 1"),
        (lambda x: positive("x", x), math.inf, ValueError, "positive finite"),
        (lambda x: positive("x", x), math.nan, ValueError, "got nan"),
        (lambda x: positive("x", x), "1", TypeError, "got '1'"),
        (lambda x: positive("x", x), True, TypeError, "got True"),
        (lambda x: positive("x", x), torch.ones(2), TypeError, "positive"),
        (lambda x: at_least("x", x, 0), -1e-9, ValueError, "at least 0"),
        (lambda x: between("x", x, 0, 1), 1.1, ValueError, "from 0 to 1"),
        (lambda x: between("x", x, 0, 1, open=True), 1, ValueError, "between 0 and 1"),
        (lambda x: whole("x", x), 0, ValueError, "at least 1"),
        (lambda x: whole("x", x, 0, 3), 4, ValueError, "from 0 to 3"),
        (lambda x: whole("x", x), 2.0, TypeError, "whole number"),
        (lambda x: whole("x", x), True, TypeError, "got True"),
        (lambda x: choice("x", x, ("a", "b")), "c", ValueError, "'a', 'b', got 'c'"),
        (lambda x: instance("x", x, int, "an int"), "c", TypeError, "as an int"),
    ],
)
def test_what_is_not_is_refused(check, value, error, message):
    with pytest.raises(error, match=message):
        check(value)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ps.fit(None, None, lr=1), r"fit\(objective.*'lr'; .* learning_rate\?"),
        (lambda: ps.fit(None, None, batchsize=1), "did you mean batch_size"),
        (lambda: ps.likelihoods.Gaussian(scal=1), r"Gaussian\(scale.*mean scale\?"),
        (lambda: ps.priors.Gaussian(), r"Gaussian\(dim.*none for .*'dim'"),
        (lambda: ps.likelihoods.Gaussian(1, 1, 1), r"Gaussian\(.*too many"),
        (lambda: ps.likelihoods.Gaussian(1, scale=1), "multiple values .*'scale'"),
    ],
)
def test_arguments_that_a_function_does_not_have_are_refused(call, message):
    with pytest.raises(TypeError, match=message):
        call()


@pytest.mark.parametrize(
    "make",
    [
        ps.likelihoods.Gaussian,
        lambda x: ps.priors.Gaussian(2, scale=x),
        lambda x: ps.priors.Gaussian(2, scale=dist.LogNormal(x, 1.0)),
        lambda x: ps.limits.SimCLR(torch.nn.Linear(3, 2), temperature=x),
        ps.entropies.LogDeterminant,
    ],
)
def test_a_tensor_that_would_not_be_trained_is_no_number(make):
    x = torch.nn.Parameter(torch.tensor(0.5))
    make(x.detach())
    with pytest.raises(ValueError, match="would not be trained"):
        make(x)
