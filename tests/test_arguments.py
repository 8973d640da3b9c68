"""Arguments are returned as plain values, or refused in one form of message."""

import math

import numpy as np
import pytest
import torch

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
