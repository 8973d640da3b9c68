"""A figure, and where its resamples lie."""

import numpy as np
import pytest

from probssl.estimates import Interval, intervals


@pytest.mark.parametrize(("number", "ends"), [(20, (1, 18)), (119, (5, 113))])
def test_the_outer_twentieths_are_left_out(number, ends):
    draws = np.random.default_rng(0).permutation(number).astype(float)
    (found,) = intervals(np.array([7.0]), draws[:, None])
    assert found == (7.0, *ends)


def test_infinite_resamples_leave_an_end_that_is_a_number():
    draws = np.r_[np.arange(15.0), np.full(5, np.inf)]
    (found,) = intervals(np.array([3.0]), draws[:, None])
    assert found == (3.0, 1.0, np.inf)


def test_it_prints_with_any_format():
    found = Interval(0.123456, -1.0, 20_000.0)
    assert str(found) == f"{found}" == "0.1235 (-1 to 2e+04)"
    assert f"{found:.2f}" == "0.12 (-1.00 to 20000.00)"
